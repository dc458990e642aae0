//! What backups of append-only files tell of the past: when their shards ended where, and which histories are those of one shard's file.
//!
//! Each generation of a file is a history of its own ([`crate::backup`]), and no topology was written for it. So where nothing but such backups is
//! kept, they themselves show how the cluster looked; and at a moment, a shard is at the newest of its generations that had begun by then.

use std::collections::BTreeMap;

use slotkeep_format::lineage::TOPOLOGY_VERSION;
use slotkeep_format::{Manifest, ShardState, TimeSample, TopologyRecord};
use slotkeep_model::{ReplId, SlotSet};

use super::past::Past;
use super::times::Times;
use crate::Result;

/// What the backups of append-only files tell.
#[derive(Debug, Default)]
pub(super) struct FileLines {
    /// When each history had come so far, as the backups say that ended there.
    ends: BTreeMap<ReplId, Vec<TimeSample>>,
    /// The slots of each history's shard, the one that was read last at the end.
    slots: Vec<(ReplId, SlotSet)>,
}

impl FileLines {
    /// Of backups, the oldest first.
    pub(super) fn of(backups: &[Manifest]) -> Self {
        let mut lines = Self::default();
        for shard in backups.iter().flat_map(|backup| &backup.shards) {
            let Some(read) = shard.read.as_ref().filter(|read| read.aof.is_some()) else { continue };
            let cut = shard.cut();
            let sample = TimeSample {
                from_ms: read.from.as_millisecond(),
                // Not earlier than that fraction of a millisecond.
                until_ms: read.until.as_millisecond().saturating_add(1),
                offset: cut.offset,
            };
            lines.slots.retain(|(known, _)| *known != cut.history);
            lines.slots.push((cut.history.clone(), shard.slots.clone()));
            lines.ends.entry(cut.history).or_default().push(sample);
        }
        lines
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// When a history had come so far.
    pub(super) fn ends(&self, history: &ReplId) -> &[TimeSample] {
        self.ends.get(history).map(Vec::as_slice).unwrap_or_default()
    }

    /// The histories of a shard's files, the one that was read last first, if that history is one of them; else none.
    pub(super) fn like(&self, history: &ReplId) -> Vec<&ReplId> {
        let own = self.slots.iter().find(|(known, _)| known == history);
        let Some((_, slots)) = own else { return vec![] };
        let same = self.slots.iter().rev().filter(|(_, other)| other == slots);
        same.map(|(history, _)| history).collect()
    }
}

/// How the cluster looked, as far as backups of append-only files show it. In between, nobody looked.
pub(super) fn topologies(backups: &[Manifest]) -> Vec<TopologyRecord> {
    let of_files = backups.iter().filter(|backup| backup.shards.iter().all(|shard| shard.aof().is_some()));
    let mut seen: Vec<TopologyRecord> = Vec::new();
    let mut before = None;
    for backup in of_files {
        let shards = backup.shards.iter().map(|shard| ShardState {
            slots: shard.slots.clone(),
            importing: SlotSet::default(),
            migrating: SlotSet::default(),
            unfollowed: SlotSet::default(),
            config_epoch: shard.config_epoch,
            primary: shard.primary.clone(),
            replicas: shard.replicas.clone(),
            history: Some(shard.cut().history),
            offset: None,
        });
        seen.push(TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: backup.id.clone(),
            seen_at: backup.started_at,
            as_before_until: before.replace(backup.finished_at),
            cluster_mode: backup.cluster_mode,
            current_epoch: backup.current_epoch,
            shards: shards.collect(),
        });
    }
    seen
}

/// The history that a shard was in at a moment: of the generations of its file the newest that had begun by then. Histories of replication stay what
/// they are.
pub(super) async fn line_at(past: &Past, history: ReplId, moment_ms: i64) -> Result<ReplId> {
    for line in past.files.like(&history) {
        let first = Times::on(past, &past.chain.path(line)).first_with(0).await?;
        if first.is_some_and(|first| first.until_ms <= moment_ms) {
            return Ok(line.clone());
        }
    }
    Ok(history)
}

/// Samples of one history, each as narrow as the others make it: a byte was there when a later one was, and what is behind a place is behind
/// those before it.
pub(super) fn narrowed(mut samples: Vec<TimeSample>) -> Vec<TimeSample> {
    samples.sort_by_key(|sample| (sample.offset, sample.until_ms));
    let mut until_ms = i64::MAX;
    for sample in samples.iter_mut().rev() {
        until_ms = until_ms.min(sample.until_ms);
        sample.until_ms = until_ms;
    }
    let mut from_ms = i64::MIN;
    for sample in &mut samples {
        from_ms = from_ms.max(sample.from_ms);
        // A clock that was set back contradicts itself.
        sample.from_ms = from_ms.min(sample.until_ms);
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_narrow_each_other() {
        let sample = |offset, from_ms, until_ms| TimeSample { from_ms, until_ms, offset };
        let narrowed = narrowed(vec![
            sample(10, 100, 900),
            sample(10, 500, 500),
            sample(20, 300, 700),
            sample(20, 600, 800),
            sample(30, 790, 800),
        ]);
        assert_eq!(
            narrowed,
            [
                sample(10, 500, 500),
                sample(10, 500, 700),
                sample(20, 500, 700),
                sample(20, 600, 800),
                sample(30, 790, 800),
            ]
        );
    }
}
