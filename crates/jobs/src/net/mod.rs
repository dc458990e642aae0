//! Connections to nodes: dialling, TLS, commands and replies, and what can go wrong with them.

mod connect;
mod connection;
mod listen;
mod socket;
mod tls;

pub use connect::{AddressMap, AddressMapSyntaxError, Connector, ConnectorOptions};
pub use connection::Connection;
pub(crate) use connection::{Reading, Writing, broken};
pub use listen::Listener;
pub use socket::Stream;
pub use tls::TlsOptions;

use std::time::Duration;

use slotkeep_model::NodeAddr;
use slotkeep_wire::replica::{HandshakeError, PeerGuess};
use slotkeep_wire::resp::RespError;
use slotkeep_wire::server_error::ServerError;
use thiserror::Error;

/// A failed exchange with a node.
#[derive(Debug, Error)]
#[error("{node}: {problem}")]
pub struct LinkError {
    /// The node, by the address that was asked for.
    pub node: NodeAddr,
    /// Why it failed.
    #[source]
    pub problem: LinkProblem,
}

/// Why an exchange with a node failed.
#[derive(Debug, Error)]
pub enum LinkProblem {
    /// The name has no address.
    #[error("its name can't be resolved: {0}")]
    Resolve(std::io::Error),
    /// Nothing accepts connections there.
    #[error("can't connect: {0}")]
    Connect(std::io::Error),
    /// It took too long.
    #[error("no answer for {} s while {doing}", .after.as_secs_f32())]
    Timeout {
        /// What was awaited.
        doing: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(std::io::Error),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server speaks TLS and this side doesn't.
    #[error("the server speaks TLS on this port, the connection was made without")]
    ServerSpeaksTls,
    /// Whatever answers is not a Redis or Valkey server.
    #[error("what answers is not a Redis or Valkey server: {0}")]
    NotRedis(String),
    /// The password is missing or wrong.
    #[error("the server does not accept the credentials: {0}")]
    WrongPassword(String),
    /// The user may not run the command.
    #[error("the user may not run {command}: {reply}")]
    NoPermission {
        /// The command.
        command: String,
        /// The server's words.
        reply: String,
    },
    /// The server has no such command, or has it renamed or blocked.
    #[error("the server does not know {command}: {reply}")]
    UnknownCommand {
        /// The command.
        command: String,
        /// The server's words.
        reply: String,
    },
    /// The server can't do it now, but will be able to by itself.
    #[error("the server can't do it now: {0}")]
    Transient(String),
    /// Any other error that the server answers.
    #[error("the server answers: {0}")]
    Server(String),
    /// What the server sends makes no sense.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

impl LinkProblem {
    /// What the error reply `text` to `command` amounts to.
    pub fn from_reply(command: &str, text: &str) -> Self {
        let (command, reply) = (command.to_owned(), text.to_owned());
        match ServerError::classify(text) {
            ServerError::AuthRequired | ServerError::WrongPassword => Self::WrongPassword(reply),
            ServerError::NoPermission { .. } => Self::NoPermission { command, reply },
            ServerError::UnknownCommand { .. } => Self::UnknownCommand { command, reply },
            error if error.is_transient() => Self::Transient(reply),
            _ => Self::Server(reply),
        }
    }

    /// Whether the same may succeed a little later, or on another node of the shard, without anybody changing anything.
    pub const fn is_transient(&self) -> bool {
        !matches!(
            self,
            Self::WrongPassword(_)
                | Self::NoPermission { .. }
                | Self::UnknownCommand { .. }
                | Self::ServerSpeaksTls
                | Self::Tls(_)
        )
    }
}

impl From<HandshakeError> for LinkProblem {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::WrongPassword { reply } => Self::WrongPassword(reply),
            HandshakeError::NoPermission { command, reply } => Self::NoPermission { command, reply },
            HandshakeError::UnknownCommand { command, reply } => Self::UnknownCommand { command, reply },
            HandshakeError::Transient { reply } => Self::Transient(reply),
            HandshakeError::Refused { reply, .. } => Self::Server(reply),
            HandshakeError::NotRedis { looks_like: PeerGuess::Tls, .. } => Self::ServerSpeaksTls,
            HandshakeError::NotRedis { .. } => Self::NotRedis(error.to_string()),
            HandshakeError::Closed { .. } => Self::Closed,
            HandshakeError::Unexpected { .. } | HandshakeError::TooLong { .. } => {
                Self::Protocol(error.to_string())
            }
        }
    }
}

impl From<RespError> for LinkProblem {
    fn from(error: RespError) -> Self {
        match error {
            // The first byte of a TLS alert: the server did not understand what it took for a handshake.
            RespError::UnknownType { offset: 0, byte: 0x15 } => Self::ServerSpeaksTls,
            error => Self::NotRedis(error.to_string()),
        }
    }
}
