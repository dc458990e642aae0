//! One shard's line: from node to node, from base to base, for as long as the shard is there.
//!
//! Invariants: the position is a safe cut that is durable; a stream is only ever continued from it, so every segment begins where the
//! one before ended, or a gap is announced; a base counts only once it is durable.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use slotkeep_format::{Effort, Parent};
use slotkeep_model::{NodeAddr, ReplId, ReplOffset, Shard};
use slotkeep_repo::Repository;
use slotkeep_wire::info::Replication;
use slotkeep_wire::replica::Request;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::beginning::Beginning;
use super::decide::{Decision, Position, Refusal, decide};
use super::gates::Gates;
use super::intake::SealPolicy;
use super::lineage::Lineage;
use super::link::{Answer, Link};
use super::sampler::{Sampled, sample};
use super::sealer::{Patience, SealerHandle, wait};
use super::session::{Fork, Session, note_sealed};
use super::share::TakenLease;
use super::spool::{ClosedFile, SpoolFolder};
use super::status::{Board, LinePhase, NoticeKind};
use crate::backup::base::TakenBase;
use crate::backup::{Candidate, Prefer, plan_shard};
use crate::discover::replication_at;
use crate::progress::{Phase, ShardProgress};
use crate::{Context, Error, ErrorKind, Result};

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// For so long a line that has its base is tried again in a job that is to end.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// How long a node may take to say how it stands, before the others are considered without it.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How often a full spool is looked at.
const SPOOL_LOOK: Duration = Duration::from_millis(200);

/// What the server is told to have been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// What is durable on the local disk.
    #[default]
    Local,
    /// What the repository holds.
    Repo,
    /// What has been received.
    Received,
}

/// What all lines of a job share.
pub(crate) struct Shared {
    pub(crate) context: Context,
    pub(crate) repository: Repository,
    pub(crate) cluster: String,
    pub(crate) folder: Arc<SpoolFolder>,
    pub(crate) policy: SealPolicy,
    pub(crate) ack: Ack,
    pub(crate) prefer: Prefer,
    pub(crate) gates: Gates,
    /// Whether lines are tried again for ever.
    pub(crate) patience: Patience,
    /// Whether the stream behind a base is followed.
    pub(crate) follows: bool,
    /// Whether a base may be taken where a stream can't be continued.
    pub(crate) may_take_bases: bool,
    /// The backup that bases are taken for; each has an id of its own otherwise.
    pub(crate) backup_id: Option<String>,
    pub(crate) board: Arc<Board>,
    /// Rung when the cluster may have changed.
    pub(crate) changed: Arc<Notify>,
    /// Hosts that are near this machine.
    pub(crate) near: RwLock<HashSet<String>>,
    /// Where files go that no line will seal.
    pub(crate) abandoned: Option<mpsc::UnboundedSender<PathBuf>>,
}

/// How a line stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct LineState {
    pub(crate) phase: LinePhase,
    pub(crate) source: Option<NodeAddr>,
    pub(crate) history: Option<ReplId>,
    pub(crate) received: u64,
    pub(crate) durable: u64,
    /// Up to here everything is in the repository: base and log.
    pub(crate) complete: Option<(ReplId, u64)>,
    /// Where a base ends that was received and is not stored: what is sealed behind it is of no use without it, and not complete.
    pub(crate) awaited: Option<(ReplId, u64)>,
    /// How the histories of this line descend from each other.
    pub(crate) lineage: Lineage,
    pub(crate) base: Option<Arc<TakenBase>>,
    pub(crate) bases: u64,
    pub(crate) gaps: u64,
    pub(crate) trouble: Option<Arc<str>>,
}

impl LineState {
    /// A base was stored, and the log goes on behind it.
    pub(crate) fn go_on_from(&mut self, base: TakenBase) {
        self.complete = Some((base.history.clone(), base.offset));
        self.awaited = None;
        self.base = Some(Arc::new(base));
        self.bases = self.bases.saturating_add(1);
    }
}

/// How an attempt ended.
pub(crate) enum End {
    /// The job is to end.
    Stopped,
    /// To be tried again at once.
    Again,
}

/// A line.
pub(crate) struct Line {
    /// The job's, with a word to stop of its own.
    pub(crate) context: Context,
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: watch::Receiver<Shard>,
    /// Everything up to this offset is to be sealed.
    pub(crate) seal_by: watch::Receiver<Option<u64>>,
    pub(crate) state: watch::Sender<LineState>,
    pub(crate) sealer: SealerHandle,
    pub(crate) samples: mpsc::Receiver<Sampled>,
    /// The primary's last byte, when it was asked last.
    pub(crate) primary_offset: Arc<AtomicU64>,
    pub(crate) position: Option<Position>,
    pub(crate) progress: Arc<ShardProgress>,
    /// Nodes that failed since the line last got on, in order.
    failed: Vec<(NodeAddr, Error)>,
    pub(crate) lost_at: Option<Duration>,
    pub(crate) stop: CancellationToken,
}

/// The way to a line.
pub(crate) struct LineHandle {
    /// By which agents know the line.
    pub(crate) name: String,
    /// Its lease, where there are leases.
    pub(crate) lease: Option<Arc<TakenLease>>,
    pub(crate) shard: watch::Sender<Shard>,
    seal_by: watch::Sender<Option<u64>>,
    pub(crate) state: watch::Receiver<LineState>,
    pub(crate) sealed: watch::Receiver<super::sealer::SealState>,
    pub(crate) primary_offset: Arc<AtomicU64>,
    stop: CancellationToken,
    /// Taken once it has ended.
    pub(crate) task: Option<tokio::task::JoinHandle<Result<()>>>,
    _sampler: Option<AbortOnDropHandle<()>>,
}

impl LineHandle {
    /// Asks for everything up to that offset to be sealed.
    pub(crate) fn seal_by(&self, offset: u64) {
        self.seal_by.send_replace(Some(offset));
    }

    /// Asks the line to end, when it has sealed what it holds.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Line {
    /// Starts a line for that shard: behind what the repository's log and the waiting files hold, if it leads anywhere.
    pub(crate) fn start(
        job: &Arc<Shared>,
        shard: Shard,
        beginning: Beginning,
        progress: Arc<ShardProgress>,
        (name, lease): (String, Option<Arc<TakenLease>>),
    ) -> LineHandle {
        let stop = job.context.stop.child_token();
        let context = Context { stop: stop.clone(), ..job.context.clone() };
        let (state, position) = beginning.stand(job, &shard);
        let (shard_sender, shard) = watch::channel(shard);
        let (seal_sender, seal_by) = watch::channel(None);
        let (state_sender, state) = watch::channel(state);
        let sealer = super::sealer::Sealer {
            context: context.clone(),
            repository: job.repository.clone(),
            folder: Arc::clone(&job.folder),
            patience: job.patience,
            halt: match job.patience {
                Patience::None => job.context.stop.clone(),
                Patience::Persistent => CancellationToken::new(),
            },
            line: Some(state.clone()),
            lease: lease.clone(),
            abandoned: job.abandoned.clone(),
        }
        .start();
        for file in beginning.waiting {
            let closed = ClosedFile { path: file.path, packed: None, effort: Effort::Usual };
            let _ = sealer.files().send(closed);
        }
        let (sample_sender, samples) = mpsc::channel(256);
        let primary_offset = Arc::new(AtomicU64::new(0));
        let asking = sample(context.clone(), shard.clone(), sample_sender, Arc::clone(&primary_offset));
        let asking = job.follows.then(|| AbortOnDropHandle::new(tokio::spawn(asking)));
        let progress_of_seals = sealer.state.clone();
        let line = Self {
            context,
            shared: Arc::clone(job),
            shard,
            seal_by,
            state: state_sender,
            sealer,
            samples,
            primary_offset: Arc::clone(&primary_offset),
            position,
            progress,
            failed: Vec::new(),
            lost_at: None,
            stop: stop.clone(),
        };
        let task = Some(tokio::spawn(line.run()));
        LineHandle {
            name,
            lease,
            shard: shard_sender,
            seal_by: seal_sender,
            state,
            sealed: progress_of_seals,
            primary_offset,
            stop,
            task,
            _sampler: asking,
        }
    }

    async fn run(mut self) -> Result<()> {
        let outcome = self.run_until_stopped().await;
        self.set_phase(LinePhase::Ended);
        if outcome.as_ref().is_err_and(|error| error.kind() != ErrorKind::Interrupted) {
            self.progress.enter(Phase::Failed);
        }
        let seals = self.sealer.state.clone();
        let sealed = self.sealer.finish().await;
        note_sealed(&self.state, seals.borrow().last.clone());
        // That the repository took no more is the cause of whatever came after it.
        sealed.and(outcome)
    }

    async fn run_until_stopped(&mut self) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let before = self.state.borrow().received;
            match self.attempt().await {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Again) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
                Err(error) => {
                    if self.state.borrow().received != before {
                        pause = FIRST_PAUSE;
                    }
                    self.note_trouble(&error);
                    self.judge(error)?;
                    self.set_phase(LinePhase::Connecting);
                    self.shared.changed.notify_one();
                    wait(&self.context, &self.stop, pause).await;
                    // What was received before goes on being sealed, and whoever recovers the shard waits for that.
                    note_sealed(&self.state, self.sealer.state.borrow().last.clone());
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Whether it is worth trying again after that failure; the error for the job if not.
    fn judge(&mut self, error: Error) -> Result<()> {
        if self.shared.patience == Patience::Persistent {
            return Ok(());
        }
        let doing = format!("shard with slots {}", self.shard.borrow().slots);
        let may_pass =
            matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Failed | ErrorKind::Corrupt);
        let now = self.context.clock.elapsed();
        let recovering = self.state.borrow().base.is_some()
            && now.saturating_sub(*self.lost_at.get_or_insert(now)) < RECOVERY_LIMIT;
        if may_pass && (recovering || !self.failed.is_empty()) {
            if recovering {
                self.failed.clear();
            }
            return Ok(());
        }
        Err(error.context(doing))
    }

    fn note_trouble(&self, error: &Error) {
        let slots = self.shard.borrow().slots.clone();
        tracing::info!(%slots, %error, "a shard's stream was interrupted");
        let words: Arc<str> = error.to_string().into();
        let again = self.state.borrow().trouble.as_ref() == Some(&words);
        self.state.send_modify(|state| state.trouble = Some(Arc::clone(&words)));
        if !again {
            self.shared.board.pin(NoticeKind::Trouble, Some(&slots), words.to_string());
        }
    }

    pub(crate) fn set_phase(&self, phase: LinePhase) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.phase, phase) != phase);
    }

    /// Finds a node, and follows it until something comes between.
    async fn attempt(&mut self) -> Result<End> {
        if self.shared.folder.is_full() && !self.await_room().await {
            return Ok(End::Stopped);
        }
        let shard = self.shard.borrow_and_update().clone();
        let limit = self.context.connector.timeout().min(ANSWER_LIMIT);
        let plan = plan_shard(&self.context, shard, self.shared.prefer, limit);
        let plan = self.context.unless_stopped(async { Ok(plan.await) }).await?;
        let mut candidates = plan.candidates;
        self.prefer_near(&mut candidates);
        if self.shared.patience == Patience::Persistent {
            // Those that failed come last.
            candidates.sort_by_key(|candidate| self.failed.iter().any(|(addr, _)| *addr == candidate.addr));
        } else {
            candidates.retain(|candidate| self.failed.iter().all(|(addr, _)| *addr != candidate.addr));
            if candidates.is_empty() {
                let none = || {
                    let reasons: Vec<String> =
                        plan.passed_over.iter().map(|(addr, reason)| format!("{addr}: {reason}")).collect();
                    let words = format!("no node can be followed: {}", reasons.join("; "));
                    Error::new(ErrorKind::Unreachable, words)
                };
                let first = std::mem::take(&mut self.failed).into_iter().next();
                return Err(first.map_or_else(none, |(_, error)| error));
            }
        }
        match decide(self.position.as_ref(), &candidates) {
            Decision::Wait(words) => Err(Error::new(ErrorKind::Unreachable, words)
                .hint("bring a node of the shard back; it is tried again meanwhile")),
            Decision::Continue(number) => match candidates.get(number) {
                Some(candidate) => {
                    let outcome = self.follow(candidate, &candidates).await;
                    self.remember(candidate, outcome)
                }
                None => Ok(End::Again),
            },
            Decision::Base(refusal) => {
                let Some(candidate) = candidates.first() else { return Ok(End::Again) };
                if !self.shared.may_take_bases {
                    return Err(cannot_continue(refusal.as_ref()));
                }
                let outcome = self.rebase(candidate, plan.written_to, refusal.as_ref(), &candidates).await;
                self.remember(candidate, outcome)
            }
        }
    }

    /// Puts those of one role that are near this machine first.
    fn prefer_near(&self, candidates: &mut [Candidate]) {
        let near = self.shared.near.read().unwrap_or_else(PoisonError::into_inner);
        let first = candidates.first().map(|candidate| candidate.role);
        candidates
            .sort_by_key(|candidate| (Some(candidate.role) != first, !near.contains(candidate.addr.host())));
    }

    /// Remembers that the node failed, so that another one is tried first.
    fn remember(&mut self, candidate: &Candidate, outcome: Result<End>) -> Result<End> {
        let Err(error) = outcome else { return outcome };
        let may_pass =
            matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Failed | ErrorKind::Corrupt);
        if !may_pass {
            return Err(error);
        }
        self.failed.retain(|(addr, _)| *addr != candidate.addr);
        let words = error.to_string();
        if self.shared.patience == Patience::None {
            tracing::warn!(node = %candidate.addr, error = %words, "this node could not be captured");
        }
        let mut kept = Error::new(error.kind(), words);
        if let Some(advice) = error.advice() {
            kept = kept.hint(advice);
        }
        self.failed.push((candidate.addr.clone(), kept));
        Err(error)
    }

    /// Forgets what failed before: the line gets on.
    pub(crate) fn gets_on(&mut self) {
        self.failed.clear();
        self.lost_at = None;
        self.state.send_modify(|state| state.trouble = None);
    }

    /// Waits until the spool has room again; false if the job is stopped first.
    async fn await_room(&self) -> bool {
        self.set_phase(LinePhase::SpoolFull);
        let slots = self.shard.borrow().slots.clone();
        let words = format!(
            "the spool is full ({} bytes): nothing is received until the repository takes more",
            self.shared.folder.used_bytes()
        );
        self.shared.board.pin(NoticeKind::Trouble, Some(&slots), words);
        while !self.shared.folder.has_room_again() {
            tokio::select! {
                () = self.context.clock.sleep(SPOOL_LOOK) => {}
                () = self.stop.cancelled() => return false,
            }
        }
        true
    }

    /// Continues on that node.
    async fn follow(&mut self, candidate: &Candidate, candidates: &[Candidate]) -> Result<End> {
        let Some(position) = self.position.clone() else { return Ok(End::Again) };
        let (context, shared) = (self.context.clone(), Arc::clone(&self.shared));
        let request = Request::Continue {
            replid: position.history.clone(),
            next_offset: ReplOffset(position.next_offset()),
        };
        let mut link = context.unless_stopped(Link::open(&context, &candidate.addr)).await?;
        match context.unless_stopped(link.begin(request)).await? {
            Answer::Stream { history } => {
                let history = history.unwrap_or_else(|| position.history.clone());
                let fork = if history == position.history {
                    None
                } else {
                    let offset = self.fork_offset(&history, &position, candidate).await;
                    if offset < position.offset {
                        // Another reader has written the fork down before: the log of the new history begins there.
                        let parent = Parent { history: position.history, fork: offset };
                        self.state.send_modify(|state| state.lineage.add(&history, &parent));
                        self.position = Some(Position { history, offset, database: None });
                        return Ok(End::Again);
                    }
                    Some(Fork { history, offset })
                };
                let session = Session::begin(self, link, candidate, position, None, fork).await?;
                session.run(self).await
            }
            // The backlog moved on, or the server changed, between question and request.
            Answer::Snapshot { .. } if !self.shared.may_take_bases => Err(cannot_continue(None)),
            snapshot @ Answer::Snapshot { .. } => {
                let turn = shared.gates.enter(candidate.addr.host()).await;
                self.capture(link, snapshot, candidate, turn, None, candidates).await
            }
        }
    }

    /// The last byte that both histories have in common.
    async fn fork_offset(&self, history: &ReplId, position: &Position, candidate: &Candidate) -> u64 {
        // The link waits meanwhile: a repository that does not answer soon is done without.
        let known = self.shared.repository.history(&self.shared.cluster, history);
        let known = self.context.within(ANSWER_LIMIT, known).await.and_then(std::result::Result::ok);
        let parent = known.flatten().and_then(|record| record.parent);
        if let Some(parent) = parent.filter(|parent| parent.history == position.history) {
            return parent.fork;
        }
        let primary = self.shard.borrow().primary.addr.clone();
        for addr in [&primary, &candidate.addr] {
            let Ok(replication) = replication_at(&self.context, addr).await else { continue };
            if let Some(fork) = fork_of(&replication, history, &position.history) {
                return fork.max(position.offset);
            }
        }
        position.offset
    }
}

/// The last common byte, if the node follows `history` and came to it from `before`.
pub(crate) fn fork_of(replication: &Replication, history: &ReplId, before: &ReplId) -> Option<u64> {
    let told = replication.replid == *history && replication.previous_replid.as_ref() == Some(before);
    told.then_some(replication.previous_valid_to)??.0.checked_sub(1)
}

fn cannot_continue(refusal: Option<&Refusal>) -> Error {
    let why = refusal.map_or_else(
        || "the server answered with a snapshot instead of the stream".to_owned(),
        ToString::to_string,
    );
    Error::new(ErrorKind::Gap, why)
        .hint("take a full backup (--type full), give the servers a larger repl-backlog-size, or run `slotkeep archive`")
}

/// Where files wait by default when no folder is named: the user's state folder.
pub fn default_spool() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = named("XDG_STATE_HOME").or_else(|| Some(named("HOME")?.join(".local/state")))?;
    Some(state.join("slotkeep"))
}
