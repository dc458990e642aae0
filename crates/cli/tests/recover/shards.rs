//! Shards that come and go under a running archive: a fourth one joins and is given slots, at once and key by key; later they go back and it is
//! forgotten. Moments before, between and after come back as the ledger has them; those at which slots changed hands do, or are refused by
//! that name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use slotkeep_model::key_slot;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::ledger::{Ledger, LedgerOptions};
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Node, servers};

use crate::common::agent::Agent;
use crate::harness::{Bench, client, free_addrs, stop_nodes};
use crate::moments::{is_listed, known, next_restorable, plan};
use crate::moves::check_moved;
use crate::recorder::{now, pause};

const LIMIT: Duration = Duration::from_secs(60);
const LISTS: u64 = 30;
const FILLING: u64 = 3_000;
/// Of the first two shards, the slots that move at once.
const RANGES: [(u16, u16); 2] = [(0, 1999), (6000, 7999)];

/// A node that belongs to no cluster yet, and its id there.
fn newcomer(server: slotkeep_testkit::Server) -> (Cluster, String) {
    let alone = ClusterBuilder::new(server).primaries(1).config("repl-backlog-size", "64mb").start().unwrap();
    let mut client = alone.nodes()[0].client().unwrap();
    client.command(&["CLUSTER", "RESET", "HARD"]).unwrap();
    let id = client.command(&["CLUSTER", "MYID"]).unwrap().text().unwrap();
    (alone, id)
}

fn await_nodes(clients: &mut [Client], count: usize) {
    let wanted = format!("cluster_known_nodes:{count}");
    for client in clients {
        wait_for(LIMIT, &wanted, || {
            let told = client.command(&["CLUSTER", "INFO"])?.text()?;
            let whole = told.contains("cluster_state:ok") && told.lines().any(|line| line.trim() == wanted);
            if whole { Ok(()) } else { Err(NotYet::because(told)) }
        })
        .unwrap();
    }
}

/// Waits until all of them see that node as the owner of a range.
fn await_owner(clients: &mut [Client], id: &str, (first, last): (u16, u16)) {
    for client in clients {
        wait_for(LIMIT, "slots to be where they go", || {
            let nodes = client.command(&["CLUSTER", "NODES"])?.text()?;
            let own =
                nodes.lines().filter(|line| line.starts_with(id)).flat_map(|line| line.split(' ').skip(8));
            let number = |text: &str| text.parse::<u16>().ok();
            let mut own = own.filter_map(|range| {
                let (low, high) = range.split_once('-').unwrap_or((range, range));
                Some((number(low)?, number(high)?))
            });
            let holds = own.any(|(low, high)| low <= first && high >= last);
            if holds { Ok(()) } else { Err(NotYet::because("not there yet")) }
        })
        .unwrap();
    }
}

fn move_at_once(from: &mut Client, to: &str, (first, last): (u16, u16)) {
    let (low, high) = (first.to_string(), last.to_string());
    from.command(&["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &low, &high, "NODE", to]).unwrap();
}

/// Key by key, as every version can.
fn move_key_by_key(from: (&Node, &str), to: (&Node, &str), slot: u16, others: &mut [Client]) {
    let (mut source, mut target) = (from.0.client().unwrap(), to.0.client().unwrap());
    let (number, port) = (slot.to_string(), to.0.port().to_string());
    target.command(&["CLUSTER", "SETSLOT", &number, "IMPORTING", from.1]).unwrap();
    source.command(&["CLUSTER", "SETSLOT", &number, "MIGRATING", to.1]).unwrap();
    loop {
        let keys = source.command(&["CLUSTER", "GETKEYSINSLOT", &number, "100"]).unwrap();
        let keys = keys.array().unwrap();
        if keys.is_empty() {
            break;
        }
        let mut migrate: Vec<&[u8]> =
            vec![b"MIGRATE", b"127.0.0.1", port.as_bytes(), b"", b"0", b"30000", b"KEYS"];
        migrate.extend(keys.iter().filter_map(|key| key.bytes()));
        source.command(&migrate).unwrap();
    }
    target.command(&["CLUSTER", "SETSLOT", &number, "NODE", to.1]).unwrap();
    source.command(&["CLUSTER", "SETSLOT", &number, "NODE", to.1]).unwrap();
    for other in others {
        // One of them may be a node of the move itself.
        let _ = other.command(&["CLUSTER", "SETSLOT", &number, "NODE", to.1]);
    }
}

/// Waits until the agent follows so many shards that serve slots.
fn await_shards(agent: &Agent, count: usize, has: impl Fn(&[&str]) -> bool) {
    agent.wait_status("the shards as they are now", |status| {
        let shards = status["shards"].as_array().unwrap();
        let follows = |shard: &Value| shard["phase"] == "following" && shard["source"].is_string();
        let slots: Vec<&str> = shards.iter().filter_map(|shard| shard["slots"].as_str()).collect();
        let serving = slots.iter().filter(|slots| !slots.is_empty()).count();
        serving == count && shards.iter().all(follows) && has(&slots)
    });
}

/// A node without a slot is no shard and nobody follows it: what has arrived there of its first slot is in no log, and a restore says so.
#[test]
fn a_first_slot_on_its_way_to_a_new_node_is_named() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).primaries(1).start().unwrap();
    let (alone, newcomer) = newcomer(server);
    let bench = Bench::new();
    let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
    agent.wait_ready();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut writer = cluster.nodes()[0].client().unwrap();
        // A log without writes is sealed only now and then.
        let until = &ended;
        scope.spawn(move || {
            while !until.load(Ordering::Relaxed) {
                writer.command(&["INCR", "elsewhere"]).unwrap();
                pause(20);
            }
        });
        let named = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            first_slot_is_named(&cluster.nodes()[0], (&alone.nodes()[0], &newcomer), &bench);
        }));
        ended.store(true, Ordering::Relaxed);
        named.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    agent.stop();
}

fn first_slot_is_named(source: &Node, (target, newcomer): (&Node, &str), bench: &Bench) {
    let (mut at_source, at_target) = (source.client().unwrap(), target.client().unwrap());
    for number in 0..10 {
        at_source.command(&["SET", &format!("{{t}}:{number}"), "x"]).unwrap();
    }
    let port = target.port().to_string();
    at_source.command(&["CLUSTER", "MEET", "127.0.0.1", &port]).unwrap();
    let mut both = [at_source, at_target];
    await_nodes(&mut both, 2);
    let [mut at_source, mut at_target] = both;
    let unfollowed = || {
        let run = plan(bench, next_restorable(bench, 1), 1);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let shard = run.json()["recovery"]["shards"][0].clone();
        assert!(shard["slots"].is_string(), "{shard}");
        assert_eq!(shard["unfollowed"].is_string(), run.stderr.contains("to a node that served no slot yet"));
        shard["unfollowed"].as_str().map(str::to_owned)
    };
    assert_eq!(unfollowed(), None);
    let slot = key_slot(b"t").number().to_string();
    at_target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", source.id()]).unwrap();
    at_source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", newcomer]).unwrap();
    at_source.command(&["MIGRATE", "127.0.0.1", &port, "{t}:3", "0", "30000"]).unwrap();
    let named = wait_for(LIMIT, "the agent to look", || unfollowed().ok_or(NotYet::because("not seen yet")));
    assert_eq!(named.unwrap(), slot);
}

/// While slots move, no backup is written. The base of a shard that was given its first slot meanwhile counts all the same.
#[test]
fn moments_behind_the_first_slot_are_restored_while_others_still_move() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster =
        ClusterBuilder::new(server.clone()).primaries(1).config("repl-backlog-size", "64mb").start().unwrap();
    let (alone, newcomer) = newcomer(server.clone());
    let (source, target) = (&cluster.nodes()[0], &alone.nodes()[0]);
    let bench = Bench::new();
    let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
    agent.wait_ready();
    let mut both = [source.client().unwrap(), target.client().unwrap()];
    let [given, moving] = ["given", "moving"].map(|tag| key_slot(tag.as_bytes()).number());
    for key in (0..10).flat_map(|number| [format!("{{given}}:{number}"), format!("{{moving}}:{number}")]) {
        both[0].command(&["SET", &key, "x"]).unwrap();
    }
    let port = target.port().to_string();
    both[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port]).unwrap();
    await_nodes(&mut both, 2);
    let slot = moving.to_string();
    both[1].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", source.id()]).unwrap();
    both[0].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &newcomer]).unwrap();
    both[0].command(&["MIGRATE", "127.0.0.1", &port, "{moving}:3", "0", "30000"]).unwrap();
    move_key_by_key((source, source.id()), (target, &newcomer), given, &mut both);
    await_owner(&mut both, &newcomer, (given, given));

    let ended = AtomicBool::new(false);
    let moment = std::thread::scope(|scope| {
        // A log without writes is sealed only now and then.
        let until = &ended;
        let [mut at_source, mut at_target] = [source, target].map(|node| node.client().unwrap());
        scope.spawn(move || {
            while !until.load(Ordering::Relaxed) {
                at_source.command(&["INCR", "elsewhere"]).unwrap();
                at_target.command(&["INCR", "{given}:count"]).unwrap();
                pause(20);
            }
        });
        let moment = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next_restorable(&bench, 2)));
        ended.store(true, Ordering::Relaxed);
        moment.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(is_listed(&bench, moment));
    // It goes with a base that an agent tells of.
    assert_eq!(agent.notices("backup").len(), 1);
    agent.stop();
    drop((cluster, alone));

    let options = ["--no-replicas", "--dry-run"];
    let latest = bench.restore("plan", &free_addrs(2), &[&["--at", "latest"][..], &options].concat()).json();
    let at: jiff::Timestamp = latest["recovery"]["at"].as_str().unwrap().parse().unwrap();
    assert!(at.as_millisecond() >= moment, "{latest}");
    assert!(latest["recovery"]["passed_over"].is_null(), "{latest}");
    let at = jiff::Timestamp::from_millisecond(moment).unwrap().to_string();
    let nodes = free_addrs(2);
    let program = server.program().to_str().unwrap();
    bench.restore("new", &nodes, &["--at", &at, "--no-replicas", "--start", "--server", program]).json();
    let held = |slot: u16| {
        let held = nodes.iter().map(|node| {
            let count = ["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()];
            client(*node, None, None).command(&count).unwrap().int().unwrap()
        });
        let mut held: Vec<i64> = held.collect();
        held.sort_unstable();
        held
    };
    assert_eq!((held(given), held(moving)), (vec![0, 11], vec![1, 9]));
    stop_nodes(&nodes);
}

#[test]
fn shards_come_and_go_under_an_archive() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).config("repl-backlog-size", "64mb").start().unwrap();
    let (alone, fourth) = newcomer(server.clone());
    let joined = &alone.nodes()[0];
    let bench = Bench::new();
    let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
    agent.wait_ready();
    let mut filler = cluster.client().unwrap();
    for number in 0..FILLING {
        filler.command(&["SET", &format!("filling:{number}"), "x"]).unwrap();
    }
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 11, lists: LISTS, accounts: 8 }).unwrap();
    ledger.wait_for_more(100).unwrap();
    // An idle server is asked for its time once a second: from then on more often.
    pause(1500);
    let before = next_restorable(&bench, 3);

    let port = joined.port().to_string();
    let mut clients: Vec<Client> = cluster.nodes().iter().map(|node| node.client().unwrap()).collect();
    clients[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port]).unwrap();
    await_nodes(&mut clients, 4);
    // It takes a while before it takes writes.
    await_nodes(&mut [joined.client().unwrap()], 4);
    let mut during = Vec::new();
    for (source, range) in RANGES.into_iter().enumerate() {
        move_at_once(&mut clients[source], &fourth, range);
        during.push(now().as_millisecond());
        await_owner(&mut clients, &fourth, range);
    }
    // Of the third shard, single slots that are written to.
    let third = &cluster.nodes()[2];
    let slots = (0..LISTS).map(|list| key_slot(format!("ledger:{{{list}}}:list").as_bytes()).number());
    let of_third: Vec<u16> = slots.filter(|slot| *slot > 10922).take(3).collect();
    assert!(!of_third.is_empty());
    for slot in &of_third {
        move_key_by_key((third, third.id()), (joined, &fourth), *slot, &mut clients);
        await_owner(&mut clients, &fourth, (*slot, *slot));
    }
    let slot_text = of_third[0].to_string();
    await_shards(&agent, 4, |slots| {
        slots.iter().any(|own| own.contains("0-1999") && own.contains(&slot_text))
    });
    ledger.wait_for_more(100).unwrap();
    let between = next_restorable(&bench, 4);

    let mut from_fourth = joined.client().unwrap();
    for (target, range) in RANGES.into_iter().enumerate() {
        let id = cluster.nodes()[target].id();
        move_at_once(&mut from_fourth, id, range);
        during.push(now().as_millisecond());
        await_owner(&mut clients, id, range);
    }
    for slot in &of_third {
        move_key_by_key((joined, &fourth), (third, third.id()), *slot, &mut clients);
    }
    await_owner(&mut clients, third.id(), (of_third[0], of_third[0]));
    for client in &mut clients {
        client.command(&["CLUSTER", "FORGET", &fourth]).unwrap();
    }
    joined.kill().unwrap();
    await_nodes(&mut clients, 3);
    await_shards(&agent, 3, |slots| slots.contains(&"0-5460"));
    ledger.wait_for_more(100).unwrap();
    let after = next_restorable(&bench, 3);
    let account = ledger.stop(&cluster).unwrap();
    let status = agent.stop();
    assert_eq!(status["shards"].as_array().unwrap().len(), 3, "{status}");
    drop((cluster, alone));

    check_moved(&bench, &server, &account, "before", (known(&bench, before, 3), 3), FILLING);
    // Looks that were far apart may leave no moment at which it is certain that there were four.
    let between = known(&bench, between, 4);
    let shards = if plan(&bench, between, 4).code == 0 { 4 } else { 3 };
    check_moved(&bench, &server, &account, "between", (between, shards), FILLING);
    check_moved(&bench, &server, &account, "after", (after, 3), FILLING);
    for (number, moment) in during.into_iter().enumerate() {
        let planned = [3, 4].map(|nodes| (nodes, plan(&bench, moment, nodes)));
        match planned.iter().find(|(_, run)| run.code == 0) {
            Some((nodes, _)) => {
                check_moved(
                    &bench,
                    &server,
                    &account,
                    &format!("during-{number}"),
                    (moment, *nodes),
                    FILLING,
                );
            }
            None => {
                let refused =
                    |words: &str| planned.iter().any(|(_, run)| run.code == 24 && run.stderr.contains(words));
                // The new shard's base may be younger than the moment.
                let known = refused("changed hands between") || refused("their log begins at");
                assert!(known, "{}\n{}", planned[0].1.stderr, planned[1].1.stderr);
            }
        }
    }
}
