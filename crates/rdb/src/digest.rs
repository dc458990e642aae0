//! Digests of keys: the logical value, independent of encoding, version and chunking (`DESIGN` §5).
//!
//! # Serialisation
//!
//! `H` is XXH3-128 with seed 0, its result a number; numbers are little-endian, a hash has 16 bytes. All records hold fixed
//! numbers of bytes, so no two datasets share a serialisation.
//!
//! ```text
//! key hash     = H( db u32, type u8, expires u8 (0 or 1), expiry ms i64 (0 if none), H(key), value digest )
//! type         = 1 string, 2 list, 3 set, 4 zset, 5 hash, 6 stream, 7 module, 8 array
//!
//! value digest:
//!   string     = H( bytes )
//!   list       = H( H(item) of every item in order )
//!   set        = H( sum of H(member) mod 2^128, count u64 )
//!   zset       = H( sum of H( H(member), score f64 ) mod 2^128, count u64 ), score -0 taken as +0
//!   hash       = H( sum of H( H(field), H(value), field expiry ms i64, -1 if none ) mod 2^128, count u64 )
//!   stream     = H( records in the order of the RDB, which is that of ids and names ):
//!                'e' id fields u64, then H(field) H(value) for each   an entry that lives
//!                'i' length u64, last id, highest deleted id, entries added u64
//!                'g' H(name) last id                                  a group
//!                'c' H(name)                                          a consumer of the group before that has pending entries
//!                'p' id                                               a pending entry of the consumer before
//!                'n' id                                               a pending entry of the group without consumer
//!                'm' duration s u64, entries u64                      settings of idempotent production
//!                (an id is ms u64, seq u64)
//!   module     = H( records ): 'd' id u64; 's' i64; 'u' u64; 'f' bits u32; 'b' bits u64; 't' H(string)
//!   array      = H( records ): 'h' count u64, set u8, insert index u64; 'x' index u64, then 't' H(string) or 'b' bits u64
//!
//! function     = H( source )
//! fingerprint  = low 16 bits of XXH3-64 of the key with the number of its database as the seed
//! ```
//!
//! Integers that an encoding packs stand for their decimal text.
//!
//! # Left out
//!
//! - idle time, use counter (LRU, LFU): eviction's own, not replicated;
//! - metadata that modules attach to keys, and modules' data outside keys: not decoded;
//! - a group's `entries_read`: type 15 has none and loaders estimate it, and servers before Redis 7.2.5 do not replicate every
//!   change of it;
//! - delivery time and delivery count of pending entries: reading one's own pending entries again (`XREADGROUP` with an id)
//!   changes both and is not replicated;
//! - consumers that own no pending entry: `XAUTOCLAIM` that claims nothing creates its consumer on the primary only (seen on
//!   Valkey 9.1);
//! - a consumer's seen and active times: a replica sets them by its own clock; before type 21 there is no active time;
//! - a stream's first id: it follows from the entries;
//! - producers and their remembered ids, and the counters of them: they run out by the clock of each server. Of idempotent
//!   production the settings are digested, if they are not the servers' own (100 s, 100 entries), which types before 26 imply.
//!
//! A type 15 stream is digested as Redis 7.0 loads it: nothing deleted, and as many entries added as there are. Empty lists, sets, sorted
//! sets and hashes are not counted in a [`DatasetDigest`], for every loader drops them.

use slotkeep_model::{DatasetDigest, Slot, SlotDigest, key_slot};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::parser::{Event, KeyHeader};
use crate::types::LogicalType;
use crate::value::{Element, Part, StreamId, StreamInfo};

mod hasher;

use hasher::{PartHasher, Records};

/// Settings of idempotent production where nobody set any: seconds, entries.
pub(crate) const IDEMPOTENCE_DEFAULTS: (u64, u64) = (100, 100);

/// A key's digest, and where its record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDigest {
    /// The database.
    pub db: u32,
    /// The key's slot.
    pub slot: Slot,
    /// What the value is.
    pub logical: LogicalType,
    /// When the key expires, in ms since the epoch.
    pub expiry_ms: Option<i64>,
    /// Items, members, fields, entries, or strings and numbers of a module; 1 for a string.
    pub elements: u64,
    /// The value's digest.
    pub value: u128,
    /// The key's hash: what is summed.
    pub hash: u128,
    /// Offset of the record's first byte.
    pub offset: u64,
    /// Offset of the first byte after it.
    pub end_offset: u64,
    /// See [`key_fingerprint`].
    pub fingerprint: u16,
}

impl KeyDigest {
    /// Whether loaders drop the key because its collection is empty.
    pub const fn is_empty_collection(&self) -> bool {
        let droppable = matches!(
            self.logical,
            LogicalType::List | LogicalType::Set | LogicalType::Zset | LogicalType::Hash
        );
        droppable && self.elements == 0
    }

    /// Takes the key into a dataset's digest, unless it is an empty collection.
    pub fn add_to(&self, dataset: &mut DatasetDigest) {
        if !self.is_empty_collection() {
            dataset.slot_mut(self.slot).add_key(self.hash);
        }
    }
}

/// 16 bits that, with its slot, find a key in an index: the low ones of XXH3-64 of the key, seeded with its database.
pub fn key_fingerprint(db: u32, key: &[u8]) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
    {
        xxh3_64_with_seed(key, u64::from(db)) as u16
    }
}

/// The hash of a function library.
pub fn function_hash(source: &[u8]) -> u128 {
    xxh3_128(source)
}

/// Digests the events of a [`crate::Parser`] at [`crate::Level::Element`].
///
/// Events of the raw level give no digests.
pub struct Digester {
    key: Vec<u8>,
    head: Head,
    part: PartHasher,
    records: Records,
    sum: u128,
    elements: u64,
    /// Hash of a string's value, or of a member or field whose score or value is still to come.
    held: u128,
    /// Hash of the value of the field in `held`, if both are complete.
    held_value: Option<u128>,
    /// Hash of the name of a consumer none of whose pending entries was seen yet.
    consumer: Option<u128>,
    functions: SlotDigest,
}

#[derive(Clone, Copy)]
struct Head {
    db: u32,
    slot: Slot,
    logical: LogicalType,
    expiry_ms: Option<i64>,
    offset: u64,
    key_hash: u128,
    fingerprint: u16,
}

impl Default for Digester {
    fn default() -> Self {
        Self::new()
    }
}

impl Digester {
    /// A digester that has seen nothing.
    pub fn new() -> Self {
        Self {
            key: Vec::new(),
            head: Head {
                db: 0,
                slot: key_slot(&[]),
                logical: LogicalType::String,
                expiry_ms: None,
                offset: 0,
                key_hash: 0,
                fingerprint: 0,
            },
            part: PartHasher::new(),
            records: Records::new(),
            sum: 0,
            elements: 0,
            held: 0,
            held_value: None,
            consumer: None,
            functions: SlotDigest::default(),
        }
    }

    /// The key that was begun last: that of the digest just given.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The digest of the function libraries seen so far.
    pub const fn functions(&self) -> SlotDigest {
        self.functions
    }

    /// Takes in an event; gives a key's digest at its [`Event::KeyEnd`].
    #[inline]
    pub fn event(&mut self, event: &Event<'_>) -> Option<KeyDigest> {
        match event {
            Event::Element(element) => self.element(element),
            Event::Key(header) => self.begin(header),
            Event::KeyEnd { end_offset } => return Some(self.end(*end_offset)),
            Event::Function { source } => self.functions.add_key(function_hash(source)),
            _ => {}
        }
        None
    }

    fn begin(&mut self, header: &KeyHeader<'_>) {
        self.key.clear();
        self.key.extend_from_slice(header.key);
        self.head = Head {
            db: header.db,
            slot: key_slot(header.key),
            logical: header.value_type.logical(),
            expiry_ms: header.expiry_ms,
            offset: header.offset,
            key_hash: xxh3_128(header.key),
            fingerprint: key_fingerprint(header.db, header.key),
        };
        self.sum = 0;
        self.elements = 0;
        self.held_value = None;
        self.records.clear();
    }

    #[inline]
    fn element(&mut self, element: &Element<'_>) {
        match *element {
            Element::Bytes { part, bytes, last } => {
                if let Some(hash) = self.part.add(bytes, last) {
                    self.part(part, hash);
                }
            }
            Element::Score(score) => {
                let score = if score == 0.0 { 0.0 } else { score };
                let hash = pair_hash(self.held, score.to_bits());
                self.sum = self.sum.wrapping_add(hash);
                self.elements += 1;
            }
            Element::FieldExpiry(expiry_ms) => self.end_field(expiry_ms),
            _ => self.rare(element),
        }
    }

    #[inline]
    fn part(&mut self, part: Part, hash: u128) {
        match part {
            Part::Field => {
                self.end_field(-1);
                self.held = hash;
            }
            Part::Value => self.held_value = Some(hash),
            Part::Member if self.head.logical == LogicalType::Zset => self.held = hash,
            Part::Member => {
                self.sum = self.sum.wrapping_add(hash);
                self.elements += 1;
            }
            Part::String => {
                self.held = hash;
                self.elements += 1;
            }
            Part::Item => {
                self.records.hash(hash);
                self.elements += 1;
            }
            Part::StreamField | Part::StreamValue => self.records.hash(hash),
            Part::GroupName => self.records.tagged_hash(b'g', hash),
            Part::ConsumerName => self.consumer = Some(hash),
            Part::ModuleString => {
                self.elements += 1;
                self.records.tagged_hash(b't', hash);
            }
            Part::ArrayString => self.records.tagged_hash(b't', hash),
            Part::ProducerId | Part::ProducedId => {}
        }
    }

    /// Adds the field that is held, if there is one.
    #[inline]
    fn end_field(&mut self, expiry_ms: i64) {
        if let Some(value) = self.held_value.take() {
            self.sum = self.sum.wrapping_add(field_hash(self.held, value, expiry_ms));
            self.elements += 1;
        }
    }

    fn rare(&mut self, element: &Element<'_>) {
        let records = &mut self.records;
        match *element {
            Element::StreamEntry { id, fields } => {
                self.elements += 1;
                records.tag(b'e');
                push_id(records, id);
                records.number(fields);
            }
            Element::StreamInfo(info) => push_info(records, info),
            Element::Group { last_id, .. } => push_id(records, last_id),
            Element::ConsumerPending(id) => {
                if let Some(name) = self.consumer.take() {
                    records.tagged_hash(b'c', name);
                }
                records.tag(b'p');
                push_id(records, id);
            }
            Element::GroupReleased(id) => {
                records.tag(b'n');
                push_id(records, id);
            }
            Element::Idempotence { duration_s, max_entries }
                if (duration_s, max_entries) != IDEMPOTENCE_DEFAULTS =>
            {
                records.tagged(b'm', duration_s);
                records.number(max_entries);
            }
            Element::ModuleId(id) => records.tagged(b'd', id),
            Element::ModuleSigned(number) => {
                self.elements += 1;
                records.tagged(b's', number.cast_unsigned());
            }
            Element::ModuleUnsigned(number) => {
                self.elements += 1;
                records.tagged(b'u', number);
            }
            Element::ModuleFloat(bits) => {
                self.elements += 1;
                records.tag(b'f');
                records.bytes(&bits.to_le_bytes());
            }
            Element::ModuleDouble(bits) => {
                self.elements += 1;
                records.tagged(b'b', bits);
            }
            Element::ArrayInfo { count, insert_index } => {
                records.tagged(b'h', count);
                records.tag(u8::from(insert_index.is_some()));
                records.number(insert_index.unwrap_or(0));
            }
            Element::ArrayIndex(index) => {
                self.elements += 1;
                records.tagged(b'x', index);
            }
            Element::ArrayDouble(number) => records.tagged(b'b', number.to_bits()),
            _ => {}
        }
    }

    fn value(&mut self) -> u128 {
        match self.head.logical {
            LogicalType::String => self.held,
            LogicalType::Set | LogicalType::Zset => pair_hash(self.sum, self.elements),
            LogicalType::Hash => {
                self.end_field(-1);
                pair_hash(self.sum, self.elements)
            }
            _ => self.records.finish(),
        }
    }

    fn end(&mut self, end_offset: u64) -> KeyDigest {
        let value = self.value();
        let Head { db, slot, logical, expiry_ms, offset, key_hash, fingerprint } = self.head;
        let mut bytes = [0; KEY_RECORD_BYTES];
        fill(
            &mut bytes,
            &[
                &db.to_le_bytes(),
                &[logical.code(), u8::from(expiry_ms.is_some())],
                &expiry_ms.unwrap_or(0).to_le_bytes(),
                &key_hash.to_le_bytes(),
                &value.to_le_bytes(),
            ],
        );
        let hash = xxh3_128(&bytes);
        let elements = self.elements;
        KeyDigest { db, slot, logical, expiry_ms, elements, value, hash, offset, end_offset, fingerprint }
    }
}

const KEY_RECORD_BYTES: usize = 4 + 1 + 1 + 8 + 16 + 16;

/// Writes pieces one after another; they must fill the buffer.
#[inline]
fn fill<const N: usize>(buffer: &mut [u8; N], pieces: &[&[u8]]) {
    let mut rest: &mut [u8] = buffer;
    for piece in pieces {
        let Some((place, after)) = rest.split_at_mut_checked(piece.len()) else { return };
        place.copy_from_slice(piece);
        rest = after;
    }
}

#[inline]
fn pair_hash(hash: u128, number: u64) -> u128 {
    let mut bytes = [0; 24];
    fill(&mut bytes, &[&hash.to_le_bytes(), &number.to_le_bytes()]);
    xxh3_128(&bytes)
}

#[inline]
fn field_hash(field: u128, value: u128, expiry_ms: i64) -> u128 {
    let mut bytes = [0; 40];
    fill(&mut bytes, &[&field.to_le_bytes(), &value.to_le_bytes(), &expiry_ms.to_le_bytes()]);
    xxh3_128(&bytes)
}

fn push_id(records: &mut Records, id: StreamId) {
    records.number(id.ms);
    records.number(id.seq);
}

fn push_info(records: &mut Records, info: StreamInfo) {
    records.tagged(b'i', info.length);
    push_id(records, info.last_id);
    push_id(records, info.max_deleted_id.unwrap_or_default());
    records.number(info.entries_added.unwrap_or(info.length));
}

#[cfg(test)]
mod tests;
