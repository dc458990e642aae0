//! The small pieces of the format, written: lengths, strings, numbers, ids. The counterpart of `primitive`.
//!
//! Lengths take the shortest form, and strings that are the decimal text of an integer of at most 32 bits are written as one, as servers do
//! (`rdbSaveLen` and `rdbSaveRawString` in `src/rdb.c`). Nothing is compressed.

use crate::primitive::{DIGITS_BYTES, wide, write_decimal};
use crate::value::StreamId;

mod packed;

pub(crate) use packed::{Listpack, Ziplist};

/// The longest text that may stand for an integer of 32 bits.
const LONGEST_INTEGER_TEXT: usize = 11;

/// Appends a length.
pub(crate) fn push_length(out: &mut Vec<u8>, number: u64) {
    match (u8::try_from(number), u16::try_from(number), u32::try_from(number)) {
        (Ok(short), _, _) if short < 0x40 => out.push(short),
        (_, Ok(middle), _) if middle < 0x4000 => out.extend_from_slice(&(middle | 0x4000).to_be_bytes()),
        (_, _, Ok(long)) => {
            out.push(0x80);
            out.extend_from_slice(&long.to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// Appends a string.
pub(crate) fn push_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let integer = (bytes.len() <= LONGEST_INTEGER_TEXT)
        .then(|| canonical_integer(bytes))
        .flatten()
        .and_then(|number| i32::try_from(number).ok());
    match integer {
        None => push_blob(out, bytes),
        Some(number) => match (i8::try_from(number), i16::try_from(number)) {
            (Ok(number), _) => out.extend_from_slice(&[0xc0, number.to_le_bytes()[0]]),
            (_, Ok(number)) => {
                out.push(0xc1);
                out.extend_from_slice(&number.to_le_bytes());
            }
            _ => {
                out.push(0xc2);
                out.extend_from_slice(&number.to_le_bytes());
            }
        },
    }
}

/// Appends a string that is not the text of an integer.
pub(crate) fn push_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    push_length(out, wide(bytes.len()));
    out.extend_from_slice(bytes);
}

/// Appends an id as two lengths.
pub(crate) fn push_id(out: &mut Vec<u8>, id: StreamId) {
    push_length(out, id.ms);
    push_length(out, id.seq);
}

/// Appends an id as 16 bytes, big-endian.
pub(crate) fn push_raw_id(out: &mut Vec<u8>, id: StreamId) {
    out.extend_from_slice(&id.ms.to_be_bytes());
    out.extend_from_slice(&id.seq.to_be_bytes());
}

/// Appends a score of type 3.
pub(crate) fn push_text_score(out: &mut Vec<u8>, score: f64) {
    if score.is_infinite() {
        out.push(if score > 0.0 { 254 } else { 255 });
        return;
    }
    let text = score_text(score);
    out.push(u8::try_from(text.len()).unwrap_or(0));
    out.extend_from_slice(text.as_bytes());
}

/// Text that reads back as the same number; at most 30 bytes or so.
pub(crate) fn score_text(score: f64) -> String {
    let magnitude = score.abs();
    if score == 0.0 || magnitude.is_infinite() || (1e-5..1e17).contains(&magnitude) {
        format!("{score}")
    } else {
        format!("{score:e}")
    }
}

/// The number that the bytes are the decimal text of, if they are exactly the text that servers would print for it.
pub(crate) fn canonical_integer(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > DIGITS_BYTES {
        return None;
    }
    let number = core::str::from_utf8(bytes).ok()?.parse().ok()?;
    let mut digits = [0; DIGITS_BYTES];
    let from = write_decimal(number, &mut digits);
    (digits.get(from..)? == bytes).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitive::length;

    #[test]
    fn lengths_read_back_in_their_shortest_form() {
        for (number, bytes) in [(0, 1), (63, 1), (64, 2), (16_383, 2), (16_384, 5), (u32::MAX.into(), 5)] {
            let mut out = Vec::new();
            push_length(&mut out, number);
            assert_eq!(length(&out).unwrap(), Some((number, bytes)));
            assert_eq!(out.len(), bytes);
        }
        let mut out = Vec::new();
        push_length(&mut out, 1 << 32);
        assert_eq!(length(&out).unwrap(), Some((1 << 32, 9)));
    }

    #[test]
    fn only_canonical_text_is_an_integer() {
        for text in ["0", "-1", "2147483647", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(canonical_integer(text.as_bytes()), text.parse().ok());
        }
        for text in ["", "-0", "+1", "01", " 1", "1 ", "9223372036854775808", "1.0", "a"] {
            assert_eq!(canonical_integer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn strings_take_the_forms_that_servers_write() {
        for (text, hex) in [
            ("-5", &b"\xc0\xfb"[..]),
            ("1000", b"\xc1\xe8\x03"),
            ("100000", b"\xc2\xa0\x86\x01\x00"),
            ("99999999999", b"\x0b99999999999"),
            ("q", b"\x01q"),
        ] {
            let mut out = Vec::new();
            push_string(&mut out, text.as_bytes());
            assert_eq!(out, hex, "{text}");
        }
    }

    #[test]
    fn scores_read_back() {
        for score in
            [0.0, -0.0, 1.5, 1e300, -1e-300, f64::INFINITY, f64::MIN_POSITIVE, 0.1 + 0.2, 123_456_789_012.5]
        {
            assert_eq!(score_text(score).parse::<f64>().unwrap().to_bits(), score.to_bits(), "{score}");
        }
    }
}
