//! `slotkeep backup`

use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{
    BackupKind, BaseRecord, ClusterCut, CutMethod, ReadRecord, ReadSource, RoleRecord, ShardRecord,
};
use slotkeep_jobs::archive::SealPolicy;
use slotkeep_jobs::backup::{
    BackupOptions, BackupPlan, Prefer, Reading, backup, incremental, plan, read_backup, read_incremental,
};
use slotkeep_jobs::discover::discover;
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::{Context, ErrorKind, Result};
use slotkeep_repo::Repository;

use super::merge::EngineArgs;
use crate::args::{ClusterArgs, CutArgs, ReposArgs, SpoolArgs};
use crate::exit;
use crate::output::{Output, bytes, count, seconds, table, table_text};
use crate::progress::Display;
use crate::repos::{self, Destination, Destinations};
use crate::session::Session;
use crate::source_args::{INCREMENTAL, SourceArgs};

/// Back up a running cluster, whole or what was written since the last backup
///
/// Finds the cluster behind one address. A full backup takes each shard's snapshot from its best node, as a replica would, and the
/// stream behind it until all shards share one cut. An incremental one takes the stream from where the last backup or archive ended, as
/// far as the servers' backlogs still hold it. A backup is listed only when all of it is stored. Where replication is refused, --source
/// reads a full backup in another way. With --repo more than once, and --repo-optional, the cluster is read once and the same backup goes to
/// all of these repositories.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    repo: ReposArgs,
    /// What to take
    #[arg(long = "type", value_enum, default_value_t = TypeArg::Full)]
    kind: TypeArg,
    /// Fail if an incremental backup is not possible, instead of taking a full one
    #[arg(long)]
    no_fallback: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cut: CutArgs,
    #[command(flatten)]
    spool: SpoolArgs,
    /// Most shards at a time
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Load")]
    jobs: usize,
    /// Most shards at a time whose nodes are on one host: each forks
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    jobs_per_host: usize,
    /// Which node to take where there is a choice
    #[arg(long, value_enum, default_value_t = PreferArg::Replica, help_heading = "Load")]
    prefer: PreferArg,
    /// Back up what there is if slots are uncovered or a shard can't be reached
    #[arg(long)]
    allow_partial: bool,
    #[command(flatten)]
    secrets: SecretsArgs,
}

/// Whether secrets are stored.
#[derive(Debug, Args)]
struct SecretsArgs {
    /// Store passwords of the configuration and password hashes of ACL users too, unencrypted if the repository is not encrypted;
    /// in an encrypted one they always are, unless --no-secrets; with several repositories, if all of them are encrypted
    #[arg(long)]
    include_secrets: bool,
    /// Leave passwords and password hashes out
    #[arg(long, conflicts_with = "include_secrets")]
    no_secrets: bool,
}

impl SecretsArgs {
    const fn are_included(&self, encrypted: bool) -> bool {
        !self.no_secrets && (self.include_secrets || encrypted)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    /// Every shard's snapshot
    Full,
    /// What was written since the last backup or archive
    Incremental,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PreferArg {
    /// A replica in sync, else the primary
    Replica,
    /// The primary, else a replica in sync
    Primary,
}

impl From<PreferArg> for Prefer {
    fn from(prefer: PreferArg) -> Self {
        match prefer {
            PreferArg::Replica => Self::Replica,
            PreferArg::Primary => Self::Primary,
        }
    }
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &BackupArgs) -> Result<u8> {
    arguments.source.check(arguments.needs_replication())?;
    let (context, seeds) = session.cluster(&arguments.cluster)?;
    let destinations = Destinations::of(session, &arguments.repo)?;
    let discovery = discover(&context, &seeds).await?;
    let prefer = Prefer::from(arguments.prefer);
    let mut plan = plan(&context, discovery, prefer, arguments.allow_partial).await?;
    let (partial, engine) = (arguments.allow_partial, arguments.engine.options());
    let reading = arguments.source.reading(&context, &mut plan, partial, engine).await?;
    // Only now: a cluster that can't be backed up must leave no new repository behind.
    let opened = destinations.open(session, output, &arguments.repo).await?;
    repos::warn_if_unlike(output, &opened.repository, &destinations.name, &plan.discovery).await;
    output.note(&announce(&plan, &destinations.text()));
    let options = BackupOptions {
        cluster: destinations.name,
        jobs: arguments.jobs,
        jobs_per_host: arguments.jobs_per_host,
        prefer,
        include_secrets: arguments.secrets.are_included(opened.are_encrypted()),
        cut: Some(arguments.cut.options()),
        spool: arguments.spool.folder(),
        spool_limit_bytes: arguments.spool.spool_limit,
        seal: SealPolicy::default(),
    };
    let work = Work {
        context: &context,
        repository: &opened.repository,
        plan: &plan,
        options: &options,
        reading: reading.as_ref(),
        output,
    };
    let taken = match arguments.kind {
        TypeArg::Full => work.full().await,
        TypeArg::Incremental => match work.incremental().await {
            Err(error) if error.kind() == ErrorKind::Gap && !arguments.no_fallback => {
                output.warn(&format!("no incremental backup is possible, taking a full one: {error}"));
                work.full().await
            }
            outcome => outcome,
        },
    };
    let manifest = taken.map_err(|error| opened.explain(error))?;
    warn_of_gaps(output, &manifest);
    warn_of_order(output, &opened.repository, &manifest).await;
    let taken = Taken { manifest: &manifest, repositories: opened.outcome() };
    repos::warn(output, &taken.repositories);
    output.data(&taken, |taken| {
        let table = repos::render(&taken.repositories).map(|table| format!("\n\n{table}"));
        format!("{}{}", summary(taken.manifest), table.unwrap_or_default())
    })?;
    Ok(exit::OK)
}

/// A backup that was taken, and who has it.
#[derive(Serialize)]
struct Taken<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Nothing if there is one repository alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repositories: Vec<Destination>,
}

impl BackupArgs {
    /// What was asked for that only a replication link gives.
    fn needs_replication(&self) -> Option<&'static str> {
        match self.kind {
            TypeArg::Incremental => Some(INCREMENTAL),
            TypeArg::Full if self.cut.barrier => Some("--barrier"),
            TypeArg::Full => None,
        }
    }
}

/// What both types of backup need.
struct Work<'a> {
    context: &'a Context,
    repository: &'a Repository,
    plan: &'a BackupPlan,
    options: &'a BackupOptions,
    /// Where it is read from, if not from a replication link.
    reading: Option<&'a Reading>,
    output: &'a Output,
}

impl Work<'_> {
    async fn full(&self) -> Result<Manifest> {
        let progress = self.progress();
        let display = Display::start(self.output, &progress);
        let outcome = match self.reading {
            None => backup(self.context, self.repository, self.plan, self.options, &progress).await,
            Some(reading) => {
                let (plan, options) = (self.plan, self.options);
                read_backup(self.context, self.repository, plan, options, reading, &progress).await
            }
        };
        display.finish().await;
        outcome
    }

    async fn incremental(&self) -> Result<Manifest> {
        let progress = self.progress();
        let Some(reading) = self.reading else {
            return incremental(self.context, self.repository, self.plan, self.options, &progress).await;
        };
        read_incremental(self.context, self.repository, self.plan, self.options, reading, &progress).await
    }

    fn progress(&self) -> Vec<Arc<ShardProgress>> {
        let shards = self.plan.shards.iter();
        shards.map(|shard| ShardProgress::new(format!("slots {}", shard.shard.slots))).collect()
    }
}

fn announce(plan: &BackupPlan, location: &str) -> String {
    let keys: u64 =
        plan.shards.iter().filter_map(|shard| shard.candidates.first()).map(|node| node.keys).sum();
    let shards = plan.shards.len();
    let replicas: usize = plan.discovery.topology().shards.iter().map(|shard| shard.replicas.len()).sum();
    format!(
        "{} {}, {shards} {} and {replicas} {}, {} keys → {location}",
        plan.discovery.server,
        if plan.discovery.topology().cluster_mode { "cluster" } else { "standalone" },
        if shards == 1 { "shard" } else { "shards" },
        if replicas == 1 { "replica" } else { "replicas" },
        count(keys),
    )
}

/// Backups are named, and sorted, by the clocks of the machines that made them.
async fn warn_of_order(output: &Output, repository: &Repository, manifest: &Manifest) {
    // The backup is made; that its place among the others can't be seen does not matter.
    let Ok(ids) = repository.backup_ids(&manifest.cluster).await else { return };
    if let Some(later) = ids.iter().max().filter(|later| **later > manifest.id) {
        output.warn(&format!(
            "backup {later} bears a later time than this one, {}, so `latest` is that one: the clock of this machine or of the one that made it is \
             off, unless it was made meanwhile",
            manifest.id
        ));
    }
}

fn warn_of_gaps(output: &Output, manifest: &Manifest) {
    if let Some(reason) = manifest.cut.as_ref().and_then(|cut| cut.fell_back.as_ref()) {
        output.warn(&format!("the cut was made without a barrier: {reason}"));
    }
    if manifest.partial {
        output.warn(&format!(
            "this backup is partial: it lacks {} slots ({})",
            manifest.missing_slots.len(),
            manifest.missing_slots
        ));
    }
    for shard in &manifest.shards {
        if let Some(reason) = &shard.base.not_interpreted {
            output.warn(&format!(
                "the snapshot of slots {} is stored whole but was not understood ({reason}): no index, no digest",
                shard.slots
            ));
        }
    }
    let mut unreadable: Vec<&String> =
        manifest.settings.iter().flat_map(|settings| &settings.unreadable).collect();
    unreadable.sort();
    unreadable.dedup();
    for reason in unreadable {
        output.warn(&format!("settings are incomplete: {reason}"));
    }
}

/// The table of a backup's shards, and the lines that say what happened.
pub(crate) fn summary(manifest: &Manifest) -> String {
    let mut rows = table(&["slots", "from", "role", "keys>", "RDB>", "stored>", "offset>", "log>"]);
    for shard in &manifest.shards {
        rows.add_row([
            shard.slots.to_string(),
            shard.source.to_string(),
            match shard.source_role {
                RoleRecord::Primary => "primary".to_owned(),
                RoleRecord::Replica => "replica".to_owned(),
            },
            shard.base.keys.map_or_else(|| "?".to_owned(), count),
            bytes(shard.base.rdb.raw_bytes),
            bytes(stored(&shard.base)),
            offset_text(shard),
            bytes(shard.cut().offset.saturating_sub(shard.offset)),
        ]);
    }
    let raw: u64 = manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes).sum();
    let all: u64 = manifest.shards.iter().map(|shard| stored(&shard.base)).sum();
    let log: u64 = manifest.shards.iter().map(|shard| shard.cut().offset.saturating_sub(shard.offset)).sum();
    let took = manifest.finished_at.duration_since(manifest.started_at).unsigned_abs();
    let keys = manifest.digest.map_or_else(|| "an unknown number of".to_owned(), |digest| count(digest.keys));
    let mut cut = manifest.cut.as_ref().map(|cut| format!("\nCut: {}.", cut_text(cut))).unwrap_or_default();
    cut.push_str(&interval_text(manifest));
    let (all, log, took) = (bytes(all), bytes(log), seconds(took));
    let what = match manifest.kind {
        BackupKind::Full if manifest.read_source().is_some() && !manifest.is_of_aof() => {
            format!(": {keys} keys, {} in, {all} stored, {took}", bytes(raw))
        }
        BackupKind::Full => {
            format!(": {keys} keys, {} in, {all} stored, {log} of log behind them, {took}", bytes(raw))
        }
        BackupKind::Incremental => format!(", incremental: {log} of log behind bases of {keys} keys, {took}"),
        BackupKind::Merged => format!(", merged: {keys} keys, {all} stored, {took}"),
    };
    format!("{}\n{cut}\nBackup {}{what}.", table_text(&rows), manifest.id)
}

/// How a cut was made, in words.
pub(crate) fn cut_text(cut: &ClusterCut) -> String {
    match (cut.method, cut.paused_ms) {
        (CutMethod::Barrier, Some(paused_ms)) => {
            format!("all shards at {} exactly, writes paused for {paused_ms} ms", cut.at)
        }
        (CutMethod::Barrier, None) => format!("all shards at {} exactly", cut.at),
        (CutMethod::Instant, _) => format!("all shards at {}, give or take {} ms", cut.at, cut.error_ms),
    }
}

/// Where a base stands in its history.
fn offset_text(shard: &ShardRecord) -> String {
    let is_the_servers = shard.is_anchored() && shard.aof().is_none();
    if is_the_servers { shard.offset.to_string() } else { "none".to_owned() }
}

/// How a base was read that did not come over a replication link, in words.
pub(crate) fn read_text(read: &ReadRecord) -> String {
    let how = match read.source {
        ReadSource::Scan => "key by key (SCAN and DUMP)",
        ReadSource::Snapshot => "from the file of a BGSAVE",
        ReadSource::Aof if read.aof.is_none() => "from the append-only file, applied by a private server",
        ReadSource::Aof => "from the append-only file",
        ReadSource::Backup => "from the files of the server's own BACKUP",
    };
    match read.source {
        ReadSource::Scan => format!("{how} from {} to {}: not one point in time", read.from, read.until),
        _ => format!("{how}, as of a moment between {} and {}", read.from, read.until),
    }
}

/// From when to when the bases were read, and what that means; nothing if they came over replication links.
fn interval_text(manifest: &Manifest) -> String {
    let Some((from, until)) = manifest.read_interval() else { return String::new() };
    let what = match manifest.read_source() {
        Some(ReadSource::Scan) => format!("Not one point in time: read from {from} to {until}"),
        _ if manifest.shards.len() > 1 => {
            format!("Each shard as of a moment of its own, between {from} and {until}")
        }
        _ => format!("As of a moment between {from} and {until}"),
    };
    format!("\n{what}, by the servers' clocks.")
}

/// The kind of a backup and where it was read from, in words.
pub(crate) fn kind_and_source(manifest: &Manifest) -> String {
    let kind = kind_text(manifest.kind);
    manifest
        .read_source()
        .map_or_else(|| kind.to_owned(), |source| format!("{kind}, {}", source_text(source)))
}

/// Where a backup was read from, in a word or two.
pub(crate) const fn source_text(source: ReadSource) -> &'static str {
    match source {
        ReadSource::Scan => "scan",
        ReadSource::Snapshot => "snapshot file",
        ReadSource::Aof => "append-only file",
        ReadSource::Backup => "BACKUP files",
    }
}

/// The kind of a backup, in a word.
pub(crate) const fn kind_text(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
        BackupKind::Merged => "merged",
    }
}

/// What a base takes in the repository: RDB, index and digest.
pub(crate) fn stored(base: &BaseRecord) -> u64 {
    base.objects().map(|object| object.stored_bytes).sum()
}
