//! How the cluster looked at a moment.

use jiff::Timestamp;
use slotkeep_format::manifest::{BackupKind, FORMAT_VERSION, RoleRecord, ShardRecord};
use slotkeep_format::{Manifest, ShardState, TopologyRecord};
use slotkeep_model::{ReplId, SlotSet};

use super::doubt::mark_moves;
use super::{Past, ShardPoint};
use crate::log::windows::Moments;
use crate::{Error, ErrorKind, Result};

/// A cluster, from a topology that was seen or, where none was, from a backup.
pub(in crate::log) struct View {
    cluster_mode: bool,
    current_epoch: u64,
    pub(in crate::log) shards: Vec<ShardState>,
}

impl View {
    /// The cluster as it was seen last at that moment; as it was seen first, if the moment is before that. Slots that may have been on their way
    /// then are marked.
    pub(super) fn at(past: &Past, at: Timestamp) -> Result<Self> {
        match past.topology_at(at) {
            Some(topology) => {
                let mut view = Self::of_topology(topology);
                mark_moves(&mut view.shards, &past.topologies, at.as_millisecond());
                Ok(view)
            }
            None => {
                let earlier = anchored(past).rev().find(|backup| backup.finished_at <= at);
                earlier.or_else(|| anchored(past).next()).map(Self::of_backup).ok_or_else(nothing_seen)
            }
        }
    }

    /// The cluster as it was seen last.
    pub(super) fn newest(past: &Past) -> Result<Self> {
        let seen = past.topologies.last().map(Self::of_topology);
        seen.or_else(|| anchored(past).next_back().map(Self::of_backup)).ok_or_else(nothing_seen)
    }

    /// The cluster as it was seen last, with these shards alone.
    pub(super) fn of_shards(past: &Past, shards: Vec<ShardState>) -> Result<Self> {
        Ok(Self { shards, ..Self::newest(past)? })
    }

    /// Every look that the cluster had, with the moments from when it was seen until just before the next one was; without any, the newest.
    pub(in crate::log) fn all(past: &Past) -> Vec<(Self, Moments)> {
        let always = Moments { from: Timestamp::MIN, to: Timestamp::MAX };
        if past.topologies.is_empty() {
            // A backup that failed may have left log and nothing else.
            let last = anchored(past).next_back();
            return last.map(|backup| (Self::of_backup(backup), always)).into_iter().collect();
        }
        let later = past.topologies.iter().skip(1).map(|seen| first_moment(seen.seen_at));
        let from = std::iter::once(always.from).chain(later.clone().map(|(_, first)| first));
        let to = later.map(|(last, _)| last).chain(std::iter::once(always.to));
        let spans = from.zip(to).map(|(from, to)| Moments { from, to });
        past.topologies.iter().map(Self::of_topology).zip(spans).collect()
    }

    fn of_topology(topology: &TopologyRecord) -> Self {
        let serves = |shard: &&ShardState| !shard.slots.is_empty();
        Self {
            cluster_mode: topology.cluster_mode,
            current_epoch: topology.current_epoch,
            shards: topology.shards.iter().filter(serves).cloned().collect(),
        }
    }

    fn of_backup(manifest: &Manifest) -> Self {
        let state = |shard: &ShardRecord| ShardState {
            slots: shard.slots.clone(),
            importing: SlotSet::default(),
            migrating: SlotSet::default(),
            unfollowed: SlotSet::default(),
            config_epoch: shard.config_epoch,
            primary: shard.primary.clone(),
            replicas: shard.replicas.clone(),
            history: Some(shard.history.clone()),
            offset: Some(shard.offset),
        };
        Self {
            cluster_mode: manifest.cluster_mode,
            current_epoch: manifest.current_epoch,
            shards: manifest.shards.iter().map(state).collect(),
        }
    }

    /// The history that a shard followed. Where its primary could not be asked, or named one of which nothing is kept (a server chooses
    /// a new one when it is followed for the first time), the one that its slots had next, or else before.
    pub(in crate::log) fn history_of(past: &Past, state: &ShardState) -> Result<ReplId> {
        let kept = |history: &&ReplId| past.chain.holds(history);
        if let Some(history) = state.history.as_ref().filter(kept) {
            return Ok(history.clone());
        }
        let seen = |topology: &TopologyRecord| {
            let mut same = topology.shards.iter().filter(|shard| shard.slots == state.slots);
            same.find_map(|shard| shard.history.as_ref().filter(kept).cloned())
        };
        // Slots that were on their way may be marked here and not there.
        let as_seen = |shard: &ShardState| {
            let ShardState { importing, migrating, unfollowed, .. } = shard.clone();
            *shard == ShardState { importing, migrating, unfollowed, ..state.clone() }
        };
        let at = past.topologies.iter().position(|topology| topology.shards.iter().any(as_seen)).unwrap_or(0);
        let (before, after) = past.topologies.split_at_checked(at).unwrap_or_default();
        let found = after.iter().find_map(seen).or_else(|| before.iter().rev().find_map(seen));
        found.or_else(|| state.history.clone()).ok_or_else(|| {
            Error::new(ErrorKind::Gap, format!("the history of slots {} is not known", state.slots))
                .hint("restore to an earlier moment, or a backup (`slotkeep list`)")
        })
    }

    /// The manifest of the cluster at that moment, on the bases of its shards.
    pub(super) fn manifest(
        &self,
        past: &Past,
        at: Timestamp,
        shards: &[(ShardPoint, usize)],
    ) -> Result<Manifest> {
        let mut records = Vec::new();
        let mut newest: Option<(bool, &Manifest)> = None;
        for (state, (_, number)) in self.shards.iter().zip(shards) {
            let (manifest, base) = past.base(*number).ok_or_else(nothing_seen)?;
            let own = (past.is_listed(*number), manifest);
            let is_newest = newest.is_none_or(|(listed, newest)| (listed, &newest.id) < (own.0, &own.1.id));
            newest = if is_newest { Some(own) } else { newest };
            records.push(record(state, base));
        }
        let (_, newest) = newest.ok_or_else(nothing_seen)?;
        // Settings are recorded with backups only: those of the last one before the moment hold.
        let settings = past.backups.iter().rev().find(|backup| backup.finished_at <= at).unwrap_or(newest);
        let covered: SlotSet =
            records.iter().flat_map(|shard| shard.slots.ranges().iter().copied()).collect();
        let missing_slots = covered.complement();
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            id: newest.id.clone(),
            cluster: past.cluster.clone(),
            kind: BackupKind::Full,
            partial: !missing_slots.is_empty(),
            missing_slots,
            started_at: newest.started_at,
            finished_at: newest.finished_at,
            slotkeep_version: newest.slotkeep_version.clone(),
            cluster_mode: self.cluster_mode,
            current_epoch: self.current_epoch,
            shards: records,
            settings: settings.settings.clone(),
            cut: None,
            digest: None,
        })
    }
}

/// The first moment at which a look counts, and the last one before it. Moments are in whole milliseconds.
fn first_moment(seen_at: Timestamp) -> (Timestamp, Timestamp) {
    let last_ms = seen_at.as_nanosecond().saturating_sub(1).div_euclid(1_000_000);
    let moment = |ms: i128| i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let first = moment(last_ms.saturating_add(1)).unwrap_or(seen_at);
    (moment(last_ms).unwrap_or(seen_at), first)
}

/// The backups that name histories of the cluster's replication: a name that was made up leads nowhere.
fn anchored(past: &Past) -> impl DoubleEndedIterator<Item = &Manifest> {
    past.backups.iter().filter(|backup| backup.is_anchored() && !backup.is_of_aof())
}

fn record(state: &ShardState, base: &ShardRecord) -> ShardRecord {
    ShardRecord {
        slots: state.slots.clone(),
        config_epoch: state.config_epoch,
        primary: state.primary.clone(),
        replicas: state.replicas.clone(),
        source: base.source.clone(),
        source_role: RoleRecord::Primary,
        server: base.server.clone(),
        history: base.history.clone(),
        offset: base.offset,
        server_time: base.server_time,
        base: base.base.clone(),
        cut: None,
        read: base.read.clone(),
    }
}

fn nothing_seen() -> Error {
    Error::new(ErrorKind::NotFound, "the repository does not say how the cluster looked")
        .hint("`slotkeep list` shows what there is")
}
