//! `slotkeep backup`

use std::sync::Arc;

use clap::{Args, ValueEnum};
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{BaseRecord, RoleRecord};
use slotkeep_jobs::Result;
use slotkeep_jobs::backup::{BackupOptions, BackupPlan, Prefer, backup, plan};
use slotkeep_jobs::discover::discover;
use slotkeep_jobs::progress::ShardProgress;

use crate::args::{ClusterArgs, RepoArgs};
use crate::exit;
use crate::output::{Output, bytes, count, seconds, table, table_text};
use crate::progress::Display;
use crate::session::Session;

/// Take a full backup of a running cluster
///
/// Finds the cluster behind one address, takes each shard's snapshot from its best node, as a replica would, and stores it with
/// an index and a digest. A backup is listed only when all of it is stored; whatever goes wrong before, the repository stays as it was.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    repo: RepoArgs,
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
    /// Store passwords of the configuration and password hashes of ACL users too, unencrypted if the repository is not encrypted;
    /// in an encrypted one they always are, unless --no-secrets
    #[arg(long)]
    include_secrets: bool,
    /// Leave passwords and password hashes out
    #[arg(long, conflicts_with = "include_secrets")]
    no_secrets: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PreferArg {
    /// A replica in sync, else the primary
    Replica,
    /// The primary, else a replica in sync
    Primary,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &BackupArgs) -> Result<u8> {
    let (context, seeds) = session.cluster(&arguments.cluster)?;
    let (location, name) = session.location(&arguments.repo)?;
    let discovery = discover(&context, &seeds).await?;
    let prefer = match arguments.prefer {
        PreferArg::Replica => Prefer::Replica,
        PreferArg::Primary => Prefer::Primary,
    };
    let plan = plan(&context, discovery, prefer, arguments.allow_partial).await?;
    // Only now: a cluster that can't be backed up must leave no new repository behind.
    let repository = session.open_or_create(&location, &arguments.repo).await?;
    output.note(&announce(&plan, &location.to_string()));
    let options = BackupOptions {
        cluster: name,
        jobs: arguments.jobs,
        jobs_per_host: arguments.jobs_per_host,
        include_secrets: !arguments.no_secrets && (arguments.include_secrets || repository.is_encrypted()),
    };
    let progress: Vec<Arc<ShardProgress>> =
        plan.shards.iter().map(|shard| ShardProgress::new(format!("slots {}", shard.shard.slots))).collect();
    let display = Display::start(output, &progress);
    let outcome = backup(&context, &repository, &plan, &options, &progress).await;
    display.finish().await;
    let manifest = outcome?;
    warn_of_gaps(output, &manifest);
    output.data(&manifest, summary)?;
    Ok(exit::OK)
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

fn warn_of_gaps(output: &Output, manifest: &Manifest) {
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

/// The table of a backup's shards, and the line that says what happened.
pub(crate) fn summary(manifest: &Manifest) -> String {
    let mut rows = table(&["slots", "from", "role", "keys>", "RDB>", "stored>", "offset>"]);
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
            shard.offset.to_string(),
        ]);
    }
    let raw: u64 = manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes).sum();
    let all: u64 = manifest.shards.iter().map(|shard| stored(&shard.base)).sum();
    let took = manifest.finished_at.duration_since(manifest.started_at).unsigned_abs();
    let keys = manifest.digest.map_or_else(|| "an unknown number of".to_owned(), |digest| count(digest.keys));
    format!(
        "{}\n\nBackup {}: {keys} keys, {} in, {} stored, {}.",
        table_text(&rows),
        manifest.id,
        bytes(raw),
        bytes(all),
        seconds(took),
    )
}

/// What a base takes in the repository: RDB, index and digest.
pub(crate) fn stored(base: &BaseRecord) -> u64 {
    base.objects().map(|object| object.stored_bytes).sum()
}
