//! What is judged of clusters as their nodes describe them.

use slotkeep_format::ShardState;
use slotkeep_format::manifest::NodeRecord;
use slotkeep_model::{NodeAddr, NodeId, Product, Role, ServerVersion, SlotSet};
use slotkeep_wire::topology::from_nodes;

use super::archive::Held;
use super::facts::{Answer, EmptyNode, LeftNode, Recorded, SeenNode, SpareState, Survey, Word};
use super::judge::{Wishes, judge};
use super::moves::broken;
use super::plan::{Condition, How, Plan, Remedy, StepKind, Verdict};
use crate::log::chain::Place;
use crate::log::point::shards::Reach;

/// What a node's line says: number, primary that it follows, epoch, slots.
type Line<'a> = (u8, Option<u8>, u64, &'a str);

/// Three shards with a replica each.
const WHOLE: [Line<'static>; 6] = [
    (1, None, 1, "0-5460"),
    (2, None, 2, "5461-10922"),
    (3, None, 3, "10923-16383"),
    (4, Some(1), 1, ""),
    (5, Some(2), 2, ""),
    (6, Some(3), 3, ""),
];

fn id(number: u8) -> NodeId {
    format!("{number:040}").parse().unwrap()
}

fn addr(number: u8) -> NodeAddr {
    NodeAddr::new("10.0.0.1", 7000 + u16::from(number))
}

fn word(myself: u8, lines: &[Line<'_>], gone: &[u8]) -> Word {
    let text: Vec<String> = lines
        .iter()
        .map(|(number, primary, epoch, slots)| {
            let me = if *number == myself { "myself," } else { "" };
            let role =
                primary.map_or_else(|| "master -".to_owned(), |primary| format!("slave {}", id(primary)));
            let port = addr(*number).port();
            let link = if gone.contains(number) { "disconnected" } else { "connected" };
            format!("{} 10.0.0.1:{port}@1{port} {me}{role} 0 0 {epoch} {link} {slots}", id(*number))
        })
        .collect();
    let view = from_nodes(&text.join("\n"), &addr(myself), false).unwrap();
    let role = view.my_row().and_then(|row| row.role).unwrap_or(Role::Primary);
    Word {
        id: view.myself,
        role,
        server: ServerVersion::parse(Product::Valkey, "9.1.2").unwrap(),
        syncing: false,
        history: "a".repeat(40).parse().unwrap(),
        offset: 100,
        former: None,
        keys: 10,
        rows: view.rows,
        current_epoch: 6,
        cluster_ok: true,
    }
}

fn seen(number: u8, answer: Answer) -> SeenNode {
    SeenNode { addr: addr(number), id: id(number), answer }
}

/// Nodes that answer with those lines, and nodes that don't answer.
fn survey(answering: &[u8], silent: &[u8], lines: &[Line<'_>]) -> Survey {
    let words =
        answering.iter().map(|number| seen(*number, Answer::Word(Box::new(word(*number, lines, silent)))));
    let silent = silent.iter().map(|number| seen(*number, Answer::Silent("gone".to_owned())));
    Survey { nodes: words.chain(silent).collect(), ..Survey::default() }
}

fn change(survey: &mut Survey, number: u8, change: impl FnOnce(&mut Word)) {
    let node = survey.nodes.iter_mut().find(|node| node.id == id(number)).unwrap();
    let Answer::Word(word) = &mut node.answer else { panic!("{number} is silent") };
    change(word);
}

fn judged(survey: &Survey) -> Plan {
    judge(survey, &Held::default(), &Wishes::default())
}

fn promoted(plan: &Plan, shard: usize) -> (NodeId, How) {
    match &plan.shards[shard].remedy {
        Remedy::Promote { node, how, .. } => (node.clone(), *how),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_cluster_needs_nothing() {
    let plan = judged(&survey(&[1, 2, 3, 4, 5, 6], &[], &WHOLE));
    assert_eq!(plan.verdict, Verdict::Whole, "{plan:?}");
    assert_eq!(plan.shards.len(), 3);
    assert!(plan.steps.is_empty());
    // A replica that is away is no damage.
    assert_eq!(judged(&survey(&[1, 2, 3, 4, 5], &[6], &WHOLE)).verdict, Verdict::Whole);
}

#[test]
fn the_gentlest_way_that_works_is_chosen_for_each_promotion() {
    let plan = judged(&survey(&[2, 3, 4, 5, 6], &[1], &WHOLE));
    assert_eq!((plan.verdict, plan.shards[0].condition), (Verdict::Recoverable, Condition::PrimaryGone));
    assert_eq!(promoted(&plan, 0), (id(4), How::Force));
    // One of three primaries is no majority; with the first promotion there are two.
    let plan = judged(&survey(&[3, 4, 5, 6], &[1, 2], &WHOLE));
    assert_eq!(promoted(&plan, 0), (id(4), How::Takeover));
    assert_eq!(promoted(&plan, 1), (id(5), How::Force));
    let kinds: Vec<bool> =
        plan.steps.iter().map(|step| matches!(step.kind, StepKind::Promote { .. })).collect();
    assert_eq!(kinds, [true, true, false]);
}

#[test]
fn the_replica_with_the_highest_offset_is_promoted_unless_another_is_chosen() {
    let lines = [&WHOLE[..], &[(7, Some(1), 1, "")]].concat();
    let mut found = survey(&[2, 3, 4, 5, 6, 7], &[1], &lines);
    change(&mut found, 7, |word| word.offset = 101);
    assert_eq!(promoted(&judged(&found), 0).0, id(7));
    let wishes = Wishes { choose: vec![addr(4)], ..Wishes::default() };
    assert_eq!(promoted(&judge(&found, &Held::default(), &wishes), 0).0, id(4));
    // What holds no whole dataset is never promoted, however high its offset.
    change(&mut found, 7, |word| word.syncing = true);
    assert_eq!(promoted(&judged(&found), 0).0, id(4));
    change(&mut found, 4, |word| (word.offset, word.keys) = (0, 0));
    let plan = judged(&found);
    assert_eq!(plan.shards[0].condition, Condition::Lost);
    assert_eq!(plan.verdict, Verdict::NeedsDecision);
    let wishes = Wishes { choose: vec![addr(1)], ..Wishes::default() };
    assert!(
        judge(&found, &Held::default(), &wishes)
            .open
            .iter()
            .any(|open| open.contains("--choose 10.0.0.1:7001"))
    );
}

#[test]
fn slots_that_two_nodes_call_their_own_are_left_alone() {
    let mut after = WHOLE;
    after[0] = (1, Some(4), 7, "");
    after[3] = (4, None, 7, "0-5460");
    let mut found = survey(&[2, 3, 4, 5, 6], &[], &after);
    assert_eq!(judged(&found).verdict, Verdict::Whole);
    // The old primary has heard nothing of that.
    found.nodes.push(seen(1, Answer::Word(Box::new(word(1, &WHOLE, &[])))));
    let plan = judged(&found);
    assert_eq!(plan.shards[0].condition, Condition::SplitBrain);
    assert_eq!((plan.verdict, plan.steps.len()), (Verdict::NeedsDecision, 0));
    assert!(plan.open[0].contains("The cluster will follow 10.0.0.1:7004"), "{:?}", plan.open);
    // The new one is gone, and only the old one answers: it will follow the new one as soon as it hears of it.
    found.nodes.retain(|node| node.id != id(4));
    found.nodes.push(seen(4, Answer::Silent("gone".to_owned())));
    let plan = judged(&found);
    assert_eq!(plan.shards[0].condition, Condition::Superseded);
    assert_eq!((plan.verdict, plan.steps.len()), (Verdict::NeedsDecision, 0));
}

#[test]
fn what_the_others_reach_is_not_gone() {
    // No node that answers misses it.
    let mut found = survey(&[2, 3, 4, 5, 6], &[], &WHOLE);
    found.nodes.push(seen(1, Answer::Silent("out of reach".to_owned())));
    let plan = judged(&found);
    assert_eq!(plan.shards[0].condition, Condition::OutOfReach);
    assert_eq!((plan.verdict, plan.steps.len()), (Verdict::NeedsDecision, 0));
    // One of them does.
    change(&mut found, 2, |word| {
        word.rows.iter_mut().filter(|row| row.id == id(1)).for_each(|row| row.flags.suspected = true);
    });
    assert_eq!(judged(&found).shards[0].condition, Condition::PrimaryGone);
    // A replica that the others reach keeps its shard from being restored.
    let mut found = survey(&[2, 3, 5, 6], &[1], &WHOLE);
    found.nodes.push(seen(4, Answer::Silent("out of reach".to_owned())));
    assert_eq!(judged(&found).shards[0].condition, Condition::OutOfReach);
}

#[test]
fn of_what_is_said_of_silent_nodes_the_newest_counts() {
    // 1 had been replaced by 4, which 2 has heard and 3 has not; then both went.
    let mut after = WHOLE;
    after[0] = (1, Some(4), 7, "");
    after[3] = (4, None, 7, "0-5460");
    let mut found = survey(&[2], &[1, 4], &after);
    found.nodes.push(seen(3, Answer::Word(Box::new(word(3, &WHOLE, &[1])))));
    let plan = judged(&found);
    assert_eq!(plan.shards.len(), 3, "{:?}", plan.shards);
    assert_eq!(plan.shards[0].primary.as_deref(), Some("10.0.0.1:7004"));
    assert_eq!(plan.shards[0].condition, Condition::Lost);
}

#[test]
fn a_node_that_reads_its_dataset_is_waited_for() {
    let mut found = survey(&[2, 3, 4, 5, 6], &[], &WHOLE);
    found.nodes.push(seen(1, Answer::Busy("it reads its dataset".to_owned())));
    let plan = judged(&found);
    assert_eq!(plan.shards[0].condition, Condition::Starting);
    assert_eq!((plan.verdict, plan.steps.len()), (Verdict::NeedsDecision, 0));
}

#[test]
fn a_primary_that_some_do_not_know_is_made_known() {
    let lines = [(8, None, 9, "0-5460"), WHOLE[1], WHOLE[2]];
    let mut found = survey(&[8], &[], &lines);
    for number in [2, 3] {
        found.nodes.push(seen(number, Answer::Word(Box::new(word(number, &WHOLE[..3], &[1])))));
    }
    found.nodes.push(seen(1, Answer::Silent("gone".to_owned())));
    let plan = judged(&found);
    assert_eq!(plan.shards[0].condition, Condition::NotJoined, "{plan:?}");
    let kinds: Vec<&StepKind> = plan.steps.iter().map(|step| &step.kind).collect();
    assert_eq!(kinds, [&StepKind::Join, &StepKind::Settle]);
}

fn recorded() -> Recorded {
    let node = |number| NodeRecord { id: Some(id(number)), addr: addr(number), online: true };
    let shard = ShardState {
        slots: "0-5460".parse().unwrap(),
        importing: SlotSet::default(),
        migrating: SlotSet::default(),
        unfollowed: SlotSet::default(),
        config_epoch: 1,
        primary: node(1),
        replicas: vec![node(4)],
        history: None,
        offset: None,
    };
    let nodes = [1, 4].map(|number| (id(number), shard.slots.clone())).into();
    Recorded { shards: vec![shard], nodes }
}

#[test]
fn slots_that_nobody_knows_of_belong_to_whom_the_repository_saw() {
    // The dead nodes have been forgotten.
    let found = Survey { recorded: recorded(), ..survey(&[2, 3], &[1], &WHOLE[1..3]) };
    let plan = judged(&found);
    assert_eq!(plan.shards[0].primary.as_deref(), Some("10.0.0.1:7001"));
    assert_eq!(plan.shards[0].condition, Condition::Lost);
}

#[test]
fn an_old_node_without_slots_is_attached_to_its_shard() {
    let lines = [(8, None, 9, "0-5460"), WHOLE[1], WHOLE[2], (1, None, 1, "")];
    let mut found = Survey { recorded: recorded(), ..survey(&[8, 2, 3, 1], &[], &lines) };
    change(&mut found, 1, |word| word.keys = 0);
    let attach = StepKind::Attach { node: id(1), primary: id(8) };
    assert_eq!(judged(&found).steps[0].kind, attach);
    // One that holds keys is a person's to judge, and one that nobody recorded may be meant to be empty.
    change(&mut found, 1, |word| word.keys = 1);
    assert_eq!(judged(&found).verdict, Verdict::Whole);
    change(&mut found, 1, |word| word.keys = 0);
    found.recorded = Recorded::default();
    assert_eq!(judged(&found).verdict, Verdict::Whole);
}

#[test]
fn what_can_not_be_forgotten_is_not() {
    let wishes = Wishes { forget: true, ..Wishes::default() };
    let plan = judge(&survey(&[1, 2, 3, 4, 5], &[6], &WHOLE), &Held::default(), &wishes);
    assert_eq!(plan.steps[0].kind, StepKind::Forget { nodes: vec![id(6)] });
    // Its slots are nobody else's yet.
    let plan = judge(&survey(&[2, 3, 5, 6], &[1, 4], &WHOLE), &Held::default(), &wishes);
    assert!(
        !plan
            .steps
            .iter()
            .any(|step| matches!(&step.kind, StepKind::Forget { nodes } if nodes.contains(&id(1))))
    );
}

#[test]
fn an_address_that_is_taken_is_named() {
    let spares = vec![(addr(9), SpareState::Taken("a node runs there".to_owned()))];
    let plan = judged(&Survey { spares, ..survey(&[1, 2, 3], &[], &WHOLE[..3]) });
    assert_eq!(plan.verdict, Verdict::NeedsDecision);
    assert!(plan.open[0].contains("10.0.0.1:7009 can't be used"), "{:?}", plan.open);
}

#[test]
fn a_move_is_broken_where_one_side_names_another_node() {
    let with = |from: &str, to: &str| {
        let (first, second) = (format!("0-5460 {from}"), format!("5461-10922 {to}"));
        let lines = [(1, None, 1, first.as_str()), (2, None, 2, second.as_str()), WHOLE[2]];
        broken(&survey(&[1, 2, 3], &[], &lines))
    };
    let to = |number| format!("[7->-{}]", id(number));
    let from = |number| format!("[7-<-{}]", id(number));
    assert!(with(&to(2), &from(1)).is_empty());
    assert!(with("", &from(1)).is_empty(), "begun on one side");
    let lost = with("", &from(8));
    assert!(lost.len() == 1 && lost[0].was_lost && lost[0].from == id(1) && lost[0].to == id(2));
    let lost = with(&to(8), &from(1));
    assert!(lost.len() == 1 && !lost[0].was_lost && !lost[0].takes_anew, "{lost:?}");
    let forgotten = with(&to(2), "");
    assert!(forgotten.len() == 1 && !forgotten[0].was_lost && forgotten[0].takes_anew, "{forgotten:?}");
}

/// An empty node that runs.
fn empty(number: u8, version: &str, free_bytes: Option<u64>) -> (NodeAddr, SpareState) {
    let server = ServerVersion::parse(Product::Valkey, version).unwrap();
    (addr(number), SpareState::Empty(EmptyNode { id: id(number), server, free_bytes }))
}

/// A node that is alone with slots, an epoch and keys.
fn left(number: u8, slots: &str, epoch: u64) -> (NodeAddr, SpareState) {
    let (addr, SpareState::Empty(node)) = empty(number, "9.1.2", None) else { panic!("it is empty") };
    let slots = if slots.is_empty() { SlotSet::default() } else { slots.parse().unwrap() };
    (addr, SpareState::Left(LeftNode { node, slots, epoch, keys: 5 }))
}

/// A shard that is lost, and what the repository holds of it.
fn held() -> Held {
    let history: slotkeep_model::ReplId = "a".repeat(40).parse().unwrap();
    let reach = Reach {
        end: Place { history, offset: 100 },
        written: None,
        backup: "b".to_owned(),
        rdb_version: "VALKEY080".parse().unwrap(),
        rdb_bytes: 1000,
        log_bytes: 10,
    };
    let shard = recorded().shards.remove(0);
    let slots = shard.slots.clone();
    Held { shards: vec![(slots, Some(shard), Ok(reach))], given: true, ..Held::default() }
}

#[test]
fn empty_nodes_take_lost_shards_and_the_places_of_lost_replicas() {
    let lost = |spares: Vec<(NodeAddr, SpareState)>, folder| {
        let found = Survey { spares, recorded: recorded(), ..survey(&[2, 3, 6], &[1, 4, 5], &WHOLE) };
        judge(&found, &held(), &Wishes { folder, ..Wishes::default() })
    };
    let nodes = |plan: &Plan, shard: usize| match &plan.shards[shard].remedy {
        Remedy::Restore { running, nodes } => (*running, nodes.clone()),
        other => panic!("{other:?}"),
    };
    // The lost shard's primary, its replica, then the replica that the second shard has lost.
    let some = || vec![empty(7, "9.1.2", None), empty(8, "9.1.2", Some(1000)), empty(9, "9.1.2", None)];
    let plan = lost(some(), false);
    assert_eq!(nodes(&plan, 0), (true, vec![addr(7)]));
    let new: Vec<_> = plan.shards.iter().map(|shard| shard.new_replicas.clone()).collect();
    assert_eq!(new, [vec![addr(8)], vec![addr(9)], vec![]]);
    assert_eq!(plan.verdict, Verdict::Recoverable, "{:?}", plan.open);
    // Replicas that are started belong to the restore of a primary that is started.
    let mixed = vec![(addr(7), SpareState::Free), (addr(8), SpareState::Free), empty(9, "9.1.2", None)];
    let plan = lost(mixed.clone(), true);
    assert_eq!(nodes(&plan, 0), (false, vec![addr(7), addr(8)]));
    assert_eq!(plan.shards[1].new_replicas, [addr(9)]);
    // Without a folder nothing can be started.
    let plan = lost(mixed, false);
    assert_eq!(nodes(&plan, 0), (true, vec![addr(9)]));
    assert!(plan.open.iter().any(|open| open.contains("give --to-dir DIR")), "{:?}", plan.open);
    // Too old, or too small.
    for (spare, why) in
        [(empty(7, "8.0.1", None), "does not load"), (empty(7, "9.1.2", Some(999)), "raise maxmemory")]
    {
        let plan = lost(vec![spare], false);
        assert!(matches!(plan.shards[0].remedy, Remedy::Wait { .. }), "{plan:?}");
        assert!(
            plan.open.iter().any(|open| open.starts_with("10.0.0.1:7007") && open.contains(why)),
            "{:?}",
            plan.open
        );
    }
}

#[test]
fn what_was_left_is_emptied_only_if_it_is_named_and_looks_like_that() {
    let with = |spare: (NodeAddr, SpareState), refill: Vec<NodeAddr>, living: &[u8]| {
        let gone: Vec<u8> = [1, 4, 5].into_iter().filter(|number| !living.contains(number)).collect();
        let found = Survey { spares: vec![spare], recorded: recorded(), ..survey(living, &gone, &WHOLE) };
        judge(&found, &held(), &Wishes { refill, ..Wishes::default() })
    };
    let empties = |plan: &Plan| plan.steps.iter().any(|step| matches!(step.kind, StepKind::Empty { .. }));
    let lost = [2, 3, 6];
    let plan = with(left(7, "0-5460", 4), vec![addr(7)], &lost);
    let StepKind::Empty { nodes } = &plan.steps[0].kind else { panic!("{plan:?}") };
    assert_eq!((&nodes[0].addr, &nodes[0].id, nodes[0].keys), (&addr(7), &id(7), 5));
    assert!(matches!(&plan.steps[1].kind, StepKind::Fill { .. }), "{plan:?}");
    assert_eq!(plan.verdict, Verdict::Recoverable, "{:?}", plan.open);
    // Between its epoch and its slots.
    assert!(empties(&with(left(7, "", 4), vec![addr(7)], &lost)));

    // Not named; other slots, or more; an epoch that the shard's old nodes may have; a shard that a replica takes over.
    let lives = [2, 3, 4, 6];
    for (spare, refill, living, why) in [
        (left(7, "0-5460", 4), vec![addr(8)], &lost[..], "`--refill 10.0.0.1:7007` empties it"),
        (left(7, "0-5461", 4), vec![addr(7)], &lost, "not the slots of a shard that is to be restored"),
        (left(7, "5461-10922", 4), vec![addr(7)], &lost, "not the slots of a shard that is to be restored"),
        (left(7, "0-5460", 1), vec![addr(7)], &lost, "its config epoch (1) is not above"),
        (left(7, "0-5460", 4), vec![addr(7)], &lives, "not the slots of a shard that is to be restored"),
    ] {
        let plan = with(spare, refill, living);
        assert!(!empties(&plan), "{plan:?}");
        assert!(plan.open.iter().any(|open| open.contains(why)), "{why}: {:?}", plan.open);
    }
}

#[test]
fn no_shard_gets_more_replicas_than_the_others_have() {
    let spares = || vec![empty(7, "9.1.2", None), empty(8, "9.1.2", None)];
    let new = |found: &Survey| -> Vec<usize> {
        judged(found).shards.iter().map(|shard| shard.new_replicas.len()).collect()
    };
    assert_eq!(new(&Survey { spares: spares(), ..survey(&[1, 2, 3, 5, 6], &[4], &WHOLE) }), [1, 0, 0]);
    // The place of the old primary, whose replica takes over.
    assert_eq!(new(&Survey { spares: spares(), ..survey(&[2, 3, 4, 5, 6], &[1], &WHOLE) }), [1, 0, 0]);
    // One that was never there is not missed, and one that has been replaced is not missed any more.
    assert_eq!(new(&Survey { spares: spares(), ..survey(&[1, 2, 3], &[], &WHOLE[..3]) }), [0, 0, 0]);
    let lines = [&WHOLE[..], &[(9, Some(1), 1, "")]].concat();
    assert_eq!(new(&Survey { spares: spares(), ..survey(&[1, 2, 3, 5, 6, 9], &[4], &lines) }), [0, 0, 0]);
}
