//! A running cluster against its repository, under writes: nothing differs where nothing does, and one changed element is named.
//!
//! `SLOTKEEP_LIVE_RUNS` sets how often the first is tried, `SLOTKEEP_LIVE_KEYS` among how many keys one is changed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::Value as Json;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::breathe;
use slotkeep_testkit::ledger::{Ledger, LedgerOptions};
use slotkeep_testkit::{Cluster, ClusterBuilder};
use tempfile::TempDir;

use crate::chain::forge;
use crate::common::agent::Agent;
use crate::common::{Run, server, slotkeep};
use crate::harness::RUNTIME;

/// Writes of many sorts, until it is dropped: counters, keys that expire soon, sets and lists that grow and shrink.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _ledger: Ledger,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let ledger = Ledger::start(cluster, LedgerOptions { seed: 9, lists: 40, accounts: 8 }).unwrap();
        ledger.wait_for_more(50).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut client = cluster.client().unwrap();
        let thread = std::thread::spawn(move || {
            for number in 0_u64.. {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                breathe();
                let (key, member) = (format!("brief:{}", number % 700), number.to_string());
                let life = (1 + number % 400).to_string();
                client.command(&["SET", &key, &member, "PX", &life]).unwrap();
                let set = format!("churn:{}", number % 50);
                client.command(&["SADD", &set, &member]).unwrap();
                if number % 3 == 0 {
                    client.command(&["SPOP", &set]).unwrap();
                }
            }
        });
        Self { stop, thread: Some(thread), _ledger: ledger }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

struct Bench {
    cluster: Cluster,
    folder: TempDir,
}

impl Bench {
    fn start(builder: &ClusterBuilder) -> Self {
        let cluster = builder.start().unwrap();
        Mix::every_type().load(&cluster).unwrap();
        Self { cluster, folder: tempfile::tempdir().unwrap() }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let repo = self.folder.path().join("repo");
        let seed = self.cluster.nodes()[0].addr().to_string();
        slotkeep(&[arguments, &["--repo", repo.to_str().unwrap(), "--cluster", &seed]].concat())
    }

    fn live(&self, more: &[&str]) -> Run {
        let (spool, program) = (self.folder.path().join("work"), self.cluster.server().program());
        std::fs::create_dir_all(&spool).unwrap();
        let fixed = ["verify", "--json", "--depth", "live", "--jobs-per-host", "3"];
        let here = ["--spool", spool.to_str().unwrap(), "--engine", program.to_str().unwrap()];
        let run = self.run(&[&fixed[..], &here, more].concat());
        assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0, "something was left in the spool");
        run
    }

    fn listed(&self) -> Vec<(String, String)> {
        let repo = self.folder.path().join("repo");
        let list = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
        let backups = list["backups"].as_array().unwrap().iter();
        let text = |value: &Json| value.as_str().unwrap_or("never").to_owned();
        backups.map(|backup| (text(&backup["id"]), text(&backup["proved"]["depth"]))).collect()
    }
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What was found, but for notes.
fn findings(record: &Json) -> Vec<&Json> {
    record["findings"].as_array().unwrap().iter().filter(|found| found["severity"] != "note").collect()
}

/// The one finding of a record.
#[track_caller]
fn finding(record: &Json) -> &str {
    let findings = findings(record);
    assert_eq!(findings.len(), 1, "{record}");
    assert_eq!((&findings[0]["depth"], &findings[0]["check"]), (&"live".into(), &"digest".into()));
    findings[0]["what"].as_str().unwrap()
}

#[test]
fn an_archived_cluster_equals_its_repository_and_a_changed_command_is_found() {
    let stock = server("valkey-9.1");
    let bench = Bench::start(&ClusterBuilder::new(stock).primaries(3).replicas_per_primary(1));
    let agent = Agent::start(&bench.cluster, bench.folder.path(), &[]);
    agent.wait_ready();
    let load = Load::start(&bench.cluster);
    bench.cluster.client().unwrap().command(&["HSET", "marked", "field", "original"]).unwrap();
    agent.wait_status("every shard's first segments", |status| {
        status["shards"].as_array().unwrap().iter().all(|shard| shard["segments"].as_u64().unwrap() > 1)
    });
    for _ in 0..setting("SLOTKEEP_LIVE_RUNS", 3) {
        let record = bench.live(&["--only"]).expect_code(0).json();
        assert_eq!(findings(&record), Vec::<&Json>::new(), "{record}");
        let live = &record["live"];
        assert_eq!((&live["archived"], live["shards"].as_array().unwrap().len()), (&true.into(), 3));
        for shard in live["shards"].as_array().unwrap() {
            assert!(
                shard["keys"].as_u64().unwrap() > 0 && shard["log_bytes"].as_u64().unwrap() > 0,
                "{live}"
            );
        }
    }
    assert_eq!(bench.listed().iter().map(|(_, depth)| depth.as_str()).collect::<Vec<_>>(), ["live"]);
    // Whole by all its checksums, but one element is another.
    RUNTIME.block_on(forge(&bench.folder.path().join("repo"), b"original", b"tampered"));
    let record = bench.live(&["--only"]).expect_code(42).json();
    let what = finding(&record);
    assert!(what.contains(": 1 slots differ") && what.contains("keys: \"marked\": value"), "{what}");
    let backups = record["backups"].as_array().unwrap();
    assert_eq!(backups.iter().map(|backup| &backup["worst"]).collect::<Vec<_>>(), ["problem"], "{record}");
    drop(load);
    agent.stop();
}

fn without_an_archive(name: &str) {
    let stock = server(name);
    let builder = ClusterBuilder::new(stock).cluster_mode(false).primaries(1).replicas_per_primary(1);
    let bench = Bench::start(&builder.config("repl-backlog-size", "32mb"));
    let mut client = bench.cluster.client().unwrap();
    for (key, field) in [("gone", "a"), ("other", "a"), ("timed", "a")] {
        client.command(&["HSET", key, field, "1"]).unwrap();
    }
    client.command(&["PEXPIREAT", "timed", "4000000000000"]).unwrap();
    bench.run(&["backup", "--quiet"]).expect_code(0);
    let load = Load::start(&bench.cluster);
    let before = bench.listed();
    let record = bench.live(&["--only", "--live-wait", "0"]).expect_code(0).json();
    assert_eq!((&record["live"]["archived"], findings(&record)), (&false.into(), vec![]));
    // What the log of Redis before 7.0 can't tell is said.
    let notes = record["findings"].as_array().unwrap().len();
    assert_eq!(notes, usize::from(name == "redis-6.2"), "{record}");
    assert!(record["live"]["shards"][0]["log_bytes"].as_u64().unwrap() > 0, "{record}");
    let ids = |listed: &[(String, String)]| listed.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&bench.listed()), "no backup is written");

    // Somebody writes to the replica behind the primary's back.
    let mut replica = bench.cluster.replicas(0).unwrap()[0].client().unwrap();
    for words in [
        &["CONFIG", "SET", "replica-read-only", "no"][..],
        &["DEL", "gone"],
        &["HSET", "other", "b", "2"],
        &["PEXPIREAT", "timed", "4000000010000"],
    ] {
        replica.command(words).unwrap();
    }
    let record = bench.live(&["--only", "--live-wait", "0"]).expect_code(42).json();
    let what = finding(&record);
    for words in [
        "\"gone\": it is in the repository alone",
        "\"other\": value",
        "\"timed\": expiry: 2096-10-02T07:06:40Z in the repository, 2096-10-02T07:06:50Z in the cluster",
    ] {
        assert!(what.contains(words), "{what}");
    }
    // The primary is as it was.
    let primary = ["--only", "--live-wait", "0", "--prefer", "primary"];
    let record = bench.live(&primary).expect_code(0).json();
    assert_eq!(findings(&record), Vec::<&Json>::new(), "{record}");
    drop(load);
}

#[test]
fn a_replica_that_was_written_to_is_found_on_redis_6_2() {
    without_an_archive("redis-6.2");
}

#[test]
fn a_replica_that_was_written_to_is_found_on_redis_8_2() {
    without_an_archive("redis-8.2");
}

#[test]
fn every_depth_is_gone_through_unless_only_one_is_wanted() {
    let stock = server("valkey-9.1");
    let bench = Bench::start(&ClusterBuilder::new(stock.clone()).cluster_mode(false).primaries(1));
    bench.run(&["backup", "--quiet"]).expect_code(0);
    let program = stock.program().to_str().unwrap();
    let record = bench.live(&["--live-wait", "0", "--server", program]).expect_code(0).json();
    assert_eq!(record["findings"], Json::Array(vec![]), "{record}");
    assert!(record["drill"].is_object() && record["live"].is_object(), "{record}");
    assert_eq!(record["totals"]["objects"], record["totals"]["proved"], "{record}");
    bench.run(&["verify", "--depth", "structure", "--only"]).expect_code(2);
}

#[test]
fn a_log_that_does_not_lead_there_is_no_finding() {
    let builder = ClusterBuilder::new(server("valkey-9.1")).cluster_mode(false).primaries(1);
    let bench = Bench::start(&builder);
    bench.run(&["backup", "--quiet"]).expect_code(0);
    // Another history.
    bench.cluster.nodes()[0].kill().unwrap();
    bench.cluster.nodes()[0].start().unwrap();
    bench.cluster.wait_ok().unwrap();
    let run = bench.live(&["--only", "--live-wait", "0"]).expect_code(24);
    assert!(run.stderr.contains("does not lead to what the cluster holds now"), "{}", run.stderr);
    let folder: &Path = bench.folder.path();
    let record = std::fs::read_dir(folder.join("repo/main/verify")).unwrap().count();
    assert_eq!(record, 1, "the record says that it was broken off");
}

/// Hashes of two fields, strings and sorted sets, so many in all, made by the server itself.
fn fill(bench: &Bench, keys: usize) {
    const MADE_AT_ONCE: usize = 10_000;
    const SCRIPT: &str = "for n = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do \
        if n % 4 == 0 then redis.call('SET', 'key:' .. n, 'value ' .. n) \
        elseif n % 4 == 1 then redis.call('ZADD', 'key:' .. n, n, 'one', n + 1, 'two') \
        else redis.call('HSET', 'key:' .. n, 'first', n, 'second', 'value ' .. n) end end";
    let mut client = bench.cluster.primary(0).unwrap().client().unwrap();
    for start in (0..keys).step_by(MADE_AT_ONCE) {
        let end = (start + MADE_AT_ONCE).min(keys);
        client.command(&["EVAL", SCRIPT, "0", &start.to_string(), &end.to_string()]).unwrap();
        assert_eq!(client.command(&["WAIT", "1", "10000"]).unwrap().int().unwrap(), 1, "the replica follows");
    }
}

#[test]
fn one_changed_field_among_many_keys_is_named_under_writes() {
    let keys = setting("SLOTKEEP_LIVE_KEYS", 200_000);
    let builder = ClusterBuilder::new(server("valkey-9.1")).cluster_mode(false).primaries(1);
    let builder = builder.replicas_per_primary(1).config("repl-backlog-size", "256mb");
    let bench = Bench::start(&builder);
    fill(&bench, keys);
    bench.run(&["backup", "--quiet"]).expect_code(0);
    let load = Load::start(&bench.cluster);
    let record = bench.live(&["--only", "--live-wait", "0"]).expect_code(0).json();
    assert_eq!(findings(&record), Vec::<&Json>::new(), "{record}");
    let seen = record["live"]["keys"].as_u64().unwrap();
    assert!(seen > keys as u64 && record["live"]["shards"][0]["log_bytes"].as_u64().unwrap() > 0, "{record}");

    let mut replica = bench.cluster.replicas(0).unwrap()[0].client().unwrap();
    let changed = format!("key:{}", keys / 2 / 4 * 4 + 2);
    replica.command(&["CONFIG", "SET", "replica-read-only", "no"]).unwrap();
    let added = replica.command(&["HSET", &changed, "second", "another"]).unwrap();
    assert_eq!(added.int().unwrap(), 0, "the field was there");
    let record = bench.live(&["--only", "--live-wait", "0"]).expect_code(42).json();
    let what = finding(&record);
    assert!(
        what.contains(": 1 slots differ") && what.ends_with(&format!("; keys: \"{changed}\": value")),
        "{what}"
    );
    drop(load);
}
