use slotkeep_model::DatasetDigest;

use super::*;
use crate::tests::{digests_of, writer};

fn value_of(value_type: u8, value: &[u8]) -> KeyDigest {
    let mut body = Vec::new();
    writer::record(&mut body, None, value_type, b"k", value);
    digests_of(&writer::rdb("REDIS0012", &body))[0]
}

#[test]
fn the_serialisation_is_as_written_down() {
    let string = value_of(0, b"\x01q");
    assert_eq!(string.value, xxh3_128(b"q"));
    let mut record = vec![0, 0, 0, 0, 1, 0];
    record.extend([0; 8]);
    record.extend(xxh3_128(b"k").to_le_bytes());
    record.extend(string.value.to_le_bytes());
    assert_eq!(string.hash, xxh3_128(&record));

    let hash = value_of(4, b"\x01\x01f\x01v");
    let mut field = xxh3_128(b"f").to_le_bytes().to_vec();
    field.extend(xxh3_128(b"v").to_le_bytes());
    field.extend((-1_i64).to_le_bytes());
    let mut sum = xxh3_128(&field).to_le_bytes().to_vec();
    sum.extend(1_u64.to_le_bytes());
    assert_eq!(hash.value, xxh3_128(&sum));

    let mut items = xxh3_128(b"a").to_le_bytes().to_vec();
    items.extend(xxh3_128(b"b").to_le_bytes());
    assert_eq!(value_of(1, b"\x02\x01a\x01b").value, xxh3_128(&items));
}

#[test]
fn order_counts_in_lists_only() {
    assert_ne!(value_of(1, b"\x02\x01a\x01b").value, value_of(1, b"\x02\x01b\x01a").value);
    assert_eq!(value_of(2, b"\x02\x01a\x01b").value, value_of(2, b"\x02\x01b\x01a").value);
    assert_ne!(value_of(4, b"\x01\x01a\x01b").value, value_of(4, b"\x01\x01b\x01a").value);
    assert_ne!(value_of(1, b"\x02\x01a\x02bc").value, value_of(1, b"\x02\x02ab\x01c").value);
}

#[test]
fn zeros_of_either_sign_are_one_score() {
    let zset = |score: f64| {
        let mut value = b"\x01\x01m".to_vec();
        value.extend(score.to_le_bytes());
        value_of(5, &value).value
    };
    assert_eq!(zset(0.0), zset(-0.0));
    assert_ne!(zset(0.0), zset(1.0));
}

#[test]
fn long_runs_of_records_hash_as_one() {
    let mut value = Vec::new();
    writer::length(&mut value, 1000);
    let mut items = Vec::new();
    for number in 0..1000_u32 {
        writer::string(&mut value, &number.to_be_bytes());
        items.extend(xxh3_128(&number.to_be_bytes()).to_le_bytes());
    }
    assert_eq!(value_of(1, &value).value, xxh3_128(&items));
}

#[test]
fn empty_collections_are_not_counted() {
    let mut dataset = DatasetDigest::default();
    value_of(2, b"\x00").add_to(&mut dataset);
    assert_eq!(dataset.keys(), 0);
    value_of(0, b"\x00").add_to(&mut dataset);
    assert_eq!(dataset.keys(), 1);
}

/// A stream without entries, with a group whose consumers own those many of the pending entries 1-0, 2-0 and so on.
fn stream_of_consumers(consumers: &[(&[u8], u8)]) -> u128 {
    let id = |number: u8| {
        let mut raw = [0; 16];
        raw[7] = number;
        raw
    };
    let owned: u8 = consumers.iter().map(|consumer| consumer.1).sum();
    let mut value = vec![0, 0, 9, 0, 0, 0, 0, 0, 9, 1, 1, b'g', 9, 0, 0, owned];
    for number in 0..owned {
        value.extend(id(number));
        value.extend([0; 8]);
        value.push(1);
    }
    value.push(u8::try_from(consumers.len()).unwrap());
    let mut next = 0;
    for (name, count) in consumers {
        writer::string(&mut value, name);
        value.extend([0; 16]);
        value.push(*count);
        for _ in 0..*count {
            value.extend(id(next));
            next += 1;
        }
    }
    value_of(21, &value).value
}

#[test]
fn only_consumers_with_pending_entries_count() {
    let with = stream_of_consumers(&[(b"a", 1), (b"b", 0), (b"c", 2)]);
    assert_eq!(with, stream_of_consumers(&[(b"a", 1), (b"c", 2)]));
    assert_eq!(stream_of_consumers(&[(b"a", 0)]), stream_of_consumers(&[]));
    assert_ne!(with, stream_of_consumers(&[(b"a", 2), (b"c", 1)]));
    assert_ne!(with, stream_of_consumers(&[(b"a", 1), (b"d", 2)]));
}
