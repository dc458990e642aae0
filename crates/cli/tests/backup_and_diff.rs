//! A backup holds what the cluster holds, and `diff` proves it: nothing differs, and one changed element is named.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{files, server, slotkeep};
use slotkeep_testkit::data::{Mix, Writer};
use slotkeep_testkit::{Cluster, ClusterBuilder};

fn addr(cluster: &Cluster) -> String {
    cluster.nodes()[0].addr().to_string()
}

fn backup(cluster: &Cluster, repo: &Path) -> serde_json::Value {
    let cluster = addr(cluster);
    slotkeep(&["backup", "--json", "--repo", repo.to_str().unwrap(), "--cluster", &cluster])
        .expect_code(0)
        .json()
}

/// Backs up a cluster with data of every type, and compares it with the backup; then changes one thing after another.
fn every_type_is_backed_up_and_every_change_is_named(server_name: &str) {
    let cluster =
        ClusterBuilder::new(server(server_name)).primaries(3).replicas_per_primary(1).start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let manifest = backup(&cluster, &repo);

    assert_eq!(manifest["digest"]["keys"].as_u64().unwrap(), loaded.keys());
    let shards = manifest["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 3);
    for shard in shards {
        assert_eq!(shard["source_role"], "replica", "a replica in sync goes before the primary");
        assert_eq!(shard["base"]["crc64"], "verified");
        assert!(shard["base"]["not_interpreted"].is_null());
    }

    let repo_text = repo.to_str().unwrap();
    let diff = |code| {
        slotkeep(&["diff", "--json", "--repo", repo_text, "latest", &addr(&cluster)]).expect_code(code).json()
    };
    assert_eq!(diff(0)["differing_slot_count"], 0);

    let mut client = cluster.client().unwrap();
    let mut change = |key: &str, args: &[&str]| {
        client.command_on(key.as_bytes(), args).unwrap();
    };
    change("one:hash", &["HSET", "one:hash", "field", "1", "other", "2"]);
    change("one:expiring", &["SET", "one:expiring", "x", "PXAT", "4000000000000"]);
    change("one:type", &["SET", "one:type", "x"]);
    change("one:gone", &["SET", "one:gone", "x"]);
    backup(&cluster, &repo);
    assert_eq!(diff(0)["differing_slot_count"], 0);

    change("one:hash", &["HSET", "one:hash", "field", "2"]);
    change("one:expiring", &["PEXPIREAT", "one:expiring", "4000000000001"]);
    change("one:type", &["DEL", "one:type"]);
    change("one:type", &["RPUSH", "one:type", "x"]);
    change("one:gone", &["DEL", "one:gone"]);
    change("one:new", &["SET", "one:new", "x"]);
    let found = diff(40);
    let mut named: Vec<(String, String)> = found["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (key["key"].as_str().unwrap().to_owned(), key["difference"].as_str().unwrap().to_owned()))
        .collect();
    named.sort();
    let expected = [
        ("\"one:expiring\"", "expiry"),
        ("\"one:gone\"", "only_in_a"),
        ("\"one:hash\"", "value"),
        ("\"one:new\"", "only_in_b"),
        ("\"one:type\"", "type"),
    ];
    assert_eq!(named, expected.map(|(key, how)| (key.to_owned(), how.to_owned())));

    let text = slotkeep(&["diff", "--repo", repo_text, "latest", &addr(&cluster)]).expect_code(40).stdout;
    assert!(text.contains("type: string in A, list in B"), "{text}");
}

#[test]
fn every_type_on_redis_7_0() {
    every_type_is_backed_up_and_every_change_is_named("redis-7.0");
}

#[test]
fn every_type_on_valkey_9_1() {
    every_type_is_backed_up_and_every_change_is_named("valkey-9.1");
}

#[test]
fn a_cluster_without_keys_is_backed_up_and_listed() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(3).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let manifest = backup(&cluster, &repo);
    assert_eq!(manifest["digest"]["keys"], 0);
    let list = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    assert_eq!(list["backups"][0]["id"], manifest["id"]);
    let show = slotkeep(&["show", "--repo", repo.to_str().unwrap()]).expect_code(0).stdout;
    assert!(show.contains(manifest["id"].as_str().unwrap()), "{show}");
}

#[test]
fn an_idle_server_is_backed_up_twice_at_the_same_offset() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).cluster_mode(false).start().unwrap();
    cluster.client().unwrap().command(&["SET", "key", "value"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let (first, second) = (backup(&cluster, &repo), backup(&cluster, &repo));
    assert_ne!(first["id"], second["id"]);
    assert_eq!(first["digest"], second["digest"]);
    assert_eq!(files(&repo).iter().filter(|(name, _)| name.ends_with("rdb.zst")).count(), 2);
}

/// The data is reachable without Slotkeep: `zstd -d` gives an RDB that a stock server loads.
#[test]
fn stock_tools_get_the_data_out() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).cluster_mode(false).start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let manifest = backup(&cluster, &repo);
    let object = repo.join(manifest["shards"][0]["base"]["rdb"]["path"].as_str().unwrap());
    let node = &cluster.nodes()[0];
    node.shutdown().unwrap();
    let rdb = node.dir().join("dump.rdb");
    let unpacked =
        std::process::Command::new("zstd").args(["-dqf"]).arg(&object).arg("-o").arg(&rdb).status().unwrap();
    assert!(unpacked.success());
    node.start().unwrap();
    let keys = node.client().unwrap().command(&["DBSIZE"]).unwrap().int().unwrap();
    assert_eq!(keys.unsigned_abs(), loaded.keys());
}

/// Backups of an idle cluster follow one another within a second: the latest is the one that was taken last.
#[test]
fn the_latest_of_several_backups_in_a_second_is_the_last_one() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(1).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    for _ in 0..8 {
        let taken = backup(&cluster, &repo);
        let latest = slotkeep(&["show", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
        assert_eq!(latest["id"], taken["id"]);
    }
}

/// As somebody has who takes backups and archives nothing: that the log was not kept in between is no fault.
#[test]
fn backups_without_an_archive_between_them_are_sound() {
    // While nobody writes nothing is in the log, no ping either.
    let quiet = ClusterBuilder::new(server("redis-7.0")).config("repl-ping-replica-period", "3600");
    let cluster = quiet.primaries(3).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let text = repo.to_str().unwrap();
    let writer = Writer::start(&cluster, 1000).unwrap();
    for _ in 0..3 {
        writer.wait_for_more(300).unwrap();
        backup(&cluster, &repo);
    }
    writer.stop();
    backup(&cluster, &repo);
    let record = slotkeep(&["verify", "--json", "--repo", text]).expect_code(0).json();
    let findings = record["findings"].as_array().unwrap();
    assert!(!findings.is_empty(), "{record}");
    for finding in findings {
        assert_eq!(finding["severity"], "note");
        assert!(finding["what"].as_str().unwrap().contains(" was not kept from byte "), "{finding}");
    }
    // The last one has no log, and leads to no moment but its own.
    let list = slotkeep(&["list", "--repo", text]).expect_code(0).stdout;
    let (_, table) = list.split_once("history ").unwrap();
    let offsets = table.lines().filter_map(|row| row.rsplit_once(' ')?.1.split_once('-'));
    let (mut windows, mut alone) = (0, 0);
    for (from, to) in offsets {
        windows += 1;
        alone += usize::from(from == to);
    }
    assert!(windows > 0 && alone == 0, "{list}");
}
