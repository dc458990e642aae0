//! Into a running cluster: every key of a backup as a command, to whichever node serves its slot.
//!
//! How it stays exact:
//!
//! - Nothing is written before the target was found able to take the backup (`plan`) and every object was read and found whole.
//! - A key appears whole or not at all: `RESTORE`, or elements under a temporary name that is renamed at the end.
//! - A command whose answer was lost is sent again; an answer that another node serves the slot is followed.
//! - *Keys that exist.* With `replace` they are replaced, however often a key is sent. With `fail` and `skip` `REPLACE` is never used, so
//!   what a client wrote is never overwritten; instead, a key that exists is taken for this restore's own where this restore may have
//!   written it: after a lost answer, in the stretch between what an interrupted run had acknowledged and what it had promised, and
//!   when slots are gone through once more. Keys appear whole, so one that exists needs nothing further. With `fail` it can't be anything
//!   else, for the target held no key in those slots; with `skip` it is right either way.
//! - Replication is asynchronous: a replica that takes over, or a server that starts again, may lack acknowledged keys. The slots of
//!   such a server are gone through once more, from the beginning, until a look at the end finds every server the one it was.

mod batch;
mod functions;
mod journal;
mod lane;
mod large;
mod options;
mod pass;
mod plan;
mod run;
mod source;
mod target;
mod tracker;
mod vacancy;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use slotkeep_format::Manifest;
use slotkeep_model::{NodeAddr, SlotSet};
use slotkeep_repo::Repository;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use options::{Coverage, LiveOptions, LiveReport, NodeReport, OnConflict};
pub use plan::{LivePlan, PlannedNode, plan};

use crate::discover::read_info;
use crate::progress::{Phase, ShardProgress};
use crate::{Context, Error, Result};
use functions::Library;
use journal::{Journal, ShardRecord};
use pass::Pass;
use run::Run;
use tracker::{Position, Tracker};

const JOURNAL_EVERY: Duration = Duration::from_secs(1);
/// How long to wait for replicas at the end.
const REPLICAS_LIMIT: Duration = Duration::from_secs(30);
const REPLICAS_EVERY: Duration = Duration::from_millis(100);
/// How often slots are gone through once more before giving up: each time a server was replaced meanwhile.
const MOST_REPAIRS: u32 = 10;

/// Does what was planned. `progress` has a row for each shard of the backup. To stop in order, cancel [`Context::stop`]: the state
/// file then tells where to go on.
pub async fn restore(
    context: &Context,
    repository: &Repository,
    manifest: &Manifest,
    plan: LivePlan,
    options: &LiveOptions,
    progress: &[Arc<ShardProgress>],
) -> Result<LiveReport> {
    let started = context.clock.elapsed();
    verify(context, repository, manifest, options, progress).await?;
    let resumed_at_percent = plan.resumes_at_percent;
    let warnings = plan.warnings;
    let parts = plan.parts;
    if parts.resumes {
        parts.target.suspect(&parts.record.suspects(&parts.target.map()));
    }
    let starts: Vec<ShardRecord> = parts.record.shards.clone();
    let restore_id = parts.record.restore_id.clone();
    let trackers: Vec<Arc<Tracker>> = starts.iter().map(|start| Tracker::new(start.acknowledged)).collect();
    let run = Run::start(context.clone(), parts.target, options.clone());
    let journal = Journal::new(options.state.clone(), parts.record, trackers.clone());
    let restore = Restore {
        run: &run,
        repository,
        manifest,
        libraries: &parts.libraries,
        journal: &journal,
        trackers: &trackers,
        starts: &starts,
        id: &restore_id,
        progress,
    };
    let outcome = restore.all(warnings).await;
    run.end().await;
    match outcome {
        Ok(mut report) => {
            journal.remove();
            report.resumed_at_percent = resumed_at_percent;
            report.seconds = context.clock.elapsed().saturating_sub(started).as_secs_f64();
            Ok(report)
        }
        Err(error) => {
            run.fail(error);
            let saved = journal.save(&run).await;
            let error = run.why_ended();
            match saved {
                Ok(()) => Err(error.hint("run the same command again: it goes on from here")),
                Err(unsaved) => Err(error.context(unsaved)),
            }
        }
    }
}

/// Reads every object to its end, so that a backup that is not whole changes nothing on the target.
async fn verify(
    context: &Context,
    repository: &Repository,
    manifest: &Manifest,
    options: &LiveOptions,
    progress: &[Arc<ShardProgress>],
) -> Result<()> {
    let gate = Semaphore::new(options.jobs.max(1));
    let mut running: FuturesUnordered<_> = manifest
        .shards
        .iter()
        .zip(progress)
        .map(|(shard, progress)| {
            let gate = &gate;
            async move {
                let _turn = gate.acquire().await;
                progress.enter(Phase::Verifying);
                for object in shard.base.objects() {
                    repository
                        .verify(object, |bytes| crate::progress::add(&progress.stored_bytes, bytes))
                        .await?;
                }
                progress.enter(Phase::Queued);
                Ok::<(), Error>(())
            }
        })
        .collect();
    loop {
        tokio::select! {
            next = running.next() => match next {
                Some(verified) => verified?,
                None => return Ok(()),
            },
            () = context.stop.cancelled() => return Err(Error::interrupted()),
        }
    }
}

/// A restore that is under way.
struct Restore<'a> {
    run: &'a Arc<Run>,
    repository: &'a Repository,
    manifest: &'a Manifest,
    libraries: &'a [Library],
    journal: &'a Journal,
    trackers: &'a [Arc<Tracker>],
    starts: &'a [ShardRecord],
    id: &'a str,
    progress: &'a [Arc<ShardProgress>],
}

impl Restore<'_> {
    async fn all(&self, mut warnings: Vec<String>) -> Result<LiveReport> {
        // First of all: a state file that can't be written must not be found out later.
        self.journal.save(self.run).await?;
        let functions = self.load_functions().await?;
        // Side by side to the end: either may hold the journal's lock while the other waits for it, and a save that were left
        // half-way could bring the file back after it was removed.
        let finished = CancellationToken::new();
        let work = async {
            let outcome = self.keys().await;
            finished.cancel();
            outcome
        };
        let (repaired, ()) = futures::join!(work, self.save_every_second(&finished));
        let repaired = repaired?;
        warnings.extend(self.replicas_behind().await?);
        Ok(self.report(functions, repaired.len(), warnings))
    }

    async fn save_every_second(&self, finished: &CancellationToken) {
        loop {
            tokio::select! {
                () = finished.cancelled() => return,
                () = self.run.context.clock.sleep(JOURNAL_EVERY) => {}
            }
            if let Err(error) = self.journal.save(self.run).await {
                self.run.fail(error);
                return;
            }
        }
    }

    async fn load_functions(&self) -> Result<u64> {
        let context = &self.run.context;
        let nodes: Vec<NodeAddr> = self.run.target.map().nodes.iter().map(|node| node.addr.clone()).collect();
        let policy = self.run.options.on_conflict;
        let loadings = functions::compare(context, &nodes, self.libraries, policy).await?;
        functions::load(context, &loadings).await
    }

    /// Restores every key; gives the slots that were gone through more than once.
    async fn keys(&self) -> Result<SlotSet> {
        self.passes(None).await?;
        let mut repaired: Vec<slotkeep_model::Slot> = Vec::new();
        for _ in 0..MOST_REPAIRS {
            self.look_until_whole().await?;
            let suspects = self.run.target.begin_repair();
            if suspects.is_empty() {
                return Ok(repaired.into_iter().collect());
            }
            tracing::warn!(slots = %suspects, "a server of the target was replaced or restarted: its slots are gone through once more");
            self.load_functions().await?;
            self.passes(Some(&suspects)).await?;
            self.run.target.end_repair();
            repaired.extend(suspects.iter());
        }
        Err(Error::new(
            crate::ErrorKind::Unreachable,
            "servers of the target were replaced again and again meanwhile",
        )
        .hint("see why the target is not stable, then run the same command again"))
    }

    /// Looks at the target until it is whole: a failover may be under way.
    async fn look_until_whole(&self) -> Result<()> {
        let clock = &self.run.context.clock;
        let begun = clock.elapsed();
        for attempt in 0.. {
            match self.run.target.look_again(&self.run.context, None).await {
                Ok(()) => break,
                Err(error) if clock.elapsed().saturating_sub(begun) > self.run.options.patience => {
                    return Err(error.context("looking at the target once more"));
                }
                Err(error) => tracing::info!(%error, "the target is not whole at the moment"),
            }
            self.run.pause(attempt).await;
            if self.run.halt.is_cancelled() {
                return Err(self.run.why_ended());
            }
        }
        Ok(())
    }

    /// Goes through every base: all of it that is not done, or only those slots but from the beginning.
    async fn passes(&self, only: Option<&SlotSet>) -> Result<()> {
        let gate = Semaphore::new(self.run.options.jobs.max(1));
        let shards =
            self.manifest.shards.iter().zip(self.progress).zip(self.trackers).zip(self.starts).enumerate();
        let mut running: FuturesUnordered<_> = shards
            .filter(|(_, (((shard, _), _), _))| {
                only.is_none_or(|only| !only.intersection(&shard.slots).is_empty())
            })
            .map(|(number, (((shard, progress), tracker), start))| {
                let gate = &gate;
                async move {
                    let _turn = gate.acquire().await;
                    let from = if only.is_some() { Position::default() } else { start.acknowledged };
                    let base = &shard.base;
                    begin_progress(progress, from, base.rdb.raw_bytes, base.keys.unwrap_or(0));
                    let once_more = Tracker::new(from);
                    let pass = Pass {
                        run: self.run,
                        repository: self.repository,
                        base,
                        shard: number,
                        tracker: if only.is_some() { &once_more } else { tracker },
                        only,
                        tolerant_below: if only.is_some() { u64::MAX } else { start.promised },
                        journal: only.is_none().then_some(self.journal),
                        progress,
                        id: self.id,
                    };
                    let outcome = pass.run(from).await;
                    if outcome.is_err() {
                        progress.enter(Phase::Failed);
                    }
                    outcome.map_err(|error| error_of_shard(error, &shard.slots))
                }
            })
            .collect();
        let mut outcome = Ok(());
        while let Some(done) = running.next().await {
            if let Err(error) = done {
                // The others stop as well, in order; the first reason is kept.
                self.run.fail(error);
                outcome = Err(());
            }
        }
        outcome.map_err(|()| self.run.why_ended())
    }

    /// Waits until the replicas have what their primaries acknowledged; a warning if some don't in time.
    async fn replicas_behind(&self) -> Result<Option<String>> {
        let context = &self.run.context;
        let begun = context.clock.elapsed();
        let mut behind = Vec::new();
        for node in &self.run.target.map().nodes {
            let mut connection = context.connector.connect(&node.addr).await?;
            let odd = |error: slotkeep_wire::info::InfoError| {
                Error::new(crate::ErrorKind::Failed, error.to_string())
            };
            let wanted = read_info(&mut connection).await?.replication().map_err(odd)?.offset;
            loop {
                let replicas = read_info(&mut connection).await?.replication().map_err(odd)?.replicas;
                let late = replicas.iter().filter(|replica| replica.offset < wanted).count();
                if late == 0 {
                    break;
                }
                if context.clock.elapsed().saturating_sub(begun) > REPLICAS_LIMIT {
                    behind.push(format!("{late} of {}", node.addr));
                    break;
                }
                tokio::select! {
                    () = context.clock.sleep(REPLICAS_EVERY) => {}
                    () = context.stop.cancelled() => return Err(Error::interrupted()),
                }
            }
        }
        Ok((!behind.is_empty())
            .then(|| format!("replicas do not have everything yet: {}", behind.join(", "))))
    }

    fn report(&self, functions: u64, repaired_slots: usize, mut warnings: Vec<String>) -> LiveReport {
        let counters = &self.run.counters;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let nodes = counters.restored_by_node();
        let without_metadata = count(&counters.without_metadata);
        if without_metadata > 0 {
            warnings.push(format!(
                "{without_metadata} keys had metadata of modules, which RESTORE does not carry over"
            ));
        }
        let pending_left_out = count(&counters.pending_left_out);
        if pending_left_out > 0 {
            warnings.push(format!(
                "{pending_left_out} pending entries of long streams were left out: their stream entries are deleted; a larger --max-restore-bytes brings them too"
            ));
        }
        LiveReport {
            backup: self.manifest.id.clone(),
            restored: nodes.values().sum(),
            skipped_existing: count(&counters.skipped_existing),
            skipped_expired: count(&counters.skipped_expired),
            already_restored: count(&counters.already_restored),
            element_wise: count(&counters.element_wise),
            without_metadata,
            pending_left_out,
            functions,
            rdb_bytes: count(&counters.rdb_bytes),
            sent_bytes: count(&counters.sent_bytes),
            redirected: count(&counters.redirected),
            sent_again: count(&counters.sent_again),
            repaired_slots,
            nodes: nodes
                .into_iter()
                .map(|(node, restored)| NodeReport { node: node.to_string(), restored })
                .collect(),
            warnings,
            ..LiveReport::default()
        }
    }
}

fn begin_progress(progress: &ShardProgress, from: Position, raw_bytes: u64, keys: u64) {
    progress.expected_keys.store(keys, Ordering::Relaxed);
    progress.raw_bytes.store(from.offset, Ordering::Relaxed);
    let done = u128::from(keys) * u128::from(from.offset) / u128::from(raw_bytes.max(1));
    progress.keys.store(u64::try_from(done).unwrap_or(keys), Ordering::Relaxed);
}

fn error_of_shard(error: Error, slots: &SlotSet) -> Error {
    if error.kind() == crate::ErrorKind::Interrupted {
        error
    } else {
        error.context(format!("restoring slots {slots}"))
    }
}
