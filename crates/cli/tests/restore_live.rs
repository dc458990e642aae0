//! A restore into a running cluster brings everything back, on any topology, whatever happens meanwhile; or it writes nothing. The proof
//! is `slotkeep diff`: it compares the digests of all slots of the backup and of the target as it runs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{Run, command, files, server, slotkeep};
use slotkeep_model::{Slot, key_slot};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder, Proxy};
use tempfile::TempDir;

/// A repository with one backup, and the state files of restores from it.
struct Bench {
    folder: TempDir,
}

fn addr(cluster: &Cluster) -> String {
    cluster.nodes()[0].addr().to_string()
}

fn cluster(name: &str, primaries: usize, replicas: usize) -> Cluster {
    let builder = ClusterBuilder::new(server(name)).primaries(primaries).replicas_per_primary(replicas);
    builder.config("cluster-node-timeout", "2000").start().unwrap()
}

fn standalone(name: &str) -> Cluster {
    ClusterBuilder::new(server(name)).primaries(1).cluster_mode(false).start().unwrap()
}

impl Bench {
    /// Backs a cluster up.
    fn of(source: &Cluster) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        slotkeep(&["backup", "--repo", &bench.repo(), "--cluster", &addr(source)]).expect_code(0);
        bench
    }

    fn repo(&self) -> String {
        self.path("repo")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn arguments(&self, to: &str, more: &[&str]) -> Vec<String> {
        let (repo, state) = (self.repo(), self.path("state.json"));
        let fixed = ["restore", "--json", "--repo", &repo, "--to", to, "--state", &state];
        fixed.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    }

    fn restore(&self, target: &Cluster, more: &[&str]) -> Run {
        slotkeep(&self.arguments(&addr(target), more))
    }

    fn start(&self, to: &str, more: &[&str]) -> Child {
        let mut command = command();
        command.args(self.arguments(to, more)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// What differs between the backup and the target.
    fn diff(&self, target: &Cluster) -> Run {
        slotkeep(&["diff", "--json", "--repo", &self.repo(), "latest", &addr(target)])
    }

    #[track_caller]
    fn expect_same(&self, target: &Cluster) {
        let diff = self.diff(target);
        assert_eq!(diff.code, 0, "{}\n{}", diff.stdout, diff.stderr);
    }
}

fn keys_on(cluster: &Cluster) -> u64 {
    let of_shard = |shard| {
        let mut client = cluster.primary(shard).unwrap().client().unwrap();
        u64::try_from(client.command(&["DBSIZE"]).unwrap().int().unwrap()).unwrap()
    };
    (0..cluster.shards()).map(of_shard).sum()
}

fn no_temporary_keys(cluster: &Cluster) {
    for shard in 0..cluster.shards() {
        let mut client = cluster.primary(shard).unwrap().client().unwrap();
        let found = client.command(&["KEYS", "slotkeep:restore:*"]).unwrap();
        assert!(found.array().unwrap().is_empty(), "{found:?}");
    }
}

fn expired_by_now(source: &Cluster) -> Vec<String> {
    let mut client = source.client().unwrap();
    // DEBUG keeps the key in the snapshot although its time is up.
    for shard in 0..source.shards() {
        source
            .primary(shard)
            .unwrap()
            .client()
            .unwrap()
            .command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"])
            .unwrap();
    }
    let keys: Vec<String> = (0..50).map(|number| format!("short-lived:{number}")).collect();
    for key in &keys {
        client.command(&["SET", key, "x", "PX", "1"]).unwrap();
    }
    keys
}

/// Every type and function, and keys that have expired, from three shards to clusters of other shapes.
fn to_other_shapes(from: &str, to: &str) {
    let source = cluster(from, 3, 0);
    let loaded = Mix::every_type().load(&source).unwrap();
    let expired = expired_by_now(&source);
    let bench = Bench::of(&source);
    for primaries in [2, 5] {
        let target = cluster(to, primaries, 0);
        let report = bench.restore(&target, &[]).expect_code(0).json();
        assert_eq!(report["restored"], loaded.keys());
        assert_eq!(report["skipped_expired"], expired.len() as u64);
        assert_eq!(report["functions"].as_u64().unwrap() > 0, loaded.functions);
        bench.expect_same(&target);
        if from == to {
            // Versions print the same scores differently.
            loaded.verify(&mut target.client().unwrap()).unwrap();
        }
        assert!(!PathBuf::from(bench.path("state.json")).exists(), "nothing is left to go on from");
    }
    let target = standalone(to);
    bench.restore(&target, &[]).expect_code(0);
    bench.expect_same(&target);
}

#[test]
fn redis_7_0_to_valkey_9_1_of_other_shapes() {
    to_other_shapes("redis-7.0", "valkey-9.1");
}

#[test]
fn valkey_9_1_to_valkey_9_1_of_other_shapes() {
    to_other_shapes("valkey-9.1", "valkey-9.1");
}

#[test]
fn redis_7_4_to_redis_8_2_of_other_shapes() {
    to_other_shapes("redis-7.4", "redis-8.2");
}

/// With a tiny limit every value goes element by element.
fn element_by_element(from: &str, to: &str) {
    let source = cluster(from, 2, 0);
    let loaded = Mix::every_type().load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster(to, 3, 0);
    let tiny = ["--max-restore-bytes", "1"];
    let run = bench.restore(&target, &tiny).expect_code(0);
    let report = run.json();
    assert_eq!(report["restored"], loaded.keys());
    assert_eq!(report["element_wise"], loaded.keys());
    no_temporary_keys(&target);
    // Servers don't claim pending entries whose stream entries are deleted; that is said, and is all that differs.
    assert_eq!(report["pending_left_out"], 2);
    assert!(run.stderr.contains("2 pending entries"), "{}", run.stderr);
    let diff = bench.diff(&target).expect_code(40).json();
    assert_eq!(diff["keys"].as_array().unwrap().len(), 1, "{diff}");
    assert_eq!(diff["keys"][0]["key"], "\"stream:long\"");
    let acknowledge = ["XACK", "stream:long", "workers", "1700000000001-1", "1700000000010-1"];
    source.client().unwrap().command(&acknowledge).unwrap();
    let again = Bench::of(&source);
    again.expect_same(&target);
}

#[test]
fn element_by_element_on_valkey_9_1() {
    element_by_element("redis-7.0", "valkey-9.1");
    element_by_element("valkey-9.1", "valkey-9.1");
}

#[test]
fn a_big_string_and_a_big_hash_arrive_and_nothing_temporary_stays() {
    let source = cluster("valkey-9.1", 3, 0);
    Mix::every_type().with_big_string().with_big_hash().load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 2, 0);
    let report = bench.restore(&target, &["--max-restore-bytes", "4000000"]).expect_code(0).json();
    assert!(report["element_wise"].as_u64().unwrap() >= 2);
    bench.expect_same(&target);
    no_temporary_keys(&target);
}

#[test]
fn databases_go_to_a_standalone_server_and_are_refused_by_a_cluster() {
    let source = standalone("redis-7.0");
    let mut client = source.node(0).unwrap().client().unwrap();
    for database in ["0", "3", "7"] {
        client.command(&["SELECT", database]).unwrap();
        for key in ["a", "b", "c"] {
            client.command(&["SET", key, database]).unwrap();
        }
    }
    let bench = Bench::of(&source);
    let target = standalone("valkey-9.1");
    assert_eq!(bench.restore(&target, &[]).expect_code(0).json()["restored"], 9);
    bench.expect_same(&target);
    let refusing = cluster("redis-7.0", 1, 0);
    let refused = bench.restore(&refusing, &[]).expect_code(32);
    assert!(refused.stderr.contains("database 7"), "{}", refused.stderr);
    assert_eq!(keys_on(&refusing), 0);
}

fn small_source() -> Cluster {
    let source = cluster("redis-7.0", 3, 0);
    let mut client = source.client().unwrap();
    for number in 0..300 {
        client.command(&["SET", &format!("key:{number}"), &format!("value:{number}")]).unwrap();
    }
    source
}

#[test]
fn a_target_with_data_is_refused_and_policies_decide_what_becomes_of_it() {
    let bench = Bench::of(&small_source());
    let target = cluster("valkey-9.1", 2, 0);
    let mut client = target.client().unwrap();
    let set = |client: &mut slotkeep_testkit::ClusterClient, key: &str, value: &str| {
        client.command(&["SET", key, value]).unwrap();
    };
    // A slot of which the backup holds no key.
    let used: Vec<Slot> = (0..300).map(|number| key_slot(format!("key:{number}").as_bytes())).collect();
    let elsewhere = (0..1_000_000)
        .map(|number| format!("else:{number}"))
        .find(|key| !used.contains(&key_slot(key.as_bytes())))
        .unwrap();
    set(&mut client, &elsewhere, "mine");
    let refused = bench.restore(&target, &[]).expect_code(30);
    assert!(refused.stderr.contains("holds 1 keys") && refused.stderr.contains("hint"), "{}", refused.stderr);

    set(&mut client, "key:7", "mine");
    let refused = bench.restore(&target, &["--allow-other-data"]).expect_code(31);
    let slot = format!("{}: 1", key_slot(b"key:7"));
    assert!(refused.stderr.contains(&slot), "{}", refused.stderr);
    assert_eq!(keys_on(&target), 2, "nothing was written");

    let plan = bench.restore(&target, &["--on-conflict", "skip", "--dry-run"]).expect_code(0).json();
    assert_eq!(plan["keys"], 300);
    assert_eq!(keys_on(&target), 2, "nothing was written");

    let report = bench.restore(&target, &["--on-conflict", "skip"]).expect_code(0).json();
    assert_eq!((report["restored"].as_u64(), report["skipped_existing"].as_u64()), (Some(299), Some(1)));
    assert_eq!(client.command(&["GET", "key:7"]).unwrap().text().unwrap(), "mine");

    let report = bench.restore(&target, &["--on-conflict", "replace"]).expect_code(0).json();
    assert_eq!(report["restored"], 300);
    assert_eq!(client.command(&["GET", "key:7"]).unwrap().text().unwrap(), "value:7");
    assert_eq!(client.command(&["GET", &elsewhere]).unwrap().text().unwrap(), "mine");
    client.command(&["DEL", &elsewhere]).unwrap();
    bench.expect_same(&target);
}

#[test]
fn policies_hold_for_values_that_go_element_by_element() {
    let bench = Bench::of(&small_source());
    let target = standalone("valkey-9.1");
    let mut client = target.node(0).unwrap().client().unwrap();
    client.command(&["SET", "key:7", "mine"]).unwrap();
    let tiny = |policy| ["--max-restore-bytes", "1", "--on-conflict", policy];
    bench.restore(&target, &tiny("fail")).expect_code(30);
    bench.restore(&target, &["--allow-other-data"]).expect_code(31);
    let report = bench.restore(&target, &tiny("skip")).expect_code(0).json();
    assert_eq!(report["skipped_existing"], 1);
    assert_eq!(client.command(&["GET", "key:7"]).unwrap().text().unwrap(), "mine");
    bench.restore(&target, &tiny("replace")).expect_code(0);
    bench.expect_same(&target);
    no_temporary_keys(&target);
}

#[test]
fn another_version_of_a_function_library_is_a_conflict() {
    let source = cluster("redis-7.0", 1, 0);
    let library =
        |body: &str| format!("#!lua name=lib\nredis.register_function('f', function() return {body} end)");
    let load = |cluster: &Cluster, body: &str| {
        let mut client = cluster.node(0).unwrap().client().unwrap();
        client.command(&["FUNCTION", "LOAD", "REPLACE", &library(body)]).unwrap();
    };
    load(&source, "1");
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 1, 0);
    load(&target, "2");
    let refused = bench.restore(&target, &[]).expect_code(31);
    assert!(refused.stderr.contains("function library `lib`"), "{}", refused.stderr);
    assert_eq!(bench.restore(&target, &["--on-conflict", "skip"]).expect_code(0).json()["functions"], 0);
    assert_eq!(bench.restore(&target, &["--on-conflict", "replace"]).expect_code(0).json()["functions"], 1);
    bench.expect_same(&target);
}

#[test]
fn a_server_too_old_is_refused_before_anything_is_written() {
    let source = cluster("valkey-9.1", 1, 0);
    source.client().unwrap().command(&["SET", "a", "b"]).unwrap();
    let bench = Bench::of(&source);
    for name in ["redis-7.0", "valkey-8.1"] {
        let target = cluster(name, 1, 0);
        let refused = bench.restore(&target, &["--on-conflict", "replace"]).expect_code(32);
        assert!(refused.stderr.contains("does not load"), "{}", refused.stderr);
        assert_eq!(keys_on(&target), 0);
    }
}

#[test]
fn a_damaged_object_writes_nothing() {
    let bench = Bench::of(&small_source());
    let target = cluster("valkey-9.1", 1, 0);
    let repo = PathBuf::from(bench.repo());
    let objects: Vec<(String, Vec<u8>)> =
        files(&repo).into_iter().filter(|(name, _)| name.contains("/base/")).collect();
    assert_eq!(objects.len(), 9);
    for (name, content) in objects {
        let mut altered = content.clone();
        let middle = altered.len() / 2;
        altered[middle] ^= 1;
        for damaged in [altered.as_slice(), &content[..content.len() - 1], &[]] {
            std::fs::write(repo.join(&name), damaged).unwrap();
            let refused = bench.restore(&target, &[]).expect_code(23);
            assert!(refused.stderr.contains(&name), "{name}: {}", refused.stderr);
        }
        std::fs::write(repo.join(&name), content).unwrap();
    }
    assert_eq!(keys_on(&target), 0);
    bench.restore(&target, &[]).expect_code(0);
    bench.expect_same(&target);
}

#[test]
fn a_slot_on_its_way_to_another_node_is_followed() {
    let source = small_source();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 2, 0);
    let (from, to) = (target.primary(0).unwrap(), target.primary(1).unwrap());
    let mut moved = 0;
    for slot in (0..300).map(|number| key_slot(format!("key:{number}").as_bytes())) {
        if slot.number() < 8192 {
            let number = slot.to_string();
            to.client().unwrap().command(&["CLUSTER", "SETSLOT", &number, "IMPORTING", from.id()]).unwrap();
            from.client().unwrap().command(&["CLUSTER", "SETSLOT", &number, "MIGRATING", to.id()]).unwrap();
            moved += 1;
        }
    }
    assert!(moved > 100);
    let report = bench.restore(&target, &[]).expect_code(0).json();
    assert_eq!(report["restored"], 300);
    assert!(report["redirected"].as_u64().unwrap() >= moved, "{report}");
    for slot in (0..8192).filter_map(Slot::new) {
        let number = slot.to_string();
        for node in [to, from] {
            node.client().unwrap().command(&["CLUSTER", "SETSLOT", &number, "NODE", to.id()]).unwrap();
        }
    }
    wait_for(Duration::from_secs(20), "the slots to have moved", || match bench.diff(&target) {
        run if run.code == 0 => Ok(()),
        run => Err(NotYet::because(run.stderr + &run.stdout)),
    })
    .unwrap();
}

/// A proxy before every primary, which makes it slow, and the address map that leads there.
fn slow(target: &Cluster, bytes_per_s: u64) -> (Vec<Proxy>, String) {
    let mut proxies = Vec::new();
    let mut map = Vec::new();
    for shard in 0..target.shards() {
        let node = target.primary(shard).unwrap();
        let proxy = node.proxy().unwrap();
        proxy.throttle(bytes_per_s);
        map.push(format!("{}={}", node.addr(), proxy.addr()));
        proxies.push(proxy);
    }
    (proxies, map.join(","))
}

fn wait_for_keys(target: &Cluster, keys: u64) {
    wait_for(Duration::from_secs(120), "some keys", || match keys_on(target) {
        found if found >= keys => Ok(()),
        found => Err(NotYet::because(format!("{found} keys"))),
    })
    .unwrap();
}

fn finish(child: Child) -> Run {
    Run::of(&child.wait_with_output().unwrap())
}

fn interrupt(child: &Child, signal: &str) {
    let killed = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// Stopped midway by that signal, the same command goes on, and the result is exact.
fn stopped_and_gone_on(signal: &str, policy: &str, more: &[&str]) {
    let source = cluster("redis-7.0", 3, 0);
    let loaded = Mix::bulk(20_000_000).load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 2, 0);
    let (proxies, map) = slow(&target, 8_000);
    let mut options = vec!["--on-conflict", policy, "--address-map", &map, "--jobs", "1"];
    options.extend(more);
    let child = bench.start(&addr(&target), &options);
    wait_for_keys(&target, loaded.keys() / 3);
    interrupt(&child, signal);
    let stopped = finish(child);
    if signal == "-INT" {
        let stopped = stopped.expect_code(130);
        assert!(stopped.stderr.contains("run the same command again"), "{}", stopped.stderr);
    }
    let there = keys_on(&target);
    assert!(there < loaded.keys(), "it was stopped too late");

    let wrong = bench.restore(&target, &["--on-conflict", if policy == "fail" { "skip" } else { "fail" }]);
    wrong.expect_code(2);
    proxies.iter().for_each(Proxy::mend);
    let report = bench.restore(&target, &options).expect_code(0).json();
    assert!(report["resumed_at_percent"].is_u64(), "{report}");
    assert!(report["restored"].as_u64().unwrap() < loaded.keys(), "{report}");
    bench.expect_same(&target);
    no_temporary_keys(&target);
}

#[test]
fn interrupted_it_goes_on_where_it_was() {
    stopped_and_gone_on("-INT", "fail", &[]);
    stopped_and_gone_on("-INT", "skip", &[]);
}

#[test]
fn killed_it_goes_on_where_it_was() {
    stopped_and_gone_on("-KILL", "fail", &[]);
    stopped_and_gone_on("-KILL", "replace", &[]);
}

/// What a client does to restored keys between two runs is not undone.
#[test]
fn a_key_changed_between_two_runs_keeps_its_change() {
    let source = cluster("redis-7.0", 3, 0);
    let loaded = Mix::bulk(20_000_000).load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 2, 0);
    let (_proxies, map) = slow(&target, 8_000);
    let child = bench.start(&addr(&target), &["--address-map", &map]);
    wait_for_keys(&target, loaded.keys() / 4);
    interrupt(&child, "-INT");
    finish(child).expect_code(130);
    let mut client = target.primary(1).unwrap().client().unwrap();
    let key = client.command(&["RANDOMKEY"]).unwrap().text().unwrap();
    client.command(&["SET", &key, "mine"]).unwrap();
    bench.restore(&target, &[]).expect_code(0);
    assert_eq!(client.command(&["GET", &key]).unwrap().text().unwrap(), "mine");
    let diff = bench.diff(&target).expect_code(40).json();
    assert_eq!(diff["keys"].as_array().unwrap().len(), 1, "{diff}");
}

/// The primary dies midway; its replica takes over, perhaps without keys that were acknowledged.
#[test]
fn a_failover_midway_loses_nothing() {
    let source = cluster("redis-7.0", 3, 0);
    let loaded = Mix::bulk(20_000_000).load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 3, 1);
    let (_proxies, map) = slow(&target, 8_000);
    let child = bench.start(&addr(&target), &["--address-map", &map, "--jobs", "3"]);
    wait_for_keys(&target, loaded.keys() / 4);
    let victim = target.primary(1).unwrap();
    victim.kill().unwrap();
    let report = finish(child).expect_code(0).json();
    assert!(report["sent_again"].as_u64().unwrap() > 0, "{report}");
    assert!(report["repaired_slots"].as_u64().unwrap() > 1000, "{report}");
    target.wait_ok().unwrap();
    bench.expect_same(&target);
}

/// The primary hands over midway, in order: it stays, as a replica, and says where its slots are now.
#[test]
fn a_handover_midway_is_followed() {
    let source = cluster("redis-7.0", 3, 0);
    let loaded = Mix::bulk(20_000_000).load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 2, 1);
    let (_proxies, map) = slow(&target, 8_000);
    let child = bench.start(&addr(&target), &["--address-map", &map]);
    wait_for_keys(&target, loaded.keys() / 4);
    target.failover(0).unwrap();
    let report = finish(child).expect_code(0).json();
    assert!(report["redirected"].as_u64().unwrap() > 0, "{report}");
    bench.expect_same(&target);
}

/// The server is restarted midway, from what its disk held: nothing.
#[test]
fn a_restart_midway_that_loses_everything_loses_nothing() {
    let source = cluster("redis-7.0", 3, 0);
    let loaded = Mix::bulk(20_000_000).load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = cluster("valkey-9.1", 2, 0);
    let (proxies, map) = slow(&target, 8_000);
    let child = bench.start(&addr(&target), &["--address-map", &map]);
    wait_for_keys(&target, loaded.keys() / 3);
    let victim = target.primary(0).unwrap();
    victim.kill().unwrap();
    victim.start().unwrap();
    proxies.iter().for_each(Proxy::mend);
    let report = finish(child).expect_code(0).json();
    assert!(report["repaired_slots"].as_u64().unwrap() > 1000, "{report}");
    target.wait_ok().unwrap();
    bench.expect_same(&target);
}

#[test]
fn a_target_out_of_memory_stops_it_and_more_memory_lets_it_go_on() {
    let source = cluster("redis-7.0", 2, 0);
    Mix::bulk(20_000_000).load(&source).unwrap();
    let bench = Bench::of(&source);
    let target = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(2)
        .config("maxmemory", "8mb")
        .config("maxmemory-policy", "noeviction")
        .start()
        .unwrap();
    let stopped = bench.restore(&target, &[]).expect_code(21);
    assert!(stopped.stderr.contains("OOM") && stopped.stderr.contains("maxmemory"), "{}", stopped.stderr);
    for shard in 0..2 {
        target
            .primary(shard)
            .unwrap()
            .client()
            .unwrap()
            .command(&["CONFIG", "SET", "maxmemory", "0"])
            .unwrap();
    }
    bench.restore(&target, &[]).expect_code(0);
    bench.expect_same(&target);
}
