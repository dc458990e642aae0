//! Streams: nodes of packed entries, then the stream's own facts, its groups, and idempotent production.
//!
//! Source: `rdbSaveObject` in `src/rdb.c` and `src/t_stream.c` of Redis 5.0 to 8.8.
//!
//! Invariant: `shared` and `shared_ends` hold the field names of the node being read and nothing older.

use crate::blob::Layout;
use crate::error::ErrorKind;
use crate::primitive::{Decoded, Flow, fixed, length, length_pair, wide};
use crate::types::ValueType;
use crate::value::{Decoder, Element, Item, ItemFlow, Part, Source, State, StreamId, StreamInfo};

mod node;

/// Where in the value.
#[derive(Clone, Copy)]
enum Phase {
    Nodes,
    NextNode,
    NodeKey,
    Node,
    Length,
    LastId,
    FirstId,
    MaxDeletedId,
    EntriesAdded,
    GiveInfo,
    Groups,
    NextGroup,
    GroupName,
    GroupLastId,
    EntriesRead,
    GiveGroup,
    PendingCount,
    NextPending,
    Pending,
    ConsumerCount,
    NextConsumer,
    ConsumerName,
    Consumer,
    OwnedCount,
    NextOwned,
    Owned,
    ReleasedCount,
    NextReleased,
    Released,
    Idempotence,
    ProducerCount,
    NextProducer,
    ProducerName,
    ProducedCount,
    NextProduced,
    ProducedName,
    ProducedEntry,
    Counters,
}

/// Where in a node.
#[derive(Clone, Copy)]
enum Place {
    Count,
    Deleted,
    FieldCount,
    SharedField,
    MasterEnd,
    Flags,
    Ms,
    Seq,
    OwnFieldCount,
    Field,
    Value,
    EntryEnd,
}

pub(super) struct StreamState {
    phase: Phase,
    /// The type's own number among the stream types, 1 to 5.
    generation: u8,
    nodes: u64,
    outer: u64,
    inner: u64,
    info: StreamInfo,
    group_last_id: StreamId,
    entries_read: Option<u64>,
    place: Place,
    master_id: StreamId,
    id: StreamId,
    flags: i64,
    /// Fields of the node's master entry.
    master_fields: u64,
    /// Fields of the entry not yet begun.
    fields_left: u64,
    /// Live and deleted entries of the node, by its head.
    live: u64,
    deleted: u64,
    shared: Vec<u8>,
    shared_ends: Vec<usize>,
    /// Which shared field name comes next.
    next_shared: usize,
    /// The field name before a value has been given.
    named: bool,
}

impl StreamState {
    pub(super) const fn new() -> Self {
        Self {
            phase: Phase::Nodes,
            generation: 1,
            nodes: 0,
            outer: 0,
            inner: 0,
            info: StreamInfo {
                length: 0,
                last_id: StreamId { ms: 0, seq: 0 },
                first_id: None,
                max_deleted_id: None,
                entries_added: None,
            },
            group_last_id: StreamId { ms: 0, seq: 0 },
            entries_read: None,
            place: Place::Count,
            master_id: StreamId { ms: 0, seq: 0 },
            id: StreamId { ms: 0, seq: 0 },
            flags: 0,
            master_fields: 0,
            fields_left: 0,
            live: 0,
            deleted: 0,
            shared: Vec::new(),
            shared_ends: Vec::new(),
            next_shared: 0,
            named: false,
        }
    }

    pub(super) fn begin(&mut self, value_type: ValueType) {
        self.phase = Phase::Nodes;
        self.info = StreamInfo::default();
        self.generation = match value_type {
            ValueType::StreamListpacks => 1,
            ValueType::StreamListpacks2 => 2,
            ValueType::StreamListpacks3 => 3,
            ValueType::StreamListpacks4 => 4,
            _ => 5,
        };
    }

    pub(super) fn shared(&self, from: usize, to: usize) -> &[u8] {
        self.shared.get(from..to).unwrap_or_default()
    }
}

/// An id as two lengths.
fn id_lengths(bytes: &[u8]) -> Decoded<StreamId> {
    Ok(length_pair(bytes)?.map(|((ms, seq), used)| (StreamId { ms, seq }, used)))
}

/// An id as 16 bytes, big-endian.
fn raw_id(bytes: &[u8]) -> Decoded<StreamId> {
    Ok(fixed::<16>(bytes)?.map(|(raw, used)| (id_of(raw), used)))
}

fn id_of(raw: [u8; 16]) -> StreamId {
    let number = u128::from_be_bytes(raw);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    StreamId { ms: (number >> 64) as u64, seq: number as u64 }
}

fn pending(bytes: &[u8]) -> Decoded<(StreamId, i64, u64)> {
    let Some((head, _)) = fixed::<24>(bytes)? else { return Ok(None) };
    let Some((deliveries, used)) = length(bytes.get(24..).unwrap_or_default())? else { return Ok(None) };
    let Some((id, time)) = head.split_first_chunk::<16>() else { return Ok(None) };
    let time_ms = time.first_chunk().map(|time| i64::from_le_bytes(*time)).unwrap_or_default();
    Ok(Some(((id_of(*id), time_ms, deliveries), 24 + used)))
}

impl Decoder {
    #[inline(never)]
    pub(super) fn stream_step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        match self.stream.phase {
            Phase::Node => self.stream_node(input),
            Phase::NodeKey => self.stream_node_key(input),
            Phase::NextNode
            | Phase::NextGroup
            | Phase::NextPending
            | Phase::NextConsumer
            | Phase::NextOwned
            | Phase::NextReleased
            | Phase::NextProducer
            | Phase::NextProduced => {
                self.next_of_stream();
                Ok(Flow::Again)
            }
            Phase::GiveInfo => {
                self.stream.phase = Phase::Groups;
                Ok(self.give(Element::StreamInfo(self.stream.info)))
            }
            Phase::GiveGroup => {
                self.stream.phase = Phase::PendingCount;
                let (last_id, entries_read) = (self.stream.group_last_id, self.stream.entries_read);
                Ok(self.give(Element::Group { last_id, entries_read }))
            }
            Phase::GroupName => self.stream_name(Part::GroupName, Phase::GroupLastId, input),
            Phase::ConsumerName => self.stream_name(Part::ConsumerName, Phase::Consumer, input),
            Phase::ProducerName => self.stream_name(Part::ProducerId, Phase::ProducedCount, input),
            Phase::ProducedName => self.stream_name(Part::ProducedId, Phase::ProducedEntry, input),
            Phase::Pending => {
                let Some((id, delivery_time_ms, deliveries)) = self.carry.read(input, pending)? else {
                    return Ok(Flow::Need);
                };
                self.stream.phase = Phase::NextPending;
                Ok(self.give(Element::GroupPending { id, delivery_time_ms, deliveries }))
            }
            Phase::Consumer => self.stream_consumer(input),
            Phase::Owned | Phase::Released => self.stream_owned(input),
            Phase::LastId
            | Phase::FirstId
            | Phase::MaxDeletedId
            | Phase::GroupLastId
            | Phase::ProducedEntry
            | Phase::Idempotence
            | Phase::Counters => self.stream_pair(input),
            _ => self.stream_count(input),
        }
    }

    /// Goes to the next of a counted run, or to what follows the run.
    fn next_of_stream(&mut self) {
        let newest = self.stream.generation >= 5;
        let stream = &mut self.stream;
        let (count, more, done) = match stream.phase {
            Phase::NextNode => (&mut stream.nodes, Phase::NodeKey, Phase::Length),
            Phase::NextGroup => (&mut stream.nodes, Phase::GroupName, Phase::Idempotence),
            Phase::NextPending => (&mut stream.inner, Phase::Pending, Phase::ConsumerCount),
            Phase::NextConsumer => (
                &mut stream.outer,
                Phase::ConsumerName,
                if newest { Phase::ReleasedCount } else { Phase::NextGroup },
            ),
            Phase::NextOwned => (&mut stream.inner, Phase::Owned, Phase::NextConsumer),
            Phase::NextReleased => (&mut stream.inner, Phase::Released, Phase::NextGroup),
            Phase::NextProducer => (&mut stream.outer, Phase::ProducerName, Phase::Counters),
            _ => (&mut stream.inner, Phase::ProducedName, Phase::NextProducer),
        };
        if let Some(rest) = count.checked_sub(1) {
            *count = rest;
            stream.phase = more;
            self.string.begin();
            return;
        }
        if matches!(stream.phase, Phase::NextGroup) && stream.generation < 4 {
            self.state = State::End;
            return;
        }
        stream.phase = done;
    }

    fn stream_count<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let Some(number) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
        let stream = &mut self.stream;
        stream.phase = match stream.phase {
            Phase::Nodes => {
                stream.nodes = number;
                Phase::NextNode
            }
            Phase::Length => {
                stream.info.length = number;
                Phase::LastId
            }
            Phase::EntriesAdded => {
                stream.info.entries_added = Some(number);
                Phase::GiveInfo
            }
            Phase::Groups => {
                stream.nodes = number;
                Phase::NextGroup
            }
            Phase::EntriesRead => {
                stream.entries_read = (number != u64::MAX).then_some(number);
                Phase::GiveGroup
            }
            Phase::PendingCount => {
                stream.inner = number;
                Phase::NextPending
            }
            Phase::ConsumerCount => {
                stream.outer = number;
                Phase::NextConsumer
            }
            Phase::OwnedCount => {
                stream.inner = number;
                Phase::NextOwned
            }
            Phase::ReleasedCount => {
                stream.inner = number;
                Phase::NextReleased
            }
            Phase::ProducerCount => {
                stream.outer = number;
                Phase::NextProducer
            }
            _ => {
                stream.inner = number;
                Phase::NextProduced
            }
        };
        Ok(Flow::Again)
    }

    fn stream_pair<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let Some(id) = self.carry.read(input, id_lengths)? else { return Ok(Flow::Need) };
        let stream = &mut self.stream;
        let first_generation = stream.generation == 1;
        match stream.phase {
            Phase::LastId => {
                stream.info.last_id = id;
                stream.phase = if first_generation { Phase::GiveInfo } else { Phase::FirstId };
            }
            Phase::FirstId => {
                stream.info.first_id = Some(id);
                stream.phase = Phase::MaxDeletedId;
            }
            Phase::MaxDeletedId => {
                stream.info.max_deleted_id = Some(id);
                stream.phase = Phase::EntriesAdded;
            }
            Phase::GroupLastId => {
                stream.group_last_id = id;
                stream.entries_read = None;
                stream.phase = if first_generation { Phase::GiveGroup } else { Phase::EntriesRead };
            }
            Phase::ProducedEntry => {
                stream.phase = Phase::NextProduced;
                return Ok(self.give(Element::ProducedEntry(id)));
            }
            Phase::Idempotence => {
                stream.phase = Phase::ProducerCount;
                return Ok(self.give(Element::Idempotence { duration_s: id.ms, max_entries: id.seq }));
            }
            _ => {
                self.state = State::End;
                return Ok(self.give(Element::IdempotenceCounters { added: id.ms, duplicates: id.seq }));
            }
        }
        Ok(Flow::Again)
    }

    fn stream_consumer<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let (seen_ms, active_ms) = if self.stream.generation >= 3 {
            let Some(times) = self.carry.read(input, fixed::<16>)? else { return Ok(Flow::Need) };
            let [seen_ms, active_ms] = times_of(times);
            (seen_ms, (active_ms != -1).then_some(active_ms))
        } else {
            let Some(time) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
            (i64::from_le_bytes(time), None)
        };
        self.stream.phase = Phase::OwnedCount;
        Ok(self.give(Element::Consumer { seen_ms, active_ms }))
    }

    fn stream_owned<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let Some(id) = self.carry.read(input, raw_id)? else { return Ok(Flow::Need) };
        let element = if matches!(self.stream.phase, Phase::Owned) {
            self.stream.phase = Phase::NextOwned;
            Element::ConsumerPending(id)
        } else {
            self.stream.phase = Phase::NextReleased;
            Element::GroupReleased(id)
        };
        Ok(self.give(element))
    }

    fn stream_name<'i>(&mut self, part: Part, after: Phase, input: &mut &'i [u8]) -> ItemFlow<'i> {
        if self.skipping {
            if !self.string.skip(input)? {
                return Ok(Flow::Need);
            }
            self.stream.phase = after;
            return Ok(Flow::Again);
        }
        let Some(piece) = self.string.piece(input)? else { return Ok(Flow::Need) };
        if piece.last {
            self.stream.phase = after;
        }
        Ok(Flow::Emit(Item::Bytes { part, source: Source::String(piece.place), last: piece.last }))
    }

    fn stream_node_key<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        if self.skipping {
            if !self.string.skip(input)? {
                return Ok(Flow::Need);
            }
        } else {
            let Some(piece) = self.string.piece(input)? else { return Ok(Flow::Need) };
            let key = self.string.resolve(piece.place);
            let Ok(raw) = <[u8; 16]>::try_from(key) else {
                return Err(ErrorKind::OutOfRange {
                    part: "the length of a stream node's id",
                    found: wide(key.len()),
                    expected: "16",
                });
            };
            self.stream.master_id = id_of(raw);
            self.stream.place = Place::Count;
            self.blob.begin(Layout::Listpack);
        }
        self.string.begin();
        self.stream.phase = Phase::Node;
        Ok(Flow::Again)
    }
}

fn times_of(bytes: [u8; 16]) -> [i64; 2] {
    let number = u128::from_le_bytes(bytes);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    [(number as u64).cast_signed(), ((number >> 64) as u64).cast_signed()]
}
