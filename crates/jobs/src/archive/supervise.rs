//! A line for every shard that is this agent's, as long as the job runs.
//!
//! Invariants: what a stop finds unsealed is sealed or stays in the spool, where the next run finds it; a line whose lease is lost ends at once, and
//! what it had not sealed is sealed only if nobody else has it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::{LeaseNote, LineShard, TopologyRecord};
use slotkeep_model::{NodeAddr, Shard};
use slotkeep_repo::Repository;
use slotkeep_wire::info::Replication;
use tokio::sync::{Notify, mpsc};

use super::backups::Pending;
use super::coverage::Coverage;
use super::fleet::Fleet;
use super::gates::Gates;
use super::held::Holdings;
use super::intake::SealPolicy;
use super::line::{ANSWER_LIMIT, Ack, LineHandle, Shared};
use super::sealer::{Patience, settle_file, wait};
use super::share::{Giver, Near, OwnLine, Share, ShareOptions, TakenLease, Unreachable};
use super::spool::SpoolFolder;
use super::status::{ArchiveStatus, Board, LinePhase, NoticeKind};
use super::view::{SeenShard, look_at_shards, record};
use crate::backup::Prefer;
use crate::backup::base::TakenBase;
use crate::cut::CutOptions;
use crate::discover::{Discovery, discover, replication_at};
use crate::progress::ShardProgress;
use crate::{Context, Error, ErrorKind, Result};

/// How often the cluster is looked at when nothing hints at a change.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked at however much hints at one.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// How often the lines are looked at.
const TURN: Duration = Duration::from_millis(200);
/// How many files of an earlier run are sealed at a time.
const SEALS_IN_FLIGHT: usize = 4;
/// How many nodes are asked at a time.
const QUESTIONS_IN_FLIGHT: usize = 16;
/// How often files that no line will seal are looked at, and for how long their successor is given time to hold the same.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
const SETTLE_AFTER: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How to archive.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// The name under which the repository keeps the cluster.
    pub cluster: String,
    /// The folder for what is not yet sealed.
    pub spool: PathBuf,
    /// At most so many bytes there.
    pub spool_limit_bytes: u64,
    /// When a piece of the log is sealed.
    pub seal: SealPolicy,
    /// What the servers are told to have been received.
    pub ack: Ack,
    /// Which role to follow, where there is a choice.
    pub prefer: Prefer,
    /// Bases of so many shards at a time at the most.
    pub jobs: usize,
    /// Bases of so many shards at a time at the most from nodes of one host.
    pub jobs_per_host: usize,
    /// Whether passwords and their hashes are stored as well.
    pub include_secrets: bool,
    /// The cut of the backups that are written.
    pub cut: CutOptions,
    /// How agents share the work.
    pub share: ShareOptions,
}

/// What a watcher can see.
#[derive(Debug, Default)]
pub struct Watch {
    /// What happened.
    pub board: Arc<Board>,
    status: Mutex<ArchiveStatus>,
}

impl Watch {
    /// How everything stands.
    pub fn status(&self) -> ArchiveStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the backup that was written last.
    pub(super) fn note_backup(&self, id: String) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).backup = Some(id);
    }
}

/// Archives the cluster behind one of those addresses until [`Context::stop`] is cancelled; then seals what it holds and gives how many
/// bytes could not be sealed and wait in the spool.
pub async fn archive(
    context: &Context,
    repository: &Repository,
    seeds: &[NodeAddr],
    options: &ArchiveOptions,
    watch: &Watch,
) -> Result<u64> {
    let discovery = discover(context, seeds).await?;
    let repository_id = &repository.file().repository_id;
    let limit = options.spool_limit_bytes;
    let folder = SpoolFolder::open(&options.spool, repository_id, &options.cluster, limit)?;
    let changed = Arc::new(Notify::new());
    let lease_time = options.share.lease_time;
    let share = Share::start(context, repository, &options.cluster, &folder, lease_time, &changed);
    let share = context.unless_stopped(share).await?;
    if let Err(error) = seal_leftovers(context, repository, &folder, &watch.board).await {
        share.end(&[]).await;
        return Err(error);
    }
    let (abandoned_sender, abandoned) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        context: context.clone(),
        repository: repository.clone(),
        cluster: options.cluster.clone(),
        folder,
        policy: options.seal,
        ack: options.ack,
        prefer: options.prefer,
        gates: Gates::new(options.jobs, options.jobs_per_host),
        patience: Patience::Persistent,
        follows: true,
        may_take_bases: true,
        backup_id: None,
        board: Arc::clone(&watch.board),
        changed,
        near: RwLock::default(),
        abandoned: Some(abandoned_sender),
    });
    let mut supervisor = Supervisor {
        context,
        options,
        watch,
        seeds: seeds.to_vec(),
        fleet: Fleet::new(Arc::clone(&shared)),
        near: Near::new(options.share.near.clone()),
        share,
        unreachable: Unreachable::default(),
        names: Vec::new(),
        abandoned: Abandoned { files: Vec::new(), queue: abandoned, looked_at: Duration::ZERO },
        coverage: Coverage::new(repository, &options.cluster),
        told: HashMap::new(),
        shared,
        discovery,
        seen: Vec::new(),
        topology: None,
        listed: HashSet::new(),
        pending: None,
        next_backup_at: Duration::ZERO,
        last_trouble: None,
        started_at: context.clock.now(),
    };
    let outcome = context.unless_stopped(Box::pin(supervisor.run())).await;
    let unsealed = supervisor.end().await;
    match outcome {
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(unsealed),
        Err(error) => Err(error),
        Ok(()) => Ok(unsealed),
    }
}

/// Seals what an earlier run left, however long the repository takes.
async fn seal_leftovers(
    context: &Context,
    repository: &Repository,
    folder: &SpoolFolder,
    board: &Board,
) -> Result<()> {
    let files = futures::stream::iter(folder.leftovers()?).map(|file| async move {
        let mut pause = FIRST_PAUSE;
        loop {
            match settle_file(repository, folder, &file, true).await {
                Ok(_) => return Ok(()),
                Err(error) if context.stop.is_cancelled() => return Err(error),
                Err(error) => {
                    let words = format!("what an earlier run left can't be sealed yet: {error}");
                    board.pin(NoticeKind::Trouble, None, words);
                }
            }
            wait(context, &context.stop, pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    });
    let outcomes: Vec<Result<()>> = files.buffer_unordered(SEALS_IN_FLIGHT).collect().await;
    outcomes.into_iter().collect()
}

/// Files that no line will seal.
struct Abandoned {
    files: Vec<(PathBuf, Duration)>,
    queue: mpsc::UnboundedReceiver<PathBuf>,
    looked_at: Duration,
}

pub(super) struct Supervisor<'a> {
    pub(super) context: &'a Context,
    pub(super) options: &'a ArchiveOptions,
    pub(super) watch: &'a Watch,
    seeds: Vec<NodeAddr>,
    pub(super) shared: Arc<Shared>,
    pub(super) fleet: Fleet,
    pub(super) share: Share,
    near: Near,
    unreachable: Unreachable,
    /// All shards, with the names of their lines.
    pub(super) names: Vec<(Shard, String)>,
    abandoned: Abandoned,
    pub(super) coverage: Coverage,
    /// Bases that other agents have taken, by the paths of their RDBs.
    pub(super) told: HashMap<String, Arc<TakenBase>>,
    pub(super) discovery: Discovery,
    pub(super) seen: Vec<SeenShard>,
    topology: Option<TopologyRecord>,
    /// RDBs of bases that backups list.
    pub(super) listed: HashSet<String>,
    pub(super) pending: Option<Pending>,
    /// No backup is tried before, after one that failed.
    pub(super) next_backup_at: Duration,
    last_trouble: Option<String>,
    pub(super) started_at: jiff::Timestamp,
}

impl Supervisor<'_> {
    async fn run(&mut self) -> Result<()> {
        let mut looked_at = self.context.clock.elapsed();
        self.seen = look_at_shards(self.context, &self.discovery).await;
        self.reconcile().await?;
        self.note_topology().await;
        let mut hinted = false;
        loop {
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                () = shared.changed.notified() => hinted = true,
                () = self.context.clock.sleep(TURN) => {}
            }
            let new_leases = self.share.refresh()?;
            let since = self.context.clock.elapsed().saturating_sub(looked_at);
            if since >= LOOK_EVERY || (hinted && since >= LOOK_AT_MOST_EVERY) {
                looked_at = self.context.clock.elapsed();
                hinted = false;
                self.look().await;
            } else if new_leases {
                self.reconcile_or_say().await;
            }
            if let Err(error) = self.back_up().await {
                if error.kind() == ErrorKind::Interrupted {
                    return Err(error);
                }
                self.trouble("no backup could be written yet", &error);
                self.give_backup_up();
            }
            self.settle_abandoned().await;
            self.publish();
        }
    }

    /// Says what failed, once in a row.
    fn trouble(&mut self, doing: &str, error: &Error) {
        tracing::info!(%error, "{doing}");
        let words = format!("{doing}: {error}");
        if self.last_trouble.as_ref() != Some(&words) {
            self.watch.board.pin(NoticeKind::Trouble, None, words.clone());
        }
        self.last_trouble = Some(words);
    }

    /// Looks at the cluster, and has a line for each shard.
    async fn look(&mut self) {
        let nodes = self.discovery.topology().shards.iter().flat_map(Shard::nodes);
        let known: Vec<NodeAddr> = nodes.filter(|node| node.online).map(|node| node.addr.clone()).collect();
        let seeds: Vec<NodeAddr> = known.into_iter().chain(self.seeds.iter().cloned()).collect();
        match self.discover(&seeds).await {
            Ok(discovery) => self.discovery = discovery,
            Err(error) => {
                self.trouble("the cluster can't be looked at", &error);
                return;
            }
        }
        self.seen = look_at_shards(self.context, &self.discovery).await;
        self.reconcile_or_say().await;
        self.note_topology().await;
    }

    async fn reconcile_or_say(&mut self) {
        if let Err(error) = self.reconcile().await {
            self.trouble("a new shard can't be followed yet", &error);
        }
    }

    /// Finds the cluster by the first node that answers soon.
    async fn discover(&self, seeds: &[NodeAddr]) -> Result<Discovery> {
        let mut last = Error::new(ErrorKind::Unreachable, "no node of the cluster answers");
        for seed in seeds {
            match self.context.within(ANSWER_LIMIT, discover(self.context, std::slice::from_ref(seed))).await
            {
                Some(Ok(discovery)) => return Ok(discovery),
                Some(Err(error)) => last = error,
                None => {}
            }
        }
        Err(last)
    }

    /// Writes down how the cluster looks, if it looks different.
    async fn note_topology(&mut self) {
        if !self.share.leads() {
            // Whoever takes this over writes down how it looks then.
            self.topology = None;
            return;
        }
        let record = match record(self.context, &self.discovery, &self.seen) {
            Ok(record) => record,
            Err(error) => return self.trouble("the cluster's shape can't be written down", &error),
        };
        if self.topology.as_ref().is_some_and(|known| known.shows_the_same(&record)) {
            return;
        }
        match self.shared.repository.put_topology(&self.options.cluster, &record).await {
            Ok(()) => {
                if self.topology.replace(record).is_some() {
                    self.watch.board.pin(NoticeKind::Topology, None, "the cluster looks different");
                }
            }
            Err(error) => self.trouble("the cluster's shape can't be written down yet", &error.into()),
        }
    }

    /// Brings the lines, the leases and the shards together.
    async fn reconcile(&mut self) -> Result<()> {
        self.leave_lost();
        let shards: Vec<Shard> = self.discovery.topology().shards.clone();
        self.near.learn(self.context, &shards).await;
        *self.shared.near.write().unwrap_or_else(PoisonError::into_inner) =
            self.near.hosts().cloned().collect();
        let own = self.own_lines();
        let names = self.share.names(&shards, &own);
        let named: Vec<(Shard, String)> = shards.iter().cloned().zip(names.iter().cloned()).collect();
        if !self.names.iter().map(|(_, name)| name).eq(&names) {
            self.pending = None;
        }
        self.names = named;
        for (shard, name) in &self.names {
            if let Some(line) = self.fleet.line(name) {
                line.shard.send_if_modified(|known| {
                    let changed = known != shard;
                    known.clone_from(shard);
                    changed
                });
            }
        }
        self.end_lines_without_shard();
        self.share.give_up_strays(&own).await;
        if self.share.seek_lead().await? {
            self.begin_to_lead().await?;
        }
        if self.share.leads() {
            self.share.forget_the_gone().await;
        }
        let own = self.own_lines();
        let division = self.share.divide(&shards, &names, &own, &self.near);
        for name in division.give.iter().filter_map(|number| names.get(*number)) {
            self.give(name, "this line is given up for an agent that has fewer");
        }
        self.give_up_unreachable();
        let wanted = division.take.iter().filter_map(|number| self.names.get(*number).cloned());
        let wanted = wanted.filter(|(_, name)| self.unreachable.may_take(name)).collect();
        self.take(wanted).await?;
        self.tell().await;
        for told in self.share.new_cuts() {
            if let Some(line) = self.fleet.line(&told.line) {
                line.seal_by(told.cut.offset);
            }
        }
        Ok(())
    }

    fn own_lines(&self) -> Vec<OwnLine> {
        let own =
            |line: &LineHandle| OwnLine { name: line.name.clone(), shard: line.shard(), ties: line.ties() };
        self.fleet.lines.iter().map(own).collect()
    }

    /// Ends the lines that another agent has taken over.
    fn leave_lost(&mut self) {
        let is_lost = |lease: &Arc<TakenLease>| lease.is_lost() || self.share.is_taken_over(lease);
        let lost: Vec<usize> = (0..self.fleet.lines.len())
            .filter(|number| {
                self.fleet.lines.get(*number).and_then(|line| line.lease.as_ref()).is_some_and(is_lost)
            })
            .collect();
        for number in lost.into_iter().rev() {
            let line = self.fleet.lines.swap_remove(number);
            if let Some(lease) = &line.lease {
                lease.lose();
            }
            let words = "another agent has taken this line over: it is left to it";
            self.watch.board.pin(NoticeKind::Left, Some(&line.shard().slots), words);
            end_line(line, None);
        }
    }

    fn end_lines_without_shard(&mut self) {
        let has_shard = |line: &LineHandle| self.names.iter().any(|(_, name)| *name == line.name);
        let gone: Vec<usize> = (0..self.fleet.lines.len())
            .filter(|number| self.fleet.lines.get(*number).is_some_and(|line| !has_shard(line)))
            .collect();
        for number in gone.into_iter().rev() {
            let line = self.fleet.lines.swap_remove(number);
            let words = "the shard is gone: its line ends";
            self.watch.board.pin(NoticeKind::Topology, Some(&line.shard().slots), words);
            self.pending = None;
            self.share.gives(&line.name);
            end_line(line, Some((self.share.giver(), Afterwards::Over)));
        }
    }

    /// Gives up lines of which no node can be followed from here, if there is another agent that may be able to.
    fn give_up_unreachable(&mut self) {
        let now = self.context.clock.elapsed();
        let lease_time = self.options.share.lease_time;
        let lines = self.fleet.lines.iter().map(|line| {
            let state = line.state.borrow();
            (line.name.as_str(), state.source.is_none() && state.phase == LinePhase::Connecting)
        });
        let given = self.unreachable.note(lines, now, lease_time);
        if self.share.has_leases() && self.share.agents() > 1 {
            for name in given {
                let words =
                    "none of its nodes can be followed from here: this line is given up for another agent";
                self.give(&name, words);
                self.unreachable.avoid(name, now, lease_time);
            }
        }
    }

    /// Gives a line up for another agent.
    fn give(&mut self, name: &str, words: &str) {
        let Some(number) = self.fleet.lines.iter().position(|line| line.name == name) else { return };
        let line = self.fleet.lines.swap_remove(number);
        self.watch.board.pin(NoticeKind::Left, Some(&line.shard().slots), words);
        self.share.gives(name);
        end_line(line, Some((self.share.giver(), Afterwards::Continued)));
    }

    /// Takes lines over, and begins where the repository's log ends: what is read of it is read when the leases are there.
    async fn take(&mut self, wanted: Vec<(Shard, String)>) -> Result<()> {
        let asked = futures::stream::iter(wanted).map(async |(shard, name)| {
            let replication = self.replication_of(&shard).await;
            (shard, name, replication)
        });
        let asked: Vec<_> = asked.buffered(QUESTIONS_IN_FLIGHT).collect().await;
        let mut ready = Vec::new();
        for (shard, name, replication) in asked {
            // Where the log is to go on is not known without a node's word; another agent may be able to ask.
            match replication {
                Some(replication) => ready.push((shard, name, replication)),
                None => {
                    let words =
                        format!("no node of slots {} answers: its log can't be continued yet", shard.slots);
                    self.trouble("a shard waits", &Error::new(ErrorKind::Unreachable, words));
                }
            }
        }
        let names: Vec<(String, Shard)> =
            ready.iter().map(|(shard, name, _)| (name.clone(), shard.clone())).collect();
        let leases = self.share.take(names).await?;
        let mut taken = Vec::new();
        for ((shard, name, replication), lease) in ready.into_iter().zip(leases) {
            if lease.is_some() || !self.share.has_leases() {
                taken.push((shard, replication, (name, lease)));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let mut holdings = Holdings::read(&self.shared.repository, &self.options.cluster).await?;
        self.listed.extend(holdings.listed().cloned());
        for (_, _, (name, _)) in &taken {
            if let Some(base) = self.share.told_base(name) {
                holdings.add_base(Arc::new(TakenBase::told(base)));
            }
        }
        for (shard, replication, of) in taken {
            self.add(shard, replication, of, &mut holdings).await?;
        }
        Ok(())
    }

    /// What a shard's primary says of its history now, or else another node of it. A server begins a new history when the first replica attaches
    /// (`syncCommand` in `src/replication.c` of Redis 6.2 to 8.8): what was seen a moment ago may be another.
    async fn replication_of(&self, shard: &Shard) -> Option<Replication> {
        for node in shard.nodes().filter(|node| node.online) {
            let asked = self.context.within(ANSWER_LIMIT, replication_at(self.context, &node.addr)).await;
            if let Some(Ok(replication)) = asked {
                return Some(replication);
            }
        }
        None
    }

    async fn add(
        &mut self,
        shard: Shard,
        replication: Replication,
        of: (String, Option<Arc<TakenLease>>),
        holdings: &mut Holdings,
    ) -> Result<()> {
        let held = holdings.leading_to(&replication).await?;
        let progress = ShardProgress::new(format!("slots {}", shard.slots));
        self.fleet.add(shard, held, progress, of);
        Ok(())
    }

    /// Tells other agents what each line follows, and which base it has.
    async fn tell(&mut self) {
        let tell = async |line: &LineHandle| match &line.lease {
            Some(lease) => lease.say(note_of(line, lease)).await,
            None => Ok(true),
        };
        let said = futures::future::join_all(self.fleet.lines.iter().map(tell)).await;
        if let Some(error) = said.into_iter().find_map(Result::err) {
            self.trouble("other agents can't be told how the lines stand", &error);
        }
    }

    /// Deals with what lines left that are not this agent's any more.
    async fn settle_abandoned(&mut self) {
        let now = self.context.clock.elapsed();
        while let Ok(file) = self.abandoned.queue.try_recv() {
            self.abandoned.files.push((file, now));
        }
        if now.saturating_sub(self.abandoned.looked_at) < SETTLE_EVERY {
            return;
        }
        self.abandoned.looked_at = now;
        self.settle(|since| now.saturating_sub(since) >= SETTLE_AFTER).await;
    }

    /// Deletes what others hold by now; seals what they don't if that is wanted of a file of that age.
    async fn settle(&mut self, wanted: impl Fn(Duration) -> bool) {
        for (file, since) in std::mem::take(&mut self.abandoned.files) {
            let settled =
                settle_file(&self.shared.repository, &self.shared.folder, &file, wanted(since)).await;
            match settled {
                Ok(true) => {}
                Ok(false) => self.abandoned.files.push((file, since)),
                Err(error) => {
                    self.trouble("what a former line left can't be sealed yet", &error);
                    self.abandoned.files.push((file, since));
                }
            }
        }
    }

    fn publish(&self) {
        let now = self.context.clock.elapsed();
        let mut lines: Vec<&LineHandle> = self.fleet.lines.iter().collect();
        lines.sort_by_key(|line| line.shard.borrow().slots.ranges().first().map(|range| range.first()));
        let mut status = self.watch.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.spool_bytes = self.shared.folder.used_bytes();
        status.agents = self.share.agents();
        status.leads = self.share.leads();
        status.elsewhere = self.names.iter().filter(|(_, name)| self.share.is_with_another(name)).count();
        status.trouble = self.share.trouble().map(|trouble| trouble.to_string());
        status.shards = lines.into_iter().map(|line| line.status(now)).collect();
    }

    /// Ends the lines; gives how many bytes wait in the spool.
    async fn end(mut self) -> u64 {
        match self.fleet.stop().await {
            Err(error) => self.trouble("what is not sealed stays in the spool", &error),
            Ok(()) => {
                self.settle_abandoned().await;
                self.settle(|_| true).await;
            }
        }
        self.tell().await;
        self.fleet.take_back(&self.listed).await;
        self.publish();
        let leases: Vec<Arc<TakenLease>> =
            self.fleet.lines.iter().filter_map(|line| line.lease.clone()).collect();
        self.share.end(&leases).await;
        self.shared.folder.used_bytes()
    }
}

/// What a holder says of its line.
fn note_of(line: &LineHandle, lease: &TakenLease) -> LeaseNote {
    let shard = line.shard();
    let said = lease.said().shard.and_then(|said| said.base);
    let base = match line.base() {
        // As it was said first: its row is of the shard as it was then.
        Some(base) => said
            .filter(|said| said.record.base.rdb.path == base.base.rdb.path)
            .or_else(|| Some(base.tell(&shard))),
        None => said,
    };
    LeaseNote { shard: Some(LineShard::of(&shard, base)), ..LeaseNote::default() }
}

/// What becomes of a line that is given up.
enum Afterwards {
    /// Another agent goes on with it.
    Continued,
    /// Its shard is gone.
    Over,
}

/// Ends a line that is not followed any more, without waiting: it seals what it holds if the lease allows it. Then the lease is given up, if that
/// is wanted.
fn end_line(mut line: LineHandle, give: Option<(Giver, Afterwards)>) {
    line.stop();
    tokio::spawn(async move {
        if let Err(error) = line.ended().await {
            tracing::info!(%error, "what a line held stays in the spool for now");
        }
        let Some((giver, afterwards)) = give else { return };
        if let Some(lease) = &line.lease {
            let note = match afterwards {
                Afterwards::Continued => note_of(&line, lease),
                Afterwards::Over => LeaseNote::default(),
            };
            if let Err(error) = lease.release(note).await {
                tracing::info!(%error, "a line could not be given up yet");
            }
        }
        giver.given(&line.name);
    });
}
