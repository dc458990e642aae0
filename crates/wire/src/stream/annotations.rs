//! An append-only file, made into a stream: its annotations (`#TS:…`) left out.
//!
//! Source: `feedAppendOnlyFile` and `loadSingleAppendOnlyFile` in `src/aof.c` of Redis 7.0 to 8.8 and Valkey 7.2 to 9.1: between two commands
//! a line may stand that begins with `#`. Everything else is what the stream holds.

use slotkeep_model::ReplOffset;

use super::StreamError;
use super::lexer::Lexer;

/// Leaves annotations out.
#[derive(Debug)]
pub struct Annotations {
    lexer: Lexer,
    in_annotation: bool,
}

impl Annotations {
    /// For a file whose first byte becomes the one behind `start`.
    pub fn new(start: ReplOffset) -> Self {
        Self { lexer: Lexer::new(start), in_annotation: false }
    }

    /// Appends to `out` what is no annotation. Not to be called again after an error.
    pub fn strip(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        loop {
            if self.in_annotation {
                let Some(end) = memchr::memchr(b'\n', bytes) else { return Ok(()) };
                bytes = bytes.get(end.saturating_add(1)..).unwrap_or_default();
                self.in_annotation = false;
            }
            if self.lexer.is_between_commands() && bytes.first() == Some(&b'#') {
                self.in_annotation = true;
                continue;
            }
            let before = bytes;
            let token = self.lexer.next(&mut bytes)?;
            let is_last = token.is_none();
            let used = before.len().saturating_sub(bytes.len());
            out.extend_from_slice(before.get(..used).unwrap_or_default());
            if is_last {
                return Ok(());
            }
        }
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
        }
        assert!(Annotations::new(ReplOffset(0)).strip(b"x\r\n", &mut Vec::new()).is_err());
    }
}
