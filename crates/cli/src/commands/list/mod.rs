//! `slotkeep list`

mod render;

use clap::Args;
use serde::Serialize;
use slotkeep_format::manifest::ReadSource;
use slotkeep_format::{Depth, Manifest, Severity, VerifyRecord};
use slotkeep_jobs::log::Past;
use slotkeep_jobs::log::origins::UnreadOrigin;
use slotkeep_jobs::log::unread_looks::UnreadTopology;
use slotkeep_jobs::log::windows::{HistoryNode, Restorable, history_graph, restorable};
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::{Listing, Problem, RepoError, Repository, UnreadableBackup};

use super::backup::{kind_text, stored};
use crate::args::RepoArgs;
use crate::exit;
use crate::output::Output;
use crate::session::Session;

/// List the backups of a repository, and the moments that its logs lead to
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// Draw the graph of histories: failovers, what was lost with them, bases and gaps
    #[arg(long)]
    history: bool,
}

#[derive(Serialize)]
struct List {
    repository: String,
    backups: Vec<Row>,
    /// What the logs lead to, of each cluster that has one.
    restorable: Vec<ClusterMoments>,
    unreadable: Vec<Unreadable>,
    /// Records of where histories come from that can't be read: moments that need them are not among those above.
    unreadable_histories: Vec<UnreadableHistory>,
    unreadable_topologies: Vec<UnreadableTopology>,
    /// Why the first of those can't be read; one that was not signed here goes before all others.
    #[serde(skip)]
    worst: Option<Error>,
}

#[derive(Serialize)]
struct ClusterMoments {
    cluster: String,
    #[serde(flatten)]
    restorable: Restorable,
    /// The graph of histories, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<HistoryNode>>,
}

#[derive(Serialize)]
struct Row {
    cluster: String,
    id: String,
    kind: String,
    partial: bool,
    /// Where it was read from, if not from a replication link.
    source: Option<ReadSource>,
    /// The moment of the cut that all shards share.
    cut: Option<jiff::Timestamp>,
    /// From when to when it was read, if it did not come over replication links.
    read: Option<ReadSpan>,
    finished_at: jiff::Timestamp,
    server: String,
    shards: usize,
    keys: Option<u64>,
    rdb_bytes: u64,
    stored_bytes: u64,
    proved: Option<Proved>,
}

/// From when to when a backup was read.
#[derive(Clone, Copy, Serialize)]
struct ReadSpan {
    from: jiff::Timestamp,
    until: jiff::Timestamp,
}

/// What the last verification said of a backup.
#[derive(Clone, Serialize)]
struct Proved {
    depth: Depth,
    worst: Severity,
    at: jiff::Timestamp,
    sample_percent: Option<u8>,
    rto_ms: Option<u64>,
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

#[derive(Serialize)]
struct UnreadableHistory {
    cluster: String,
    history: String,
    /// The slots of its shard, if something else tells them.
    slots: Option<String>,
    object: String,
    reason: String,
    hint: Option<String>,
}

/// A record of how the cluster looked; `from` and `to` as in [`UnreadTopology`].
#[derive(Serialize)]
struct UnreadableTopology {
    cluster: String,
    object: String,
    reason: String,
    from: Option<jiff::Timestamp>,
    to: Option<jiff::Timestamp>,
    hint: Option<String>,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &ListArgs) -> Result<u8> {
    let (repository, _) = session.repository(&arguments.repo).await?;
    let clusters = match &arguments.repo.name {
        Some(name) => vec![name.clone()],
        None => repository.clusters().await?,
    };
    let mut list = List {
        repository: repository.location().to_string(),
        backups: vec![],
        restorable: vec![],
        unreadable: vec![],
        unreadable_histories: vec![],
        unreadable_topologies: vec![],
        worst: None,
    };
    for cluster in clusters {
        // When the bytes of the log were written stands in its segments, which this machine may not be able to read.
        let listing = if repository.is_readable() {
            let past = Past::load(&repository, &cluster).await?;
            list.restorable.extend(moments(&past, arguments.history).await?);
            for unread in past.unread_origins() {
                output.warn(&unread.words());
                list.add_unread(&cluster, unread);
            }
            for unread in past.unread_topologies() {
                output.warn(&unread.words());
                list.add_unread_topology(&cluster, unread);
            }
            Listing { backups: past.backups, unreadable: past.unreadable, ..Listing::default() }
        } else {
            repository.backups(&cluster).await?
        };
        let records = records(&repository, &cluster).await?;
        list.backups.extend(listing.backups.iter().map(|manifest| row(manifest, &records)));
        for backup in listing.unreadable {
            list.add_unreadable(&cluster, backup);
        }
    }
    let now = session.now();
    output.data(&list, |list| render::render(list, now))?;
    let failed = list.failed();
    match list.worst {
        None => Ok(exit::OK),
        Some(error) => Err(error.context(failed)),
    }
}

impl List {
    fn add_unreadable(&mut self, cluster: &str, backup: UnreadableBackup) {
        let UnreadableBackup { id, error } = backup;
        let reason = error.to_string();
        self.unreadable.push(Unreadable { cluster: cluster.to_owned(), id, reason });
        self.note(error.into());
    }

    fn add_unread(&mut self, cluster: &str, unread: UnreadOrigin) {
        let UnreadOrigin { history, slots, object, reason, error } = unread;
        self.unreadable_histories.push(UnreadableHistory {
            cluster: cluster.to_owned(),
            history: history.to_string(),
            slots: slots.map(|slots| slots.to_string()),
            object,
            reason,
            hint: error.advice().map(str::to_owned),
        });
        self.note(error);
    }

    fn add_unread_topology(&mut self, cluster: &str, unread: UnreadTopology) {
        let UnreadTopology { object, reason, from, to, error } = unread;
        self.unreadable_topologies.push(UnreadableTopology {
            cluster: cluster.to_owned(),
            object,
            reason,
            from,
            to,
            hint: error.advice().map(str::to_owned),
        });
        self.note(error);
    }

    fn note(&mut self, error: Error) {
        let is_forged = error.kind() == ErrorKind::Untrusted;
        if self.worst.as_ref().is_none_or(|worst| is_forged && worst.kind() != ErrorKind::Untrusted) {
            self.worst = Some(error);
        }
    }

    /// What can't be read, in words.
    fn failed(&self) -> String {
        let (unreadable, all) = (self.unreadable.len(), self.unreadable.len() + self.backups.len());
        let backups = (unreadable > 0).then(|| format!("{unreadable} of {all} backups can't be read"));
        let histories = self.unreadable_histories.len();
        let records = match histories {
            0 => None,
            1 => Some("the record of a history".to_owned()),
            more => Some(format!("the records of {more} histories")),
        };
        let looks = match self.unreadable_topologies.len() {
            0 => None,
            1 => Some("a record of how the cluster looked".to_owned()),
            more => Some(format!("{more} records of how the cluster looked")),
        };
        let records = records
            .into_iter()
            .chain(looks)
            .map(|what| format!("{what} can't be read, and moments that need it are not shown"));
        backups.into_iter().chain(records).collect::<Vec<_>>().join("; ")
    }
}

/// What the log of a cluster leads to; nothing if there is none.
async fn moments(past: &Past, history: bool) -> Result<Option<ClusterMoments>> {
    if !past.has_log() && !history {
        return Ok(None);
    }
    Ok(Some(ClusterMoments {
        cluster: past.cluster.clone(),
        restorable: if past.has_log() { restorable(past).await? } else { Restorable::default() },
        history: if history { Some(history_graph(past).await?) } else { None },
    }))
}

/// The newest verifications that came to their end, the newest first. One that can't be read is `verify`'s matter.
async fn records(repository: &Repository, cluster: &str) -> Result<Vec<VerifyRecord>> {
    let mut records = Vec::new();
    let mut not_signed = 0_usize;
    for id in repository.verification_ids(cluster).await?.iter().rev().take(RECORDS) {
        match repository.verification(cluster, id).await {
            Ok(record) => records.push(record),
            Err(RepoError { problem: Problem::Untrusted(_), .. }) => not_signed += 1,
            Err(error) => tracing::warn!(%error, "a record of a verification can't be read"),
        }
    }
    if not_signed > 0 {
        tracing::warn!(
            "{not_signed} records of verifications of `{cluster}` are not signed by this repository's key, and say nothing here: earlier versions \
             did not sign them; `slotkeep verify` makes one that is"
        );
    }
    records.retain(|record| record.complete);
    Ok(records)
}

/// How deep a verification looked at a backup; nothing if it did not. A drill restores one backup, and a running cluster is compared with
/// the newest bases: of the others they say what the depths before them say.
fn depth_of(id: &str, record: &VerifyRecord) -> Option<Depth> {
    let is_live = record.live.as_ref().is_some_and(|live| live.backups.iter().any(|backup| backup == id));
    let is_drilled = record.drill.as_ref().is_some_and(|drill| drill.backup == id);
    match (is_live, is_drilled) {
        (true, _) => Some(Depth::Live),
        (_, true) => Some(Depth::Drill),
        _ if record.only && record.depth > Depth::Chain => None,
        _ => Some(record.depth.min(Depth::Chain)),
    }
}

/// What is known of a backup: the newest bad news, if the last word is bad; else the deepest proof, and of those the newest.
fn proved(id: &str, records: &[VerifyRecord]) -> Option<Proved> {
    let mut known: Vec<Proved> = Vec::new();
    for record in records {
        let Some(verdict) = record.backups.iter().find(|verdict| verdict.id == id) else { continue };
        let Some(depth) = depth_of(id, record) else { continue };
        let drill = record.drill.as_ref().filter(|drill| drill.backup == id);
        known.push(Proved {
            depth,
            worst: verdict.worst,
            at: record.finished_at,
            sample_percent: record.sample_percent,
            rto_ms: drill.and_then(|drill| drill.rto_ms),
            record: record.id.clone(),
        });
    }
    if known.first().is_some_and(|newest| newest.worst >= Severity::Warning) {
        return known.into_iter().next();
    }
    // The newest comes first and is kept among equals.
    let good = known.into_iter().filter(|proved| proved.worst < Severity::Warning);
    good.reduce(|best, next| if next.depth > best.depth { next } else { best })
}

fn row(manifest: &Manifest, records: &[VerifyRecord]) -> Row {
    let server = manifest.shards.first().and_then(|shard| shard.server.version());
    Row {
        cluster: manifest.cluster.clone(),
        id: manifest.id.clone(),
        kind: kind_text(manifest.kind).to_owned(),
        source: manifest.read_source(),
        read: manifest.read_interval().map(|(from, until)| ReadSpan { from, until }),
        cut: manifest.cut.as_ref().map(|cut| cut.at),
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
