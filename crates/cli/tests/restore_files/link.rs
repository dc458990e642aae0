//! New nodes that follow Slotkeep until they have their data.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Client, ClusterBuilder, Endpoint, servers};

use crate::harness::{Bench, client, cluster_client, free_addrs, seed};

const LIMIT: Duration = Duration::from_secs(60);

/// Backs up three shards with a replica each and restores them over links.
fn comes_back_over_links(name: &str, password: Option<&str>) {
    let server = servers::require(name).unwrap();
    let mut builder = ClusterBuilder::new(server.clone()).replicas_per_primary(1);
    let mut bench = Bench::new();
    let mut options = vec![];
    if let Some(password) = password {
        builder = builder.password(password);
        bench = bench.with_password(password);
        options.push("--include-secrets");
    }
    // The one setting decides how the nodes take the snapshot in, the other whether they write it to an append-only file at once.
    let cluster = builder.config("repl-diskless-load", "swapdb").config("appendonly", "yes").start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let manifest = bench.backup(seed(&cluster), &options);
    let nodes = free_addrs(6);
    let report = bench.restore_and_start("new", &nodes, &server, &["--via", "link"]);
    let started = report["started"].as_array().unwrap();
    assert_eq!(started.len(), 6);
    let planned = report["nodes"].as_array().unwrap();
    assert!(planned.iter().all(|node| node.get("dataset").is_none()), "{planned:?}");

    loaded.verify(&mut cluster_client(&nodes, password)).unwrap();
    bench.same_data(nodes[0], &[]);
    // Every primary knows that what it has is what the old one had, up to there.
    let histories: Vec<&str> = manifest["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["history"].as_str().unwrap())
        .collect();
    let mut found = 0;
    for (node, plan) in nodes.iter().zip(planned) {
        let addr = plan["addr"].as_str().unwrap().parse().unwrap();
        let mut client = client(addr, None, password);
        // A machine that is busy may keep a node from answering its peers for a moment.
        wait_for(LIMIT, "all nodes to see all others", || {
            let told = client.command(&["CLUSTER", "NODES"])?.text()?;
            let whole = told.lines().count() == 6 && !told.contains("fail");
            if whole { Ok(()) } else { Err(NotYet::because(format!("{node}: {told}"))) }
        })
        .unwrap();
        if plan["role"] == "primary" {
            let before = client.info_field("replication", "master_replid2").unwrap().unwrap();
            assert!(histories.contains(&before.as_str()), "{before} is none of {histories:?}");
            found += 1;
        }
    }
    assert_eq!(found, 3);
}

#[test]
fn redis_7_0_comes_back_over_links() {
    comes_back_over_links("redis-7.0", None);
}

#[test]
fn valkey_9_1_comes_back_over_links() {
    comes_back_over_links("valkey-9.1", Some("pass word"));
}

#[test]
fn who_does_not_get_all_of_it_gets_nothing() {
    let server = servers::require("redis-7.0").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).primaries(2).start().unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let bench = Bench::new();
    bench.backup(seed(&cluster), &[]);
    let object = bench.object("rdb.zst");
    let mut bytes = std::fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&object, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&object, bytes).unwrap();
    let nodes = free_addrs(2);
    let program = server.program().to_str().unwrap();
    let run = bench.restore("new", &nodes, &["--start", "--server", program, "--via", "link"]);
    run.failed(23, "damaged");
    run.failed(23, "none of them runs, and their folders were removed");
    assert_eq!(bench.restored(), Vec::<String>::new());
    for node in nodes {
        assert!(Client::connect(&Endpoint::plain(node)).is_err());
    }
}

#[test]
fn only_nodes_of_a_cluster_follow() {
    let server = servers::require("redis-7.0").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).primaries(1).cluster_mode(false).start().unwrap();
    let bench = Bench::new();
    bench.backup(seed(&cluster), &[]);
    let program = server.program().to_str().unwrap();
    let options = ["--start", "--server", program, "--via", "link"];
    bench
        .restore("new", &free_addrs(1), &options)
        .failed(2, "only the nodes of a cluster can follow Slotkeep");
    assert_eq!(bench.restored(), Vec::<String>::new());
}
