//! Reading while clients write, within the limits that were set.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Cluster, ClusterBuilder};

use super::common::{Run, server};
use super::{Place, USER, addr};

const RULES: &str = "on >secret ~* +@all -psync -sync -replconf";

/// How long the base of the first shard was read.
fn reading(manifest: &Value) -> Duration {
    let read = &manifest["shards"][0]["read"];
    let moment = |name: &str| read[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    moment("until").duration_since(moment("from")).unsigned_abs()
}

fn one_shard(name: &str, keys: usize) -> Cluster {
    let cluster = ClusterBuilder::new(server(name)).primaries(1).acl_user(USER, RULES).start().unwrap();
    let mut client = cluster.nodes()[0].client().unwrap();
    let sets: Vec<Vec<String>> = (0..keys)
        .map(|number| vec!["SET".to_owned(), format!("still:{number}"), number.to_string()])
        .collect();
    client.pipeline(&sets).unwrap();
    cluster
}

/// Until it is told to stop: sets keys to the moment at which they expire, in one command; makes the tables grow; deletes what was there.
fn disturb(cluster: &Cluster, stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let mut client = cluster.nodes()[0].client().unwrap();
    thread::spawn(move || {
        let mut round = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let mut commands = Vec::new();
            for number in 0..100_u64 {
                let ends = (4_000_000_000_000 + round * 100 + number).to_string();
                let key = format!("pair:{number}");
                commands.push(vec!["SET".to_owned(), key, ends.clone(), "PXAT".to_owned(), ends]);
                commands.push(vec!["SET".to_owned(), format!("grow:{round}:{number}"), "x".to_owned()]);
                commands.push(vec!["DEL".to_owned(), format!("gone:{}", round * 100 + number)]);
            }
            client.pipeline(&commands).unwrap();
            round += 1;
        }
        round
    })
}

#[test]
fn nothing_is_torn_doubled_or_missed_while_a_client_writes() {
    const STILL: usize = 6000;
    let cluster = one_shard("redis-7.0", STILL);
    let mut client = cluster.nodes()[0].client().unwrap();
    let gone: Vec<Vec<String>> =
        (0..20_000).map(|number| vec!["SET".to_owned(), format!("gone:{number}"), "x".to_owned()]).collect();
    client.pipeline(&gone).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = disturb(&cluster, Arc::clone(&stop));
    let place = Place::new();
    let manifest =
        place.backup(&cluster, &["--source", "scan", "--scan-rate", "15000"]).expect_code(0).json();
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 20, "it wrote meanwhile");
    assert!(reading(&manifest) > Duration::from_millis(300));

    let keys = place.path("keys.jsonl");
    let repo = place.path("repo");
    super::common::slotkeep(&["export", "--repo", &repo, "latest", "--format", "json", "--output", &keys])
        .expect_code(0);
    let text = std::fs::read_to_string(&keys).unwrap();
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    let mut pairs = 0;
    for line in text.lines() {
        let key: Value = serde_json::from_str(line).unwrap();
        let name = key["key"].as_str().unwrap().to_owned();
        if name.starts_with("pair:") {
            assert_eq!(key["value"].as_str().unwrap(), key["expires_at_ms"].to_string(), "torn: {line}");
            pairs += 1;
        }
        assert!(found.insert(name.clone(), key["value"].clone()).is_none(), "{name} is there twice");
    }
    assert!(pairs > 0);
    let missed: BTreeSet<usize> = (0..STILL)
        .filter(|number| found.get(&format!("still:{number}")) != Some(&number.to_string().into()))
        .collect();
    assert_eq!(missed, BTreeSet::new());
    let sound = place.run(&["verify", "--depth", "structure"]).expect_code(0).json();
    assert_eq!(sound["findings"].as_array().unwrap().len(), 0, "{sound}");
}

#[test]
fn the_rates_are_kept() {
    let cluster = one_shard("valkey-9.1", 3000);
    let place = Place::new();
    let scan = |more: &[&str]| {
        let run = place.backup(&cluster, &[&["--source", "scan"], more].concat()).expect_code(0);
        reading(&run.json())
    };
    // 3000 keys, listed ten times as fast as they are read, less what may be read at once.
    let by_keys = scan(&["--scan-rate", "2000"]);
    assert!(by_keys >= Duration::from_millis(1450), "{by_keys:?}");
    let mut client = cluster.nodes()[0].client().unwrap();
    // Noise, which servers can't compress: what is limited is what comes over the wire.
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + u8::try_from(state >> 58).unwrap())
    };
    for number in 0..8 {
        let value: String = (0..200_000).map(|_| noise()).collect();
        client.command(&["SET", &format!("long:{number}"), &value]).unwrap();
    }
    let by_bytes = scan(&["--scan-rate", "0", "--scan-bytes", "1MiB"]);
    assert!(by_bytes >= Duration::from_millis(1300), "{by_bytes:?}");
}

/// A string of 64 MiB and a hash of a million fields pass by; one that is larger than allowed is refused by its name.
#[test]
fn values_of_any_length_pass_in_bounded_memory() {
    let cluster =
        ClusterBuilder::new(server("valkey-9.1")).primaries(1).acl_user(USER, RULES).start().unwrap();
    let loaded = Mix::every_type().with_big_string().with_big_hash().load(&cluster).unwrap();
    let place = Place::new();
    let run = place.backup(&cluster, &["--source", "scan", "--scan-max-value", "32MiB"]).expect_code(32);
    assert!(run.stderr.contains("--scan-max-value") && run.stderr.contains("key "), "{}", run.stderr);
    let list = place.run(&["list"]).expect_code(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 0);

    let mut backup = place.backup_command(&cluster, &["--source", "scan", "--scan-bytes", "0"]);
    let mut child = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (status, mut peak_kib) = (format!("/proc/{}/status", child.id()), 0_u64);
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        peak_kib = peak_kib.max(peak.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        thread::yield_now();
    }
    let run = Run::of(&child.wait_with_output().unwrap()).expect_code(0);
    assert_eq!(run.json()["digest"]["keys"].as_u64().unwrap(), loaded.keys());
    // Less than the string alone: it never was in memory.
    assert!(peak_kib > 10_000 && peak_kib < 96 << 10, "{peak_kib} KiB");
    place.same_as(&addr(&cluster));
}
