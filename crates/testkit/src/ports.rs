//! Free ports, safe against other test processes that look for some at the same moment.
//!
//! A port is taken by listening on an abstract Unix socket that stands for it, held as long as the node may use it. Such a socket has
//! no file, belongs to the same network namespace as the port, and goes when its process dies, however it dies. A look whether the
//! port can be bound keeps clear of everybody who knows nothing of these sockets. Both a node's port and its bus port (10000 above) stay
//! below 32768, where the kernel picks ports for outgoing connections.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::error::{Error, Result};
use crate::random::Random;

/// How far a node's bus port lies above its port, unless `cluster-port` says otherwise.
pub(crate) const BUS_OFFSET: u16 = 10_000;

const FIRST: u16 = 11_000;
const COUNT: u16 = 11_000;
const TRIES: u32 = 2_000;

/// Ports whose bus ports are those that tests start servers of their own on: they look whether one is free, and hold nothing.
const OF_OTHERS: std::ops::Range<u16> = 12_000..12_700;

/// A port, and the port [`BUS_OFFSET`] above it, that no other testkit uses while this lives.
#[derive(Debug)]
pub(crate) struct PortLease {
    port: u16,
    _lock: UnixListener,
}

impl PortLease {
    /// Finds and takes a free port.
    pub(crate) fn take(ipv6: bool) -> Result<Self> {
        let mut random = Random::unpredictable();
        for _ in 0..TRIES {
            let port = FIRST + u16::try_from(random.below(COUNT.into())).unwrap_or(0);
            if OF_OTHERS.contains(&port) {
                continue;
            }
            let name = SocketAddr::from_abstract_name(format!("slotkeep-port-{port}"))
                .map_err(Error::io("name a port's lock"))?;
            let Ok(lock) = UnixListener::bind_addr(&name) else { continue };
            if is_free(port, ipv6) && is_free(port + BUS_OFFSET, ipv6) {
                return Ok(Self { port, _lock: lock });
            }
        }
        Err(Error::NoPort { tried: TRIES })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

fn is_free(port: u16, ipv6: bool) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && (!ipv6 || TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_leased_once() {
        let leases: Vec<_> = (0..50).map(|_| PortLease::take(false).unwrap()).collect();
        let mut ports: Vec<_> = leases.iter().map(PortLease::port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
