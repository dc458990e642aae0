//! The index of a base: where each key's record lies in the RDB.
//!
//! It is derived: it can be rebuilt from the RDB alone. It names no key: a key is found by its slot and a 16-bit fingerprint,
//! and told apart from others of the same fingerprint by reading the record itself. For a key with an expiry, the
//! expiry and the key's hash stand in the index as well, so that a digest can leave out what has expired without the RDB
//! being read.
//!
//! Layout: the magic `SLOTKIDX`, the format version (u32 LE), then one entry a key in the order of the RDB:
//! distance from the record before it (LEB128; the first from 0) · slot and flags (u16 LE) · database (LEB128, only with
//! flag bit 14: it differs from the entry before; at first it is 0) · fingerprint (u16 LE) · expiry in ms (i64 LE) and hash (u128 LE),
//! both only with flag bit 15.

use slotkeep_model::{Slot, TimestampMs};
use thiserror::Error;

use crate::varint;

const MAGIC: &[u8; 8] = b"SLOTKIDX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
const FLAG_EXPIRY: u16 = 1 << 15;
const FLAG_DATABASE: u16 = 1 << 14;
const SLOT_MASK: u16 = FLAG_DATABASE - 1;

/// One key of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where the key's record starts in the RDB: the first byte of its expiry, if it has one, else of its type.
    pub offset: u64,
    /// The key's slot.
    pub slot: Slot,
    /// The database the key is in.
    pub database: u32,
    /// 16 bits of a hash of database and key; with the slot it tells 2^30 keys apart.
    pub fingerprint: u16,
    /// When the key expires, and the key's hash as it went into the slot's digest.
    pub expiry: Option<(TimestampMs, u128)>,
}

/// What is wrong with an index.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IndexError {
    /// The first bytes are not those of an index.
    #[error("this is not an index: it does not start with `SLOTKIDX`")]
    Magic,
    /// A newer format.
    #[error("the index has format version {0}; this Slotkeep reads up to {VERSION}: use a newer one")]
    NewerVersion(u32),
    /// An entry contradicts the format.
    #[error("entry {entry} of the index is damaged: {reason}")]
    Damaged {
        /// Which entry, counted from 0.
        entry: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Entries must be written in the order of their offsets.
    #[error("entries out of order: offset {offset} after {before}")]
    Order {
        /// The entry's offset.
        offset: u64,
        /// The offset of the entry before.
        before: u64,
    },
    /// The index ends inside an entry.
    #[error("the index ends inside entry {0}")]
    Truncated(u64),
}

/// Writes an index, entry by entry, into a buffer that the caller empties as it likes.
#[derive(Debug)]
pub struct IndexWriter {
    out: Vec<u8>,
    offset: u64,
    database: u32,
}

impl Default for IndexWriter {
    fn default() -> Self {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        Self { out, offset: 0, database: 0 }
    }
}

impl IndexWriter {
    /// Appends an entry. Entries come in the order of their offsets.
    pub fn push(&mut self, entry: &IndexEntry) -> Result<(), IndexError> {
        let distance = entry
            .offset
            .checked_sub(self.offset)
            .ok_or(IndexError::Order { offset: entry.offset, before: self.offset })?;
        self.offset = entry.offset;
        varint::put(&mut self.out, distance);
        let mut flags = entry.slot.number();
        let database_changed = entry.database != self.database;
        if database_changed {
            flags |= FLAG_DATABASE;
        }
        if entry.expiry.is_some() {
            flags |= FLAG_EXPIRY;
        }
        self.out.extend_from_slice(&flags.to_le_bytes());
        if database_changed {
            varint::put(&mut self.out, u64::from(entry.database));
            self.database = entry.database;
        }
        self.out.extend_from_slice(&entry.fingerprint.to_le_bytes());
        if let Some((TimestampMs(expiry_ms), hash)) = entry.expiry {
            self.out.extend_from_slice(&expiry_ms.to_le_bytes());
            self.out.extend_from_slice(&hash.to_le_bytes());
        }
        Ok(())
    }

    /// Bytes written and not yet taken.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether everything written has been taken.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Takes at most `most` bytes from the front of what has been written.
    pub fn take(&mut self, most: usize) -> Vec<u8> {
        let rest = self.out.split_off(self.out.len().min(most));
        core::mem::replace(&mut self.out, rest)
    }
}

/// Reads an index from bytes that come in pieces of any size.
#[derive(Debug, Default)]
pub struct IndexReader {
    pending: Vec<u8>,
    started: bool,
    entries: u64,
    offset: u64,
    database: u32,
}

impl IndexReader {
    /// Reads on: calls `visit` for every entry that is complete with these bytes.
    pub fn feed(&mut self, bytes: &[u8], mut visit: impl FnMut(IndexEntry)) -> Result<(), IndexError> {
        let mut buffer = core::mem::take(&mut self.pending);
        let mut input = if buffer.is_empty() {
            bytes
        } else {
            buffer.extend_from_slice(bytes);
            buffer.as_slice()
        };
        if !self.started {
            let Some((header, rest)) = input.split_at_checked(HEADER_BYTES) else {
                self.pending = input.to_vec();
                return Ok(());
            };
            check_header(header)?;
            self.started = true;
            input = rest;
        }
        loop {
            let mut rest = input;
            match self.entry(&mut rest)? {
                Some(entry) => visit(entry),
                None => break,
            }
            input = rest;
        }
        self.pending = input.to_vec();
        Ok(())
    }

    /// Ends the reading and gives the number of entries.
    pub fn finish(&self) -> Result<u64, IndexError> {
        if self.started && self.pending.is_empty() {
            Ok(self.entries)
        } else {
            Err(IndexError::Truncated(self.entries))
        }
    }

    /// The entry at the front of `input`, or `None` if it is not complete, in which case nothing has changed.
    fn entry(&mut self, input: &mut &[u8]) -> Result<Option<IndexEntry>, IndexError> {
        let entry = self.entries;
        let damaged = |reason| IndexError::Damaged { entry, reason };
        let Some(distance) = varint::take(input).map_err(|_| damaged("distance of more than 64 bits"))?
        else {
            return Ok(None);
        };
        let Some(flags) = array(input).map(u16::from_le_bytes) else { return Ok(None) };
        let mut database = self.database;
        if flags & FLAG_DATABASE != 0 {
            let Some(number) = varint::take(input).map_err(|_| damaged("database of more than 64 bits"))?
            else {
                return Ok(None);
            };
            database = u32::try_from(number).map_err(|_| damaged("database of more than 32 bits"))?;
        }
        let Some(fingerprint) = array(input).map(u16::from_le_bytes) else { return Ok(None) };
        let mut expiry = None;
        if flags & FLAG_EXPIRY != 0 {
            let Some(expiry_ms) = array(input).map(i64::from_le_bytes) else { return Ok(None) };
            let Some(hash) = array(input).map(u128::from_le_bytes) else { return Ok(None) };
            expiry = Some((TimestampMs(expiry_ms), hash));
        }
        let slot = Slot::new(flags & SLOT_MASK).ok_or(damaged("slot above 16383"))?;
        self.offset = self.offset.checked_add(distance).ok_or(damaged("offset of more than 64 bits"))?;
        self.database = database;
        self.entries += 1;
        Ok(Some(IndexEntry { offset: self.offset, slot, database, fingerprint, expiry }))
    }
}

fn check_header(header: &[u8]) -> Result<(), IndexError> {
    let Some((magic, version)) = header.split_first_chunk::<8>() else { return Err(IndexError::Magic) };
    if magic != MAGIC {
        return Err(IndexError::Magic);
    }
    let version = version.first_chunk().copied().map_or(0, u32::from_le_bytes);
    if version == VERSION { Ok(()) } else { Err(IndexError::NewerVersion(version)) }
}

fn array<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<IndexEntry>> {
        let entry = (0_u64..5000, 0_u16..16384, 0_u32..3, any::<u16>(), any::<Option<(i64, u128)>>());
        prop::collection::vec(entry, 0..50).prop_map(|rows| {
            let mut offset = 0;
            rows.into_iter()
                .map(|(distance, slot, database, fingerprint, expiry)| {
                    offset += distance;
                    let expiry = expiry.map(|(expiry_ms, hash)| (TimestampMs(expiry_ms), hash));
                    IndexEntry { offset, slot: Slot::new(slot).unwrap(), database, fingerprint, expiry }
                })
                .collect()
        })
    }

    fn write(entries: &[IndexEntry]) -> Vec<u8> {
        let mut writer = IndexWriter::default();
        for entry in entries {
            writer.push(entry).unwrap();
        }
        writer.take(usize::MAX)
    }

    proptest! {
        #[test]
        fn an_index_reads_as_it_was_written_in_any_pieces(entries in entries(), piece in 1_usize..40) {
            let bytes = write(&entries);
            let (mut reader, mut read) = (IndexReader::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                reader.feed(piece, |entry| read.push(entry)).unwrap();
            }
            prop_assert_eq!(reader.finish(), Ok(entries.len() as u64));
            prop_assert_eq!(read, entries);
        }

        #[test]
        fn any_bytes_give_entries_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut input = b"SLOTKIDX\x01\0\0\0".to_vec();
            input.extend(bytes);
            let mut reader = IndexReader::default();
            let _ = reader.feed(&input, |_| ()).and_then(|()| reader.finish());
        }
    }

    #[test]
    fn a_cut_index_is_an_error() {
        let entry = IndexEntry {
            offset: 300,
            slot: Slot::new(7).unwrap(),
            database: 1,
            fingerprint: 9,
            expiry: None,
        };
        let bytes = write(&[entry]);
        for end in 0..bytes.len() {
            let mut reader = IndexReader::default();
            let read = reader.feed(&bytes[..end], |_| ()).and_then(|()| reader.finish());
            assert_eq!(read.is_ok(), end == HEADER_BYTES, "{end}");
        }
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let entry = |offset| IndexEntry {
            offset,
            slot: Slot::new(0).unwrap(),
            database: 0,
            fingerprint: 0,
            expiry: None,
        };
        let mut writer = IndexWriter::default();
        writer.push(&entry(5)).unwrap();
        assert_eq!(writer.push(&entry(4)), Err(IndexError::Order { offset: 4, before: 5 }));
    }
}
