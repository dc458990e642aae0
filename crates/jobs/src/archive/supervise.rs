//! A line for every shard that is this agent's, as long as the job runs.
//!
//! Invariants: what a stop finds unsealed is sealed or stays in the spool, where the next run finds it; a line whose lease is lost ends at once, and
//! what it had not sealed is sealed only if nobody else has it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use slotkeep_model::{NodeAddr, Shard};
use slotkeep_repo::Repository;
use tokio::sync::{Notify, mpsc};

use super::backups::Pending;
use super::coverage::Coverage;
use super::fleet::Fleet;
use super::gates::Gates;
use super::intake::SealPolicy;
use super::leftovers::{Abandoned, seal_leftovers};
use super::line::{ANSWER_LIMIT, Ack, LineHandle, Shared};
use super::looks::{LOOK_LIMIT, Looks};
use super::orphans::Orphans;
use super::sealer::Patience;
use super::share::{Near, Share, ShareOptions, TakenLease, Unreachable};
use super::spool::SpoolFolder;
use super::status::{ArchiveStatus, Board, NoticeKind};
use super::view::{SeenShard, look_at_shards, record};
use crate::backup::base::TakenBase;
use crate::backup::{Prefer, new_backup_id};
use crate::cut::CutOptions;
use crate::discover::{Discovery, discover};
use crate::{Context, Error, ErrorKind, Result};

/// How often the cluster is looked at when nothing hints at a change.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked at however much hints at one.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// How often the lines are looked at.
const TURN: Duration = Duration::from_millis(200);

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
    let share =
        Share::start(context, repository, &options.cluster, &folder, lease_time, &changed, &discovery);
    let share = context.unless_stopped(share).await?;
    let leftovers = match seal_leftovers(context, repository, &folder, &watch.board, lease_time).await {
        Ok(leftovers) => leftovers,
        Err(error) => {
            share.end(&[]).await;
            return Err(error);
        }
    };
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
        orphans: Orphans::default(),
        names: Vec::new(),
        abandoned: Abandoned::new(abandoned, leftovers, context.clock.elapsed()),
        coverage: Coverage::new(repository, &options.cluster),
        told: HashMap::new(),
        shared,
        discovery,
        seen: Vec::new(),
        looks: Looks::default(),
        listed: HashSet::new(),
        pending: None,
        next_backup_at: Duration::ZERO,
        last_trouble: None,
        no_backup: None,
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

pub(super) struct Supervisor<'a> {
    pub(super) context: &'a Context,
    pub(super) options: &'a ArchiveOptions,
    pub(super) watch: &'a Watch,
    seeds: Vec<NodeAddr>,
    pub(super) shared: Arc<Shared>,
    pub(super) fleet: Fleet,
    pub(super) share: Share,
    pub(super) near: Near,
    pub(super) unreachable: Unreachable,
    orphans: Orphans,
    /// All shards, with the names of their lines.
    pub(super) names: Vec<(Shard, String)>,
    pub(super) abandoned: Abandoned,
    pub(super) coverage: Coverage,
    /// Bases that other agents have taken, by the paths of their RDBs.
    pub(super) told: HashMap<String, Arc<TakenBase>>,
    pub(super) discovery: Discovery,
    pub(super) seen: Vec<SeenShard>,
    looks: Looks,
    /// RDBs of bases that backups list.
    pub(super) listed: HashSet<String>,
    pub(super) pending: Option<Pending>,
    /// No backup is tried before, after one that failed.
    pub(super) next_backup_at: Duration,
    last_trouble: Option<String>,
    /// Why the backup that is due can't be written.
    no_backup: Option<String>,
    pub(super) started_at: jiff::Timestamp,
}

impl Supervisor<'_> {
    async fn run(&mut self) -> Result<()> {
        let mut looked_at = self.context.clock.elapsed();
        // What was found at first is not new any more: other agents and leftovers may have taken a while.
        self.see_cluster().await;
        self.reconcile().await?;
        self.write_looks_or_say().await;
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
            match self.back_up().await {
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    self.no_backup(&error);
                    self.give_backup_up();
                }
                // Between two tries nothing has been found out.
                Ok(()) if self.pending.is_none() && self.context.clock.elapsed() >= self.next_backup_at => {
                    self.no_backup = None;
                }
                Ok(()) => {}
            }
            self.settle_abandoned().await;
            self.publish();
        }
    }

    /// Says what failed, once in a row.
    pub(super) fn trouble(&mut self, doing: &str, error: &Error) {
        self.trouble_in_words(format!("{doing}: {error}"));
    }

    /// Says why no backup can be written, and what to do about it where nothing but a person can.
    fn no_backup(&mut self, error: &Error) {
        let is_for_a_person = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Untrusted);
        let advice = error.advice().filter(|_| is_for_a_person);
        let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
        let words = format!("no backup could be written yet: {error}{advice}");
        self.no_backup = Some(words.clone());
        self.trouble_in_words(words);
    }

    /// The same, in words.
    pub(super) fn trouble_in_words(&mut self, words: String) {
        tracing::info!("{words}");
        if self.last_trouble.as_ref() != Some(&words) {
            self.watch.board.pin(NoticeKind::Trouble, None, words.clone());
        }
        self.last_trouble = Some(words);
    }

    /// Looks at the cluster, and has a line for each shard; the agent that leads writes down what is new.
    async fn look(&mut self) {
        if self.see_cluster().await {
            self.reconcile_or_say().await;
            self.write_looks_or_say().await;
        }
    }

    /// Takes note of how the cluster looks; whether it could be looked at.
    async fn see_cluster(&mut self) -> bool {
        let nodes = self.discovery.topology().shards.iter().flat_map(Shard::nodes);
        let known: Vec<NodeAddr> = nodes.filter(|node| node.online).map(|node| node.addr.clone()).collect();
        let seeds: Vec<NodeAddr> = known.into_iter().chain(self.seeds.iter().cloned()).collect();
        let began_at = match self.discover(&seeds).await {
            Ok((discovery, began_at)) => {
                self.share.see(&discovery);
                self.discovery = discovery;
                began_at
            }
            Err(error) => {
                self.trouble("the cluster can't be looked at", &error);
                return false;
            }
        };
        self.seen = look_at_shards(self.context, self.discovery.topology()).await;
        match record(self.context, &self.discovery, &self.seen) {
            Err(error) => self.trouble("the cluster's shape can't be written down", &error),
            Ok(record) => {
                if !self.looks.see(record, began_at) {
                    let words = format!("looking at it took more than {} s", LOOK_LIMIT.as_secs());
                    let error = Error::new(ErrorKind::Unreachable, words);
                    self.trouble("the cluster's shape can't be written down yet", &error);
                }
            }
        }
        true
    }

    async fn reconcile_or_say(&mut self) {
        if let Err(error) = self.reconcile().await {
            self.trouble("a new shard can't be followed yet", &error);
        }
    }

    /// Finds the cluster by the first node that answers soon, which was asked at that moment.
    async fn discover(&self, seeds: &[NodeAddr]) -> Result<(Discovery, jiff::Timestamp)> {
        let mut last = Error::new(ErrorKind::Unreachable, "no node of the cluster answers");
        for seed in seeds {
            let began_at = self.context.clock.now();
            match self.context.within(ANSWER_LIMIT, discover(self.context, std::slice::from_ref(seed))).await
            {
                Some(Ok(discovery)) => return Ok((discovery, began_at)),
                Some(Err(error)) => last = error,
                None => {}
            }
        }
        Err(last)
    }

    async fn write_looks_or_say(&mut self) {
        if let Err(error) = self.write_looks().await {
            self.trouble("the cluster's shape can't be written down yet", &error);
        }
    }

    async fn write_looks(&mut self) -> Result<()> {
        if !self.share.leads() {
            self.looks.leave();
            return Ok(());
        }
        let (repository, cluster) = (&self.shared.repository, &self.options.cluster);
        if !self.looks.is_joined() {
            self.looks.join(repository.newest_topology(cluster).await?.as_ref());
        }
        if self.looks.unwritten().is_some()
            && let Some(newest) = repository.newest_topology(cluster).await?
        {
            self.looks.heed(&newest);
        }
        while let Some(record) = self.looks.unwritten() {
            // Who has slept since it saw that does not lead any more.
            if !self.share.confirm_lead().await? {
                self.looks.leave();
                return Ok(());
            }
            repository.put_topology(cluster, record).await?;
            if self.looks.wrote() {
                self.watch.board.pin(NoticeKind::Topology, None, "the cluster looks different");
            }
        }
        Ok(())
    }

    /// Writes down how the cluster looked last: slots that change hands afterwards have not done so before.
    async fn write_last_look(&mut self) {
        let context = self.context;
        match new_backup_id(context) {
            Ok(id) => self.looks.confirm(id),
            Err(error) => tracing::debug!(%error, "the last look at the cluster has no name"),
        }
        if let Some(Err(error)) = context.within(ANSWER_LIMIT, self.write_looks()).await {
            self.trouble("the cluster's shape can't be written down", &error);
        }
    }

    fn publish(&mut self) {
        let now = self.context.clock.elapsed();
        let mut lines: Vec<&LineHandle> = self.fleet.lines.iter().collect();
        lines.sort_by_key(|line| line.shard.borrow().slots.ranges().first().map(|range| range.first()));
        let mut status = self.watch.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.spool_bytes = self.shared.folder.used_bytes();
        status.agents = self.share.agents();
        status.leads = self.share.leads();
        let (share, fleet) = (&self.share, &self.fleet);
        let others = self.names.iter().filter(|(_, name)| fleet.line(name).is_none());
        let (elsewhere, unfollowed): (Vec<_>, Vec<_>) =
            others.partition(|(_, name)| share.is_with_another(name));
        status.elsewhere = elsewhere.len();
        status.unfollowed = unfollowed.len();
        let unfollowed = unfollowed.into_iter().map(|(shard, name)| (name.as_str(), &shard.slots));
        let limit = self.options.share.lease_time;
        if let Some(slots) = self.orphans.note(unfollowed, now, limit) {
            let words = format!(
                "nobody has followed this for {} s: what is written there is in no log",
                limit.as_secs()
            );
            self.watch.board.pin(NoticeKind::Trouble, Some(&slots), words);
        }
        status.trouble = self.share.trouble().map(|trouble| trouble.to_string());
        status.no_backup.clone_from(&self.no_backup);
        status.shards = lines.into_iter().map(|line| line.status(now)).collect();
    }

    /// Ends the lines; gives how many bytes wait in the spool.
    async fn end(mut self) -> u64 {
        match self.fleet.stop().await {
            Err(error) => self.trouble("what is not sealed stays in the spool", &error),
            Ok(()) => self.settle_at_the_end().await,
        }
        self.tell().await;
        self.fleet.take_back(&self.listed).await;
        self.write_last_look().await;
        self.publish();
        let leases: Vec<Arc<TakenLease>> =
            self.fleet.lines.iter().filter_map(|line| line.lease.clone()).collect();
        self.share.end(&leases).await;
        self.shared.folder.used_bytes()
    }
}
