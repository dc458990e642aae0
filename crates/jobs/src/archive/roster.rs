//! Which lines this agent has: what becomes of its lines when the cluster, the leases or the other agents change.
//!
//! Invariants: a line begins where the repository's log ends, as it is read after the line's lease was taken; a line whose lease is lost ends at once; a
//! lease is given up only when its line has sealed what it could.

use std::sync::{Arc, PoisonError};

use futures::StreamExt;
use slotkeep_format::{LeaseNote, LineShard};
use slotkeep_model::Shard;
use slotkeep_wire::info::Replication;

use super::beginning::Beginning;
use super::held::{Holdings, Lead};
use super::line::{ANSWER_LIMIT, LineHandle};
use super::share::{Giver, OwnLine, TakenLease};
use super::status::{LinePhase, NoticeKind};
use super::supervise::Supervisor;
use crate::backup::base::TakenBase;
use crate::discover::replication_at;
use crate::progress::ShardProgress;
use crate::{Error, ErrorKind, Result};

/// How many nodes are asked at a time.
const QUESTIONS_IN_FLIGHT: usize = 16;

impl Supervisor<'_> {
    /// Brings the lines, the leases and the shards together.
    pub(super) async fn reconcile(&mut self) -> Result<()> {
        self.leave_lost();
        let shards: Vec<Shard> = self.discovery.topology().shards.clone();
        self.near.learn(self.context, &shards).await;
        *self.shared.near.write().unwrap_or_else(PoisonError::into_inner) =
            self.near.hosts().cloned().collect();
        let own = self.own_lines();
        let names = self.share.names(&shards, &own);
        if !self.names.iter().map(|(_, name)| name).eq(&names) {
            self.pending = None;
        }
        self.names = shards.iter().cloned().zip(names.iter().cloned()).collect();
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
        for words in self.share.new_strangers() {
            self.watch.board.pin(NoticeKind::Trouble, None, words);
        }
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
            let Some(base) = self.share.told_base(name) else { continue };
            // A prune may have given it up while no agent lived.
            if self.shared.repository.base_stands(&self.options.cluster, &base.record.base).await? {
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
        let lead = holdings.leading_to(&replication).await?;
        for why in holdings.newly_spoiled() {
            let words = format!(
                "{why}; the log is gone on with from before it, as far as the spool and the servers still have what it held"
            );
            self.watch.board.pin(NoticeKind::Trouble, Some(&shard.slots), words);
        }
        let waiting = match &lead {
            Lead::Here((position, _)) => self.abandoned.take_next(position, &replication).await,
            Lead::Nowhere | Lead::Broken(_) => Vec::new(),
        };
        let progress = ShardProgress::new(format!("slots {}", shard.slots));
        self.fleet.add(shard, Beginning { lead, waiting }, progress, of);
        Ok(())
    }

    /// Tells other agents what each line follows, and which base it has.
    pub(super) async fn tell(&mut self) {
        let tell = async |line: &LineHandle| match &line.lease {
            Some(lease) => lease.say(note_of(line, lease)).await,
            None => Ok(true),
        };
        let said = futures::future::join_all(self.fleet.lines.iter().map(tell)).await;
        if let Some(error) = said.into_iter().find_map(Result::err) {
            self.trouble("other agents can't be told how the lines stand", &error);
        }
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
    LeaseNote { shard: Some(Box::new(LineShard::of(&shard, base))), ..LeaseNote::default() }
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
