//! RESP2, as far as a test needs it: commands out, replies in, over blocking streams.

use std::fmt;
use std::io::{BufRead, Read};

use crate::error::{Error, Result};

/// How deep replies may be nested; servers' own stay below ten.
const MAX_DEPTH: u32 = 32;

/// A reply.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// `+OK`.
    Simple(String),
    /// `-ERR …`, without the `-`.
    Error(String),
    /// `:1`.
    Int(i64),
    /// `$3`, `foo`.
    Bulk(Vec<u8>),
    /// The null bulk string or array.
    Null,
    /// `*2`, ….
    Array(Vec<Value>),
}

impl Value {
    /// The bytes of a string, simple or bulk.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(bytes) => Some(bytes),
            Self::Simple(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// A string as text; what is not UTF-8 in it is replaced.
    pub fn text(&self) -> Result<String> {
        self.bytes()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .ok_or_else(|| self.unexpected("a string"))
    }

    /// A number.
    pub fn int(&self) -> Result<i64> {
        match self {
            Self::Int(number) => Ok(*number),
            _ => Err(self.unexpected("a number")),
        }
    }

    /// The elements of an array.
    pub fn array(&self) -> Result<&[Self]> {
        match self {
            Self::Array(elements) => Ok(elements),
            _ => Err(self.unexpected("an array")),
        }
    }

    pub(crate) fn unexpected(&self, expected: &'static str) -> Error {
        Error::UnexpectedReply { expected, got: format!("{self:?}") }
    }
}

impl fmt::Debug for Value {
    /// Short enough for an error message, however long the value is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        match self {
            Self::Simple(text) => write!(f, "+{text}"),
            Self::Error(text) => write!(f, "-{text}"),
            Self::Int(number) => write!(f, ":{number}"),
            Self::Null => f.write_str("null"),
            Self::Bulk(bytes) => match bytes.get(..SHOWN) {
                Some(start) => write!(f, "\"{}\"… ({} bytes)", start.escape_ascii(), bytes.len()),
                None => write!(f, "\"{}\"", bytes.escape_ascii()),
            },
            Self::Array(elements) => f.debug_list().entries(elements.iter().take(SHOWN)).finish(),
        }
    }
}

/// Appends a command to `out`.
pub(crate) fn write_command<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    write_header(out, b'*', args.len());
    for arg in args {
        let arg = arg.as_ref();
        write_header(out, b'$', arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn write_header(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    out.extend_from_slice(count.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Reads one reply.
pub(crate) fn read_value(input: &mut impl BufRead) -> Result<Value> {
    read_nested(input, MAX_DEPTH)
}

fn read_nested(input: &mut impl BufRead, depth: u32) -> Result<Value> {
    let line = read_line(input)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| protocol("an empty line"))?;
    match kind {
        "+" => Ok(Value::Simple(rest.to_owned())),
        "-" => Ok(Value::Error(rest.to_owned())),
        ":" => Ok(Value::Int(number(rest)?)),
        "$" => match usize::try_from(number(rest)?) {
            Ok(len) => read_bulk(input, len).map(Value::Bulk),
            Err(_) => Ok(Value::Null),
        },
        "*" => {
            let Ok(count) = usize::try_from(number(rest)?) else { return Ok(Value::Null) };
            let depth = depth.checked_sub(1).ok_or_else(|| protocol("arrays nested too deep"))?;
            (0..count).map(|_| read_nested(input, depth)).collect::<Result<_>>().map(Value::Array)
        }
        _ => Err(protocol(&format!("`{line}`"))),
    }
}

fn read_line(input: &mut impl BufRead) -> Result<String> {
    const LONGEST: u64 = 64 * 1024;
    let mut line = Vec::new();
    input.take(LONGEST).read_until(b'\n', &mut line).map_err(Error::io("read a reply"))?;
    if line.is_empty() {
        return Err(Error::io("read a reply")(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let text = line.strip_suffix(b"\r\n").ok_or_else(|| protocol("a line without an end"))?;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Reads a bulk string; memory grows with what comes, not with what was announced.
fn read_bulk(input: &mut impl BufRead, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len.min(64 * 1024));
    let wanted = u64::try_from(len).unwrap_or(u64::MAX).saturating_add(2);
    input.take(wanted).read_to_end(&mut bytes).map_err(Error::io("read a reply"))?;
    if !bytes.ends_with(b"\r\n") || bytes.len() != len.saturating_add(2) {
        return Err(protocol("a bulk string shorter than announced"));
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn number(digits: &str) -> Result<i64> {
    digits.parse().map_err(|_| protocol(&format!("`{digits}` is not a number")))
}

fn protocol(reason: &str) -> Error {
    Error::Protocol { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> Result<Value> {
        read_value(&mut bytes)
    }

    #[test]
    fn replies_are_read() {
        let nested = read(b"*4\r\n+OK\r\n:-7\r\n$4\r\na\r\nb\r\n*1\r\n$-1\r\n").unwrap();
        let expected = Value::Array(vec![
            Value::Simple("OK".into()),
            Value::Int(-7),
            Value::Bulk(b"a\r\nb".to_vec()),
            Value::Array(vec![Value::Null]),
        ]);
        assert_eq!(nested, expected);
        assert_eq!(read(b"-ERR no\r\n").unwrap(), Value::Error("ERR no".into()));
        assert_eq!(read(b"$0\r\n\r\n").unwrap(), Value::Bulk(Vec::new()));
    }

    #[test]
    fn what_is_not_a_reply_is_refused() {
        for bytes in [&b""[..], b"+OK", b"$5\r\nab\r\n", b"!x\r\n", b":x\r\n", b"$999999999999\r\nshort\r\n"]
        {
            assert!(read(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert!(read(&b"*1\r\n".repeat(100)).is_err());
    }

    #[test]
    fn commands_are_written() {
        let mut out = Vec::new();
        write_command(&mut out, &[&b"SET"[..], b"k\0", b""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$2\r\nk\0\r\n$0\r\n\r\n");
    }
}
