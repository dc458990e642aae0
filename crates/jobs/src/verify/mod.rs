//! Whether a repository holds what it says: found out, written down, and not done again for what has not changed.
//!
//! ```text
//! inventory (manifests, histories, listings) ─► work (what is not proved yet) ─► looks at single objects, several at a time
//!                                                                              └► judge (what objects must agree on) ─► record
//! ```
//!
//! Invariants: nothing of the cluster's data is changed; what a prune gives up meanwhile is no finding; what is wrong is a finding, and only a store that does not answer is an
//! error; whatever ends a run, what it has proved is written down.

mod base;
mod chain;
mod checks;
mod continuity;
mod drill;
mod findings;
mod inventory;
mod judge;
mod live;
mod log;
mod object;
mod proofs;
mod second_look;
mod steps;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::verify::{DrillRecord, LiveRecord, VERIFY_VERSION, VerifyTotals};
use slotkeep_format::{Depth, VerifyFinding, VerifyRecord};
use slotkeep_model::SlotDigest;
use slotkeep_repo::Repository;
use tokio::task::JoinSet;

use crate::backup::new_backup_id;
use crate::engine::EngineOptions;
use crate::{Context, Error, ErrorKind, Result};
use inventory::Inventory;
use log::Summary;
use object::{Looker, Outcome};
use proofs::{Gone, Known};
use work::{Job, Work};

pub use drill::DrillOptions;
pub use live::LiveOptions;
pub(crate) use proofs::Ledger;

/// What was proved is written down at least this often.
const FLUSH_EVERY: Duration = Duration::from_secs(30);

/// What to verify, and how.
#[derive(Clone)]
pub struct VerifyOptions {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// How deep to go.
    pub depth: Depth,
    /// Whether to leave out the depths before that one, from [`Depth::Chain`] on.
    pub only: bool,
    /// Whether to prove again what was proved before and has not changed.
    pub again: bool,
    /// How many per cent of the objects to choose at random; all if absent.
    pub sample_percent: Option<u8>,
    /// At most so many objects at a time.
    pub jobs: usize,
    /// At most so many shards at a time where a cluster is captured, the drill's own or the running one.
    pub captures: usize,
    /// The private server that applies a log, at [`Depth::Chain`].
    pub engine: EngineOptions,
    /// Where what it gives is put for a while.
    pub spool: PathBuf,
    /// What to restore at [`Depth::Drill`], and with what.
    pub drill: DrillOptions,
    /// What to compare with at [`Depth::Live`].
    pub live: Option<LiveOptions>,
}

impl VerifyOptions {
    /// Whether that depth is looked at.
    fn includes(&self, depth: Depth) -> bool {
        if self.only && self.depth >= Depth::Chain { self.depth == depth } else { self.depth >= depth }
    }
}

/// How far a verification has come.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Stored bytes that there are to read; 0 until that is known.
    pub total_bytes: AtomicU64,
    /// Stored bytes read so far.
    pub stored_bytes: AtomicU64,
    /// Objects that there are to look at.
    pub total_objects: AtomicU64,
    /// Objects proved so far.
    pub objects: AtomicU64,
    /// Pairs of bases that there are.
    pub total_links: AtomicU64,
    /// Pairs looked at so far.
    pub links: AtomicU64,
    /// Findings so far.
    pub findings: AtomicU64,
    /// The step of a drill or of a comparison that is under way.
    pub step: Mutex<Option<&'static str>>,
}

/// Verifies a cluster's part of a repository, and keeps the record there. Stopped, it keeps what was proved and returns
/// [`ErrorKind::Interrupted`].
pub async fn verify(
    context: &Context,
    repository: &Repository,
    options: &VerifyOptions,
    progress: &Arc<VerifyProgress>,
) -> Result<VerifyRecord> {
    // Without its key nothing of it can be proved, nor is anything wrong with it.
    repository.check_reads()?;
    let id = new_backup_id(context)?;
    let started_at = context.clock.now();
    let mut inventory = context.unless_stopped(Inventory::take(repository, &options.cluster)).await?;
    let mut findings = std::mem::take(&mut inventory.findings);
    let is_present = |path| inventory.present.contains(&path);
    let load = Known::load(repository, &options.cluster, is_present, &mut findings);
    let (known, gone) = context.unless_stopped(load).await?;
    let known = if options.again { Known::default() } else { known };
    let work = if options.includes(Depth::Objects) {
        Work::plan(&inventory, &known, options, &id)
    } else {
        Work::default()
    };
    progress.total_bytes.store(work.stored_bytes, Ordering::Relaxed);
    progress.total_objects.store(work.objects, Ordering::Relaxed);
    let mut run = Run {
        context,
        options,
        ledger: Ledger::new(repository, &options.cluster, &id),
        findings,
        totals: work.totals,
        digests: BTreeMap::new(),
        summaries: Vec::new(),
        drill: None,
        live: None,
    };
    let what = What { repository, inventory: &inventory, known: &known, gone: &gone, progress };
    let outcome = run.all(&what, work.jobs).await;
    let looked = run.look_again(repository, &inventory).await;
    let outcome = outcome.and(looked);
    run.ledger.flush().await?;
    let Run { mut findings, mut totals, drill, live, .. } = run;
    totals.stored_bytes = progress.stored_bytes.load(Ordering::Relaxed);
    // Stable: among equals, the order in which they were looked at.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let record = VerifyRecord {
        format_version: VERIFY_VERSION,
        id,
        cluster: options.cluster.clone(),
        depth: options.depth,
        complete: outcome.is_ok(),
        only: options.only,
        again: options.again,
        sample_percent: options.sample_percent,
        started_at,
        finished_at: context.clock.now(),
        slotkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
        totals,
        oldest_proof_at: work.oldest_proof_at,
        backups: judge::verdicts(&inventory, &findings),
        drill,
        live,
        findings,
    };
    repository.put_verification(&record).await?;
    outcome.map(|()| record)
}

/// A run under way.
struct Run<'a> {
    context: &'a Context,
    options: &'a VerifyOptions,
    ledger: Ledger<'a>,
    findings: Vec<VerifyFinding>,
    totals: VerifyTotals,
    /// Of the bases that were taken apart: what their keys add up to.
    digests: BTreeMap<usize, SlotDigest>,
    summaries: Vec<Summary>,
    drill: Option<DrillRecord>,
    live: Option<LiveRecord>,
}

/// What is verified, and what is known of it.
struct What<'a> {
    repository: &'a Repository,
    inventory: &'a Inventory,
    known: &'a Known,
    gone: &'a Gone,
    progress: &'a Arc<VerifyProgress>,
}

impl Run<'_> {
    /// Goes through the depths that are wanted.
    async fn all(&mut self, what: &What<'_>, jobs: Vec<Job>) -> Result<()> {
        let options = self.options;
        let repository = what.repository;
        if options.includes(Depth::Objects) {
            let progress = Arc::clone(what.progress);
            let looker = Looker { repository: repository.clone(), progress, depth: options.depth };
            self.look(&looker, jobs).await?;
            // What is known to be lost keeps other things from being proved.
            self.look_again(repository, what.inventory).await?;
            self.judge(repository, what.inventory, what.known, what.gone).await?;
        }
        if options.includes(Depth::Chain) {
            self.chain(repository, what.inventory, what.known, what.progress).await?;
        }
        if options.includes(Depth::Drill) {
            self.drill = Some(self.drill(repository, &options.drill, what.progress).await?);
        }
        if options.includes(Depth::Live) {
            self.live = Some(self.live(repository, what.progress).await?);
        }
        Ok(())
    }

    /// Looks at single objects, several at a time.
    async fn look(&mut self, looker: &Looker, jobs: Vec<Job>) -> Result<()> {
        let mut waiting = jobs.into_iter();
        let mut running: JoinSet<Result<Outcome>> = JoinSet::new();
        let mut flushed = self.context.clock.elapsed();
        loop {
            while running.len() < self.options.jobs.max(1)
                && let Some(job) = waiting.next()
            {
                let looker = looker.clone();
                running.spawn(async move {
                    match job {
                        Job::Base(job) => looker.base(*job).await,
                        Job::Segment(job) => looker.segment(job).await,
                    }
                });
            }
            let done = tokio::select! {
                done = running.join_next() => done,
                // What is being read is given up: dropping the set ends it.
                () = self.context.stop.cancelled() => {
                    return Err(Error::interrupted().hint("what was proved is kept: run it again to go on"));
                }
            };
            let Some(done) = done else { return Ok(()) };
            let outcome = done.map_err(|error| {
                Error::new(ErrorKind::Failed, format!("a worker ended unexpectedly: {error}"))
            })??;
            self.take(outcome, &looker.progress).await?;
            let now = self.context.clock.elapsed();
            if now.saturating_sub(flushed) >= FLUSH_EVERY {
                self.ledger.flush().await?;
                flushed = now;
            }
        }
    }

    async fn take(&mut self, outcome: Outcome, progress: &VerifyProgress) -> Result<()> {
        let now: Timestamp = self.context.clock.now();
        let depth = self.options.depth.min(Depth::Structure);
        let proved = outcome.proved.len() as u64;
        for (object, blake3) in &outcome.proved {
            self.ledger.prove(object, blake3, depth, now).await?;
        }
        self.totals.proved = self.totals.proved.saturating_add(proved);
        self.totals.raw_bytes = self.totals.raw_bytes.saturating_add(outcome.totals.raw_bytes);
        self.totals.keys = self.totals.keys.saturating_add(outcome.totals.keys);
        self.totals.commands = self.totals.commands.saturating_add(outcome.totals.commands);
        self.digests.extend(outcome.digest);
        self.summaries.extend(outcome.summary);
        self.findings.extend(outcome.findings);
        progress.objects.fetch_add(proved, Ordering::Relaxed);
        progress.findings.store(self.findings.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
