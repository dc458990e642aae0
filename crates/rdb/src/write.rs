//! An RDB, written record by record.
//!
//! The writer holds nothing: each call appends what it has to say to the caller's buffer, which the caller may empty after any of
//! them. Values go in as the bytes that stand after a key, whole or in parts, so a value of any length passes.
//!
//! What a version does not know is left out where it is only a hint (`idle`, `freq`, sizes), and an error where it is data. The order of calls is
//! the caller's to keep; it is that of an RDB: auxiliary fields, functions, then for each database its keys.
//!
//! Invariant: `crc` covers every byte that was appended.

use crc_fast::{CrcAlgorithm, Digest};
use slotkeep_model::{Product, RdbVersion, Slot};

use crate::encode::{push_blob, push_length, push_string};
use crate::error::ErrorKind;
use crate::primitive::wide;
use crate::types::ValueType;

/// The oldest version that is written: the first of Redis 2.6, and the first with `DUMP`.
const OLDEST: u16 = 6;
const NEWEST_REDIS: u16 = 14;
const VALKEY: u16 = 80;

/// What stands before a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHead<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The encoding of the value that follows.
    pub value_type: ValueType,
    /// When the key expires, in ms since the epoch.
    pub expiry_ms: Option<i64>,
    /// How long it has been idle, in seconds; left out before RDB version 9.
    pub idle_s: Option<u64>,
    /// Its use counter; left out before RDB version 9.
    pub freq: Option<u8>,
}

/// Writes an RDB.
pub struct RdbWriter {
    version: RdbVersion,
    crc: Digest,
    bytes: u64,
    db: Option<u32>,
}

impl RdbWriter {
    /// Begins an RDB of that version: `REDIS0006` to `REDIS0014`, or `VALKEY080`. For Valkey 7.2 to 8.1 it is `REDIS0011`.
    pub fn new(version: RdbVersion, out: &mut Vec<u8>) -> Result<Self, ErrorKind> {
        let known = match version.product {
            Product::Redis => (OLDEST..=NEWEST_REDIS).contains(&version.number),
            Product::Valkey => version.number == VALKEY,
        };
        if !known {
            return Err(ErrorKind::UnknownVersion(version));
        }
        let mut writer = Self { version, crc: Digest::new(CrcAlgorithm::Crc64Redis), bytes: 0, db: None };
        writer.append(out, |out| out.extend_from_slice(version.to_string().as_bytes()));
        Ok(writer)
    }

    /// The version that is written.
    pub const fn version(&self) -> RdbVersion {
        self.version
    }

    /// How many bytes have been written.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    fn append(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        let from = out.len();
        write(out);
        let new = out.get(from..).unwrap_or_default();
        self.crc.update(new);
        self.bytes = self.bytes.saturating_add(wide(new.len()));
    }

    const fn is_at_least(&self, number: u16) -> bool {
        self.version.number >= number
    }

    /// An auxiliary field; nothing before version 7.
    pub fn aux(&mut self, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if self.is_at_least(7) {
            self.append(out, |out| {
                out.push(0xfa);
                push_string(out, key);
                push_string(out, value);
            });
        }
    }

    /// A function library. [`ErrorKind::NoEquivalent`] before version 10.
    pub fn function(&mut self, source: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        if !self.is_at_least(10) {
            return Err(ErrorKind::NoEquivalent { what: "a function library", target: self.version });
        }
        self.append(out, |out| {
            out.push(0xf5);
            push_blob(out, source);
        });
        Ok(())
    }

    /// Says that the keys that follow are in that database; nothing if the last ones were too.
    pub fn select_db(&mut self, db: u32, out: &mut Vec<u8>) {
        if self.db != Some(db) {
            self.db = Some(db);
            self.append(out, |out| {
                out.push(0xfe);
                push_length(out, u64::from(db));
            });
        }
    }

    /// How many keys the database has, and how many of them expire: a hint, for which loaders reserve memory. Nothing before version 7.
    pub fn resize_db(&mut self, keys: u64, expires: u64, out: &mut Vec<u8>) {
        if self.is_at_least(7) {
            self.append(out, |out| {
                out.push(0xfb);
                push_length(out, keys);
                push_length(out, expires);
            });
        }
    }

    /// How many keys the slot that follows has: a hint. Nothing in versions that no server reads it in (Redis 7.4 and Valkey
    /// 9.0 do).
    pub fn slot_info(&mut self, slot: Slot, keys: u64, expires: u64, out: &mut Vec<u8>) {
        if self.is_at_least(12) {
            self.append(out, |out| {
                out.push(0xf4);
                push_length(out, u64::from(slot.number()));
                push_length(out, keys);
                push_length(out, expires);
            });
        }
    }

    /// A key; its value's bytes follow by [`Self::value_bytes`]. [`ErrorKind::NoEquivalent`] if the version lacks the encoding.
    pub fn key(&mut self, head: &KeyHead<'_>, out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        self.check(head.value_type)?;
        self.append_attributes(head, out);
        self.append_key(head, out);
        Ok(())
    }

    /// A key with metadata of modules, as it stood in an RDB of a version with the same opcode.
    pub(crate) fn key_with_meta(
        &mut self,
        head: &KeyHead<'_>,
        meta: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorKind> {
        self.check(head.value_type)?;
        self.append_attributes(head, out);
        self.raw(meta, out);
        self.append_key(head, out);
        Ok(())
    }

    fn check(&self, value_type: ValueType) -> Result<(), ErrorKind> {
        if !value_type.exists_in(self.version) {
            let what = "a value of this encoding";
            return Err(ErrorKind::NoEquivalent { what, target: self.version });
        }
        Ok(())
    }

    fn append_attributes(&mut self, head: &KeyHead<'_>, out: &mut Vec<u8>) {
        let eviction = self.is_at_least(9);
        self.append(out, |out| {
            if let Some(expiry_ms) = head.expiry_ms {
                out.push(0xfc);
                out.extend_from_slice(&expiry_ms.to_le_bytes());
            }
            if let Some(idle_s) = head.idle_s.filter(|_| eviction) {
                out.push(0xf8);
                push_length(out, idle_s);
            }
            if let Some(freq) = head.freq.filter(|_| eviction) {
                out.extend_from_slice(&[0xf9, freq]);
            }
        });
    }

    fn append_key(&mut self, head: &KeyHead<'_>, out: &mut Vec<u8>) {
        self.append(out, |out| {
            out.push(head.value_type.byte());
            push_string(out, head.key);
        });
    }

    /// Bytes of the value of the key before.
    pub fn value_bytes(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.append(out, |out| out.extend_from_slice(bytes));
    }

    /// A whole record that stood in an RDB of a version with the same opcode.
    pub(crate) fn raw(&mut self, record: &[u8], out: &mut Vec<u8>) {
        self.append(out, |out| out.extend_from_slice(record));
    }

    /// Takes note of bytes that were appended to `out` after position `from` by others.
    pub(crate) fn note(&mut self, from: usize, out: &[u8]) {
        let new = out.get(from..).unwrap_or_default();
        self.crc.update(new);
        self.bytes = self.bytes.saturating_add(wide(new.len()));
    }

    /// Ends the RDB; gives its length in bytes and its CRC64.
    pub fn finish(mut self, out: &mut Vec<u8>) -> (u64, u64) {
        self.append(out, |out| out.push(0xff));
        let crc = self.crc.finalize();
        out.extend_from_slice(&crc.to_le_bytes());
        (self.bytes.saturating_add(8), crc)
    }
}
