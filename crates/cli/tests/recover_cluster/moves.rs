//! A shard that is lost while slots are on their way from and to it.

use std::collections::BTreeMap;

use slotkeep_model::{Slot, key_slot};
use slotkeep_testkit::Client;

use crate::harness::{client, topology};
use crate::scene::{ALL, Scene};
use crate::spares::{empty, state};

/// Keys of one slot.
fn keys(tag: &str) -> Vec<String> {
    (0..40).map(|number| format!("{{{tag}}}:{number}")).collect()
}

/// The values of a slot's keys on one node.
fn held(node: &mut Client, slot: Slot, asking: bool) -> BTreeMap<String, String> {
    let reply = node.command(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1000"]).unwrap();
    let keys: Vec<String> = reply.array().unwrap().iter().map(|key| key.text().unwrap()).collect();
    let value = |key: String| {
        if asking {
            node.command(&["ASKING"]).unwrap();
        }
        let value = node.command(&["GET", &key]).unwrap().text().unwrap();
        (key, value)
    };
    keys.into_iter().map(value).collect()
}

fn a_shard_is_lost_while_slots_move(name: &str) {
    let mut scene = Scene::start(name, true, &[]);
    // A slot that leaves shard 0 for shard 1, and one that comes the other way.
    let tag = |shard: usize| scene.tag_of(shard, "moved");
    let (leaving, arriving) = (tag(0), tag(1));
    let (out, into) = (key_slot(leaving.as_bytes()), key_slot(arriving.as_bytes()));
    let (lost, living) = (scene.first(0).id().to_owned(), scene.first(1).id().to_owned());
    let (lost_port, living_addr) = (scene.first(0).port(), scene.first(1).addr());
    let (mut at_lost, mut at_living) = (scene.first(0).client().unwrap(), scene.first(1).client().unwrap());
    for key in keys(&leaving) {
        at_lost.command(&["SET", &key, "old"]).unwrap();
    }
    for key in keys(&arriving) {
        at_living.command(&["SET", &key, "old"]).unwrap();
    }
    let set = |at: &mut Client, slot: Slot, state: &str, id: &str| {
        at.command(&["CLUSTER", "SETSLOT", &slot.to_string(), state, id]).unwrap();
    };
    set(&mut at_lost, into, "IMPORTING", &living);
    set(&mut at_living, into, "MIGRATING", &lost);
    let migrate = |at: &mut Client, port: u16, some: &[String]| {
        for key in some {
            at.command(&["MIGRATE", "127.0.0.1", &port.to_string(), key, "0", "30000"]).unwrap();
        }
    };
    migrate(&mut at_living, lost_port, &keys(&arriving)[..20]);
    scene.ledger().wait_for_more(100).unwrap();
    // What happens from here on to the first slot is in no archive.
    scene.wait_held(0);
    scene.agent.take().unwrap().stop();
    set(&mut at_living, out, "IMPORTING", &lost);
    set(&mut at_lost, out, "MIGRATING", &living);
    migrate(&mut at_lost, living_addr.port(), &keys(&leaving)[..20]);
    at_living.command(&["ASKING"]).unwrap();
    at_living.command(&["SET", &keys(&leaving)[3], "newer"]).unwrap();
    scene.first(0).kill().unwrap();
    scene.second(0).kill().unwrap();

    // A node that runs can't be told beforehand what is on its way.
    let spare = empty(&scene.server, 1);
    let runs = spare.nodes()[0].addr();
    let run = scene.recover_to(&[runs], &["--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    let words =
        format!("{runs} can't be used for new nodes: slots were on their way from or to a lost shard");
    assert!(run.stdout.contains(&words), "{}", run.stdout);
    assert_eq!(state(runs), ("0".to_owned(), ":0".to_owned(), "1".to_owned()));

    let (nodes, words) = scene.spares(1, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = scene.recover_whole(&[&words[..], &["--yes"]].concat());
    scene.cluster.wait_ok().unwrap();

    // Each key is in one place, with what was written last.
    let mut at_new = client(nodes[0], None, None);
    let (new, moved) = (held(&mut at_new, out, false), held(&mut at_living, out, true));
    assert_eq!(new.keys().cloned().collect::<Vec<_>>(), sorted(&keys(&leaving)[20..]), "{done}");
    assert_eq!(moved.keys().cloned().collect::<Vec<_>>(), sorted(&keys(&leaving)[..20]));
    assert_eq!(moved[&keys(&leaving)[3]], "newer");
    let (new, left) = (held(&mut at_new, into, true), held(&mut at_living, into, false));
    assert_eq!(new.keys().cloned().collect::<Vec<_>>(), sorted(&keys(&arriving)[..20]));
    assert_eq!(left.keys().cloned().collect::<Vec<_>>(), sorted(&keys(&arriving)[20..]));
    // Both sides know each other, so both moves can be finished.
    let id = |node| topology(node).into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    let new_id = at_new.command(&["CLUSTER", "MYID"]).unwrap().text().unwrap();
    assert!(id(living_addr).contains(&new_id));
    migrate(&mut at_new, living_addr.port(), &keys(&leaving)[20..]);
    migrate(&mut at_living, nodes[0].port(), &keys(&arriving)[20..]);
    for at in [&mut at_living, &mut at_new] {
        set(at, out, "NODE", &living);
        set(at, into, "NODE", &new_id);
    }
    let mut everywhere = scene.client(&nodes);
    for key in keys(&leaving).iter().chain(&keys(&arriving)) {
        let value = everywhere.command(&["GET", key]).unwrap().text().unwrap();
        assert_eq!(value, if *key == keys(&leaving)[3] { "newer" } else { "old" }, "{key}");
    }
    let account = scene.check(scene.client(&nodes));
    account.check(ALL, &mut |args| everywhere.command(args)).unwrap();
}

fn sorted(keys: &[String]) -> Vec<String> {
    let mut keys = keys.to_vec();
    keys.sort();
    keys
}

#[test]
fn a_shard_of_valkey_9_1_is_lost_while_slots_move() {
    a_shard_is_lost_while_slots_move("valkey-9.1");
}

#[test]
fn a_shard_of_redis_7_0_is_lost_while_slots_move() {
    a_shard_is_lost_while_slots_move("redis-7.0");
}
