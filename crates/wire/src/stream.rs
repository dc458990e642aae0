//! The replication stream, command by command, with the exact offset of each.
//!
//! Source: `replicationFeedSlaves` (Valkey: `replicationFeedReplicas`) in `src/replication.c` of Redis 6.2 to 8.8 and Valkey 7.2
//! to 9.1: the stream is arrays of bulk strings and nothing else, and every byte of it counts.
//!
//! Invariants: `offset` is that of the last byte taken; `safe_cut` is the end of the last command that was not followed by an
//! open transaction, and never after `offset`. Of each command only the first bytes of its first arguments are kept, so memory
//! does not depend on what a command carries.

use slotkeep_model::ReplOffset;
use thiserror::Error;

/// How many arguments of a command are kept, its name among them.
pub const KEPT_ARGS: usize = 4;

/// How many bytes of each argument are kept.
pub const KEPT_BYTES: usize = 64;

/// The longest header: a mark, twenty digits and CRLF.
const HEADER_LIMIT: usize = 23;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In `*<count>\r\n`.
    Count,
    /// In `$<length>\r\n` of one of the arguments still to come.
    Length,
    /// In an argument.
    Data {
        left: u64,
    },
    /// In the CRLF after an argument.
    Cr,
    Lf,
}

/// Finds the commands in a stream.
#[derive(Debug)]
pub struct Splitter {
    offset: ReplOffset,
    command_start: ReplOffset,
    safe_cut: ReplOffset,
    db: Option<u32>,
    in_transaction: bool,
    state: State,
    header: Vec<u8>,
    args_left: u64,
    arg_count: u64,
    head: Head,
    failed: Option<StreamError>,
}

impl Splitter {
    /// A splitter for the stream that begins right after `start`.
    pub fn new(start: StreamStart) -> Self {
        Self {
            offset: start.offset,
            command_start: start.offset,
            safe_cut: start.offset,
            db: start.db,
            in_transaction: start.in_transaction,
            state: State::Count,
            header: Vec::with_capacity(HEADER_LIMIT),
            args_left: 0,
            arg_count: 0,
            head: Head::default(),
            failed: None,
        }
    }

    /// The last byte taken.
    pub const fn offset(&self) -> ReplOffset {
        self.offset
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
        matches!(self.state, State::Count) && self.header.is_empty() && self.failed.is_none()
    }

    /// Takes bytes from the front of `input` up to the end of the next command. `None`: the input is used up. After an
    /// error it gives that same error for ever.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<StreamCommand<'a>>, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance(input) {
            Ok(true) => Ok(Some(StreamCommand {
                start: self.command_start,
                end: self.offset,
                arg_count: self.arg_count,
                head: &self.head,
            })),
            Ok(false) => Ok(None),
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Whether a command came to its end.
    fn advance(&mut self, input: &mut &[u8]) -> Result<bool, StreamError> {
        while !input.is_empty() {
            match self.state {
                State::Count | State::Length => {
                    if let Some(number) = self.take_header(input)? {
                        self.on_header(number)?;
                    }
                }
                State::Data { left } => {
                    let len = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let bytes = self.take(input, len)?;
                    self.head.keep(bytes);
                    let left = left.saturating_sub(len as u64);
                    self.state = if left == 0 { State::Cr } else { State::Data { left } };
                }
                State::Cr => {
                    self.take_byte(input, b'\r')?;
                    self.state = State::Lf;
                }
                State::Lf => {
                    self.take_byte(input, b'\n')?;
                    self.args_left = self.args_left.saturating_sub(1);
                    if self.args_left == 0 {
                        self.state = State::Count;
                        self.end_command();
                        return Ok(true);
                    }
                    self.state = State::Length;
                }
            }
        }
        Ok(false)
    }

    fn take<'i>(&mut self, input: &mut &'i [u8], len: usize) -> Result<&'i [u8], StreamError> {
        let (front, rest) = input.split_at_checked(len).unwrap_or((*input, &[]));
        *input = rest;
        self.offset = self.offset.checked_add(front.len() as u64).ok_or(StreamError::OffsetOverflow)?;
        Ok(front)
    }

    fn take_byte(&mut self, input: &mut &[u8], expected: u8) -> Result<(), StreamError> {
        if self.take(input, 1)? == [expected] {
            return Ok(());
        }
        Err(StreamError::Unterminated { offset: self.offset })
    }

    /// Takes bytes of a header; gives its number when the header is whole.
    fn take_header(&mut self, input: &mut &[u8]) -> Result<Option<u64>, StreamError> {
        let end = memchr::memchr(b'\n', input.get(..HEADER_LIMIT).unwrap_or(input));
        let room = HEADER_LIMIT.saturating_sub(self.header.len());
        let wanted = end.map_or(input.len(), |at| at.saturating_add(1)).min(room);
        let before = self.offset;
        let began_at = ReplOffset(before.0.saturating_sub(self.header.len() as u64));
        let bytes = self.take(input, wanted)?;
        self.header.extend_from_slice(bytes);
        let (mark, expected) = match self.state {
            State::Count => (b'*', "`*`, a number of arguments and CRLF"),
            _ => (b'$', "`$`, a length and CRLF"),
        };
        let whole = self.header.last() == Some(&b'\n');
        let mark_is_right = self.header.first() == Some(&mark);
        if mark_is_right && !whole && self.header.len() < HEADER_LIMIT {
            return Ok(None);
        }
        let number =
            self.header.strip_prefix(&[mark]).and_then(|rest| rest.strip_suffix(b"\r\n")).and_then(number);
        let Some(number) = number.filter(|number| mark == b'$' || *number > 0) else {
            let offset = began_at.checked_add(1).unwrap_or(began_at);
            // One byte is enough to see a wrong mark, whatever came with it.
            let shown =
                if mark_is_right { self.header.as_slice() } else { self.header.get(..1).unwrap_or_default() };
            return Err(StreamError::BadHeader { offset, found: shown.escape_ascii().to_string(), expected });
        };
        if mark == b'*' {
            self.command_start = began_at.checked_add(1).ok_or(StreamError::OffsetOverflow)?;
        }
        self.header.clear();
        Ok(Some(number))
    }

    fn on_header(&mut self, number: u64) -> Result<(), StreamError> {
        if self.state == State::Count {
            self.arg_count = number;
            self.args_left = number;
            self.head.used = 0;
            self.state = State::Length;
            return Ok(());
        }
        // A length that leads past the last offset cannot be true.
        self.offset.checked_add(number).ok_or(StreamError::OffsetOverflow)?;
        self.head.begin_arg();
        self.state = if number == 0 { State::Cr } else { State::Data { left: number } };
        Ok(())
    }

    fn end_command(&mut self) {
        let command = StreamCommand {
            start: self.command_start,
            end: self.offset,
            arg_count: self.arg_count,
            head: &self.head,
        };
        let (begins, ends) = (command.is("MULTI"), command.is("EXEC") || command.is("DISCARD"));
        let selected = command.is("SELECT").then(|| command.arg(1).and_then(number)).flatten();
        if let Some(db) = selected.and_then(|db| u32::try_from(db).ok()) {
            self.db = Some(db);
        }
        self.in_transaction = (self.in_transaction || begins) && !ends;
        if !self.in_transaction {
            self.safe_cut = self.offset;
        }
    }
}

/// A number in decimal digits.
fn number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
