//! What runs leave that are broken off while they fill a node that runs. Pure.
//!
//! Such a node is alone, calls exactly the slots of a lost shard its own, and has a config epoch above the one that the shard had. A person who
//! brings a shard back by hand makes one that looks the same, and what that holds may be all there is. So it is emptied only if it
//! is named, and one that differs not even then.

use slotkeep_model::{NodeAddr, Role, SlotSet};

use super::facts::{LeftNode, SpareState, Survey};
use super::judge::Wishes;
use super::plan::{Emptied, Remedy, ShardPlan};
use crate::log::point::shards::recorded_shard;

/// The same survey, in which what was left counts as empty if it is to be emptied, and else as taken. `restored` are the slots of shards that
/// are to be restored.
pub(super) fn settled(survey: &Survey, restored: &[&SlotSet], wishes: &Wishes) -> Survey {
    let settle = |(addr, state): &(NodeAddr, SpareState)| {
        let state = match state {
            SpareState::Left(left) => state_of((addr, left), (survey, restored), wishes),
            other => other.clone(),
        };
        (addr.clone(), state)
    };
    Survey { spares: survey.spares.iter().map(settle).collect(), ..survey.clone() }
}

fn state_of(
    (addr, left): (&NodeAddr, &LeftNode),
    (survey, restored): (&Survey, &[&SlotSet]),
    wishes: &Wishes,
) -> SpareState {
    let found = description(left);
    let named = wishes.refill.contains(addr);
    SpareState::Taken(match difference(left, survey, restored) {
        None if named => return SpareState::Empty(left.node.clone()),
        None => format!(
            "{found}, as a run leaves it that was broken off while it filled it: if that may go, `--refill {addr}` empties it and fills it anew"
        ),
        Some(why) => {
            let refused = if named { format!(" (--refill does not empty it: {why})") } else { String::new() };
            format!("{found}{refused}: if that may go, FLUSHALL and CLUSTER RESET HARD there")
        }
    })
}

fn description(LeftNode { node, slots, epoch, keys }: &LeftNode) -> String {
    let id = &node.id;
    if slots.is_empty() {
        return format!(
            "a node runs there (id {id}) that has a config epoch ({epoch}) from something earlier"
        );
    }
    format!(
        "a node runs there (id {id}) that knows nobody, holds {keys} keys and calls slots {slots} its own"
    )
}

/// In what a node differs from what a run leaves that fills it with one of those shards.
fn difference(left: &LeftNode, survey: &Survey, restored: &[&SlotSet]) -> Option<String> {
    let slots = &left.slots;
    // Between the epoch and the slots.
    if slots.is_empty() {
        return None;
    }
    if !restored.contains(&slots) {
        return Some("these are not the slots of a shard that is to be restored".to_owned());
    }
    let recorded = recorded_shard(&survey.recorded.shards, slots).map(|shard| shard.config_epoch);
    let rows = survey.words().flat_map(|(_, word)| &word.rows);
    let said = rows
        .filter(|row| row.role == Some(Role::Primary) && !row.slots.intersection(slots).is_empty())
        .map(|row| row.config_epoch);
    let before = said.chain(recorded).max().unwrap_or(0);
    (left.epoch <= before).then(|| {
        format!("its config epoch ({}) is not above the one that the shard had ({before})", left.epoch)
    })
}

/// The nodes that are to be emptied, as they are used for something.
pub(super) fn emptied(survey: &Survey, shards: &[ShardPlan]) -> Vec<Emptied> {
    let is_used = |addr: &NodeAddr| {
        shards.iter().any(|shard| {
            let restored = matches!(&shard.remedy, Remedy::Restore { nodes, .. } if nodes.contains(addr));
            restored || shard.new_replicas.contains(addr)
        })
    };
    let used = survey.spares.iter().filter(|(addr, _)| is_used(addr));
    used.filter_map(|(addr, state)| match state {
        SpareState::Left(LeftNode { node, slots, keys, .. }) => {
            Some(Emptied { addr: addr.clone(), id: node.id.clone(), slots: slots.clone(), keys: *keys })
        }
        _ => None,
    })
    .collect()
}
