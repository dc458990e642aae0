//! How `slotkeep archive` starts where not everything is in order: every shard is followed soon, and what that costs is said.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::agent::Agent;
use common::log::{field, from_server, line};
use common::{Run, command, files, server, slotkeep};
use serde_json::Value;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder};

const LIMIT: Duration = Duration::from_secs(40);

fn cluster(primaries: usize, backlog: &str) -> Cluster {
    ClusterBuilder::new(server("valkey-9.1"))
        .primaries(primaries)
        .config("repl-backlog-size", backlog)
        .config("repl-ping-replica-period", "60")
        .start()
        .unwrap()
}

fn write(cluster: &Cluster, count: usize, bytes: usize) {
    let mut client = cluster.client().unwrap();
    for number in 0..count {
        client.command(&["SET", &format!("key{number}"), &"v".repeat(bytes)]).unwrap();
    }
}

fn offset(cluster: &Cluster, shard: usize) -> u64 {
    let mut client = cluster.primary(shard).unwrap().client().unwrap();
    field(&mut client, "master_repl_offset").parse().unwrap()
}

/// Waits until the first shard's stream is on the local disk up to that offset.
fn wait_durable(agent: &Agent, offset: u64) {
    agent.wait_status("the stream to be durable", |status| {
        status["shards"][0]["durable"].as_u64().unwrap_or_default() >= offset
    });
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The files of a history below a repository of which the path has that part.
fn of_history(repo: &Path, history: &str, part: &str) -> Vec<PathBuf> {
    let all = files(repo).into_iter().map(|(name, _)| name);
    all.filter(|name| name.contains(history) && name.contains(part)).map(|name| repo.join(name)).collect()
}

/// The file that the next segment will be, of what waits in the spool, and what will be in it: as it comes out in a copy of everything.
fn next_segment(cluster: &Cluster, folder: &Path) -> (PathBuf, Vec<u8>) {
    let twin = tempfile::tempdir().unwrap();
    copy(folder, twin.path());
    let before = of_history(&twin.path().join("repo"), "", "/log/");
    let agent = Agent::start(cluster, twin.path(), &[]);
    agent.wait_following();
    agent.stop();
    let mut sealed = of_history(&twin.path().join("repo"), "", "/log/");
    sealed.retain(|path| !before.contains(path));
    let bytes = fs::read(&sealed[0]).unwrap();
    (folder.join(sealed[0].strip_prefix(twin.path()).unwrap()), bytes)
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Takes an incremental backup into a copy of the repository; gives what it said.
fn incremental(cluster: &Cluster, folder: &Path) -> String {
    let other = folder.join("other");
    copy(&folder.join("repo"), &other);
    let mut backup = command();
    backup.args(["backup", "--json", "--type", "incremental", "--cluster"]);
    backup.arg(cluster.nodes()[0].addr().to_string()).arg("--repo").arg(&other);
    backup.arg("--spool").arg(folder.join("other-spool"));
    Run::of(&backup.output().unwrap()).expect_code(0).stderr
}

/// The backlog of one shard does not hold any more what the segment did.
#[test]
fn what_is_damaged_costs_its_own_shard_a_base_and_no_other_anything() {
    let cluster = cluster(2, "16kb");
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    write(&cluster, 10, 100);
    let last = agent.stop();
    let history = |shard: usize| last["shards"][shard]["history"].as_str().unwrap().to_owned();
    // The end of one log, and where the other comes from.
    truncate(of_history(&repo, &history(0), "/log/").last().unwrap());
    let record = of_history(&repo, &history(1), "history.json");
    fs::write(&record[0], b"{").unwrap();
    let mut client = cluster.primary(0).unwrap().client().unwrap();
    for number in 0..40 {
        client.command(&["SET", &format!("{{bar}}{number}"), &"v".repeat(1000)]).unwrap();
    }

    let said = incremental(&cluster, folder.path());
    assert!(said.contains("it is damaged") && said.contains("a full one"), "{said}");

    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let (gaps, troubles) = (agent.notices("gap"), agent.notices("trouble"));
    assert!(gaps.len() == 1 && gaps[0].contains("its backlog holds"), "{gaps:?}");
    assert!(troubles.iter().any(|words| words.contains("it is damaged")), "{troubles:?}");
    assert_eq!(agent.notices("base").len(), 1);
    let last = agent.stop();
    let gaps: Vec<u64> =
        last["shards"].as_array().unwrap().iter().map(|shard| shard["gaps"].as_u64().unwrap()).collect();
    assert_eq!(gaps, [1, 0]);
    // It is whole again from the base on.
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_following();
    let said = (agent.notices("gap"), agent.notices("base"));
    assert!(said.0.is_empty() && said.1.is_empty(), "{said:?}");
    agent.stop();
    assert_eq!(of_history(&repo, "", "/backups/").len(), 2);
}

/// As after a store that kept half of a write, twice: of what was sealed last, and of what the agent held when it was killed.
#[test]
fn what_a_damaged_end_held_is_taken_from_the_server_and_from_the_spool_once_more() {
    let cluster = cluster(1, "64mb");
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    write(&cluster, 30, 100);
    agent.stop();
    let sealed_last = of_history(&repo, "", "/log/").pop().unwrap();
    truncate(&sealed_last);
    let said = incremental(&cluster, folder.path());
    assert!(said.contains("it is damaged") && !said.contains("a full one"), "{said}");

    let long = ["--seal-after", "1h", "--seal-size", "1GiB", "--lease-time", "5s"];
    let agent = Agent::start(&cluster, folder.path(), &long);
    agent.wait_following();
    write(&cluster, 30, 100);
    wait_durable(&agent, offset(&cluster, 0));
    let (gaps, bases) = (agent.notices("gap"), agent.notices("base"));
    assert!(gaps.is_empty() && bases.is_empty(), "{gaps:?} {bases:?}");
    agent.kill();
    let (half, bytes) = next_segment(&cluster, folder.path());
    fs::write(&half, bytes).unwrap();
    truncate(&half);

    write(&cluster, 30, 100);
    let agent = Agent::start(&cluster, folder.path(), &["--lease-time", "5s"]);
    let written = offset(&cluster, 0);
    agent.wait_status("everything to be sealed", |status| {
        status["shards"][0]["sealed"].as_u64().unwrap_or_default() >= written
    });
    let (gaps, bases) = (agent.notices("gap"), agent.notices("base"));
    assert!(gaps.is_empty() && bases.is_empty(), "{gaps:?} {bases:?}");
    assert_eq!(agent.stop()["spool_bytes"], 0);
    // Readers pass over what is damaged, as others hold the same.
    slotkeep(&["log", "--repo", repo.to_str().unwrap()]).expect_code(0);
    for damaged in [sealed_last, half] {
        fs::remove_file(damaged).unwrap();
    }
    let show: Value = slotkeep(&["show", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    let node = cluster.primary(0).unwrap();
    let line = line(&repo, &show["shards"][0], &field(&mut node.client().unwrap(), "master_replid"));
    assert!(line.end() >= written);
    assert_eq!(line.bytes, from_server(node, line.start, line.end()), "the log differs from the stream");
}

/// The servers' backlogs do not hold what the files of the earlier run do.
#[test]
fn shards_are_followed_from_the_end_of_what_an_earlier_run_could_not_seal() {
    let cluster = cluster(1, "1mb");
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    Agent::start(&cluster, folder.path(), &[]).wait_ready();
    let long = ["--seal-after", "1h", "--seal-size", "1GiB", "--lease-time", "5s"];
    let agent = Agent::start(&cluster, folder.path(), &long);
    agent.wait_following();
    write(&cluster, 40, 100_000);
    wait_durable(&agent, offset(&cluster, 0));
    agent.kill();

    // A folder is in the way of its segment, which no listing shows.
    let (in_the_way, _) = next_segment(&cluster, folder.path());
    fs::create_dir_all(&in_the_way).unwrap();
    for last_run in [false, true] {
        let agent = Agent::start(&cluster, folder.path(), &["--lease-time", "5s"]);
        agent.wait_following();
        write(&cluster, 5, 1000);
        let written = offset(&cluster, 0);
        wait_durable(&agent, written);
        agent.wait_status("trouble", |status| status["shards"][0]["trouble"].is_string());
        let status = agent.status();
        assert!(status["shards"][0]["sealed"].as_u64() < status["shards"][0]["durable"].as_u64(), "{status}");
        if last_run {
            fs::remove_dir(&in_the_way).unwrap();
            agent.wait_status("everything to be sealed", |status| {
                status["shards"][0]["sealed"].as_u64().unwrap() >= written
            });
        }
        let (gaps, bases) = (agent.notices("gap"), agent.notices("base"));
        assert!(gaps.is_empty() && bases.is_empty(), "{gaps:?} {bases:?}");
        let last = agent.stop();
        assert_eq!(last["spool_bytes"] == 0, last_run, "{last}");
    }
    let show: Value = slotkeep(&["show", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    let node = cluster.primary(0).unwrap();
    let line = line(&repo, &show["shards"][0], &field(&mut node.client().unwrap(), "master_replid"));
    assert!(line.bytes.len() > 4_000_000);
    // As far as the server still has it: from within the files of the earlier run on.
    let first = line.end() - 500_000;
    let kept = from_server(node, first, line.end());
    assert!(line.bytes.ends_with(&kept), "the log differs from the stream");
}

#[test]
fn a_cluster_that_starts_later_is_waited_for() {
    let cluster = cluster(2, "1mb");
    let folder = tempfile::tempdir().unwrap();
    for node in cluster.nodes() {
        node.kill().unwrap();
    }
    let mut archive = command();
    archive.args(["archive", "--cluster", &cluster.nodes()[0].addr().to_string(), "--repo"]);
    archive.arg(folder.path().join("repo")).arg("--spool").arg(folder.path().join("spool"));
    Run::of(&archive.output().unwrap()).expect_code(10);
    archive.args(["--wait-for-cluster", "2s"]);
    let run = Run::of(&archive.output().unwrap()).expect_code(10);
    assert_eq!(run.stderr.matches("it is asked for again").count(), 1, "{}", run.stderr);

    let mut agent = Agent::start(&cluster, folder.path(), &["--wait-for-cluster", "10m"]);
    wait_for(LIMIT, "the agent to wait", || {
        let said = agent.said();
        if said.contains("it is asked for again") { Ok(()) } else { Err(NotYet::because(said)) }
    })
    .unwrap();
    let code = agent.finish().code();
    assert_eq!(code, Some(130), "{}", agent.said());

    let agent = Agent::start(&cluster, folder.path(), &["--wait-for-cluster", "10m"]);
    cluster.start_nodes().unwrap();
    agent.wait_ready();
    agent.stop();
}

#[test]
fn slots_that_are_served_later_are_waited_for() {
    let cluster = cluster(1, "1mb");
    let folder = tempfile::tempdir().unwrap();
    let mut client = cluster.primary(0).unwrap().client().unwrap();
    client.command(&["CLUSTER", "RESET", "HARD"]).unwrap();
    let agent = Agent::start(&cluster, folder.path(), &["--wait-for-cluster", "10m"]);
    wait_for(LIMIT, "the agent to wait", || {
        let said = agent.said();
        if said.contains("no slot is served yet; it is asked for again") {
            Ok(())
        } else {
            Err(NotYet::because(said))
        }
    })
    .unwrap();
    assert!(!folder.path().join("repo").exists());
    client.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "100"]).unwrap();
    agent.wait_ready();
    let said = agent.said();
    assert!(said.contains("no shard serves the slots 101-16383"), "{said}");
    agent.stop();
}
