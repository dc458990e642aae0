//! An archive into a store that refuses writes while a line begins anew.

use slotkeep_testkit::{ClusterBuilder, servers};

use crate::bucket::{Bucket, text};
use crate::common::agent::Agent;
use crate::common::log::{assert_log_is_the_stream, field};
use crate::common::slotkeep;

/// The stream behind a base that could not be stored leads nowhere: another base is taken, and everything written since comes back.
#[test]
fn a_base_that_can_not_be_stored_is_taken_again() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server).primaries(1).start().unwrap();
    let bucket = Bucket::new(61);
    let environment = bucket.store.environment();
    let spool = bucket.path("spool");
    let agent = Agent::start_in(bucket.repo(), &environment, &spool, &cluster, &[]);
    agent.wait_ready();
    // The snapshot is stored and its digest is not: the stream has begun by then.
    bucket.store.lose_answer_and_refuse("/digest");
    let node = &cluster.nodes()[0];
    node.kill().unwrap();
    cluster.start_nodes().unwrap();
    cluster.client().unwrap().command(&["SET", "key", "value"]).unwrap();
    agent.wait("the gap", |lines| lines.iter().any(|line| line["notice"]["kind"] == "gap"));
    agent.wait("the base to be refused", |lines| {
        lines.iter().any(|line| {
            line["notice"]["kind"] == "trouble" && line["notice"]["what"].to_string().contains("/digest")
        })
    });
    bucket.store.clear();
    agent.wait("the second backup", |lines| {
        lines.iter().filter(|line| line["notice"]["kind"] == "backup").count() == 2
    });
    cluster.client().unwrap().command(&["SET", "later", "value"]).unwrap();
    let written: u64 = field(&mut node.client().unwrap(), "master_repl_offset").parse().unwrap();
    agent.wait_status("everything to be received", |status| {
        status["shards"][0]["received"].as_u64().is_some_and(|received| received >= written)
    });
    agent.stop();
    let copy = bucket.fetched("copy");
    let manifest = slotkeep(&["show", "--json", "--repo", text(&copy)]).expect_code(0).json();
    let line = assert_log_is_the_stream(&copy, &manifest["shards"][0], node);
    assert!(line.end() >= written, "{} of {written}", line.end());
}
