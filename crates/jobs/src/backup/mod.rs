//! A full backup: a base of every shard, then the manifest.
//!
//! Invariants: the manifest is written last, when everything it names is durable; a backup that fails or is interrupted takes
//! back what it stored and is never listed.

mod capture;
mod interpret;
mod pipeline;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{
    BackupKind, BaseRecord, CrcRecord, FORMAT_VERSION, NodeRecord, ObjectRecord, ShardRecord,
};
use slotkeep_model::{Node, SlotDigest};
use slotkeep_rdb::Crc;
use slotkeep_repo::Repository;
use tokio::sync::Semaphore;

pub(crate) use interpret::{HASH_VERSION, Interpreter, NotUnderstood};
pub use plan::{BackupPlan, Candidate, Prefer, ShardPlan, plan};

use crate::discover::{discover, node_report, nodes_moving_slots};
use crate::ports::random_hex;
use crate::progress::{Phase, ShardProgress};
use crate::settings::{SettingsOptions, read_settings};
use crate::{Context, Error, ErrorKind, Result};
use capture::{Captured, Destination, capture, discard_base};

/// How long a replica may take to receive what its primary had written when the backup was planned.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked.
const CATCH_UP_LOOK: Duration = Duration::from_millis(50);

/// How to take a backup.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The name under which the repository keeps the cluster's backups.
    pub cluster: String,
    /// At most so many shards at a time.
    pub jobs: usize,
    /// At most so many shards at a time from nodes of one host.
    pub jobs_per_host: usize,
    /// Whether passwords and their hashes are stored as well.
    pub include_secrets: bool,
}

/// An id for a backup that begins now. Ids sort by time, to the millisecond: the latest backup is the one whose id is last, and
/// small clusters are backed up more than once a second.
pub fn new_backup_id(context: &Context) -> Result<String> {
    let time = context.clock.now().strftime("%Y%m%dT%H%M%S.%3fZ").to_string();
    Ok(format!("{time}-{}", random_hex(&*context.rng, 4)?))
}

/// Takes the backup that was planned. `progress` has a row for each shard of the plan. Cancelling it is safe for the
/// cluster but may leave unlisted objects in the repository; to stop in order, cancel [`Context::stop`].
pub async fn backup(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
    progress: &[Arc<ShardProgress>],
) -> Result<Manifest> {
    let id = new_backup_id(context)?;
    let started_at = context.clock.now();
    let settings_options = SettingsOptions { include_secrets: options.include_secrets };
    let settings = read_settings(context, plan.discovery.topology(), &settings_options);
    let settings = context.unless_stopped(settings).await?;
    let destination = Destination { repository, cluster: &options.cluster, backup_id: &id };
    let taken = capture_all(context, plan, options, &destination, progress).await;
    let outcome = match taken.outcome {
        Ok(()) => context.unless_stopped(check_topology(context, plan)).await,
        Err(error) => Err(error),
    };
    let shards: Vec<ShardRecord> = taken.shards.into_iter().flatten().collect();
    if let Err(error) = outcome {
        take_back(repository, &shards).await;
        return Err(error);
    }
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        id,
        cluster: options.cluster.clone(),
        kind: BackupKind::Full,
        partial: !plan.missing_slots.is_empty(),
        missing_slots: plan.missing_slots.clone(),
        started_at,
        finished_at: context.clock.now(),
        slotkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_mode: plan.discovery.topology().cluster_mode,
        current_epoch: plan.discovery.topology().current_epoch,
        cut: None,
        digest: taken.digest,
        shards,
        settings,
    };
    if let Err(error) = repository.commit(&manifest).await {
        take_back(repository, &manifest.shards).await;
        return Err(error.into());
    }
    Ok(manifest)
}

/// What the shards came to: records of those that succeeded, in the order of the plan, and the first failure.
struct Taken {
    shards: Vec<Option<ShardRecord>>,
    digest: Option<SlotDigest>,
    outcome: Result<()>,
}

async fn capture_all(
    context: &Context,
    plan: &BackupPlan,
    options: &BackupOptions,
    destination: &Destination<'_>,
    progress: &[Arc<ShardProgress>],
) -> Taken {
    // When one shard fails the others stop as well, in order.
    let context = Context { stop: context.stop.child_token(), ..context.clone() };
    let gates = Gates::new(plan, options);
    let mut running: FuturesUnordered<_> = plan
        .shards
        .iter()
        .zip(progress)
        .enumerate()
        .map(|(number, (shard, progress))| {
            let (context, gates) = (&context, &gates);
            async move { (number, capture_shard(context, shard, gates, destination, progress).await) }
        })
        .collect();
    let mut taken = Taken {
        shards: plan.shards.iter().map(|_| None).collect(),
        digest: Some(SlotDigest::default()),
        outcome: Ok(()),
    };
    while let Some((number, outcome)) = running.next().await {
        match outcome {
            Ok((record, digest)) => {
                taken.digest = taken.digest.zip(digest).map(|(mut sum, more)| {
                    sum.merge(more);
                    sum
                });
                if let Some(place) = taken.shards.get_mut(number) {
                    *place = Some(record);
                }
            }
            Err(error) => {
                if let Some(progress) = progress.get(number) {
                    progress.enter(Phase::Failed);
                }
                if taken.outcome.is_ok() {
                    taken.outcome = Err(error);
                }
                context.stop.cancel();
            }
        }
    }
    taken
}

/// Who may run: so many at a time, and so many a host.
struct Gates {
    all: Semaphore,
    hosts: HashMap<String, Semaphore>,
}

impl Gates {
    fn new(plan: &BackupPlan, options: &BackupOptions) -> Self {
        let hosts = plan
            .shards
            .iter()
            .flat_map(|shard| &shard.candidates)
            .map(|candidate| candidate.addr.host().to_owned());
        let gate = || Semaphore::new(options.jobs_per_host.max(1));
        Self { all: Semaphore::new(options.jobs.max(1)), hosts: hosts.map(|host| (host, gate())).collect() }
    }
}

/// Captures one shard from the best node that can be captured.
async fn capture_shard(
    context: &Context,
    plan: &ShardPlan,
    gates: &Gates,
    destination: &Destination<'_>,
    progress: &Arc<ShardProgress>,
) -> Result<(ShardRecord, Option<SlotDigest>)> {
    let doing = format!("shard with slots {}", plan.shard.slots);
    let mut failures: Vec<Error> = Vec::new();
    for candidate in &plan.candidates {
        // A host's turn first: a shard that waits for its host must not keep others from theirs.
        let turn = async {
            let host = gates.hosts.get(candidate.addr.host()).map(Semaphore::acquire);
            (futures::future::OptionFuture::from(host).await, gates.all.acquire().await)
        };
        let _turn = tokio::select! {
            turn = turn => turn,
            () = context.stop.cancelled() => return Err(Error::interrupted()),
        };
        progress.expected_keys.store(candidate.keys, Ordering::Relaxed);
        let captured = match catch_up(context, candidate, plan.written_to).await {
            Ok(()) => capture(context, &candidate.addr, destination, progress).await,
            Err(error) => Err(error),
        };
        match captured {
            Ok(captured) => {
                let layout = captured.layout.clone();
                let taken = record(destination.repository, plan, candidate, captured).await;
                match taken {
                    Ok(_) => progress.enter(Phase::Done),
                    Err(_) => discard_base(destination.repository, &layout).await,
                }
                return taken;
            }
            Err(error) if another_node_may_do(&error) => {
                tracing::warn!(node = %candidate.addr, %error, "this node could not be captured");
                failures.push(error);
            }
            Err(error) => return Err(error.context(doing)),
        }
    }
    let first = failures.into_iter().next();
    let first = first.unwrap_or_else(|| Error::new(ErrorKind::Unreachable, "no node can be captured"));
    Err(first.context(doing))
}

/// Waits until a replica has received what its primary had written when the backup was planned. A replica that has just attached
/// says that its link is up a second before the stream flows (the primary waits for its first acknowledgement).
async fn catch_up(context: &Context, candidate: &Candidate, written_to: Option<u64>) -> Result<()> {
    let Some(wanted) = written_to.filter(|offset| candidate.offset < *offset) else { return Ok(()) };
    let wait = async {
        let began = context.clock.elapsed();
        loop {
            let report = node_report(context, &candidate.addr).await?;
            if report.offset >= wanted {
                return Ok(());
            }
            if context.clock.elapsed().saturating_sub(began) > CATCH_UP_LIMIT {
                let behind = wanted.saturating_sub(report.offset);
                let words = format!("{}: it is still {behind} bytes behind its primary", candidate.addr);
                return Err(Error::new(ErrorKind::Unreachable, words)
                    .hint("find out why the replica lags, or take the primary: --prefer primary"));
            }
            context.clock.sleep(CATCH_UP_LOOK).await;
        }
    };
    context.unless_stopped(wait).await
}

fn another_node_may_do(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Failed | ErrorKind::Corrupt)
}

async fn record(
    repository: &Repository,
    plan: &ShardPlan,
    candidate: &Candidate,
    captured: Captured,
) -> Result<(ShardRecord, Option<SlotDigest>)> {
    let Captured { history, offset, server_time, report, layout } = captured;
    let mut base = BaseRecord {
        rdb: report.rdb,
        rdb_version: report.envelope.version,
        crc64: match report.envelope.crc {
            Crc::Matches(_) => CrcRecord::Verified,
            Crc::NotComputed | Crc::None => CrcRecord::NotComputed,
        },
        index: None,
        digest: None,
        keys: None,
        functions: None,
        not_interpreted: None,
    };
    let mut total = None;
    match report.interpretation {
        Ok((interpretation, index)) => {
            let bytes = slotkeep_format::encode_digest(&interpretation.digest, HASH_VERSION);
            base.index = Some(index);
            base.digest = Some(put_digest(repository, layout.digest(), bytes).await?);
            base.keys = Some(interpretation.digest.keys());
            base.functions = Some(interpretation.digest.functions.keys);
            total = Some(interpretation.digest.total());
        }
        Err(reason) => base.not_interpreted = Some(reason),
    }
    let node = |node: &Node| NodeRecord { id: node.id.clone(), addr: node.addr.clone(), online: node.online };
    let record = ShardRecord {
        slots: plan.shard.slots.clone(),
        config_epoch: plan.shard.config_epoch,
        primary: node(&plan.shard.primary),
        replicas: plan.shard.replicas.iter().map(node).collect(),
        source: candidate.addr.clone(),
        source_role: candidate.role.into(),
        server: candidate.server.into(),
        history,
        offset: offset.0,
        server_time,
        base,
        cut: None,
    };
    Ok((record, total))
}

async fn put_digest(repository: &Repository, path: String, bytes: Vec<u8>) -> Result<ObjectRecord> {
    let raw_bytes = bytes.len() as u64;
    let mut writer = repository.create_object(path).await?;
    match writer.write(bytes.into()).await {
        Ok(()) => Ok(writer.finish(raw_bytes).await?),
        Err(error) => {
            // The first error is the one to report.
            let _ = writer.abort().await;
            Err(error.into())
        }
    }
}

/// Fails if slots have changed hands since the plan was made: a key that moved could have been missed or taken twice.
async fn check_topology(context: &Context, plan: &BackupPlan) -> Result<()> {
    let seeds: Vec<_> = std::iter::once(plan.discovery.answered.clone())
        .chain(
            plan.shards
                .iter()
                .flat_map(|shard| shard.candidates.iter().map(|candidate| candidate.addr.clone())),
        )
        .collect();
    let now =
        discover(context, &seeds).await.map_err(|error| error.context("looking at the cluster once more"))?;
    let owners = |topology: &slotkeep_model::Topology| {
        let mut slots: Vec<String> = topology.shards.iter().map(|shard| shard.slots.to_string()).collect();
        slots.sort();
        slots
    };
    let moved = owners(now.topology()) != owners(plan.discovery.topology());
    if moved || now.slots_are_moving() || !nodes_moving_slots(context, now.topology()).await.is_empty() {
        return Err(Error::new(
            ErrorKind::NotACluster,
            "slots moved between shards during the backup: a key could have been missed or taken twice",
        )
        .hint("nothing was stored; run it again when no slots are being moved"));
    }
    Ok(())
}

/// Deletes what was stored for a backup that is not going to be listed. What can't be deleted stays, unlisted.
async fn take_back(repository: &Repository, shards: &[ShardRecord]) {
    for object in shards.iter().flat_map(|shard| shard.base.objects()) {
        if let Err(error) = repository.discard(&object.path).await {
            tracing::warn!(%error, "an unlisted object stays in the repository");
        }
    }
}
