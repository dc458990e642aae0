//! What the repository holds of the shards, and how long it takes to bring them back.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::ShardState;
use slotkeep_model::{NodeId, ReplId, Role, SlotSet};

use super::claims::{holdings, replicas_of};
use super::facts::Survey;
use crate::log::Past;
use crate::log::chain::Place;
use crate::log::point::shards::{Lack, Reach, lack, reach, recorded_shard};
use crate::log::tail::{Tail, tail};
use crate::{Context, Result};

/// How fast a dataset comes back where no drill has measured it, in bytes of base and log a second: what a stock server loads of an RDB on
/// one core, halved.
const BYTES_PER_S: u64 = 80 << 20;
/// How long it takes to start nodes and to have them agree, in ms.
const START_MS: u64 = 6_000;

/// What the repository holds.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Of each shard that is not served: the shard as it was recorded, and how far its log leads, or why it leads nowhere.
    pub(super) shards: Vec<(SlotSet, Option<ShardState>, Result<Reach, String>)>,
    /// What nodes lack that could be promoted.
    pub(super) lacks: BTreeMap<NodeId, Option<Lack>>,
    /// The log behind what nodes have that could be promoted, or have been.
    pub(super) tails: BTreeMap<NodeId, Tail>,
    /// How long it takes to bring a shard back.
    pub(super) estimate: Estimate,
    /// The time of day.
    pub(super) now: Option<Timestamp>,
    /// Whether there is a repository.
    pub(super) given: bool,
}

/// How long a restore takes, by what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Bytes of base and log a second.
    pub bytes_per_s: u64,
    /// What it takes however small they are, in ms.
    pub start_ms: u64,
    /// Whether a drill has measured it.
    pub measured: bool,
}

impl Default for Estimate {
    fn default() -> Self {
        Self { bytes_per_s: BYTES_PER_S, start_ms: START_MS, measured: false }
    }
}

impl Estimate {
    /// By a drill that brought back so many bytes in so long a time.
    pub(super) fn of_drill(bytes: u64, rto_ms: u64) -> Self {
        let data_ms = rto_ms.saturating_sub(START_MS).max(1);
        let measured = bytes.saturating_mul(1000).checked_div(data_ms).unwrap_or(BYTES_PER_S);
        // A small dataset tells more about starting than about bytes.
        let bytes_per_s = if bytes < BYTES_PER_S { BYTES_PER_S } else { measured.max(1) };
        Self { bytes_per_s, start_ms: START_MS.min(rto_ms), measured: true }
    }

    /// How long so many bytes take, in ms.
    pub fn ms(&self, bytes: u64) -> u64 {
        let data = bytes.saturating_mul(1000).checked_div(self.bytes_per_s.max(1)).unwrap_or(0);
        self.start_ms.saturating_add(data)
    }
}

/// Looks up what the repository holds of shards that are not served, and what replicas without a primary lack.
/// `promoted` says of which primaries the log behind the place is wanted at which they took over.
pub(super) async fn held(
    context: &Context,
    past: Option<&Arc<Past>>,
    survey: &Survey,
    promoted: impl Fn(&NodeId) -> bool,
) -> Result<Held> {
    let now = Some(context.clock.now());
    let Some(past) = past else { return Ok(Held { now, ..Held::default() }) };
    let mut held = Held { now, given: true, estimate: estimate(past).await?, ..Held::default() };
    for holding in holdings(survey) {
        if let ([owner], None) = (holding.claimants.as_slice(), &holding.silent) {
            let word = survey.word(owner).filter(|_| promoted(owner));
            if let Some((word, fork)) = word.and_then(|word| Some((word, word.former.as_ref()?))) {
                held.add_tail(context, past, owner, (fork, Some(&word.history))).await;
            }
            continue;
        }
        let recorded = recorded_shard(&survey.recorded.shards, &holding.slots).cloned();
        let Some(state) = recorded else {
            let why = "the repository knows of no shard with these slots".to_owned();
            held.shards.push((holding.slots, None, Err(why)));
            continue;
        };
        let reached = context.unless_stopped(reach(past, &state)).await.map_err(|error| error.to_string());
        for id in holding.silent.iter().flat_map(|primary| replicas_of(survey, primary)) {
            let Some(word) = survey.word(&id).filter(|word| word.role == Role::Replica) else { continue };
            let found = context.unless_stopped(lack(past, &state, (&word.history, word.offset))).await;
            let found = found.unwrap_or(None);
            if found.is_some_and(|lack| lack.writes) {
                let place = Place { history: word.history.clone(), offset: word.offset };
                held.add_tail(context, past, &id, (&place, None)).await;
            }
            held.lacks.insert(id, found);
        }
        held.shards.push((holding.slots, Some(state), reached));
    }
    Ok(held)
}

/// By the last drill that came to its end, if there was one.
async fn estimate(past: &Past) -> Result<Estimate> {
    let repository = past.repository();
    for id in repository.verification_ids(&past.cluster).await?.iter().rev() {
        // A record that can't be read is no reason not to recover.
        let Ok(record) = repository.verification(&past.cluster, id).await else { continue };
        let Some(drill) = record.drill else { continue };
        let backup = past.backups.iter().find(|backup| backup.id == drill.backup);
        if let (Some(rto_ms), Some(backup)) = (drill.rto_ms, backup) {
            let bytes = backup.shards.iter().map(|shard| shard.base.rdb.raw_bytes);
            return Ok(Estimate::of_drill(bytes.fold(0, u64::saturating_add), rto_ms));
        }
    }
    Ok(Estimate::default())
}

impl Held {
    /// A log that can't be read is no reason not to recover: it is seen to when it is to be applied.
    async fn add_tail(
        &mut self,
        context: &Context,
        past: &Arc<Past>,
        node: &NodeId,
        (place, own): (&Place, Option<&ReplId>),
    ) {
        if let Ok(Some(tail)) = tail(context, past, place, own).await {
            self.tails.insert(node.clone(), tail);
        }
    }

    /// What the repository holds of the shard with those slots.
    pub(super) fn of(
        &self,
        slots: &SlotSet,
    ) -> Option<&(SlotSet, Option<ShardState>, Result<Reach, String>)> {
        self.shards.iter().find(|(known, _, _)| known == slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_gives_the_rate_where_its_data_was_large_enough() {
        let small = Estimate::of_drill(1 << 20, 4_000);
        assert_eq!((small.bytes_per_s, small.start_ms, small.measured), (BYTES_PER_S, 4_000, true));
        let large = Estimate::of_drill(10 << 30, START_MS + 100_000);
        assert_eq!(large.bytes_per_s, (10 << 30) / 100);
        assert_eq!(large.ms(10 << 30), START_MS + 100_000);
        assert_eq!(Estimate::default().ms(0), START_MS);
    }
}
