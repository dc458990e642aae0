//! `slotkeep list`

use clap::Args;
use serde::Serialize;
use slotkeep_format::Manifest;
use slotkeep_jobs::{Error, ErrorKind, Result};

use super::backup::{kind_text, stored};
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
    /// The moment of the cut that all shards share.
    cut: Option<jiff::Timestamp>,
    finished_at: jiff::Timestamp,
    server: String,
    shards: usize,
    keys: Option<u64>,
    rdb_bytes: u64,
    stored_bytes: u64,
}

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
        list.backups.extend(listing.backups.iter().map(row));
        list.unreadable.extend(listing.unreadable.into_iter().map(|backup| Unreadable {
            cluster: cluster.clone(),
            id: backup.id,
            reason: backup.error.to_string(),
        }));
    }
    output.data(&list, render)?;
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

fn row(manifest: &Manifest) -> Row {
    let server = manifest.shards.first().and_then(|shard| shard.server.version());
    Row {
        cluster: manifest.cluster.clone(),
        id: manifest.id.clone(),
        kind: kind_text(manifest.kind).to_owned(),
        cut: manifest.cut.as_ref().map(|cut| cut.at),
        partial: manifest.partial,
        finished_at: manifest.finished_at,
        server: server.map(|server| server.to_string()).unwrap_or_default(),
        shards: manifest.shards.len(),
        keys: manifest.digest.map(|digest| digest.keys),
        rdb_bytes: manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes).sum(),
        stored_bytes: manifest.shards.iter().map(|shard| stored(&shard.base)).sum(),
    }
}

fn render(list: &List) -> String {
    if list.backups.is_empty() && list.unreadable.is_empty() {
        return format!("{} holds no backup yet.", list.repository);
    }
    let mut rows =
        table(&["cluster", "id", "kind", "as of", "server", "shards>", "keys>", "RDB>", "stored>"]);
    for backup in &list.backups {
        rows.add_row([
            backup.cluster.clone(),
            backup.id.clone(),
            if backup.partial { format!("{}, partial", backup.kind) } else { backup.kind.clone() },
            backup.cut.unwrap_or(backup.finished_at).strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            backup.server.clone(),
            backup.shards.to_string(),
            backup.keys.map_or_else(|| "?".to_owned(), count),
            bytes(backup.rdb_bytes),
            bytes(backup.stored_bytes),
        ]);
    }
    for backup in &list.unreadable {
        rows.add_row([backup.cluster.as_str(), &backup.id, "UNREADABLE"]);
    }
    table_text(&rows)
}
