//! Makes the relative expiry times of a stream absolute.
//!
//! Redis up to 6.2 passes on how long a key shall live from now (`SET k v PX n`, `EXPIRE`, `RESTORE k n …`), where later servers
//! pass on when it shall end. Applied later, such a stream would make keys live too long. Source: `setGenericCommand` in
//! `src/t_string.c`, `expireGenericCommand` in `src/expire.c` and `restoreCommand` in `src/cluster.c` of Redis 6.0 and 6.2.
//!
//! Invariants: keys and values pass through and are never held, but for the key of a `RESTORE` with options, whose time is
//! only known when its last option was read; every command but those named above goes on byte for byte.

use slotkeep_model::ReplOffset;
use thiserror::Error;

use super::lexer::{Lexer, Token};
use super::{Account, StreamError};

/// The longest name, option or number that is looked at, in bytes.
const WORD_LIMIT: u64 = 32;
/// The longest key of a `RESTORE` with options and a relative time, in bytes.
const KEY_LIMIT: u64 = 1 << 20;

/// A stream whose times can't be made absolute.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpiryError {
    /// It is no stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What stands where a time belongs is none, or one past the last moment that servers know.
    #[error("the command at offset {offset} has `{found}` where a time belongs")]
    NotATime {
        /// The offset of the command's first byte.
        offset: ReplOffset,
        /// What stands there.
        found: String,
    },
    /// A key that is too long to be held.
    #[error("the key of the RESTORE at offset {offset} has {len} bytes, more than {KEY_LIMIT}")]
    KeyTooLong {
        /// The offset of the command's first byte.
        offset: ReplOffset,
        /// The key's length in bytes.
        len: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Milliseconds,
}

/// What is done with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Its name is not read yet.
    Undecided,
    /// It goes on as it is.
    Pass,
    /// `SET key value …`: options from argument 3 on, the time after its option.
    Set { time_follows: Option<Unit> },
    /// `SETEX key time value` becomes `SET key value PXAT time`.
    SetWithTime { unit: Unit, end_ms: u64 },
    /// `EXPIRE key time …` becomes `PEXPIREAT key time …`.
    Expire { unit: Unit },
    /// `RESTORE key time payload` gets `ABSTTL`.
    Restore,
    /// `RESTORE key time payload options` gets no time, and a `PEXPIREAT` after it.
    RestoreWithOptions { time: u64, is_absolute: bool },
}

/// What is done with an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ArgMode {
    Through,
    ThroughAndKeep,
    Capture,
}

/// The rewriter. Feed it the stream and a way to know the time; what is to go on is appended to a buffer.
#[derive(Debug)]
pub struct AbsoluteExpiry {
    lexer: Lexer,
    plan: Plan,
    /// The command's header as it came, until the plan is made.
    header: Vec<u8>,
    arg_count: u64,
    arg: u64,
    mode: ArgMode,
    captured: Vec<u8>,
    key: Vec<u8>,
    sent: ReplOffset,
    rewritten: u64,
    failed: Option<ExpiryError>,
}

impl AbsoluteExpiry {
    /// A rewriter for the stream that begins right after `start`, which ends a command.
    pub fn new(start: ReplOffset) -> Self {
        Self {
            lexer: Lexer::new(start),
            plan: Plan::Undecided,
            header: Vec::new(),
            arg_count: 0,
            arg: 0,
            mode: ArgMode::Through,
            captured: Vec::new(),
            key: Vec::new(),
            sent: start,
            rewritten: 0,
            failed: None,
        }
    }

    /// Takes the next bytes of the stream and appends what is to go on to `out`. `time_ms` gives the server's time, in milliseconds
    /// since 1970, when the byte at an offset was written; it is asked for commands with a relative time only. After an error
    /// it gives that same error for ever.
    pub fn feed(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut time_ms: impl FnMut(ReplOffset) -> u64,
    ) -> Result<(), ExpiryError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let before = out.len();
        let result = self.take_in(input, out, &mut time_ms);
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

    /// Where both counts stand: exact between two commands.
    pub const fn account(&self) -> Account {
        Account { original: self.lexer.offset(), sent: self.sent }
    }

    /// Whether the last byte taken ends a command.
    pub const fn is_between_commands(&self) -> bool {
        self.lexer.is_between_commands() && self.failed.is_none()
    }

    /// How many commands were rewritten.
    pub const fn rewritten(&self) -> u64 {
        self.rewritten
    }

    fn take_in(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        time_ms: &mut dyn FnMut(ReplOffset) -> u64,
    ) -> Result<(), ExpiryError> {
        loop {
            let before = input;
            let token = self.lexer.next(&mut input)?;
            let raw = before.get(..before.len().saturating_sub(input.len())).unwrap_or_default();
            match self.plan {
                Plan::Pass => out.extend_from_slice(raw),
                Plan::Undecided => self.header.extend_from_slice(raw),
                _ => self.take_part(token, out)?,
            }
            let Some(token) = token else { return Ok(()) };
            if self.plan == Plan::Undecided {
                self.decide(token, out);
            } else if matches!(token, Token::ArgEnd | Token::CommandEnd) && self.plan != Plan::Pass {
                self.end_arg(out, time_ms)?;
            }
            if token == Token::CommandEnd {
                self.end_command(out, time_ms)?;
            }
        }
    }

    /// Takes what may be a part of a token of a command that is changed.
    fn take_part(&mut self, token: Option<Token<'_>>, out: &mut Vec<u8>) -> Result<(), ExpiryError> {
        match token {
            Some(Token::Arg { len }) => {
                self.mode = self.mode_of_arg(len)?;
                // The header may have come in pieces: it is written anew.
                if self.mode != ArgMode::Capture {
                    write_length(out, len);
                }
            }
            Some(Token::Bytes(bytes)) => match self.mode {
                ArgMode::Through => out.extend_from_slice(bytes),
                ArgMode::ThroughAndKeep => {
                    out.extend_from_slice(bytes);
                    self.key.extend_from_slice(bytes);
                }
                ArgMode::Capture => self.captured.extend_from_slice(bytes),
            },
            Some(Token::ArgEnd | Token::CommandEnd) if self.mode != ArgMode::Capture => {
                out.extend_from_slice(b"\r\n");
            }
            Some(Token::ArgEnd | Token::CommandEnd | Token::Command { .. }) => {}
            // Pieces of headers and of CRLF, which are written anew.
            None => {}
        }
        Ok(())
    }

    fn decide(&mut self, token: Token<'_>, out: &mut Vec<u8>) {
        match token {
            Token::Command { args } => {
                self.arg_count = args;
                self.arg = 0;
                self.captured.clear();
                self.key.clear();
                return;
            }
            Token::Arg { len } if len > WORD_LIMIT => self.plan = Plan::Pass,
            Token::Arg { .. } => return,
            Token::Bytes(bytes) => {
                self.captured.extend(bytes.iter().map(u8::to_ascii_uppercase));
                return;
            }
            Token::ArgEnd => self.plan = plan_for(&self.captured, self.arg_count),
            Token::CommandEnd => self.plan = Plan::Pass,
        }
        let renamed: Option<(u64, &[u8])> = match self.plan {
            Plan::SetWithTime { .. } => Some((5, b"SET")),
            Plan::Expire { .. } => Some((self.arg_count, b"PEXPIREAT")),
            Plan::Restore => Some((5, &self.captured)),
            _ => None,
        };
        match renamed {
            Some((args, name)) => {
                self.header.clear();
                write_count(out, args);
                write_arg(out, name);
            }
            None => out.append(&mut self.header),
        }
        self.captured.clear();
        self.arg = 1;
    }

    fn mode_of_arg(&self, len: u64) -> Result<ArgMode, ExpiryError> {
        let is_word = len <= WORD_LIMIT;
        let capture = match (self.plan, self.arg) {
            (Plan::RestoreWithOptions { .. }, 1) => {
                if len > KEY_LIMIT {
                    return Err(ExpiryError::KeyTooLong { offset: self.lexer.command_start(), len });
                }
                return Ok(ArgMode::ThroughAndKeep);
            }
            (Plan::Set { .. }, 3..) | (Plan::RestoreWithOptions { .. }, 4..) => is_word,
            (Plan::SetWithTime { .. } | Plan::Expire { .. }, 2) => true,
            (Plan::Restore | Plan::RestoreWithOptions { .. }, 2) => true,
            _ => false,
        };
        if capture && !is_word {
            return Err(self.not_a_time(&format!("an argument of {len} bytes")));
        }
        Ok(if capture { ArgMode::Capture } else { ArgMode::Through })
    }

    fn end_arg(
        &mut self,
        out: &mut Vec<u8>,
        time_ms: &mut dyn FnMut(ReplOffset) -> u64,
    ) -> Result<(), ExpiryError> {
        if self.mode == ArgMode::Capture {
            let word = core::mem::take(&mut self.captured);
            self.on_word(&word, out, time_ms)?;
            self.captured = word;
            self.captured.clear();
        }
        self.arg = self.arg.saturating_add(1);
        Ok(())
    }

    fn on_word(
        &mut self,
        word: &[u8],
        out: &mut Vec<u8>,
        time_ms: &mut dyn FnMut(ReplOffset) -> u64,
    ) -> Result<(), ExpiryError> {
        let mut end_of = |time: u64, unit| self.end_ms(time, unit, time_ms);
        match self.plan {
            Plan::Set { time_follows: Some(unit) } => {
                let end_ms = end_of(self.time(word)?, unit)?;
                write_arg(out, end_ms.to_string().as_bytes());
                self.plan = Plan::Set { time_follows: None };
                self.rewritten = self.rewritten.saturating_add(1);
            }
            Plan::Set { time_follows: None } => {
                let unit = match () {
                    () if word.eq_ignore_ascii_case(b"EX") => Some(Unit::Seconds),
                    () if word.eq_ignore_ascii_case(b"PX") => Some(Unit::Milliseconds),
                    () => None,
                };
                write_arg(out, if unit.is_some() { b"PXAT" } else { word });
                self.plan = Plan::Set { time_follows: unit };
            }
            Plan::SetWithTime { unit, .. } => {
                let end_ms = end_of(self.time(word)?, unit)?;
                self.plan = Plan::SetWithTime { unit, end_ms };
            }
            Plan::Expire { unit } => {
                let end_ms = end_of(self.time(word)?, unit)?;
                write_arg(out, end_ms.to_string().as_bytes());
                self.rewritten = self.rewritten.saturating_add(1);
            }
            Plan::Restore => {
                let time = self.time(word)?;
                // No time is no time, absolute or not.
                let end_ms = if time == 0 { 0 } else { end_of(time, Unit::Milliseconds)? };
                write_arg(out, end_ms.to_string().as_bytes());
                self.rewritten = self.rewritten.saturating_add(1);
            }
            Plan::RestoreWithOptions { .. } if self.arg == 2 => {
                let time = self.time(word)?;
                write_arg(out, b"0");
                self.plan = Plan::RestoreWithOptions { time, is_absolute: false };
            }
            Plan::RestoreWithOptions { time, is_absolute } => {
                let is_absolute = is_absolute || word.eq_ignore_ascii_case(b"ABSTTL");
                write_arg(out, word);
                self.plan = Plan::RestoreWithOptions { time, is_absolute };
            }
            Plan::Undecided | Plan::Pass => {}
        }
        Ok(())
    }

    fn end_command(
        &mut self,
        out: &mut Vec<u8>,
        time_ms: &mut dyn FnMut(ReplOffset) -> u64,
    ) -> Result<(), ExpiryError> {
        match self.plan {
            Plan::SetWithTime { end_ms, .. } => {
                write_arg(out, b"PXAT");
                write_arg(out, end_ms.to_string().as_bytes());
                self.rewritten = self.rewritten.saturating_add(1);
            }
            Plan::Restore => write_arg(out, b"ABSTTL"),
            Plan::RestoreWithOptions { time, is_absolute } if time > 0 => {
                let end_ms = if is_absolute { time } else { self.end_ms(time, Unit::Milliseconds, time_ms)? };
                write_count(out, 3);
                write_arg(out, b"PEXPIREAT");
                write_arg(out, &self.key);
                write_arg(out, end_ms.to_string().as_bytes());
                self.rewritten = self.rewritten.saturating_add(1);
            }
            _ => {}
        }
        self.plan = Plan::Undecided;
        Ok(())
    }

    /// The moment `time` units after the command was written.
    fn end_ms(
        &self,
        time: u64,
        unit: Unit,
        time_ms: &mut dyn FnMut(ReplOffset) -> u64,
    ) -> Result<u64, ExpiryError> {
        let offset = self.lexer.command_start();
        let duration_ms = match unit {
            Unit::Seconds => time.checked_mul(1000),
            Unit::Milliseconds => Some(time),
        };
        let end_ms = duration_ms.and_then(|duration_ms| time_ms(offset).checked_add(duration_ms));
        // Servers keep it as a signed number.
        end_ms
            .filter(|end_ms| i64::try_from(*end_ms).is_ok())
            .ok_or_else(|| ExpiryError::NotATime { offset, found: time.to_string() })
    }

    fn time(&self, word: &[u8]) -> Result<u64, ExpiryError> {
        super::lexer::number(word)
            .filter(|_| !word.is_empty())
            .ok_or_else(|| self.not_a_time(&word.escape_ascii().to_string()))
    }

    fn not_a_time(&self, found: &str) -> ExpiryError {
        ExpiryError::NotATime { offset: self.lexer.command_start(), found: found.to_owned() }
    }
}

/// What to do with the command of that name, in capitals.
fn plan_for(name: &[u8], arg_count: u64) -> Plan {
    match (name, arg_count) {
        (b"SET", 4..) => Plan::Set { time_follows: None },
        (b"SETEX", 4) => Plan::SetWithTime { unit: Unit::Seconds, end_ms: 0 },
        (b"PSETEX", 4) => Plan::SetWithTime { unit: Unit::Milliseconds, end_ms: 0 },
        (b"EXPIRE", 3..) => Plan::Expire { unit: Unit::Seconds },
        (b"PEXPIRE", 3..) => Plan::Expire { unit: Unit::Milliseconds },
        (b"RESTORE" | b"RESTORE-ASKING", 4) => Plan::Restore,
        (b"RESTORE" | b"RESTORE-ASKING", 5..) => Plan::RestoreWithOptions { time: 0, is_absolute: false },
        _ => Plan::Pass,
    }
}

fn write_count(out: &mut Vec<u8>, args: u64) {
    out.extend_from_slice(format!("*{args}\r\n").as_bytes());
}

fn write_length(out: &mut Vec<u8>, len: u64) {
    out.extend_from_slice(format!("${len}\r\n").as_bytes());
}

fn write_arg(out: &mut Vec<u8>, arg: &[u8]) {
    write_length(out, arg.len() as u64);
    out.extend_from_slice(arg);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
