//! What a value is made of.

use core::fmt;

/// The id of a stream entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Milliseconds since the epoch, or whatever the writer chose.
    pub ms: u64,
    /// The number within the millisecond.
    pub seq: u64,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// What a stream knows about itself, after its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// Entries that live.
    pub length: u64,
    /// The id given last.
    pub last_id: StreamId,
    /// The first id that lives. Absent before type 19.
    pub first_id: Option<StreamId>,
    /// The highest id that was deleted. Absent before type 19.
    pub max_deleted_id: Option<StreamId>,
    /// Entries ever added. Absent before type 19.
    pub entries_added: Option<u64>,
}

/// Which bytes of a value an [`Element::Bytes`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The value of a string.
    String,
    /// An item of a list; first to last.
    Item,
    /// A member of a set or sorted set; in a sorted set [`Element::Score`] follows.
    Member,
    /// A field of a hash; its value follows.
    Field,
    /// The value of the field before; [`Element::FieldExpiry`] follows if the field has one.
    Value,
    /// A field of a stream entry; its value follows.
    StreamField,
    /// The value of the stream field before.
    StreamValue,
    /// The name of a consumer group; [`Element::Group`] follows.
    GroupName,
    /// The name of a consumer; [`Element::Consumer`] follows.
    ConsumerName,
    /// The id of a producer (idempotent production).
    ProducerId,
    /// A producer's id of an entry; [`Element::ProducedEntry`] follows.
    ProducedId,
    /// A string that a module saved.
    ModuleString,
    /// An element of an array, after its [`Element::ArrayIndex`].
    ArrayString,
}

/// A piece of a value. Integers that an encoding packs come as their decimal text.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Element<'a> {
    /// Bytes of the value, or a part of them: `last` says whether they end here. At most 64 KiB always come whole.
    Bytes {
        /// What they are.
        part: Part,
        /// The bytes, or a part of them.
        bytes: &'a [u8],
        /// Whether they end here.
        last: bool,
    },
    /// The score of the member before; never NaN.
    Score(f64),
    /// When the field before expires, in ms since the epoch.
    FieldExpiry(i64),
    /// An entry of a stream, with so many pairs of field and value, which follow. Deleted entries are left out.
    StreamEntry {
        /// Its id.
        id: StreamId,
        /// How many pairs follow.
        fields: u64,
    },
    /// What a stream knows about itself, after its entries.
    StreamInfo(StreamInfo),
    /// A consumer group, after its name.
    Group {
        /// The id delivered last.
        last_id: StreamId,
        /// How many entries the group has read, if the server knows it.
        entries_read: Option<u64>,
    },
    /// An entry that was delivered to the group and not acknowledged; its owner is named later.
    GroupPending {
        /// The entry's id.
        id: StreamId,
        /// When it was delivered last, in ms since the epoch.
        delivery_time_ms: i64,
        /// How often it was delivered.
        deliveries: u64,
    },
    /// A consumer, after its name.
    Consumer {
        /// When it was last seen, in ms since the epoch.
        seen_ms: i64,
        /// When it last got entries; absent before type 21, or if it never did.
        active_ms: Option<i64>,
    },
    /// A pending entry that the consumer before owns.
    ConsumerPending(StreamId),
    /// A pending entry of the group that no consumer owns (Redis 8.8).
    GroupReleased(StreamId),
    /// Settings of idempotent production (Redis 8.6).
    Idempotence {
        /// How long ids are remembered, in seconds.
        duration_s: u64,
        /// How many ids are remembered for a producer.
        max_entries: u64,
    },
    /// The entry that a producer's id stands for.
    ProducedEntry(StreamId),
    /// Counters of idempotent production.
    IdempotenceCounters {
        /// Ids added.
        added: u64,
        /// Ids that came twice.
        duplicates: u64,
    },
    /// The id of a module's type: nine characters of 6 bits and a version of 10.
    ModuleId(u64),
    /// A signed integer that a module saved.
    ModuleSigned(i64),
    /// An unsigned integer that a module saved.
    ModuleUnsigned(u64),
    /// A float that a module saved, as its bits.
    ModuleFloat(u32),
    /// A double that a module saved, as its bits.
    ModuleDouble(u64),
    /// What an array knows about itself, before its elements.
    ArrayInfo {
        /// How many elements follow.
        count: u64,
        /// Where the next insertion goes, if that was ever set.
        insert_index: Option<u64>,
    },
    /// The index of the array element that follows.
    ArrayIndex(u64),
    /// An array element that is a double.
    ArrayDouble(f64),
    /// The value is complete.
    End,
}
