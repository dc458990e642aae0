//! `slotkeep check` on real clusters: what it finds, what it advises, and that the advice is right.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use common::{Run, command, files, server, slotkeep};
use serde_json::Value;
use slotkeep_testkit::{Cluster, ClusterBuilder, Endpoint};

fn seed(cluster: &Cluster) -> String {
    cluster.nodes()[0].addr().to_string()
}

fn findings(report: &Value) -> &Vec<Value> {
    report["findings"].as_array().unwrap()
}

/// The findings of a check, by its name, that are not fine.
fn faults<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let fitting = findings(report).iter().filter(|one| one["check"] == check && one["severity"] != "ok");
    fitting.collect()
}

fn check_as(cluster: &Cluster, user: &str, password: &str) -> Run {
    let mut command = command();
    command.args(["check", "--json", "--cluster", &seed(cluster), "--user", user]);
    Run::of(&command.env("SLOTKEEP_PASSWORD", password).output().unwrap())
}

fn a_healthy_cluster_is_ready(server_name: &str) {
    let cluster =
        ClusterBuilder::new(server(server_name)).primaries(2).replicas_per_primary(1).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("new/repo");
    let arguments = ["check", "--cluster", &seed(&cluster), "--repo", repo.to_str().unwrap()];
    let report = slotkeep(&[&arguments[..], &["--json"]].concat()).expect_code(0).json();
    assert_eq!(report["ready"], true);
    let bad: Vec<_> = findings(&report).iter().filter(|one| one["severity"] == "problem").collect();
    assert!(bad.is_empty(), "{bad:#?}");
    for node in cluster.nodes() {
        let addr = node.addr().to_string();
        let about = |check: &str| {
            findings(&report).iter().find(|one| one["subject"] == addr.as_str() && one["check"] == check)
        };
        for check in ["reachable", "version", "permissions", "memory", "output buffer", "backlog", "clock"] {
            assert!(about(check).is_some(), "{check} of {addr}: {report:#}");
        }
        assert_eq!(about("permissions").unwrap()["severity"], "ok", "{report:#}");
        assert!(about("version").unwrap()["what"].as_str().unwrap().contains("understood"));
    }
    // Nobody forked, and nothing was written.
    for node in cluster.nodes() {
        let mut client = node.client().unwrap();
        let replicas = client.info_field("replication", "connected_slaves").unwrap().unwrap();
        assert_eq!(replicas, if node.number() < 2 { "1" } else { "0" });
    }
    assert!(files(folder.path()).is_empty());
    assert!(!repo.parent().unwrap().exists());

    let table = slotkeep(&arguments).expect_code(0).stdout;
    assert!(table.starts_with("severity  subject"), "{table}");
    assert!(table.contains("\nReady for a backup: 0 problems, "), "{table}");
    // Everything runs on one machine here: a note about each shard, with what to do.
    assert!(table.contains("note      cluster") && table.contains("→ "), "{table}");
}

#[test]
fn a_healthy_valkey_cluster_is_ready() {
    a_healthy_cluster_is_ready("valkey-9.1");
}

#[test]
fn a_healthy_redis_6_2_cluster_is_ready() {
    a_healthy_cluster_is_ready("redis-6.2");
}

#[test]
fn a_healthy_redis_8_2_cluster_is_ready() {
    a_healthy_cluster_is_ready("redis-8.2");
}

/// A user lacks rights, the advice names the line that gives them, an administrator runs it, and a backup succeeds.
fn the_advised_line_suffices(server_name: &str) {
    let cluster = ClusterBuilder::new(server(server_name))
        .primaries(2)
        .acl_user("keeper", "on >hidden -@all +ping +info +cluster +acl|whoami +acl|list")
        .acl_user("blind", "on >hidden -@all")
        .start()
        .unwrap();
    let report = check_as(&cluster, "keeper", "hidden").expect_code(41).json();
    assert_eq!(report["ready"], false);
    let missing = faults(&report, "permissions");
    let problem = missing.iter().find(|one| one["severity"] == "problem").unwrap();
    assert!(problem["what"].as_str().unwrap().contains("psync, replconf"), "{problem}");
    assert_eq!(findings(&report)[0]["severity"], "problem", "the worst comes first");

    let blind = check_as(&cluster, "blind", "hidden").expect_code(41).json();
    assert!(faults(&blind, "permissions")[0]["advice"].as_str().unwrap().contains("ACL SETUSER blind on"));

    let follow = |finding: &Value| {
        let advice = finding["advice"].as_str().unwrap();
        let words: Vec<&str> = advice.split(' ').skip_while(|word| *word != "ACL").collect();
        for node in cluster.nodes() {
            node.client().unwrap().command(&words).unwrap();
        }
    };
    follow(problem);
    // What is left is the barrier, with a line of its own.
    let report = check_as(&cluster, "keeper", "hidden").expect_code(0).json();
    let left = faults(&report, "permissions");
    assert!(!left.is_empty() && left.iter().all(|one| one["severity"] == "note"), "{report:#}");
    assert!(left[0]["what"].as_str().unwrap().contains("client|pause, client|unpause"), "{}", left[0]);
    follow(left[0]);
    let report = check_as(&cluster, "keeper", "hidden").expect_code(0).json();
    assert!(faults(&report, "permissions").is_empty(), "{report:#}");
    let folder = tempfile::tempdir().unwrap();
    let mut backup = command();
    backup.args(["backup", "--json", "--user", "keeper", "--cluster", &seed(&cluster)]);
    backup.args(["--barrier", "--barrier-budget", "20000", "--repo"]);
    let run = Run::of(&backup.arg(folder.path()).env("SLOTKEEP_PASSWORD", "hidden").output().unwrap());
    assert_eq!(run.expect_code(0).json()["cut"]["method"], "barrier");
}

#[test]
fn the_advised_line_suffices_on_valkey_9_1() {
    the_advised_line_suffices("valkey-9.1");
}

#[test]
fn the_advised_line_suffices_on_redis_7_0() {
    the_advised_line_suffices("redis-7.0");
}

#[test]
fn a_right_that_nothing_tells_of_is_named_and_not_tried() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .acl_user("closed", "on >hidden -@all +ping +info +cluster +psync +replconf")
        .start()
        .unwrap();
    let report = check_as(&cluster, "closed", "hidden").expect_code(0).json();
    let found = faults(&report, "permissions");
    assert!(found.iter().any(|one| one["what"].as_str().unwrap().contains("nothing tells")), "{found:#?}");
    let sync = cluster.nodes()[0].client().unwrap().info_field("stats", "sync_full").unwrap().unwrap();
    assert_eq!(sync, "0");
}

#[test]
fn tight_limits_under_writes_are_named() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .replicas_per_primary(1)
        .config("client-output-buffer-limit", "replica 1mb 512kb 5")
        .config("repl-backlog-size", "1mb")
        .config("repl-timeout", "5")
        .config("repl-ping-replica-period", "1")
        .config("repl-diskless-sync", "no")
        .start()
        .unwrap();
    let node = cluster.primary(0).unwrap();
    let endpoint: Endpoint = node.endpoint().clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let mut client = slotkeep_testkit::Client::connect(&endpoint).unwrap();
        let value = vec![b'x'; 100_000];
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            client.command(&[b"SET", &b"key"[..], &value]).unwrap();
        }
    });
    let report = slotkeep(&["check", "--json", "--cluster", &seed(&cluster)]).expect_code(0).json();
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
    for check in ["output buffer", "backlog", "timeouts"] {
        let found = faults(&report, check);
        assert!(found.iter().any(|one| one["severity"] == "warning"), "{check}: {report:#}");
    }
    assert_eq!(faults(&report, "diskless")[0]["severity"], "note");
}

#[test]
fn a_dead_replica_is_a_warning_and_a_dead_shard_a_problem() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(3)
        .replicas_per_primary(1)
        .config("cluster-require-full-coverage", "no")
        .start()
        .unwrap();
    let replica = cluster.replicas(1).unwrap()[0];
    replica.kill().unwrap();
    let report = slotkeep(&["check", "--json", "--cluster", &seed(&cluster)]).expect_code(0).json();
    let gone = faults(&report, "reachable");
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0]["subject"], replica.addr().to_string());
    assert_eq!(gone[0]["severity"], "warning");

    cluster.primary(1).unwrap().kill().unwrap();
    let report = slotkeep(&["check", "--json", "--cluster", &seed(&cluster)]).expect_code(41).json();
    let shards = faults(&report, "shards");
    assert_eq!(shards.len(), 1);
    assert!(shards[0]["what"].as_str().unwrap().contains("5461-10921"));
}

#[test]
fn a_standalone_server_and_its_replica_are_a_cluster_of_one_shard() {
    let pair = ClusterBuilder::new(server("redis-7.0"))
        .primaries(1)
        .replicas_per_primary(1)
        .cluster_mode(false)
        .config("min-replicas-to-write", "1")
        .start()
        .unwrap();
    let report = slotkeep(&["check", "--json", "--cluster", &seed(&pair)]).expect_code(0).json();
    assert!(faults(&report, "slots").is_empty());
    assert_eq!(faults(&report, "replicas to write").len(), 2);
    assert!(findings(&report).iter().any(|one| one["check"] == "replica" && one["severity"] == "ok"));
}

/// A name stands for one cluster: whoever looks at another, or backs it up, hears of it; once it is that one's it is silent.
#[test]
fn another_cluster_under_the_same_name_is_named() {
    let builder = ClusterBuilder::new(server("valkey-9.1"));
    let one = builder.clone().primaries(1).start().unwrap();
    let other = builder.primaries(1).cluster_mode(false).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let run = |what: &str, cluster: &Cluster| {
        let arguments = [what, "--json", "--cluster", &seed(cluster), "--repo", repo.to_str().unwrap()];
        slotkeep(&arguments).expect_code(0)
    };
    let warns = |run: &Run, known: &Cluster, found: &Cluster| {
        let (known, found) = (seed(known), seed(found));
        run.stderr.contains("another cluster") && run.stderr.contains(&known) && run.stderr.contains(&found)
    };
    assert_eq!(run("backup", &one).stderr, "");
    assert_eq!(run("backup", &one).stderr, "");
    assert!(faults(&run("check", &one).json(), "cluster").is_empty());
    let report = run("check", &other).json();
    let found = faults(&report, "cluster");
    assert_eq!((found.len(), &found[0]["severity"]), (1, &"warning".into()), "{report:#}");
    assert!(found[0]["advice"].as_str().unwrap().contains("one --name per cluster"), "{report:#}");
    let backup = run("backup", &other);
    assert!(warns(&backup, &one, &other), "{}", backup.stderr);
    // It is the other's now: that is what there is under the name.
    assert_eq!(run("backup", &other).stderr, "");
    let backup = run("backup", &one);
    assert!(warns(&backup, &other, &one), "{}", backup.stderr);
}
