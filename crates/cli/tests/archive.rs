//! `slotkeep archive` on real clusters: what it keeps is what the servers hold, byte for byte, whatever happens to either.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::agent::Agent;
use common::log::{assert_log_is_the_stream, field};
use common::{bring_back, command, server, slotkeep, take_away};
use serde_json::Value;
use slotkeep_testkit::data::{Mix, Writer};
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder, FailoverMode};
use tempfile::TempDir;

fn cluster(server_name: &str, primaries: usize, replicas: usize) -> Cluster {
    ClusterBuilder::new(server(server_name))
        .primaries(primaries)
        .replicas_per_primary(replicas)
        .config("repl-backlog-size", "64mb")
        .config("repl-ping-replica-period", "1")
        .config("cluster-require-full-coverage", "no")
        .start()
        .unwrap()
}

fn latest(folder: &TempDir) -> Value {
    let repo = folder.path().join("repo");
    slotkeep(&["show", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json()
}

fn set(cluster: &Cluster, key: &str, value: &str) {
    cluster.client().unwrap().command(&["SET", key, value]).unwrap();
}

/// Everything that the primaries have written so far is on the local disk or in the repository.
fn wait_held(agent: &Agent, cluster: &Cluster) {
    let offsets: Vec<u64> = (0..cluster.shards())
        .map(|shard| {
            let mut client = cluster.primary(shard).unwrap().client().unwrap();
            field(&mut client, "master_repl_offset").parse().unwrap()
        })
        .collect();
    agent.wait_status("everything to be received", |status| {
        let shards = status["shards"].as_array().unwrap();
        let held = shards.iter().map(|shard| shard["durable"].as_u64().unwrap());
        shards.len() == offsets.len() && held.zip(&offsets).all(|(held, wanted)| held >= *wanted)
    });
}

fn assert_logs_are_the_streams(folder: &TempDir, cluster: &Cluster) {
    let manifest = latest(folder);
    for (number, shard) in manifest["shards"].as_array().unwrap().iter().enumerate() {
        assert_log_is_the_stream(&folder.path().join("repo"), shard, cluster.primary(number).unwrap());
    }
}

fn an_agent_that_is_killed_goes_on_without_a_gap(server_name: &str) {
    let cluster = cluster(server_name, 2, 0);
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::start(&cluster, 100).unwrap();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let manifest = latest(&folder);
    assert_eq!(manifest["kind"], "full");
    assert_eq!(manifest["cut"]["method"], "instant");
    writer.wait_for_more(500).unwrap();
    agent.kill();
    writer.wait_for_more(500).unwrap();
    // Longer pieces: the second death finds much that is not sealed.
    let agent = Agent::start(&cluster, folder.path(), &["--seal-size", "1GiB", "--seal-after", "1h"]);
    agent.wait_following();
    writer.wait_for_more(500).unwrap();
    agent.kill();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_following();
    writer.wait_for_more(500).unwrap();
    writer.stop();
    wait_held(&agent, &cluster);
    assert!(agent.notices("gap").is_empty() && agent.notices("base").is_empty());
    let last = agent.stop();
    assert_eq!(last["spool_bytes"], 0, "{last}");
    for shard in last["shards"].as_array().unwrap() {
        assert_eq!((&shard["sealed"], &shard["unsealed_bytes"]), (&shard["received"], &0.into()), "{shard}");
    }
    assert_logs_are_the_streams(&folder, &cluster);
    // Nothing but the first backup was needed.
    assert_eq!(latest(&folder)["id"], manifest["id"]);
}

#[test]
fn an_agent_that_is_killed_goes_on_without_a_gap_on_valkey_9_1() {
    an_agent_that_is_killed_goes_on_without_a_gap("valkey-9.1");
}

#[test]
fn an_agent_that_is_killed_goes_on_without_a_gap_on_redis_6_2() {
    an_agent_that_is_killed_goes_on_without_a_gap("redis-6.2");
}

#[test]
fn an_idle_cluster_is_known_to_be_silent() {
    let cluster = cluster("redis-7.0", 1, 0);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let before = agent.status()["shards"][0]["received"].as_u64().unwrap();
    agent.wait_status("heartbeats", |status| {
        status["shards"][0]["received"].as_u64().unwrap() >= before + 3 * 14
    });
    agent.stop();
    let manifest = latest(&folder);
    let node = &cluster.nodes()[0];
    let line = assert_log_is_the_stream(&folder.path().join("repo"), &manifest["shards"][0], node);
    let samples: usize = line.records.iter().map(|record| record.times.samples().len()).sum();
    assert!(samples >= 2, "the moments of silence are known: {samples}");
    let last = line.records.last().unwrap();
    assert_eq!(last.source, node.addr().to_string().parse().unwrap());
}

#[test]
fn failovers_are_followed() {
    let cluster = cluster("valkey-9.1", 2, 1);
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::start(&cluster, 100).unwrap();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let manifest = latest(&folder);
    // The whole stream of each shard is to be found on the node that leads it in the end.
    cluster.failover_by(0, FailoverMode::Graceful).unwrap();
    writer.wait_for_more(500).unwrap();
    agent.wait("the first fork", |lines| lines.iter().any(|line| line["notice"]["kind"] == "fork"));
    let dead = cluster.primary(1).unwrap();
    dead.kill().unwrap();
    cluster.failover(1).unwrap();
    writer.wait_for_more(500).unwrap();
    writer.stop();
    agent.wait_following();
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    assert_eq!(agent.notices("diverged"), Vec::<String>::new());
    agent.stop();
    let repo = folder.path().join("repo");
    for shard in manifest["shards"].as_array().unwrap() {
        let slots = shard["slots"].as_str().unwrap();
        let number = usize::from(!slots.starts_with("0-"));
        let line = assert_log_is_the_stream(&repo, shard, cluster.primary(number).unwrap());
        assert_eq!(line.histories.len(), 2, "{slots}: {:?}", line.histories);
    }
    dead.start().unwrap();
}

/// The node that is followed falls silent without closing anything, while the primary goes on.
#[test]
fn a_replica_that_hangs_is_left() {
    let cluster = cluster("redis-7.0", 1, 1);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let (primary, replica) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    assert_eq!(agent.status()["shards"][0]["source"], replica.addr().to_string());
    replica.pause().unwrap();
    primary.client().unwrap().command(&["SET", "key", "value"]).unwrap();
    wait_held(&agent, &cluster);
    agent.wait_status("the primary to be followed", |status| {
        status["shards"][0]["source"] == primary.addr().to_string()
    });
    replica.resume().unwrap();
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    agent.stop();
    assert_log_is_the_stream(&folder.path().join("repo"), &latest(&folder)["shards"][0], primary);
}

/// A primary that was ahead of its replica dies: what only it and the archive had is kept, and is not on the main line.
#[test]
fn a_divergent_tail_is_kept_and_a_new_base_begins() {
    let cluster = cluster("valkey-9.1", 1, 1);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(&cluster, folder.path(), &["--prefer", "primary"]);
    agent.wait_ready();
    let first = latest(&folder);
    let (primary, replica) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    replica.pause().unwrap();
    // The replica is stopped and cannot come back; the agent can.
    primary.client().unwrap().command(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    set(&cluster, "only-here", "1");
    agent.wait_following();
    wait_held(&agent, &cluster);
    let ahead: u64 = field(&mut primary.client().unwrap(), "master_repl_offset").parse().unwrap();
    primary.kill().unwrap();
    replica.resume().unwrap();
    replica.client().unwrap().command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    agent.wait("the divergence", |lines| lines.iter().any(|line| line["notice"]["kind"] == "diverged"));
    agent.wait("the second backup", |lines| {
        lines.iter().filter(|line| line["notice"]["kind"] == "backup").count() == 2
    });
    set(&cluster, "after", "1");
    wait_held(&agent, &cluster);
    agent.stop();
    let second = latest(&folder);
    let repo = folder.path().join("repo");
    assert_log_is_the_stream(&repo, &second["shards"][0], replica);
    let old = first["shards"][0]["history"].as_str().unwrap();
    let tail = common::log::line(&repo, &first["shards"][0], old);
    assert!(tail.end() >= ahead && String::from_utf8_lossy(&tail.bytes).contains("only-here"));
    let new = second["shards"][0]["history"].as_str().unwrap();
    let record = std::fs::read(repo.join(format!("main/history/{new}/history.json"))).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["parent"]["history"], old);
    assert!(record["parent"]["fork"].as_u64().unwrap() < ahead);
}

#[test]
fn a_link_that_is_cut_anywhere_is_continued() {
    let cluster = cluster("valkey-9.1", 1, 0);
    let node = &cluster.nodes()[0];
    let proxy = node.proxy().unwrap();
    let folder = tempfile::tempdir().unwrap();
    Mix::bulk(2_000_000).load(&cluster).unwrap();
    let map = format!("{}={}", node.addr(), proxy.addr());
    // In the middle of the snapshot.
    proxy.cut_after(200_000);
    let agent = Agent::start(&cluster, folder.path(), &["--address-map", &map]);
    agent.wait("the cut", |lines| lines.iter().any(|line| line["notice"]["kind"] == "trouble"));
    proxy.mend();
    agent.wait_ready();
    // In the middle of commands.
    for round in 0..5 {
        proxy.cut_after(100_000 + round * 7777);
        set(&cluster, &format!("key{round}"), &"y".repeat(300_000));
        agent.wait_status("the cut", |status| status["shards"][0]["source"].is_null());
        proxy.mend();
        agent.wait_following();
    }
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    agent.stop();
    assert_logs_are_the_streams(&folder, &cluster);
}

/// The repository is away: what comes waits on the local disk, the server notices nothing, and everything is sealed afterwards.
#[test]
fn a_repository_that_is_away_is_caught_up_with() {
    let cluster = cluster("redis-7.2", 1, 0);
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let away = folder.path().join("away");
    take_away(&repo, &away);
    let mut client = cluster.client().unwrap();
    for number in 0..50 {
        client.command(&["SET", &format!("key{number}"), &"z".repeat(10_000)]).unwrap();
    }
    let node = &cluster.nodes()[0];
    let written: u64 = field(&mut node.client().unwrap(), "master_repl_offset").parse().unwrap();
    agent.wait_status("the spool to fill", |status| {
        status["shards"][0]["durable"].as_u64().unwrap() >= written && status["spool_bytes"] != 0
    });
    agent.wait_status("trouble", |status| status["shards"][0]["trouble"].is_string());
    // Acknowledged is what is durable here.
    let acknowledged = node.client().unwrap().command(&["WAIT", "1", "5000"]).unwrap().int().unwrap();
    assert_eq!(acknowledged, 1);
    bring_back(&away, &repo);
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    let last = agent.stop();
    assert_eq!(last["spool_bytes"], 0);
    assert_logs_are_the_streams(&folder, &cluster);
}

/// With `--ack repo` a write counts only once the repository holds it.
#[test]
fn what_is_acknowledged_is_what_was_chosen() {
    let cluster = cluster("valkey-8.0", 1, 0);
    let folder = tempfile::tempdir().unwrap();
    let (repo, away) = (folder.path().join("repo"), folder.path().join("away"));
    let agent = Agent::start(&cluster, folder.path(), &["--ack", "repo"]);
    agent.wait_ready();
    let mut client = cluster.nodes()[0].client().unwrap();
    client.command(&["SET", "a", "1"]).unwrap();
    assert_eq!(client.command(&["WAIT", "1", "20000"]).unwrap().int().unwrap(), 1);
    take_away(&repo, &away);
    client.command(&["SET", "a", "2"]).unwrap();
    assert_eq!(client.command(&["WAIT", "1", "1500"]).unwrap().int().unwrap(), 0);
    bring_back(&away, &repo);
    assert_eq!(client.command(&["WAIT", "1", "30000"]).unwrap().int().unwrap(), 1);
    agent.stop();
    assert_logs_are_the_streams(&folder, &cluster);
}

/// The spool's disk fills up (1 MiB, in a mount namespace of its own): the link is dropped, what is there is sealed, and the stream goes on.
#[test]
fn a_disk_that_is_full_loses_nothing() {
    let cluster = cluster("valkey-9.1", 1, 0);
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    std::fs::create_dir(&spool).unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$0\" && exec \"$@\"";
    let mut shell = std::process::Command::new("unshare");
    shell.args(["-rm", "sh", "-c", script]).arg(&spool).arg(env!("CARGO_BIN_EXE_slotkeep"));
    shell.args(["archive", "--json", "--status-every", "200ms", "--seal-after", "500ms", "--cluster"]);
    shell.arg(cluster.nodes()[0].addr().to_string()).arg("--repo").arg(folder.path().join("repo"));
    let agent = Agent::spawn({
        shell.arg("--spool").arg(&spool);
        shell
    });
    agent.wait_ready();
    for number in 0..40 {
        set(&cluster, &format!("key{number}"), &"d".repeat(100_000));
    }
    agent.wait("the full disk", |lines| {
        lines.iter().any(|line| line["notice"]["what"].to_string().contains("No space left"))
    });
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    agent.stop();
    assert_logs_are_the_streams(&folder, &cluster);
}

/// The spool's limit: the link is dropped, the server stays as it was, and what was lost meanwhile is announced as a gap.
#[test]
fn a_full_spool_drops_the_link_and_a_lost_stream_is_a_gap() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .config("repl-backlog-size", "1mb")
        .config("repl-ping-replica-period", "1")
        .start()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &["--spool-limit", "2MiB"]);
    agent.wait_ready();
    let away = folder.path().join("away");
    take_away(&repo, &away);
    let mut client = cluster.client().unwrap();
    let node = &cluster.nodes()[0];
    let mut write = |count: usize| {
        for number in 0..count {
            client.command(&["SET", &format!("key{number}"), &"w".repeat(100_000)]).unwrap();
        }
    };
    write(40);
    agent.wait_status("the spool to be full", |status| status["shards"][0]["phase"] == "spool_full");
    let replicas = field(&mut node.client().unwrap(), "connected_slaves");
    assert_eq!(replicas, "0");
    write(40);
    bring_back(&away, &repo);
    agent.wait("the gap", |lines| lines.iter().any(|line| line["notice"]["kind"] == "gap"));
    let gap = agent.notices("gap").remove(0);
    assert!(gap.contains("repl-backlog-size 1048576") && gap.contains("would have sufficed"), "{gap}");
    agent.wait("the second backup", |lines| {
        lines.iter().filter(|line| line["notice"]["kind"] == "backup").count() == 2
    });
    write(2);
    wait_held(&agent, &cluster);
    agent.stop();
    let manifest = latest(&folder);
    assert_eq!(manifest["kind"], "full");
    let repo = folder.path().join("repo");
    let line = assert_log_is_the_stream(&repo, &manifest["shards"][0], node);
    assert!(line.end() > manifest["shards"][0]["offset"].as_u64().unwrap());
}

/// Makes the disk stand still once, when the file that `STALL_ONCE` names is there.
const STALL: &str = r#"
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int file) {
    const char *wanted = getenv("STALL_ONCE");
    if (wanted && unlink(wanted) == 0) sleep(13);
    return (int)syscall(SYS_fdatasync, file);
}
"#;

/// What came meanwhile lies unread: that is no silence of the server, whose link would be dropped after ten seconds of it.
#[test]
fn a_disk_that_stands_still_costs_no_link() {
    let cluster = cluster("valkey-9.1", 1, 0);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("stall.c"), STALL).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).args([path("stall.so"), path("stall.c")]);
    assert!(compiler.status().unwrap().success());
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let environment = [("LD_PRELOAD", text("stall.so")), ("STALL_ONCE", text("stall"))];
    let agent = Agent::start_in(&text("repo"), &environment, &path("spool"), &cluster, &[]);
    agent.wait_ready();
    let links = agent.notices("following");
    let mut client = cluster.nodes()[0].client().unwrap();
    let mut uptime_s =
        || -> u64 { client.info_field("server", "uptime_in_seconds").unwrap().unwrap().parse().unwrap() };
    let writer = Writer::start(&cluster, 100).unwrap();
    std::fs::write(path("stall"), "").unwrap();
    wait_for(Duration::from_mins(1), "the disk to stand still", || {
        if path("stall").exists() { Err(NotYet::because("it does not")) } else { Ok(()) }
    })
    .unwrap();
    let until = uptime_s() + 15;
    wait_for(Duration::from_mins(2), "the disk to go on", || {
        if uptime_s() < until { Err(NotYet::because("it does not")) } else { Ok(()) }
    })
    .unwrap();
    writer.stop();
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("following"), links, "{}", agent.said());
    agent.stop();
    assert_logs_are_the_streams(&folder, &cluster);
}

/// A primary that is restarted in order is continued; slots that move are written down with the nodes they move between.
#[test]
fn restarts_and_moved_slots_are_followed() {
    let cluster = cluster("valkey-8.1", 2, 0);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    for number in 0..50 {
        set(&cluster, &format!("key{number}"), "value");
    }
    let slot = slotkeep_model::slot::key_slot(b"key1");
    let owner = usize::from(slot.number() >= 8192);
    cluster.move_slot(slot, owner, 1 - owner).unwrap();
    agent.wait("the new owner to be seen", |lines| {
        lines.iter().any(|line| line["notice"]["kind"] == "topology")
    });
    wait_held(&agent, &cluster);
    let node = &cluster.nodes()[0];
    node.shutdown_saving().unwrap();
    agent.wait_status("the restart to be noticed", |status| status["shards"][0]["source"].is_null());
    node.start().unwrap();
    cluster.wait_ok().unwrap();
    agent.wait("the fork", |lines| lines.iter().any(|line| line["notice"]["kind"] == "fork"));
    agent.wait_following();
    set(&cluster, "key2", "after");
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    agent.stop();
    let topologies: Vec<Value> = common::files(&folder.path().join("repo/main/topology"))
        .iter()
        .map(|(_, json)| serde_json::from_slice(json).unwrap())
        .collect();
    let owners = |topology: &Value| {
        let shards = topology["shards"].as_array().unwrap().clone();
        shards.iter().map(|shard| shard["slots"].to_string()).collect::<Vec<_>>()
    };
    assert_ne!(owners(&topologies[0]), owners(topologies.last().unwrap()));
    let manifest = latest(&folder);
    // The other shard holds its whole stream still.
    let other = &manifest["shards"].as_array().unwrap()[1];
    assert_log_is_the_stream(&folder.path().join("repo"), other, &cluster.nodes()[1]);
}

/// Backups on demand and the archive continue each other: none of them takes a base that is not needed.
#[test]
fn backups_and_the_archive_continue_each_other() {
    let cluster = cluster("redis-8.2", 2, 0);
    let folder = tempfile::tempdir().unwrap();
    let backup = |more: &[&str]| {
        let mut backup = command();
        backup.args(["backup", "--json", "--cluster", &cluster.nodes()[0].addr().to_string(), "--repo"]);
        backup.arg(folder.path().join("repo")).arg("--spool").arg(folder.path().join("spool")).args(more);
        common::Run::of(&backup.output().unwrap()).expect_code(0).json()
    };
    let full = backup(&[]);
    set(&cluster, "one", "1");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_following();
    set(&cluster, "two", "2");
    // While the agent runs, too.
    let beside = backup(&["--type", "incremental", "--no-fallback"]);
    wait_held(&agent, &cluster);
    assert_eq!(agent.notices("base"), Vec::<String>::new());
    agent.stop();
    set(&cluster, "three", "3");
    let last = backup(&["--type", "incremental", "--no-fallback"]);
    for (number, shard) in last["shards"].as_array().unwrap().iter().enumerate() {
        assert_eq!(shard["base"], full["shards"][number]["base"]);
        assert!(shard["cut"]["offset"].as_u64() >= beside["shards"][number]["cut"]["offset"].as_u64());
    }
    assert_logs_are_the_streams(&folder, &cluster);
}

#[test]
fn a_second_agent_for_the_same_cluster_is_refused() {
    let cluster = cluster("valkey-9.1", 1, 0);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let mut second = command();
    second.args(["archive", "--cluster", &cluster.nodes()[0].addr().to_string(), "--repo"]);
    second.arg(folder.path().join("repo")).arg("--spool").arg(folder.path().join("spool"));
    let run = common::Run::of(&second.output().unwrap()).expect_code(2);
    assert!(run.stderr.contains("another slotkeep archives this cluster already"), "{}", run.stderr);
    agent.stop();
}
