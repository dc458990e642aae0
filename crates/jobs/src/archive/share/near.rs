//! Which nodes are near this machine.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use slotkeep_model::Shard;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::Context;

/// How long a name may take to be resolved.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// Any port does to ask for a way.
const DISCARD: u16 = 9;

/// What makes a node near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NearRule {
    /// Its address is in this network.
    Net {
        /// An address of the network.
        addr: IpAddr,
        /// How many leading bits are the network's.
        bits: u32,
    },
    /// It announces this host name or address, or a host name of which this is one of the parts between the dots.
    Host(String),
}

/// Text that names no host, label or network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearSyntaxError(String);

impl fmt::Display for NearSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a host, a part of a host name, or a network such as 10.0.1.0/24", self.0)
    }
}

impl std::error::Error for NearSyntaxError {}

impl FromStr for NearRule {
    type Err = NearSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NearSyntaxError(text.to_owned());
        if let Some((addr, bits)) = text.split_once('/') {
            let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
            let most = if addr.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?;
            return Ok(Self::Net { addr, bits });
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::Net { addr, bits: if addr.is_ipv4() { 32 } else { 128 } });
        }
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
        if text.is_empty() || !text.chars().all(allowed) {
            return Err(wrong());
        }
        Ok(Self::Host(text.to_ascii_lowercase()))
    }
}

impl NearRule {
    fn fits(&self, host: &str, addrs: &[IpAddr]) -> bool {
        match self {
            Self::Net { addr, bits } => addrs.iter().any(|other| in_net(*addr, *bits, *other)),
            Self::Host(name) => {
                let host = host.to_ascii_lowercase();
                host == *name || (host.parse::<IpAddr>().is_err() && host.split('.').any(|part| part == name))
            }
        }
    }
}

fn in_net(net: IpAddr, bits: u32, addr: IpAddr) -> bool {
    match (net, addr) {
        (IpAddr::V4(net), IpAddr::V4(addr)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            net.to_bits() & mask == addr.to_bits() & mask
        }
        (IpAddr::V6(net), IpAddr::V6(addr)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
            net.to_bits() & mask == addr.to_bits() & mask
        }
        _ => false,
    }
}

/// Tells which nodes are near, and remembers.
#[derive(Debug, Default)]
pub(crate) struct Near {
    /// Without any, what has an address of this machine is near.
    rules: Vec<NearRule>,
    known: HashMap<String, bool>,
}

impl Near {
    pub(crate) fn new(rules: Vec<NearRule>) -> Self {
        Self { rules, known: HashMap::new() }
    }

    /// Learns of the hosts of these shards.
    pub(crate) async fn learn(&mut self, context: &Context, shards: &[Shard]) {
        for host in shards.iter().flat_map(Shard::nodes).map(|node| node.addr.host()) {
            if self.known.contains_key(host) {
                continue;
            }
            let addrs = resolve(context, host).await;
            let near = if self.rules.is_empty() {
                addrs.iter().any(|addr| is_ours(*addr))
            } else {
                self.rules.iter().any(|rule| rule.fits(host, &addrs))
            };
            self.known.insert(host.to_owned(), near);
        }
    }

    /// Whether one of a shard's living nodes is near, as far as is known.
    pub(crate) fn is_near(&self, shard: &Shard) -> bool {
        shard.nodes().any(|node| node.online && self.is_near_host(node.addr.host()))
    }

    pub(crate) fn is_near_host(&self, host: &str) -> bool {
        self.known.get(host).copied().unwrap_or_default()
    }

    /// The hosts that are near.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &String> {
        self.known.iter().filter_map(|(host, near)| near.then_some(host))
    }
}

async fn resolve(context: &Context, host: &str) -> Vec<IpAddr> {
    if let Ok(addr) = host.parse() {
        return vec![addr];
    }
    let found = context.within(RESOLVE_LIMIT, tokio::net::lookup_host((host, 0))).await;
    found.and_then(Result::ok).map(|found| found.map(|addr| addr.ip()).collect()).unwrap_or_default()
}

/// Whether this machine has that address: only one's own can be listened on.
fn is_ours(addr: IpAddr) -> bool {
    match UdpSocket::bind(SocketAddr::new(addr, 0)) {
        Ok(_) => true,
        // Where a service manager lets nothing be listened on at all (systemd's SocketBindDeny=), as in the units that come with Slotkeep.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => is_its_own_source(addr),
        Err(_) => false,
    }
}

/// Whether packets to that address would have it for their sender too, as the way to oneself has. Sends nothing.
fn is_its_own_source(addr: IpAddr) -> bool {
    let target = SocketAddr::new(addr, DISCARD);
    let source = || {
        let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
        socket.connect(&target.into())?;
        socket.local_addr()
    };
    source().is_ok_and(|source: SockAddr| source.as_socket().is_some_and(|source| source.ip() == addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(rule: &str, host: &str) -> bool {
        let addrs: Vec<IpAddr> = host.parse().into_iter().collect();
        rule.parse::<NearRule>().unwrap().fits(host, &addrs)
    }

    #[test]
    fn rules_name_hosts_labels_and_networks() {
        assert!(fits("10.1.0.0/16", "10.1.200.3") && !fits("10.1.0.0/16", "10.2.0.1"));
        assert!(fits("0.0.0.0/0", "9.9.9.9") && !fits("0.0.0.0/0", "::1"));
        assert!(fits("fd00::/8", "fd12::1") && !fits("fd00::/8", "fe80::1"));
        assert!(fits("10.1.2.3", "10.1.2.3") && !fits("10.1.2.3", "10.1.2.30"));
        assert!(
            fits("eu-west-1a", "redis-3.EU-west-1a.example.com")
                && !fits("1a", "redis-3.eu-west-1a.example.com")
        );
        assert!(fits("redis-3.example.com", "redis-3.example.com"));
        assert!(!fits("10", "10.1.2.3"), "a part of an address is no label");
        for text in ["", "10.0.0.0/33", "x/8", "a b", "10.0.0.0/"] {
            assert!(text.parse::<NearRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_of_this_machine_is_known() {
        // By either way.
        for knows in [is_ours, is_its_own_source] {
            assert!(knows("127.0.0.1".parse().unwrap()));
            assert!(!knows("192.0.2.1".parse().unwrap()), "an address that is kept for documentation");
        }
    }
}
