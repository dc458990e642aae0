//! Several agents, one cluster, one repository: whatever becomes of some of them, the log has neither a gap nor a doubt.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod common;
#[path = "restore_files/harness.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod harness;

use std::path::Path;
use std::time::Duration;

use common::agent::Agent;
use common::log::{assert_log_is_the_stream, field};
use common::server;
use harness::{Bench, cluster_client, free_addrs};
use serde_json::Value;
use slotkeep_format::TopologyRecord;
use slotkeep_model::key_slot;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::ledger::{Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::stores::S3Server;
use slotkeep_testkit::{Cluster, ClusterBuilder};

const LIMIT: Duration = Duration::from_secs(120);
const LEASE: [&str; 2] = ["--lease-time", "5s"];

/// The time of day.
#[expect(clippy::disallowed_methods, reason = "a test's own clock, which is also the agents'")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn cluster(shards: usize) -> Cluster {
    ClusterBuilder::new(server("valkey-9.1"))
        .primaries(shards)
        .config("repl-backlog-size", "64mb")
        .config("repl-ping-replica-period", "1")
        .config("cluster-require-full-coverage", "no")
        .start()
        .unwrap()
}

/// Waits until these agents follow so many shards each, every shard exactly once.
#[track_caller]
fn wait_divided(agents: &[&Agent], counts: &[usize]) {
    let outcome = wait_for(LIMIT, "the shards to be divided", || {
        let followed: Vec<Vec<String>> = agents.iter().map(|agent| followed(agent)).collect();
        let mut all: Vec<&String> = followed.iter().flatten().collect();
        all.sort();
        all.dedup();
        let mut found: Vec<usize> = followed.iter().map(Vec::len).collect();
        found.sort_unstable();
        if found == counts && all.len() == counts.iter().sum::<usize>() {
            return Ok(());
        }
        Err(NotYet::because(format!("{followed:?}")))
    });
    if let Err(error) = outcome {
        let said: Vec<_> = agents
            .iter()
            .map(|agent| (agent.status()["trouble"].clone(), agent.notices("trouble")))
            .collect();
        panic!("{error}\n{said:#?}");
    }
}

/// The slots of the shards that an agent follows.
fn followed(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    let follows = |shard: &&Value| shard["phase"] == "following" && shard["source"].is_string();
    shards.iter().filter(follows).map(|shard| shard["slots"].as_str().unwrap().to_owned()).collect()
}

fn offsets(cluster: &Cluster) -> Vec<u64> {
    let offset = |shard| {
        let mut client = cluster.primary(shard).unwrap().client().unwrap();
        field(&mut client, "master_repl_offset").parse().unwrap()
    };
    (0..cluster.shards()).map(offset).collect()
}

/// Waits until agents hold more than the primaries have produced by now, of every shard.
fn wait_held(agents: &[&Agent], cluster: &Cluster) {
    let mut wanted: Vec<(String, u64)> = Vec::new();
    let slots = |shard: usize| {
        let count = 16384;
        let shards = cluster.shards();
        format!("{}-{}", shard * count / shards, (shard + 1) * count / shards - 1)
    };
    for (shard, offset) in offsets(cluster).into_iter().enumerate() {
        // Three heartbeats: the servers' clocks are known behind the last write.
        wanted.push((slots(shard), offset + 3 * 14));
    }
    wait_for(LIMIT, "everything to be received", || {
        let held: Vec<Value> = agents
            .iter()
            .flat_map(|agent| agent.status()["shards"].as_array().cloned().unwrap_or_default())
            .collect();
        let has = |(slots, offset): &(String, u64)| {
            held.iter()
                .any(|shard| shard["slots"] == **slots && shard["durable"].as_u64().unwrap() >= *offset)
        };
        match wanted.iter().find(|wanted| !has(wanted)) {
            None => Ok(()),
            Some(missing) => Err(NotYet::because(format!("{missing:?} is missing"))),
        }
    })
    .unwrap();
}

fn spool_files(spool: &Path) -> usize {
    let files = common::files(spool);
    files.iter().filter(|(path, _)| Path::new(path).extension().is_some_and(|name| name == "spool")).count()
}

/// How many shards each of so many agents has, the fewest first.
fn fair(shards: usize, agents: usize) -> Vec<usize> {
    (0..agents).map(|agent| (shards + agent) / agents).collect()
}

#[test]
fn agents_that_die_or_freeze_leave_no_gap_and_no_doubt() {
    die_and_freeze(12, None);
}

/// The same with fewer shards and a bucket of a server that honours conditions.
#[test]
fn agents_that_die_or_freeze_leave_no_gap_and_no_doubt_in_a_bucket() {
    let server = S3Server::start().unwrap();
    server.make_bucket("agents").unwrap();
    die_and_freeze(4, Some(&server));
}

/// Four agents and so many shards, under writers that keep a ledger. The one that writes the backups and another are killed, one of those that are
/// left is frozen until all it had is taken over, and woken; one that was killed comes back.
fn die_and_freeze(shards: usize, bucket: Option<&S3Server>) {
    let cluster = cluster(shards);
    let bench = Bench::new();
    let folder = bench.repo().parent().unwrap().to_owned();
    let environment = bucket.map(|server| server.environment().to_vec()).unwrap_or_default();
    let repo = match bucket {
        Some(_) => "s3://agents/redis".to_owned(),
        None => bench.repo().to_str().unwrap().to_owned(),
    };
    let outside = |arguments: &[&str]| {
        let mut command = common::command();
        let output = command.args(arguments).args(["--repo", &repo]).envs(environment.clone()).output();
        common::Run::of(&output.unwrap()).expect_code(0);
    };
    if bucket.is_some() {
        outside(&["init"]);
    }
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 7, lists: 60, accounts: 12 }).unwrap();
    // This server takes a hundred requests a second, less on a busy machine: an agent that looks too seldom takes nobody for dead.
    let options = if bucket.is_some() { &["--lease-time", "10s", "--seal-after", "2s"][..] } else { &LEASE };
    let start = |number: usize| {
        let spool = folder.join(format!("spool-{number}"));
        Agent::start_in(&repo, &environment, &spool, &cluster, options)
    };
    let mut agents: Vec<(usize, Agent)> = vec![(0, start(0))];
    // The first one makes the repository.
    agents[0].1.wait("a line", |lines| !lines.is_empty());
    agents.extend((1..4).map(|number| (number, start(number))));
    wait_divided(&agents.iter().map(|(_, agent)| agent).collect::<Vec<_>>(), &fair(shards, 4));
    wait_for(LIMIT, "the first backup", || {
        let written = agents.iter().any(|(_, agent)| !agent.notices("backup").is_empty());
        if written { Ok(()) } else { Err(NotYet::because("none yet")) }
    })
    .unwrap_or_else(|error| {
        let said: Vec<_> =
            agents.iter().map(|(_, agent)| (agent.status(), agent.notices("trouble"))).collect();
        panic!("{error}\n{said:#?}")
    });
    let bases: Vec<String> = agents.iter().flat_map(|(_, agent)| agent.notices("base")).collect();
    assert_eq!(bases.len(), shards, "{:#?}", agents.iter().map(|(_, agent)| agent.all()).collect::<Vec<_>>());
    ledger.wait_for_more(500).unwrap();

    // Death.
    let leader = agents.iter().position(|(_, agent)| agent.status()["leads"] == true).unwrap();
    let (dead, leading) = agents.remove(leader);
    let (_, other) = agents.remove(0);
    leading.kill();
    other.kill();
    wait_divided(&agents.iter().map(|(_, agent)| agent).collect::<Vec<_>>(), &fair(shards, 2));
    wait_for(LIMIT, "somebody to lead", || {
        let leads = agents.iter().any(|(_, agent)| agent.status()["leads"] == true);
        if leads { Ok(()) } else { Err(NotYet::because("nobody does")) }
    })
    .unwrap();
    ledger.wait_for_more(500).unwrap();

    // Sleep.
    let (_, sleeper) = agents.remove(0);
    sleeper.freeze();
    wait_divided(&[&agents[0].1], &fair(shards, 1));
    ledger.wait_for_more(500).unwrap();
    sleeper.wake();
    sleeper.wait("what was taken over to be left", |lines| {
        let left = |line: &&Value| {
            line["notice"]["what"].as_str().is_some_and(|what| what.contains("has taken this line over"))
        };
        lines.iter().filter(left).count() >= shards / 2
    });
    wait_divided(&[&agents[0].1, &sleeper], &fair(shards, 2));

    // Return.
    let back = start(dead);
    wait_divided(&[&agents[0].1, &sleeper, &back], &fair(shards, 3));
    ledger.wait_for_more(500).unwrap();
    let account = ledger.stop(&cluster).unwrap();
    let living = [&agents[0].1, &sleeper, &back];
    wait_held(&living, &cluster);
    for agent in living {
        assert_eq!((agent.notices("gap"), agent.notices("diverged")), (vec![], vec![]));
    }
    let (_, last) = agents.remove(0);
    for agent in [last, sleeper, back] {
        let status = agent.stop();
        assert_eq!(status["spool_bytes"], 0, "{status}");
    }
    assert_eq!(spool_files(&folder.join(format!("spool-{dead}"))), 0);

    if bucket.is_some() {
        outside(&["copy", "--to", bench.repo().to_str().unwrap()]);
    }
    // One backup was enough, with a base of each shard; behind it the log is what the servers sent, to the byte.
    let listing = bench.slotkeep(&["list"]).json();
    assert_eq!(listing["backups"].as_array().unwrap().len(), 1, "{listing}");
    let manifest = bench.slotkeep(&["show"]).json();
    assert_eq!(manifest["kind"], "full");
    for (number, shard) in manifest["shards"].as_array().unwrap().iter().enumerate() {
        assert_log_is_the_stream(&bench.repo(), shard, cluster.primary(number).unwrap());
    }
    let verified = bench.slotkeep(&["verify", "--depth", "structure"]);
    assert_eq!(verified.code, 0, "{}", verified.stdout);

    // What comes back is what is there.
    let nodes = free_addrs(shards);
    bench.restore_and_start("restored", &nodes, &server("valkey-9.1"), &["--at", "latest"]);
    let mut client = cluster_client(&nodes, None);
    let bounds = Bounds { nothing_after_ms: i64::MAX, nothing_missing_before_ms: i64::MAX, consistent: true };
    account.check(bounds, &mut |args| client.command(args)).unwrap();
    let live = cluster.nodes()[0].addr().to_string();
    let diff = bench.slotkeep(&["diff", &live, &nodes[0].to_string()]);
    assert_eq!(diff.code, 0, "{}\n{}", diff.stdout, diff.stderr);
}

/// Between the death of the agent that led and the moment when another one leads, slots change hands: who takes the lead over has seen until when they
/// had not.
#[test]
fn slots_that_move_while_no_agent_leads_are_known_to_who_leads_next() {
    let cluster = cluster(2);
    let bench = Bench::new();
    let folder = bench.repo().parent().unwrap().to_owned();
    let start = |spool: &str| Agent::start_as(spool, &cluster, &folder, &LEASE);
    let first = start("first");
    first.wait_status("the lead", |status| status["leads"] == true);
    let second = start("second");
    wait_divided(&[&first, &second], &[1, 1]);
    let seen = || -> Vec<TopologyRecord> {
        let files = common::files(&bench.repo().join("main/topology"));
        let mut seen: Vec<_> = files.iter().map(|(_, json)| TopologyRecord::parse(json).unwrap()).collect();
        seen.sort_by_key(|one| one.seen_at);
        seen
    };
    let before = seen();
    let killed_at = now();
    first.kill();
    let slot = key_slot(b"t");
    let owner = usize::from(slot.number() >= 8192);
    cluster.move_slot(slot, owner, 1 - owner).unwrap();
    let moved_at = now();
    let changes = wait_for(LIMIT, "the new lead to write down what has changed", || {
        let changes: Vec<TopologyRecord> = seen().into_iter().filter(|one| !before.contains(one)).collect();
        let served = |change: &TopologyRecord| change.shards[1 - owner].slots.contains(slot);
        if changes.last().is_some_and(served) { Ok(changes) } else { Err(NotYet::because("not there yet")) }
    })
    .unwrap();
    second.wait_status("the lead", |status| status["leads"] == true);
    // A look takes its time where others build; nobody led for longer.
    let known = changes[0].as_before_until.unwrap();
    let early = before.last().unwrap().seen_at.max(killed_at - Duration::from_secs(30));
    assert!(early <= known && known <= moved_at, "{killed_at} {moved_at} {changes:#?}");
    second.stop();
}

/// What is copied with a spool folder is who the agent is.
#[test]
fn a_second_process_that_is_the_same_agent_ends_the_first() {
    let cluster = cluster(1);
    let bench = Bench::new();
    let folder = bench.repo().parent().unwrap().to_owned();
    let first = Agent::start_as("spool", &cluster, &folder, &LEASE);
    first.wait_ready();
    let (from, to) = (folder.join("spool"), folder.join("copied"));
    let identities = common::files(&from).into_iter().filter(|(path, _)| path.ends_with("/agent"));
    for (path, identity) in identities {
        let copy = to.join(path);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(copy, identity).unwrap();
    }
    let second = Agent::start_as("copied", &cluster, &folder, &LEASE);
    second.wait_following();
    let (code, said) = first.ended();
    assert_eq!(code, Some(50), "{said}");
    assert!(said.contains("another process is this agent") && said.contains("must not be copied"), "{said}");
    assert_eq!(second.notices("base"), Vec::<String>::new());
    second.stop();
}

/// A second cluster under the same name: its agent is refused while the first one's lives, and has no part in its work if it begins while that is frozen.
#[test]
fn agents_of_two_clusters_under_one_name_share_nothing() {
    let cluster = cluster(2);
    let other = ClusterBuilder::new(server("valkey-9.1")).primaries(1).cluster_mode(false).start().unwrap();
    let bench = Bench::new();
    let folder = bench.repo().parent().unwrap().to_owned();
    let first = Agent::start_as("first", &cluster, &folder, &LEASE);
    wait_divided(&[&first], &[2]);
    let (code, said) = Agent::start_as("second", &other, &folder, &LEASE).ended();
    assert_eq!(code, Some(31), "{said}");
    let (here, there) = (cluster.primary(0).unwrap().addr(), other.primary(0).unwrap().addr());
    for words in [here.to_string(), there.to_string(), "archives another cluster".into(), "--name".into()] {
        assert!(said.contains(&words), "{words}: {said}");
    }
    assert!(said.contains("warning: this seems to be another cluster"), "{said}");

    // An agent that says nothing is waited for, and not for ever.
    first.freeze();
    let second = Agent::start_as("second", &other, &folder, &LEASE);
    wait_divided(&[&second], &[1]);
    first.wake();
    first.wait_status("the stranger to be left alone", |status| status["agents"] == 1);
    for agent in [&first, &second] {
        agent.wait("the stranger to be named", |lines| {
            let what = |line: &Value| line["notice"]["what"].to_string();
            lines.iter().any(|line| what(line).contains("archives another cluster"))
        });
    }
    wait_divided(&[&first], &[2]);
    assert_eq!((first.notices("left"), first.notices("gap")), (vec![], vec![]));
    first.stop();
    // One that is about the same server is no stranger, although the server has begun a new history since.
    let third = Agent::start_as("third", &other, &folder, &LEASE);
    third.wait_status("the other agent", |status| status["agents"] == 2);
    third.stop();
    second.stop();
}

/// Where the store ignores conditions one agent works as ever, and a second one is refused until the first is known to be gone.
#[test]
fn without_conditional_writes_there_is_one_agent() {
    let cluster = cluster(1);
    let bench = Bench::new();
    let folder = bench.repo().parent().unwrap().to_owned();
    assert_eq!(bench.slotkeep(&["init"]).code, 0);
    let file = bench.repo().join("slotkeep.json");
    let mut repository: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    repository["conditional_create"] = false.into();
    repository.as_object_mut().unwrap().remove("seal");
    std::fs::write(&file, serde_json::to_vec(&repository).unwrap()).unwrap();
    let start = |spool: &str| Agent::start_as(spool, &cluster, &folder, &["--lease-time", "10s"]);
    let first = start("spool");
    first.wait_ready();
    let (code, said) = start("other").ended();
    assert_eq!(code, Some(50), "{said}");
    assert!(said.contains("two agents can't be kept apart there"), "{said}");
    // What that one said of itself disturbs nobody.
    first.wait_following();
    first.kill();
    let next = start("other");
    next.wait_following();
    assert_eq!((next.notices("base"), next.notices("gap")), (vec![], vec![]));
    assert_eq!(next.stop()["agents"], 1);
}
