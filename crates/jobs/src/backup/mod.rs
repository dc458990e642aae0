//! A backup on demand: a base of every shard, or the log behind the bases of an earlier one; the log up to a cut that all shards share;
//! then the manifest.
//!
//! Invariants: the manifest is written last, when everything it names is durable; a backup that fails or is interrupted takes
//! back its bases and is never listed, unless nobody knows what became of its manifest: then its bases stay. Segments of the log
//! stay in any case: they are whole, and no manifest names them.

pub(crate) mod base;
mod buffers;
pub(crate) mod commit;
mod companions;
mod continuation;
mod interpret;
pub(crate) mod pipeline;
mod plan;
mod reading;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use slotkeep_format::Manifest;
use slotkeep_format::manifest::{BackupKind, ShardCut};
use slotkeep_model::{NodeAddr, Shard, SlotSet};
use slotkeep_repo::Repository;
use tokio::sync::Notify;

pub(crate) use continuation::Continuation;
pub(crate) use interpret::{HASH_VERSION, Interpreter, NotUnderstood};
use plan::look_again;
pub(crate) use plan::plan_shard;
pub use plan::{BackupPlan, Candidate, Prefer, ShardPlan, plan};
pub(crate) use reading::how_read;
pub use reading::{DataDirs, Reading, ScanOptions, find_data_dirs, read_backup, read_incremental};

use crate::archive::fleet::{Fleet, match_lines};
use crate::archive::gates::Gates;
use crate::archive::held::{Held, Holdings, Lead};
use crate::archive::line::{Ack, Shared};
use crate::archive::sealer::{Patience, wait};
use crate::archive::spool::SpoolFolder;
use crate::archive::{SealPolicy, view};
use crate::cut::{CutOptions, TakenCut, take_cut};
use crate::discover::{Discovery, replication_at};
use crate::ports::random_hex;
use crate::progress::{Phase, ShardProgress};
use crate::settings::{SettingsOptions, read_settings};
use crate::{Context, Error, ErrorKind, Result};
use base::clean_up;
use commit::{Heading, Part, commit};
use companions::find_held_by_all;

/// How often a cut is tried.
const CUT_ATTEMPTS: usize = 3;
/// How long the log may take to reach a cut.
const CUT_LIMIT: Duration = Duration::from_secs(120);
/// The pause before a cut is tried again: as long as a failover may take.
const CUT_PAUSE: Duration = Duration::from_secs(2);

/// How to take a backup.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// The name under which the repository keeps the cluster's backups.
    pub cluster: String,
    /// At most so many shards at a time.
    pub jobs: usize,
    /// At most so many shards at a time from nodes of one host.
    pub jobs_per_host: usize,
    /// Which role to take and follow, where there is a choice.
    pub prefer: Prefer,
    /// Whether passwords and their hashes are stored as well.
    pub include_secrets: bool,
    /// The cut that all shards are to share; without one each shard ends at its own base.
    pub cut: Option<CutOptions>,
    /// Where the log waits until it is stored.
    pub spool: PathBuf,
    /// At most so many bytes of it at a time.
    pub spool_limit_bytes: u64,
    /// When a piece of the log is stored.
    pub seal: SealPolicy,
}

/// An id for a backup that begins now. Ids sort by time, to the millisecond: the latest backup is the one whose id is last, and
/// small clusters are backed up more than once a second.
pub fn new_backup_id(context: &Context) -> Result<String> {
    let time = context.clock.now().strftime("%Y%m%dT%H%M%S.%3fZ").to_string();
    Ok(format!("{time}-{}", random_hex(&*context.rng, 4)?))
}

/// Takes the full backup that was planned. `progress` has a row for each shard of the plan. Cancelling it is safe for the
/// cluster but may leave unlisted objects in the repository; to stop in order, cancel [`Context::stop`].
pub async fn backup(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
    progress: &[Arc<ShardProgress>],
) -> Result<Manifest> {
    let held = plan.shards.iter().map(|_| None).collect();
    Run::begin(context, repository, plan, options)?.take(BackupKind::Full, held, progress).await
}

/// Takes an incremental backup: the log behind the newest backup that leads to what the servers follow now. Fails with
/// [`ErrorKind::Gap`] if there is none, if a server can't continue from its end, or if a repository that must have the backup as well does not
/// hold the same up to there.
pub async fn incremental(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
    progress: &[Arc<ShardProgress>],
) -> Result<Manifest> {
    let held = context.unless_stopped(find_held_by_all(context, repository, plan, options)).await?;
    Run::begin(context, repository, plan, options)?.take(BackupKind::Incremental, held, progress).await
}

async fn find_held(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
) -> Result<Vec<Option<Held>>> {
    let mut holdings = Holdings::read(repository, &options.cluster).await?;
    let mut all = Vec::new();
    for shard in &plan.shards {
        let replication = replication_at(context, &shard.shard.primary.addr).await?;
        let why = match holdings.leading_to(&replication).await? {
            Lead::Here(held) => {
                all.push(Some(held));
                continue;
            }
            Lead::Broken(why) => format!(" ({why})"),
            Lead::Nowhere => not_of_replication(&holdings, &shard.shard.slots),
        };
        let words = format!(
            "no backup of `{}` leads to history {} of the shard with slots {}: there is nothing to continue{why}",
            options.cluster, replication.replid, shard.shard.slots,
        );
        return Err(
            Error::new(ErrorKind::Gap, words).hint("take a full backup over replication first (--type full)")
        );
    }
    Ok(all)
}

/// Says of the newest backup of those slots that no log can go on behind it, if so.
fn not_of_replication(holdings: &Holdings, slots: &SlotSet) -> String {
    let Some((id, shard)) = holdings.not_of_replication(slots) else { return String::new() };
    match shard.aof() {
        None => format!(
            " (backup {id} was {}: it stands at no offset, and no log can go on behind it)",
            how_read(shard)
        ),
        Some(_) => format!(
            " (backup {id} was {}: --source files --files-from aof goes on behind it)",
            how_read(shard)
        ),
    }
}

/// A backup on its way.
struct Run<'a> {
    context: &'a Context,
    repository: &'a Repository,
    plan: &'a BackupPlan,
    options: &'a BackupOptions,
    id: String,
    started_at: jiff::Timestamp,
}

impl<'a> Run<'a> {
    fn begin(
        context: &'a Context,
        repository: &'a Repository,
        plan: &'a BackupPlan,
        options: &'a BackupOptions,
    ) -> Result<Self> {
        // Before hours are spent on what could not be signed.
        repository.check_signs()?;
        let id = new_backup_id(context)?;
        Ok(Self { context, repository, plan, options, id, started_at: context.clock.now() })
    }

    async fn take(
        self,
        kind: BackupKind,
        held: Vec<Option<Held>>,
        progress: &[Arc<ShardProgress>],
    ) -> Result<Manifest> {
        let settings_options = SettingsOptions { include_secrets: self.options.include_secrets };
        let topology = self.plan.discovery.topology();
        let settings =
            self.context.unless_stopped(read_settings(self.context, topology, &settings_options)).await?;
        // When one shard fails the others stop as well, in order.
        let context = Context { stop: self.context.stop.child_token(), ..self.context.clone() };
        let mut fleet = Fleet::new(Arc::new(self.shared(context, kind)?));
        for ((shard, held), progress) in self.plan.shards.iter().zip(held).zip(progress) {
            fleet.add(shard.shard.clone(), Lead::from(held), Arc::clone(progress), Default::default());
        }
        let outcome = self.follow_to_cut(&mut fleet).await;
        let stopped = fleet.stop().await;
        let outcome = match outcome.and_then(|cut| stopped.map(|()| cut)) {
            Ok((discovery, cut)) => {
                let heading = Heading {
                    id: self.id.clone(),
                    cluster: self.options.cluster.clone(),
                    kind,
                    started_at: self.started_at,
                    settings,
                    cut: cut.as_ref().map(|cut| cut.cut.clone()),
                };
                self.commit(&fleet, &discovery, heading, cut).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(manifest) => Ok(manifest),
            Err(error) => {
                for row in progress.iter().filter(|row| row.phase() != Phase::Done) {
                    row.enter(Phase::Failed);
                }
                clean_up(self.context, Box::pin(fleet.take_back(&HashSet::new()))).await;
                Err(error)
            }
        }
    }

    fn shared(&self, context: Context, kind: BackupKind) -> Result<Shared> {
        let options = self.options;
        let folder = SpoolFolder::passing(
            &options.spool,
            &self.repository.file().repository_id,
            &options.cluster,
            &self.id,
            options.spool_limit_bytes,
        )?;
        Ok(Shared {
            context,
            repository: self.repository.clone(),
            cluster: options.cluster.clone(),
            folder,
            policy: options.seal,
            ack: Ack::Local,
            prefer: options.prefer,
            gates: Gates::new(options.jobs, options.jobs_per_host),
            patience: Patience::None,
            follows: options.cut.is_some(),
            may_take_bases: kind == BackupKind::Full,
            backup_id: Some(self.id.clone()),
            board: Arc::default(),
            changed: Arc::new(Notify::new()),
            near: RwLock::default(),
            abandoned: None,
        })
    }

    /// Waits for the bases, makes the cut, and waits until the log has come so far.
    async fn follow_to_cut(&self, fleet: &mut Fleet) -> Result<(Discovery, Option<TakenCut>)> {
        fleet.until_following().await?;
        let Some(options) = self.options.cut else {
            let discovery = self.context.unless_stopped(look_again(self.context, self.plan)).await?;
            return Ok((discovery, None));
        };
        let mut last = None;
        for _ in 0..CUT_ATTEMPTS {
            let attempt = self.context.unless_stopped(self.cut(fleet, options));
            match attempt.await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Unreachable => last = Some(error),
                Err(error) => return Err(error),
            }
            wait(self.context, &self.context.stop, CUT_PAUSE).await;
        }
        let gave_up = || {
            Error::new(
                ErrorKind::Failed,
                "the shards could not be brought to one cut: their histories changed",
            )
            .hint("run it again when no failover is under way")
        };
        Err(last.unwrap_or_else(gave_up))
    }

    /// A cut that the log has reached; nothing if a shard's history changed before.
    async fn cut(
        &self,
        fleet: &mut Fleet,
        options: CutOptions,
    ) -> Result<Option<(Discovery, Option<TakenCut>)>> {
        let discovery = look_again(self.context, self.plan).await?;
        let primaries = current_primaries(fleet, &discovery)?;
        let taken = take_cut(self.context, &primaries, options).await?;
        let complete = tokio::select! {
            complete = fleet.until_complete(&taken.shards) => complete?,
            () = self.context.clock.sleep(CUT_LIMIT) => false,
        };
        Ok(complete.then_some((discovery, Some(taken))))
    }

    async fn commit(
        &self,
        fleet: &Fleet,
        discovery: &Discovery,
        heading: Heading,
        cut: Option<TakenCut>,
    ) -> Result<Manifest> {
        let cuts: Vec<Option<ShardCut>> = match cut {
            Some(cut) => cut.shards.into_iter().map(Some).collect(),
            None => fleet.lines.iter().map(|_| None).collect(),
        };
        let part = |(line, cut): (&crate::archive::line::LineHandle, Option<ShardCut>)| {
            let base = line.base().ok_or_else(|| {
                Error::new(
                    ErrorKind::Failed,
                    format!("the shard with slots {} has no base", line.shard().slots),
                )
            })?;
            let histories = cut.as_ref().map(|cut| line.histories(&base, cut)).unwrap_or_default();
            Ok(Part { shard: line.shard(), base, cut, histories })
        };
        let parts: Vec<Part> = fleet.lines.iter().zip(cuts).map(part).collect::<Result<_>>()?;
        if heading.cut.is_some() {
            let seen = view::look_at_shards(self.context, discovery.topology()).await;
            let record = view::record(self.context, discovery, &seen)?;
            self.repository.put_topology(&self.options.cluster, &record).await?;
        }
        commit(self.context, self.repository, discovery.topology(), heading, &parts).await
    }
}

/// The primary of each line's shard. Lines learn of a primary that has changed.
fn current_primaries(fleet: &Fleet, discovery: &Discovery) -> Result<Vec<NodeAddr>> {
    let followed: Vec<Shard> = fleet.lines.iter().map(crate::archive::line::LineHandle::shard).collect();
    let shards = &discovery.topology().shards;
    let lines = match_lines(&followed, shards);
    for (shard, line) in shards.iter().zip(&lines) {
        if let Some(line) = line.and_then(|number| fleet.lines.get(number)) {
            line.shard.send_if_modified(|known| {
                let changed = known != shard;
                known.clone_from(shard);
                changed
            });
        }
    }
    let gone = |shard: &Shard| {
        Error::new(ErrorKind::Unreachable, format!("the shard with slots {} is gone", shard.slots))
            .hint("run it again when the cluster is whole")
    };
    let followed = followed.iter().enumerate();
    followed
        .map(|(number, shard)| {
            let at = lines.iter().position(|line| *line == Some(number));
            let now = at.and_then(|at| shards.get(at)).ok_or_else(|| gone(shard))?;
            Ok(now.primary.addr.clone())
        })
        .collect()
}
