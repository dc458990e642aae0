//! An append-only file, made into a stream: its annotations (`#TS:…`) left out, and what they tell of the time.
//!
//! Source: `feedAppendOnlyFile` and `loadSingleAppendOnlyFile` in `src/aof.c` of Redis 7.0 to 8.8 and Valkey 7.2 to 9.1: between two commands
//! a line may stand that begins with `#`. Everything else is what the stream holds. With `aof-timestamp-enabled`, `#TS:<seconds>` stands before
//! the first command of each second (`genAofTimestampAnnotationIfNeeded`).

use slotkeep_model::ReplOffset;

use super::StreamError;
use super::lexer::{Lexer, number};

/// The longest annotation that is looked into; `#TS:` and a number are shorter by far.
const KEPT_BYTES: usize = 32;

/// A part of an append-only file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AofPart<'i> {
    /// Bytes of the stream; at least one.
    Stream(&'i [u8]),
    /// An annotation that tells the time has come to its end: what stands behind it was executed in that second since 1970 or later, by the
    /// server's clock, and what stands before it earlier, unless that clock was set back.
    Time(i64),
}

/// Leaves annotations out.
#[derive(Debug)]
pub struct Annotations {
    lexer: Lexer,
    in_annotation: bool,
    /// The first bytes of the annotation that is being read.
    text: Vec<u8>,
}

impl Annotations {
    /// For a file whose first byte becomes the one behind `start`.
    pub fn new(start: ReplOffset) -> Self {
        Self { lexer: Lexer::new(start), in_annotation: false, text: Vec::new() }
    }

    /// Takes the next part from the front of `bytes`: a piece of a command at the most. `None`: they are used up. Not to be called again after
    /// an error.
    pub fn next<'i>(&mut self, bytes: &mut &'i [u8]) -> Result<Option<AofPart<'i>>, StreamError> {
        while !bytes.is_empty() {
            if self.in_annotation {
                if let Some(second) = self.take_annotation(bytes) {
                    return Ok(Some(AofPart::Time(second)));
                }
                continue;
            }
            if self.lexer.is_between_commands() && bytes.first() == Some(&b'#') {
                self.in_annotation = true;
                self.text.clear();
                continue;
            }
            let before = *bytes;
            self.lexer.next(bytes)?;
            let used = before.len().saturating_sub(bytes.len());
            return Ok(Some(AofPart::Stream(before.get(..used).unwrap_or_default())));
        }
        Ok(None)
    }

    /// Takes what there is of an annotation; gives its time if it has come to its end and tells one.
    fn take_annotation(&mut self, bytes: &mut &[u8]) -> Option<i64> {
        let end = memchr::memchr(b'\n', bytes);
        let len = end.map_or(bytes.len(), |end| end.saturating_add(1));
        let (now, rest) = bytes.split_at_checked(len).unwrap_or((*bytes, &[]));
        let room = KEPT_BYTES.saturating_sub(self.text.len()).min(now.len());
        self.text.extend_from_slice(now.get(..room).unwrap_or_default());
        *bytes = rest;
        end?;
        self.in_annotation = false;
        let digits = self.text.strip_prefix(b"#TS:")?.strip_suffix(b"\r\n")?;
        i64::try_from(number(digits)?).ok()
    }

    /// Appends to `out` what is no annotation. Not to be called again after an error.
    pub fn strip(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        while let Some(part) = self.next(&mut bytes)? {
            if let AofPart::Stream(bytes) = part {
                out.extend_from_slice(bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_go_and_everything_else_stays() {
        let file: &[u8] = b"#TS:1\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n#TS:2\r\n#x\r\n*3\r\n$3\r\nSET\r\n$1\r\n#\r\n$5\r\n\r\n#TS\r\n";
        let stream: &[u8] =
            b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$1\r\n#\r\n$5\r\n\r\n#TS\r\n";
        for piece in 1..=file.len() {
            let (mut annotations, mut out) = (Annotations::new(ReplOffset(0)), Vec::new());
            for piece in file.chunks(piece) {
                annotations.strip(piece, &mut out).unwrap();
            }
            assert_eq!(out, stream, "in pieces of {piece}");
            let (mut annotations, mut times, mut taken) = (Annotations::new(ReplOffset(0)), vec![], 0);
            for mut piece in file.chunks(piece) {
                while let Some(part) = annotations.next(&mut piece).unwrap() {
                    match part {
                        AofPart::Stream(bytes) => taken += bytes.len(),
                        AofPart::Time(second) => times.push((second, taken)),
                    }
                }
            }
            assert_eq!(times, [(1, 0), (2, 23)], "in pieces of {piece}");
        }
        assert!(Annotations::new(ReplOffset(0)).strip(b"x\r\n", &mut Vec::new()).is_err());
    }
}
