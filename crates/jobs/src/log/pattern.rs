//! Which commands are meant: `FLUSHALL`, `DEL user:*`, `FLUSHALL|FLUSHDB`, `* session:*`.
//!
//! The first word is for the command's name, in any case; `|` stands between names. Each further word is for the argument at its
//! place. Words are patterns as servers have them: `*`, `?`, `[a-z]`, `[^a]`, `\` (`stringmatchlen` in their `src/util.c`). Further
//! arguments may follow.

use slotkeep_wire::stream::{KEPT_ARGS, StreamCommand};

use crate::{Error, ErrorKind, Result};

/// A pattern for commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    names: Vec<Vec<u8>>,
    args: Vec<Vec<u8>>,
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_ascii_whitespace();
        let refuse = |why: &str| {
            Error::new(ErrorKind::Usage, format!("`{text}` is no pattern for commands: {why}"))
                .hint("for example FLUSHALL, 'FLUSHALL|FLUSHDB', 'DEL user:*', '* session:*'")
        };
        let names = words.next().ok_or_else(|| refuse("it is empty"))?;
        let names: Vec<Vec<u8>> =
            names.split('|').map(|name| name.to_ascii_uppercase().into_bytes()).collect();
        let args: Vec<Vec<u8>> = words.map(|word| word.as_bytes().to_vec()).collect();
        if names.iter().any(Vec::is_empty) {
            return Err(refuse("a name is empty"));
        }
        if args.len() >= KEPT_ARGS {
            return Err(refuse("only a command's name and its first three arguments are looked at"));
        }
        Ok(Self { text: text.to_owned(), names, args })
    }

    /// The pattern as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the command is meant. Of each argument the first 64 bytes are looked at.
    pub fn matches(&self, command: &StreamCommand<'_>) -> bool {
        let Some(name) = command.arg(0) else { return false };
        let name = name.to_ascii_uppercase();
        let named = self.names.iter().any(|pattern| glob(pattern, &name));
        let fits =
            |(number, pattern): (usize, &Vec<u8>)| command.arg(number).is_some_and(|arg| glob(pattern, arg));
        named && (1..).zip(&self.args).all(fits)
    }
}

/// Whether `text` fits a pattern of the servers' kind. Takes time proportional to the product of the lengths at worst.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // Where to go on if what follows the last `*` does not fit: behind it in the pattern, and from where in the text.
    let mut again: Option<(usize, usize)> = None;
    while pos < text.len() {
        let Some(byte) = text.get(pos).copied() else { break };
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            again = Some((at, pos));
            continue;
        }
        match step(pattern.get(at..).unwrap_or_default(), byte) {
            Some(taken) => {
                at += taken;
                pos += 1;
            }
            None => match &mut again {
                Some((behind, from)) => {
                    *from += 1;
                    (at, pos) = (*behind, *from);
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

/// How much of the pattern stands for that one byte; `None` if it does not fit.
fn step(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => class(rest, byte).map(|taken| taken + 1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// How long a class is, behind its `[`, if the byte is in it. One that does not end goes to the pattern's end.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match pattern.get(at..).unwrap_or_default() {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                found |= *literal == byte;
                at += 2;
            }
            [first, b'-', last, ..] => {
                found |= (*first.min(last)..=*first.max(last)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use slotkeep_model::ReplOffset;
    use slotkeep_wire::resp::Command;
    use slotkeep_wire::stream::{Splitter, StreamStart};

    use super::*;

    #[test]
    fn patterns_are_those_of_the_servers() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("user:*", "user:1", true),
            ("user:*", "use", false),
            ("*a*b", "xaxxab", true),
            ("*a*b", "xaxxac", false),
            ("h?llo", "hallo", true),
            ("h?llo", "hllo", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[^a]llo", "hallo", false),
            ("h[^a]llo", "hello", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[\\]]", "]", true),
            ("[ab", "b", true),
            ("**", "anything", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    fn fits(pattern: &str, words: &[&str]) -> bool {
        let bytes = Command::new(words[0]).args(&words[1..]).to_bytes();
        let start = StreamStart { offset: ReplOffset(0), db: None, in_transaction: false };
        let mut splitter = Splitter::new(start);
        let command = splitter.next(&mut bytes.as_slice()).unwrap().unwrap();
        Pattern::parse(pattern).unwrap().matches(&command)
    }

    #[test]
    fn commands_are_known_by_name_and_arguments() {
        assert!(fits("FLUSHALL", &["flushall", "ASYNC"]));
        assert!(fits("flushall|flushdb", &["FLUSHDB"]));
        assert!(!fits("FLUSHALL|FLUSHDB", &["FLUSH"]));
        assert!(fits("DEL user:*", &["DEL", "user:7", "x"]));
        assert!(!fits("DEL user:*", &["DEL", "x", "user:7"]));
        assert!(fits("* user:*", &["UNLINK", "user:7"]));
        assert!(!fits("* *", &["PING"]));
        assert!(Pattern::parse(" ").is_err());
        assert!(Pattern::parse("a b c d e").is_err());
        assert!(Pattern::parse("a|").is_err());
    }
}
