//! `slotkeep merge`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use slotkeep_format::Manifest;
use slotkeep_jobs::engine::EngineOptions;
use slotkeep_jobs::fold::FoldProgress;
use slotkeep_jobs::merge::{MergeTarget, merge};
use slotkeep_jobs::{Context, Result, WorkFolder};
use slotkeep_repo::Repository;

use super::backup::summary;
use super::restore::aim::{AimArgs, Wanted};
use crate::args::{AccessArgs, RepoArgs};
use crate::exit;
use crate::output::Output;
use crate::progress::FoldDisplay;
use crate::session::Session;

/// Fold a backup and its log into a new full backup, without the cluster
///
/// A private server on this machine, one shard after the other, loads the base, applies the log, and gives the result back. It needs as
/// much memory as the shard's own server. Without a moment: up to the last one that the log leads to; refused where shards
/// have more behind it, such as a newer backup, unless `--at latest` says that it is meant.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    aim: AimArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// The private server that applies a log.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Engine: the private server that applies a log")]
pub(crate) struct EngineArgs {
    /// Server program; the best one on the PATH if not given
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Module to load, for values that it made; more than one by giving it again
    #[arg(long, value_name = "PATH")]
    engine_module: Vec<PathBuf>,
}

impl EngineArgs {
    /// The options of engines.
    pub(crate) fn options(&self) -> EngineOptions {
        EngineOptions {
            program: self.engine.clone(),
            modules: self.engine_module.clone(),
            ..EngineOptions::default()
        }
    }
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &MergeArgs) -> Result<u8> {
    let (repository, name) = session.repository(&arguments.repo).await?;
    let context = session.context(&AccessArgs::default())?;
    let wanted = arguments.aim.resolve_newest(output, &context, &repository, &name);
    let wanted = session.unless_stopped(Box::pin(wanted)).await?;
    let target = MergeTarget { repository: &repository, cluster: &name, shares_bases: true };
    let manifest = fold(output, &context, &repository, &wanted, &target, &arguments.engine).await?;
    output.data(&manifest, summary)?;
    Ok(exit::OK)
}

/// A point that the log leads to, folded into a backup of its own in a temporary repository: neither a cluster that takes clients nor a
/// comparison can apply a log.
pub(crate) struct Folded {
    pub(crate) repository: Repository,
    pub(crate) manifest: Manifest,
    /// Keeps the repository.
    pub(crate) folder: WorkFolder,
}

impl Folded {
    pub(crate) async fn make(
        session: &Session,
        output: &Output,
        repository: &Repository,
        wanted: &Wanted,
        engine: &EngineArgs,
        spool: &Path,
    ) -> Result<Self> {
        let context = session.context(&AccessArgs::default())?;
        let folder = WorkFolder::for_fold(spool)?;
        let temporary = session.temporary_repository(folder.path()).await?;
        output.note("Applying the log with a private server first…");
        let cluster = &wanted.point.manifest.cluster;
        let target = MergeTarget { repository: &temporary, cluster, shares_bases: false };
        let manifest = fold(output, &context, repository, wanted, &target, engine).await?;
        Ok(Self { repository: temporary, manifest, folder })
    }
}

/// Folds what is wanted into a new backup of the target, and shows how far that has come.
pub(crate) async fn fold(
    output: &Output,
    context: &Context,
    repository: &Repository,
    wanted: &Wanted,
    target: &MergeTarget<'_>,
    engine: &EngineArgs,
) -> Result<Manifest> {
    let point = &wanted.point;
    let bytes = point.manifest.shards.iter().zip(&point.shards);
    let rows: Vec<(Arc<FoldProgress>, u64)> = bytes
        .map(|(record, shard)| {
            let total = record.base.rdb.raw_bytes.saturating_add(shard.log_bytes);
            (Arc::new(FoldProgress::new(format!("slots {}", shard.slots))), total)
        })
        .collect();
    let display = FoldDisplay::start(output, &rows);
    let progress: Vec<_> = rows.into_iter().map(|(progress, _)| progress).collect();
    let source = (repository, wanted.past.as_ref());
    let folded = merge(context, source, point, target, &engine.options(), &progress).await;
    display.finish().await;
    folded
}
