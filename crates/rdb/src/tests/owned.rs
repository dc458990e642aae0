//! Values held whole: written and read back, and limited.

use proptest::prelude::*;
use slotkeep_model::{Product, RdbVersion};

use super::support::{cut, read, redis};
use super::{values, writer};
use crate::owned::{Idempotence, Stream};
use crate::{ErrorKind, Level, OwnedEvent, Reader, StreamInfo, Value};

pub(crate) const ROOMY_BYTES: u64 = 1 << 30;

pub(crate) fn records(chunks: &[&[u8]], limit_bytes: u64) -> Result<Vec<crate::Record>, crate::Error> {
    let (mut reader, mut found) = (Reader::new(limit_bytes), Vec::new());
    for chunk in chunks {
        let mut input = *chunk;
        while let Some(event) = reader.next(&mut input)? {
            if let OwnedEvent::Key(record) = event {
                found.push(*record);
            }
        }
    }
    reader.finish()?;
    Ok(found)
}

fn rdb_of(value: &Value, version: RdbVersion) -> Result<Vec<u8>, ErrorKind> {
    let (mut bytes, mut body) = (Vec::new(), Vec::new());
    let value_type = value.encode(version, &mut bytes)?;
    writer::record(&mut body, Some(77), value_type.byte(), b"key", &bytes);
    Ok(writer::rdb(&version.to_string(), &body))
}

pub(crate) const VERSIONS: &[(Product, u16)] = &[
    (Product::Redis, 6),
    (Product::Redis, 7),
    (Product::Redis, 8),
    (Product::Redis, 9),
    (Product::Redis, 10),
    (Product::Redis, 11),
    (Product::Redis, 12),
    (Product::Redis, 13),
    (Product::Redis, 14),
    (Product::Valkey, 80),
];

/// What is left of a value when a version cannot say all of it.
pub(crate) fn as_held_in(value: &Value, version: RdbVersion) -> Value {
    let Value::Stream(stream) = value else { return value.clone() };
    let mut stream: Stream = (**stream).clone();
    let redis = version.product == Product::Redis;
    if !(redis && version.number >= 13) {
        stream.idempotence = None;
    }
    if version.number < 11 {
        for consumer in stream.groups.iter_mut().flat_map(|group| &mut group.consumers) {
            consumer.active_ms = None;
        }
    }
    if version.number < 10 {
        stream.info = StreamInfo { first_id: None, max_deleted_id: None, entries_added: None, ..stream.info };
        stream.groups.iter_mut().for_each(|group| group.entries_read = None);
    }
    Value::Stream(Box::new(stream))
}

/// Whether the format of that version can hold the value at all; from the table of types in `src/rdb.h` of the servers.
pub(crate) fn fits(value: &Value, version: RdbVersion) -> bool {
    let redis = version.product == Product::Redis;
    match value {
        Value::Hash(fields) if fields.iter().any(|field| field.expiry_ms.is_some()) => version.number >= 12,
        Value::Stream(stream) => {
            let released = stream.groups.iter().any(|group| !group.released.is_empty());
            version.number >= 9 && (!released || (redis && version.number >= 14))
        }
        Value::Module(_) => version.number >= 8,
        Value::Array(_) => redis && version.number >= 14,
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn what_is_written_reads_back_in_every_version(
        value in values::value(),
        lengths in proptest::collection::vec(1..5000_usize, 1..4),
    ) {
        for &(product, number) in VERSIONS {
            let version = RdbVersion { product, number };
            let written = rdb_of(&value, version);
            prop_assert_eq!(written.is_ok(), fits(&value, version), "{} {:?}", version, written);
            let Ok(rdb) = written else { continue };
            let found = records(&cut(&rdb, &lengths), ROOMY_BYTES).unwrap();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0].value, &as_held_in(&value, version), "{}", version);
            prop_assert_eq!((&found[0].key[..], found[0].expiry_ms), (&b"key"[..], Some(77)));
        }
    }

    #[test]
    fn every_version_gives_the_same_digest(value in values::value()) {
        let mut found = Vec::new();
        for &(product, number) in VERSIONS {
            let mut value = value.clone();
            if let Value::Stream(stream) = &mut value {
                // What older versions cannot hold is in the digest, as it must be.
                stream.idempotence = Some(Idempotence::default());
                if number < 10 {
                    continue;
                }
            }
            if let Ok(rdb) = rdb_of(&value, RdbVersion { product, number }) {
                found.push(read(Level::Element, &[&rdb]).unwrap().digests[0].1.hash);
            }
        }
        prop_assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn a_value_over_the_limit_is_an_error_that_says_so() {
    for value in [
        Value::String(vec![b'x'; 200_000]),
        Value::List(vec![vec![b'x'; 10]; 20_000]),
        Value::Set((0..20_000_u32).map(|number| number.to_be_bytes().to_vec()).collect()),
    ] {
        let rdb = rdb_of(&value, redis(12)).unwrap();
        let error = records(&[&rdb], 100_000).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ValueTooLarge { limit_bytes: 100_000 });
        assert_eq!(error.key.as_deref(), Some(&b"key"[..]));
        assert_eq!(records(&[&rdb], ROOMY_BYTES).unwrap()[0].value, value);
    }
}

#[test]
fn the_limit_is_for_each_value() {
    let mut body = Vec::new();
    for number in 0..100_u8 {
        writer::record(&mut body, None, 0, &[number], &[&[0x43, 0xe8][..], &[7; 1000]].concat());
    }
    assert_eq!(records(&[&writer::rdb("REDIS0011", &body)], 1200).unwrap().len(), 100);
}
