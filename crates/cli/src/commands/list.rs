//! `slotkeep list`

use clap::Args;
use serde::Serialize;
use slotkeep_format::manifest::BackupKind;
use slotkeep_format::{Depth, Manifest, Severity, VerifyRecord};
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::Repository;

use super::backup::stored;
use crate::args::RepoArgs;
use crate::exit;
use crate::output::{Output, bytes, count, table, table_text};
use crate::session::Session;

/// List the backups of a repository
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    repo: RepoArgs,
}

#[derive(Serialize)]
struct List {
    repository: String,
    backups: Vec<Row>,
    unreadable: Vec<Unreadable>,
}

#[derive(Serialize)]
struct Row {
    cluster: String,
    id: String,
    kind: String,
    partial: bool,
    finished_at: jiff::Timestamp,
    server: String,
    shards: usize,
    keys: Option<u64>,
    rdb_bytes: u64,
    stored_bytes: u64,
    proved: Option<Proved>,
}

/// What the last verification said of a backup.
#[derive(Clone, Serialize)]
struct Proved {
    depth: Depth,
    worst: Severity,
    at: jiff::Timestamp,
    sample_percent: Option<u8>,
    record: String,
}

/// So many records of verifications are looked through, the newest first.
const RECORDS: usize = 16;

#[derive(Serialize)]
struct Unreadable {
    cluster: String,
    id: String,
    reason: String,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &ListArgs) -> Result<u8> {
    let (repository, _) = session.repository(&arguments.repo).await?;
    let clusters = match &arguments.repo.name {
        Some(name) => vec![name.clone()],
        None => repository.clusters().await?,
    };
    let mut list =
        List { repository: repository.location().to_string(), backups: vec![], unreadable: vec![] };
    for cluster in clusters {
        let listing = repository.backups(&cluster).await?;
        let records = records(&repository, &cluster).await?;
        list.backups.extend(listing.backups.iter().map(|manifest| row(manifest, &records)));
        list.unreadable.extend(listing.unreadable.into_iter().map(|backup| Unreadable {
            cluster: cluster.clone(),
            id: backup.id,
            reason: backup.error.to_string(),
        }));
    }
    let now = session.now();
    output.data(&list, |list| render(list, now))?;
    match list.unreadable.first() {
        None => Ok(exit::OK),
        Some(first) => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} of {} backups can't be read: {}",
                list.unreadable.len(),
                list.unreadable.len() + list.backups.len(),
                first.reason
            ),
        )
        .hint("do not delete the others: use one of them, and take a new backup from the running cluster")),
    }
}

/// The newest verifications that came to their end, the newest first. One that can't be read is `verify`'s matter.
async fn records(repository: &Repository, cluster: &str) -> Result<Vec<VerifyRecord>> {
    let mut records = Vec::new();
    for id in repository.verification_ids(cluster).await?.iter().rev().take(RECORDS) {
        match repository.verification(cluster, id).await {
            Ok(record) => records.push(record),
            Err(error) => tracing::warn!(%error, "a record of a verification can't be read"),
        }
    }
    records.retain(|record| record.complete);
    Ok(records)
}

/// What the newest record that knows a backup says of it.
fn proved(id: &str, records: &[VerifyRecord]) -> Option<Proved> {
    records.iter().find_map(|record| {
        let verdict = record.backups.iter().find(|verdict| verdict.id == id)?;
        Some(Proved {
            depth: record.depth,
            worst: verdict.worst,
            at: record.finished_at,
            sample_percent: record.sample_percent,
            record: record.id.clone(),
        })
    })
}

fn proved_text(proved: Option<&Proved>, now: jiff::Timestamp) -> String {
    let Some(proved) = proved else { return "never".to_owned() };
    let age = std::time::Duration::try_from(now.duration_since(proved.at)).unwrap_or_default();
    let sample = proved.sample_percent.map(|percent| format!(" ({percent} %)")).unwrap_or_default();
    let flaw = match proved.worst {
        Severity::Ok | Severity::Note => "",
        Severity::Warning => ": WARNING",
        Severity::Problem => ": PROBLEM",
    };
    format!("{}{sample}{flaw}, {} ago", proved.depth, indicatif::HumanDuration(age))
}

fn row(manifest: &Manifest, records: &[VerifyRecord]) -> Row {
    let server = manifest.shards.first().and_then(|shard| shard.server.version());
    Row {
        cluster: manifest.cluster.clone(),
        id: manifest.id.clone(),
        kind: match manifest.kind {
            BackupKind::Full => "full",
            BackupKind::Incremental => "incremental",
            BackupKind::Merged => "merged",
        }
        .to_owned(),
        partial: manifest.partial,
        finished_at: manifest.finished_at,
        server: server.map(|server| server.to_string()).unwrap_or_default(),
        shards: manifest.shards.len(),
        keys: manifest.digest.map(|digest| digest.keys),
        rdb_bytes: manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes).sum(),
        stored_bytes: manifest.shards.iter().map(|shard| stored(&shard.base)).sum(),
        proved: proved(&manifest.id, records),
    }
}

fn render(list: &List, now: jiff::Timestamp) -> String {
    if list.backups.is_empty() && list.unreadable.is_empty() {
        return format!("{} holds no backup yet.", list.repository);
    }
    let mut rows = table(&[
        "cluster", "id", "kind", "finished", "server", "shards>", "keys>", "RDB>", "stored>", "proved",
    ]);
    for backup in &list.backups {
        rows.add_row([
            backup.cluster.clone(),
            backup.id.clone(),
            if backup.partial { format!("{}, partial", backup.kind) } else { backup.kind.clone() },
            backup.finished_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            backup.server.clone(),
            backup.shards.to_string(),
            backup.keys.map_or_else(|| "?".to_owned(), count),
            bytes(backup.rdb_bytes),
            bytes(backup.stored_bytes),
            proved_text(backup.proved.as_ref(), now),
        ]);
    }
    for backup in &list.unreadable {
        rows.add_row([backup.cluster.as_str(), &backup.id, "UNREADABLE"]);
    }
    table_text(&rows)
}
