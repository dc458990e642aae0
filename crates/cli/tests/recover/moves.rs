//! A moment at which a slot is on its way from one shard to another.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slotkeep_model::key_slot;
use slotkeep_testkit::ledger::{Account, Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{ClusterBuilder, Server, servers};

use crate::common::agent::Agent;
use crate::harness::{Bench, client, cluster_client, free_addrs, seed, stop_nodes, topology};
use crate::moments::{is_listed, known, next_restorable, plan};
use crate::recorder::{Recorder, manifest_of, now, pause};

/// What is seen of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// All of it, before the first key moves.
    AtItsStart,
    /// All of it, behind the moment.
    Afterwards,
    /// What its target says of it.
    AtItsTarget,
}

#[test]
fn a_slot_on_its_way_comes_back_with_all_its_keys() {
    restore_into_a_move(Seen::AtItsStart);
}

#[test]
fn a_slot_whose_move_was_seen_only_afterwards_comes_back_with_all_its_keys() {
    restore_into_a_move(Seen::Afterwards);
}

#[test]
fn a_slot_whose_move_was_seen_at_one_end_comes_back_with_all_its_keys() {
    restore_into_a_move(Seen::AtItsTarget);
}

fn restore_into_a_move(seen: Seen) {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster =
        ClusterBuilder::new(server.clone()).primaries(2).config("repl-backlog-size", "16mb").start().unwrap();
    let bench = Bench::new();
    let manifest = manifest_of(&bench.backup(seed(&cluster), &[]));
    let mut recorder = Recorder::start(&cluster, &manifest);
    let slot = key_slot(b"t");
    let from = usize::from(!manifest.shards[0].slots.contains(slot));
    let node = |shard: &str| cluster.nodes().iter().find(|node| node.addr().to_string() == shard).unwrap();
    let source = node(&manifest.shards[from].primary.addr.to_string());
    let target = node(&manifest.shards[1 - from].primary.addr.to_string());
    let (mut at_source, mut at_target) = (source.client().unwrap(), target.client().unwrap());
    let keys: Vec<String> = (0..40).map(|number| format!("{{t}}:{number}")).collect();
    for key in &keys {
        at_source.command(&["SET", key, "x"]).unwrap();
    }
    // So that a sample of the servers' time lies between these writes and the move.
    recorder.catch_up();
    let number = slot.to_string();
    at_target.command(&["CLUSTER", "SETSLOT", &number, "IMPORTING", source.id()]).unwrap();
    at_source.command(&["CLUSTER", "SETSLOT", &number, "MIGRATING", target.id()]).unwrap();
    match seen {
        Seen::AtItsStart => recorder.see_moving(slot, Some(from), 1 - from),
        Seen::AtItsTarget => recorder.see_moving(slot, None, 1 - from),
        Seen::Afterwards => {}
    }
    let port = target.port().to_string();
    let mut moment = now();
    for (count, key) in keys.iter().take(30).enumerate() {
        at_source.command(&["MIGRATE", "127.0.0.1", &port, key, "0", "30000"]).unwrap();
        pause(10);
        if count == 15 {
            recorder.catch_up();
            moment = now();
        }
    }
    pause(200);
    if seen == Seen::Afterwards {
        recorder.see_moving(slot, Some(from), 1 - from);
    }
    recorder.catch_up();
    recorder.finish(&bench.repo(), 3_000);
    drop(cluster);

    let nodes = free_addrs(2);
    let at = moment.to_string();
    let program = server.program().to_str().unwrap();
    let report = bench.restore("new", &nodes, &["--at", &at, "--start", "--server", program]).json();
    let held = |node: SocketAddr| -> BTreeSet<String> {
        let reply = client(node, None, None).command(&["CLUSTER", "GETKEYSINSLOT", &number, "1000"]).unwrap();
        reply.array().unwrap().iter().map(|key| key.text().unwrap()).collect()
    };
    let (source, target) = (held(nodes[from]), held(nodes[1 - from]));
    let all: BTreeSet<String> = source.union(&target).cloned().collect();
    assert_eq!(all, keys.iter().cloned().collect(), "{source:?} {target:?} {report}");
    assert!(!source.is_empty() && !target.is_empty(), "{source:?} {target:?}");
    let moving = |node: SocketAddr, mark: &str| {
        topology(node).iter().any(|(_, _, slots)| slots.contains(&format!("[{number}{mark}")))
    };
    assert!(moving(nodes[from], "->-") && moving(nodes[1 - from], "-<-"));
}

/// Restores so many shards to a moment and compares: with the ledger, and that no node holds a key of a slot that it doesn't serve.
pub(crate) fn check_moved(
    bench: &Bench,
    server: &Server,
    account: &Account,
    name: &str,
    (moment_ms, shards): (i64, usize),
    least_keys: u64,
) {
    let at = jiff::Timestamp::from_millisecond(moment_ms).unwrap().to_string();
    let nodes = free_addrs(shards);
    let report = bench.restore_and_start(name, &nodes, server, &["--at", &at, "--no-replicas"]);
    let shards = report["recovery"]["shards"].as_array().unwrap();
    let lack = shards.iter().map(|shard| shard["may_lack_ms"].as_i64().unwrap()).max().unwrap();
    let bounds = Bounds {
        nothing_after_ms: moment_ms + 2,
        nothing_missing_before_ms: moment_ms - lack - 2,
        consistent: false,
    };
    let mut clients = cluster_client(&nodes, None);
    account
        .check(bounds, &mut |args| clients.command(args))
        .unwrap_or_else(|error| panic!("{name}: {error}\n{report}"));
    let mut filled = 0;
    for node in &nodes {
        let mut node_client = client(*node, None, None);
        let own: Vec<(u16, u16)> = served(&mut node_client);
        for slot in 0..16384_u16 {
            let held = node_client.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).unwrap();
            let held = held.int().unwrap();
            let is_own = own.iter().any(|(low, high)| (*low..=*high).contains(&slot));
            assert!(
                held == 0 || is_own,
                "{name}: {held} keys of slot {slot} at {node}, which doesn't serve it"
            );
        }
        filled += u64::try_from(node_client.command(&["DBSIZE"]).unwrap().int().unwrap()).unwrap();
    }
    assert!(filled >= least_keys, "{name}: {filled} keys");
    stop_nodes(&nodes);
}

/// The ranges of slots that a node serves.
fn served(client: &mut slotkeep_testkit::Client) -> Vec<(u16, u16)> {
    let nodes = client.command(&["CLUSTER", "NODES"]).unwrap().text().unwrap();
    let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
    let ranges = own.split(' ').skip(8).filter(|range| !range.starts_with('['));
    let number = |text: &str| text.parse().unwrap();
    ranges
        .map(|range| {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            (number(low), number(high))
        })
        .collect()
}

#[test]
fn slots_that_move_at_once_come_back_with_all_their_keys() {
    const FILLING: u64 = 20_000;
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).config("repl-backlog-size", "64mb").start().unwrap();
    let bench = Bench::new();
    let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
    agent.wait_ready();
    // So much that the move takes long enough for a moment in it.
    let mut clients = cluster.client().unwrap();
    let value = "x".repeat(1000);
    for number in 0..FILLING {
        clients.command(&["SET", &format!("filling:{number}"), &value]).unwrap();
    }
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 9, lists: 30, accounts: 6 }).unwrap();
    ledger.wait_for_more(100).unwrap();
    // An idle server is asked for its time once a second: from then on more often.
    pause(1500);
    let before = next_restorable(&bench, 3);
    let (mut source, target) = (cluster.primary(0).unwrap().client().unwrap(), cluster.primary(1).unwrap());
    let mut during = Vec::new();
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| cluster.move_slots_at_once(0, 3000, 0, 1).unwrap());
        let mut migrations = || {
            let reply = source.command(&["CLUSTER", "GETSLOTMIGRATIONS"]).unwrap();
            reply.array().unwrap().len()
        };
        while migrations() == 0 && !moving.is_finished() {}
        while !moving.is_finished() {
            // A target that hardly gets on makes it last, so that the agent looks at the cluster meanwhile.
            target.pause().unwrap();
            pause(800);
            target.resume().unwrap();
            during.push(now().as_millisecond());
            pause(10);
        }
    });
    ledger.wait_for_more(100).unwrap();
    let after = next_restorable(&bench, 3);
    let account = ledger.stop(&cluster).unwrap();
    agent.stop();
    drop(cluster);
    check_moved(&bench, &server, &account, "before", (known(&bench, before, 3), 3), FILLING);
    check_moved(&bench, &server, &account, "after", (after, 3), FILLING);
    // While keys were on their way, and already with the target, the source served them. A moment is refused if the agent did not see the cluster
    // between it and the end of the move, as close to that end, or where the halted target kept it waiting.
    let is_known = |moment: &i64| {
        let run = plan(&bench, *moment, 3);
        if run.code != 0 {
            run.failed(24, "changed hands");
        }
        // What is refused is not offered, and the other way round.
        assert_eq!(is_listed(&bench, *moment), run.code == 0, "{moment}: {}", run.stderr);
        run.code == 0
    };
    for part in 0..8 {
        is_known(&(before + (after - before) * part / 8));
    }
    if let Some(moment) = during.into_iter().skip(1).find(is_known) {
        check_moved(&bench, &server, &account, "during", (moment, 3), FILLING);
    }
}

#[test]
fn a_move_behind_the_last_look_is_refused_and_not_undone() {
    let server = servers::require("valkey-9.1").unwrap();
    for at_once in [false, true] {
        let cluster = ClusterBuilder::new(server.clone()).start().unwrap();
        let bench = Bench::new();
        let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
        agent.wait_ready();
        let (source, target) = (cluster.primary(0).unwrap(), cluster.primary(1).unwrap());
        let (mut at_source, mut at_target) = (source.client().unwrap(), target.client().unwrap());
        let slot = served(&mut at_source)[0].0;
        let key = key_of(slot);
        at_source.command(&["SET", &key, "x"]).unwrap();
        // What a shard without writes says is sealed once a minute.
        let over = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3).map(|shard| write_on(&cluster, shard, Arc::clone(&over))).collect();
        // Servers' clocks count as two seconds apart.
        pause(4000);
        next_restorable(&bench, 3);
        let seen = topologies(&bench);
        if at_once {
            cluster.move_slots_at_once(slot, slot, 0, 1).unwrap();
        } else {
            let (number, port) = (slot.to_string(), target.port().to_string());
            at_target.command(&["CLUSTER", "SETSLOT", &number, "IMPORTING", source.id()]).unwrap();
            at_source.command(&["CLUSTER", "SETSLOT", &number, "MIGRATING", target.id()]).unwrap();
            at_source.command(&["MIGRATE", "127.0.0.1", &port, &key, "0", "30000"]).unwrap();
            for client in [&mut at_target, &mut at_source] {
                client.command(&["CLUSTER", "SETSLOT", &number, "NODE", target.id()]).unwrap();
            }
        }
        next_restorable(&bench, 3);
        over.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        agent.stop();
        drop(cluster);
        // As though the agent had died before it looked again.
        for record in topologies(&bench).difference(&seen) {
            std::fs::remove_file(record).unwrap();
        }
        let run = bench.restore("new", &free_addrs(3), &["--at", "latest", "--no-replicas"]);
        run.failed(24, "changed hands");
        let hinted = run.stderr.split("(--at ").nth(1).and_then(|rest| rest.split(')').next());
        let moment: jiff::Timestamp = hinted.unwrap_or_else(|| panic!("{}", run.stderr)).parse().unwrap();
        let run = plan(&bench, moment.as_millisecond(), 3);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
}

fn key_of(slot: u16) -> String {
    let mut keys = (0..).map(|number| format!("k{number}"));
    keys.find(|key| key_slot(key.as_bytes()).number() == slot).unwrap()
}

/// Writes to the last slot of a shard until it is over.
fn write_on(
    cluster: &slotkeep_testkit::Cluster,
    shard: usize,
    over: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let mut client = cluster.primary(shard).unwrap().client().unwrap();
    let key = key_of(served(&mut client)[0].1);
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            client.command(&["SET", &key, "x"]).unwrap();
            pause(20);
        }
    })
}

/// The records of how the cluster looked.
fn topologies(bench: &Bench) -> BTreeSet<std::path::PathBuf> {
    let mut found = BTreeSet::new();
    for cluster in std::fs::read_dir(bench.repo()).unwrap() {
        let Ok(records) = std::fs::read_dir(cluster.unwrap().path().join("topology")) else { continue };
        found.extend(records.map(|record| record.unwrap().path()));
    }
    found
}
