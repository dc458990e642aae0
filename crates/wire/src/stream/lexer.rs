//! The parts of a stream's commands as they come: counts, lengths, pieces of arguments, ends.
//!
//! Invariants: `offset` is that of the last byte taken; no byte of an argument is kept; a piece is a slice of the input, so whoever
//! reads the tokens can pass the raw bytes on by looking at what was taken from the input.

use slotkeep_model::ReplOffset;

use super::StreamError;

/// The longest header: a mark, twenty digits and CRLF.
const HEADER_LIMIT: usize = 23;

/// A header with more digits than this is left to the machine, which is slower and tells what is wrong.
const PLAIN_DIGITS: usize = 10;

/// A part of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'i> {
    /// A command begins that has so many arguments, its name included; at least one.
    Command { args: u64 },
    /// An argument of so many bytes begins.
    Arg { len: u64 },
    /// The next bytes of the argument, at least one.
    Bytes(&'i [u8]),
    /// The argument is over, and it is not the command's last one.
    ArgEnd,
    /// The command's last argument is over.
    CommandEnd,
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

/// Takes a stream apart.
#[derive(Debug)]
pub(crate) struct Lexer {
    offset: ReplOffset,
    command_start: ReplOffset,
    state: State,
    header: Vec<u8>,
    args_left: u64,
}

impl Lexer {
    /// A lexer for the bytes after `offset`, which ends a command.
    pub(crate) fn new(offset: ReplOffset) -> Self {
        Self {
            offset,
            command_start: offset,
            state: State::Count,
            header: Vec::with_capacity(HEADER_LIMIT),
            args_left: 0,
        }
    }

    /// The last byte taken.
    pub(crate) const fn offset(&self) -> ReplOffset {
        self.offset
    }

    /// The offset of the first byte of the command that began last.
    pub(crate) const fn command_start(&self) -> ReplOffset {
        self.command_start
    }

    /// Whether the last byte taken ends a command.
    pub(crate) const fn is_between_commands(&self) -> bool {
        matches!(self.state, State::Count) && self.header.is_empty()
    }

    /// Takes the next token from the front of `input`. `None`: the input is used up. Not to be called again after an error.
    pub(crate) fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Token<'i>>, StreamError> {
        while !input.is_empty() {
            match self.state {
                State::Count | State::Length => {
                    if let Some(number) = self.take_header(input)? {
                        return self.on_header(number).map(Some);
                    }
                }
                State::Data { left } => {
                    let len = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let bytes = self.take(input, len)?;
                    let left = left.saturating_sub(len as u64);
                    self.state = if left == 0 { State::Cr } else { State::Data { left } };
                    return Ok(Some(Token::Bytes(bytes)));
                }
                State::Cr => {
                    self.take_byte(input, b'\r')?;
                    self.state = State::Lf;
                }
                State::Lf => {
                    self.take_byte(input, b'\n')?;
                    self.args_left = self.args_left.saturating_sub(1);
                    let ended = self.args_left == 0;
                    self.state = if ended { State::Count } else { State::Length };
                    return Ok(Some(if ended { Token::CommandEnd } else { Token::ArgEnd }));
                }
            }
        }
        Ok(None)
    }

    /// Takes a command that stands whole at the front of `input`, if one does: `arg` sees its arguments, and the answer is how many they are.
    /// Else nothing is taken, whatever `arg` has seen, and [`Lexer::next`] tells more. Only between two commands; what [`Lexer::next`] would
    /// give, sooner.
    pub(crate) fn whole<'i>(&mut self, input: &mut &'i [u8], arg: impl FnMut(&'i [u8])) -> Option<u64> {
        let (args, rest) = whole_command(input, arg)?;
        let start = self.offset.checked_add(1)?;
        self.offset = self.offset.checked_add(input.len().checked_sub(rest.len())? as u64)?;
        self.command_start = start;
        *input = rest;
        Some(args)
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

    fn on_header<'i>(&mut self, number: u64) -> Result<Token<'i>, StreamError> {
        if self.state == State::Count {
            self.args_left = number;
            self.state = State::Length;
            return Ok(Token::Command { args: number });
        }
        // A length that leads past the last offset cannot be true.
        self.offset.checked_add(number).ok_or(StreamError::OffsetOverflow)?;
        self.state = if number == 0 { State::Cr } else { State::Data { left: number } };
        Ok(Token::Arg { len: number })
    }
}

/// The number of arguments of the command at the front, which `arg` sees, and what stands behind it. Nothing if it is not whole, or anything but
/// the plainest of its kind.
fn whole_command<'i>(input: &'i [u8], mut arg: impl FnMut(&'i [u8])) -> Option<(u64, &'i [u8])> {
    let (args, mut rest) = plain_header(b'*', input)?;
    if args == 0 {
        return None;
    }
    for _ in 0..args {
        let (length, after) = plain_header(b'$', rest)?;
        let (bytes, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        arg(bytes);
        rest = after.strip_prefix(b"\r\n")?;
    }
    Some((args, rest))
}

/// The number in a header, and what stands behind it.
fn plain_header(mark: u8, input: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = input.strip_prefix(&[mark])?;
    let mut number = 0_u64;
    for digits in 0..=PLAIN_DIGITS {
        let (byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'0'..=b'9' => number = number.wrapping_mul(10).wrapping_add(u64::from(byte & 15)),
            b'\r' if digits > 0 => return Some((number, rest.strip_prefix(b"\n")?)),
            _ => return None,
        }
    }
    None
}

/// A number in decimal digits.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}
