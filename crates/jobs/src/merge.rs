//! A backup and its log, folded into a new full backup; the cluster is not touched.
//!
//! Invariants: the new backup is listed when every base of it is stored, or not at all; each of its bases holds exactly the bytes up to
//! the cut of its shard; a merge that fails or is stopped takes back what it stored, unless nobody knows what became of its manifest.

use std::sync::Arc;

use jiff::Timestamp;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{BackupKind, BaseRecord, ClusterCut, CutMethod, FORMAT_VERSION, ShardRecord};
use slotkeep_model::{DatasetDigest, SlotDigest};
use slotkeep_repo::Repository;

use crate::backup::{how_read, new_backup_id};
use crate::base::Base;
use crate::engine::{EngineNeeds, EngineOptions, choose_engine};
use crate::fold::{FoldDestination, FoldInput, FoldProgress, fold};
use crate::log::Past;
use crate::log::apply::{feed, time_of};
use crate::log::point::{Point, ShardPoint};
use crate::progress::Phase;
use crate::{Context, Error, ErrorKind, Result};

/// Where a merged backup goes.
pub struct MergeTarget<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The name under which it keeps the cluster.
    pub cluster: &'a str,
    /// Whether that is where the bases are already: then a shard without a log keeps its base.
    pub shares_bases: bool,
}

/// Folds the log of every shard, one after the other, and commits the result. `source` is where bases and log are; `progress` has a row
/// for each shard of the point.
pub async fn merge(
    context: &Context,
    source: (&Repository, Option<&Arc<Past>>),
    point: &Point,
    target: &MergeTarget<'_>,
    options: &EngineOptions,
    progress: &[Arc<FoldProgress>],
) -> Result<Manifest> {
    refuse_unanchored(point)?;
    let id = new_backup_id(context)?;
    let started_at = context.clock.now();
    let mut stored: Vec<BaseRecord> = Vec::new();
    let mut shards = Vec::new();
    let mut digest = Some(SlotDigest::default());
    let merger = Merger { context, source, target, options, id: &id, at: point.at };
    for ((record, shard), progress) in point.manifest.shards.iter().zip(&point.shards).zip(progress) {
        progress.capture.enter(Phase::Running);
        match Box::pin(merger.shard(record, shard, progress)).await {
            Ok((record, total, is_new)) => {
                progress.capture.enter(Phase::Done);
                if is_new {
                    stored.push(record.base.clone());
                }
                digest = add(digest, total);
                shards.push(record);
            }
            Err(error) => {
                progress.capture.enter(Phase::Failed);
                take_back(target.repository, &stored).await;
                return Err(match error.kind() {
                    ErrorKind::Interrupted => error,
                    _ => error.context(format!("merging slots {}", shard.slots)),
                });
            }
        }
    }
    let of = &point.manifest;
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        id,
        cluster: target.cluster.to_owned(),
        kind: BackupKind::Merged,
        partial: of.partial,
        missing_slots: of.missing_slots.clone(),
        started_at,
        finished_at: context.clock.now(),
        slotkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_mode: of.cluster_mode,
        current_epoch: of.current_epoch,
        shards,
        settings: of.settings.clone(),
        cut: of.cut.clone().or_else(|| cut_of(point)),
        digest,
    };
    if let Err(error) = target.repository.commit(&manifest).await {
        take_back(target.repository, &stored).await;
        return Err(error.into());
    }
    Ok(manifest)
}

/// Refuses bases that no log belongs to: what came of it would be the same bases, called something else.
fn refuse_unanchored(point: &Point) -> Result<()> {
    let Some(shard) = point.manifest.shards.iter().find(|shard| !shard.is_anchored()) else { return Ok(()) };
    let what = format!(
        "the base of slots {} in backup {} was {}: it stands at no offset, and no log can be folded into it",
        shard.slots,
        point.manifest.id,
        how_read(shard)
    );
    Err(Error::new(ErrorKind::Gap, what)
        .hint("it can be restored as it is (`slotkeep restore --backup`); a log needs a backup over replication (`slotkeep backup`)"))
}

/// How the cuts of a moment belong together: as far apart as what may be missing of each. Cuts that the user named need not belong
/// together.
fn cut_of(point: &Point) -> Option<ClusterCut> {
    let lacks: Option<Vec<u64>> = point.shards.iter().map(|shard| shard.may_lack_ms).collect();
    let error_ms = lacks?.into_iter().max().unwrap_or(0);
    point.at.map(|at| ClusterCut {
        method: CutMethod::Instant,
        at,
        error_ms,
        paused_ms: None,
        fell_back: None,
    })
}

fn add(sum: Option<SlotDigest>, more: Option<SlotDigest>) -> Option<SlotDigest> {
    let (sum, more) = (sum?, more?);
    Some(SlotDigest { keys: sum.keys.checked_add(more.keys)?, sum: sum.sum.wrapping_add(more.sum) })
}

async fn take_back(repository: &Repository, bases: &[BaseRecord]) {
    for object in bases.iter().flat_map(BaseRecord::objects) {
        if let Err(error) = repository.discard(&object.path).await {
            tracing::warn!(%error, "an unlisted object stays in the repository");
        }
    }
}

struct Merger<'a> {
    context: &'a Context,
    source: (&'a Repository, Option<&'a Arc<Past>>),
    target: &'a MergeTarget<'a>,
    options: &'a EngineOptions,
    id: &'a str,
    /// The moment that the logs lead to.
    at: Option<Timestamp>,
}

impl Merger<'_> {
    /// The shard with its base at the cut, the base's digest, and whether the base is a new one.
    async fn shard(
        &self,
        record: &ShardRecord,
        point: &ShardPoint,
        progress: &FoldProgress,
    ) -> Result<(ShardRecord, Option<SlotDigest>, bool)> {
        let (repository, past) = self.source;
        if point.log_bytes == 0 && self.target.shares_bases {
            let digest = match Base::open(repository, &record.base) {
                Ok(base) => Some(DatasetDigest::total(&base.digest().await?)),
                Err(_) => None,
            };
            return Ok((ShardRecord { cut: None, ..record.clone() }, digest, false));
        }
        let needs = EngineNeeds { rdb: record.base.rdb_version, source: point.server };
        let server = choose_engine(self.options, &needs).await?;
        let lacks_past = || Error::new(ErrorKind::Failed, "a log is to be applied and none was opened");
        let time_of = match point.server {
            Some(server) if server.major < 7 && point.log_bytes > 0 => {
                Some(time_of(past.ok_or_else(lacks_past)?, &point.log, self.at).await?)
            }
            _ => None,
        };
        let input = FoldInput { feed: feed(repository, past, record, point).await?, needs, time_of };
        let destination = FoldDestination {
            repository: self.target.repository,
            cluster: self.target.cluster,
            backup_id: self.id,
        };
        let folded = fold(self.context, &server, self.options, input, &destination, progress);
        let folded = Box::pin(folded).await?;
        let written = point.written.and_then(|span| span.until);
        let record = ShardRecord {
            server: folded.engine.into(),
            history: folded.history,
            offset: folded.offset.0,
            server_time: written.or(record.server_time),
            base: folded.base,
            cut: None,
            read: None,
            ..record.clone()
        };
        Ok((record, folded.digest, true))
    }
}
