//! A line for every shard, as long as the job runs.
//!
//! Invariants: a backup is written when every shard has a base and one of them is in no backup yet, and only when everything up to its
//! cut is in the repository; what a stop finds unsealed is sealed or stays in the spool, where the next run finds it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::TopologyRecord;
use slotkeep_format::manifest::BackupKind;
use slotkeep_model::{NodeAddr, Shard};
use slotkeep_repo::Repository;
use tokio::sync::Notify;

use super::fleet::{Fleet, match_lines};
use super::gates::Gates;
use super::held::Holdings;
use super::intake::SealPolicy;
use super::line::{ANSWER_LIMIT, Ack, LineHandle, Shared};
use super::lineage::Reach;
use super::sealer::{Patience, seal_file, wait};
use super::spool::SpoolFolder;
use super::status::{ArchiveStatus, Board, NoticeKind};
use super::view::{SeenShard, look_at_shards, record};
use crate::backup::base::TakenBase;
use crate::backup::commit::{Heading, Part, commit};
use crate::backup::{Prefer, new_backup_id};
use crate::cut::{CutOptions, TakenCut, take_cut};
use crate::discover::{Discovery, discover};
use crate::progress::ShardProgress;
use crate::settings::{SettingsOptions, read_settings};
use crate::{Context, Error, ErrorKind, Result};

/// How often the cluster is looked at when nothing hints at a change.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked at however much hints at one.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// How often the lines are looked at.
const TURN: Duration = Duration::from_millis(200);
/// The pause after a backup that could not be written.
const BACKUP_PAUSE: Duration = Duration::from_secs(10);
/// How long the primaries may take to tell their offsets for a cut.
const CUT_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a cut may wait to be reached before another one is made.
const CUT_LIMIT: Duration = Duration::from_secs(300);
/// How many files of an earlier run are sealed at a time.
const SEALS_IN_FLIGHT: usize = 4;
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
    seal_leftovers(context, repository, &folder, &watch.board).await?;
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
        changed: Arc::new(Notify::new()),
    });
    let mut supervisor = Supervisor {
        context,
        options,
        watch,
        seeds: seeds.to_vec(),
        fleet: Fleet::new(Arc::clone(&shared)),
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
            match Box::pin(seal_file(repository, folder, &file, &mut HashSet::new())).await {
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

/// A cut that the log has not yet reached, for the lines in their order.
struct Pending {
    taken: TakenCut,
    shards: Vec<Shard>,
    since: Duration,
}

struct Supervisor<'a> {
    context: &'a Context,
    options: &'a ArchiveOptions,
    watch: &'a Watch,
    seeds: Vec<NodeAddr>,
    shared: Arc<Shared>,
    fleet: Fleet,
    discovery: Discovery,
    seen: Vec<SeenShard>,
    topology: Option<TopologyRecord>,
    /// RDBs of bases that backups list.
    listed: HashSet<String>,
    pending: Option<Pending>,
    /// No backup is tried before, after one that failed.
    next_backup_at: Duration,
    last_trouble: Option<String>,
    started_at: jiff::Timestamp,
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
            let since = self.context.clock.elapsed().saturating_sub(looked_at);
            if since >= LOOK_EVERY || (hinted && since >= LOOK_AT_MOST_EVERY) {
                looked_at = self.context.clock.elapsed();
                hinted = false;
                self.look().await;
            }
            if let Err(error) = self.back_up().await {
                if error.kind() == ErrorKind::Interrupted {
                    return Err(error);
                }
                self.trouble("no backup could be written yet", &error);
                self.give_backup_up();
            }
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

    /// Tries the backup again a little later: each try may pause writes.
    fn give_backup_up(&mut self) {
        self.pending = None;
        self.next_backup_at = self.context.clock.elapsed().saturating_add(BACKUP_PAUSE);
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
        if let Err(error) = self.reconcile().await {
            self.trouble("a new shard can't be followed yet", &error);
        }
        self.note_topology().await;
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

    async fn reconcile(&mut self) -> Result<()> {
        let shards: Vec<Shard> = self.discovery.topology().shards.clone();
        let followed: Vec<Shard> = self.fleet.lines.iter().map(LineHandle::shard).collect();
        let matched = match_lines(&followed, &shards);
        let gone: Vec<usize> =
            (0..followed.len()).filter(|number| !matched.contains(&Some(*number))).collect();
        let mut holdings = None;
        for (shard, line) in shards.into_iter().zip(&matched) {
            match line.and_then(|number| self.fleet.lines.get(number)) {
                Some(line) => {
                    line.shard.send_if_modified(|known| {
                        let changed = *known != shard;
                        *known = shard;
                        changed
                    });
                }
                None => self.add(shard, &mut holdings).await?,
            }
        }
        for number in gone.into_iter().rev() {
            let mut line = self.fleet.lines.swap_remove(number);
            let words = "the shard is gone: its line ends";
            self.watch.board.pin(NoticeKind::Topology, Some(&line.shard().slots), words);
            self.pending = None;
            line.stop();
            // It seals what it holds by itself.
            tokio::spawn(async move {
                if let Err(error) = line.ended().await {
                    tracing::info!(%error, "what a line held stays in the spool");
                }
            });
        }
        Ok(())
    }

    async fn add(&mut self, shard: Shard, holdings: &mut Option<Holdings>) -> Result<()> {
        let seen = self.seen.iter().find(|seen| seen.shard == shard);
        let replication = seen.and_then(|seen| seen.replication.clone());
        if holdings.is_none() {
            *holdings = Some(Holdings::read(&self.shared.repository, &self.options.cluster).await?);
        }
        let held = match (&replication, holdings) {
            (Some(replication), Some(holdings)) => holdings.leading_to(replication).await?,
            _ => None,
        };
        if let Some((_, base)) = &held {
            self.listed.insert(base.base.rdb.path.clone());
        }
        let progress = ShardProgress::new(format!("slots {}", shard.slots));
        self.fleet.add(shard, held, progress);
        self.pending = None;
        Ok(())
    }

    /// Writes a backup if there is a base that is in none, in steps: none of them waits for the log.
    async fn back_up(&mut self) -> Result<()> {
        if let Some(pending) = &self.pending {
            let pairs = self.fleet.lines.iter().zip(&pending.taken.shards);
            let reached: Vec<Reach> = pairs.map(|(line, cut)| line.reach(cut)).collect();
            let now = self.context.clock.elapsed();
            if reached.iter().all(|reach| *reach == Reach::Reached) {
                return self.commit().await;
            }
            if reached.contains(&Reach::Never) || now.saturating_sub(pending.since) > CUT_LIMIT {
                self.give_backup_up();
            }
            return Ok(());
        }
        let bases: Option<Vec<_>> = self.fleet.lines.iter().map(LineHandle::base).collect();
        let unlisted = bases
            .as_ref()
            .is_some_and(|bases| bases.iter().any(|base| !self.listed.contains(&base.base.rdb.path)));
        let following = self.fleet.lines.iter().all(|line| line.state.borrow().source.is_some());
        let moving = self.seen.iter().any(SeenShard::is_moving_slots);
        let early = self.context.clock.elapsed() < self.next_backup_at;
        if !unlisted || !following || moving || early {
            return Ok(());
        }
        let shards: Vec<Shard> = self.fleet.lines.iter().map(LineHandle::shard).collect();
        let primaries: Vec<NodeAddr> = shards.iter().map(|shard| shard.primary.addr.clone()).collect();
        let taken =
            self.context.within(CUT_ANSWER_LIMIT, take_cut(self.context, &primaries, self.options.cut));
        let silent = || Error::new(ErrorKind::Unreachable, "not every primary told its offset in time");
        let taken = taken.await.ok_or_else(silent)??;
        self.fleet.seal_by(&taken.shards);
        self.pending = Some(Pending { taken, shards, since: self.context.clock.elapsed() });
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let mut parts = Vec::new();
        let mut holdings = Holdings::read(&self.shared.repository, &self.options.cluster).await?;
        let lines = self.fleet.lines.iter().zip(pending.shards).zip(pending.taken.shards);
        for ((line, shard), cut) in lines {
            let Some(base) = line.base() else { return Ok(()) };
            let base = self.standing(base, &shard, &mut holdings).await?;
            parts.push(Part { shard, base, cut: Some(cut) });
        }
        let all_new = parts.iter().all(|part| !self.listed.contains(&part.base.base.rdb.path));
        let settings_options = SettingsOptions { include_secrets: self.options.include_secrets };
        let topology = self.discovery.topology();
        let heading = Heading {
            id: new_backup_id(self.context)?,
            cluster: self.options.cluster.clone(),
            kind: if all_new { BackupKind::Full } else { BackupKind::Incremental },
            started_at: self.started_at,
            settings: read_settings(self.context, topology, &settings_options).await?,
            cut: Some(pending.taken.cut),
        };
        let manifest = commit(self.context, &self.shared.repository, topology, heading, &parts).await?;
        self.listed.extend(parts.iter().map(|part| part.base.base.rdb.path.clone()));
        self.watch.board.pin(NoticeKind::Backup, None, format!("backup {} was written", manifest.id));
        self.watch.status.lock().unwrap_or_else(PoisonError::into_inner).backup = Some(manifest.id);
        self.started_at = self.context.clock.now();
        Ok(())
    }

    /// The base that a line has; if it was listed and no backup names it any more, as after a prune, the newest one that leads here.
    async fn standing(
        &self,
        base: Arc<TakenBase>,
        shard: &Shard,
        holdings: &mut Holdings,
    ) -> Result<Arc<TakenBase>> {
        let path = &base.base.rdb.path;
        if !self.listed.contains(path) || holdings.names(path) {
            return Ok(base);
        }
        let seen = self.seen.iter().find(|seen| seen.shard.primary.addr == shard.primary.addr);
        let Some(replication) = seen.and_then(|seen| seen.replication.as_ref()) else { return Ok(base) };
        let held = holdings.leading_to(replication).await?;
        Ok(held.map_or(base, |(_, newer)| newer))
    }

    fn publish(&self) {
        let now = self.context.clock.elapsed();
        let mut lines: Vec<&LineHandle> = self.fleet.lines.iter().collect();
        lines.sort_by_key(|line| line.shard.borrow().slots.ranges().first().map(|range| range.first()));
        let mut status = self.watch.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.spool_bytes = self.shared.folder.used_bytes();
        status.shards = lines.into_iter().map(|line| line.status(now)).collect();
    }

    /// Ends the lines; gives how many bytes wait in the spool.
    async fn end(&mut self) -> u64 {
        if let Err(error) = self.fleet.stop().await {
            self.trouble("what is not sealed stays in the spool", &error);
        }
        self.fleet.take_back(&self.listed).await;
        self.publish();
        self.shared.folder.used_bytes()
    }
}
