//! Incremental backups on demand, and the cut that all shards of a backup share.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::log::{assert_log_is_the_stream, field};
use common::{Run, command, files, server, slotkeep};
use serde_json::Value;
use slotkeep_testkit::data::Writer;
use slotkeep_testkit::deadline::{NotYet, Stopwatch, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder, FailoverMode, Node};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

struct Fixture {
    cluster: Cluster,
    folder: TempDir,
}

impl Fixture {
    fn start(server_name: &str, primaries: usize, replicas: usize, backlog: &str) -> Self {
        let cluster = ClusterBuilder::new(server(server_name))
            .primaries(primaries)
            .replicas_per_primary(replicas)
            .config("repl-backlog-size", backlog)
            .config("repl-ping-replica-period", "1")
            .start()
            .unwrap();
        Self { cluster, folder: tempfile::tempdir().unwrap() }
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    fn command(&self, more: &[&str]) -> std::process::Command {
        let mut backup = command();
        backup.args(["backup", "--json", "--jobs-per-host", "9", "--cluster"]);
        backup.arg(self.cluster.nodes()[0].addr().to_string()).arg("--repo").arg(self.repo()).args(more);
        backup.arg("--spool").arg(self.folder.path().join("spool"));
        backup
    }

    fn backup(&self, more: &[&str]) -> Run {
        Run::of(&self.command(more).output().unwrap())
    }

    fn write(&self, count: usize, bytes: usize) {
        let mut client = self.cluster.client().unwrap();
        for number in 0..count {
            client.command(&["SET", &format!("key{number}"), &"v".repeat(bytes)]).unwrap();
        }
    }

    /// The logs up to the cuts are what the servers hold.
    fn prove(&self, manifest: &Value) {
        for (number, shard) in manifest["shards"].as_array().unwrap().iter().enumerate() {
            let line = assert_log_is_the_stream(&self.repo(), shard, self.cluster.primary(number).unwrap());
            assert!(line.end() >= shard["cut"]["offset"].as_u64().unwrap(), "{shard:#}");
        }
    }
}

fn offset(node: &Node) -> u64 {
    field(&mut node.client().unwrap(), "master_repl_offset").parse().unwrap()
}

fn a_full_backup_and_two_incremental_ones(server_name: &str, replicas: usize) {
    let fixture = Fixture::start(server_name, 2, replicas, "64mb");
    let writer = Writer::start(&fixture.cluster, 100).unwrap();
    writer.wait_for_more(100).unwrap();
    let full = fixture.backup(&[]).expect_code(0).json();
    assert_eq!(full["kind"], "full");
    assert_eq!(full["cut"]["method"], "instant");
    assert!(full["cut"]["error_ms"].is_u64(), "{}", full["cut"]);
    fixture.prove(&full);
    let mut last = full.clone();
    for _ in 0..2 {
        writer.wait_for_more(200).unwrap();
        let next = fixture.backup(&["--type", "incremental", "--no-fallback"]).expect_code(0).json();
        assert_eq!(next["kind"], "incremental");
        for (old, new) in last["shards"].as_array().unwrap().iter().zip(next["shards"].as_array().unwrap()) {
            assert_eq!(old["base"], new["base"]);
            assert!(new["cut"]["offset"].as_u64() > old["cut"]["offset"].as_u64());
        }
        last = next;
    }
    writer.stop();
    fixture.prove(&last);
    let table = slotkeep(&["list", "--repo", fixture.repo().to_str().unwrap()]).expect_code(0).stdout;
    assert_eq!(table.matches(" incremental ").count(), 2, "{table}");
    let show = slotkeep(&["show", "--repo", fixture.repo().to_str().unwrap()]).expect_code(0).stdout;
    assert!(show.contains("kind        incremental\ncut         all shards at 2"), "{show}");
    assert!(!fixture.folder.path().join("spool").exists(), "nothing waits anywhere");
}

#[test]
fn a_full_backup_and_two_incremental_ones_on_valkey_9_1() {
    a_full_backup_and_two_incremental_ones("valkey-9.1", 1);
}

#[test]
fn a_full_backup_and_two_incremental_ones_on_redis_6_2() {
    a_full_backup_and_two_incremental_ones("redis-6.2", 0);
}

#[test]
fn a_standalone_server_is_continued_too() {
    let cluster = ClusterBuilder::new(server("redis-7.4"))
        .cluster_mode(false)
        .primaries(1)
        .config("repl-backlog-size", "64mb")
        .start()
        .unwrap();
    let fixture = Fixture { cluster, folder: tempfile::tempdir().unwrap() };
    fixture.write(3, 10);
    fixture.backup(&[]).expect_code(0);
    fixture.write(3, 10);
    let next = fixture.backup(&["--type", "incremental"]).expect_code(0).json();
    assert_eq!(next["kind"], "incremental");
    fixture.prove(&next);
}

/// A replica is promoted and nothing is written since: the cut lies where its history begins, and no byte of the log tells of that one.
#[test]
fn a_cut_where_a_history_begins_leads_back_to_its_base() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .replicas_per_primary(1)
        .config("repl-backlog-size", "64mb")
        .config("repl-ping-replica-period", "3600")
        .start()
        .unwrap();
    let fixture = Fixture { cluster, folder: tempfile::tempdir().unwrap() };
    fixture.write(1, 10);
    fixture.backup(&[]).expect_code(0);
    fixture.cluster.client().unwrap().command(&["SET", "key0", "written-behind-the-base"]).unwrap();
    fixture.cluster.failover_by(0, FailoverMode::Graceful).unwrap();
    let next = fixture.backup(&["--type", "incremental", "--no-fallback"]).expect_code(0).json();
    let shard = &next["shards"][0];
    let of_cut = shard["cut"]["history"].as_str().unwrap();
    assert_ne!(of_cut, shard["history"].as_str().unwrap());
    let stored = files(&fixture.repo());
    let of_history = |name: &&String| name.contains(&format!("/history/{of_cut}/"));
    let of_history: Vec<&String> = stored.iter().map(|(name, _)| name).filter(of_history).collect();
    assert!(matches!(of_history[..], [file] if file.ends_with("/history.json")), "{of_history:?}");
    let (repo, target) = (fixture.repo(), fixture.folder.path().join("new"));
    let (repo, to) = (repo.to_str().unwrap(), target.to_str().unwrap());
    slotkeep(&["verify", "--repo", repo]).expect_code(0);
    let nodes = ["--quiet", "--no-replicas", "--nodes", "127.0.0.1:17001"];
    slotkeep(&[&["restore", "--repo", repo, "--to-dir", to][..], &nodes].concat()).expect_code(0);
    let restored = files(&target);
    let word = b"written-behind-the-base";
    assert!(restored.iter().any(|(_, bytes)| bytes.windows(word.len()).any(|bytes| bytes == word)));
    // Whoever continues finds the way, too.
    fixture.write(1, 20);
    let more = fixture.backup(&["--type", "incremental", "--no-fallback"]).expect_code(0).json();
    assert_eq!(more["shards"][0]["cut"]["history"], shard["cut"]["history"]);
    assert_eq!(more["shards"][0]["base"], shard["base"]);
}

/// The backlog was overrun: the refusal names every figure, nothing is listed, and without `--no-fallback` a full backup is taken.
#[test]
fn an_overrun_backlog_is_explained_and_made_up_for() {
    let fixture = Fixture::start("valkey-9.1", 1, 0, "1mb");
    let none = fixture.backup(&["--type", "incremental", "--no-fallback"]).expect_code(24);
    assert!(none.stderr.contains("there is nothing to continue"), "{}", none.stderr);
    let full = fixture.backup(&[]).expect_code(0).json();
    fixture.write(30, 100_000);
    let primary = &fixture.cluster.nodes()[0];
    let run = fixture.backup(&["--type", "incremental", "--no-fallback"]).expect_code(24);
    let error: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(error["error"]["kind"], "gap");
    let words = error["error"]["message"].as_str().unwrap();
    let cut = full["shards"][0]["cut"]["offset"].as_u64().unwrap();
    // The log may have gone on for a heartbeat or two behind the cut.
    let needed: u64 = words.split("from offset ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((cut + 1..cut + 200).contains(&needed), "{words}");
    let first = field(&mut primary.client().unwrap(), "repl_backlog_first_byte_offset");
    assert!(words.contains(&format!("offsets {first} to ")), "{words}");
    assert!(words.contains("repl-backlog-size 1048576"), "{words}");
    let enough: u64 = words.split("); ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(enough >= 3_000_000 && enough <= offset(primary) + 1 - needed, "{words}");
    let listed = |wanted: usize| {
        let repo = fixture.repo();
        let list = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
        assert_eq!(list["backups"].as_array().unwrap().len(), wanted);
    };
    listed(1);
    let run = fixture.backup(&["--type", "incremental"]).expect_code(0);
    assert!(
        run.stderr.contains("taking a full one") && run.stderr.contains("would have sufficed"),
        "{}",
        run.stderr
    );
    assert_eq!(run.json()["kind"], "full");
    listed(2);
}

#[test]
fn a_barrier_pauses_writes_for_a_moment() {
    let fixture = Fixture::start("valkey-9.1", 3, 0, "64mb");
    let writer = Writer::start(&fixture.cluster, 100).unwrap();
    let manifest = fixture.backup(&["--barrier", "--barrier-budget", "20000"]).expect_code(0).json();
    let cut = &manifest["cut"];
    assert_eq!(cut["method"], "barrier", "{cut}");
    assert_eq!(cut["error_ms"], 0);
    assert!(cut["paused_ms"].as_u64().unwrap() <= 20_000, "{cut}");
    writer.wait_for_more(100).unwrap();
    writer.stop();
    fixture.prove(&manifest);
    // Too little time for anybody: the cut falls back and says so.
    let run = fixture.backup(&["--type", "incremental", "--barrier", "--barrier-budget", "1"]).expect_code(0);
    let manifest = run.json();
    if manifest["cut"]["method"] == "instant" {
        assert!(manifest["cut"]["fell_back"].as_str().unwrap().contains("within 1 ms"));
        assert!(run.stderr.contains("made without a barrier"), "{}", run.stderr);
    }
}

/// A user that may not pause gets a cut without a barrier, and is told so.
#[test]
fn a_barrier_that_is_not_allowed_falls_back() {
    let cluster = ClusterBuilder::new(server("redis-7.2"))
        .primaries(2)
        .acl_user("keeper", "on >hidden ~* &* +@all -client|pause")
        .start()
        .unwrap();
    let fixture = Fixture { cluster, folder: tempfile::tempdir().unwrap() };
    let mut backup = fixture.command(&["--barrier", "--user", "keeper"]);
    let run = Run::of(&backup.env("SLOTKEEP_PASSWORD", "hidden").output().unwrap()).expect_code(0);
    let cut = run.json()["cut"].clone();
    assert_eq!(cut["method"], "instant");
    assert!(cut["fell_back"].as_str().unwrap().contains("CLIENT"), "{cut}");
    let warned =
        format!("warning: the cut was made without a barrier: {}", cut["fell_back"].as_str().unwrap());
    assert!(run.stderr.contains(&warned), "{}", run.stderr);
}

/// Slotkeep dies while writes are paused: they go on when the server's own time is up.
#[test]
fn writes_go_on_though_slotkeep_is_killed_behind_its_barrier() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    let fixture = Fixture { cluster, folder: tempfile::tempdir().unwrap() };
    let [one, other] = [&fixture.cluster.nodes()[0], &fixture.cluster.nodes()[1]];
    // One primary's answers take a while: long enough to see the barrier from outside.
    let proxy = other.proxy().unwrap();
    proxy.throttle(5_000);
    let map = format!("{}={}", other.addr(), proxy.addr());
    let mut backup = fixture.command(&["--barrier", "--barrier-budget", "8000", "--address-map", &map]);
    let mut child = backup.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut client = one.client().unwrap();
    wait_for(LIMIT, "the pause", || {
        let stats = client.command(&["INFO", "commandstats"])?.text()?;
        if stats.contains("cmdstat_client|pause") { Ok(()) } else { Err(NotYet::because("none yet")) }
    })
    .unwrap();
    child.kill().unwrap();
    let watch = Stopwatch::start();
    child.wait().unwrap();
    fixture.write(10, 10);
    let waited = watch.elapsed();
    assert!(waited > Duration::from_secs(1), "it was killed behind its barrier: {waited:?}");
    assert!(waited < Duration::from_secs(60), "{waited:?}");
}

/// What a backup that was stopped leaves: no base, no manifest, nothing in the spool; whole segments may stay.
#[test]
fn a_backup_that_is_killed_lists_nothing() {
    let fixture = Fixture::start("valkey-9.1", 1, 0, "64mb");
    fixture.write(40, 100_000);
    // Slow enough to be killed on its way.
    let mut backup = fixture.command(&["--limit-rate", "200K"]);
    let mut child = backup.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(LIMIT, "the repository", || {
        if fixture.repo().join("slotkeep.json").exists() { Ok(()) } else { Err(NotYet::because("none")) }
    })
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let manifests =
        |repo: &Path| files(repo).iter().filter(|(name, _)| name.starts_with("main/backups/")).count();
    assert_eq!(manifests(&fixture.repo()), 0);
    fixture.backup(&[]).expect_code(0);
    assert_eq!(manifests(&fixture.repo()), 1);
    assert!(!fixture.folder.path().join("spool").exists(), "what the killed one left is gone too");
}
