//! The replication stream, command by command, with the exact offset of each.
//!
//! Source: `replicationFeedSlaves` (Valkey: `replicationFeedReplicas`) in `src/replication.c` of Redis 6.2 to 8.8 and Valkey 7.2
//! to 9.1: the stream is arrays of bulk strings and nothing else, and every byte of it counts.
//!
//! [`Filter`] leaves commands out of it, [`AbsoluteExpiry`] makes its relative times absolute, [`Annotations`] makes one of an append-only file.
//!
//! Invariants: `offset` is that of the last byte taken; `safe_cut` is the end of the last command that was not followed by an
//! open transaction, and never after `offset`. Of each command only the first bytes of its first arguments are kept, so memory
//! does not depend on what a command carries.

mod annotations;
mod expiry;
mod filter;
pub(crate) mod lexer;
mod writes;

use slotkeep_model::ReplOffset;
use thiserror::Error;

pub use annotations::{Annotations, AofPart};
pub use expiry::{AbsoluteExpiry, ExpiryError};
pub use filter::{Account, Filter, FilterError, Gap, Reader};
use lexer::{Lexer, Token, number};
pub use writes::Outside;

/// How many arguments of a command are kept, its name among them.
pub const KEPT_ARGS: usize = 4;

/// How many bytes of each argument are kept.
pub const KEPT_BYTES: usize = 64;

/// Bytes that no replication stream holds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// A command or an argument does not begin with its count or length.
    #[error("the stream holds `{found}` from offset {offset} on, expected {expected}")]
    BadHeader {
        /// The offset of the header's first byte.
        offset: ReplOffset,
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// An argument is not followed by CRLF.
    #[error("the stream has no CRLF at offset {offset}, where an argument ends")]
    Unterminated {
        /// The offset of the byte that is wrong.
        offset: ReplOffset,
    },
    /// Offsets have come to the end of their range.
    #[error("the stream goes past the last offset there is")]
    OffsetOverflow,
}

/// Where in a stream one begins to read: always between two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStart {
    /// The last byte before.
    pub offset: ReplOffset,
    /// The database that is selected there; `None` if that is not known.
    pub db: Option<u32>,
    /// Whether a transaction is open there.
    pub in_transaction: bool,
}

/// A command that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamCommand<'a> {
    /// The offset of its first byte.
    pub start: ReplOffset,
    /// The offset of its last byte.
    pub end: ReplOffset,
    /// How many arguments it has, its name included; at least one.
    pub arg_count: u64,
    head: &'a Head,
}

impl StreamCommand<'_> {
    /// The first [`KEPT_BYTES`] bytes of an argument; the name is number 0. `None` from number [`KEPT_ARGS`] on, and past
    /// the command's last argument.
    pub fn arg(&self, number: usize) -> Option<&[u8]> {
        let kept = self.head.used.min(KEPT_ARGS);
        self.head.args.get(..kept)?.get(number).map(Vec::as_slice)
    }

    /// Whether the command has that name, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.arg(0).is_some_and(|own| own.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Whether the primary asks with it for an acknowledgement (`REPLCONF GETACK *`). The answer carries the offset before
    /// this command.
    pub fn asks_for_ack(&self) -> bool {
        self.is("REPLCONF") && self.arg(1).is_some_and(|option| option.eq_ignore_ascii_case(b"GETACK"))
    }
}

/// The first bytes of a command's first arguments. The buffers are used again for the next command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Head {
    args: [Vec<u8>; KEPT_ARGS],
    /// Arguments begun so far.
    used: usize,
}

impl Head {
    fn begin_arg(&mut self) {
        if let Some(buffer) = self.args.get_mut(self.used) {
            buffer.clear();
        }
        self.used = self.used.saturating_add(1);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let current = self.used.checked_sub(1).and_then(|last| self.args.get_mut(last));
        if let Some(buffer) = current {
            let room = KEPT_BYTES.saturating_sub(buffer.len()).min(bytes.len());
            buffer.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
    }
}

/// Finds the commands in a stream.
#[derive(Debug)]
pub struct Splitter {
    lexer: Lexer,
    safe_cut: ReplOffset,
    db: Option<u32>,
    in_transaction: bool,
    arg_count: u64,
    head: Head,
    failed: Option<StreamError>,
}

impl Splitter {
    /// A splitter for the stream that begins right after `start`.
    pub fn new(start: StreamStart) -> Self {
        Self {
            lexer: Lexer::new(start.offset),
            safe_cut: start.offset,
            db: start.db,
            in_transaction: start.in_transaction,
            arg_count: 0,
            head: Head::default(),
            failed: None,
        }
    }

    /// The last byte taken.
    pub const fn offset(&self) -> ReplOffset {
        self.lexer.offset()
    }

    /// The last place where a recovery may end: between two commands and outside transactions. If the stream began inside
    /// a transaction, its beginning is given until that transaction ends, though it is no such place.
    pub const fn safe_cut(&self) -> ReplOffset {
        self.safe_cut
    }

    /// The database selected by the commands so far; `None` if that is not known.
    pub const fn db(&self) -> Option<u32> {
        self.db
    }

    /// Whether a transaction is open after the commands so far.
    pub const fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Whether the last byte taken ends a command.
    pub const fn is_between_commands(&self) -> bool {
        self.lexer.is_between_commands() && self.failed.is_none()
    }

    /// Takes bytes from the front of `input` up to the end of the next command. `None`: the input is used up. After an
    /// error it gives that same error for ever.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<StreamCommand<'a>>, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance(input) {
            Ok(true) => Ok(Some(self.command())),
            Ok(false) => Ok(None),
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Whether a command came to its end.
    fn advance(&mut self, input: &mut &[u8]) -> Result<bool, StreamError> {
        if self.take_whole(input) {
            self.end_command();
            return Ok(true);
        }
        while let Some(token) = self.lexer.next(input)? {
            match token {
                Token::Command { args } => {
                    self.arg_count = args;
                    self.head.used = 0;
                }
                Token::Arg { .. } => self.head.begin_arg(),
                Token::Bytes(bytes) => self.head.keep(bytes),
                Token::ArgEnd => {}
                Token::CommandEnd => {
                    self.end_command();
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Takes a command that stands whole at the front of the input, as most do.
    fn take_whole(&mut self, input: &mut &[u8]) -> bool {
        if !self.lexer.is_between_commands() {
            return false;
        }
        let Self { lexer, head, .. } = self;
        head.used = 0;
        let args = lexer.whole(input, |arg| {
            head.begin_arg();
            head.keep(arg);
        });
        self.arg_count = args.unwrap_or(0);
        args.is_some()
    }

    /// The command that came to its end.
    const fn command(&self) -> StreamCommand<'_> {
        StreamCommand {
            start: self.lexer.command_start(),
            end: self.lexer.offset(),
            arg_count: self.arg_count,
            head: &self.head,
        }
    }

    fn end_command(&mut self) {
        let command = self.command();
        let (begins, ends) = (command.is("MULTI"), command.is("EXEC") || command.is("DISCARD"));
        let selected = command.is("SELECT").then(|| command.arg(1).and_then(number)).flatten();
        if let Some(db) = selected.and_then(|db| u32::try_from(db).ok()) {
            self.db = Some(db);
        }
        self.in_transaction = (self.in_transaction || begins) && !ends;
        if !self.in_transaction {
            self.safe_cut = self.lexer.offset();
        }
    }
}

#[cfg(test)]
mod tests;
