//! Who holds which slots: what reachable nodes claim themselves, and what is said of those that can't be reached.
//!
//! A node's own word goes before all others' about it. Of two claims, the one with the higher config epoch counts, as it does for the servers
//! (`clusterUpdateSlotsConfigWith` in `src/cluster_legacy.c`).

use std::collections::{BTreeMap, BTreeSet};

use slotkeep_model::{NodeId, Role, Slot, SlotSet};

use super::facts::Survey;

/// Slots that are held alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) slots: SlotSet,
    /// Reachable nodes that call the slots their own.
    pub(super) claimants: Vec<NodeId>,
    /// The silent node to which the highest claim belongs, if that is higher than every claimant's, or there is none.
    pub(super) silent: Option<NodeId>,
}

/// What is claimed for one node.
struct Claim {
    epoch: u64,
    reached: bool,
    slots: SlotSet,
}

/// Every slot, by who holds it; in the order of first slots.
pub(super) fn holdings(survey: &Survey) -> Vec<Holding> {
    let claims = claims(survey);
    let mut grouped: BTreeMap<(Vec<NodeId>, Option<NodeId>), Vec<Slot>> = BTreeMap::new();
    let tables: Vec<(&NodeId, &Claim, Vec<bool>)> =
        claims.iter().map(|(id, claim)| (id, claim, table(&claim.slots))).collect();
    for slot in Slot::all() {
        let on = tables.iter().filter(|(_, _, table)| table.get(slot.index()).copied().unwrap_or(false));
        let (mut claimants, mut highest) = (Vec::new(), None);
        let mut silent: Option<(u64, &NodeId)> = None;
        for (id, claim, _) in on {
            if claim.reached {
                claimants.push((*id).clone());
                highest = highest.max(Some(claim.epoch));
            } else {
                silent = silent.max(Some((claim.epoch, id)));
            }
        }
        let silent = silent.filter(|(epoch, _)| highest.is_none_or(|highest| *epoch > highest));
        grouped.entry((claimants, silent.map(|(_, id)| id.clone()))).or_default().push(slot);
    }
    let mut holdings: Vec<Holding> = grouped
        .into_iter()
        .flat_map(|((claimants, silent), slots)| {
            let slots: SlotSet = slots.into_iter().collect();
            if claimants.is_empty() && silent.is_none() {
                return of_repository(survey, &slots);
            }
            vec![Holding { slots, claimants, silent }]
        })
        .collect();
    holdings.sort_by_key(|holding| holding.slots.ranges().first().copied());
    merge(holdings)
}

/// Slots that nobody claims, by the shards that the repository saw them in.
fn of_repository(survey: &Survey, slots: &SlotSet) -> Vec<Holding> {
    let mut left: BTreeSet<Slot> = slots.iter().collect();
    let mut holdings = Vec::new();
    for shard in &survey.recorded.shards {
        let own: SlotSet = shard.slots.intersection(slots);
        if own.is_empty() {
            continue;
        }
        own.iter().for_each(|slot| {
            left.remove(&slot);
        });
        // A node that answers has said that the slots are not its own.
        let silent = shard.primary.id.clone().filter(|id| survey.word(id).is_none());
        holdings.push(Holding { slots: own, claimants: vec![], silent });
    }
    if !left.is_empty() {
        holdings.push(Holding { slots: left.into_iter().collect(), claimants: vec![], silent: None });
    }
    holdings
}

/// Slots of one silent node that some nodes still know of and others don't belong together.
fn merge(holdings: Vec<Holding>) -> Vec<Holding> {
    let mut merged: Vec<Holding> = Vec::new();
    for holding in holdings {
        let alike = |other: &&mut Holding| {
            other.claimants == holding.claimants
                && other.silent == holding.silent
                && (!holding.claimants.is_empty() || holding.silent.is_some())
        };
        match merged.iter_mut().find(alike) {
            Some(other) => {
                let ranges = other.slots.ranges().iter().chain(holding.slots.ranges());
                other.slots = ranges.copied().collect();
            }
            None => merged.push(holding),
        }
    }
    merged
}

fn claims(survey: &Survey) -> BTreeMap<NodeId, Claim> {
    let mut claims: BTreeMap<NodeId, Claim> = BTreeMap::new();
    for (node, word) in survey.words() {
        let epoch = word.own_row().map_or(0, |row| row.config_epoch);
        let slots = word.own_slots();
        if !slots.is_empty() {
            claims.insert(node.id.clone(), Claim { epoch, reached: true, slots });
        }
    }
    for (_, word) in survey.words() {
        for row in word.rows.iter().filter(|row| row.role == Some(Role::Primary) && !row.slots.is_empty()) {
            if survey.word(&row.id).is_some() {
                continue;
            }
            let claim = claims.entry(row.id.clone()).or_insert_with(|| Claim {
                epoch: row.config_epoch,
                reached: false,
                slots: SlotSet::default(),
            });
            // What was said with the highest epoch was said last.
            if row.config_epoch > claim.epoch {
                claim.slots = row.slots.clone();
                claim.epoch = row.config_epoch;
            } else if row.config_epoch == claim.epoch {
                claim.slots = claim.slots.ranges().iter().chain(row.slots.ranges()).copied().collect();
            }
        }
    }
    claims
}

fn table(slots: &SlotSet) -> Vec<bool> {
    let mut table = vec![false; usize::from(Slot::COUNT)];
    for slot in slots.iter() {
        if let Some(place) = table.get_mut(slot.index()) {
            *place = true;
        }
    }
    table
}

/// The replicas of a node: those that say so, and the silent ones that were its replicas by what was said of them last.
pub(super) fn replicas_of(survey: &Survey, primary: &NodeId) -> Vec<NodeId> {
    let mut replicas: BTreeSet<NodeId> = BTreeSet::new();
    for (node, word) in survey.words() {
        if word.role == Role::Replica && word.follows() == Some(primary) {
            replicas.insert(node.id.clone());
        }
        for row in word.rows.iter().filter(|row| row.role == Some(Role::Replica)) {
            if row.primary.as_ref() == Some(primary) && survey.word(&row.id).is_none() {
                replicas.insert(row.id.clone());
            }
        }
    }
    let recorded = survey.recorded.shards.iter().filter(|shard| shard.primary.id.as_ref() == Some(primary));
    let unknown = |id: &NodeId| !survey.words().any(|(_, word)| word.rows.iter().any(|row| row.id == *id));
    replicas.extend(
        recorded.flat_map(|shard| &shard.replicas).filter_map(|replica| replica.id.clone()).filter(unknown),
    );
    replicas.remove(primary);
    replicas.into_iter().collect()
}
