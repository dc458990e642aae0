//! Backups whose bases do not come over a replication link: for servers that refuse it, and for an agent beside the data.
//!
//! Invariants: as for every backup, the manifest is written last, and a backup that fails or is stopped takes back its bases; shards share no
//! cut, and only append-only files give any; every base says how it was read and from when to when. A base that stands at no offset of a
//! history of the server belongs to a history of its own, whose name is made up, so that nothing of another's is ever taken for its log.

mod aof;
mod aof_files;
mod aof_line;
mod aof_log;
mod data_dirs;
mod key_link;
mod key_list;
mod pace;
mod rdb_out;
mod scan;
mod sealed;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{BackupKind, ReadSource, ShardCut, ShardRecord};
use slotkeep_model::ReplId;
use slotkeep_repo::Repository;
use slotkeep_wire::resp::{Command, Value};
use tokio_util::task::AbortOnDropHandle;

use super::base::TakenBase;
use super::commit::{Heading, Part, commit};
use super::plan::{Candidate, ShardPlan, look_again};
use super::{BackupOptions, BackupPlan, new_backup_id};
use crate::archive::gates::Gates;
use crate::archive::rebase::catch_up;
use crate::engine::EngineOptions;
use crate::net::Connection;
use crate::ports::random_hex;
use crate::progress::{Phase, ShardProgress};
use crate::settings::{SettingsOptions, read_settings};
use crate::{Context, Error, ErrorKind, Result};

use aof_line::KnownLines;
pub use data_dirs::{DataDirs, find_data_dirs};
pub use scan::ScanOptions;

/// Where bases are read from.
#[derive(Clone, Debug)]
pub enum Reading {
    /// Key by key.
    Scan(ScanOptions),
    /// From the files of `BGSAVE`, in these folders. At least one node of every shard of the plan needs one.
    Snapshot(DataDirs),
    /// From the append-only files in these folders. A private server applies those whose base is no RDB.
    Aof(DataDirs, EngineOptions),
    /// From the files that the servers' own `BACKUP` seals in these folders.
    Sealed(DataDirs),
}

/// How a shard's base was read, in words that follow on "was".
pub(crate) fn how_read(shard: &ShardRecord) -> String {
    let Some(read) = &shard.read else { return "taken over a replication link".to_owned() };
    match read.source {
        ReadSource::Scan => format!("read key by key (SCAN) from {} to {}", read.from, read.until),
        ReadSource::Snapshot => "read from the file of a BGSAVE that names no offset".to_owned(),
        ReadSource::Aof if read.aof.is_none() => "made from an append-only file".to_owned(),
        ReadSource::Aof => "read from an append-only file".to_owned(),
        ReadSource::Backup => "read from the files of the server's own BACKUP".to_owned(),
    }
}

/// Takes the full backup that was planned, without replication. `progress` has a row for each shard of the plan. Of the options about the log
/// the size of its pieces alone counts.
pub async fn read_backup(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
    reading: &Reading,
    progress: &[Arc<ShardProgress>],
) -> Result<Manifest> {
    read_as((context, repository), plan, options, (reading, None), progress).await
}

/// Takes what was appended to the servers' append-only files since the newest backup of them. Fails with [`ErrorKind::Gap`] if there is none, or if
/// a file was rewritten since.
pub async fn read_incremental(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
    reading: &Reading,
    progress: &[Arc<ShardProgress>],
) -> Result<Manifest> {
    if !matches!(reading, Reading::Aof(..)) {
        let what = "only append-only files are gone on with where they were left";
        return Err(Error::new(ErrorKind::Usage, what).hint("--source files --files-from aof"));
    }
    let known = context.unless_stopped(KnownLines::read(repository, &options.cluster)).await?;
    read_as((context, repository), plan, options, (reading, Some(known)), progress).await
}

async fn read_as(
    (context, repository): (&Context, &Repository),
    plan: &BackupPlan,
    options: &BackupOptions,
    (reading, known): (&Reading, Option<KnownLines>),
    progress: &[Arc<ShardProgress>],
) -> Result<Manifest> {
    // Before hours are spent on what could not be signed.
    repository.check_signs()?;
    let id = new_backup_id(context)?;
    let started_at = context.clock.now();
    let settings_options = SettingsOptions { include_secrets: options.include_secrets };
    let topology = plan.discovery.topology();
    let settings = context.unless_stopped(read_settings(context, topology, &settings_options)).await?;
    let kind = if known.is_some() { BackupKind::Incremental } else { BackupKind::Full };
    let job = Arc::new(Job {
        // When one shard fails the others stop as well, in order.
        context: Context { stop: context.stop.child_token(), ..context.clone() },
        repository: repository.clone(),
        options: options.clone(),
        id: id.clone(),
        cluster_mode: topology.cluster_mode,
        reading: reading.clone(),
        known,
        gates: Gates::new(options.jobs, options.jobs_per_host),
    });
    let mut taken = BTreeMap::new();
    let outcome = async {
        read_shards(&job, plan, progress, &mut taken).await?;
        let discovery = context.unless_stopped(look_again(context, plan)).await?;
        let parts = plan.shards.iter().enumerate().filter_map(|(number, shard)| {
            let (base, cut) = taken.get(&number)?;
            let (shard, base) = (shard.shard.clone(), Arc::clone(base));
            Some(Part { shard, base, cut: cut.clone(), histories: vec![] })
        });
        let parts: Vec<Part> = parts.collect();
        let cluster = options.cluster.clone();
        let heading = Heading { id, cluster, kind, started_at, settings, cut: None };
        commit(context, repository, discovery.topology(), heading, &parts).await
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        for row in progress.iter().filter(|row| row.phase() != Phase::Done) {
            row.enter(Phase::Failed);
        }
        for (base, _) in taken.values() {
            base.take_back(repository).await;
        }
    }
    outcome
}

/// A shard's part of a backup.
struct Taken {
    base: TakenBase,
    /// Where the log behind the base ends, if there is one.
    cut: Option<ShardCut>,
}

impl From<TakenBase> for Taken {
    fn from(base: TakenBase) -> Self {
        Self { base, cut: None }
    }
}

/// Reads every shard; what was stored stands in `taken` whatever comes of the others.
async fn read_shards(
    job: &Arc<Job>,
    plan: &BackupPlan,
    progress: &[Arc<ShardProgress>],
    taken: &mut BTreeMap<usize, (Arc<TakenBase>, Option<ShardCut>)>,
) -> Result<()> {
    let shards = plan.shards.iter().cloned().zip(progress).enumerate();
    let mut running: FuturesUnordered<_> = shards
        .map(|(number, (shard, progress))| {
            let (job, progress) = (Arc::clone(job), Arc::clone(progress));
            // A task each, so that shards are read and checked on all cores.
            AbortOnDropHandle::new(tokio::spawn(async move { (number, job.shard(&shard, &progress).await) }))
        })
        .collect();
    let mut outcome = Ok(());
    while let Some(done) = running.next().await {
        let failed = match done {
            Ok((number, Ok(Taken { base, cut }))) => {
                taken.insert(number, (Arc::new(base), cut));
                continue;
            }
            Ok((_, Err(error))) => error,
            Err(error) => Error::new(ErrorKind::Failed, format!("a reader ended unexpectedly: {error}")),
        };
        // The first error is the one to report.
        if outcome.is_ok() {
            job.context.stop.cancel();
            outcome = Err(failed);
        }
    }
    outcome
}

/// What the shards of a backup have in common.
struct Job {
    context: Context,
    repository: Repository,
    options: BackupOptions,
    id: String,
    cluster_mode: bool,
    reading: Reading,
    /// What an incremental backup may go on behind; a full one does without.
    known: Option<KnownLines>,
    gates: Gates,
}

impl Job {
    /// Reads one shard, from its next node if one fails.
    async fn shard(&self, shard: &ShardPlan, progress: &Arc<ShardProgress>) -> Result<Taken> {
        let mut last: Option<Error> = None;
        for candidate in &shard.candidates {
            let turn = async { Ok(self.gates.enter(candidate.addr.host()).await) };
            let _turn = self.context.unless_stopped(turn).await?;
            progress.restart();
            progress.expected_keys.store(candidate.keys, Ordering::Relaxed);
            match self.read(shard, candidate, progress).await {
                Ok(base) => {
                    progress.enter(Phase::Done);
                    return Ok(base);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                // Another node of the shard may be the one whose file was read before.
                Err(error) if error.kind() == ErrorKind::Gap => {
                    let known = self.known.as_ref().and_then(|known| known.last_of(&shard.shard, candidate));
                    if known.is_some() || last.is_none() {
                        last = Some(error);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Unreachable => {
                    tracing::warn!(node = %candidate.addr, %error, "the node could not be read");
                    last = Some(error);
                }
                Err(error) => return Err(error.context(format!("shard with slots {}", shard.shard.slots))),
            }
        }
        let none = || Error::new(ErrorKind::Unreachable, "it has no node that can be read");
        Err(last.unwrap_or_else(none).context(format!("shard with slots {}", shard.shard.slots)))
    }

    async fn read(
        &self,
        shard: &ShardPlan,
        candidate: &Candidate,
        progress: &Arc<ShardProgress>,
    ) -> Result<Taken> {
        catch_up(&self.context, candidate, shard.written_to).await?;
        match &self.reading {
            Reading::Scan(options) => Ok(scan::take(self, options, shard, candidate, progress).await?.into()),
            Reading::Snapshot(dirs) => Ok(snapshot::take(self, dirs, candidate, progress).await?.into()),
            Reading::Sealed(dirs) => {
                Box::pin(sealed::take(self, dirs, &shard.shard, candidate, progress)).await
            }
            Reading::Aof(dirs, engine) => {
                let known = self.known.as_ref();
                Box::pin(aof::take(self, (dirs, engine), known, &shard.shard, candidate, progress)).await
            }
        }
    }

    /// A name for a history that no server has.
    fn made_up_history(&self) -> Result<ReplId> {
        let text = random_hex(&*self.context.rng, ReplId::LEN)?;
        text.parse().map_err(|_| Error::new(ErrorKind::Failed, format!("`{text}` is no name for a history")))
    }
}

/// The server's own time; that of this machine if the user may not ask for it.
async fn server_time(context: &Context, connection: &mut Connection) -> Result<Timestamp> {
    let reply = connection.exchange(&Command::new("TIME")).await?;
    Ok(time_of(&reply).unwrap_or_else(|| context.clock.now()))
}

/// What `TIME` tells.
fn time_of(reply: &Value) -> Option<Timestamp> {
    let [seconds, microseconds] = reply.as_array()? else { return None };
    let (seconds, microseconds) = (seconds.as_i64()?, microseconds.as_i64()?);
    Timestamp::new(seconds, i32::try_from(microseconds.checked_mul(1000)?).ok()?).ok()
}
