//! A failover in the middle of the log, and what the log and its histories look like.

use serde_json::Value;
use slotkeep_testkit::{ClusterBuilder, Node, servers};

use crate::common::agent::Agent;
use crate::common::command;
use crate::harness::{Bench, client, endpoint, free_addrs, seed};
use crate::recorder::{Recorder, manifest_of, now, pause};

#[test]
fn a_log_goes_on_through_a_failover() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .primaries(1)
        .replicas_per_primary(1)
        .config("repl-backlog-size", "16mb")
        .start()
        .unwrap();
    let bench = Bench::new();
    let manifest = manifest_of(&bench.backup(seed(&cluster), &["--prefer", "primary"]));
    let mut recorder = Recorder::start(&cluster, &manifest);
    let write = |from: u32, until: u32| {
        let mut client = cluster.primary(0).unwrap().client().unwrap();
        for number in from..until {
            client.command(&["SET", &format!("{{k}}:{number}"), "x"]).unwrap();
        }
        // Two follow: the replica, and the recorder, which acknowledges nothing.
        assert!(client.command(&["WAIT", "1", "20000"]).unwrap().int().unwrap() >= 1);
    };
    write(0, 300);
    recorder.catch_up();
    let before = now();
    // The moment after it that a sample proves.
    recorder.catch_up();
    cluster.primary(0).unwrap().kill().unwrap();
    let new = cluster.failover(0).unwrap().addr();
    recorder.fail_over(0, new);
    let mut after = client(new, None, None);
    for number in 300..600 {
        after.command(&["SET", &format!("{{k}}:{number}"), "x"]).unwrap();
    }
    let many: Vec<String> = (0..20).map(|number| format!("{{k}}:{number}")).collect();
    let mut unlink = vec!["UNLINK"];
    unlink.extend(many.iter().map(String::as_str));
    after.command(&unlink).unwrap();
    recorder.catch_up();
    recorder.finish(&bench.repo(), 5_000);
    drop(cluster);

    let program = server.program().to_str().unwrap();
    let count = |nodes: &[std::net::SocketAddr]| {
        let mut client = slotkeep_testkit::Client::connect(&endpoint(nodes[0], None, None)).unwrap();
        client.command(&["DBSIZE"]).unwrap().int().unwrap()
    };
    let nodes = free_addrs(2);
    bench.restore("latest", &nodes, &["--at", "latest", "--start", "--server", program]).json();
    assert_eq!(count(&nodes), 580);
    let nodes = free_addrs(2);
    let options = ["--before-command", "UNLINK {k}:*", "--start", "--server", program];
    bench.restore("undone", &nodes, &options).json();
    assert_eq!(count(&nodes), 600);
    let nodes = free_addrs(2);
    let at = before.to_string();
    let report = bench.restore("before", &nodes, &["--at", &at, "--start", "--server", program]).json();
    assert_eq!(count(&nodes), 300);
    assert_eq!(report["recovery"]["shards"][0]["log"].as_array().unwrap().len(), 1);

    looks_right(&bench, &manifest.shards[0].history.to_string());
}

/// What `list --history` and `log` say of it.
fn looks_right(bench: &Bench, first: &str) {
    let list = bench.slotkeep(&["list", "--history"]).json();
    let restorable = &list["restorable"][0];
    assert_eq!(restorable["moments"].as_array().unwrap().len(), 1, "{restorable}");
    let graph = restorable["history"].as_array().unwrap();
    assert_eq!(graph.len(), 2);
    assert_eq!(graph[0]["history"], first);
    assert_eq!(graph[1]["parent"]["history"], first);
    assert_eq!(graph[1]["parent"]["offset"], graph[0]["log"][0]["last"]);

    let log = bench.slotkeep(&["log"]).json();
    let sets = log["commands"].as_array().unwrap().iter().find(|row| row["name"] == "SET").unwrap();
    assert_eq!(sets["count"], 600);
    let destructive = log["destructive"].as_array().unwrap();
    assert_eq!(destructive.len(), 1, "{destructive:?}");
    assert_eq!((&destructive[0]["args"][0], &destructive[0]["arg_count"]), (&"UNLINK".into(), &21.into()));

    let lines = bench.slotkeep(&["log", "--commands", "--pattern", "SET {k}:59?"]);
    assert_eq!(lines.code, 0, "{}", lines.stderr);
    let keys: Vec<String> = lines
        .stdout
        .lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            entry["args"][1].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(keys, (590..600).map(|number| format!("{{k}}:{number}")).collect::<Vec<_>>());
}

/// A replica took over and was archived for a while. It went, and the old primary serves on: the log goes on with what that wrote since.
#[test]
fn the_log_goes_on_with_an_old_primary_that_serves_on() {
    let server = servers::require("redis-7.2").unwrap();
    let pair = ClusterBuilder::new(server.clone())
        .cluster_mode(false)
        .primaries(1)
        .replicas_per_primary(1)
        .config("repl-backlog-size", "16mb")
        .start()
        .unwrap();
    let bench = Bench::new();
    let archive = |node: &Node, name: &str| {
        let mut archive = command();
        archive.args(["archive", "--json", "--status-every", "200ms", "--seal-after", "500ms", "--cluster"]);
        archive.arg(node.addr().to_string()).arg("--repo").arg(bench.repo());
        archive.arg("--spool").arg(bench.path("spool"));
        let agent = Agent::spawn(archive);
        agent.wait_following();
        let mut writer = node.client().unwrap();
        for number in 0..10 {
            writer.command(&["SET", &format!("{name}:{number}"), "x"]).unwrap();
        }
        // The time of a byte is known once more have come: an idle server is asked for it once a second.
        for number in 0..4 {
            pause(600);
            writer.command(&["SET", &format!("later:{number}"), "x"]).unwrap();
        }
        agent.stop();
    };
    let (old, taker) = (&pair.nodes()[0], &pair.nodes()[1]);
    archive(old, "before");
    taker.client().unwrap().command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    archive(taker, "taker");
    taker.kill().unwrap();
    archive(old, "since");
    let list = bench.slotkeep(&["list", "--history"]).json();
    let graph = list["restorable"][0]["history"].as_array().unwrap();
    assert_eq!(graph.len(), 2, "{list}");
    assert_eq!(graph[1]["parent"]["history"], graph[0]["history"]);
    assert!(graph[0]["divergent"].is_null(), "{list}");
    drop(pair);

    let nodes = free_addrs(1);
    let options = ["--at", "latest", "--no-replicas"];
    bench.restore_and_start("new", &nodes, &server, &options);
    let keys = client(nodes[0], None, None).command(&["KEYS", "*"]).unwrap();
    let keys: Vec<String> = keys.array().unwrap().iter().map(|key| key.text().unwrap()).collect();
    let of = |name: &str| keys.iter().filter(|key| key.starts_with(name)).count();
    assert_eq!([of("before"), of("taker"), of("since")], [10, 0, 10], "{list}");
}
