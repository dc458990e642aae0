//! Random datasets, in any encoding and cut into any chunks.

use proptest::prelude::*;

use super::support::{cut, read};
use super::writer;
use crate::Level;

/// A logical value with an order of its members.
#[derive(Clone, Debug)]
enum Value {
    String(Vec<u8>),
    List(Vec<Vec<u8>>),
    Set(Vec<Vec<u8>>),
    Zset(Vec<(Vec<u8>, i32)>),
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
    TtlHash(Vec<(Vec<u8>, Vec<u8>, Option<i64>)>),
}

fn element() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..40),
        3 => any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        2 => (-5000..5000_i64).prop_map(|number| number.to_string().into_bytes()),
        2 => (1..300_usize).prop_map(|count| b"abcab".repeat(count)),
        1 => (60_000..70_000_usize, any::<u8>()).prop_map(|(count, byte)| vec![byte; count]),
    ]
}

fn distinct() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::btree_set(element(), 1..12).prop_map(|set| set.into_iter().collect())
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        element().prop_map(Value::String),
        proptest::collection::vec(element(), 1..12).prop_map(Value::List),
        distinct().prop_map(Value::Set),
        (distinct(), any::<i32>()).prop_map(|(members, first)| {
            Value::Zset(
                members
                    .into_iter()
                    .enumerate()
                    .map(|(at, member)| (member, first.wrapping_add(i32::try_from(at).unwrap())))
                    .collect(),
            )
        }),
        (distinct(), element()).prop_map(|(fields, value)| {
            Value::Hash(fields.into_iter().map(|field| (field, value.clone())).collect())
        }),
        (distinct(), element(), 1..1_000_000_i64).prop_map(|(fields, value, first)| {
            Value::TtlHash(
                fields
                    .into_iter()
                    .enumerate()
                    .map(|(at, field)| {
                        (field, value.clone(), (at % 3 != 0).then(|| first + i64::try_from(at).unwrap()))
                    })
                    .collect(),
            )
        }),
    ]
}

fn put(out: &mut Vec<u8>, bytes: &[u8], lzf: bool) {
    if lzf {
        writer::lzf_string(out, bytes);
    } else {
        writer::string(out, bytes);
    }
}

fn put_all(out: &mut Vec<u8>, items: &[Vec<u8>], lzf: bool) {
    for item in items {
        put(out, item, lzf);
    }
}

fn blob(bytes: &[u8], lzf: bool) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, bytes, lzf);
    out
}

/// The type byte and value bytes, in the encoding that `choice` picks.
fn encode(value: &Value, choice: usize, lzf: bool) -> (u8, Vec<u8>) {
    match value {
        Value::String(bytes) => (0, blob(bytes, lzf)),
        Value::List(items) => encode_list(items, choice % 4, lzf),
        Value::Set(members) => encode_set(members, choice % 2, lzf),
        Value::Zset(pairs) => encode_zset(pairs, choice % 4, lzf),
        Value::Hash(pairs) => encode_hash(pairs, choice % 4, lzf),
        Value::TtlHash(fields) => encode_ttl_hash(fields, choice % 2, lzf),
    }
}

fn encode_list(items: &[Vec<u8>], choice: usize, lzf: bool) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    match choice {
        0 => {
            writer::length(&mut out, items.len() as u64);
            put_all(&mut out, items, lzf);
            (1, out)
        }
        1 => (10, blob(&writer::ziplist(items), lzf)),
        2 => {
            let (head, tail) = items.split_at(items.len() / 2);
            out.push(2);
            put(&mut out, &writer::ziplist(head), lzf);
            put(&mut out, &writer::ziplist(tail), lzf);
            (14, out)
        }
        _ => {
            let (last, head) = items.split_last().unwrap();
            out.extend([2, 2]);
            put(&mut out, &writer::listpack(head), lzf);
            out.push(1);
            put(&mut out, last, lzf);
            (18, out)
        }
    }
}

fn encode_set(members: &[Vec<u8>], choice: usize, lzf: bool) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    if choice == 0 {
        writer::length(&mut out, members.len() as u64);
        put_all(&mut out, members, lzf);
        return (2, out);
    }
    let numbers: Option<Vec<i64>> = members
        .iter()
        .map(|member| {
            let number: i64 = std::str::from_utf8(member).ok()?.parse().ok()?;
            (number.to_string().as_bytes() == member).then_some(number)
        })
        .collect();
    if let Some(numbers) = numbers {
        return (11, blob(&writer::intset(&numbers), lzf));
    }
    let mut turned = members.to_vec();
    turned.reverse();
    (20, blob(&writer::listpack(&turned), lzf))
}

fn encode_zset(pairs: &[(Vec<u8>, i32)], choice: usize, lzf: bool) -> (u8, Vec<u8>) {
    let flat: Vec<Vec<u8>> =
        pairs.iter().flat_map(|(member, score)| [member.clone(), score.to_string().into_bytes()]).collect();
    match choice {
        0 | 1 => {
            let mut out = Vec::new();
            writer::length(&mut out, pairs.len() as u64);
            for (member, score) in pairs.iter().rev() {
                put(&mut out, member, lzf);
                if choice == 0 {
                    let text = format!("{score}");
                    out.push(u8::try_from(text.len()).unwrap());
                    out.extend(text.as_bytes());
                } else {
                    out.extend(f64::from(*score).to_le_bytes());
                }
            }
            (if choice == 0 { 3 } else { 5 }, out)
        }
        2 => (12, blob(&writer::ziplist(&flat), lzf)),
        _ => (17, blob(&writer::listpack(&flat), lzf)),
    }
}

fn encode_hash(pairs: &[(Vec<u8>, Vec<u8>)], choice: usize, lzf: bool) -> (u8, Vec<u8>) {
    let flat: Vec<Vec<u8>> = pairs.iter().flat_map(|(field, value)| [field.clone(), value.clone()]).collect();
    match choice {
        0 => {
            let mut out = Vec::new();
            writer::length(&mut out, pairs.len() as u64);
            for (field, value) in pairs.iter().rev() {
                put(&mut out, field, lzf);
                put(&mut out, value, lzf);
            }
            (4, out)
        }
        1 => (9, blob(&writer::zipmap(&flat), lzf)),
        2 => (13, blob(&writer::ziplist(&flat), lzf)),
        _ => (16, blob(&writer::listpack(&flat), lzf)),
    }
}

fn encode_ttl_hash(fields: &[(Vec<u8>, Vec<u8>, Option<i64>)], choice: usize, lzf: bool) -> (u8, Vec<u8>) {
    let lowest = fields.iter().filter_map(|field| field.2).min().unwrap_or(0);
    let mut out = lowest.to_le_bytes().to_vec();
    if choice == 0 {
        writer::length(&mut out, fields.len() as u64);
        for (field, value, expiry) in fields.iter().rev() {
            writer::length(&mut out, expiry.map_or(0, |expiry| (expiry - lowest + 1).cast_unsigned()));
            put(&mut out, field, lzf);
            put(&mut out, value, lzf);
        }
        return (24, out);
    }
    let flat: Vec<Vec<u8>> = fields
        .iter()
        .flat_map(|(field, value, expiry)| {
            [field.clone(), value.clone(), expiry.unwrap_or(0).to_string().into_bytes()]
        })
        .collect();
    put(&mut out, &writer::listpack(&flat), lzf);
    (25, out)
}

fn dataset(values: &[Value], choice: usize, lzf: bool) -> Vec<u8> {
    let mut body = vec![0xfa];
    writer::string(&mut body, b"ctime");
    body.extend([0xc2, 1, 2, 3, 4, 0xfe, 0, 0xfb, 0x40, 3, 0]);
    for (at, value) in values.iter().enumerate() {
        let (value_type, bytes) = encode(value, choice + at, lzf);
        let key = format!("key:{at}");
        writer::record(&mut body, (at % 2 == 0).then_some(1 << 41), value_type, key.as_bytes(), &bytes);
    }
    writer::rdb("REDIS0012", &body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn any_chunks_give_the_same_events_and_digests(
        values in proptest::collection::vec(value(), 1..6),
        choice in 0..4_usize,
        lzf: bool,
        lengths in proptest::collection::vec(prop_oneof![Just(1_usize), 1..30_usize, 1..70_000_usize], 1..8),
    ) {
        let rdb = dataset(&values, choice, lzf);
        let whole = read(Level::Element, &[&rdb]).unwrap();
        let parts = read(Level::Element, &cut(&rdb, &lengths)).unwrap();
        prop_assert_eq!(&whole, &parts);
        let raw = read(Level::Raw, &[&rdb]).unwrap();
        let raw_parts = read(Level::Raw, &cut(&rdb, &lengths)).unwrap();
        prop_assert_eq!(&raw, &raw_parts);
        let expected: Vec<Vec<u8>> = values.iter().enumerate().map(|(at, value)| encode(value, choice + at, lzf).1).collect();
        prop_assert_eq!(raw.raw, expected);
    }

    #[test]
    fn every_encoding_gives_the_same_digest(values in proptest::collection::vec(value(), 1..4)) {
        let mut hashes = Vec::new();
        for choice in 0..4 {
            for lzf in [false, true] {
                let found = read(Level::Element, &[&dataset(&values, choice, lzf)]).unwrap();
                hashes.push(found.digests.iter().map(|(_, digest)| digest.hash).collect::<Vec<_>>());
            }
        }
        prop_assert!(hashes.iter().all(|other| *other == hashes[0]), "{:?}", hashes);
    }

    #[test]
    fn random_bytes_after_a_magic_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1..50_usize) {
        for magic in ["REDIS0014", "VALKEY080", "REDIS0003"] {
            let mut rdb = magic.as_bytes().to_vec();
            rdb.extend_from_slice(&bytes);
            for level in [Level::Raw, Level::Element] {
                let _ = read(level, &cut(&rdb, &[step]));
            }
        }
    }

    #[test]
    fn random_values_of_any_type_do_not_panic(number in 0..29_u8, bytes in proptest::collection::vec(prop_oneof![0..6_u8, any::<u8>()], 0..300)) {
        let mut rdb = b"REDIS0014".to_vec();
        writer::record(&mut rdb, None, number, b"k", &bytes);
        let whole = read(Level::Element, &[&rdb]).map_err(|error| error.kind);
        let parts = read(Level::Element, &cut(&rdb, &[1])).map_err(|error| error.kind);
        prop_assert_eq!(whole.is_ok(), parts.is_ok());
    }
}
