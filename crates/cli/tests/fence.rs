//! `slotkeep fence`: writes are refused whichever way they come, everything else goes on, and undoing is exact.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Run, server, slotkeep};
use serde_json::Value as Json;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::resp::Value;
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Node};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

struct Bench {
    cluster: Cluster,
    folder: TempDir,
}

impl Bench {
    fn start(builder: &ClusterBuilder) -> Self {
        Self { cluster: builder.start().unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("fence.json")
    }

    fn fence(&self, more: &[&str]) -> Run {
        let seeds: Vec<String> = self.cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
        let state = self.state();
        let mut arguments = vec!["fence", "--json", "--timeout", "20", "--cluster"];
        let seeds = seeds.join(",");
        arguments.extend([seeds.as_str(), "--state", state.to_str().unwrap()]);
        arguments.extend(more);
        slotkeep(&arguments)
    }
}

/// The words of an error reply; of any other reply, its debug form.
fn words(client: &mut Client, args: &[&str]) -> String {
    match client.pipeline(&[args.to_vec()]).unwrap().remove(0) {
        Value::Error(text) => text,
        other => format!("{other:?}"),
    }
}

fn setting(node: &Node, name: &str) -> String {
    let reply = node.client().unwrap().command(&["CONFIG", "GET", name]).unwrap();
    let Value::Array(pair) = reply else { panic!("{reply:?}") };
    let Value::Bulk(value) = &pair[1] else { panic!("{pair:?}") };
    String::from_utf8(value.clone()).unwrap()
}

fn settings(cluster: &Cluster) -> Vec<[String; 2]> {
    let names = ["min-replicas-to-write", "min-replicas-max-lag"];
    cluster.nodes().iter().map(|node| names.map(|name| setting(node, name))).collect()
}

fn keys(node: &Node) -> String {
    words(&mut node.client().unwrap(), &["DBSIZE"])
}

fn column<'a>(outcome: &'a Json, name: &str) -> Vec<&'a Json> {
    outcome["nodes"].as_array().unwrap().iter().map(|node| &node[name]).collect()
}

fn writes_are_refused_and_all_else_goes_on(name: &str) {
    let bench = Bench::start(
        &ClusterBuilder::new(server(name))
            .primaries(2)
            .replicas_per_primary(1)
            .config("min-replicas-max-lag", "9"),
    );
    let cluster = &bench.cluster;
    let primary = cluster.primary(0).unwrap();
    let mut client = primary.client().unwrap();
    // Settings of several sorts, so that undoing has something to put back.
    client.command(&["CONFIG", "SET", "min-replicas-max-lag", "0"]).unwrap();
    cluster.replicas(1).unwrap()[0]
        .client()
        .unwrap()
        .command(&["CONFIG", "SET", "min-replicas-to-write", "3"])
        .unwrap();
    let before = settings(cluster);
    let key = key_of(primary);
    let brief = format!("{key}:brief");
    client.command(&["SET", &key, "accepted"]).unwrap();
    client.command(&["SET", &brief, "x", "PX", "1500"]).unwrap();
    let library =
        "#!lua name=l\nredis.register_function('f', function(k) return redis.call('DEL', k[1]) end)";
    let has_functions = name != "redis-6.2";
    if has_functions {
        client.command(&["FUNCTION", "LOAD", library]).unwrap();
    }
    // A transaction that was open when the fence came.
    let mut open = primary.client().unwrap();
    open.command(&["MULTI"]).unwrap();
    open.command(&["SET", &key, "late"]).unwrap();

    let plan = bench.fence(&["--dry-run"]).expect_code(0).json();
    assert_eq!(column(&plan, "changed"), [true, true, true, true]);
    assert_eq!(settings(cluster), before, "a plan changes nothing");
    assert!(!bench.state().exists());
    let done = bench.fence(&[]).expect_code(0).json();
    assert_eq!(column(&done, "writes"), ["fenced"; 4]);

    let script = "return redis.call('SET', KEYS[1], 'script')";
    for refused in [
        &["SET", &key, "late"][..],
        &["DEL", &key],
        &["EVAL", script, "1", &key],
        &["FLUSHALL"],
        &["EXPIRE", &key, "100"],
    ] {
        let reply = words(&mut client, refused);
        assert!(reply.contains("NOREPLICAS"), "{refused:?}: {reply}");
    }
    if has_functions {
        let reply = words(&mut client, &["FCALL", "f", "1", &key]);
        assert!(reply.contains("NOREPLICAS"), "{reply}");
    }
    let exec = words(&mut open, &["EXEC"]);
    assert!(exec.contains("NOREPLICAS") || exec.contains("EXECABORT"), "{exec}");
    assert_eq!(client.command(&["GET", &key]).unwrap(), Value::Bulk(b"accepted".to_vec()));
    let read = "return redis.call('GET', KEYS[1])";
    assert_eq!(client.command(&["EVAL", read, "1", &key]).unwrap(), Value::Bulk(b"accepted".to_vec()));
    // Expiry goes on, and reaches the replica as a deletion.
    let replica = cluster.replicas(0).unwrap()[0];
    wait_for(LIMIT, "the replica to lose the key that expired", || match keys(replica) {
        one if one == format!("{:?}", Value::Int(1)) => Ok(()),
        other => Err(NotYet::because(other)),
    })
    .unwrap();

    // A second run finds everything done.
    let again = bench.fence(&[]).expect_code(0).json();
    assert_eq!(column(&again, "changed"), [false; 4]);
    // What is promoted is fenced too.
    let promoted = cluster.failover(0).unwrap();
    assert_eq!(promoted.addr(), replica.addr());
    let reply = words(&mut promoted.client().unwrap(), &["SET", &key, "late"]);
    assert!(reply.contains("NOREPLICAS"), "{reply}");
    assert_eq!(column(&bench.fence(&["--status"]).expect_code(0).json(), "writes"), ["fenced"; 4]);

    let undone = bench.fence(&["--undo"]).expect_code(0).json();
    assert_eq!(column(&undone, "changed"), [true; 4]);
    assert_eq!(settings(cluster), before, "exactly as it was");
    promoted.client().unwrap().command(&["SET", &key, "new"]).unwrap();
    assert_eq!(column(&bench.fence(&["--undo"]).expect_code(0).json(), "changed"), [false; 4]);
    bench.fence(&["--status"]).expect_code(44);
}

/// A key that the node serves.
fn key_of(node: &Node) -> String {
    let mut client = node.client().unwrap();
    let fits = |key: &String| !words(&mut client, &["GET", key]).contains("MOVED");
    (0..1000).map(|number| format!("{{{number}}}key")).find(fits).unwrap()
}

#[test]
fn on_redis_6_2() {
    writes_are_refused_and_all_else_goes_on("redis-6.2");
}

#[test]
fn on_redis_7_0() {
    writes_are_refused_and_all_else_goes_on("redis-7.0");
}

#[test]
fn on_redis_8_2() {
    writes_are_refused_and_all_else_goes_on("redis-8.2");
}

#[test]
fn on_valkey_8_0() {
    writes_are_refused_and_all_else_goes_on("valkey-8.0");
}

#[test]
fn on_valkey_9_1() {
    writes_are_refused_and_all_else_goes_on("valkey-9.1");
}

#[test]
fn a_node_that_is_away_is_named_and_fenced_when_it_is_back() {
    let bench = Bench::start(&ClusterBuilder::new(server("valkey-9.1")).primaries(2).replicas_per_primary(1));
    let away = bench.cluster.replicas(1).unwrap()[0];
    away.kill().unwrap();
    let done = bench.fence(&[]).expect_code(44).json();
    let state = |outcome: &Json| {
        let nodes = outcome["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["addr"] == away.addr().to_string());
        node.unwrap()["writes"].clone()
    };
    assert_eq!(state(&done), "unknown");
    let record = std::fs::read_to_string(bench.state()).unwrap();
    assert!(record.contains("\"open\": [\n    \"127.0.0.1"), "{record}");
    away.start().unwrap();
    bench.cluster.wait_ok().unwrap();
    assert_eq!(state(&bench.fence(&["--status"]).expect_code(44).json()), "if_promoted");
    assert_eq!(state(&bench.fence(&[]).expect_code(0).json()), "fenced");
    bench.fence(&["--undo"]).expect_code(0);
    assert_eq!(settings(&bench.cluster)[0], ["0", "10"]);
}

#[test]
fn a_fence_that_is_persisted_survives_a_restart_and_so_does_undoing_it() {
    let bench = Bench::start(&ClusterBuilder::new(server("redis-7.0")).cluster_mode(false).primaries(1));
    let node = &bench.cluster.nodes()[0];
    bench.fence(&[]).expect_code(0);
    node.restart().unwrap();
    bench.fence(&["--status"]).expect_code(44);
    bench.fence(&["--persist"]).expect_code(0);
    node.restart().unwrap();
    bench.fence(&["--status"]).expect_code(0);
    bench.fence(&["--undo"]).expect_code(0);
    node.restart().unwrap();
    assert_eq!(settings(&bench.cluster)[0], ["0", "10"]);
}

#[test]
fn servers_are_shut_down_when_that_is_confirmed() {
    let bench = Bench::start(&ClusterBuilder::new(server("valkey-9.1")).primaries(2).replicas_per_primary(1));
    let run = bench.fence(&["--shutdown"]).expect_code(2);
    assert!(run.stderr.contains("--yes"), "{}", run.stderr);
    let plan = bench.fence(&["--shutdown", "--dry-run"]).expect_code(0).json();
    assert_eq!(column(&plan, "writes"), ["taken", "if_promoted", "taken", "if_promoted"]);
    let done = bench.fence(&["--shutdown", "--yes"]).expect_code(0).json();
    assert_eq!(column(&done, "writes"), ["down"; 4]);
    for node in bench.cluster.nodes() {
        assert!(node.client().is_err(), "{} answers", node.addr());
    }
}

#[test]
fn what_was_set_before_can_be_kept_in_the_repository() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .config("min-replicas-max-lag", "7")
        .acl_user("fencer", "on >secret -@all +info +cluster|nodes +config|get +config|set")
        .start()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let (repo, seed) = (repo.to_str().unwrap(), cluster.nodes()[0].addr().to_string());
    let run = |more: &[&str]| slotkeep(&[&["fence", "--cluster", &seed], more].concat());
    let refused = run(&[]).expect_code(2);
    assert!(refused.stderr.contains("--state FILE or --repo"), "{}", refused.stderr);
    slotkeep(&["init", "--repo", repo]).expect_code(0);
    let text = run(&["--repo", repo]).expect_code(0).stdout;
    assert!(text.ends_with("All 1 nodes refuse writes.\n"), "{text}");
    assert_eq!(std::fs::read_dir(Path::new(repo).join("main/fence")).unwrap().count(), 1);
    // A user who may do little more is enough.
    let password = folder.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let login = ["--user", "fencer", "--password-file", password.to_str().unwrap()];
    run(&[&["--repo", repo, "--undo"], &login[..]].concat()).expect_code(0);
    run(&[&["--repo", repo], &login[..]].concat()).expect_code(0);
    let text = run(&["--repo", repo, "--undo"]).expect_code(0).stdout;
    assert!(text.contains("The fence is lifted"), "{text}");
    assert_eq!(settings(&cluster)[0], ["0", "7"]);
}

/// A base alone holds every write: there is no byte of log to bring them back from, and none is needed.
#[test]
fn what_is_said_to_bring_back_an_idle_server_does() {
    let builder = ClusterBuilder::new(server("redis-7.4"))
        .primaries(1)
        .cluster_mode(false)
        .config("repl-ping-replica-period", "3600");
    let bench = Bench::start(&builder);
    bench.cluster.client().unwrap().command(&["SET", "key", "written-while-nobody-listened"]).unwrap();
    let (repo, target) = (bench.folder.path().join("repo"), bench.folder.path().join("new"));
    let (repo, to) = (repo.to_str().unwrap(), target.to_str().unwrap());
    let seed = bench.cluster.nodes()[0].addr().to_string();
    slotkeep(&["backup", "--quiet", "--repo", repo, "--cluster", &seed]).expect_code(0);
    let logged = common::files(Path::new(repo)).iter().any(|(name, _)| name.contains("/log/"));
    let all: Vec<String> = common::files(Path::new(repo)).into_iter().map(|(name, _)| name).collect();
    assert!(!logged, "the server was not idle {all:?} {}", slotkeep(&["log", "--repo", repo]).stdout);
    let fenced = bench.fence(&["--repo", repo, "--await-log", "30s"]).expect_code(0).json();
    let place = fenced["log"]["at_offset"].as_str().unwrap();
    let nodes = ["--quiet", "--no-replicas", "--nodes", "127.0.0.1:17001", "--to-dir", to];
    let restore =
        |place: &str| slotkeep(&[&["restore", "--repo", repo, "--at-offset", place][..], &nodes].concat());
    let (history, offset) = place.split_once(':').unwrap();
    let elsewhere = format!("{history}:{}", offset.parse::<u64>().unwrap() + 1);
    assert_eq!(restore(&elsewhere).code, 22, "no base is there, and no log leads there");
    restore(place).expect_code(0);
    let restored = common::files(&target);
    let rdb = restored.iter().find(|(name, _)| name.ends_with("rdb")).unwrap();
    let word = b"written-while-nobody-listened";
    assert!(rdb.1.windows(word.len()).any(|bytes| bytes == word), "{}", rdb.0);
}
