use slotkeep_model::{Node, Slot, SlotRange, SlotSet};

use super::super::finding::Severity;
use super::super::node::tests::{facts, healthy};
use super::*;
use crate::{Error, ErrorKind};

fn node(addr: &str, role: Role) -> Node {
    Node { id: None, addr: addr.parse().unwrap(), role, online: true }
}

fn topology(slots: SlotSet, replicas: &[&str]) -> Topology {
    let shard = Shard {
        slots,
        config_epoch: 1,
        primary: node("a:1", Role::Primary),
        replicas: replicas.iter().map(|addr| node(addr, Role::Replica)).collect(),
    };
    Topology { cluster_mode: true, current_epoch: 1, shards: vec![shard] }
}

fn faults(topology: &Topology, nodes: &[NodeFacts]) -> Vec<(Severity, &'static str)> {
    let found = judge(topology, LeftOut::default(), nodes);
    found.iter().filter(|one| one.severity > Severity::Ok).map(|one| (one.severity, one.check)).collect()
}

fn replica(behind: u64) -> Answers {
    let mut answers = healthy();
    answers.replication.role = Role::Replica;
    answers.replication.offset.0 = answers.replication.offset.0.saturating_sub(behind);
    answers.replication.link = Some(slotkeep_wire::info::PrimaryLink {
        primary: "a:1".parse().unwrap(),
        up: true,
        sync_in_progress: false,
        idle_seconds: Some(0),
    });
    answers
}

#[test]
fn a_whole_cluster_is_fine() {
    let nodes = [facts("a:1", Ok(healthy())), facts("b:1", Ok(replica(0)))];
    assert_eq!(faults(&topology(SlotSet::full(), &["b:1"]), &nodes), []);
}

#[test]
fn each_fault_is_found_by_its_check() {
    use Severity::{Note, Problem, Warning};
    let whole = topology(SlotSet::full(), &["b:1"]);
    let pair = |primary, replica| [facts("a:1", Ok(primary)), facts("b:1", Ok(replica))];

    let first = SlotRange::new(Slot::new(0).unwrap(), Slot::new(99).unwrap()).unwrap();
    let part = topology(SlotSet::from_iter([first]), &["b:1"]);
    assert_eq!(faults(&part, &pair(healthy(), replica(0))), [(Problem, "slots")]);

    assert_eq!(
        faults(&whole, &pair(Answers { slots_moving: 1, ..healthy() }, replica(0))),
        [(Problem, "moving slots")]
    );

    let mut far = healthy();
    far.replication.offset.0 = 1 << 30;
    assert_eq!(faults(&whole, &pair(far, replica(0))), [(Warning, "lag")]);

    let late = Answers { clock_ahead_ms: Some(-2000), ..replica(0) };
    assert_eq!(faults(&whole, &pair(healthy(), late)), [(Warning, "clocks")]);

    let mut older = replica(0);
    older.server.minor = 0;
    assert_eq!(faults(&whole, &pair(healthy(), older)), [(Note, "versions")]);

    assert_eq!(faults(&topology(SlotSet::full(), &[]), &[facts("a:1", Ok(healthy()))]), [(Note, "replicas")]);
    let one_host = [facts("a:1", Ok(healthy())), facts("a:2", Ok(replica(0)))];
    assert_eq!(faults(&topology(SlotSet::full(), &["a:2"]), &one_host), [(Note, "hosts")]);
}

#[test]
fn a_shard_none_of_whose_nodes_can_be_captured_is_a_problem() {
    let gone = || Err(Error::new(ErrorKind::Unreachable, "gone"));
    let whole = topology(SlotSet::full(), &["b:1"]);
    let mut cut_off = replica(0);
    if let Some(link) = &mut cut_off.replication.link {
        link.up = false;
    }
    let nodes = [facts("a:1", gone()), facts("b:1", Ok(cut_off))];
    assert_eq!(faults(&whole, &nodes), [(Severity::Problem, "shards")]);
    let nodes = [facts("a:1", gone()), facts("b:1", Ok(replica(0)))];
    assert_eq!(faults(&whole, &nodes), []);
}
