//! What a [`crate::Parser`] gives.

use slotkeep_model::{RdbVersion, Slot, SlotRange};

use crate::types::ValueType;
use crate::value::Element;

/// A key, with what stands before its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHeader<'a> {
    /// The database.
    pub db: u32,
    /// The key.
    pub key: &'a [u8],
    /// When it expires, in ms since the epoch.
    pub expiry_ms: Option<i64>,
    /// How long it had been idle, in seconds, under an LRU policy.
    pub idle_s: Option<u64>,
    /// Its use counter under an LFU policy.
    pub freq: Option<u8>,
    /// Whether modules attached metadata (Redis 8.6), which lies between `offset` and the type byte and is not decoded.
    pub has_meta: bool,
    /// The encoding of its value.
    pub value_type: ValueType,
    /// Offset of the record's first byte: of its first attribute, or of the type byte if it has none.
    pub offset: u64,
    /// Offset of the value's first byte.
    pub value_offset: u64,
}

/// A piece of an RDB.
///
/// A key gives [`Event::Key`], then its value as [`Event::ValueBytes`] or [`Event::Element`]s, then [`Event::KeyEnd`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The magic was read.
    Start(RdbVersion),
    /// An auxiliary field; unknown ones are to be ignored.
    Aux {
        /// Its name.
        key: &'a [u8],
        /// Its value; an integer comes as its decimal text.
        value: &'a [u8],
    },
    /// Data of a module outside any key, which was passed over.
    ModuleAux {
        /// The module type's id.
        module_id: u64,
        /// 1 before the keys, 2 after them.
        when: u64,
    },
    /// A function library.
    Function {
        /// Its source, with the `#!engine name=…` line.
        source: &'a [u8],
    },
    /// The keys that follow are in this database.
    SelectDb(u32),
    /// How many keys the database has; a hint.
    ResizeDb {
        /// Keys.
        keys: u64,
        /// Keys that expire.
        expires: u64,
    },
    /// How many keys the slot that follows has; a hint.
    SlotInfo {
        /// The slot.
        slot: Slot,
        /// Keys.
        keys: u64,
        /// Keys that expire.
        expires: u64,
    },
    /// Slots that were being imported (Valkey 9.0): their keys are not yet this shard's.
    SlotImport {
        /// The job's name.
        job: &'a [u8],
        /// The slots.
        ranges: &'a [SlotRange],
    },
    /// A key; its value follows.
    Key(KeyHeader<'a>),
    /// Bytes of the value, at [`crate::Level::Raw`]; all of them in a row are what `DUMP` has between type byte and footer.
    ValueBytes(&'a [u8]),
    /// A piece of the value, at [`crate::Level::Element`]; never [`Element::End`].
    Element(Element<'a>),
    /// The key's value is complete.
    KeyEnd {
        /// Offset of the first byte after the record.
        end_offset: u64,
    },
    /// The end of the RDB.
    End {
        /// The CRC64 it carries; 0 if none was computed.
        crc: u64,
    },
}
