//! Replies taken apart bit by bit, so that a string of any length passes without being held.
//!
//! RESP2 only: statuses, errors, integers, strings and arrays. Invariants: the same bytes give the same tokens however they are
//! cut, but for the places where a string's bytes are cut; no more than a line is held.

use super::decoder::{BulkKind, FrameKind, Limits, Line, RespError, parse_line, shortened};
use super::value::Value;

/// What stands next in the replies.
#[derive(Clone, Debug, PartialEq)]
pub enum Token<'a> {
    /// A whole reply or element of one line: a status, an error, an integer, or nothing.
    Value(Value),
    /// An array of so many elements, which follow.
    Array(u64),
    /// A string of so many bytes, which follow.
    Bulk(u64),
    /// Bytes of the string, at least one.
    Bytes(&'a [u8]),
    /// The end of the string.
    BulkEnd,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Line,
    /// So many bytes of a string are to come.
    Bytes(u64),
    /// So many bytes of the CRLF behind a string were seen.
    Crlf(usize),
}

/// Takes replies apart.
#[derive(Debug)]
pub struct Tokens {
    state: State,
    /// The beginning of a line.
    line: Vec<u8>,
    offset: u64,
    failed: Option<RespError>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokens {
    /// Before the first reply.
    pub const fn new() -> Self {
        Self { state: State::Line, line: Vec::new(), offset: 0, failed: None }
    }

    /// Takes bytes off the front of `input` and gives the next token; none when more bytes are needed. After an error it gives that same error
    /// for ever.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Token<'a>>, RespError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let before = input.len();
        let token = match self.state {
            State::Line => self.read_line(input),
            State::Bytes(left) => Ok(self.read_bytes(left, input)),
            State::Crlf(seen) => self.read_crlf(seen, input),
        };
        let used = before.saturating_sub(input.len());
        self.offset = self.offset.saturating_add(used as u64);
        if let Err(error) = &token {
            self.failed = Some(error.clone());
        }
        token
    }

    fn read_line<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Token<'a>>, RespError> {
        let limit = Limits::default().line_bytes;
        let end = memchr::memchr(b'\n', input);
        let until = end.map_or(input.len(), |end| end.saturating_add(1));
        let (now, rest) = input.split_at(until.min(input.len()));
        if self.line.len().saturating_add(now.len()) > limit.saturating_add(2) {
            return Err(RespError::LineTooLong { offset: self.offset, limit });
        }
        self.line.extend_from_slice(now);
        *input = rest;
        if end.is_none() {
            return Ok(None);
        }
        let bad = |line: &[u8], expected| RespError::BadLine {
            offset: self.offset,
            line: shortened(line),
            expected,
        };
        let Some(line) = self.line.strip_suffix(b"\r\n") else {
            return Err(bad(&self.line, "a line that ends with CRLF"));
        };
        let Some((&kind, text)) = line.split_first() else { return Err(bad(line, "a RESP value")) };
        let token = match parse_line(kind, text).map_err(|expected| bad(line, expected))? {
            Line::Value(value) => Token::Value(value),
            Line::Aggregate(count, FrameKind::Array) => Token::Array(count),
            Line::Bulk(len, BulkKind::Plain) => {
                self.state = if len == 0 { State::Crlf(0) } else { State::Bytes(len) };
                Token::Bulk(len)
            }
            Line::Aggregate(..) | Line::Bulk(..) => return Err(bad(line, "a type of RESP2")),
        };
        self.line.clear();
        Ok(Some(token))
    }

    fn read_bytes<'a>(&mut self, left: u64, input: &mut &'a [u8]) -> Option<Token<'a>> {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (now, rest) = input.split_at(most);
        *input = rest;
        let left = left.saturating_sub(now.len() as u64);
        self.state = if left == 0 { State::Crlf(0) } else { State::Bytes(left) };
        (!now.is_empty()).then_some(Token::Bytes(now))
    }

    fn read_crlf<'a>(
        &mut self,
        mut seen: usize,
        input: &mut &'a [u8],
    ) -> Result<Option<Token<'a>>, RespError> {
        while let Some(expected) = b"\r\n".get(seen) {
            let Some((found, rest)) = input.split_first() else {
                self.state = State::Crlf(seen);
                return Ok(None);
            };
            if found != expected {
                return Err(RespError::Unterminated { offset: self.offset });
            }
            *input = rest;
            seen = seen.saturating_add(1);
        }
        self.state = State::Line;
        Ok(Some(Token::BulkEnd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of a text that comes in pieces of that length, the bytes of a string put together.
    fn tokens(text: &[u8], piece: usize) -> Result<Vec<String>, RespError> {
        let mut tokens = Tokens::new();
        let (mut found, mut bytes) = (Vec::new(), Vec::new());
        for mut piece in text.chunks(piece) {
            while let Some(token) = tokens.next(&mut piece)? {
                match token {
                    Token::Bytes(more) => bytes.extend_from_slice(more),
                    Token::BulkEnd => {
                        found.push(format!("{:?}", std::mem::take(&mut bytes).escape_ascii().to_string()));
                    }
                    token => found.push(format!("{token:?}")),
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn the_same_however_it_is_cut() {
        let text = b"+OK\r\n+QUEUED\r\n*3\r\n:-1\r\n$5\r\na\r\nbc\r\n$0\r\n\r\n$-1\r\n-ERR no\r\n*-1\r\n";
        let whole = tokens(text, text.len()).unwrap();
        assert_eq!(
            whole,
            [
                "Value(Simple(\"OK\"))",
                "Value(Simple(\"QUEUED\"))",
                "Array(3)",
                "Value(Integer(-1))",
                "Bulk(5)",
                "\"a\\\\r\\\\nbc\"",
                "Bulk(0)",
                "\"\"",
                "Value(Null)",
                "Value(Error(\"ERR no\"))",
                "Value(Null)",
            ]
        );
        for piece in 1..text.len() {
            assert_eq!(tokens(text, piece).unwrap(), whole, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_not_resp2_is_refused() {
        for text in [&b"$3\r\nabcde\r\n"[..], b"%1\r\n", b"x\r\n", b"\r\n", b":1\n", b"$x\r\n"] {
            assert!(tokens(text, 1).is_err(), "{}", text.escape_ascii());
        }
        let endless = vec![b'+'; 100_000];
        assert!(matches!(tokens(&endless, 1000), Err(RespError::LineTooLong { .. })));
    }
}
