//! Doing what a plan says, one history after the other, and writing down what was read back.

use slotkeep_format::Depth;
use slotkeep_repo::{Problem, RepoError, Repository, SegmentEntry, StoredObject};

use super::join::{Joined, join, whole};
use super::{CompactPlan, CompactReport, Group, HistoryPlan, Seam, groups, report};
use crate::backup::new_backup_id;
use crate::verify::Ledger;
use crate::{Context, Error, ErrorKind, Result};

/// Proofs are written down when so many have come together: each is of a large segment that would have to be read again.
const PROOFS_PER_FILE: usize = 32;

/// A run under way.
pub(super) struct Run<'a> {
    context: &'a Context,
    repository: &'a Repository,
    plan: &'a CompactPlan,
    /// What names the files of its proofs.
    id: String,
    written: Vec<Group>,
    seams: Vec<Seam>,
    read_again: usize,
    /// The first segment that could not be used.
    damaged: Option<Error>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        context: &'a Context,
        repository: &'a Repository,
        plan: &'a CompactPlan,
    ) -> Result<Self> {
        let id = new_backup_id(context)?;
        let (written, seams) = (Vec::new(), Vec::new());
        Ok(Self { context, repository, plan, id, written, seams, read_again: 0, damaged: None })
    }

    pub(super) async fn all(mut self) -> Result<CompactReport> {
        let id = self.id.clone();
        let mut ledger = Ledger::new(self.repository, &self.plan.cluster, &id);
        let mut outcome = Ok(());
        for history in &self.plan.histories {
            outcome = self.history(history, &mut ledger).await;
            if outcome.is_err() {
                break;
            }
        }
        // Whatever ended it, what was read back need not be read again.
        let flushed = ledger.flush().await;
        outcome.and(flushed)?;
        match self.damaged {
            Some(damaged) => Err(damaged),
            None => Ok(CompactReport {
                read_again: self.read_again,
                ..report(&self.plan.cluster, self.written, self.seams)
            }),
        }
    }

    async fn history(&mut self, plan: &HistoryPlan, ledger: &mut Ledger<'_>) -> Result<()> {
        let mut spoiled: Vec<(&SegmentEntry, Error)> = Vec::new();
        for entry in &plan.unproved {
            self.unless_stopped()?;
            let read = Box::pin(async { Ok(whole(self.repository, entry).await) });
            match self.context.unless_stopped(read).await? {
                Ok((record, _)) => {
                    self.prove(ledger, &entry.stored(), &record.blake3).await?;
                    self.read_again = self.read_again.saturating_add(1);
                }
                // A prune has deleted it since it was listed.
                Err(RepoError { problem: Problem::Missing, .. }) => {}
                Err(error) => match Error::from(error) {
                    error if error.kind() == ErrorKind::Corrupt => spoiled.push((entry, error)),
                    error => return Err(error),
                },
            }
        }
        let is_spoiled = |entry: &SegmentEntry| spoiled.iter().any(|(one, _)| *one == entry);
        let sound = plan.segments.iter().filter(|entry| !is_spoiled(entry)).cloned().collect();
        let before = self.written.len();
        for group in groups(sound, self.plan.target_bytes) {
            match self.group(plan, &group, ledger).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.damaged.get_or_insert(error);
                }
                outcome => outcome?,
            }
        }
        let written = self.written.get(before..).unwrap_or_default();
        let mended = |entry: &SegmentEntry| {
            written.iter().any(|group| group.start <= entry.start && entry.end <= group.end)
        };
        if let Some((entry, error)) = spoiled.into_iter().find(|(entry, _)| !mended(entry)) {
            let hint = format!(
                "other segments beside {} hold bytes of it too: `slotkeep verify` tells whether they are whole and it can be deleted",
                entry.path()
            );
            self.damaged.get_or_insert_with(|| Error::new(error.kind(), error.to_string()).hint(hint));
        }
        Ok(())
    }

    async fn group(
        &mut self,
        plan: &HistoryPlan,
        entries: &[SegmentEntry],
        ledger: &mut Ledger<'_>,
    ) -> Result<()> {
        let mut rest = entries;
        while !rest.is_empty() {
            self.unless_stopped()?;
            let joined = Box::pin(join(self.repository, &self.plan.cluster, rest));
            let Joined { count, seam, large } = self.context.unless_stopped(joined).await?;
            if let Some((object, blake3)) = large {
                self.prove(ledger, &object, &blake3).await?;
            }
            let (joined, left) = rest.split_at_checked(count.max(1)).unwrap_or((rest, &[]));
            if joined.len() > 1 {
                self.written.push(Group::of(&plan.history, joined));
            }
            self.seams.extend(seam);
            rest = left;
        }
        Ok(())
    }

    async fn prove(&self, ledger: &mut Ledger<'_>, object: &StoredObject, blake3: &str) -> Result<()> {
        ledger.prove(object, blake3, Depth::Objects, self.context.clock.now()).await?;
        if ledger.pending() >= PROOFS_PER_FILE { ledger.flush().await } else { Ok(()) }
    }

    fn unless_stopped(&self) -> Result<()> {
        if self.context.stop.is_cancelled() { Err(Error::interrupted()) } else { Ok(()) }
    }
}
