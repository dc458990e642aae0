//! Dialling a node: the address map, TCP with keep-alive, TLS, and the limits of time.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use slotkeep_model::NodeAddr;
use slotkeep_wire::replica::Credentials;
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};

use super::socket::{Socket, Stream};
use super::tls::Tls;
use super::{Connection, LinkError, LinkProblem, TlsOptions};
use crate::Result;

/// Which address to dial for an address that nodes announce.
#[derive(Clone, Debug, Default)]
pub struct AddressMap {
    rules: Vec<(String, String)>,
}

/// Text that is not a rule of an address map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a rule of an address map: expected ANNOUNCED=REACHABLE, both host:port or both host")]
pub struct AddressMapSyntaxError(String);

impl AddressMap {
    /// Adds a rule: `announced=reachable`, both `host:port` or both `host`.
    pub fn add(&mut self, rule: &str) -> std::result::Result<(), AddressMapSyntaxError> {
        let error = || AddressMapSyntaxError(rule.to_owned());
        let (from, to) = rule.split_once('=').ok_or_else(error)?;
        let is_addr = |text: &str| NodeAddr::from_str(text).is_ok();
        if from.is_empty() || to.is_empty() || is_addr(from) != is_addr(to) {
            return Err(error());
        }
        self.rules.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// The address to dial. A rule for host and port goes before one for the host alone.
    pub fn reach(&self, addr: &NodeAddr) -> NodeAddr {
        let find = |from: &str| self.rules.iter().find(|(rule, _)| rule == from).map(|(_, to)| to.as_str());
        if let Some(addr) = find(&addr.to_string()).and_then(|to| to.parse().ok()) {
            return addr;
        }
        match find(addr.host()) {
            Some(host) => NodeAddr::new(host, addr.port()),
            None => addr.clone(),
        }
    }
}

/// How to reach nodes.
#[derive(Clone, Debug, Default)]
pub struct ConnectorOptions {
    /// Who to be; nobody in particular if there are none.
    pub credentials: Option<Credentials>,
    /// TLS, if it is to be spoken.
    pub tls: Option<TlsOptions>,
    /// Which address to dial for an announced one.
    pub addresses: AddressMap,
    /// How long connecting, an answer, or the next byte of a snapshot may take; [`Connector::DEFAULT_TIMEOUT`] if not given.
    pub timeout: Option<Duration>,
    /// The socket file of the one server there is, whatever address is asked for; without TLS.
    pub socket_file: Option<PathBuf>,
}

/// How long a TCP connection, and then a TLS handshake, may take at the most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections to nodes, all in the same way.
pub struct Connector {
    credentials: Option<Credentials>,
    tls: Option<Tls>,
    addresses: AddressMap,
    timeout: Duration,
    socket_file: Option<PathBuf>,
}

impl Connector {
    /// The servers' own `repl-timeout`.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

    /// A connector; reads the certificates.
    pub fn new(options: ConnectorOptions) -> Result<Self> {
        Ok(Self {
            tls: options.tls.as_ref().map(Tls::new).transpose()?,
            credentials: options.credentials,
            addresses: options.addresses,
            timeout: options.timeout.unwrap_or(Self::DEFAULT_TIMEOUT),
            socket_file: options.socket_file,
        })
    }

    /// One that speaks TLS as this one does, as somebody else, and dials every address as it is.
    pub(crate) fn as_another(&self, credentials: Option<Credentials>, timeout: Duration) -> Self {
        Self {
            credentials,
            tls: self.tls.clone(),
            addresses: AddressMap::default(),
            timeout,
            socket_file: None,
        }
    }

    /// Whether connections speak TLS.
    pub const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Who connections are.
    pub const fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// How long an answer, or the next byte, may take.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The address that is dialled for `addr`.
    pub fn reach(&self, addr: &NodeAddr) -> NodeAddr {
        self.addresses.reach(addr)
    }

    /// A connection for commands, authenticated.
    pub async fn connect(&self, addr: &NodeAddr) -> Result<Connection, LinkError> {
        let stream = self.dial(addr).await?;
        let mut connection = Connection::new(addr.clone(), stream, self.timeout);
        if let Some(credentials) = &self.credentials {
            connection.call(&credentials.auth_command()).await?;
        }
        Ok(connection)
    }

    /// A bare connection, over which nothing has been said.
    pub async fn dial(&self, addr: &NodeAddr) -> Result<Box<dyn Stream>, LinkError> {
        let failed = |problem| LinkError { node: addr.clone(), problem };
        if let Some(path) = &self.socket_file {
            let socket = UnixStream::connect(path).await;
            return Ok(Box::new(socket.map_err(|error| failed(LinkProblem::Connect(error)))?));
        }
        let timeout = self.timeout.min(CONNECT_TIMEOUT);
        let late = |_| failed(LinkProblem::Timeout { doing: "connecting", after: timeout });
        let tcp = tokio::time::timeout(timeout, self.dial_tcp(addr)).await.map_err(late)?.map_err(failed)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = tls.server_name(addr).map_err(|why| failed(LinkProblem::Tls(why)))?;
        // A server that speaks no TLS waits for the end of what it takes for a command, and says nothing.
        let silent = |_| {
            let words = format!(
                "no answer to the handshake for {} s: the server does not seem to speak TLS on this port",
                timeout.as_secs()
            );
            failed(LinkProblem::Tls(words))
        };
        let shaken =
            tokio::time::timeout(timeout, tls.connector().connect(name, tcp)).await.map_err(silent)?;
        Ok(Box::new(shaken.map_err(|error| failed(LinkProblem::Tls(tls_words(&error))))?))
    }

    /// Whether the server there answers a TLS handshake, whatever its certificate is. A TLS port drops a connection that begins in
    /// plain text, some versions without a word.
    pub(crate) async fn speaks_tls(&self, addr: &NodeAddr) -> bool {
        let Ok(tls) = Tls::new(&TlsOptions::default()) else { return false };
        let Ok(name) = tls.server_name(addr) else { return false };
        let shaken = async {
            let tcp = self.dial_tcp(addr).await.ok()?;
            Some(tls.connector().connect(name, tcp).await)
        };
        match tokio::time::timeout(self.timeout.min(CONNECT_TIMEOUT), shaken).await {
            Ok(Some(Ok(_))) => true,
            Ok(Some(Err(error))) => is_words_of_tls(&error),
            Ok(None) | Err(_) => false,
        }
    }

    async fn dial_tcp(&self, addr: &NodeAddr) -> std::result::Result<Socket, LinkProblem> {
        let target = self.addresses.reach(addr);
        let mut candidates =
            tokio::net::lookup_host((target.host(), target.port())).await.map_err(LinkProblem::Resolve)?;
        let mut last = None;
        let tcp = loop {
            let Some(candidate) = candidates.next() else {
                let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
                return Err(last.map_or_else(|| LinkProblem::Resolve(none()), LinkProblem::Connect));
            };
            match TcpStream::connect(candidate).await {
                Ok(tcp) => break tcp,
                Err(error) => last = Some(error),
            }
        };
        tcp.set_nodelay(true).map_err(LinkProblem::Io)?;
        let keep_alive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10));
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&keep_alive).map_err(LinkProblem::Io)?;
        Ok(Socket::new(tcp))
    }
}

/// Whether a handshake failed in a way that only a peer that speaks TLS can make it fail.
fn is_words_of_tls(error: &std::io::Error) -> bool {
    use tokio_rustls::rustls::Error as Tls;
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Tls>());
    matches!(
        cause,
        Some(
            Tls::AlertReceived(_)
                | Tls::InvalidCertificate(_)
                | Tls::PeerIncompatible(_)
                | Tls::NoCertificatesPresented
        )
    )
}

/// What a failed TLS handshake means, in words: a peer that answers in plain text makes for an obscure error.
fn tls_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    if text.contains("InvalidContentType")
        || text.contains("corrupt message")
        || error.kind() == std::io::ErrorKind::UnexpectedEof
    {
        format!("the server does not seem to speak TLS on this port ({text})")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_addresses_are_mapped_by_port_then_by_host() {
        let mut map = AddressMap::default();
        map.add("10.0.0.1:6379=127.0.0.1:7001").unwrap();
        map.add("10.0.0.1=192.168.0.9").unwrap();
        let reach = |text: &str| map.reach(&text.parse().unwrap()).to_string();
        assert_eq!(reach("10.0.0.1:6379"), "127.0.0.1:7001");
        assert_eq!(reach("10.0.0.1:6380"), "192.168.0.9:6380");
        assert_eq!(reach("10.0.0.2:6379"), "10.0.0.2:6379");
        for rule in ["", "a", "a=", "a:1=b", "a=b:1"] {
            assert!(AddressMap::default().add(rule).is_err(), "{rule}");
        }
    }
}
