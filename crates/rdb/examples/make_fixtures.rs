//! Makes the fixtures of this crate's tests from real servers: `scripts/rdb-fixtures.sh`.
//!
//! For each server and each threshold of encodings the dataset is loaded, and its keys are saved again in one RDB for each encoding
//! that the server chose. A fixture that an earlier server of the same RDB version made is kept.

#![expect(clippy::print_stdout, reason = "a program for the command line")]
#![expect(clippy::disallowed_macros, reason = "a program for the command line")]
#![expect(clippy::unwrap_used, reason = "a program for developers, which stops at the first surprise")]
#![allow(missing_docs, unreachable_pub, reason = "shared with the tests")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write;

use common::dataset::{self, THRESHOLDS};
use common::files::{Expected, digests, fixtures};
use common::reload::Single;
use slotkeep_rdb::Envelope;
use slotkeep_testkit::servers;

fn main() {
    std::fs::create_dir_all(fixtures()).unwrap();
    let mut made = BTreeMap::new();
    let mut expected = BTreeMap::new();
    for name in servers::NAMES {
        let mut single = Single::start(name);
        for threshold in THRESHOLDS {
            make(&mut single, threshold, &mut made, &mut expected);
        }
    }
    for (name, rdb) in &made {
        std::fs::write(fixtures().join(format!("{name}.rdb")), rdb).unwrap();
        println!("{name}.rdb {} bytes", rdb.len());
    }
    let mut text = String::new();
    for (key, Expected { elements, value }) in &expected {
        writeln!(text, "{key}\t{elements}\t{value:032x}").unwrap();
    }
    std::fs::write(fixtures().join("expected.txt"), text).unwrap();
}

fn make(
    single: &mut Single,
    threshold: dataset::Threshold,
    made: &mut BTreeMap<String, Vec<u8>>,
    expected: &mut BTreeMap<String, Expected>,
) {
    dataset::configure(&mut single.client, threshold).unwrap();
    single.client.command(&["FLUSHALL"]).unwrap();
    let items = dataset::items(&single.server);
    dataset::load(&mut single.client, &items).unwrap();
    let rdb = single.save();
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut envelope = Envelope::new();
    envelope.feed(&rdb);
    let number = envelope.version().unwrap().number;
    for (key, (value_type, digest)) in digests(&rdb).unwrap() {
        let found = Expected { elements: digest.elements, value: digest.value };
        let before = expected.entry(key.clone()).or_insert_with(|| found.clone());
        assert!(*before == found, "{} {threshold:?}: {key} differs", single.server.version());
        let name = format!("{}_{}_v{number}", value_type.logical().name(), value_type.encoding());
        groups.entry(name).or_default().push(key);
    }
    for (name, keys) in groups {
        if made.contains_key(&name) {
            continue;
        }
        single.client.command(&["FLUSHALL"]).unwrap();
        let all = dataset::items(&single.server);
        let wanted: Vec<_> = all.into_iter().filter(|item| keys.iter().any(|key| key == item.key)).collect();
        dataset::load(&mut single.client, &wanted).unwrap();
        made.insert(name, single.save());
    }
}
