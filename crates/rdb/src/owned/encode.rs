//! A value, written for an RDB version: in the encodings that servers write for large values, which every server of that version loads
//! and turns into what its own limits say.

use slotkeep_model::RdbVersion;

use super::{Array, ArrayElement, HashField, ModulePart, ModuleValue, Value};
use crate::encode::{
    Listpack, Ziplist, canonical_integer, push_blob, push_length, push_string, push_text_score,
};
use crate::error::ErrorKind;
use crate::primitive::wide;
use crate::types::ValueType;

mod stream;

pub(crate) use stream::generation as stream_generation;

/// How long a packed node of a list may become, as servers' `list-max-listpack-size -2` says. Longer items are nodes of their own.
const NODE_BYTES: usize = 8 << 10;
/// The longest string that an array tags as short.
const SHORT_STRING_BYTES: usize = 7;

impl Value {
    /// Appends the value's bytes, as an RDB of that version has them after the key, and gives the type byte that belongs before the key.
    ///
    /// [`ErrorKind::NoEquivalent`] if the version cannot hold the value. Left out without error, as commands do: a
    /// consumer's active time before type 21; producers and their ids before type 26.
    pub fn encode(&self, target: RdbVersion, out: &mut Vec<u8>) -> Result<ValueType, ErrorKind> {
        let value_type = self.type_in(target)?;
        match self {
            Self::String(bytes) => push_string(out, bytes),
            Self::List(items) => push_list(out, items, value_type, target)?,
            Self::Set(members) => {
                push_length(out, wide(members.len()));
                for member in members {
                    push_string(out, member);
                }
            }
            Self::Zset(pairs) => push_zset(out, pairs, value_type),
            Self::Hash(fields) => push_hash(out, fields, value_type),
            Self::Stream(stream) => stream::push(out, stream, value_type, target)?,
            Self::Module(module) => push_module(out, module),
            Self::Array(array) => push_array(out, array),
        }
        Ok(value_type)
    }

    /// The type under which [`Self::encode`] writes.
    fn type_in(&self, target: RdbVersion) -> Result<ValueType, ErrorKind> {
        use ValueType as T;
        let candidates: (&[ValueType], &'static str) = match self {
            Self::String(_) => (&[T::String], "a string"),
            Self::List(_) => (&[T::ListQuicklist2, T::ListQuicklist, T::List], "a list"),
            Self::Set(_) => (&[T::Set], "a set"),
            Self::Zset(_) => (&[T::Zset2, T::Zset], "a sorted set"),
            Self::Hash(fields) if fields.iter().any(|field| field.expiry_ms.is_some()) => {
                (&[T::HashMetadata, T::ValkeyHash2], "a hash with expiry of fields")
            }
            Self::Hash(_) => (&[T::Hash], "a hash"),
            Self::Stream(_) => (STREAM_TYPES, "a stream"),
            Self::Module(_) => (&[T::Module2], "a module's value"),
            Self::Array(_) => (&[T::Array], "an array"),
        };
        let known = candidates.0.iter().find(|candidate| candidate.exists_in(target));
        known.copied().ok_or(ErrorKind::NoEquivalent { what: candidates.1, target })
    }
}

/// The types of streams, newest first.
pub(crate) const STREAM_TYPES: &[ValueType] = &[
    ValueType::StreamListpacks5,
    ValueType::StreamListpacks4,
    ValueType::StreamListpacks3,
    ValueType::StreamListpacks2,
    ValueType::StreamListpacks,
];

fn push_list(
    out: &mut Vec<u8>,
    items: &[Vec<u8>],
    value_type: ValueType,
    target: RdbVersion,
) -> Result<(), ErrorKind> {
    if value_type == ValueType::List {
        push_length(out, wide(items.len()));
        for item in items {
            push_string(out, item);
        }
        return Ok(());
    }
    let too_long = || ErrorKind::NoEquivalent { what: "a list with an item of 4 GiB", target };
    let (mut nodes, mut count) = (Vec::new(), 0);
    for run in runs(items) {
        count += 1;
        match run {
            [item] if item.len() > NODE_BYTES && value_type == ValueType::ListQuicklist2 => {
                push_length(&mut nodes, 1);
                push_blob(&mut nodes, item);
            }
            _ if value_type == ValueType::ListQuicklist2 => {
                let mut node = Listpack::new();
                for item in run {
                    node.push(item);
                }
                push_length(&mut nodes, 2);
                push_blob(&mut nodes, &node.finish().ok_or_else(too_long)?);
            }
            _ => {
                let mut node = Ziplist::new();
                for item in run {
                    node.push(item);
                }
                push_blob(&mut nodes, &node.finish().ok_or_else(too_long)?);
            }
        }
    }
    push_length(out, count);
    out.append(&mut nodes);
    Ok(())
}

/// Items that go into one node each: as many as fit, or one that does not.
fn runs(items: &[Vec<u8>]) -> impl Iterator<Item = &[Vec<u8>]> {
    let mut rest = items;
    core::iter::from_fn(move || {
        let mut bytes = 0_usize;
        let fits = rest.iter().take_while(|item| {
            bytes = bytes.saturating_add(item.len()).saturating_add(16);
            bytes <= NODE_BYTES
        });
        let count = fits.count().max(1);
        let (run, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(run)
    })
}

fn push_zset(out: &mut Vec<u8>, pairs: &[(Vec<u8>, f64)], value_type: ValueType) {
    push_length(out, wide(pairs.len()));
    for (member, score) in pairs {
        push_string(out, member);
        if value_type == ValueType::Zset {
            push_text_score(out, *score);
        } else {
            out.extend_from_slice(&score.to_le_bytes());
        }
    }
}

/// The lowest expiry that type 24 is written with: then a field's TTL, which counts from it plus one, is its expiry.
pub(crate) const LOWEST_EXPIRY_MS: i64 = 1;

/// The expiry as type 24 has it. Expiries from before 1970 become the first millisecond after it, which is as long past.
pub(crate) fn ttl_of(expiry_ms: Option<i64>) -> u64 {
    expiry_ms.map_or(0, |expiry_ms| u64::try_from(expiry_ms).unwrap_or(0).max(1))
}

fn push_hash(out: &mut Vec<u8>, fields: &[HashField], value_type: ValueType) {
    if value_type == ValueType::HashMetadata {
        out.extend_from_slice(&LOWEST_EXPIRY_MS.to_le_bytes());
    }
    push_length(out, wide(fields.len()));
    for HashField { field, value, expiry_ms } in fields {
        if value_type == ValueType::HashMetadata {
            push_length(out, ttl_of(*expiry_ms));
        }
        push_string(out, field);
        push_string(out, value);
        if value_type == ValueType::ValkeyHash2 {
            out.extend_from_slice(&expiry_ms.unwrap_or(-1).to_le_bytes());
        }
    }
}

fn push_module(out: &mut Vec<u8>, module: &ModuleValue) {
    push_length(out, module.id);
    for part in &module.parts {
        match part {
            ModulePart::Signed(number) => {
                push_length(out, 1);
                push_length(out, number.cast_unsigned());
            }
            ModulePart::Unsigned(number) => {
                push_length(out, 2);
                push_length(out, *number);
            }
            ModulePart::Float(bits) => {
                push_length(out, 3);
                out.extend_from_slice(&bits.to_le_bytes());
            }
            ModulePart::Double(bits) => {
                push_length(out, 4);
                out.extend_from_slice(&bits.to_le_bytes());
            }
            ModulePart::String(bytes) => {
                push_length(out, 5);
                push_string(out, bytes);
            }
        }
    }
    push_length(out, 0);
}

fn push_array(out: &mut Vec<u8>, array: &Array) {
    push_length(out, wide(array.elements.len()));
    push_length(out, u64::from(array.insert_index.is_some()));
    if let Some(index) = array.insert_index {
        push_length(out, index);
    }
    for (index, element) in &array.elements {
        push_length(out, *index);
        match element {
            ArrayElement::Double(number) => {
                push_length(out, 2);
                out.extend_from_slice(&number.to_le_bytes());
            }
            ArrayElement::String(text) => match canonical_integer(text) {
                Some(number) => {
                    push_length(out, 1);
                    out.extend_from_slice(&number.to_le_bytes());
                }
                None => {
                    push_length(out, if text.len() <= SHORT_STRING_BYTES { 3 } else { 0 });
                    push_string(out, text);
                }
            },
        }
    }
}
