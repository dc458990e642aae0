//! The backups that an archive writes, over the lines of all agents. One agent does it: the one that has the cluster's lease.
//!
//! Invariants: a backup is written when every shard has a base and one of them is in no backup yet, and only when everything up to its
//! cut is in the repository, and the lease was confirmed after that was seen.

use std::sync::Arc;
use std::time::Duration;

use slotkeep_format::LineCut;
use slotkeep_format::manifest::{BackupKind, ShardCut};
use slotkeep_model::{NodeAddr, Shard};

use super::coverage::Coverage;
use super::held::{Holdings, Lead};
use super::lineage::Reach;
use super::status::NoticeKind;
use super::supervise::Supervisor;
use super::view::SeenShard;
use crate::backup::base::TakenBase;
use crate::backup::commit::{Heading, Part, commit};
use crate::backup::new_backup_id;
use crate::cut::{TakenCut, take_cut};
use crate::settings::{SettingsOptions, read_settings};
use crate::{Error, ErrorKind, Result};

/// The pause after a backup that could not be written.
const BACKUP_PAUSE: Duration = Duration::from_secs(10);
/// How long the primaries may take to tell their offsets for a cut.
const CUT_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a cut may wait to be reached before another one is made.
const CUT_LIMIT: Duration = Duration::from_secs(300);
/// How often the repository is asked how far other agents' lines have come.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A shard, as far as a backup is concerned.
#[derive(Clone)]
struct Member {
    shard: Shard,
    line: String,
    base: Arc<TakenBase>,
}

/// A cut that the log has not yet reached, for the shards in their order.
pub(super) struct Pending {
    taken: TakenCut,
    members: Vec<Member>,
    since: Duration,
    /// When the repository was asked last.
    looked_at: Option<Duration>,
}

impl Supervisor<'_> {
    /// Learns what backups list already.
    pub(super) async fn begin_to_lead(&mut self) -> Result<()> {
        let holdings = Holdings::read(&self.shared.repository, &self.options.cluster).await?;
        self.listed.extend(holdings.listed().cloned());
        self.pending = None;
        Ok(())
    }

    /// Tries the backup again a little later: each try may pause writes.
    pub(super) fn give_backup_up(&mut self) {
        self.pending = None;
        self.next_backup_at = self.context.clock.elapsed().saturating_add(BACKUP_PAUSE);
    }

    /// Writes a backup if there is a base that is in none, in steps: none of them waits for the log.
    pub(super) async fn back_up(&mut self) -> Result<()> {
        if !self.share.leads() {
            self.pending = None;
            return Ok(());
        }
        if self.pending.is_some() {
            return self.go_on().await;
        }
        let Some(members) = self.members() else { return Ok(()) };
        let unlisted = members.iter().any(|member| !self.listed.contains(&member.base.base.rdb.path));
        let moving = self.seen.iter().any(SeenShard::is_moving_slots);
        let early = self.context.clock.elapsed() < self.next_backup_at;
        if !unlisted || moving || early {
            return Ok(());
        }
        let primaries: Vec<NodeAddr> =
            members.iter().map(|member| member.shard.primary.addr.clone()).collect();
        let taken =
            self.context.within(CUT_ANSWER_LIMIT, take_cut(self.context, &primaries, self.options.cut));
        let silent = || Error::new(ErrorKind::Unreachable, "not every primary told its offset in time");
        let taken = taken.await.ok_or_else(silent)??;
        let mut cuts = Vec::new();
        for (member, cut) in members.iter().zip(&taken.shards) {
            if let Some(line) = self.fleet.line(&member.line) {
                line.seal_by(cut.offset);
            }
            cuts.push(LineCut { line: member.line.clone(), cut: cut.clone() });
        }
        if self.share.agents() > 1 && !self.share.say_cuts(cuts).await? {
            return Ok(());
        }
        let since = self.context.clock.elapsed();
        self.pending = Some(Pending { taken, members, since, looked_at: None });
        Ok(())
    }

    /// All shards, if each has a base and is followed.
    fn members(&mut self) -> Option<Vec<Member>> {
        let mut members = Vec::new();
        for (shard, name) in &self.names {
            let base = match self.fleet.line(name) {
                Some(line) => line.settled_base()?,
                None => {
                    let told = self.share.told_base(name).filter(|_| self.share.is_with_another(name))?;
                    let known = self.told.entry(told.record.base.rdb.path.clone());
                    Arc::clone(known.or_insert_with(|| Arc::new(TakenBase::told(told))))
                }
            };
            members.push(Member { shard: shard.clone(), line: name.clone(), base });
        }
        (!members.is_empty()).then_some(members)
    }

    /// Looks whether the cut has been reached, and writes the backup if so.
    async fn go_on(&mut self) -> Result<()> {
        let Some(mut pending) = self.pending.take() else { return Ok(()) };
        let now = self.context.clock.elapsed();
        let look = pending.looked_at.is_none_or(|last| now.saturating_sub(last) >= LOOK_EVERY);
        if look {
            pending.looked_at = Some(now);
        }
        let mut all = true;
        for (member, cut) in pending.members.iter().zip(&pending.taken.shards) {
            let base = &member.base;
            let line = self.fleet.line(&member.line);
            let base_now = match line {
                Some(line) => line.base().map(|base| base.base.rdb.path.clone()),
                None => self.share.told_base(&member.line).map(|base| base.record.base.rdb.path.clone()),
            };
            let reach = match line {
                // The line began anew since.
                _ if base_now.is_some_and(|now| now != base.base.rdb.path) => Reach::Never,
                Some(line) => line.reach(cut),
                None if look && is_covered(&mut self.coverage, member, cut).await? => Reach::Reached,
                None => Reach::NotYet,
            };
            if reach == Reach::Never {
                self.give_backup_up();
                return Ok(());
            }
            all &= reach == Reach::Reached;
        }
        if all {
            return self.commit(pending).await;
        }
        if now.saturating_sub(pending.since) > CUT_LIMIT {
            self.give_backup_up();
        } else {
            self.pending = Some(pending);
        }
        Ok(())
    }

    async fn commit(&mut self, mut pending: Pending) -> Result<()> {
        let mut holdings = Holdings::read(&self.shared.repository, &self.options.cluster).await?;
        for member in &mut pending.members {
            member.base = self.standing(member, &mut holdings).await?;
        }
        let all_new = pending.members.iter().all(|member| !self.listed.contains(&member.base.base.rdb.path));
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
        let cuts = pending.taken.shards.into_iter();
        let parts: Vec<Part> = pending
            .members
            .into_iter()
            .zip(cuts)
            .map(|(member, cut)| {
                // Of another agent's line they are written down: the cut counts as reached only then.
                let line = self.fleet.line(&member.line);
                let histories = line.map(|line| line.histories(&member.base, &cut)).unwrap_or_default();
                Part { shard: member.shard, base: member.base, cut: Some(cut), histories }
            })
            .collect();
        if !self.share.confirm_lead().await? {
            return Ok(());
        }
        let manifest = commit(self.context, &self.shared.repository, topology, heading, &parts).await?;
        self.listed.extend(parts.iter().map(|part| part.base.base.rdb.path.clone()));
        self.told.clear();
        self.watch.board.pin(NoticeKind::Backup, None, format!("backup {} was written", manifest.id));
        self.watch.note_backup(manifest.id);
        self.started_at = self.context.clock.now();
        Ok(())
    }

    /// The base of a shard, as the newest backup that names it describes it; if it was listed and no backup names it any more, as after a prune,
    /// the newest one that leads here.
    async fn standing(&self, member: &Member, holdings: &mut Holdings) -> Result<Arc<TakenBase>> {
        let path = &member.base.base.rdb.path;
        if let Some(said) = holdings.said_of(path) {
            let same = *said == member.base.base;
            return Ok(if same { Arc::clone(&member.base) } else { Arc::new(member.base.described(said)) });
        }
        if !self.listed.contains(path) {
            return Ok(Arc::clone(&member.base));
        }
        let primary = &member.shard.primary.addr;
        let seen = self.seen.iter().find(|seen| seen.shard.primary.addr == *primary);
        let held = match seen.and_then(|seen| seen.replication.as_ref()) {
            Some(replication) => holdings.leading_to(replication).await?,
            None => Lead::Nowhere,
        };
        Ok(match held {
            Lead::Here((_, newer)) => newer,
            Lead::Nowhere | Lead::Broken(_) => Arc::clone(&member.base),
        })
    }
}

/// Whether the repository holds the log of a shard that another agent follows, up to the cut.
async fn is_covered(coverage: &mut Coverage, member: &Member, cut: &ShardCut) -> Result<bool> {
    let base = &member.base;
    coverage.reaches(&base.history, base.offset, cut).await.map_err(|error| {
        let slots = &member.shard.slots;
        error.context(format!("whether the log of slots {slots} leads up to the cut can't be told"))
    })
}
