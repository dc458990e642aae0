//! A moment at which a slot is on its way from one shard to another.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use slotkeep_testkit::{ClusterBuilder, servers};

use crate::harness::{Bench, client, free_addrs, seed, topology};
use crate::recorder::{Recorder, manifest_of, now, pause};

#[test]
fn a_slot_on_its_way_comes_back_with_all_its_keys() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster =
        ClusterBuilder::new(server.clone()).primaries(2).config("repl-backlog-size", "16mb").start().unwrap();
    let bench = Bench::new();
    let manifest = manifest_of(&bench.backup(seed(&cluster), &[]));
    let mut recorder = Recorder::start(&cluster, &manifest);
    let slot = slotkeep_model::key_slot(b"t");
    let from = usize::from(!manifest.shards[0].slots.contains(slot));
    let node = |shard: &str| cluster.nodes().iter().find(|node| node.addr().to_string() == shard).unwrap();
    let source = node(&manifest.shards[from].primary.addr.to_string());
    let target = node(&manifest.shards[1 - from].primary.addr.to_string());
    let (mut at_source, mut at_target) = (source.client().unwrap(), target.client().unwrap());
    let keys: Vec<String> = (0..40).map(|number| format!("{{t}}:{number}")).collect();
    for key in &keys {
        at_source.command(&["SET", key, "x"]).unwrap();
    }
    // So that a sample of the source's time lies between these writes and the move.
    pause(300);
    let number = slot.to_string();
    at_target.command(&["CLUSTER", "SETSLOT", &number, "IMPORTING", source.id()]).unwrap();
    at_source.command(&["CLUSTER", "SETSLOT", &number, "MIGRATING", target.id()]).unwrap();
    recorder.see_moving(slot, from, 1 - from);
    let port = target.port().to_string();
    let mut moment = now();
    for (count, key) in keys.iter().take(30).enumerate() {
        at_source.command(&["MIGRATE", "127.0.0.1", &port, key, "0", "30000"]).unwrap();
        pause(10);
        if count == 15 {
            moment = now();
        }
    }
    pause(200);
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
