//! The primary's side of a replication link: what a server's own replica is answered, from its `PING` to its last
//! acknowledgement.
//!
//! Source: `syncWithMaster` (Valkey: `syncWithPrimary`), `readSyncBulkPayload` and `replconfCommand` in `src/replication.c` of Redis 6.2 to
//! 8.8 and Valkey 7.2 to 9.1. A snapshot on a second connection is never offered: it is the primary that chooses that.
//!
//! The order of things, as whoever owns the connection sees them: the replica wants to follow
//! ([`PrimaryEvent::SyncWanted`]); line feeds keep it waiting; [`Primary::full_resync`] announces the snapshot; its bytes follow, then,
//! for one of unknown length, the mark; when [`Primary::may_stream`], the stream. A byte is counted by the replica if it
//! comes after the snapshot, be it a line feed.
//!
//! Invariants: a replica that has not shown the expected password is answered with errors only, and gets no snapshot; an
//! acknowledged offset is what the replica said, and says nothing about what was sent.

mod commands;

use core::fmt;
use std::collections::VecDeque;

use slotkeep_model::{ReplId, ReplOffset};
use thiserror::Error;

use crate::replica::Credentials;
use crate::transfer::PayloadHeader;
use commands::{Commands, Said};

/// What keeps a replica waiting before its snapshot. It must not be sent while the snapshot is.
pub const KEEP_WAITING: &[u8] = b"\n";

/// What a primary sends when it has nothing to send: a command without an effect, counted by its length.
pub const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// What a replica has told about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// The port it takes clients on; 0 for one that listens on a socket file only.
    pub listening_port: Option<u16>,
    /// The address it wants to be known by.
    pub ip_address: Option<String>,
    /// What it says it can do: `eof`, `psync2` and others.
    pub capabilities: Vec<String>,
    /// Its version, as it says it: Valkey 8.0 and later do.
    pub version: Option<String>,
    /// Its id in its cluster: nodes of Valkey 9.0 and later tell.
    pub node_id: Option<String>,
}

impl ReplicaFacts {
    /// Whether it has that capability.
    pub fn is_capable_of(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|own| own.eq_ignore_ascii_case(capability))
    }
}

/// What a replica did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// It lives: a line feed, as it sends while it waits and loads.
    Alive,
    /// It wants to follow. The link's owner is to answer with [`Primary::full_resync`]; nothing else may be sent before but
    /// [`KEEP_WAITING`].
    SyncWanted {
        /// The history it has, if it has one. A fresh replica has an invented one.
        replid: Option<ReplId>,
        /// The first byte it does not have, if it has a history.
        next_offset: Option<ReplOffset>,
    },
    /// It has applied every byte up to and including `applied`.
    Acknowledged {
        /// The last byte applied.
        applied: ReplOffset,
        /// The last byte made durable in its append-only file: Redis 7.2 and Valkey tell.
        durable: Option<ReplOffset>,
    },
}

/// A peer that is no replica, or not the expected one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrimaryError {
    /// It does not speak as replicas do.
    #[error("what connected is no replica: {0}")]
    NotACommand(String),
    /// It has no password, or a wrong one.
    #[error("what connected did not show the expected password ({0})")]
    NotAuthenticated(&'static str),
    /// It says something that no replica says, or not then.
    #[error("what connected is no replica: it sent {0}")]
    Unexpected(String),
    /// The connection ended.
    #[error("the replica closed the connection while {0}")]
    Closed(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before `PSYNC`.
    Introduction,
    /// After `PSYNC`, before its answer.
    Wanted,
    /// The snapshot was announced; for one with a mark the stream has to wait for an acknowledgement.
    Snapshot { wait_for_ack: bool },
}

/// The machine. [`feed`](Self::feed) what comes, write what [`to_send`](Self::to_send) gives, [`poll`](Self::poll) for events.
pub struct Primary {
    credentials: Option<Credentials>,
    authenticated: bool,
    stage: Stage,
    commands: Commands,
    facts: ReplicaFacts,
    outgoing: Vec<u8>,
    events: VecDeque<PrimaryEvent>,
    acknowledged: Option<ReplOffset>,
    failed: Option<PrimaryError>,
}

impl fmt::Debug for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the commands: they may hold a password.
        f.debug_struct("Primary")
            .field("stage", &self.stage)
            .field("facts", &self.facts)
            .field("acknowledged", &self.acknowledged)
            .finish_non_exhaustive()
    }
}

impl Primary {
    /// The primary's side of a connection that was just accepted. With `credentials` the replica has to authenticate by them.
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self {
            authenticated: credentials.is_none(),
            credentials,
            stage: Stage::Introduction,
            commands: Commands::new(),
            facts: ReplicaFacts::default(),
            outgoing: Vec::new(),
            events: VecDeque::new(),
            acknowledged: None,
            failed: None,
        }
    }

    /// The bytes to write now, given once.
    pub fn to_send(&mut self) -> Option<Vec<u8>> {
        if self.outgoing.is_empty() { None } else { Some(core::mem::take(&mut self.outgoing)) }
    }

    /// Takes bytes that came from the replica. After an error it gives that same error for ever; what is to be sent then tells the
    /// peer why.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), PrimaryError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.take_in(&mut bytes);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// The next event.
    pub fn poll(&mut self) -> Option<PrimaryEvent> {
        self.events.pop_front()
    }

    /// What the replica has told about itself so far.
    pub const fn facts(&self) -> &ReplicaFacts {
        &self.facts
    }

    /// The last byte that the replica said it has applied.
    pub const fn acknowledged(&self) -> Option<ReplOffset> {
        self.acknowledged
    }

    /// Announces the snapshot, which holds the effect of every byte up to and including `offset`; its bytes are to follow what
    /// [`to_send`](Self::to_send) gives. Without effect unless the replica wants to follow.
    pub fn full_resync(&mut self, replid: &ReplId, offset: ReplOffset, header: &PayloadHeader) {
        if self.stage != Stage::Wanted {
            return;
        }
        self.outgoing.extend_from_slice(format!("+FULLRESYNC {replid} {offset}\r\n").as_bytes());
        match header {
            PayloadHeader::Length(len) => self.outgoing.extend_from_slice(format!("${len}\r\n").as_bytes()),
            PayloadHeader::Mark(mark) => {
                self.outgoing.extend_from_slice(b"$EOF:");
                self.outgoing.extend_from_slice(mark);
                self.outgoing.extend_from_slice(b"\r\n");
            }
        }
        self.stage = Stage::Snapshot { wait_for_ack: matches!(header, PayloadHeader::Mark(_)) };
    }

    /// Whether the stream may follow the snapshot's last byte: after one that ends with a mark, a replica that looks for the mark in what
    /// it reads has to have found it before more comes.
    pub const fn may_stream(&self) -> bool {
        matches!(self.stage, Stage::Snapshot { wait_for_ack: false })
    }

    /// The error that the end of the connection is.
    pub fn connection_closed(&self) -> PrimaryError {
        self.failed.clone().unwrap_or(PrimaryError::Closed(match self.stage {
            Stage::Introduction => "it introduced itself",
            Stage::Wanted => "it waited for the snapshot",
            Stage::Snapshot { .. } if self.acknowledged.is_none() => "it took the snapshot in",
            Stage::Snapshot { .. } => "it followed the stream",
        }))
    }

    fn take_in(&mut self, bytes: &mut &[u8]) -> Result<(), PrimaryError> {
        while let Some(said) = self.commands.next(bytes)? {
            match said {
                // A flood of them takes no memory.
                Said::LineFeed if self.events.back() == Some(&PrimaryEvent::Alive) => {}
                Said::LineFeed => self.events.push_back(PrimaryEvent::Alive),
                Said::Command { name, args } => self.on_command(&name, &args)?,
            }
        }
        Ok(())
    }

    fn on_command(&mut self, name: &str, args: &[Vec<u8>]) -> Result<(), PrimaryError> {
        match (name, self.stage) {
            ("PING", Stage::Introduction) => {
                if self.authenticated {
                    self.reply("+PONG");
                } else {
                    self.reply("-NOAUTH Authentication required.");
                }
            }
            ("AUTH", Stage::Introduction) => self.on_auth(args)?,
            ("REPLCONF", _) => self.on_replconf(args)?,
            ("PSYNC", Stage::Introduction) => {
                if !self.authenticated {
                    self.reply("-NOAUTH Authentication required.");
                    return Err(PrimaryError::NotAuthenticated("none was given"));
                }
                let word = |number: usize| args.get(number).and_then(|arg| core::str::from_utf8(arg).ok());
                let replid = word(0).and_then(|id| id.parse().ok());
                let next_offset = word(1).and_then(|offset| offset.parse().ok()).map(ReplOffset);
                self.stage = Stage::Wanted;
                self.events.push_back(PrimaryEvent::SyncWanted { replid, next_offset });
            }
            _ => {
                self.reply("-ERR this is a replication link");
                return Err(PrimaryError::Unexpected(name.chars().take(64).collect()));
            }
        }
        Ok(())
    }

    fn on_auth(&mut self, args: &[Vec<u8>]) -> Result<(), PrimaryError> {
        let Some(expected) = &self.credentials else {
            // Whoever it is is welcome.
            self.reply("+OK");
            return Ok(());
        };
        let (user, password) = match args {
            [password] => (&b"default"[..], password.as_slice()),
            [user, password] => (user.as_slice(), password.as_slice()),
            _ => (&b""[..], &b""[..]),
        };
        let expected_user = expected.user.as_deref().unwrap_or("default");
        if user == expected_user.as_bytes() && is_same_secret(password, expected.password.as_bytes()) {
            self.authenticated = true;
            self.reply("+OK");
            return Ok(());
        }
        self.reply("-WRONGPASS invalid username-password pair or user is disabled.");
        Err(PrimaryError::NotAuthenticated("it gave another one"))
    }

    fn on_replconf(&mut self, args: &[Vec<u8>]) -> Result<(), PrimaryError> {
        if let [first, rest @ ..] = args
            && first.eq_ignore_ascii_case(b"ACK")
        {
            return self.on_ack(rest);
        }
        if !self.authenticated {
            self.reply("-NOAUTH Authentication required.");
            return Ok(());
        }
        for pair in args.chunks(2) {
            let [option, value] = pair else {
                self.reply("-ERR syntax error");
                return Ok(());
            };
            self.on_option(option, &String::from_utf8_lossy(value));
        }
        self.reply("+OK");
        Ok(())
    }

    fn on_option(&mut self, option: &[u8], value: &str) {
        let value = value.to_owned();
        match option.to_ascii_lowercase().as_slice() {
            b"listening-port" => self.facts.listening_port = value.parse().ok(),
            b"ip-address" => self.facts.ip_address = Some(value),
            // No more than one command can hold, however often it is said.
            b"capa" if !self.facts.is_capable_of(&value) && self.facts.capabilities.len() < 32 => {
                self.facts.capabilities.push(value);
            }
            b"version" => self.facts.version = Some(value),
            b"set-cluster-node-id" => self.facts.node_id = Some(value),
            // What else a replica may ask for (`rdb-only`, `rdb-no-compress` and others) is a matter of how a snapshot is made.
            _ => {}
        }
    }

    fn on_ack(&mut self, args: &[Vec<u8>]) -> Result<(), PrimaryError> {
        let number = |number: usize| {
            let digits = args.get(number)?;
            core::str::from_utf8(digits).ok()?.parse().ok().map(ReplOffset)
        };
        let Stage::Snapshot { wait_for_ack } = &mut self.stage else {
            return Err(PrimaryError::Unexpected("an acknowledgement before the snapshot".to_owned()));
        };
        let applied =
            number(0).ok_or_else(|| PrimaryError::Unexpected("an acknowledgement of nothing".to_owned()))?;
        *wait_for_ack = false;
        let has_durable = args.get(1).is_some_and(|word| word.eq_ignore_ascii_case(b"FACK"));
        let durable = if has_durable { number(2) } else { None };
        self.acknowledged = Some(applied);
        let event = PrimaryEvent::Acknowledged { applied, durable };
        // Only the last of several in a row says anything.
        if let Some(last @ PrimaryEvent::Acknowledged { .. }) = self.events.back_mut() {
            *last = event;
        } else {
            self.events.push_back(event);
        }
        Ok(())
    }

    fn reply(&mut self, line: &str) {
        self.outgoing.extend_from_slice(line.as_bytes());
        self.outgoing.extend_from_slice(b"\r\n");
    }
}

/// Compares in a time that does not tell where two secrets differ.
fn is_same_secret(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |sum, (one, other)| sum | (one ^ other));
    one.len() == other.len() && differences == 0
}

#[cfg(test)]
mod tests;
