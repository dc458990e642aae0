//! Bytes to replies.
//!
//! Invariants: `consumed` is the number of bytes of `buffer` that are decoded; `scanned` is at or after it, and no CRLF
//! ends before it, so a line is searched once however it arrives; decoded bytes are dropped when they are more than half
//! of the buffer, so moving costs no more than one copy of each byte. What a header claims is only compared with the limits:
//! memory grows with the bytes that came.

use thiserror::Error;

use super::value::Value;

/// What one reply may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How deep arrays, maps and sets may nest.
    pub depth: usize,
    /// How many values one reply may hold, all levels together.
    pub elements: u64,
    /// How many bytes one reply may be, headers included.
    pub reply_bytes: u64,
    /// How long a line may be: a header, a status or an error.
    pub line_bytes: usize,
}

impl Default for Limits {
    /// Room for every reply Slotkeep asks for, a value of 512 MiB (`proto-max-bulk-len`'s default) among them.
    fn default() -> Self {
        Self { depth: 32, elements: 1 << 20, reply_bytes: 768 << 20, line_bytes: 64 << 10 }
    }
}

/// Bytes that are not RESP, or more than the limits allow. Offsets count the bytes fed to the decoder from 0.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RespError {
    /// A value begins with a byte that no type has.
    #[error("byte {byte:#04x} at offset {offset} begins no RESP value")]
    UnknownType {
        /// Where it stands.
        offset: u64,
        /// The byte.
        byte: u8,
    },
    /// The text after a type's mark is not what that type needs.
    #[error("`{line}` at offset {offset} is not {expected}")]
    BadLine {
        /// Where the line begins.
        offset: u64,
        /// The line, without its end.
        line: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A string is not followed by CRLF.
    #[error("the string that ends at offset {offset} is not followed by CRLF")]
    Unterminated {
        /// Where the CRLF should be.
        offset: u64,
    },
    /// A line is longer than allowed.
    #[error("the line at offset {offset} is longer than {limit} bytes")]
    LineTooLong {
        /// Where the line begins.
        offset: u64,
        /// [`Limits::line_bytes`].
        limit: usize,
    },
    /// Arrays nest deeper than allowed.
    #[error("the reply at offset {offset} nests deeper than {limit} levels")]
    TooDeep {
        /// Where the value that is too deep begins.
        offset: u64,
        /// [`Limits::depth`].
        limit: usize,
    },
    /// A reply announces more values than allowed.
    #[error("a reply announces more than {limit} values at offset {offset}")]
    TooManyElements {
        /// Where the announcement stands.
        offset: u64,
        /// [`Limits::elements`].
        limit: u64,
    },
    /// A reply is or announces more bytes than allowed.
    #[error("a reply is or announces more than {limit} bytes at offset {offset}")]
    TooLarge {
        /// Where that was seen.
        offset: u64,
        /// [`Limits::reply_bytes`].
        limit: u64,
    },
}

/// A buffer that grew beyond this for one large reply is given back once that reply is decoded.
const KEPT_CAPACITY_BYTES: usize = 1 << 20;

/// Decodes RESP2 and RESP3 from pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    buffer: Vec<u8>,
    consumed: usize,
    scanned: usize,
    /// Offset of `buffer`'s first byte.
    base: u64,
    open: Vec<Frame>,
    bulk: Option<Bulk>,
    reply_start: u64,
    elements: u64,
    failed: Option<RespError>,
}

#[derive(Clone, Copy, Debug)]
struct Bulk {
    len: usize,
    kind: BulkKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum BulkKind {
    Plain,
    Error,
    Verbatim,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum FrameKind {
    Array,
    Map,
    Set,
    Push,
    /// RESP3 attributes: read, then dropped; the value they describe follows.
    Attribute,
}

#[derive(Debug)]
struct Frame {
    kind: FrameKind,
    missing: u64,
    items: Vec<Value>,
}

/// What one header or string gave.
enum Step {
    Value(Value),
    /// An array or a string was opened; go on.
    Opened,
    NeedMore,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder with the default limits.
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// A decoder with these limits.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            buffer: Vec::new(),
            consumed: 0,
            scanned: 0,
            base: 0,
            open: Vec::new(),
            bulk: None,
            reply_start: 0,
            elements: 0,
            failed: None,
        }
    }

    /// Takes bytes that came from the server.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.consumed > self.buffer.len() / 2 {
            if self.consumed == self.buffer.len() && self.buffer.capacity() > KEPT_CAPACITY_BYTES {
                self.buffer = Vec::new();
            } else {
                self.buffer.drain(..self.consumed.min(self.buffer.len()));
            }
            self.base = self.base.saturating_add(self.consumed as u64);
            self.scanned = self.scanned.saturating_sub(self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next reply that is complete. After an error the decoder gives that same error for ever: the position in the
    /// stream is lost.
    ///
    /// Named like an iterator's method, but not one: more replies may come after `Ok(None)`.
    #[expect(clippy::should_implement_trait, reason = "`Ok(None)` means more bytes are needed, not the end")]
    pub fn next(&mut self) -> Result<Option<Value>, RespError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.decode();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
            self.consumed = 0;
            self.open = Vec::new();
        }
        result
    }

    /// Whether no reply has begun that is not complete.
    pub fn is_between_replies(&self) -> bool {
        self.failed.is_none()
            && self.consumed == self.buffer.len()
            && self.open.is_empty()
            && self.bulk.is_none()
    }

    /// The bytes after the last complete reply: what follows a reply that ends the use of RESP, such as the
    /// replication stream after `+CONTINUE`. Meaningful between replies only.
    pub fn take_rest(mut self) -> Vec<u8> {
        self.buffer.split_off(self.consumed.min(self.buffer.len()))
    }

    fn decode(&mut self) -> Result<Option<Value>, RespError> {
        loop {
            let step = match self.bulk {
                Some(bulk) => self.read_bulk(bulk)?,
                None => self.read_line()?,
            };
            match step {
                Step::NeedMore => return Ok(None),
                Step::Opened => {}
                Step::Value(value) => {
                    if let Some(reply) = self.place(value) {
                        self.reply_start = self.offset();
                        self.elements = 0;
                        return Ok(Some(reply));
                    }
                }
            }
        }
    }

    fn offset(&self) -> u64 {
        self.base.saturating_add(self.consumed as u64)
    }

    /// Refuses a reply that, with `more` bytes after what is decoded, would exceed the limit.
    fn check_size(&self, more: u64) -> Result<(), RespError> {
        let decoded = self.offset().saturating_sub(self.reply_start);
        if decoded.saturating_add(more) > self.limits.reply_bytes {
            return Err(RespError::TooLarge { offset: self.offset(), limit: self.limits.reply_bytes });
        }
        Ok(())
    }

    /// Puts a value into the innermost open array; gives it back when no array is open, and closes arrays that are full.
    fn place(&mut self, mut value: Value) -> Option<Value> {
        loop {
            let Some(frame) = self.open.last_mut() else { return Some(value) };
            frame.items.push(value);
            frame.missing = frame.missing.saturating_sub(1);
            if frame.missing > 0 {
                return None;
            }
            value = close(self.open.pop()?)?;
        }
    }

    fn read_bulk(&mut self, bulk: Bulk) -> Result<Step, RespError> {
        let rest = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((bytes, after)) = rest.split_at_checked(bulk.len) else { return Ok(Step::NeedMore) };
        match after {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return Ok(Step::NeedMore),
            _ => {
                let offset = self.offset().saturating_add(bulk.len as u64);
                return Err(RespError::Unterminated { offset });
            }
        }
        let value = match bulk.kind {
            BulkKind::Plain => Value::Bulk(bytes.to_vec()),
            BulkKind::Error => Value::Error(lossy(bytes)),
            BulkKind::Verbatim => Value::Bulk(bytes.get(4..).unwrap_or_default().to_vec()),
        };
        self.bulk = None;
        self.consumed = self.consumed.saturating_add(bulk.len).saturating_add(2);
        self.scanned = self.consumed;
        self.check_size(0)?;
        Ok(Step::Value(value))
    }

    fn read_line(&mut self) -> Result<Step, RespError> {
        let start = self.consumed;
        let offset = self.offset();
        if let Some(&byte) = self.buffer.get(start)
            && !b"+-:$*_,#!=(%~>|".contains(&byte)
        {
            return Err(RespError::UnknownType { offset, byte });
        }
        let Some(len) = self.find_line_end() else {
            if self.buffer.len().saturating_sub(start) > self.limits.line_bytes.saturating_add(2) {
                return Err(RespError::LineTooLong { offset, limit: self.limits.line_bytes });
            }
            return Ok(Step::NeedMore);
        };
        if len > self.limits.line_bytes {
            return Err(RespError::LineTooLong { offset, limit: self.limits.line_bytes });
        }
        self.consumed = start.saturating_add(len).saturating_add(2);
        self.scanned = self.consumed;
        self.check_size(0)?;
        let line = self.buffer.get(start..start.saturating_add(len)).unwrap_or_default();
        let Some((&kind, text)) = line.split_first() else {
            return Err(RespError::UnknownType { offset, byte: b'\r' });
        };
        let parsed = parse_line(kind, text).map_err(|expected| RespError::BadLine {
            offset,
            line: shortened(line),
            expected,
        })?;
        match parsed {
            Line::Value(value) => Ok(Step::Value(value)),
            Line::Bulk(len, kind) => self.open_bulk(len, kind),
            Line::Aggregate(count, kind) => self.open_aggregate(count, kind, offset),
        }
    }

    /// Length of the line at `consumed` without its CRLF, if its end is there.
    fn find_line_end(&mut self) -> Option<usize> {
        let unseen = self.buffer.get(self.scanned..)?;
        if let Some(at) = memchr::memmem::find(unseen, b"\r\n") {
            let end = self.scanned.checked_add(at)?;
            return end.checked_sub(self.consumed);
        }
        // The last byte may be the CR of a CRLF that is cut in two.
        self.scanned = self.buffer.len().saturating_sub(1).max(self.consumed);
        None
    }

    fn open_bulk(&mut self, len: u64, kind: BulkKind) -> Result<Step, RespError> {
        self.check_size(len.saturating_add(2))?;
        let too_large = RespError::TooLarge { offset: self.offset(), limit: self.limits.reply_bytes };
        let len = usize::try_from(len).map_err(|_| too_large)?;
        self.bulk = Some(Bulk { len, kind });
        Ok(Step::Opened)
    }

    fn open_aggregate(&mut self, count: u64, kind: FrameKind, offset: u64) -> Result<Step, RespError> {
        let missing = match kind {
            FrameKind::Map | FrameKind::Attribute => count.saturating_mul(2),
            FrameKind::Array | FrameKind::Set | FrameKind::Push => count,
        };
        self.elements = self.elements.saturating_add(missing).saturating_add(1);
        if self.elements > self.limits.elements {
            return Err(RespError::TooManyElements { offset, limit: self.limits.elements });
        }
        // Each announced value takes at least three bytes: `_`, CR, LF.
        self.check_size(missing.saturating_mul(3))?;
        let frame = Frame { kind, missing, items: Vec::new() };
        if missing == 0 {
            return Ok(close(frame).map_or(Step::Opened, Step::Value));
        }
        if self.open.len() >= self.limits.depth {
            return Err(RespError::TooDeep { offset, limit: self.limits.depth });
        }
        self.open.push(frame);
        Ok(Step::Opened)
    }
}

fn close(frame: Frame) -> Option<Value> {
    Some(match frame.kind {
        FrameKind::Array => Value::Array(frame.items),
        FrameKind::Set => Value::Set(frame.items),
        FrameKind::Push => Value::Push(frame.items),
        FrameKind::Map => {
            let mut items = frame.items.into_iter();
            let mut pairs = Vec::with_capacity(items.len() / 2);
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Value::Map(pairs)
        }
        FrameKind::Attribute => return None,
    })
}

pub(super) enum Line {
    Value(Value),
    Bulk(u64, BulkKind),
    Aggregate(u64, FrameKind),
}

pub(super) fn parse_line(kind: u8, text: &[u8]) -> Result<Line, &'static str> {
    Ok(match kind {
        b'+' => Line::Value(Value::Simple(lossy(text))),
        b'-' => Line::Value(Value::Error(lossy(text))),
        b':' => Line::Value(Value::Integer(number(text).ok_or("an integer")?)),
        b'_' if text.is_empty() => Line::Value(Value::Null),
        b'_' => return Err("a null"),
        b'#' => match text {
            b"t" => Line::Value(Value::Boolean(true)),
            b"f" => Line::Value(Value::Boolean(false)),
            _ => return Err("`#t` or `#f`"),
        },
        b',' => Line::Value(Value::Double(number(text).ok_or("a floating-point number")?)),
        b'(' => {
            let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err("an integer of any size");
            }
            Line::Value(Value::BigNumber(lossy(text)))
        }
        b'$' | b'*' if text == b"-1" => Line::Value(Value::Null),
        b'$' => Line::Bulk(length(text)?, BulkKind::Plain),
        b'!' => Line::Bulk(length(text)?, BulkKind::Error),
        b'=' => Line::Bulk(length(text)?, BulkKind::Verbatim),
        b'*' => Line::Aggregate(length(text)?, FrameKind::Array),
        b'%' => Line::Aggregate(length(text)?, FrameKind::Map),
        b'~' => Line::Aggregate(length(text)?, FrameKind::Set),
        b'>' => Line::Aggregate(length(text)?, FrameKind::Push),
        b'|' => Line::Aggregate(length(text)?, FrameKind::Attribute),
        _ => return Err("a RESP type"),
    })
}

fn number<T: core::str::FromStr>(text: &[u8]) -> Option<T> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

fn length(text: &[u8]) -> Result<u64, &'static str> {
    let digits = Some(text).filter(|text| text.iter().all(u8::is_ascii_digit));
    digits.and_then(number).ok_or("a length")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn shortened(line: &[u8]) -> String {
    line.get(..80).unwrap_or(line).escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
