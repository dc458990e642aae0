//! Bytes as people can read and type them.

use std::io::{self, Write};

/// Bytes as `redis-cli` quotes them: printable ASCII as it is, everything else escaped.
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() + 2);
    text.push(b'"');
    // Writing to memory does not fail.
    let _ = write_escaped(&mut text, bytes);
    text.push(b'"');
    String::from_utf8(text).unwrap_or_default()
}

/// What [`quoted`] has between the quotation marks.
pub(super) fn write_escaped(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let end = rest.iter().position(|byte| !plain(*byte)).unwrap_or(rest.len());
        out.write_all(rest.get(..end).unwrap_or_default())?;
        if end > 0 {
            rest = rest.get(end..).unwrap_or_default();
            continue;
        }
        match first {
            b'"' => out.write_all(b"\\\"")?,
            b'\\' => out.write_all(b"\\\\")?,
            b'\n' => out.write_all(b"\\n")?,
            b'\r' => out.write_all(b"\\r")?,
            b'\t' => out.write_all(b"\\t")?,
            _ => write!(out, "\\x{first:02x}")?,
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    Ok(())
}

/// The bytes that such text stands for, quotation marks not included: `\\xff`, `\\n`, `\\r`, `\\t`, `\\"` and `\\\\`, everything else as it
/// is. `None` if a `\\` begins nothing of these.
pub fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let (&escaped, mut after) = after.split_first()?;
        bytes.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'"' | b'\\' => escaped,
            b'x' => {
                let (digits, behind) = after.split_at_checked(2)?;
                after = behind;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            _ => return None,
        });
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_quoted_so_that_they_can_be_typed() {
        assert_eq!(quoted(b"user:{7}"), "\"user:{7}\"");
        assert_eq!(quoted(b"a\"\\\0\n\xff"), "\"a\\\"\\\\\\x00\\n\\xff\"");
        assert_eq!(quoted(b""), "\"\"");
        let every: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(unescaped(quoted(&every).trim_matches('"').as_bytes()), Some(every));
        for wrong in ["\\", "\\x1", "\\xgg", "\\q"] {
            assert_eq!(unescaped(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
