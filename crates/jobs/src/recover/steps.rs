//! The steps of a plan, with what can go wrong in each.

use slotkeep_model::{NodeId, SlotSet};

use super::archive::Held;
use super::facts::{SpareState, Survey};
use super::moves::interrupted_moves;
use super::plan::{Emptied, How, Remedy, ShardPlan, Step, StepKind};

/// How long an election takes, in ms: a manual failover needs no timeout of a node.
const ELECTION_MS: u64 = 2_000;
/// How long a short log takes, in ms.
const APPLY_MS: u64 = 1_000;
/// How long a node is watched before it is emptied, in ms.
const EMPTY_MS: u64 = 1_000;
/// How long it takes until all nodes agree, in ms.
const AGREE_MS: u64 = 4_000;

/// What is to be done, in order: promotions first, as they are quick and may give the cluster its majority back.
pub(super) fn steps(
    survey: &Survey,
    held: &Held,
    shards: &[ShardPlan],
    returned: &[(NodeId, NodeId)],
    forgotten: Vec<NodeId>,
    left: Vec<Emptied>,
) -> Vec<Step> {
    let mut steps: Vec<Step> = shards.iter().filter_map(|shard| fence(survey, shard)).collect();
    steps.extend(shards.iter().filter_map(promotion));
    let restored: Vec<&ShardPlan> = shards
        .iter()
        .filter(|shard| matches!(shard.remedy, Remedy::Restore { running: false, .. }))
        .collect();
    let filled: Vec<&ShardPlan> =
        shards.iter().filter(|shard| matches!(shard.remedy, Remedy::Restore { running: true, .. })).collect();
    let replicas: Vec<&ShardPlan> = shards.iter().filter(|shard| !shard.new_replicas.is_empty()).collect();
    let joins = shards.iter().any(|shard| matches!(shard.remedy, Remedy::Join { .. }));
    let alone = survey.words().next().is_none();
    if !left.is_empty() {
        steps.push(emptying(left));
    }
    if !restored.is_empty() {
        steps.push(restoration(held, &restored, alone));
    }
    // Replicas that are started are told of by the step that starts them.
    let admits = replicas
        .iter()
        .flat_map(|shard| &shard.new_replicas)
        .any(|addr| survey.spares.iter().any(|(spare, state)| spare == addr && *state != SpareState::Free));
    if !filled.is_empty() {
        steps.push(filling(held, &filled));
    }
    if (!restored.is_empty() && !alone) || joins || !filled.is_empty() || admits {
        steps.push(join());
    }
    steps.extend(replicas.into_iter().map(new_replicas));
    let (leaving, moving) = interrupted_moves(survey, shards);
    if !moving.is_empty() {
        steps.push(moves(moving, leaving));
    }
    steps.extend(returned.iter().map(|(node, primary)| attachment(survey, node, primary)));
    let starts_whole = alone && steps.len() == 1;
    let only_fences = steps.iter().all(|step| matches!(step.kind, StepKind::Fence { .. }));
    if !only_fences && !starts_whole {
        steps.push(settle());
    }
    if !forgotten.is_empty() {
        steps.push(forgetting(survey, forgotten));
    }
    steps
}

fn fence(survey: &Survey, shard: &ShardPlan) -> Option<Step> {
    let Remedy::Fence { others, .. } = &shard.remedy else { return None };
    let names: Vec<String> = others.iter().map(|id| survey.name(id)).collect();
    Some(Step {
        kind: StepKind::Fence { nodes: others.clone() },
        what: format!("keep {} from taking writes (min-replicas-to-write)", names.join(", ")),
        risk: "its clients get errors (-NOREPLICAS). What was set before is kept in the repository: `slotkeep fence --undo` puts it back".to_owned(),
        expected_ms: 0,
    })
}

fn promotion(shard: &ShardPlan) -> Option<Step> {
    let Remedy::Promote { node, addr, how } = &shard.remedy else { return None };
    let risk = match how {
        How::Graceful => "if the primary does not hand over within its time limit, nothing has changed",
        How::Force => {
            "if the other primaries refuse their votes, nothing has changed. The old primary, when it is back, becomes a replica of the new one and drops \
             what only it has: copy its data directory before it is started, if that matters"
        }
        How::Takeover => {
            "it takes the slots without a vote, for a majority of primaries does not live: if the others do live, out of reach from here, they may have \
             promoted another node. The old primary, when it is back, becomes a replica of the new one and drops what only it has: copy its data \
             directory before it is started, if that matters"
        }
    };
    Some(Step {
        kind: StepKind::Promote { node: node.clone(), slots: shard.slots.clone(), how: *how },
        what: format!("make {addr} the primary of slots {} ({})", shard.slots, how.command()),
        risk: risk.to_owned(),
        expected_ms: ELECTION_MS,
    })
}

fn restoration(held: &Held, shards: &[&ShardPlan], alone: bool) -> Step {
    let (bytes, nodes) = (bytes_of(shards), nodes_of(shards));
    let slots: Vec<String> = shards.iter().map(|shard| shard.slots.to_string()).collect();
    let (kind, what) = if alone {
        (
            StepKind::RestoreAll,
            format!("restore the whole cluster from the repository and start it at {}", nodes.join(", ")),
        )
    } else {
        let kind = StepKind::Restore { shards: shards.iter().map(|shard| shard.slots.clone()).collect() };
        (
            kind,
            format!(
                "restore slots {} from the repository and start their nodes at {}",
                slots.join(" and "),
                nodes.join(", ")
            ),
        )
    };
    let risk = if alone {
        "if it fails, none of the new nodes runs. Old nodes that come back later, or live out of reach from here, are a cluster of their own: keep them \
         down, or fence them"
    } else {
        "if it fails, none of the new nodes runs and the cluster is as it was. If an old node of these slots comes back meanwhile, the next step is not \
         done: the new nodes stay by themselves, and you choose"
    };
    Step { kind, what, risk: risk.to_owned(), expected_ms: held.estimate.ms(bytes) }
}

fn emptying(nodes: Vec<Emptied>) -> Step {
    let names: Vec<String> = nodes
        .iter()
        .map(|Emptied { addr, slots, keys, .. }| {
            let slots = if slots.is_empty() { "no slots".to_owned() } else { format!("slots {slots}") };
            format!("{addr} ({keys} keys, {slots})")
        })
        .collect();
    Step {
        what: format!(
            "make {} empty, which knows nobody and which you have named (--refill: FLUSHALL, CLUSTER RESET HARD)",
            names.join(" and ")
        ),
        kind: StepKind::Empty { nodes },
        risk: "everything that it holds is deleted, whoever put it there: be sure that it was a run of this command, and that this run is over"
            .to_owned(),
        expected_ms: EMPTY_MS,
    }
}

fn filling(held: &Held, shards: &[&ShardPlan]) -> Step {
    let (bytes, nodes) = (bytes_of(shards), nodes_of(shards));
    let slots: Vec<String> = shards.iter().map(|shard| shard.slots.to_string()).collect();
    Step {
        kind: StepKind::Fill { shards: shards.iter().map(|shard| shard.slots.clone()).collect() },
        what: format!(
            "restore slots {} from the repository into the empty nodes {} (CLUSTER ADDSLOTS, RESTORE)",
            slots.join(" and "),
            nodes.join(", ")
        ),
        risk: "if it fails, these nodes are made empty again (FLUSHALL, CLUSTER RESET HARD) and the cluster is as it was. If an old node of these slots \
               comes back meanwhile, the next step is not done: the new nodes stay by themselves, and you choose"
            .to_owned(),
        expected_ms: held.estimate.ms(bytes),
    }
}

fn new_replicas(shard: &ShardPlan) -> Step {
    let nodes: Vec<String> = shard.new_replicas.iter().map(ToString::to_string).collect();
    Step {
        kind: StepKind::Replicas { slots: shard.slots.clone(), nodes: shard.new_replicas.clone() },
        what: format!("make {} replicas of the primary of slots {}", nodes.join(", "), shard.slots),
        risk: "each takes a snapshot from its primary, which costs that a fork. Old replicas that come back are replicas again: the shard then has more"
            .to_owned(),
        expected_ms: AGREE_MS,
    }
}

fn bytes_of(shards: &[&ShardPlan]) -> u64 {
    let bytes = shards.iter().filter_map(|shard| shard.archive.as_ref());
    bytes.fold(0_u64, |sum, reach| sum.saturating_add(reach.rdb_bytes).saturating_add(reach.log_bytes))
}

fn nodes_of(shards: &[&ShardPlan]) -> Vec<String> {
    let nodes = shards.iter().filter_map(|shard| match &shard.remedy {
        Remedy::Restore { nodes, .. } => Some(nodes.iter().map(ToString::to_string)),
        _ => None,
    });
    nodes.flatten().collect()
}

fn join() -> Step {
    Step {
        kind: StepKind::Join,
        what: "tell every living node of the new ones (CLUSTER MEET)".to_owned(),
        risk: "from here on the new nodes serve their slots. Old nodes of these slots, when they are back, become their replicas and drop what they have: \
               copy their data directories before they are started, if that matters"
            .to_owned(),
        expected_ms: AGREE_MS,
    }
}

fn moves(slots: SlotSet, leaving: SlotSet) -> Step {
    Step {
        what: format!("put slots {slots}, which were on their way from or to a lost node, on their way again (CLUSTER SETSLOT)"),
        kind: StepKind::Moves { slots, leaving },
        risk: "keys that both sides hold are deleted where they were leaving: the other side's are newer. The moves are not finished: do that as usual"
            .to_owned(),
        expected_ms: AGREE_MS,
    }
}

fn attachment(survey: &Survey, node: &NodeId, primary: &NodeId) -> Step {
    Step {
        kind: StepKind::Attach { node: node.clone(), primary: primary.clone() },
        what: format!(
            "make {}, which came back without slots, a replica of {} (CLUSTER REPLICATE)",
            survey.name(node),
            survey.name(primary)
        ),
        risk: "it takes a snapshot from its primary, which costs that a fork".to_owned(),
        expected_ms: AGREE_MS,
    }
}

fn forgetting(survey: &Survey, nodes: Vec<NodeId>) -> Step {
    let names: Vec<String> = nodes.iter().map(|id| survey.name(id)).collect();
    Step {
        what: format!("make all nodes forget {} (CLUSTER FORGET)", names.join(", ")),
        kind: StepKind::Forget { nodes },
        risk: "one that comes back introduces itself again, and becomes a replica a second later than one that is not forgotten".to_owned(),
        expected_ms: 0,
    }
}

/// What is applied to new primaries: last, as nothing else waits for it.
pub(super) fn tails<'a>(survey: &'a Survey, shards: &'a [ShardPlan]) -> impl Iterator<Item = Step> + 'a {
    shards.iter().filter_map(|shard| {
        let tail = shard.tail.as_ref()?;
        let node = match &shard.remedy {
            Remedy::Promote { node, .. } => node.clone(),
            _ => survey.words().find(|(_, word)| word.own_slots() == shard.slots)?.0.id.clone(),
        };
        Some(Step {
            what: format!(
                "apply to {} what the repository holds behind offset {} of history {}: {}",
                survey.name(&node),
                tail.after,
                tail.history,
                tail.in_words()
            ),
            kind: StepKind::ApplyTail { node, slots: shard.slots.clone() },
            risk: "the commands are older than what the node has taken since: with --apply-tail nothing is applied if it has taken any, with \
                   --apply-tail=anyway they go on top. A key whose time has passed meanwhile is gone before later commands meet it"
                .to_owned(),
            expected_ms: APPLY_MS,
        })
    })
}

fn settle() -> Step {
    Step {
        kind: StepKind::Settle,
        what: "wait until all nodes agree who serves which slot".to_owned(),
        risk: "none: nothing is changed".to_owned(),
        expected_ms: AGREE_MS,
    }
}
