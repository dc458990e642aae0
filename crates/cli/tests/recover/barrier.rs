//! Backups whose cut is a barrier, taken while writers move amounts between accounts on all shards: what comes back is one moment of the
//! whole cluster, to the write.
//!
//! `SLOTKEEP_BARRIERS` makes it longer.

use std::fs;

use serde_json::Value;
use slotkeep_testkit::ledger::{Account, Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{ClusterBuilder, Server, servers};

use crate::harness::{Bench, cluster_client, free_addrs, setting, stop_nodes};

/// By how much the writers' clock and the servers' may be rounded apart: both are this machine's.
const ROUNDING_MS: i64 = 2;

/// What a dataset that ends at this backup's cut may hold and must. While writes were paused none was carried out, so the cut is every
/// moment of the pause.
fn bounds(manifest: &Value) -> Bounds {
    let cut = &manifest["cut"];
    assert_eq!(cut["method"], "barrier", "{cut}");
    assert_eq!(cut["error_ms"], 0, "{cut}");
    let at: jiff::Timestamp = cut["at"].as_str().unwrap().parse().unwrap();
    let paused_ms = cut["paused_ms"].as_i64().unwrap();
    Bounds {
        nothing_after_ms: at.as_millisecond() + paused_ms + ROUNDING_MS,
        nothing_missing_before_ms: at.as_millisecond() - paused_ms - ROUNDING_MS,
        consistent: true,
    }
}

fn check(bench: &Bench, server: &Server, account: &Account, manifest: &Value) {
    let id = manifest["id"].as_str().unwrap();
    let nodes = free_addrs(3);
    bench.restore_and_start(id, &nodes, server, &["--backup", id, "--no-replicas"]);
    let mut client = cluster_client(&nodes, None);
    account
        .check(bounds(manifest), &mut |args| client.command(args))
        .unwrap_or_else(|error| panic!("{error}\n{}", manifest["cut"]));
    stop_nodes(&nodes);
    fs::remove_dir_all(bench.path(id)).unwrap();
}

fn barriers_are_one_moment(name: &str) {
    let server = servers::require(name).unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .replicas_per_primary(1)
        .config("repl-backlog-size", "32mb")
        .start()
        .unwrap();
    let bench = Bench::new();
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 11, lists: 12, accounts: 24 }).unwrap();
    ledger.wait_for_more(300).unwrap();
    let node = cluster.node(0).unwrap().addr();
    let barrier = ["--barrier", "--barrier-budget", "5000"];
    let mut manifests = vec![bench.backup(node, &barrier)];
    for _ in 0..setting("SLOTKEEP_BARRIERS", 2) {
        ledger.wait_for_more(300).unwrap();
        let incremental = [&barrier[..], &["--type", "incremental"]].concat();
        manifests.push(bench.backup(node, &incremental));
    }
    ledger.wait_for_more(50).unwrap();
    let account = ledger.stop(&cluster).unwrap();
    drop(cluster);
    for manifest in &manifests {
        check(&bench, &server, &account, manifest);
    }
}

#[test]
fn a_barrier_over_valkey_9_1_is_one_moment_of_all_shards() {
    barriers_are_one_moment("valkey-9.1");
}

#[test]
fn a_barrier_over_redis_7_0_is_one_moment_of_all_shards() {
    barriers_are_one_moment("redis-7.0");
}
