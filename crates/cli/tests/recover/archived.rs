//! What `slotkeep archive` kept, through a failover, restored at moments taken at random and held against the writers' ledger.

use slotkeep_testkit::ledger::{Account, Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{Cluster, ClusterBuilder, Server, servers};

use crate::common::agent::Agent;
use crate::harness::{Bench, cluster_client, free_addrs};
use crate::moments::next_restorable;
use crate::recorder::{pause, sample};

/// By how much the writers' clock and the servers' may be rounded apart: both are this machine's.
const ROUNDING_MS: i64 = 2;

/// Restores to a moment and compares. Nothing that was sent after it may be there; nothing that was acknowledged before it may be
/// missing, but for what the restore said.
fn check_moment(bench: &Bench, server: &Server, account: &Account, name: &str, moment_ms: i64) {
    let at = jiff::Timestamp::from_millisecond(moment_ms).unwrap().to_string();
    let nodes = free_addrs(3);
    let program = server.program().to_str().unwrap();
    let options = ["--at", &at, "--no-replicas", "--start", "--server", program];
    let report = bench.restore(name, &nodes, &options).json();
    let shards = report["recovery"]["shards"].as_array().unwrap();
    let lack = shards.iter().map(|shard| shard["may_lack_ms"].as_i64().unwrap()).max().unwrap();
    let bounds = Bounds {
        nothing_after_ms: moment_ms + ROUNDING_MS,
        nothing_missing_before_ms: moment_ms - lack - ROUNDING_MS,
        consistent: false,
    };
    let mut client = cluster_client(&nodes, None);
    account
        .check(bounds, &mut |args| client.command(args))
        .unwrap_or_else(|error| panic!("{at}: {error}\n{report}"));
}

/// Waits until everything that the primaries have produced by now has been received.
fn wait_held(agent: &Agent, cluster: &Cluster) {
    let offsets: Vec<u64> = (0..cluster.shards())
        .map(|shard| sample(&mut cluster.primary(shard).unwrap().client().unwrap()).unwrap().offset)
        .collect();
    agent.wait_status("everything to be received", |status| {
        let received =
            status["shards"].as_array().unwrap().iter().map(|shard| shard["received"].as_u64().unwrap());
        let mut received: Vec<u64> = received.collect();
        let mut wanted = offsets.clone();
        received.sort_unstable();
        wanted.sort_unstable();
        received.len() == wanted.len()
            && received.iter().zip(wanted).all(|(received, wanted)| *received >= wanted)
    });
}

fn archive_comes_back(name: &str) {
    let server = servers::require(name).unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .replicas_per_primary(1)
        .config("repl-backlog-size", "32mb")
        .start()
        .unwrap();
    let bench = Bench::new();
    let folder = bench.repo();
    let agent = Agent::start(&cluster, folder.parent().unwrap(), &[]);
    agent.wait_ready();
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 5, lists: 30, accounts: 8 }).unwrap();
    ledger.wait_for_more(100).unwrap();
    // An idle server is asked for its time once a second: from then on more often.
    pause(1500);
    let before = next_restorable(&bench, 3);
    cluster.primary(1).unwrap().kill().unwrap();
    cluster.failover(1).unwrap();
    agent.wait_following();
    ledger.wait_for_more(100).unwrap();
    let after = next_restorable(&bench, 3);
    let account = ledger.stop(&cluster).unwrap();
    wait_held(&agent, &cluster);
    for shard in 0..3 {
        cluster.primary(shard).unwrap().client().unwrap().command(&["FLUSHALL"]).unwrap();
    }
    wait_held(&agent, &cluster);
    agent.stop();
    drop(cluster);

    check_moment(&bench, &server, &account, "before", before);
    check_moment(&bench, &server, &account, "after", after);

    // The accident is undone: everything that was acknowledged is there.
    let nodes = free_addrs(3);
    let program = server.program().to_str().unwrap();
    let options = ["--before-command", "FLUSHALL", "--no-replicas", "--start", "--server", program];
    bench.restore("undone", &nodes, &options).json();
    let mut client = cluster_client(&nodes, None);
    let all = Bounds { nothing_after_ms: i64::MAX, nothing_missing_before_ms: i64::MAX, consistent: true };
    account.check(all, &mut |args| client.command(args)).unwrap();
}

#[test]
fn what_an_archive_of_valkey_9_1_kept_comes_back() {
    archive_comes_back("valkey-9.1");
}

#[test]
fn what_an_archive_of_redis_7_0_kept_comes_back() {
    archive_comes_back("redis-7.0");
}
