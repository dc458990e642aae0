//! The manifest: what makes a backup.

use std::sync::Arc;

use jiff::Timestamp;
use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::manifest::{
    BackupKind, ClusterCut, FORMAT_VERSION, SettingsRecord, ShardCut, ShardRecord,
};
use slotkeep_format::{HistoryRecord, Manifest, Parent};
use slotkeep_model::{ReplId, Shard, SlotDigest, SlotSet, Topology};
use slotkeep_repo::{Problem, RepoError, Repository};

use super::base::TakenBase;
use crate::{Context, Error, ErrorKind, Result};

/// A shard's part of a backup.
pub(crate) struct Part {
    pub(crate) shard: Shard,
    pub(crate) base: Arc<TakenBase>,
    /// Where it ends; at the base if nowhere else.
    pub(crate) cut: Option<ShardCut>,
    /// Histories that lead from the base to the cut, and where each comes from: those of which it may not be written down yet.
    pub(crate) histories: Vec<(ReplId, Parent)>,
}

/// Everything that a manifest says and that is not found in the parts.
pub(crate) struct Heading {
    pub(crate) id: String,
    pub(crate) cluster: String,
    pub(crate) kind: BackupKind,
    pub(crate) started_at: Timestamp,
    pub(crate) settings: Vec<SettingsRecord>,
    pub(crate) cut: Option<ClusterCut>,
}

/// Writes the manifest, once everything it names is durable.
pub(crate) async fn commit(
    context: &Context,
    repository: &Repository,
    topology: &Topology,
    heading: Heading,
    parts: &[Part],
) -> Result<Manifest> {
    for part in parts {
        put_histories(context, repository, &heading.cluster, (&part.shard, &part.histories)).await?;
    }
    let mut shards: Vec<ShardRecord> =
        parts.iter().map(|part| part.base.record(&part.shard, part.cut.clone())).collect();
    shards.sort_by_key(|shard| shard.slots.ranges().first().map(|range| range.first()));
    let covered: SlotSet = shards.iter().flat_map(|shard| shard.slots.ranges().iter().copied()).collect();
    let missing_slots = covered.complement();
    let digest = match total(repository, parts).await? {
        None => carried_over(repository, &heading.cluster, parts).await?,
        known => known,
    };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        id: heading.id,
        cluster: heading.cluster,
        kind: heading.kind,
        partial: !missing_slots.is_empty(),
        missing_slots,
        started_at: heading.started_at,
        finished_at: context.clock.now(),
        slotkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_mode: topology.cluster_mode,
        current_epoch: topology.current_epoch,
        shards,
        settings: heading.settings,
        cut: heading.cut,
        digest,
    };
    match repository.commit(&manifest).await {
        Ok(()) => Ok(manifest),
        Err(error) => Err(partly_stored(repository, &manifest.id, error)),
    }
}

/// Writes down where the histories up to a shard's cut come from. The log does so with the first byte of each, and a cut may lie before it: just where a
/// replica was promoted.
pub(crate) async fn put_histories(
    context: &Context,
    repository: &Repository,
    cluster: &str,
    (shard, histories): (&Shard, &[(ReplId, Parent)]),
) -> Result<()> {
    for (history, parent) in histories {
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: history.clone(),
            parent: Some(parent.clone()),
            slots: shard.slots.clone(),
            source: shard.primary.addr.clone(),
            first_seen_at: context.clock.now(),
        };
        repository.put_history(cluster, &record).await?;
    }
    Ok(())
}

/// Keys and digest over all bases; nothing if those of one are not known.
async fn total(repository: &Repository, parts: &[Part]) -> Result<Option<SlotDigest>> {
    let mut sum = SlotDigest::default();
    for part in parts {
        let Some(more) = part.base.total(repository).await? else { return Ok(None) };
        sum.merge(more);
    }
    Ok(Some(sum))
}

/// The same as an earlier backup says it, if that lists just these bases: so a machine that only writes need not read them.
async fn carried_over(repository: &Repository, cluster: &str, parts: &[Part]) -> Result<Option<SlotDigest>> {
    let mut listed_in = parts.iter().map(|part| part.base.listed_in.as_deref());
    let Some(Some(id)) = listed_in.next() else { return Ok(None) };
    if !listed_in.all(|other| other == Some(id)) {
        return Ok(None);
    }
    let earlier = match repository.manifest(cluster, id).await {
        Ok(earlier) => earlier,
        Err(RepoError { problem: Problem::Missing, .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut here: Vec<&str> = parts.iter().map(|part| part.base.base.rdb.path.as_str()).collect();
    let mut there: Vec<&str> = earlier.shards.iter().map(|shard| shard.base.rdb.path.as_str()).collect();
    here.sort_unstable();
    there.sort_unstable();
    Ok(earlier.digest.filter(|_| here == there))
}

/// The same failure, and which repositories list the backup in spite of it.
fn partly_stored(repository: &Repository, id: &str, error: RepoError) -> Error {
    let holders = repository.companions().iter().filter(|companion| companion.lists());
    let holders: Vec<String> =
        holders.map(|companion| companion.repository().location().to_string()).collect();
    if holders.is_empty() {
        return error.into();
    }
    let others = match error.problem {
        Problem::MayBeListed { .. } => "",
        _ => ", and no other repository has it",
    };
    let what = format!("{error}; {} has backup {id}, whole{others}", holders.join(" and "));
    Error::new(ErrorKind::PartlyStored, what)
        .hint("when the repository that failed can be written again, take another backup to all of them, or bring it up to date with `slotkeep copy`")
}
