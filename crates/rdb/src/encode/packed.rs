//! Listpacks and ziplists, written. Layouts: `src/listpack.c` and `src/ziplist.c` of Redis.
//!
//! Integers are packed where the text is that of one, as servers do; back-lengths have exactly the sizes that servers check.

use super::canonical_integer;
use crate::blob::back_length_bytes;
use crate::primitive::wide;

/// Number of entries that says "walk to count".
const UNKNOWN_COUNT: u16 = u16::MAX;
const END: u8 = 0xff;

const LISTPACK_HEAD_BYTES: usize = 6;
const ZIPLIST_HEAD_BYTES: usize = 10;

/// A listpack being written.
pub(crate) struct Listpack {
    bytes: Vec<u8>,
    count: u64,
}

impl Listpack {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; LISTPACK_HEAD_BYTES], count: 0 }
    }

    pub(crate) fn push(&mut self, entry: &[u8]) {
        if let Some(number) = canonical_integer(entry) {
            return self.push_integer(number);
        }
        let from = self.bytes.len();
        match (u16::try_from(entry.len()), u32::try_from(entry.len())) {
            (Ok(len), _) if len < 64 => self.bytes.push(0x80 | len.to_le_bytes()[0]),
            (Ok(len), _) if len < 4096 => self.bytes.extend_from_slice(&(0xe000 | len).to_be_bytes()),
            (_, len) => {
                self.bytes.push(0xf0);
                self.bytes.extend_from_slice(&len.unwrap_or(u32::MAX).to_le_bytes());
            }
        }
        self.bytes.extend_from_slice(entry);
        self.close(from);
    }

    pub(crate) fn push_integer(&mut self, number: i64) {
        let from = self.bytes.len();
        let bytes = number.to_le_bytes();
        let mut fixed = |code: u8, len: usize| {
            self.bytes.push(code);
            self.bytes.extend_from_slice(bytes.get(..len).unwrap_or_default());
        };
        match number {
            0..128 => self.bytes.push(bytes[0]),
            -4096..4096 => {
                let code = 0xc000 | (u16::from_le_bytes([bytes[0], bytes[1]]) & 0x1fff);
                self.bytes.extend_from_slice(&code.to_be_bytes());
            }
            -0x8000..0x8000 => fixed(0xf1, 2),
            -0x80_0000..0x80_0000 => fixed(0xf2, 3),
            -0x8000_0000..0x8000_0000 => fixed(0xf3, 4),
            _ => fixed(0xf4, 8),
        }
        self.close(from);
    }

    /// Writes the entry's length after it.
    fn close(&mut self, from: usize) {
        let len = wide(self.bytes.len() - from);
        let groups = back_length_bytes(len);
        for group in (0..groups).rev() {
            let seven = (len >> (7 * group)).to_le_bytes()[0] & 0x7f;
            self.bytes.push(if group + 1 == groups { seven } else { seven | 0x80 });
        }
        self.count += 1;
    }

    /// The listpack, or `None` if it is longer than its length field can say.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        self.bytes.push(END);
        let total = u32::try_from(self.bytes.len()).ok()?;
        let count = u16::try_from(self.count).unwrap_or(UNKNOWN_COUNT);
        patch(&mut self.bytes, 0, &total.to_le_bytes());
        patch(&mut self.bytes, 4, &count.to_le_bytes());
        Some(self.bytes)
    }
}

/// A ziplist being written.
pub(crate) struct Ziplist {
    bytes: Vec<u8>,
    count: u64,
    tail: usize,
}

impl Ziplist {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; ZIPLIST_HEAD_BYTES], count: 0, tail: ZIPLIST_HEAD_BYTES }
    }

    /// Bytes so far, with the head.
    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, entry: &[u8]) {
        let previous = self.bytes.len() - self.tail;
        self.tail = self.bytes.len();
        match u8::try_from(previous) {
            Ok(short) if short < 254 => self.bytes.push(short),
            _ => {
                self.bytes.push(254);
                self.bytes.extend_from_slice(&u32::try_from(previous).unwrap_or(u32::MAX).to_le_bytes());
            }
        }
        match canonical_integer(entry) {
            Some(number) => self.integer(number),
            None => self.text(entry),
        }
        self.count += 1;
    }

    fn text(&mut self, entry: &[u8]) {
        match (u16::try_from(entry.len()), u32::try_from(entry.len())) {
            (Ok(len), _) if len < 64 => self.bytes.push(len.to_le_bytes()[0]),
            (Ok(len), _) if len < 0x4000 => self.bytes.extend_from_slice(&(0x4000 | len).to_be_bytes()),
            (_, len) => {
                self.bytes.push(0x80);
                self.bytes.extend_from_slice(&len.unwrap_or(u32::MAX).to_be_bytes());
            }
        }
        self.bytes.extend_from_slice(entry);
    }

    fn integer(&mut self, number: i64) {
        let bytes = number.to_le_bytes();
        let (code, len) = match number {
            0..=12 => (0xf1 + bytes[0], 0),
            -0x80..0x80 => (0xfe, 1),
            -0x8000..0x8000 => (0xc0, 2),
            -0x80_0000..0x80_0000 => (0xf0, 3),
            -0x8000_0000..0x8000_0000 => (0xd0, 4),
            _ => (0xe0, 8),
        };
        self.bytes.push(code);
        self.bytes.extend_from_slice(bytes.get(..len).unwrap_or_default());
    }

    /// The ziplist, or `None` if it is longer than its length field can say.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        self.bytes.push(END);
        let total = u32::try_from(self.bytes.len()).ok()?;
        let tail = u32::try_from(self.tail).ok()?;
        let count = u16::try_from(self.count).unwrap_or(UNKNOWN_COUNT);
        patch(&mut self.bytes, 0, &total.to_le_bytes());
        patch(&mut self.bytes, 4, &tail.to_le_bytes());
        patch(&mut self.bytes, 8, &count.to_le_bytes());
        Some(self.bytes)
    }
}

fn patch(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(with) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::writer;

    fn samples() -> Vec<Vec<u8>> {
        let mut entries: Vec<Vec<u8>> = Vec::new();
        for number in [
            0, 12, 13, 127, 128, -1, -128, -129, 4095, 4096, -4096, -4097, 32_767, 32_768, -32_769,
            8_388_607, 8_388_608,
        ] {
            entries.push(i64::to_string(&number).into_bytes());
        }
        for number in [i64::MIN, i64::MAX, i64::from(i32::MAX), i64::from(i32::MIN) - 1] {
            entries.push(number.to_string().into_bytes());
        }
        for len in [0, 1, 63, 64, 126, 127, 252, 253, 254, 4095, 4096, 16_382, 16_383, 16_384, 70_000] {
            entries.push(vec![b'x'; len]);
        }
        entries
    }

    #[test]
    fn they_are_byte_for_byte_those_of_the_tests_own_writer() {
        let entries = samples();
        let (mut listpack, mut ziplist) = (Listpack::new(), Ziplist::new());
        for entry in &entries {
            listpack.push(entry);
            ziplist.push(entry);
        }
        assert!(listpack.finish().unwrap() == writer::listpack(&entries));
        assert!(ziplist.finish().unwrap() == writer::ziplist(&entries));
        assert_eq!(Listpack::new().finish().unwrap(), writer::listpack(&[]));
        assert_eq!(Ziplist::new().finish().unwrap(), writer::ziplist(&[]));
    }
}
