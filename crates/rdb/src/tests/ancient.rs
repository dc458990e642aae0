//! Encodings and versions that no server at hand writes, made from the values of fixtures by the tests' own writer after the layouts of
//! the servers' sources: zipmaps, plain and ziplist lists, scores as text; RDB versions 1 to 8; streams and arrays of Redis 8.6 and 8.8.

use slotkeep_model::{Product, RdbVersion};

use super::owned::{ROOMY_BYTES, records};
use super::support::{read, redis};
use super::values::{Encoded, encodings};
use super::writer;
use crate::{Level, Record, ValueType};

fn fixture(name: &str) -> Vec<Record> {
    let path = format!("{}/tests/fixtures/{name}.rdb", env!("CARGO_MANIFEST_DIR"));
    records(&[&std::fs::read(path).unwrap()], ROOMY_BYTES).unwrap()
}

fn expected(key: &[u8]) -> u128 {
    let path = format!("{}/tests/fixtures/expected.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let key = String::from_utf8_lossy(key).into_owned();
    let line = text.lines().find(|line| line.split('\t').next() == Some(&key)).unwrap();
    u128::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap()
}

fn check(encoded: &Encoded, version: RdbVersion, key: &[u8]) {
    let mut body = vec![0xfe, 0];
    writer::record(&mut body, None, encoded.value_type, key, &encoded.bytes);
    let mut rdb = writer::rdb(&version.to_string(), &body);
    if version.number < 5 {
        // Without a CRC64.
        rdb.truncate(rdb.len() - 8);
    }
    let found = read(Level::Element, &[&rdb]).unwrap();
    assert_eq!(found.digests.len(), 1);
    let title = format!("type {} in {version}: {}", encoded.value_type, key.escape_ascii());
    assert_eq!(found.digests[0].1.value, expected(key), "{title}");
    assert_eq!(read(Level::Raw, &[&rdb]).unwrap().raw[0], encoded.bytes, "{title}");
    assert_eq!(records(&[&rdb], ROOMY_BYTES).unwrap().len(), 1, "{title}");
}

#[test]
fn every_type_in_every_version_that_has_it_gives_the_digest_of_the_fixtures() {
    let mut types = std::collections::BTreeSet::new();
    let mut pairs = 0;
    for name in [
        "string_raw_v12",
        "list_quicklist2_v12",
        "set_intset_v12",
        "set_listpack_v12",
        "set_hashtable_v12",
        "zset_listpack_v12",
        "hash_listpack_v12",
        "hash_hashtable_v12",
        "hash_listpack-ttl_v12",
        "stream_listpacks3_v12",
    ] {
        for record in fixture(name) {
            // A hash with expiry of fields by its own name; streams with deletions are not the same before type 19.
            for encoded in encodings(&record.value) {
                let product = encoded.version.product;
                let value_type = ValueType::from_byte(encoded.value_type, product).unwrap();
                let deletions = matches!(&record.key[..], b"stream:deleted" | b"stream:empty");
                if value_type == ValueType::StreamListpacks && deletions {
                    continue;
                }
                let first = value_type.introduced_in(product).unwrap();
                let first = if first == 6 { 1 } else { first };
                let last = if product == Product::Redis { 14 } else { 80 };
                for number in (first..=last).filter(|number| product == Product::Redis || *number == 80) {
                    check(&encoded, RdbVersion { product, number }, &record.key);
                    pairs += 1;
                }
                types.insert(encoded.value_type);
            }
        }
    }
    assert!(pairs > 500, "{pairs}");
    let wanted = [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27];
    assert!(types.iter().eq(wanted.iter()), "{types:?}");
}

#[test]
fn expiries_in_seconds_are_read() {
    let mut body = vec![0xfe, 0, 0xfd];
    body.extend(1_700_000_000_i32.to_le_bytes());
    body.extend(b"\x00\x01k\x01v");
    let mut rdb = writer::rdb("REDIS0002", &body);
    rdb.truncate(rdb.len() - 8);
    let record = records(&[&rdb], ROOMY_BYTES).unwrap().remove(0);
    assert_eq!(record.expiry_ms, Some(1_700_000_000_000));
    // Versions from 6 on have milliseconds.
    let new = super::rewrite::rewritten(&rdb, redis(6)).unwrap();
    assert_eq!(records(&[&new], ROOMY_BYTES).unwrap()[0].expiry_ms, Some(1_700_000_000_000));
}
