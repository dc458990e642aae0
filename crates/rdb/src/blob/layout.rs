//! Heads and ends of the entries of each layout, read from bytes at hand.

use super::Layout;
use crate::error::ErrorKind;
use crate::primitive::Decoded;

pub(super) enum Payload {
    Integer(i64),
    Bytes(u64),
    End,
}

pub(super) struct Head {
    pub(super) payload: Payload,
    pub(super) trailer: usize,
    pub(super) previous: u64,
}

pub(super) struct Preamble {
    /// Entries announced; `None` if unknown.
    pub(super) entries: Option<u64>,
    /// Length of the blob as it says itself.
    pub(super) bytes: Option<u64>,
    pub(super) integer_bytes: usize,
}

const fn preamble_bytes(layout: Layout) -> usize {
    match layout {
        Layout::Listpack => 6,
        Layout::Ziplist => 10,
        Layout::Intset => 8,
        Layout::Zipmap => 1,
    }
}

const fn known(count: u16) -> Option<u64> {
    if count == u16::MAX { None } else { Some(count as u64) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|number| u64::from(u32::from_le_bytes(*number)))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|number| u16::from_le_bytes(*number))
}

pub(super) fn read_preamble(layout: Layout, bytes: &[u8]) -> Decoded<Preamble> {
    let preamble = match layout {
        Layout::Listpack => u32_at(bytes, 0).zip(u16_at(bytes, 4)).map(|(total, count)| Preamble {
            entries: known(count),
            bytes: Some(total),
            integer_bytes: 0,
        }),
        Layout::Ziplist => u32_at(bytes, 0).zip(u16_at(bytes, 8)).map(|(total, count)| Preamble {
            entries: known(count),
            bytes: Some(total),
            integer_bytes: 0,
        }),
        Layout::Intset => match u32_at(bytes, 0).zip(u32_at(bytes, 4)) {
            Some((size, count)) => Some(intset_preamble(size, count)?),
            None => None,
        },
        Layout::Zipmap => bytes.first().map(|&count| Preamble {
            // The count is of pairs, and 254 says that it is not known.
            entries: (count < 254).then_some(u64::from(count) * 2),
            bytes: None,
            integer_bytes: 0,
        }),
    };
    Ok(preamble.map(|preamble| (preamble, preamble_bytes(layout))))
}

fn intset_preamble(size: u64, count: u64) -> Result<Preamble, ErrorKind> {
    let integer_bytes = match size {
        2 => 2,
        4 => 4,
        8 => 8,
        found => {
            return Err(ErrorKind::OutOfRange {
                part: "the integer size of an intset",
                found,
                expected: "2, 4 or 8",
            });
        }
    };
    Ok(Preamble { entries: Some(count), bytes: Some(8 + size * count), integer_bytes })
}

/// A head and its own length, as the piece of a [`Carry`].
type HeadPiece = Decoded<(Head, usize)>;

#[inline]
#[expect(clippy::unnecessary_wraps, reason = "the shape that `Carry::read` takes")]
fn head(payload: Payload, len: usize, trailer: usize) -> HeadPiece {
    Ok(Some(((Head { payload, trailer, previous: 0 }, len), len)))
}

#[inline]
pub(super) fn listpack_head(bytes: &[u8]) -> HeadPiece {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first < 0x80 {
        return head(Payload::Integer(i64::from(first)), 1, 1);
    }
    if first < 0xc0 {
        return head(Payload::Bytes(u64::from(first & 0x3f)), 1, 0);
    }
    let Some(&second) = bytes.get(1) else {
        return if first == 0xff { head(Payload::End, 1, 0) } else { Ok(None) };
    };
    if first < 0xe0 {
        let number = i64::from(u16::from_be_bytes([first & 0x1f, second]));
        let number = if number >= 4096 { number - 8192 } else { number };
        return head(Payload::Integer(number), 2, 1);
    }
    if first < 0xf0 {
        return head(Payload::Bytes(u64::from(u16::from_be_bytes([first & 0x0f, second]))), 2, 0);
    }
    listpack_wide_head(first, bytes)
}

fn listpack_wide_head(first: u8, bytes: &[u8]) -> HeadPiece {
    let data_bytes = match first {
        0xf0 => {
            return match u32_at(bytes, 1) {
                Some(len) => head(Payload::Bytes(len), 5, 0),
                None => Ok(None),
            };
        }
        0xf1 => 2,
        0xf2 => 3,
        0xf3 => 4,
        0xf4 => 8,
        0xff => return head(Payload::End, 1, 0),
        _ => return Err(ErrorKind::Blob { blob: "listpack", what: "an entry has no known encoding" }),
    };
    match signed(bytes.get(1..).unwrap_or_default(), data_bytes) {
        Some(number) => head(Payload::Integer(number), 1 + data_bytes, 1),
        None => Ok(None),
    }
}

/// A little-endian signed integer of that many bytes, 1 to 8.
fn signed(bytes: &[u8], len: usize) -> Option<i64> {
    let mut wide_bytes = [0; 8];
    let source = bytes.get(..len)?;
    for (place, byte) in wide_bytes.iter_mut().zip(source) {
        *place = *byte;
    }
    let unused_bits = 64 - 8 * u32::try_from(len).ok()?;
    Some(i64::from_le_bytes(wide_bytes) << unused_bits >> unused_bits)
}

pub(super) fn ziplist_head(bytes: &[u8]) -> HeadPiece {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (previous, previous_bytes) = match first {
        0xff => return head(Payload::End, 1, 0),
        0xfe => match u32_at(bytes, 1) {
            Some(previous) => (previous, 5),
            None => return Ok(None),
        },
        _ => (u64::from(first), 1),
    };
    let Some((payload, len)) = ziplist_encoding(bytes.get(previous_bytes..).unwrap_or_default())? else {
        return Ok(None);
    };
    let len = len + previous_bytes;
    Ok(Some(((Head { payload, trailer: 0, previous }, len), len)))
}

fn ziplist_encoding(bytes: &[u8]) -> Decoded<Payload> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let rest = bytes.get(1..).unwrap_or_default();
    let integer = |len: usize| signed(rest, len).map(|number| (Payload::Integer(number), 1 + len));
    Ok(match first {
        0x00..0x40 => Some((Payload::Bytes(u64::from(first)), 1)),
        0x40..0x80 => rest
            .first()
            .map(|&second| (Payload::Bytes(u64::from(u16::from_be_bytes([first & 0x3f, second]))), 2)),
        0x80 => rest.first_chunk().map(|len| (Payload::Bytes(u64::from(u32::from_be_bytes(*len))), 5)),
        0xc0 => integer(2),
        0xd0 => integer(4),
        0xe0 => integer(8),
        0xf0 => integer(3),
        0xfe => integer(1),
        0xf1..=0xfd => Some((Payload::Integer(i64::from(first & 15) - 1), 1)),
        _ => return Err(ErrorKind::Blob { blob: "ziplist", what: "an entry has no known encoding" }),
    })
}

pub(super) fn intset_head(bytes: &[u8], integer_bytes: usize, at_end: bool) -> HeadPiece {
    if at_end {
        return head(Payload::End, 0, 0);
    }
    match signed(bytes, integer_bytes) {
        Some(number) => head(Payload::Integer(number), integer_bytes, 0),
        None => Ok(None),
    }
}

pub(super) fn zipmap_head(bytes: &[u8], value: bool) -> HeadPiece {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (len, len_bytes) = match first {
        0xff if !value => return head(Payload::End, 1, 0),
        0xff => return Err(ErrorKind::Blob { blob: "zipmap", what: "it ends after a field" }),
        0xfe => match u32_at(bytes, 1) {
            Some(len) => (len, 5),
            None => return Ok(None),
        },
        _ => (u64::from(first), 1),
    };
    if !value {
        return head(Payload::Bytes(len), len_bytes, 0);
    }
    match bytes.get(len_bytes) {
        Some(&free) => head(Payload::Bytes(len), len_bytes + 1, usize::from(free)),
        None => Ok(None),
    }
}

/// How many bytes the back-length of an entry takes (`lpEncodeBacklenBytes`).
#[inline]
pub(crate) const fn back_length_bytes(entry_len: u64) -> usize {
    match entry_len {
        0..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    }
}

/// Whether those bytes are the back-length of an entry of that length.
pub(super) fn is_back_length(bytes: &[u8], entry_len: u64) -> bool {
    let mut number = 0;
    for (position, byte) in bytes.iter().enumerate() {
        if (byte & 0x80 != 0) != (position > 0) {
            return false;
        }
        number = number << 7 | u64::from(byte & 0x7f);
    }
    number == entry_len
}
