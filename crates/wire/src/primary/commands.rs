//! What a replica says: whole commands, and line feeds between them.

use slotkeep_model::ReplOffset;

use super::PrimaryError;
use crate::stream::lexer::{Lexer, Token};

/// How many arguments a command of a replica may have; a real one has seven at the most.
const ARGS_LIMIT: u64 = 32;
/// How long a command of a replica may be, in bytes: room for a long password.
const COMMAND_LIMIT_BYTES: u64 = 64 << 10;

/// Something that a replica said.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A lone line feed: it lives.
    LineFeed,
    /// A command: its name, in capitals, and its arguments.
    Command { name: String, args: Vec<Vec<u8>> },
}

/// Reads what a replica says.
#[derive(Debug)]
pub(super) struct Commands {
    lexer: Lexer,
    args: Vec<Vec<u8>>,
}

impl Commands {
    pub(super) fn new() -> Self {
        Self { lexer: Lexer::new(ReplOffset(0)), args: Vec::new() }
    }

    /// The next thing said. `None`: the input is used up.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Said>, PrimaryError> {
        if self.lexer.is_between_commands()
            && let Some((b'\n', rest)) = input.split_first()
        {
            *input = rest;
            return Ok(Some(Said::LineFeed));
        }
        while let Some(token) =
            self.lexer.next(input).map_err(|error| PrimaryError::NotACommand(error.to_string()))?
        {
            match token {
                Token::Command { args } if args > ARGS_LIMIT => {
                    return Err(PrimaryError::NotACommand(format!("a command of {args} arguments")));
                }
                Token::Arg { len } => {
                    let held: usize = self.args.iter().map(Vec::len).sum();
                    if len.saturating_add(held as u64) > COMMAND_LIMIT_BYTES {
                        return Err(PrimaryError::NotACommand(format!("an argument of {len} bytes")));
                    }
                    self.args.push(Vec::new());
                }
                Token::Bytes(bytes) => {
                    if let Some(arg) = self.args.last_mut() {
                        arg.extend_from_slice(bytes);
                    }
                }
                Token::Command { .. } | Token::ArgEnd => {}
                Token::CommandEnd => {
                    let mut args = core::mem::take(&mut self.args);
                    let name = if args.is_empty() { Vec::new() } else { args.remove(0) };
                    let name = name.escape_ascii().to_string().to_ascii_uppercase();
                    return Ok(Some(Said::Command { name, args }));
                }
            }
        }
        Ok(None)
    }
}
