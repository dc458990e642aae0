//! A small writer of RDBs, in every encoding of the collections.

use crc_fast::{CrcAlgorithm, checksum};

/// Appends a length.
pub(crate) fn length(out: &mut Vec<u8>, number: u64) {
    if number < 64 {
        out.push(u8::try_from(number).unwrap());
    } else if number < 16384 {
        out.extend((0x4000 | u16::try_from(number).unwrap()).to_be_bytes());
    } else if let Ok(number) = u32::try_from(number) {
        out.push(0x80);
        out.extend(number.to_be_bytes());
    } else {
        out.push(0x81);
        out.extend(number.to_be_bytes());
    }
}

/// Appends a plain string.
pub(crate) fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    length(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a string as LZF.
pub(crate) fn lzf_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let compressed = lzf(bytes);
    out.push(0xc3);
    length(out, compressed.len() as u64);
    length(out, bytes.len() as u64);
    out.extend(compressed);
}

/// A simple LZF: of a repeated triple it takes the last place.
fn lzf(bytes: &[u8]) -> Vec<u8> {
    let mut seen = std::collections::HashMap::new();
    let (mut out, mut literals, mut at) = (Vec::new(), Vec::new(), 0);
    let flush = |literals: &mut Vec<u8>, out: &mut Vec<u8>| {
        for run in literals.chunks(32) {
            out.push(u8::try_from(run.len() - 1).unwrap());
            out.extend_from_slice(run);
        }
        literals.clear();
    };
    while at < bytes.len() {
        let triple = bytes.get(at..at + 3);
        let from = triple.and_then(|triple| seen.insert(triple, at));
        let Some(from) = from.filter(|from| at - from <= 8192) else {
            literals.push(bytes[at]);
            at += 1;
            continue;
        };
        let count = (0..264)
            .take_while(|step| at + step < bytes.len() && bytes[from + step] == bytes[at + step])
            .count();
        flush(&mut literals, &mut out);
        let (distance, count_code) = (at - from - 1, count - 2);
        let high = u8::try_from(distance >> 8).unwrap();
        if count_code < 7 {
            out.push(u8::try_from(count_code << 5).unwrap() | high);
        } else {
            out.push(0xe0 | high);
            out.push(u8::try_from(count_code - 7).unwrap());
        }
        out.push(u8::try_from(distance & 255).unwrap());
        at += count;
    }
    flush(&mut literals, &mut out);
    out
}

fn integer(bytes: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == bytes).then_some(number)
}

fn count_of(entries: &[Vec<u8>]) -> u16 {
    u16::try_from(entries.len()).unwrap_or(u16::MAX)
}

/// A listpack; text that is an integer is packed as one.
pub(crate) fn listpack(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for entry in entries {
        let mut packed = Vec::new();
        match (integer(entry), entry.len()) {
            (Some(number @ 0..128), _) => packed.push(u8::try_from(number).unwrap()),
            (Some(number @ -4096..4096), _) => {
                packed.extend((0xc000 | u16::try_from(number & 0x1fff).unwrap()).to_be_bytes());
            }
            (Some(number), _) if i16::try_from(number).is_ok() => {
                packed.push(0xf1);
                packed.extend(&number.to_le_bytes()[..2]);
            }
            (Some(number), _) if (-(1 << 23)..1 << 23).contains(&number) => {
                packed.push(0xf2);
                packed.extend(&number.to_le_bytes()[..3]);
            }
            (Some(number), _) if i32::try_from(number).is_ok() => {
                packed.push(0xf3);
                packed.extend(&number.to_le_bytes()[..4]);
            }
            (Some(number), _) => {
                packed.push(0xf4);
                packed.extend(number.to_le_bytes());
            }
            (None, len @ 0..64) => packed.push(0x80 | u8::try_from(len).unwrap()),
            (None, len @ 64..4096) => packed.extend((0xe000 | u16::try_from(len).unwrap()).to_be_bytes()),
            (None, len) => {
                packed.push(0xf0);
                packed.extend(u32::try_from(len).unwrap().to_le_bytes());
            }
        }
        if integer(entry).is_none() {
            packed.extend_from_slice(entry);
        }
        let len = packed.len();
        let groups = match len {
            0..=127 => 1,
            128..16_383 => 2,
            16_383..2_097_151 => 3,
            2_097_151..268_435_455 => 4,
            _ => 5,
        };
        for group in (0..groups).rev() {
            let seven = u8::try_from(len >> (7 * group) & 0x7f).unwrap();
            packed.push(if group + 1 == groups { seven } else { seven | 0x80 });
        }
        body.extend(packed);
    }
    body.push(0xff);
    let mut out = u32::try_from(body.len() + 6).unwrap().to_le_bytes().to_vec();
    out.extend(count_of(entries).to_le_bytes());
    out.extend(body);
    out
}

/// A ziplist; text that is an integer is packed as one.
pub(crate) fn ziplist(entries: &[Vec<u8>]) -> Vec<u8> {
    let (mut body, mut previous, mut tail) = (Vec::new(), 0_usize, 10);
    for entry in entries {
        tail = 10 + body.len();
        let mut packed = Vec::new();
        match u8::try_from(previous) {
            Ok(short) if short < 254 => packed.push(short),
            _ => {
                packed.push(0xfe);
                packed.extend(u32::try_from(previous).unwrap().to_le_bytes());
            }
        }
        match (integer(entry), entry.len()) {
            (Some(number @ 0..=12), _) => packed.push(0xf1 + u8::try_from(number).unwrap()),
            (Some(number), _) if i8::try_from(number).is_ok() => {
                packed.extend([0xfe, number.to_le_bytes()[0]]);
            }
            (Some(number), _) if i16::try_from(number).is_ok() => {
                packed.push(0xc0);
                packed.extend(&number.to_le_bytes()[..2]);
            }
            (Some(number), _) if (-(1 << 23)..1 << 23).contains(&number) => {
                packed.push(0xf0);
                packed.extend(&number.to_le_bytes()[..3]);
            }
            (Some(number), _) if i32::try_from(number).is_ok() => {
                packed.push(0xd0);
                packed.extend(&number.to_le_bytes()[..4]);
            }
            (Some(number), _) => {
                packed.push(0xe0);
                packed.extend(number.to_le_bytes());
            }
            (None, len @ 0..64) => packed.push(u8::try_from(len).unwrap()),
            (None, len @ 64..16384) => packed.extend((0x4000 | u16::try_from(len).unwrap()).to_be_bytes()),
            (None, len) => {
                packed.push(0x80);
                packed.extend(u32::try_from(len).unwrap().to_be_bytes());
            }
        }
        if integer(entry).is_none() {
            packed.extend_from_slice(entry);
        }
        previous = packed.len();
        body.extend(packed);
    }
    body.push(0xff);
    let mut out = u32::try_from(body.len() + 10).unwrap().to_le_bytes().to_vec();
    out.extend(u32::try_from(tail).unwrap().to_le_bytes());
    out.extend(count_of(entries).to_le_bytes());
    out.extend(body);
    out
}

/// A zipmap of fields and values by turns.
pub(crate) fn zipmap(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![u8::try_from(entries.len() / 2).unwrap_or(254).min(254)];
    for (position, entry) in entries.iter().enumerate() {
        match u8::try_from(entry.len()) {
            Ok(short) if short < 254 => out.push(short),
            _ => {
                out.push(0xfe);
                out.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
            }
        }
        if position % 2 == 1 {
            out.push(3);
        }
        out.extend_from_slice(entry);
        if position % 2 == 1 {
            out.extend([b'f', b'r', b'e']);
        }
    }
    out.push(0xff);
    out
}

/// An intset of integers of 8 bytes.
pub(crate) fn intset(numbers: &[i64]) -> Vec<u8> {
    let mut out = 8_u32.to_le_bytes().to_vec();
    out.extend(u32::try_from(numbers.len()).unwrap().to_le_bytes());
    for number in numbers {
        out.extend(number.to_le_bytes());
    }
    out
}

/// An RDB with that magic and body; the end mark and the CRC64 are appended.
pub(crate) fn rdb(magic: &str, body: &[u8]) -> Vec<u8> {
    let mut out = magic.as_bytes().to_vec();
    out.extend_from_slice(body);
    out.push(0xff);
    let crc = checksum(CrcAlgorithm::Crc64Redis, &out);
    out.extend(crc.to_le_bytes());
    out
}

/// A key's record.
pub(crate) fn record(out: &mut Vec<u8>, expiry_ms: Option<i64>, value_type: u8, key: &[u8], value: &[u8]) {
    if let Some(expiry_ms) = expiry_ms {
        out.push(0xfc);
        out.extend(expiry_ms.to_le_bytes());
    }
    out.push(value_type);
    string(out, key);
    out.extend_from_slice(value);
}
