//! The lines of all shards, and what is asked of them together.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use slotkeep_format::Parent;
use slotkeep_format::manifest::ShardCut;
use slotkeep_model::{Node, ReplId, Shard};

use super::beginning::Beginning;
use super::line::{Line, LineHandle, LineState, Shared};
use super::lineage::Reach;
use super::share::{TakenLease, Ties};
use super::status::{LinePhase, ShardStatus, ms, text};
use crate::backup::base::TakenBase;
use crate::progress::ShardProgress;
use crate::{Error, ErrorKind, Result};

/// The lines of a job.
pub(crate) struct Fleet {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lines: Vec<LineHandle>,
}

impl LineHandle {
    /// The shard that the line follows, as it was seen last.
    pub(crate) fn shard(&self) -> Shard {
        self.shard.borrow().clone()
    }

    /// Waits until the line's state is as wanted. Fails if the line ends before. Cancel-safe.
    async fn until(&mut self, wanted: impl Fn(&LineState) -> bool) -> Result<()> {
        loop {
            if wanted(&self.state.borrow_and_update()) {
                return Ok(());
            }
            if self.state.changed().await.is_err() {
                self.ended().await?;
                return Err(Error::interrupted());
            }
        }
    }

    /// Waits until the line has ended, and gives what it ended with, once.
    pub(crate) async fn ended(&mut self) -> Result<()> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let outcome = task.await;
        self.task = None;
        outcome.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, format!("a worker ended: {error}"))))
    }

    /// Whether everything up to that cut is in the repository.
    pub(crate) fn reach(&self, cut: &ShardCut) -> Reach {
        reach(&self.state.borrow(), cut)
    }

    /// The histories that lead from the one of a base to the one of a cut, as far as the line has followed them, and where each comes from.
    pub(crate) fn histories(&self, base: &TakenBase, cut: &ShardCut) -> Vec<(ReplId, Parent)> {
        self.state.borrow().lineage.back_to(&cut.history, Some(&base.history))
    }

    /// How much has been begun.
    pub(crate) fn ties(&self) -> Ties {
        let state = self.state.borrow();
        match (state.phase, &state.base) {
            (LinePhase::Base, _) => Ties::Base,
            (_, Some(_)) => Ties::Stream,
            (_, None) => Ties::None,
        }
    }

    pub(crate) fn base(&self) -> Option<Arc<TakenBase>> {
        self.state.borrow().base.clone()
    }

    /// The base, if the line is followed and does not begin anew just now: then no base leads to a cut yet.
    pub(crate) fn settled_base(&self) -> Option<Arc<TakenBase>> {
        let state = self.state.borrow();
        state.base.clone().filter(|_| state.source.is_some() && state.awaited.is_none())
    }

    /// How it stands, at that moment of the clock.
    pub(crate) fn status(&self, now: Duration) -> ShardStatus {
        let state = self.state.borrow().clone();
        let sealed = self.sealed.borrow().clone();
        let complete = state.complete.as_ref().map_or(0, |(_, offset)| *offset);
        let primary = self.primary_offset.load(Ordering::Relaxed);
        ShardStatus {
            slots: self.shard.borrow().slots.to_string(),
            phase: state.phase,
            source: text(state.source.as_ref()),
            history: state.history.as_ref().map(ToString::to_string),
            received: state.received,
            durable: state.durable,
            sealed: complete,
            primary,
            lag_bytes: primary.saturating_sub(state.received),
            unsealed_bytes: state.received.saturating_sub(complete),
            sealed_ms_ago: sealed.at.map(|at| ms(now.saturating_sub(at))),
            segments: sealed.segments,
            bases: state.bases,
            gaps: state.gaps,
            trouble: sealed.trouble.or(state.trouble).map(|trouble| trouble.to_string()),
        }
    }
}

fn reach(state: &LineState, cut: &ShardCut) -> Reach {
    match &state.complete {
        Some((history, offset)) => state.lineage.reach((&cut.history, cut.offset), (history, *offset)),
        None => Reach::NotYet,
    }
}

impl Fleet {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, lines: Vec::new() }
    }

    /// Adds a line; `of` is by what other agents know it, if there may be any.
    pub(crate) fn add(
        &mut self,
        shard: Shard,
        beginning: impl Into<Beginning>,
        progress: Arc<ShardProgress>,
        of: (String, Option<Arc<TakenLease>>),
    ) {
        self.lines.push(Line::start(&self.shared, shard, beginning.into(), progress, of));
    }

    /// The line of that name.
    pub(crate) fn line(&self, name: &str) -> Option<&LineHandle> {
        self.lines.iter().find(|line| line.name == name)
    }

    /// Waits until every line has a base and follows its stream, if it is to. Fails as soon as one line fails.
    pub(crate) async fn until_following(&mut self) -> Result<()> {
        let follows = self.shared.follows;
        let ready = |state: &LineState| state.base.is_some() && (state.source.is_some() || !follows);
        try_join_all(self.lines.iter_mut().map(|line| line.until(ready))).await.map(drop)
    }

    /// Waits until everything up to these cuts, one a line, is in the repository; false if a line has left the history of its cut.
    pub(crate) async fn until_complete(&mut self, cuts: &[ShardCut]) -> Result<bool> {
        self.seal_by(cuts);
        let pairs = self.lines.iter_mut().zip(cuts);
        let waits = pairs.map(|(line, cut)| line.until(|state| reach(state, cut) != Reach::NotYet));
        try_join_all(waits).await?;
        Ok(self.lines.iter().zip(cuts).all(|(line, cut)| line.reach(cut) == Reach::Reached))
    }

    /// Asks for everything up to these cuts to be sealed.
    pub(crate) fn seal_by(&self, cuts: &[ShardCut]) {
        for (line, cut) in self.lines.iter().zip(cuts) {
            line.seal_by(cut.offset);
        }
    }

    /// Ends all lines, and waits until they have ended. Gives the first failure.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for line in &self.lines {
            line.stop();
        }
        let outcomes = join_all(self.lines.iter_mut().map(LineHandle::ended)).await;
        outcomes.into_iter().collect()
    }

    /// Deletes the bases that no backup lists and that no other agent knows of: one that is known may be listed at any moment.
    pub(crate) async fn take_back(&self, listed: &HashSet<String>) {
        for line in &self.lines {
            let Some(base) = line.base() else { continue };
            let said = line.lease.as_ref().and_then(|lease| lease.said().shard?.base);
            let known = said.is_some_and(|said| said.record.base.rdb.path == base.base.rdb.path);
            if !known && !listed.contains(&base.base.rdb.path) {
                base.take_back(&self.shared.repository).await;
            }
        }
    }
}

/// Whether a line's shard, as it was seen last, is that shard.
type Sign<'a> = &'a dyn Fn(&Shard, &Shard) -> bool;

/// For each shard the number of the line that follows it, if one does.
pub(crate) fn match_lines(lines: &[Shard], shards: &[Shard]) -> Vec<Option<usize>> {
    let same = |one: &Node, other: &Node| match (&one.id, &other.id) {
        (Some(one), Some(other)) => one == other,
        _ => one.addr == other.addr,
    };
    let mut taken = HashSet::new();
    let mut found = vec![None; shards.len()];
    // The surest sign first: the same primary; then a primary that was a replica; then any node in common.
    let signs: [Sign<'_>; 3] = [
        &|line, shard| same(&line.primary, &shard.primary),
        &|line, shard| line.replicas.iter().any(|node| same(node, &shard.primary)),
        &|line, shard| line.nodes().any(|node| shard.nodes().any(|other| same(node, other))),
    ];
    for sign in signs {
        for (shard, place) in shards.iter().zip(&mut found).filter(|(_, place)| place.is_none()) {
            let fitting =
                lines.iter().enumerate().find(|(number, line)| !taken.contains(number) && sign(line, shard));
            if let Some((number, _)) = fitting {
                taken.insert(number);
                *place = Some(number);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotkeep_model::{NodeAddr, Role, SlotSet};

    fn node(number: u16, role: Role) -> Node {
        Node {
            id: Some(format!("{number:040}").parse().unwrap()),
            addr: NodeAddr::new("h", number),
            role,
            online: true,
        }
    }

    fn shard(primary: u16, replicas: &[u16]) -> Shard {
        Shard {
            slots: SlotSet::default(),
            config_epoch: 0,
            primary: node(primary, Role::Primary),
            replicas: replicas.iter().map(|number| node(*number, Role::Replica)).collect(),
        }
    }

    #[test]
    fn lines_stay_with_their_shards() {
        let before = [shard(1, &[4]), shard(2, &[5]), shard(3, &[6])];
        assert_eq!(match_lines(&before, &before), [Some(0), Some(1), Some(2)]);
        // A failover, a new shard, and one that is gone.
        let after = [shard(5, &[2]), shard(7, &[]), shard(1, &[4])];
        assert_eq!(match_lines(&before, &after), [Some(1), None, Some(0)]);
    }

    #[test]
    fn a_replica_that_changes_its_shard_does_not_take_the_line_along() {
        let before = [shard(1, &[3, 4]), shard(2, &[])];
        let after = [shard(2, &[4]), shard(1, &[3])];
        assert_eq!(match_lines(&before, &after), [Some(1), Some(0)]);
        // A primary died, its replica leads now, and another of its replicas went to another shard.
        assert_eq!(match_lines(&before, &[shard(2, &[4]), shard(3, &[])]), [Some(1), Some(0)]);
    }
}
