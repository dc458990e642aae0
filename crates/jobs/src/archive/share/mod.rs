//! Several agents, one cluster, one repository: who does what, by leases.
//!
//! ```text
//! keeper ── presence, all leases ──► table ──► names of lines ──► division ──► take · give up
//!                                                                  └──────────► the cluster's lease: topologies and backups
//! ```
//!
//! Every line and the cluster have a lease ([`slotkeep_format::lease`]). Invariants: what is written for a line counts only once its lease was confirmed
//! afterwards; a line is read from where the repository ends only after its lease was taken; where the store can't keep two agents apart, only one
//! is let in; agents of another cluster under the same name have no part in anything, and none begins beside them ([`kin`]).

mod division;
mod keeper;
mod kin;
mod lease;
mod names;
mod near;
#[cfg(test)]
mod simulation;
mod unreachable;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::{Holder, LeaseNote, LeaseRecord, LeaseTable, LineBase, LineCut, LineShard, Tenure};
use slotkeep_model::Shard;
use slotkeep_repo::{Hold, Repository};
use tokio::sync::Notify;

use division::View;
pub(crate) use division::{Division, Ties};
#[cfg(test)]
pub(crate) use keeper::PresenceTime;
use keeper::{Keeper, KeeperHandle};
use kin::Kin;
pub(crate) use lease::TakenLease;
use names::{KnownLine, name_shards};
pub(crate) use near::Near;
pub use near::{NearRule, NearSyntaxError};
pub(crate) use unreachable::Unreachable;

use super::spool::SpoolFolder;
use super::status::ms;
use crate::discover::Discovery;
use crate::ports::random_hex;
use crate::{Context, Error, ErrorKind, Result};

/// The lease of what is done once for the whole cluster.
const CLUSTER: &str = "cluster";
/// What the names of lines' leases begin with.
const LINE_PREFIX: &str = "line-";
/// For how long an agent must be gone before the last of it is removed.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(1);
/// How many leases are taken at a time.
const TAKES_IN_FLIGHT: usize = 8;
/// How long giving everything up may take at the end.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);

/// How agents share the work.
#[derive(Clone, Debug)]
pub struct ShareOptions {
    /// How long an agent that says nothing is waited for.
    pub lease_time: Duration,
    /// What is near this agent; without any, the nodes that have an address of this machine.
    pub near: Vec<NearRule>,
}

impl Default for ShareOptions {
    fn default() -> Self {
        Self { lease_time: Duration::from_secs(15), near: Vec::new() }
    }
}

/// A line of this agent.
pub(crate) struct OwnLine {
    pub(crate) name: String,
    pub(crate) shard: Shard,
    pub(crate) ties: Ties,
}

/// This agent's part in the work.
pub(crate) struct Share {
    context: Context,
    repository: Repository,
    cluster: String,
    holder: Holder,
    kin: Kin,
    keeper: KeeperHandle,
    at_ms: u64,
    table: LeaseTable,
    changed: Arc<Notify>,
    /// Whether leases can be held here.
    with_leases: bool,
    /// When shards that nobody ever followed were seen first.
    first_seen: BTreeMap<String, u64>,
    lead: Option<Arc<TakenLease>>,
    /// Lines that are being given up.
    giving: Arc<Mutex<HashSet<String>>>,
    /// The number of the cluster's record whose cuts were seen.
    cuts_seen: u64,
}

impl Share {
    /// Makes this agent known, and looks who else there is. Fails with [`ErrorKind::Contended`] where others work and can't be kept apart, and with
    /// [`ErrorKind::Conflict`], before anything is said or taken, where an agent of another cluster works.
    pub(crate) async fn start(
        context: &Context,
        repository: &Repository,
        cluster: &str,
        folder: &SpoolFolder,
        lease_time: Duration,
        changed: &Arc<Notify>,
        discovery: &Discovery,
    ) -> Result<Self> {
        let holder = Holder {
            process: random_hex(&*context.rng, 32)?,
            agent: Some(folder.agent(&*context.rng)?),
            duration_ms: ms(lease_time).max(1),
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let kin = Kin::of(discovery);
        let gone = kin.await_no_stranger(context, repository, cluster, &holder).await?;
        let note = LeaseNote { host: Some(host), cluster: Some(kin.mark()), ..LeaseNote::default() };
        let keeper = Keeper::start(context, repository, cluster, &holder, note).await?;
        let mut share = Self {
            context: context.clone(),
            repository: repository.clone(),
            cluster: cluster.to_owned(),
            holder,
            kin,
            keeper,
            at_ms: 0,
            table: LeaseTable::default(),
            changed: Arc::clone(changed),
            with_leases: repository.refuses_overwrite(),
            first_seen: BTreeMap::new(),
            lead: None,
            giving: Arc::default(),
            cuts_seen: 0,
        };
        share.take_in();
        let is_new = |(agent, record): &(&str, &LeaseRecord)| gone.get(*agent) != Some(&record.number);
        let beside = share.strangers().find(is_new).map(|(_, record)| share.kin.refusal(cluster, record));
        let alone = match beside {
            // Both came at once.
            Some(refusal) => Err(refusal),
            None => share.must_be_alone().await,
        };
        if let Err(error) = alone {
            share.keeper.end().await;
            return Err(error);
        }
        Ok(share)
    }

    /// Where leases can't be held: waits until whoever else was here is known to be gone, or fails because somebody is not.
    async fn must_be_alone(&mut self) -> Result<()> {
        let stands: BTreeMap<String, u64> =
            self.others().map(|(agent, record)| (agent.to_owned(), record.number)).collect();
        while !self.with_leases && self.others().next().is_some() {
            if let Some((_, record)) =
                self.others().find(|(agent, record)| stands.get(*agent) != Some(&record.number))
            {
                let host = record.note.host.clone().unwrap_or_else(|| "another machine".to_owned());
                let words = format!(
                    "an agent on {host} archives this cluster to this repository, whose store overwrites objects although requests forbid it: \
                     two agents can't be kept apart there"
                );
                return Err(Error::new(ErrorKind::Contended, words).hint(
                    "let one agent work there, or use a store that honours conditional writes (docs/stores.md)",
                ));
            }
            tokio::select! {
                changed = self.keeper.seen.changed() => if changed.is_err() { return Ok(()) },
                () = self.context.clock.sleep(Duration::from_millis(self.holder.duration_ms / 5)) => {}
                () = self.context.stop.cancelled() => return Err(Error::interrupted()),
            }
            self.refresh()?;
        }
        Ok(())
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.keeper.time.now_ms()
    }

    /// The other living agents of this cluster.
    fn others(&self) -> impl Iterator<Item = (&str, &LeaseRecord)> {
        self.all_others().filter(|(_, record)| !self.kin.is_strange(record))
    }

    /// The living agents of other clusters.
    fn strangers(&self) -> impl Iterator<Item = (&str, &LeaseRecord)> {
        self.all_others().filter(|(_, record)| self.kin.is_strange(record))
    }

    fn all_others(&self) -> impl Iterator<Item = (&str, &LeaseRecord)> {
        let me = self.holder.agent.as_deref();
        self.table.agents().filter(move |(agent, _)| Some(*agent) != me)
    }

    /// Takes note of how the cluster looks now, by which other agents know it again.
    pub(crate) fn see(&mut self, discovery: &Discovery) {
        self.kin.see(discovery);
    }

    /// That agents of another cluster work under the same name, as two may that were woken or came at once; each is named once.
    pub(crate) fn new_strangers(&mut self) -> Vec<String> {
        let found: Vec<(String, LeaseRecord)> =
            self.strangers().map(|(agent, record)| (agent.to_owned(), record.clone())).collect();
        self.kin.name_once(&self.cluster, &found)
    }

    /// Takes in what the keeper saw; true if that is new. Fails if another process is this agent.
    pub(crate) fn refresh(&mut self) -> Result<bool> {
        let new = self.take_in();
        if self.keeper.seen.borrow().double {
            let words = "another process is this agent: it has the same identity, and has taken its place";
            return Err(Error::new(ErrorKind::Contended, words)
                .hint("spool folders must not be copied between machines: give each agent an empty one (--spool DIR)"));
        }
        Ok(new)
    }

    fn take_in(&mut self) -> bool {
        let seen = Arc::clone(&self.keeper.seen.borrow_and_update());
        if seen.at_ms == self.at_ms {
            return false;
        }
        self.at_ms = seen.at_ms;
        // Half of its time is left to an agent by then.
        self.table.look(seen.at_ms, self.holder.duration_ms / 2);
        for (name, record) in &seen.newest {
            self.table.observe(name, record.clone(), seen.at_ms);
        }
        true
    }

    /// Why leases can't be looked at, if they can't.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        self.keeper.seen.borrow().trouble.clone()
    }

    /// How many agents live, this one included.
    pub(crate) fn agents(&self) -> usize {
        self.others().count().saturating_add(1)
    }

    /// The name of each shard's line.
    pub(crate) fn names(&self, shards: &[Shard], own: &[OwnLine]) -> Vec<String> {
        let mut known: Vec<KnownLine> = own
            .iter()
            .map(|line| KnownLine {
                name: line.name.clone(),
                shard: Some(line.shard.clone()),
                is_followed: true,
            })
            .collect();
        for (name, record) in self.table.leases() {
            let Some(name) = name.strip_prefix(LINE_PREFIX) else { continue };
            if own.iter().all(|line| line.name != name) {
                let is_followed = matches!(self.table.tenure(&lease_name(name)), Tenure::Held(_));
                let shard = record.note.shard.as_ref().map(|shard| shard.shard());
                known.push(KnownLine { name: name.to_owned(), shard, is_followed });
            }
        }
        name_shards(known, shards)
    }

    /// What to do about the shards, of which each has a name and may be this agent's.
    pub(crate) fn divide(
        &mut self,
        shards: &[Shard],
        names: &[String],
        own: &[OwnLine],
        near: &Near,
    ) -> Division {
        let near_me: Vec<String> = shards
            .iter()
            .zip(names)
            .filter(|(shard, _)| near.is_near(shard))
            .map(|(_, name)| name.clone())
            .collect();
        let me = self.holder.agent.clone().unwrap_or_default();
        let own: Vec<(String, Ties)> = own.iter().map(|line| (line.name.clone(), line.ties)).collect();
        let is_strange = |record: &LeaseRecord| self.kin.is_strange(record);
        let view = View { table: &self.table, me: &me, own: &own, near: &near_me, is_strange: &is_strange };
        let mut division = view.divide(names, &mut self.first_seen, self.holder.duration_ms);
        let said = self.keeper_note(near_me);
        self.keeper.say(said);
        let giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        division.take.retain(|number| names.get(*number).is_some_and(|name| !giving.contains(name)));
        if !self.with_leases {
            division.give.clear();
        }
        division
    }

    fn keeper_note(&self, near: Vec<String>) -> LeaseNote {
        let host = self.table.newest(&self.presence()).and_then(|record| record.note.host.clone());
        LeaseNote { host, near, cluster: Some(self.kin.mark()), ..LeaseNote::default() }
    }

    fn presence(&self) -> String {
        slotkeep_format::lease::presence_name(self.holder.agent.as_deref().unwrap_or_default())
    }

    /// The base that the last holder of a line has said it has.
    pub(crate) fn told_base(&self, line: &str) -> Option<&LineBase> {
        self.table.newest(&lease_name(line))?.note.shard.as_ref()?.base.as_ref()
    }

    /// Whether another living agent has that line.
    pub(crate) fn is_with_another(&self, line: &str) -> bool {
        matches!(self.table.tenure(&lease_name(line)), Tenure::Held(record) if record.holder != self.holder.process)
    }

    /// Takes the leases of lines; nothing in the place of those where another was faster. Where leases can't be held there are none to take.
    pub(crate) async fn take(&mut self, lines: Vec<(String, Shard)>) -> Result<Vec<Option<Arc<TakenLease>>>> {
        if !self.with_leases {
            return Ok(lines.iter().map(|_| None).collect());
        }
        // What is to be sealed of them may have been said before they were this agent's.
        self.cuts_seen = 0;
        let takes = lines.iter().map(|(line, shard)| {
            let base = self.told_base(line).cloned();
            let note =
                LeaseNote { shard: Some(Box::new(LineShard::of(shard, base))), ..LeaseNote::default() };
            self.ask_for(lease_name(line), note)
        });
        let takes: Vec<_> = futures::stream::iter(takes).buffered(TAKES_IN_FLIGHT).collect().await;
        takes.into_iter().map(|taken| Ok(self.taken(taken?))).collect()
    }

    pub(crate) const fn has_leases(&self) -> bool {
        self.with_leases
    }

    fn ask_for(
        &self,
        name: String,
        note: LeaseNote,
    ) -> impl Future<Output = Result<Option<(String, Hold)>>> + Send + 'static {
        let before = self.table.newest(&name).cloned();
        let (repository, cluster, holder) =
            (self.repository.clone(), self.cluster.clone(), self.holder.clone());
        async move {
            let taken = repository.take_lease(&cluster, &name, before.as_ref(), &holder, note).await?;
            Ok(taken.map(|hold| (name, hold)))
        }
    }

    fn taken(&mut self, taken: Option<(String, Hold)>) -> Option<Arc<TakenLease>> {
        let Some((name, hold)) = taken else {
            // Who has it is seen at the next look.
            self.keeper.hurry();
            return None;
        };
        let now_ms = self.now_ms();
        self.table.observe(&name, hold.record().clone(), now_ms);
        let time = self.keeper.time.clone();
        Some(TakenLease::new(name, hold, time, Arc::clone(&self.changed)))
    }

    /// Whether that lease of ours is seen to have another's record.
    pub(crate) fn is_taken_over(&self, lease: &TakenLease) -> bool {
        self.table.newest(lease.name()).is_some_and(|newest| newest.holder != self.holder.process)
    }

    /// Notes that a line is being given up; it is not taken meanwhile.
    pub(crate) fn gives(&self, line: &str) {
        self.giving.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned());
    }

    /// What gives lines up at the end of giving.
    pub(crate) fn giver(&self) -> Giver {
        Giver { giving: Arc::clone(&self.giving) }
    }

    /// Gives up what the leases say is this process's and is not: a word came through whose answer was lost.
    pub(crate) async fn give_up_strays(&mut self, own: &[OwnLine]) {
        if !self.with_leases {
            return;
        }
        let giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_stray = |(name, record): &(&str, &LeaseRecord)| {
            let line = name.strip_prefix(LINE_PREFIX);
            let mine = record.holder == self.holder.process && !record.released;
            mine && match line {
                Some(line) => own.iter().all(|own| own.name != line) && !giving.contains(line),
                None => self.lead.is_none(),
            }
        };
        let strays: Vec<(String, LeaseRecord)> = self
            .table
            .leases()
            .filter(is_stray)
            .map(|(name, record)| (name.to_owned(), record.clone()))
            .collect();
        for (name, record) in strays {
            let note = record.note.clone();
            let Ok(mut hold) = self.repository.hold(&self.cluster, &name, record) else { continue };
            if let Err(error) = hold.release(note).await {
                tracing::debug!(%error, "a lease stays with this agent for a while");
            }
        }
    }

    /// Whether this agent does what is done once for the cluster. Takes that over if nobody does it; says whether it did just now.
    pub(crate) async fn seek_lead(&mut self) -> Result<bool> {
        if !self.with_leases {
            return Ok(false);
        }
        if self.lead.as_ref().is_some_and(|lead| lead.is_lost() || self.is_taken_over(lead)) {
            self.lead = None;
        }
        if self.lead.is_some() {
            return Ok(false);
        }
        let me = self.holder.agent.as_deref();
        let now_ms = self.table.looked_ms();
        let free = match self.table.tenure(CLUSTER) {
            Tenure::New => true,
            Tenure::Held(record) => record.holder == self.holder.process,
            Tenure::Free { since_ms, left_by } => {
                let back = left_by.is_some_and(|left_by| self.others().any(|(agent, _)| agent == left_by));
                left_by == me || !back || now_ms.saturating_sub(since_ms) >= self.holder.duration_ms
            }
        };
        if free {
            let taken = self.ask_for(CLUSTER.to_owned(), LeaseNote::default()).await?;
            self.lead = self.taken(taken);
        }
        Ok(self.lead.is_some())
    }

    /// Whether this agent does what is done once for the cluster.
    pub(crate) fn leads(&self) -> bool {
        !self.with_leases || self.lead.as_ref().is_some_and(|lead| !lead.is_lost())
    }

    /// Whether it still does, asked of the store.
    pub(crate) async fn confirm_lead(&self) -> Result<bool> {
        match &self.lead {
            Some(lead) => lead.confirm().await,
            None => Ok(!self.with_leases),
        }
    }

    /// Tells all agents up to where their lines are to be sealed; false if this one does not lead any more.
    pub(crate) async fn say_cuts(&self, cuts: Vec<LineCut>) -> Result<bool> {
        match &self.lead {
            Some(lead) => lead.say(LeaseNote { cuts, ..LeaseNote::default() }).await,
            None => Ok(!self.with_leases),
        }
    }

    /// Up to where lines are to be sealed, if that was said since the last call.
    pub(crate) fn new_cuts(&mut self) -> Vec<LineCut> {
        let Some(record) = self.table.newest(CLUSTER) else { return Vec::new() };
        if record.number == self.cuts_seen {
            return Vec::new();
        }
        self.cuts_seen = record.number;
        record.note.cuts.clone()
    }

    /// Removes what agents left that are gone for good.
    pub(crate) async fn forget_the_gone(&mut self) {
        let gone: Vec<String> = self.table.long_gone(ms(FORGOTTEN_AFTER)).map(str::to_owned).collect();
        for name in gone {
            let agent = name.strip_prefix(slotkeep_format::lease::PRESENCE_PREFIX).unwrap_or_default();
            if let Err(error) = self.repository.remove_presence(&self.cluster, agent).await {
                tracing::debug!(%error, "what a former agent left stays a while longer");
                return;
            }
            self.table.forget(&name);
        }
    }

    /// Gives everything up, the presence last.
    pub(crate) async fn end(self, lines: &[Arc<TakenLease>]) {
        let release = async |lease: &Arc<TakenLease>| {
            if let Err(error) = lease.release(lease.said()).await {
                tracing::debug!(%error, lease = lease.name(), "others wait for this lease to run out");
            }
        };
        let all = lines.iter().chain(&self.lead).map(release);
        self.context.within(FAREWELL_LIMIT, futures::future::join_all(all)).await;
        self.keeper.end().await;
    }
}

/// Tells when a line has been given up.
pub(crate) struct Giver {
    giving: Arc<Mutex<HashSet<String>>>,
}

impl Giver {
    pub(crate) fn given(&self, line: &str) {
        self.giving.lock().unwrap_or_else(PoisonError::into_inner).remove(line);
    }
}

fn lease_name(line: &str) -> String {
    format!("{LINE_PREFIX}{line}")
}
