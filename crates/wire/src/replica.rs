//! The replica's side of a replication link, from the first byte to the snapshot's header or the continued stream.
//!
//! Source: `syncWithMaster` (Valkey: `syncWithPrimary`) and `syncCommand` in `src/replication.c` of Redis 6.2 to 8.8 and
//! Valkey 7.2 to 9.1.
//!
//! Invariants: a step's commands are written only when every reply to the step before was read, so nothing is outstanding
//! when `PSYNC` is sent (the server refuses it otherwise), and no password goes to a peer that has not answered `PING`
//! as a server of this protocol does; the bytes after the header's or `+CONTINUE`'s line are kept untouched.

mod error;

use core::fmt;
use std::collections::VecDeque;

use slotkeep_model::{ReplId, ReplOffset};

use crate::resp::Command;
use crate::server_error::ServerError;
use crate::transfer::PayloadHeader;

pub use error::{HandshakeError, PeerGuess};

/// The version to announce to Valkey: at least that of any server, so that it sends its own RDB version and keeps what an
/// older one could not hold (`replicaPutOnline` and `rdbSaveRio` in Valkey 9.1; Redis does not know the option).
pub const NEWEST_VERSION: &str = "255.255.255";

/// The longest line a server is allowed to send before the payload, in bytes.
const LINE_LIMIT: usize = 16 << 10;

/// Who to be on the server.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The ACL user; `None` for the default user, which is also what servers before Redis 6.0 know.
    pub user: Option<String>,
    /// The password.
    pub password: String,
}

impl Credentials {
    /// The command that authenticates a connection.
    pub fn auth_command(&self) -> Command {
        Command::new("AUTH").args(self.user.as_deref()).arg(&self.password)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What to ask the primary for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A snapshot and the stream after it.
    Full,
    /// The stream only, from a byte on that is not yet here. The server may answer with a snapshot all the same.
    Continue {
        /// The history.
        replid: ReplId,
        /// The offset of the first byte that is not yet here: one more than the last one received.
        next_offset: ReplOffset,
    },
}

impl Request {
    /// To continue after having received every byte up to and including `received`; `None` past the last offset there is.
    pub fn after(replid: ReplId, received: ReplOffset) -> Option<Self> {
        Some(Self::Continue { replid, next_offset: received.checked_add(1)? })
    }

    fn command(&self) -> Command {
        match self {
            Self::Full => Command::new("PSYNC").arg("?").arg("-1"),
            Self::Continue { replid, next_offset } => {
                Command::new("PSYNC").arg(replid.as_str()).arg_number(next_offset)
            }
        }
    }
}

/// How to introduce oneself and what to ask for.
#[derive(Clone, Debug)]
pub struct HandshakeOptions {
    /// Who to be; `None` sends no `AUTH`.
    pub credentials: Option<Credentials>,
    /// The port to show in `INFO replication` and `ROLE`; with `None` the server shows 0. Sentinel takes what stands there
    /// for a replica that can be promoted.
    pub listening_port: Option<u16>,
    /// The version to announce (see [`NEWEST_VERSION`]); `None` announces none, and Valkey 9.1 then sends RDB version 11.
    pub announced_version: Option<String>,
    /// What to ask for.
    pub request: Request,
}

impl HandshakeOptions {
    /// No credentials, no port, the newest version.
    pub fn new(request: Request) -> Self {
        let announced_version = Some(NEWEST_VERSION.to_owned());
        Self { credentials: None, listening_port: None, announced_version, request }
    }
}

/// What the handshake gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeEvent {
    /// A keep-alive byte: the primary lives, its snapshot is not ready. Idle timers start anew.
    Alive,
    /// A snapshot follows; it holds the effect of every byte up to and including `offset`.
    FullResync {
        /// The history.
        replid: ReplId,
        /// The last byte whose effect the snapshot holds.
        offset: ReplOffset,
    },
    /// The stream follows, from the requested offset on. The handshake is over.
    Continue {
        /// The history that the stream now belongs to, which may be a new one (after a failover); the old one if `None`.
        replid: Option<ReplId>,
    },
    /// The snapshot's bytes follow. The handshake is over.
    Payload(PayloadHeader),
}

/// Which replies are awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ping,
    Auth,
    Configure,
    Psync,
    Header,
    Done,
}

/// The machine. Write what [`to_send`](Self::to_send) gives, [`feed`](Self::feed) what comes, [`poll`](Self::poll) for
/// events, until [`is_done`](Self::is_done); then [`take_rest`](Self::take_rest).
pub struct Handshake {
    options: HandshakeOptions,
    stage: Stage,
    /// Replies of this stage still to come.
    awaited: usize,
    outgoing: Option<Vec<u8>>,
    line: Vec<u8>,
    events: VecDeque<Queued>,
    received: u64,
    rest: Vec<u8>,
    failed: Option<HandshakeError>,
}

/// An event in the queue; keep-alives in a row share one place, so that a flood of them takes no memory.
enum Queued {
    Alive(u64),
    Event(HandshakeEvent),
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither outgoing bytes nor the line: they may hold a password.
        f.debug_struct("Handshake")
            .field("options", &self.options)
            .field("stage", &self.stage)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Handshake {
    /// A handshake on a fresh connection. Its first bytes are ready to be sent.
    pub fn new(options: HandshakeOptions) -> Self {
        Self {
            options,
            stage: Stage::Ping,
            awaited: 1,
            outgoing: Some(Command::new("PING").to_bytes()),
            line: Vec::new(),
            events: VecDeque::new(),
            received: 0,
            rest: Vec::new(),
            failed: None,
        }
    }

    /// The bytes to write now, given once.
    pub fn to_send(&mut self) -> Option<Vec<u8>> {
        self.outgoing.take()
    }

    /// Takes bytes that came from the server. After an error the handshake gives that same error for ever.
    ///
    /// What the server sent before the bytes that are wrong has had its effect: its events are there to poll.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.take_in(bytes);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// The next event.
    pub fn poll(&mut self) -> Option<HandshakeEvent> {
        match self.events.pop_front()? {
            Queued::Event(event) => Some(event),
            Queued::Alive(count) => {
                if let Some(more) = count.checked_sub(1).filter(|more| *more > 0) {
                    self.events.push_front(Queued::Alive(more));
                }
                Some(HandshakeEvent::Alive)
            }
        }
    }

    /// Whether `Payload` or `Continue` was reached: all further bytes are not the handshake's.
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// The bytes that came after the handshake's last line: the start of the payload or of the stream.
    pub fn take_rest(self) -> Vec<u8> {
        self.rest
    }

    /// What it means that the connection ends here: nothing once the handshake is over, else an error that says what was
    /// awaited.
    pub fn connection_closed(&self) -> Result<(), HandshakeError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.is_done() => Ok(()),
            None => Err(HandshakeError::Closed { awaited: self.awaited_words() }),
        }
    }

    fn take_in(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let mut bytes = bytes;
        while self.stage != Stage::Done {
            if self.line.is_empty() {
                let Some((&byte, after)) = bytes.split_first() else { return Ok(()) };
                if byte == b'\n' {
                    self.keep_alive();
                    self.received = self.received.saturating_add(1);
                    bytes = after;
                    continue;
                }
                self.check_first_byte(byte)?;
            }
            let end = memchr::memchr(b'\n', bytes);
            let (piece, after) = bytes
                .split_at_checked(end.map_or(bytes.len(), |at| at.saturating_add(1)))
                .unwrap_or((bytes, &[]));
            if self.line.len().saturating_add(piece.len()) > LINE_LIMIT {
                return Err(HandshakeError::TooLong { offset: self.received, limit_bytes: LINE_LIMIT });
            }
            self.line.extend_from_slice(piece);
            bytes = after;
            if end.is_none() {
                return Ok(());
            }
            let line = core::mem::take(&mut self.line);
            self.on_line(line.trim_ascii_end())?;
            self.received = self.received.saturating_add(line.len() as u64);
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    fn keep_alive(&mut self) {
        match self.events.back_mut() {
            Some(Queued::Alive(count)) => *count = count.saturating_add(1),
            _ => self.events.push_back(Queued::Alive(1)),
        }
    }

    /// A reply is a status or an error; after `+FULLRESYNC` the payload's header may come.
    fn check_first_byte(&self, byte: u8) -> Result<(), HandshakeError> {
        match byte {
            b'+' | b'-' => Ok(()),
            b'$' if self.stage == Stage::Header => Ok(()),
            b':' | b'$' | b'*' | b'%' | b'>' => Err(HandshakeError::Unexpected {
                offset: self.received,
                line: char::from(byte).to_string(),
                expected: self.awaited_words(),
            }),
            _ => Err(HandshakeError::NotRedis {
                offset: self.received,
                first_byte: byte,
                looks_like: PeerGuess::of(byte),
            }),
        }
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), HandshakeError> {
        let text = String::from_utf8_lossy(line);
        if let Some(error) = text.strip_prefix('-') {
            self.on_error_reply(error)?;
        } else if self.stage == Stage::Psync {
            return self.on_psync_reply(&text);
        } else if self.stage == Stage::Header {
            let header = PayloadHeader::parse(line).ok_or_else(|| self.unexpected(&text))?;
            self.events.push_back(Queued::Event(HandshakeEvent::Payload(header)));
            self.stage = Stage::Done;
            return Ok(());
        }
        self.awaited = self.awaited.saturating_sub(1);
        if self.awaited == 0 {
            self.advance();
        }
        Ok(())
    }

    /// Lets pass the errors that a real replica passes over too, and fails on all others.
    fn on_error_reply(&self, text: &str) -> Result<(), HandshakeError> {
        let error = ServerError::classify(text);
        let tolerated = match self.stage {
            // The peer is a server; whether it lets us in is for AUTH and PSYNC to find out. `MISCONF` is all that a server with
            // a full disk says to PING, and it can still feed a replica.
            Stage::Ping => match error {
                ServerError::AuthRequired => self.options.credentials.is_some(),
                ServerError::NoPermission { .. } | ServerError::CannotPersist => true,
                _ => false,
            },
            // An option that this server does not know.
            Stage::Configure => matches!(error, ServerError::Other(_)),
            Stage::Auth | Stage::Psync | Stage::Header | Stage::Done => false,
        };
        if tolerated {
            Ok(())
        } else {
            Err(HandshakeError::from_reply(&error, text, self.command_in_question()))
        }
    }

    fn on_psync_reply(&mut self, text: &str) -> Result<(), HandshakeError> {
        let mut words = text.split_ascii_whitespace();
        let event = match (words.next(), words.next(), words.next()) {
            (Some("+FULLRESYNC"), Some(replid), Some(offset)) => {
                let replid = replid.parse().map_err(|_| self.unexpected(text))?;
                let offset = ReplOffset(offset.parse().map_err(|_| self.unexpected(text))?);
                self.stage = Stage::Header;
                HandshakeEvent::FullResync { replid, offset }
            }
            (Some("+CONTINUE"), replid, None) if self.options.request != Request::Full => {
                let replid = replid.map(str::parse).transpose().map_err(|_| self.unexpected(text))?;
                self.stage = Stage::Done;
                HandshakeEvent::Continue { replid }
            }
            _ => return Err(self.unexpected(text)),
        };
        self.events.push_back(Queued::Event(event));
        Ok(())
    }

    /// Goes to the next stage and makes its commands ready to be sent.
    fn advance(&mut self) {
        let (stage, commands) = match (self.stage, &self.options.credentials) {
            (Stage::Ping, Some(credentials)) => (Stage::Auth, vec![credentials.auth_command()]),
            (Stage::Ping, None) | (Stage::Auth, _) => (Stage::Configure, self.configuration()),
            (Stage::Configure, _) => (Stage::Psync, vec![self.options.request.command()]),
            (stage @ (Stage::Psync | Stage::Header | Stage::Done), _) => (stage, Vec::new()),
        };
        self.stage = stage;
        self.awaited = commands.len();
        let outgoing = self.outgoing.get_or_insert_default();
        for command in commands {
            command.encode_into(outgoing);
        }
    }

    fn configuration(&self) -> Vec<Command> {
        let option = |name: &str| Command::new("REPLCONF").arg(name);
        let mut commands = Vec::new();
        if let Some(port) = self.options.listening_port {
            commands.push(option("listening-port").arg_number(port));
        }
        commands.push(option("capa").args(["eof", "capa", "psync2"]));
        if let Some(version) = &self.options.announced_version {
            commands.push(option("version").arg(version));
        }
        commands
    }

    fn command_in_question(&self) -> &'static str {
        match self.stage {
            Stage::Ping => "PING",
            Stage::Auth => "AUTH",
            Stage::Configure => "REPLCONF",
            Stage::Psync | Stage::Header | Stage::Done => "PSYNC",
        }
    }

    fn awaited_words(&self) -> &'static str {
        match self.stage {
            Stage::Ping => "a reply to PING",
            Stage::Auth => "a reply to AUTH",
            Stage::Configure => "a reply to REPLCONF",
            Stage::Psync if self.options.request == Request::Full => "+FULLRESYNC <replication id> <offset>",
            Stage::Psync => "+CONTINUE [replication id] or +FULLRESYNC <replication id> <offset>",
            Stage::Header => "the snapshot's header, $<length> or $EOF:<40 bytes>",
            Stage::Done => "nothing more",
        }
    }

    fn unexpected(&self, line: &str) -> HandshakeError {
        let line = line.chars().take(120).collect();
        HandshakeError::Unexpected { offset: self.received, line, expected: self.awaited_words() }
    }
}

#[cfg(test)]
mod tests;
