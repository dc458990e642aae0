//! An archive into a store that refuses writes while a line begins anew.

use slotkeep_testkit::{ClusterBuilder, servers};

use crate::bench::free_addrs;
use crate::bucket::{Bucket, text};
use crate::common::agent::Agent;
use crate::common::log::field;

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
    bucket.store.set_read_only(true);
    let node = &cluster.nodes()[0];
    node.kill().unwrap();
    cluster.start_nodes().unwrap();
    cluster.client().unwrap().command(&["SET", "key", "value"]).unwrap();
    agent.wait("the gap", |lines| lines.iter().any(|line| line["notice"]["kind"] == "gap"));
    agent.wait("the base to be refused", |lines| {
        lines.iter().any(|line| {
            line["notice"]["kind"] == "trouble" && line["notice"]["what"].to_string().contains("/base/")
        })
    });
    bucket.store.set_read_only(false);
    agent.wait("the second backup", |lines| {
        lines.iter().filter(|line| line["notice"]["kind"] == "backup").count() == 2
    });
    cluster.client().unwrap().command(&["SET", "later", "value"]).unwrap();
    let written: u64 = field(&mut node.client().unwrap(), "master_repl_offset").parse().unwrap();
    agent.wait_status("everything to be received", |status| {
        status["shards"][0]["received"].as_u64().is_some_and(|received| received >= written)
    });
    agent.stop();
    let restored = bucket.path("restored");
    let nodes = free_addrs(1)[0].to_string();
    let place = ["--to-dir", text(&restored), "--nodes", &nodes, "--at", "latest"];
    bucket.calm(&[&["restore", "--quiet", "--repo", bucket.repo()], &place[..]].concat(), 0);
    let commands = std::fs::read_dir(restored.join(nodes.replace(':', "-")).join("appendonlydir")).unwrap();
    let holds =
        |path: std::path::PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains("later");
    assert!(commands.into_iter().any(|entry| holds(entry.unwrap().path())));
}
