//! A ledger beside a cluster that fails over: its account holds of the cluster itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slotkeep_testkit::ledger::{Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{ClusterBuilder, FailoverMode, servers};

#[test]
fn the_account_holds_of_a_cluster_that_fails_over() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server).replicas_per_primary(1).start().unwrap();
    let options = LedgerOptions { seed: 7, lists: 20, accounts: 6 };
    let ledger = Ledger::start(&cluster, options).unwrap();
    ledger.wait_for_more(500).unwrap();
    cluster.failover_by(0, FailoverMode::Graceful).unwrap();
    ledger.wait_for_more(500).unwrap();
    let account = ledger.stop(&cluster).unwrap();
    let (first, last) = account.span_ms().unwrap();
    let mut client = cluster.client().unwrap();
    let mut holds = |nothing_after_ms, nothing_missing_before_ms| {
        let bounds = Bounds { nothing_after_ms, nothing_missing_before_ms, consistent: true };
        account.check(bounds, &mut |args| client.command(args))
    };
    holds(i64::MAX, i64::MAX).unwrap();
    holds(first + (last - first) / 2, first).unwrap_err();
    assert_eq!(account.lost(), 0, "a graceful failover loses nothing");
    let mut client = cluster.client().unwrap();
    let length: i64 = client.command(&["LLEN", "ledger:{1}:list"]).unwrap().int().unwrap();
    assert!(length > 0);
    client.command(&["RPOP", "ledger:{1}:list"]).unwrap();
    let bounds = Bounds { nothing_after_ms: i64::MAX, nothing_missing_before_ms: i64::MAX, consistent: true };
    account.check(bounds, &mut |args| client.command(args)).unwrap_err();
}
