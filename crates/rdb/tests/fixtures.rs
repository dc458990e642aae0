//! One small RDB for each kind of value, encoding and RDB version, written by a real server (`scripts/rdb-fixtures.sh`): each is read at all
//! three levels, in any chunks, and gives the digests that all others give for the same keys.
#![allow(missing_docs, unreachable_pub, reason = "a test")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests end at the first surprise"
)]

mod common;

use std::collections::BTreeSet;

use common::files::{Expected, all_fixtures, digests, expected, keep_all, rewrite};
use slotkeep_model::RdbVersion;
use slotkeep_rdb::{
    Crc, Decoder, Envelope, Error, Event, Level, OwnedEvent, Parser, RdbWriter, Reader, Record, ValueType,
};

/// Kind of value and encoding, and the RDB versions in which a server of `scripts/servers.sh` writes it.
const TABLE: &[(&str, &[u16])] = &[
    ("hash_hashtable", &[9, 10, 11, 12, 80]),
    ("hash_hashtable-ttl", &[12, 80]),
    ("hash_listpack", &[10, 11, 12, 80]),
    ("hash_listpack-ttl", &[12]),
    ("hash_ziplist", &[9]),
    ("list_quicklist", &[9]),
    ("list_quicklist2", &[10, 11, 12, 80]),
    ("set_hashtable", &[9, 10, 11, 12, 80]),
    ("set_intset", &[9, 10, 11, 12, 80]),
    ("set_listpack", &[11, 12, 80]),
    ("stream_listpacks", &[9]),
    ("stream_listpacks2", &[10]),
    ("stream_listpacks3", &[11, 12, 80]),
    ("string_raw", &[9, 10, 11, 12, 80]),
    ("zset_listpack", &[10, 11, 12, 80]),
    ("zset_skiplist", &[9, 10, 11, 12, 80]),
    ("zset_ziplist", &[9]),
];

#[test]
fn there_is_a_fixture_for_every_row() {
    let wanted: BTreeSet<String> = TABLE
        .iter()
        .flat_map(|(name, versions)| versions.iter().map(move |version| format!("{name}_v{version}")))
        .collect();
    let found: BTreeSet<String> = all_fixtures().into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, wanted);
}

#[test]
fn each_holds_what_its_name_says() {
    for (name, rdb) in all_fixtures() {
        let mut envelope = Envelope::new();
        envelope.feed(&rdb);
        let report = envelope.finish().unwrap();
        assert!(matches!(report.crc, Crc::Matches(_)), "{name}");
        let found = digests(&rdb).unwrap();
        assert!(!found.is_empty(), "{name}");
        for (value_type, _) in found.values() {
            let number = report.version.number;
            assert_eq!(name, format!("{}_{}_v{number}", value_type.logical().name(), value_type.encoding()));
        }
    }
}

#[test]
fn each_gives_the_digests_that_all_others_give() {
    let expected = expected();
    let mut seen = BTreeSet::new();
    for (name, rdb) in all_fixtures() {
        for (key, (_, digest)) in digests(&rdb).unwrap() {
            let found = Expected { elements: digest.elements, value: digest.value };
            assert_eq!(found, expected[&key], "{name} {key}");
            seen.insert(key);
        }
    }
    assert!(seen.iter().eq(expected.keys()), "every expectation is met somewhere");
}

/// The events of an RDB as text; of the values' bytes, parts joined.
fn events(level: Level, chunks: &[&[u8]]) -> Result<Vec<String>, Error> {
    let (mut parser, mut found, mut joined) = (Parser::new(level), Vec::new(), Vec::new());
    for chunk in chunks {
        let mut input = *chunk;
        while let Some(event) = parser.next(&mut input)? {
            match event {
                Event::ValueBytes(bytes) => joined.extend_from_slice(bytes),
                Event::Element(slotkeep_rdb::Element::Bytes { part, bytes, last }) => {
                    joined.extend_from_slice(bytes);
                    if last {
                        found.push(format!("{part:?} {}", joined.escape_ascii()));
                        joined.clear();
                    }
                }
                event => {
                    found.push(format!("{} {event:?}", joined.escape_ascii()));
                    joined.clear();
                }
            }
        }
    }
    parser.finish()?;
    Ok(found)
}

fn records(chunks: &[&[u8]]) -> Result<Vec<Record>, Error> {
    let (mut reader, mut found) = (Reader::new(1 << 20), Vec::new());
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

#[test]
fn any_chunks_give_the_same_at_all_three_levels() {
    for (name, rdb) in all_fixtures() {
        let whole: &[&[u8]] = &[&rdb];
        for step in [1, 2, 3, 7, 61, 1000] {
            let parts: Vec<&[u8]> = rdb.chunks(step).collect();
            for level in [Level::Raw, Level::Element] {
                let one = events(level, whole).unwrap();
                assert_eq!(one, events(level, &parts).unwrap(), "{name} {level:?} in chunks of {step}");
            }
            assert_eq!(records(whole).unwrap(), records(&parts).unwrap(), "{name} in chunks of {step}");
        }
    }
}

/// A raw value, decoded by itself, gives the elements that it gives in its RDB.
#[test]
fn raw_values_are_what_decoders_read() {
    for (name, rdb) in all_fixtures() {
        let (mut parser, mut input) = (Parser::new(Level::Raw), &rdb[..]);
        let (mut values, mut value, mut value_type): (Vec<(ValueType, Vec<u8>)>, _, _) =
            (Vec::new(), Vec::new(), ValueType::String);
        while let Some(event) = parser.next(&mut input).unwrap() {
            match event {
                Event::Key(header) => value_type = header.value_type,
                Event::ValueBytes(bytes) => value.extend_from_slice(bytes),
                Event::KeyEnd { .. } => values.push((value_type, std::mem::take(&mut value))),
                _ => {}
            }
        }
        for (value_type, value) in values {
            let (mut decoder, mut input) = (Decoder::new(value_type, parser.version().unwrap()), &value[..]);
            let mut ended = false;
            while let Some(element) = decoder.next(&mut input).unwrap() {
                ended = element == slotkeep_rdb::Element::End;
                if ended {
                    break;
                }
            }
            assert!(ended && input.is_empty(), "{name}");
        }
    }
}

/// What is read as values and written again, by the writer, has the digests that it had.
#[test]
fn values_written_again_have_the_same_digests() {
    for (name, rdb) in all_fixtures() {
        let version = version_of(&rdb);
        let mut out = Vec::new();
        let mut writer = RdbWriter::new(version, &mut out).unwrap();
        writer.select_db(0, &mut out);
        for record in records(&[&rdb]).unwrap() {
            let mut value = Vec::new();
            let value_type = record.value.encode(version, &mut value).unwrap();
            let head = slotkeep_rdb::KeyHead {
                key: &record.key,
                value_type,
                expiry_ms: record.expiry_ms,
                idle_s: record.idle_s,
                freq: record.freq,
            };
            writer.key(&head, &mut out).unwrap();
            writer.value_bytes(&value, &mut out);
        }
        writer.finish(&mut out);
        let hashes = |rdb: &[u8]| -> Vec<u128> {
            digests(rdb).unwrap().values().map(|(_, digest)| digest.hash).collect()
        };
        assert_eq!(hashes(&rdb), hashes(&out), "{name}");
    }
}

fn version_of(rdb: &[u8]) -> RdbVersion {
    RdbVersion::from_magic(rdb.first_chunk().unwrap()).unwrap()
}

/// For its own version, each comes out of the rewriter as it went in, byte for byte.
#[test]
fn a_rewriter_that_changes_nothing_changes_nothing() {
    for (name, rdb) in all_fixtures() {
        assert_eq!(rewrite(&rdb, keep_all(version_of(&rdb))).unwrap(), rdb, "{name}");
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_an_error() {
    for (name, rdb) in all_fixtures() {
        let version = version_of(&rdb);
        for len in (0..rdb.len()).step_by(1 + rdb.len() / 200) {
            assert!(rewrite(&rdb[..len], keep_all(version)).is_err(), "{name} cut to {len}");
            assert!(records(&[&rdb[..len]]).is_err(), "{name} cut to {len}");
        }
        for at in (9..rdb.len() - 8).step_by(1 + rdb.len() / 200) {
            let mut flipped = rdb.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(rewrite(&flipped, keep_all(version)).is_err(), "{name} flipped at {at}");
            let _ = records(&[&flipped]);
        }
    }
}
