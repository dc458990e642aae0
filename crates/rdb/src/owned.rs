//! Values held whole: what a value is, whatever its encoding.
//!
//! A [`ValueBuilder`] gathers the elements of one value; a [`Reader`] does that for a whole RDB. Neither is of constant memory, so
//! both take a limit: a value longer than that is an error, found as soon as it is passed, never a value cut short. The
//! limit counts the bytes of all strings and the size of what holds them; as vectors grow by doubling, about twice the
//! limit may be held for a moment.
//!
//! Order is that of the RDB. Two values of the same digest can therefore differ here in the order of members or fields.

use crate::error::ErrorKind;
use crate::types::LogicalType;
use crate::value::{StreamId, StreamInfo};

mod builder;
mod encode;
mod reader;

pub use builder::ValueBuilder;
pub(crate) use encode::{LOWEST_EXPIRY_MS, STREAM_TYPES, stream_generation, ttl_of};
pub use reader::{OwnedEvent, Reader, Record};

/// A value, whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    String(Vec<u8>),
    /// A list, first item first.
    List(Vec<Vec<u8>>),
    /// A set.
    Set(Vec<Vec<u8>>),
    /// A sorted set: members with their scores, which are never NaN.
    Zset(Vec<(Vec<u8>, f64)>),
    /// A hash.
    Hash(Vec<HashField>),
    /// A stream.
    Stream(Box<Stream>),
    /// A module's value, not interpreted.
    Module(ModuleValue),
    /// An array (Redis 8.8).
    Array(Array),
}

impl Value {
    /// What the value is to a user.
    pub const fn logical(&self) -> LogicalType {
        match self {
            Self::String(_) => LogicalType::String,
            Self::List(_) => LogicalType::List,
            Self::Set(_) => LogicalType::Set,
            Self::Zset(_) => LogicalType::Zset,
            Self::Hash(_) => LogicalType::Hash,
            Self::Stream(_) => LogicalType::Stream,
            Self::Module(_) => LogicalType::Module,
            Self::Array(_) => LogicalType::Array,
        }
    }

    fn empty(logical: LogicalType) -> Self {
        match logical {
            LogicalType::String => Self::String(Vec::new()),
            LogicalType::List => Self::List(Vec::new()),
            LogicalType::Set => Self::Set(Vec::new()),
            LogicalType::Zset => Self::Zset(Vec::new()),
            LogicalType::Hash => Self::Hash(Vec::new()),
            LogicalType::Stream => Self::Stream(Box::default()),
            LogicalType::Module => Self::Module(ModuleValue::default()),
            LogicalType::Array => Self::Array(Array::default()),
        }
    }
}

/// A field of a hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashField {
    /// Its name.
    pub field: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// When it expires, in ms since the epoch.
    pub expiry_ms: Option<i64>,
}

/// A stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The entries that live, in the order of their ids.
    pub entries: Vec<StreamEntry>,
    /// What the stream knows about itself.
    pub info: StreamInfo,
    /// Its consumer groups.
    pub groups: Vec<Group>,
    /// Idempotent production; absent before type 26.
    pub idempotence: Option<Idempotence>,
}

/// An entry of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its id.
    pub id: StreamId,
    /// Fields and their values.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Vec<u8>,
    /// The id delivered last.
    pub last_id: StreamId,
    /// How many entries the group has read, if the server knew it.
    pub entries_read: Option<u64>,
    /// Entries delivered and not acknowledged.
    pub pending: Vec<Pending>,
    /// Its consumers, with what each owns of `pending`.
    pub consumers: Vec<Consumer>,
    /// What of `pending` no consumer owns (Redis 8.8).
    pub released: Vec<StreamId>,
}

/// An entry that was delivered and not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The entry's id.
    pub id: StreamId,
    /// When it was delivered last, in ms since the epoch.
    pub delivery_time_ms: i64,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// A consumer of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: Vec<u8>,
    /// When it was last seen, in ms since the epoch.
    pub seen_ms: i64,
    /// When it last got entries; absent before type 21, or if it never did.
    pub active_ms: Option<i64>,
    /// The pending entries it owns.
    pub pending: Vec<StreamId>,
}

/// Idempotent production (Redis 8.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotence {
    /// How long ids are remembered, in seconds.
    pub duration_s: u64,
    /// How many ids are remembered for a producer.
    pub max_entries: u64,
    /// Producers, with the ids that are remembered of them.
    pub producers: Vec<Producer>,
    /// Ids ever added.
    pub added: u64,
    /// Ids that came twice.
    pub duplicates: u64,
}

impl Default for Idempotence {
    fn default() -> Self {
        let (duration_s, max_entries) = crate::digest::IDEMPOTENCE_DEFAULTS;
        Self { duration_s, max_entries, producers: Vec::new(), added: 0, duplicates: 0 }
    }
}

/// A producer and the ids that are remembered of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producer {
    /// The producer's id.
    pub id: Vec<u8>,
    /// Its own ids, and the entry each stands for.
    pub entries: Vec<(Vec<u8>, StreamId)>,
}

/// What a module saved, not interpreted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleValue {
    /// The id of the module's type; see [`crate::module_name`].
    pub id: u64,
    /// What it saved, in order.
    pub parts: Vec<ModulePart>,
}

/// One thing that a module saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModulePart {
    /// A signed integer.
    Signed(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// A float, as its bits.
    Float(u32),
    /// A double, as its bits.
    Double(u64),
    /// A string.
    String(Vec<u8>),
}

/// An array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    /// Where the next insertion goes, if that was ever set.
    pub insert_index: Option<u64>,
    /// Indexes and what is there; ascending.
    pub elements: Vec<(u64, ArrayElement)>,
}

/// An element of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayElement {
    /// A string; integers come as their decimal text.
    String(Vec<u8>),
    /// A double.
    Double(f64),
}

/// Counts what a value holds against a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    limit_bytes: u64,
    used_bytes: u64,
}

impl Budget {
    pub(crate) const fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: 0 }
    }

    pub(crate) const fn reset(&mut self) {
        self.used_bytes = 0;
    }

    pub(crate) const fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Takes that many bytes, or says that the limit is passed.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), ErrorKind> {
        self.used_bytes = self.used_bytes.saturating_add(crate::primitive::wide(bytes));
        if self.used_bytes > self.limit_bytes {
            return Err(ErrorKind::ValueTooLarge { limit_bytes: self.limit_bytes });
        }
        Ok(())
    }
}
