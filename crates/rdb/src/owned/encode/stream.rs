//! A stream, written: nodes of packed entries, then what stands after them.
//!
//! Invariants, which servers from 8.8 on check: the counts of live entries in the nodes add up to the stream's length, and
//! each pending entry has one owner or is released.

use slotkeep_model::RdbVersion;

use crate::encode::{Listpack, push_blob, push_id, push_length, push_raw_id, push_string};
use crate::error::ErrorKind;
use crate::owned::{Group, Idempotence, Stream, StreamEntry};
use crate::primitive::wide;
use crate::types::ValueType;
use crate::value::StreamId;

/// How many bytes and entries go into a node: the servers' `stream-node-max-bytes` and `stream-node-max-entries`.
const STREAM_NODE_BYTES: usize = 4096;
const STREAM_NODE_ENTRIES: usize = 100;
const SAME_FIELDS: i64 = 2;

/// The stream type's number among the stream types, 1 to 5.
pub(crate) const fn generation(value_type: ValueType) -> u8 {
    match value_type {
        ValueType::StreamListpacks => 1,
        ValueType::StreamListpacks2 => 2,
        ValueType::StreamListpacks3 => 3,
        ValueType::StreamListpacks4 => 4,
        _ => 5,
    }
}

pub(super) fn push(
    out: &mut Vec<u8>,
    stream: &Stream,
    value_type: ValueType,
    target: RdbVersion,
) -> Result<(), ErrorKind> {
    let generation = generation(value_type);
    if generation < 5 && stream.groups.iter().any(|group| !group.released.is_empty()) {
        return Err(ErrorKind::NoEquivalent { what: "a pending entry without consumer", target });
    }
    let (mut nodes, mut count) = (Vec::new(), 0);
    let mut rest = stream.entries.as_slice();
    while let Some(first) = rest.first() {
        let (node, packed) = pack(first, rest);
        rest = rest.get(packed..).unwrap_or_default();
        push_blob(&mut nodes, &raw_id(first.id));
        let too_long = ErrorKind::NoEquivalent { what: "a stream entry of 4 GiB", target };
        push_blob(&mut nodes, &node.ok_or(too_long)?);
        count += 1;
    }
    push_length(out, count);
    out.append(&mut nodes);
    push_info(out, stream, generation);
    push_length(out, wide(stream.groups.len()));
    for group in &stream.groups {
        push_group(out, group, generation);
    }
    if generation >= 4 {
        push_idempotence(out, stream.idempotence.as_ref().unwrap_or(&Idempotence::default()));
    }
    Ok(())
}

fn raw_id(id: StreamId) -> Vec<u8> {
    let mut raw = Vec::with_capacity(16);
    push_raw_id(&mut raw, id);
    raw
}

/// A node that begins with `first`, and how many entries it holds.
fn pack(first: &StreamEntry, entries: &[StreamEntry]) -> (Option<Vec<u8>>, usize) {
    let mut bytes = 0_usize;
    let count = entries
        .iter()
        .take(STREAM_NODE_ENTRIES)
        .take_while(|entry| {
            bytes = bytes.saturating_add(entry_bytes(entry));
            bytes <= STREAM_NODE_BYTES
        })
        .count()
        .max(1);
    let mut node = Listpack::new();
    node.push_integer(integer(wide(count)));
    node.push_integer(0);
    node.push_integer(integer(wide(first.fields.len())));
    for (field, _) in &first.fields {
        node.push(field);
    }
    node.push_integer(0);
    for entry in entries.iter().take(count) {
        push_entry(&mut node, first, entry);
    }
    (node.finish(), count)
}

fn entry_bytes(entry: &StreamEntry) -> usize {
    entry.fields.iter().fold(32, |sum: usize, (field, value)| {
        sum.saturating_add(field.len()).saturating_add(value.len()).saturating_add(16)
    })
}

fn push_entry(node: &mut Listpack, first: &StreamEntry, entry: &StreamEntry) {
    let same = entry.fields.len() == first.fields.len()
        && entry.fields.iter().zip(&first.fields).all(|(one, other)| one.0 == other.0);
    node.push_integer(if same { SAME_FIELDS } else { 0 });
    // Deltas wrap as the servers' unsigned arithmetic does.
    node.push_integer(entry.id.ms.wrapping_sub(first.id.ms).cast_signed());
    node.push_integer(entry.id.seq.wrapping_sub(first.id.seq).cast_signed());
    let fields = integer(wide(entry.fields.len()));
    if !same {
        node.push_integer(fields);
    }
    for (field, value) in &entry.fields {
        if !same {
            node.push(field);
        }
        node.push(value);
    }
    node.push_integer(if same {
        fields.saturating_add(3)
    } else {
        fields.saturating_mul(2).saturating_add(4)
    });
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn push_info(out: &mut Vec<u8>, stream: &Stream, generation: u8) {
    let info = &stream.info;
    push_length(out, wide(stream.entries.len()));
    push_id(out, info.last_id);
    if generation >= 2 {
        push_id(out, stream.entries.first().map(|entry| entry.id).unwrap_or_default());
        push_id(out, info.max_deleted_id.unwrap_or_default());
        push_length(out, info.entries_added.unwrap_or(wide(stream.entries.len())));
    }
}

fn push_group(out: &mut Vec<u8>, group: &Group, generation: u8) {
    push_string(out, &group.name);
    push_id(out, group.last_id);
    if generation >= 2 {
        push_length(out, group.entries_read.unwrap_or(u64::MAX));
    }
    push_length(out, wide(group.pending.len()));
    for pending in &group.pending {
        push_raw_id(out, pending.id);
        out.extend_from_slice(&pending.delivery_time_ms.to_le_bytes());
        push_length(out, pending.deliveries);
    }
    push_length(out, wide(group.consumers.len()));
    for consumer in &group.consumers {
        push_string(out, &consumer.name);
        out.extend_from_slice(&consumer.seen_ms.to_le_bytes());
        if generation >= 3 {
            out.extend_from_slice(&consumer.active_ms.unwrap_or(-1).to_le_bytes());
        }
        push_ids(out, &consumer.pending);
    }
    if generation >= 5 {
        push_ids(out, &group.released);
    }
}

fn push_ids(out: &mut Vec<u8>, ids: &[StreamId]) {
    push_length(out, wide(ids.len()));
    for id in ids {
        push_raw_id(out, *id);
    }
}

fn push_idempotence(out: &mut Vec<u8>, idempotence: &Idempotence) {
    push_length(out, idempotence.duration_s);
    push_length(out, idempotence.max_entries);
    push_length(out, wide(idempotence.producers.len()));
    for producer in &idempotence.producers {
        push_string(out, &producer.id);
        push_length(out, wide(producer.entries.len()));
        for (id, entry) in &producer.entries {
            push_string(out, id);
            push_id(out, *entry);
        }
    }
    push_length(out, idempotence.added);
    push_length(out, idempotence.duplicates);
}
