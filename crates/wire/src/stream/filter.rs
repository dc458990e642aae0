//! Leaves out of a stream the commands that its next reader must not get, with an exact account of the offsets.
//!
//! Invariants: whole commands are passed on byte for byte or left out; what to do with one is decided by its name and first
//! argument, and only these are held, so memory does not depend on what a command carries.
//!
//! Filled gaps: a lone line feed from its primary is a byte to a replica and no command, and so is counted once the next command
//! is done; a `PING` is a command without an effect. A gap made of line feeds and a last `PING` therefore leaves every
//! offset after it as it was (seen on Redis 6.2 to 8.2 and Valkey 8.1 to 9.1; `processInlineBuffer` and `commandProcessed` in their
//! `src/networking.c`).

use slotkeep_model::ReplOffset;
use thiserror::Error;

use super::StreamError;
use super::lexer::{Lexer, Token};

/// Who is to read the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A private server outside cluster mode, that follows as a replica.
    Engine,
    /// A node of another cluster, that follows as a replica.
    Node,
    /// An append-only file.
    AofFile,
}

/// What stands where a command was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Nothing: offsets after it are smaller.
    Close,
    /// As many bytes without an effect: offsets stay as they are.
    Fill,
}

/// How far a stream has been edited: the same place by both counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The last byte taken, by the offsets of the stream as it came.
    pub original: ReplOffset,
    /// The last byte given out, by the offsets of the stream as it goes on.
    pub sent: ReplOffset,
}

/// A stream that can't be passed on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// It is no stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A command that moves or empties whole slots, which a server outside cluster mode does not know how to do.
    #[error("the stream moves or empties slots at offset {offset} ({command})")]
    MovesSlots {
        /// The offset of the command's first byte.
        offset: ReplOffset,
        /// The command's name.
        command: &'static str,
    },
}

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    LeaveOut,
    /// Its first argument decides.
    Look,
    Refuse(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the name, or in the argument that decides: the bytes are held.
    Deciding,
    Passing,
    LeavingOut,
}

/// The longest name or first argument that decides anything, in bytes.
const WORD_LIMIT: u64 = 16;
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const LINE_FEEDS: [u8; 1024] = [b'\n'; 1024];

/// The filter. Feed it the stream; what is to go on is appended to a buffer.
#[derive(Debug)]
pub struct Filter {
    lexer: Lexer,
    reader: Reader,
    gap: Gap,
    state: State,
    /// Bytes of a command that is not decided yet.
    held: Vec<u8>,
    /// The name, then the first argument.
    words: [Vec<u8>; 2],
    arg: usize,
    /// Bytes of a command that is left out that have not been filled yet.
    unfilled: u64,
    sent: ReplOffset,
    left_out: u64,
    in_transaction: bool,
    failed: Option<FilterError>,
}

impl Filter {
    /// A filter for the stream that begins right after `start`, which ends a command.
    pub fn new(start: ReplOffset, reader: Reader, gap: Gap) -> Self {
        Self {
            lexer: Lexer::new(start),
            reader,
            gap,
            state: State::Deciding,
            held: Vec::new(),
            words: [Vec::new(), Vec::new()],
            arg: 0,
            unfilled: 0,
            sent: start,
            left_out: 0,
            in_transaction: false,
            failed: None,
        }
    }

    /// Takes the next bytes of the stream and appends what is to go on to `out`: at most as many bytes as came, and some held
    /// before. After an error it gives that same error for ever; what precedes the command in question has been given out.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), FilterError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let before = out.len();
        let result = self.take_in(input, out);
        let given = out.len().saturating_sub(before) as u64;
        let result = match self.sent.checked_add(given) {
            Some(sent) => {
                self.sent = sent;
                result
            }
            None => Err(StreamError::OffsetOverflow.into()),
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Where both counts stand. Bytes that are held count as taken and not as given out, so between two commands the account is exact.
    pub const fn account(&self) -> Account {
        Account { original: self.lexer.offset(), sent: self.sent }
    }

    /// Whether the last byte taken ends a command.
    pub const fn is_between_commands(&self) -> bool {
        self.lexer.is_between_commands() && self.failed.is_none()
    }

    /// Whether a transaction is open: what has begun inside one is not seen to be.
    pub const fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// How many commands were left out.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    fn take_in(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), FilterError> {
        loop {
            let before = input;
            let token = self.lexer.next(&mut input)?;
            let raw = before.get(..before.len().saturating_sub(input.len())).unwrap_or_default();
            self.route(raw, out);
            let Some(token) = token else { return Ok(()) };
            if self.state == State::Deciding {
                self.decide(token, out)?;
            }
            if token == Token::CommandEnd {
                self.end_command(out);
            }
        }
    }

    fn route(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match self.state {
            State::Deciding => self.held.extend_from_slice(bytes),
            State::Passing => out.extend_from_slice(bytes),
            State::LeavingOut => self.leave_out(bytes.len() as u64, out),
        }
    }

    fn decide(&mut self, token: Token<'_>, out: &mut Vec<u8>) -> Result<(), FilterError> {
        let verdict = match token {
            Token::Command { .. } => {
                self.arg = 0;
                self.words.iter_mut().for_each(Vec::clear);
                return Ok(());
            }
            // No word that decides is so long; the word stays empty.
            Token::Arg { len } if len > WORD_LIMIT => self.verdict(),
            Token::Arg { .. } => return Ok(()),
            Token::Bytes(bytes) => {
                if let Some(word) = self.words.get_mut(self.arg) {
                    word.extend(bytes.iter().map(u8::to_ascii_uppercase));
                }
                return Ok(());
            }
            Token::ArgEnd | Token::CommandEnd => {
                self.follow_transaction();
                self.verdict()
            }
        };
        match verdict {
            // A command that ends before the argument that decides has none.
            Verdict::Look if self.arg == 0 && token == Token::ArgEnd => self.arg = 1,
            Verdict::Look | Verdict::Pass => {
                self.state = State::Passing;
                out.append(&mut self.held);
            }
            Verdict::LeaveOut => {
                self.state = State::LeavingOut;
                self.left_out = self.left_out.saturating_add(1);
                let held = self.held.len() as u64;
                self.held.clear();
                self.leave_out(held, out);
            }
            Verdict::Refuse(command) => {
                return Err(FilterError::MovesSlots { offset: self.lexer.command_start(), command });
            }
        }
        Ok(())
    }

    fn follow_transaction(&mut self) {
        let [name, _] = &self.words;
        match name.as_slice() {
            b"MULTI" => self.in_transaction = true,
            b"EXEC" | b"DISCARD" => self.in_transaction = false,
            _ => {}
        }
    }

    /// What the words so far say.
    fn verdict(&self) -> Verdict {
        let [name, first] = &self.words;
        let moves_slots = |command| match self.reader {
            Reader::Engine => Verdict::Refuse(command),
            Reader::Node | Reader::AofFile => Verdict::Pass,
        };
        match (name.as_slice(), self.arg) {
            (b"PUBLISH" | b"SPUBLISH", _) => Verdict::LeaveOut,
            (b"PING", _) if self.reader == Reader::AofFile => Verdict::LeaveOut,
            (b"TRIMSLOTS", _) => moves_slots("TRIMSLOTS"),
            (b"SFLUSH", _) => moves_slots("SFLUSH"),
            (b"REPLCONF", _) => Verdict::LeaveOut,
            (b"CLUSTER", 0) => Verdict::Look,
            (b"CLUSTER", _) => match first.as_slice() {
                b"FLUSHSLOT" => moves_slots("CLUSTER FLUSHSLOT"),
                // It would be executed there, as a part of a move that the reader does not take part in.
                b"SYNCSLOTS" if self.reader == Reader::Engine => Verdict::Refuse("CLUSTER SYNCSLOTS"),
                _ => Verdict::LeaveOut,
            },
            _ => Verdict::Pass,
        }
    }

    /// Leaves so many bytes out. The last ones of a command are filled by its end.
    fn leave_out(&mut self, bytes: u64, out: &mut Vec<u8>) {
        if self.gap == Gap::Close {
            return;
        }
        let all = self.unfilled.saturating_add(bytes);
        self.unfilled = all.min(PING.len() as u64);
        fill(all.saturating_sub(self.unfilled), out);
    }

    fn end_command(&mut self, out: &mut Vec<u8>) {
        let unfilled = core::mem::take(&mut self.unfilled);
        if unfilled == PING.len() as u64 {
            out.extend_from_slice(PING);
        } else {
            fill(unfilled, out);
        }
        self.state = State::Deciding;
    }
}

fn fill(mut bytes: u64, out: &mut Vec<u8>) {
    while bytes > 0 {
        let piece = usize::try_from(bytes).map_or(LINE_FEEDS.len(), |bytes| bytes.min(LINE_FEEDS.len()));
        out.extend_from_slice(LINE_FEEDS.get(..piece).unwrap_or_default());
        bytes = bytes.saturating_sub(piece as u64);
    }
}

#[cfg(test)]
mod tests;
