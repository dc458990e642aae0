//! Where a node listens, and which node it is.

use core::fmt;
use core::str::FromStr;

use crate::history::{IdSyntaxError, forty_characters};

/// A cluster node's id: forty characters, chosen by the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(String);

impl NodeId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = IdSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        forty_characters(text).map(Self)
    }
}

/// A host (name, IPv4 or IPv6 address) and a TCP port. Its text form is `host:port`, or `[address]:port` for IPv6.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddr {
    host: String,
    port: u16,
}

impl NodeAddr {
    /// The address of `port` on `host`; an IPv6 address stands here without brackets.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for NodeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Text that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddrSyntaxError {
    /// What was to be read as an address.
    pub text: String,
}

impl fmt::Display for AddrSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not an address: expected host:port, or [address]:port for IPv6", self.text)
    }
}

impl core::error::Error for AddrSyntaxError {}

impl FromStr for NodeAddr {
    type Err = AddrSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddrSyntaxError { text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => {
                bracketed.strip_suffix(']').filter(|inner| inner.contains(':')).ok_or_else(error)?
            }
            None if host.contains(':') => return Err(error()),
            None => host,
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') {
            return Err(error());
        }
        Ok(Self::new(host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_what_they_write() {
        for text in ["127.0.0.1:6379", "redis-0.redis.svc:7000", "[::1]:6379"] {
            assert_eq!(text.parse::<NodeAddr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":6379",
            "::1:6379",
            "[host]:1",
            "redis://h:1",
            "u@h:1",
        ] {
            assert!(text.parse::<NodeAddr>().is_err(), "{text}");
        }
    }
}
