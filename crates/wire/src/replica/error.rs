//! Why a handshake failed.

use thiserror::Error;

use crate::server_error::ServerError;

/// What a peer seems to speak that does not speak RESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerGuess {
    /// TLS: the byte begins a TLS alert or handshake record. The port wants TLS.
    Tls,
    /// HTTP.
    Http,
    /// Something else.
    Unknown,
}

impl PeerGuess {
    /// A guess from the first byte that came: `0x15` and `0x16` begin TLS records, `H` and `<` what web servers answer.
    pub(super) const fn of(byte: u8) -> Self {
        match byte {
            0x15 | 0x16 => Self::Tls,
            b'H' | b'<' => Self::Http,
            _ => Self::Unknown,
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Tls => "it looks like TLS: connect with TLS, or to the plain port",
            Self::Http => "it looks like a web server: check the address",
            Self::Unknown => "check the address, and whether the port wants TLS",
        }
    }
}

/// A handshake that did not lead to a payload or a stream. Offsets count the bytes from the server, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The server wants other credentials: `NOAUTH`, `WRONGPASS`, `invalid password`, or it has no password at all.
    #[error("the server does not accept the credentials: {reply}")]
    WrongPassword {
        /// The error reply.
        reply: String,
    },
    /// The user may not run a command of the handshake (`NOPERM`).
    #[error("the user may not run {command}: {reply}")]
    NoPermission {
        /// The command.
        command: String,
        /// The error reply.
        reply: String,
    },
    /// The server does not know a command of the handshake: it is renamed or blocked, as managed services do.
    #[error("the server does not know {command}, it is renamed or blocked: {reply}")]
    UnknownCommand {
        /// The command.
        command: String,
        /// The error reply.
        reply: String,
    },
    /// The server cannot serve a replica at this moment; the same may succeed later.
    #[error("the server cannot serve a replica now: {reply}")]
    Transient {
        /// The error reply.
        reply: String,
    },
    /// The server answers a command of the handshake with any other error.
    #[error("the server refuses {command}: {reply}")]
    Refused {
        /// The command.
        command: String,
        /// The error reply.
        reply: String,
    },
    /// What answers does not speak RESP.
    #[error("the peer does not speak the Redis protocol (byte {first_byte:#04x} at offset {offset}); {}", looks_like.advice())]
    NotRedis {
        /// Where the byte stands.
        offset: u64,
        /// A byte that begins no reply.
        first_byte: u8,
        /// What it may be instead.
        looks_like: PeerGuess,
    },
    /// A reply that is RESP but not one that belongs here.
    #[error("the server sent `{line}` at offset {offset}, expected {expected}")]
    Unexpected {
        /// Where the reply begins.
        offset: u64,
        /// The start of the reply.
        line: String,
        /// What belongs here.
        expected: &'static str,
    },
    /// A line does not end.
    #[error("the line at offset {offset} is longer than {limit_bytes} bytes")]
    TooLong {
        /// Where the line begins.
        offset: u64,
        /// The limit.
        limit_bytes: usize,
    },
    /// The connection ended.
    #[error("the server closed the connection, expected {awaited}")]
    Closed {
        /// What was awaited.
        awaited: &'static str,
    },
}

impl HandshakeError {
    /// The error that an error reply to `command` amounts to.
    pub(super) fn from_reply(error: &ServerError, text: &str, command: &str) -> Self {
        let reply = text.to_owned();
        let command = command.to_owned();
        match error {
            ServerError::AuthRequired | ServerError::WrongPassword => Self::WrongPassword { reply },
            ServerError::NoPermission { .. } => Self::NoPermission { command, reply },
            ServerError::UnknownCommand { .. } => Self::UnknownCommand { command, reply },
            error if error.is_transient() => Self::Transient { reply },
            // `NOMASTERLINK` has this sense too, but its wording has changed over the versions and in forks.
            _ if text.contains("Can't SYNC") || text.contains("can't serve") => Self::Transient { reply },
            _ => Self::Refused { command, reply },
        }
    }

    /// Whether the same attempt may succeed a little later without anybody changing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Closed { .. })
    }
}
