//! Random values of every kind.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use slotkeep_model::RdbVersion;

use super::owned::VERSIONS;
use super::support::redis;
use super::writer;
use crate::encode::{canonical_integer, score_text};
use crate::owned::{
    Array, ArrayElement, Consumer, Group, HashField, Idempotence, ModulePart, ModuleValue, Pending, Producer,
    Stream, StreamEntry,
};
use crate::{StreamId, StreamInfo, Value};

pub(crate) fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..30),
        3 => any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        3 => (-5000..5000_i64).prop_map(|number| number.to_string().into_bytes()),
        1 => (1..400_usize).prop_map(|count| b"abcab".repeat(count)),
        1 => (5_000..70_000_usize, any::<u8>()).prop_map(|(count, byte)| vec![byte; count]),
    ]
}

fn distinct() -> impl Strategy<Value = Vec<Vec<u8>>> {
    btree_set(text(), 1..12).prop_map(|set| set.into_iter().collect())
}

fn score() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        (-1000..1000_i32).prop_map(f64::from),
        any::<f64>().prop_filter("servers refuse NaN", |score| !score.is_nan()),
    ]
}

fn id() -> impl Strategy<Value = StreamId> {
    prop_oneof![(1..20_u64, 0..4_u64), (1_u64 << 40..1_u64 << 41, 0..2_u64), (any::<u64>(), any::<u64>()),]
        .prop_map(|(ms, seq)| StreamId { ms, seq })
}

fn entry_fields() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    prop_oneof![
        3 => (text(), text()).prop_map(|(one, two)| vec![(b"f".to_vec(), one), (b"g".to_vec(), two)]),
        1 => vec((text(), text()), 1..4),
    ]
}

/// Whether a consumer owns the pending entry, which one, when and how often it was delivered.
type Owner = (u8, i64, u64);

fn group() -> impl Strategy<Value = Group> {
    let owners = btree_map(id(), (0..4_u8, any::<i64>(), 0..100_u64), 0..6);
    let times = vec((any::<i64>(), proptest::option::of(0..i64::MAX)), 3);
    (text(), id(), proptest::option::of(0..1000_u64), owners, times).prop_map(
        |(name, last_id, entries_read, owners, times): (_, _, _, BTreeMap<StreamId, Owner>, Vec<_>)| {
            let pending = owners.iter().map(|(id, (_, delivery_time_ms, deliveries))| Pending {
                id: *id,
                delivery_time_ms: *delivery_time_ms,
                deliveries: *deliveries,
            });
            let owned_by = |number: u8| -> Vec<StreamId> {
                owners.iter().filter(|(_, owner)| owner.0 == number).map(|(id, _)| *id).collect()
            };
            let consumers = times.iter().zip(0_u8..).map(|((seen_ms, active_ms), number)| Consumer {
                name: format!("c{number}").into_bytes(),
                seen_ms: *seen_ms,
                active_ms: *active_ms,
                pending: owned_by(number),
            });
            Group {
                name,
                last_id,
                entries_read,
                pending: pending.collect(),
                consumers: consumers.collect(),
                released: owned_by(3),
            }
        },
    )
}

fn idempotence() -> impl Strategy<Value = Idempotence> {
    let producer = (text(), vec((text(), id()), 0..3)).prop_map(|(id, entries)| Producer { id, entries });
    (1..86_400_u64, 1..10_000_u64, vec(producer, 0..3), any::<u64>(), any::<u64>()).prop_map(
        |(duration_s, max_entries, producers, added, duplicates)| Idempotence {
            duration_s,
            max_entries,
            producers,
            added,
            duplicates,
        },
    )
}

fn stream() -> impl Strategy<Value = Value> {
    let entries = btree_map(id(), entry_fields(), 0..130);
    (entries, id(), id(), any::<u64>(), vec(group(), 0..3), idempotence()).prop_map(
        |(entries, last_id, deleted, added, groups, idempotence)| {
            let first_id = entries.keys().next().copied();
            let entries: Vec<_> =
                entries.into_iter().map(|(id, fields)| StreamEntry { id, fields }).collect();
            let info = StreamInfo {
                length: entries.len() as u64,
                last_id,
                first_id: Some(first_id.unwrap_or_default()),
                max_deleted_id: Some(deleted),
                entries_added: Some(added),
            };
            Value::Stream(Box::new(Stream { entries, info, groups, idempotence: Some(idempotence) }))
        },
    )
}

fn hash(expiries: bool) -> impl Strategy<Value = Value> {
    let fields = btree_map(text(), (text(), proptest::option::of(1..1_i64 << 47)), 1..12);
    fields.prop_map(move |fields| {
        let field = |(field, (value, expiry_ms)): (_, (_, Option<i64>))| HashField {
            field,
            value,
            expiry_ms: expiry_ms.filter(|_| expiries),
        };
        Value::Hash(fields.into_iter().map(field).collect())
    })
}

fn module() -> impl Strategy<Value = Value> {
    let part = prop_oneof![
        any::<i64>().prop_map(ModulePart::Signed),
        any::<u64>().prop_map(ModulePart::Unsigned),
        any::<u32>().prop_map(ModulePart::Float),
        any::<u64>().prop_map(ModulePart::Double),
        text().prop_map(ModulePart::String),
    ];
    (any::<u64>(), vec(part, 0..8)).prop_map(|(id, parts)| Value::Module(ModuleValue { id, parts }))
}

fn array() -> impl Strategy<Value = Value> {
    let element = prop_oneof![
        text().prop_map(ArrayElement::String),
        (-1000..1000_i32).prop_map(|number| ArrayElement::Double(f64::from(number) / 3.0)),
    ];
    (proptest::option::of(0..u64::MAX), btree_map(0..u64::MAX, element, 1..8)).prop_map(
        |(insert_index, elements)| {
            Value::Array(Array { insert_index, elements: elements.into_iter().collect() })
        },
    )
}

/// A value of any kind; of hashes those without expiry of fields too.
pub(crate) fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::String),
        vec(text(), 1..40).prop_map(Value::List),
        distinct().prop_map(Value::Set),
        btree_map(text(), score(), 1..12).prop_map(|pairs| Value::Zset(pairs.into_iter().collect())),
        hash(false),
        hash(true),
        stream(),
        module(),
        array(),
    ]
}

/// A value of that type, out of an RDB of that product and version.
pub(crate) struct Encoded {
    pub(crate) value_type: u8,
    pub(crate) bytes: Vec<u8>,
    pub(crate) version: RdbVersion,
}

/// The value in every encoding that any version has for it, as the tests' own writer and the crate's write it.
pub(crate) fn encodings(value: &Value) -> Vec<Encoded> {
    let mut found = Vec::new();
    for &(product, number) in VERSIONS {
        let (version, mut bytes) = (RdbVersion { product, number }, Vec::new());
        if let Ok(value_type) = value.encode(version, &mut bytes) {
            found.push(Encoded { value_type: value_type.byte(), bytes, version });
        }
    }
    let mut add = |value_type: u8, blob: Vec<u8>| {
        for lzf in [false, true] {
            let mut bytes = Vec::new();
            if lzf {
                writer::lzf_string(&mut bytes, &blob);
            } else {
                writer::string(&mut bytes, &blob);
            }
            found.push(Encoded { value_type, bytes, version: redis(14) });
        }
    };
    match value {
        Value::List(items) => add(10, writer::ziplist(items)),
        Value::Set(members) => {
            add(20, writer::listpack(members));
            let numbers: Option<Vec<i64>> = members.iter().map(|member| canonical_integer(member)).collect();
            if let Some(numbers) = numbers {
                add(11, writer::intset(&numbers));
            }
        }
        Value::Zset(pairs) => {
            let flat: Vec<Vec<u8>> = pairs
                .iter()
                .flat_map(|(member, score)| [member.clone(), score_text(*score).into_bytes()])
                .collect();
            add(12, writer::ziplist(&flat));
            add(17, writer::listpack(&flat));
        }
        Value::Hash(fields) if fields.iter().all(|field| field.expiry_ms.is_none()) => {
            let flat: Vec<Vec<u8>> =
                fields.iter().flat_map(|field| [field.field.clone(), field.value.clone()]).collect();
            add(9, writer::zipmap(&flat));
            add(13, writer::ziplist(&flat));
            add(16, writer::listpack(&flat));
        }
        Value::Hash(fields) => {
            let flat: Vec<Vec<u8>> = fields
                .iter()
                .flat_map(|field| {
                    let expiry_ms = field.expiry_ms.unwrap_or(0).to_string().into_bytes();
                    [field.field.clone(), field.value.clone(), expiry_ms]
                })
                .collect();
            let mut bytes = 1_i64.to_le_bytes().to_vec();
            writer::string(&mut bytes, &writer::listpack(&flat));
            found.push(Encoded { value_type: 25, bytes, version: redis(14) });
        }
        _ => {}
    }
    found
}
