//! Whole RDBs, rewritten.

use slotkeep_model::{Product, RdbVersion, SlotRange, SlotSet, key_slot};

use super::support::{cut, read, redis};
use super::writer;
use crate::{
    Crc, Envelope, Error, ErrorKind, Event, Expiry, KeyHead, Level, Modules, Parser, Policy, RdbWriter,
    Rewriter, ValueType,
};

pub(crate) fn rewrite(policy: Policy<'_>, chunks: &[&[u8]]) -> Result<Vec<u8>, Error> {
    let (mut rewriter, mut out) = (Rewriter::new(policy), Vec::new());
    for chunk in chunks {
        let mut input = *chunk;
        while !input.is_empty() {
            rewriter.feed(&mut input, &mut out)?;
        }
    }
    let (bytes, crc) = rewriter.finish(&mut out)?;
    assert_eq!(bytes, out.len() as u64);
    let mut envelope = Envelope::new();
    envelope.feed(&out);
    assert_eq!(envelope.finish().unwrap().crc, Crc::Matches(crc));
    Ok(out)
}

pub(crate) fn rewritten(rdb: &[u8], target: RdbVersion) -> Result<Vec<u8>, Error> {
    rewrite(Policy::new(target), &[rdb])
}

fn valkey() -> RdbVersion {
    RdbVersion { product: Product::Valkey, number: 80 }
}

/// An RDB with every record that Redis 8.6 writes in cluster mode.
fn redis_sample() -> Vec<u8> {
    let mut body = Vec::new();
    let mut aux = |key: &[u8], value: &[u8]| {
        body.push(0xfa);
        writer::string(&mut body, key);
        writer::string(&mut body, value);
    };
    aux(b"redis-ver", b"8.6.0");
    aux(b"repl-id", b"0123456789012345678901234567890123456789");
    aux(b"repl-offset", b"17-");
    aux(b"cluster-asm-task", b"");
    // A module's data before the keys.
    body.extend([0xf7, 0x81, 1, 2, 3, 4, 5, 6, 7, 8, 2, 1, 5, 1, b'x', 0]);
    body.push(0xf5);
    writer::string(&mut body, b"#!lua name=lib\nreturn");
    body.extend([0xfe, 0, 0xfb, 3, 1]);
    for (key, expires) in [(&b"a"[..], true), (b"b", false), (b"c", false)] {
        body.push(0xf4);
        writer::length(&mut body, u64::from(key_slot(key).number()));
        body.extend([1, u8::from(expires)]);
        if key == b"b" {
            // LRU idle time, then metadata of two classes.
            body.extend([0xf8, 7, 0xf3, 2, 1, 2, 3, 4, 2, 5, 0, 5, 6, 7, 8, 5, 1, b'm', 0]);
        }
        writer::record(&mut body, expires.then_some(1000), 0, key, b"\x01v");
    }
    body.extend([0xfe, 2, 0xf9, 200]);
    writer::record(&mut body, None, 0, b"other", b"\x01w");
    writer::rdb("REDIS0013", &body)
}

/// The events as text, without values.
fn events(rdb: &[u8]) -> Vec<String> {
    let (mut parser, mut input, mut found) = (Parser::new(Level::Raw), rdb, Vec::new());
    while let Some(event) = parser.next(&mut input).unwrap() {
        found.push(match event {
            Event::Aux { key, .. } => format!("Aux {}", key.escape_ascii()),
            event => format!("{event:?}"),
        });
    }
    parser.finish().unwrap();
    found
}

/// When each key expires.
fn expiries(rdb: &[u8]) -> Vec<Option<i64>> {
    read(Level::Element, &[rdb]).unwrap().digests.iter().map(|(_, digest)| digest.expiry_ms).collect()
}

fn keys(rdb: &[u8]) -> Vec<String> {
    let found = read(Level::Element, &[rdb]).unwrap().digests;
    found.iter().map(|(key, digest)| format!("{}/{}", digest.db, key.escape_ascii())).collect()
}

#[test]
fn an_rdb_rewritten_for_its_own_version_says_the_same() {
    let rdb = redis_sample();
    assert_eq!(rewritten(&rdb, redis(13)).unwrap(), rdb);
    for step in [1, 2, 7] {
        assert_eq!(rewrite(Policy::new(redis(13)), &cut(&rdb, &[step])).unwrap(), rdb, "chunks of {step}");
    }
}

#[test]
fn older_versions_lose_what_they_do_not_know() {
    let rdb = redis_sample();
    let all = events(&rdb);
    let in_version = |target| {
        let mut policy = Policy::new(target);
        policy.functions = target.number >= 10;
        events(&rewrite(policy, &[&rdb]).unwrap())
    };
    let has = |events: &[String], what: &str| events.iter().any(|event| event.contains(what));
    for what in ["ModuleAux", "SlotInfo", "ResizeDb", "Function", "has_meta: true", "repl-id", "idle_s: Some"]
    {
        assert!(has(&all, what), "{what}");
    }
    let valkey = in_version(valkey());
    for what in ["ModuleAux", "has_meta: true"] {
        assert!(!has(&valkey, what), "{what}");
    }
    for what in ["SlotInfo", "Function", "idle_s: Some(7)", "freq: Some(200)"] {
        assert!(has(&valkey, what), "{what}");
    }
    let redis_12 = in_version(redis(12));
    assert!(has(&redis_12, "ModuleAux") && !has(&redis_12, "has_meta: true"));
    let redis_8 = in_version(redis(8));
    for what in ["ModuleAux", "SlotInfo", "Function", "idle_s: Some", "freq: Some"] {
        assert!(!has(&redis_8, what), "{what}");
    }
    assert!(has(&redis_8, "ResizeDb") && has(&redis_8, "Aux redis-ver"));
    let redis_6 = in_version(redis(6));
    assert!(!has(&redis_6, "ResizeDb") && !has(&redis_6, "Aux redis-ver"));
    for version in [redis(6), redis(8), redis(12), self::valkey()] {
        let mut policy = Policy::new(version);
        policy.functions = false;
        assert_eq!(keys(&rewrite(policy, &[&rdb]).unwrap()), ["0/a", "0/b", "0/c", "2/other"]);
    }
    assert!(matches!(
        rewritten(&rdb, redis(9)).unwrap_err().kind,
        ErrorKind::NoEquivalent { what: "a function library", .. }
    ));
}

#[test]
fn keys_are_kept_by_slot_and_by_filter() {
    let rdb = redis_sample();
    let mut policy = Policy::new(redis(13));
    let slot = key_slot(b"b");
    policy.slots = Some(SlotSet::from_iter([SlotRange::new(slot, slot).unwrap()]));
    let new = rewrite(policy, &[&rdb]).unwrap();
    assert_eq!(keys(&new), ["0/b"]);
    let found = events(&new);
    // Counts that are wrong now, and the history of other data, are gone; the key's metadata is not.
    for gone in ["SlotInfo", "ResizeDb", "SelectDb(2)", "repl"] {
        assert!(!found.iter().any(|event| event.contains(gone)), "{gone}");
    }
    assert!(found.iter().any(|event| event.contains("has_meta: true")));

    let mut policy = Policy::new(redis(13));
    policy.filter = Some(Box::new(|header| header.db == 2 || header.expiry_ms.is_some()));
    assert_eq!(keys(&rewrite(policy, &[&rdb]).unwrap()), ["0/a", "2/other"]);
}

#[test]
fn expiries_are_dropped_moved_and_mapped() {
    let rdb = redis_sample();
    let with = |expiry| {
        let policy = Policy { expiry, ..Policy::new(redis(13)) };
        expiries(&rewrite(policy, &[&rdb]).unwrap())
    };
    assert_eq!(with(Expiry::Drop), [None; 4]);
    assert_eq!(with(Expiry::Shift(500)), [Some(1500), None, None, None]);
    assert_eq!(with(Expiry::Shift(-5000)), [Some(1), None, None, None]);
    let map = Expiry::Map(Box::new(|header| (header.key == b"c").then_some(9)));
    assert_eq!(with(map), [None, None, Some(9), None]);
}

#[test]
fn slots_being_imported_stay_only_in_a_faithful_copy() {
    let mut body = vec![0xf3];
    writer::string(&mut body, &[b'j'; 40]);
    let slot = u64::from(key_slot(b"a").number());
    body.push(1);
    writer::length(&mut body, slot);
    writer::length(&mut body, slot);
    body.extend([0xfe, 0]);
    for key in [b"a", b"b"] {
        writer::record(&mut body, None, 0, key, b"\x01v");
    }
    let rdb = writer::rdb("VALKEY080", &body);
    assert_eq!(rewritten(&rdb, valkey()).unwrap(), rdb);
    let new = rewritten(&rdb, redis(11)).unwrap();
    assert_eq!(keys(&new), ["0/b"]);
    assert!(!events(&new).iter().any(|event| event.contains("SlotImport")));
}

#[test]
fn modules_go_where_they_can_be() {
    let module = |name: &[u8; 9]| {
        let charset = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let id = name.iter().fold(0_u64, |id, character| {
            id << 6 | charset.iter().position(|known| known == character).unwrap() as u64
        }) << 10
            | 1;
        let mut value = vec![0x81];
        value.extend(id.to_be_bytes());
        value.extend([2, 7, 5, 1, b'x', 0]);
        let mut body = vec![0xfe, 0];
        writer::record(&mut body, None, 7, b"m", &value);
        writer::rdb("REDIS0012", &body)
    };
    let vectors = module(b"vectorset");
    let json = module(b"ReJSON-RL");
    let with = |rdb: &[u8], target, modules, step| {
        rewrite(Policy { modules, ..Policy::new(target) }, &cut(rdb, &[step])).map_err(|error| error.kind)
    };
    for step in [1, 1000] {
        assert_eq!(with(&vectors, redis(12), Modules::SameProduct, step).unwrap(), vectors);
        let name = *b"vectorset";
        for target in [valkey(), redis(11)] {
            assert_eq!(with(&vectors, target, Modules::All, step), Err(ErrorKind::NoModule { name, target }));
        }
        assert!(with(&json, redis(11), Modules::SameProduct, step).is_ok());
        assert!(with(&json, valkey(), Modules::All, step).is_ok());
        let name = *b"ReJSON-RL";
        let target = valkey();
        assert_eq!(
            with(&json, target, Modules::SameProduct, step),
            Err(ErrorKind::NoModule { name, target })
        );
        let target = redis(12);
        assert_eq!(with(&json, target, Modules::None, step), Err(ErrorKind::NoModule { name, target }));
    }
}

#[test]
fn nothing_whole_comes_of_a_damaged_rdb() {
    let rdb = redis_sample();
    for at in 9..rdb.len() - 8 {
        for bit in 0..8 {
            let mut flipped = rdb.clone();
            flipped[at] ^= 1 << bit;
            assert!(rewritten(&flipped, redis(13)).is_err(), "byte {at} bit {bit}");
        }
    }
    for len in 0..rdb.len() {
        assert!(rewritten(&rdb[..len], redis(13)).is_err(), "{len}");
    }
    let mut flipped = rdb.clone();
    let end = flipped.len() - 9;
    flipped[end - 1] ^= 1;
    assert!(matches!(rewritten(&flipped, redis(13)).unwrap_err().kind, ErrorKind::CrcMismatch { .. }));
}

#[test]
fn output_comes_in_bounded_portions() {
    let mut body = Vec::new();
    let mut value = Vec::new();
    writer::string(&mut value, &[7; 5000]);
    for number in 0..2000_u16 {
        writer::record(&mut body, None, 0, &number.to_be_bytes(), &value);
    }
    let rdb = writer::rdb("REDIS0011", &body);
    let (mut rewriter, mut out, mut input) = (Rewriter::new(Policy::new(redis(9))), Vec::new(), &rdb[..]);
    let mut portions = 0;
    while !input.is_empty() {
        rewriter.feed(&mut input, &mut out).unwrap();
        assert!(out.len() < 300 << 10);
        portions += 1;
        out.clear();
    }
    assert!(portions > 30);
    assert_eq!(rewriter.counts().written, 2000);
}

#[test]
fn writers_refuse_what_their_version_does_not_have() {
    let mut out = Vec::new();
    for version in [redis(5), redis(15), RdbVersion { product: Product::Valkey, number: 81 }] {
        assert!(matches!(RdbWriter::new(version, &mut out), Err(ErrorKind::UnknownVersion(_))), "{version}");
    }
    let mut writer = RdbWriter::new(redis(9), &mut out).unwrap();
    let mut head =
        KeyHead { key: b"k", value_type: ValueType::HashListpack, expiry_ms: None, idle_s: None, freq: None };
    assert!(matches!(writer.key(&head, &mut out), Err(ErrorKind::NoEquivalent { .. })));
    assert!(writer.function(b"x", &mut out).is_err());
    head.value_type = ValueType::String;
    writer.select_db(3, &mut out);
    writer.key(&head, &mut out).unwrap();
    writer.value_bytes(b"\x01v", &mut out);
    let (bytes, _) = writer.finish(&mut out);
    assert_eq!(bytes, out.len() as u64);
    assert_eq!(keys(&out), ["3/k"]);
}
