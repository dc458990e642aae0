//! One side of a comparison: a backup, or a running cluster captured into a temporary folder.

use std::path::Path;
use std::sync::Arc;

use slotkeep_format::Manifest;
use slotkeep_model::{NodeAddr, TimestampMs};
use slotkeep_repo::{Location, OpenOptions, RateLimit, Repository};

use crate::archive::SealPolicy;
use crate::backup::{BackupOptions, BackupPlan, Prefer, backup, plan};
use crate::base::Base;
use crate::dataset::moment;
use crate::discover::discover;
use crate::ports::random_hex;
use crate::progress::ShardProgress;
use crate::{Context, Result, WorkFolder};

/// A dataset that can be compared.
pub struct Snapshot {
    name: String,
    repository: Repository,
    manifest: Manifest,
    /// Keeps the temporary folder of a captured cluster.
    _folder: Option<WorkFolder>,
}

/// A running cluster that is about to be captured.
pub struct Capture {
    pub(crate) plan: BackupPlan,
    prefer: Prefer,
    /// The progress of each shard.
    pub progress: Vec<Arc<ShardProgress>>,
}

/// How a running cluster is captured.
#[derive(Clone, Debug)]
pub struct CaptureOptions<'a> {
    /// The folder in which the temporary one is made.
    pub spool: &'a Path,
    /// At most so many shards at a time.
    pub jobs: usize,
    /// At most so many shards at a time from nodes of one host.
    pub jobs_per_host: usize,
    /// A limit on what is written a second, and so on what is taken from the servers.
    pub limit: Option<RateLimit>,
}

impl<'a> CaptureOptions<'a> {
    /// As fast as `jobs` shards at a time are, wherever their nodes are.
    pub const fn new(spool: &'a Path, jobs: usize) -> Self {
        Self { spool, jobs, jobs_per_host: jobs, limit: None }
    }
}

impl Snapshot {
    /// A backup.
    pub fn of_backup(repository: Repository, manifest: Manifest) -> Self {
        Self { name: format!("backup {}", manifest.id), repository, manifest, _folder: None }
    }

    /// A backup whose log has been applied to its bases, in a repository in a temporary folder.
    pub fn of_folded(id: &str, repository: Repository, manifest: Manifest, folder: WorkFolder) -> Self {
        Self { name: format!("backup {id}"), repository, manifest, _folder: Some(folder) }
    }

    /// Looks at a running cluster, to be captured.
    pub async fn plan(context: &Context, seeds: &[NodeAddr], prefer: Prefer) -> Result<Capture> {
        let discovery = discover(context, seeds).await?;
        let plan = plan(context, discovery, prefer, false).await?;
        let name =
            |shard: &crate::backup::ShardPlan| ShardProgress::new(format!("slots {}", shard.shard.slots));
        Ok(Capture { progress: plan.shards.iter().map(name).collect(), plan, prefer })
    }

    /// Captures a running cluster into a temporary folder, which is removed with the snapshot.
    pub async fn of_cluster(context: &Context, capture: &Capture, how: &CaptureOptions<'_>) -> Result<Self> {
        let folder = WorkFolder::make(how.spool, "diff")?;
        let location = Location::Folder(folder.path().to_owned());
        let id = random_hex(&*context.rng, 32)?;
        let limited = OpenOptions { limit: how.limit.clone(), ..OpenOptions::default() };
        let repository = Repository::init_with(&location, id, context.clock.now(), &limited).await?;
        let options = BackupOptions {
            cluster: "cluster".to_owned(),
            jobs: how.jobs,
            jobs_per_host: how.jobs_per_host,
            prefer: capture.prefer,
            include_secrets: false,
            cut: None,
            spool: folder.path().join("spool"),
            spool_limit_bytes: u64::MAX,
            seal: SealPolicy::default(),
        };
        let manifest = backup(context, &repository, &capture.plan, &options, &capture.progress).await?;
        let name = format!("cluster {}", capture.plan.discovery.answered);
        Ok(Self { name, repository, manifest, _folder: Some(folder) })
    }

    /// What it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its bases are.
    pub(crate) const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The backup's manifest, or that of the capture.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The moment up to which keys may have expired in it: the latest server time of its shards.
    pub(super) fn moment(&self) -> TimestampMs {
        TimestampMs(moment(&self.manifest).as_millisecond())
    }

    pub(super) fn bases(&self) -> Result<Vec<Base<'_>>> {
        self.manifest.shards.iter().map(|shard| Base::open(&self.repository, &shard.base)).collect()
    }
}
