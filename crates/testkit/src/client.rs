//! A blocking connection to one server, plain or TLS.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::error::{Error, Result};
use crate::resp::{self, Value};
use crate::tls::tls_error;

/// Requests are sent when this many bytes are waiting.
const SEND_AT_BYTES: usize = 256 * 1024;

/// Where a server listens, and how to log in there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Address and port.
    pub addr: SocketAddr,
    /// Who to log in as; `None` for the default user.
    pub user: Option<String>,
    /// The password; `None` for no login.
    pub password: Option<String>,
    /// TLS settings; `None` for a plain connection.
    pub tls: Option<Arc<ClientConfig>>,
    /// How long to wait for a connection, for each reply and for each request to leave.
    pub timeout: Duration,
}

impl Endpoint {
    /// A server that wants neither a login nor TLS.
    pub fn plain(addr: SocketAddr) -> Self {
        Self { addr, user: None, password: None, tls: None, timeout: Duration::from_secs(30) }
    }

    /// The same, elsewhere: another node of the same cluster, or a proxy before it.
    #[must_use]
    pub fn at(&self, addr: SocketAddr) -> Self {
        Self { addr, ..self.clone() }
    }

    /// The same, with less or more patience.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }
}

/// A connection, logged in.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<Stream>,
    waiting: Vec<u8>,
}

impl Client {
    /// Connects and logs in.
    pub fn connect(endpoint: &Endpoint) -> Result<Self> {
        let addr = endpoint.addr;
        let tcp = TcpStream::connect_timeout(&addr, endpoint.timeout)
            .and_then(|tcp| {
                tcp.set_nodelay(true)?;
                tcp.set_read_timeout(Some(endpoint.timeout))?;
                tcp.set_write_timeout(Some(endpoint.timeout))?;
                Ok(tcp)
            })
            .map_err(Error::io(format!("connect to {addr}")))?;
        let stream = match &endpoint.tls {
            None => Stream::Plain(tcp),
            Some(config) => {
                let name = ServerName::from(addr.ip());
                let session = ClientConnection::new(Arc::clone(config), name).map_err(tls_error)?;
                Stream::Tls(Box::new(StreamOwned::new(session, tcp)))
            }
        };
        let mut client = Self { stream: BufReader::with_capacity(64 * 1024, stream), waiting: Vec::new() };
        if let Some(password) = &endpoint.password {
            match &endpoint.user {
                Some(user) => client.command(&["AUTH", user, password])?,
                None => client.command(&["AUTH", password])?,
            };
        }
        Ok(client)
    }

    /// Sends a command and waits for its reply; an error reply is [`Error::Reply`].
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value> {
        self.send(args)?;
        match self.receive()? {
            Value::Error(message) => Err(Error::Reply { command: command_name(args), message }),
            value => Ok(value),
        }
    }

    /// Sends commands all at once and returns their replies in order; error replies are [`Value::Error`].
    pub fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[Vec<A>]) -> Result<Vec<Value>> {
        for args in commands {
            self.send(args)?;
        }
        commands.iter().map(|_| self.receive()).collect()
    }

    /// Queues a command, to be sent with the next ones. Each needs its [`Self::receive`].
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<()> {
        resp::write_command(&mut self.waiting, args);
        if self.waiting.len() >= SEND_AT_BYTES { self.flush() } else { Ok(()) }
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<()> {
        let stream = self.stream.get_mut();
        let sent = stream.write_all(&self.waiting).and_then(|()| stream.flush());
        self.waiting.clear();
        sent.map_err(Error::io("send a command"))
    }

    /// Sends what is queued and waits for the next reply, which may be an error.
    pub fn receive(&mut self) -> Result<Value> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        resp::read_value(&mut self.stream)
    }

    /// `INFO section`, as one text.
    pub fn info(&mut self, section: &str) -> Result<String> {
        self.command(&["INFO", section])?.text()
    }

    /// One field of `INFO section` or of the like, such as `CLUSTER INFO`.
    pub fn info_field(&mut self, section: &str, field: &str) -> Result<Option<String>> {
        Ok(field_of(&self.info(section)?, field))
    }
}

/// The value of a field in text made of lines `field:value`.
pub fn field_of(text: &str, field: &str) -> Option<String> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_owned()))
}

/// What to call a command in an error: its name and its first argument, unless that may be a password.
pub(crate) fn command_name<A: AsRef<[u8]>>(args: &[A]) -> String {
    let mut words = args.iter().map(|arg| arg.as_ref().iter().take(40).copied().collect::<Vec<u8>>());
    let name = words.next().unwrap_or_default().escape_ascii().to_string();
    match words.next() {
        Some(first) if !name.eq_ignore_ascii_case("auth") => format!("{name} {}", first.escape_ascii()),
        _ => name,
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
