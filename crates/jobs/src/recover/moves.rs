//! Slots that were on their way, key by key, between a living shard and one that was lost. Pure.
//!
//! Each side of such a move keeps the other's node id (`importing_slots_from`, `migrating_slots_to` in `src/cluster_legacy.c`), and only the
//! living side can be asked. After the lost side has been replaced, the ids are wrong until they are set anew.

use slotkeep_model::{NodeId, Role, Slot, SlotSet};

use super::claims::holdings;
use super::facts::{SeenNode, Survey, Word};
use super::plan::{Remedy, ShardPlan};
use crate::restore::files::JoiningMove;

/// A move whose one side does not know the other as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) slot: Slot,
    /// Who holds the slot and gives it away.
    pub(super) from: NodeId,
    /// Who takes it.
    pub(super) to: NodeId,
    /// Whether the one that holds it took the place of a lost one: it may hold older copies of keys that have gone over.
    pub(super) was_lost: bool,
    /// Whether the one that takes it has to be told from whom.
    pub(super) takes_anew: bool,
}

/// The moves between nodes that answer of which one side names a node that is not the other side, or the side that takes knows nothing
/// of: newer servers forget what they import when its owner changes (Valkey 8.0). One that only the side that takes knows of is
/// none of them: that is how moves begin.
pub(super) fn broken(survey: &Survey) -> Vec<Broken> {
    let mut found: Vec<Broken> = Vec::new();
    for (node, word) in primaries(survey) {
        let Some(row) = word.own_row() else { continue };
        for (slot, source) in &row.importing {
            let Some(owner) = owner_of(survey, *slot).filter(|owner| **owner != node.id) else { continue };
            let given = survey.word(owner).and_then(Word::own_row).map(|row| row.migrating.as_slice());
            let to_another = |(given, to): &(Slot, NodeId)| given == slot && *to != node.id;
            if source != owner || given.unwrap_or_default().iter().any(to_another) {
                let was_lost = source != owner;
                found.push(Broken {
                    slot: *slot,
                    from: owner.clone(),
                    to: node.id.clone(),
                    was_lost,
                    takes_anew: was_lost,
                });
            }
        }
        for (slot, to) in row.migrating.iter().filter(|(slot, _)| owner_of(survey, *slot) == Some(&node.id)) {
            let taker =
                primaries(survey).find(|(other, _)| other.id == *to).and_then(|(_, word)| word.own_row());
            if taker.is_some_and(|row| row.importing.iter().all(|(known, _)| known != slot)) {
                found.push(Broken {
                    slot: *slot,
                    from: node.id.clone(),
                    to: to.clone(),
                    was_lost: false,
                    takes_anew: true,
                });
            }
        }
    }
    found
}

/// Newer servers pass their moves on to their replicas (Valkey 8.0), which take no part in them.
fn primaries(survey: &Survey) -> impl Iterator<Item = (&SeenNode, &Word)> {
    survey.words().filter(|(_, word)| word.role == Role::Primary)
}

/// The only node that answers and calls the slot its own.
fn owner_of(survey: &Survey, slot: Slot) -> Option<&NodeId> {
    let mut owners =
        survey.words().filter(|(_, word)| word.own_slots().contains(slot)).map(|(node, _)| &node.id);
    let owner = owners.next()?;
    owners.next().is_none().then_some(owner)
}

/// The slots whose moves are to be set anew, now or once the plan's shards are back: those that were leaving a lost shard, and all.
pub(super) fn interrupted_moves(survey: &Survey, shards: &[ShardPlan]) -> (SlotSet, SlotSet) {
    let (now, then) = (broken(survey), with_lost(survey, shards));
    let leaving = now.iter().filter(|one| one.was_lost).map(|one| one.slot);
    let leaving = leaving.chain(then.iter().filter(|one| one.leaving).map(|one| one.slot)).collect();
    let all = now.iter().map(|one| one.slot).chain(then.iter().map(|one| one.slot)).collect();
    (leaving, all)
}

/// The moves between living shards and those that are to be restored or promoted, as new nodes have to know them.
pub(super) fn with_lost(survey: &Survey, shards: &[ShardPlan]) -> Vec<JoiningMove> {
    let mut moves = Vec::new();
    let coming = |slots: &SlotSet| {
        let shard = shards.iter().find(|shard| shard.slots == *slots);
        shard.is_some_and(|shard| matches!(shard.remedy, Remedy::Restore { .. } | Remedy::Promote { .. }))
    };
    for holding in holdings(survey) {
        let Some(lost) = holding.silent.as_ref().filter(|_| coming(&holding.slots)) else { continue };
        let Some(first) = holding.slots.iter().next() else { continue };
        for (node, word) in primaries(survey) {
            let Some(row) = word.own_row() else { continue };
            let one =
                |slot: Slot, leaving| JoiningMove { slot, other: node.id.clone(), shard: first, leaving };
            let taken =
                row.importing.iter().filter(|(slot, from)| from == lost && holding.slots.contains(*slot));
            moves.extend(taken.map(|(slot, _)| one(*slot, true)));
            let given = row.migrating.iter().filter(|(slot, to)| to == lost && row.slots.contains(*slot));
            moves.extend(given.map(|(slot, _)| one(*slot, false)));
        }
    }
    moves
}
