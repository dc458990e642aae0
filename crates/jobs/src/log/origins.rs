//! Histories of which it can't be read where they come from, and what can't be told because of them.
//!
//! Invariants: a record that can't be read is never taken for one that says nothing. What lies behind a base of such a history needs no record;
//! what leads into it, and where the line that it may come from goes on, can't be told, and whoever asks for that is told which record it is.

use slotkeep_model::{ReplId, SlotSet};
use slotkeep_repo::{Problem, RepoError, layout};

use super::chain::Path;
use super::past::Past;
use crate::{Error, ErrorKind, Result};

/// What to do about the record of a history that is damaged.
const IF_DAMAGED: &str = "`slotkeep repair` makes it again from the log; backups and moments that do not need it can be restored before (`slotkeep list`)";

/// The record of a history that can't be read.
pub struct UnreadOrigin {
    /// The history.
    pub history: ReplId,
    /// The slots of its shard when they were seen last, as far as something else tells.
    pub slots: Option<SlotSet>,
    /// The record.
    pub object: String,
    /// Why it can't be read.
    pub reason: String,
    /// The failure, with what to do next.
    pub error: Error,
}

impl UnreadOrigin {
    /// What is wrong, and what it costs, in words.
    pub fn words(&self) -> String {
        let slots = self
            .slots
            .as_ref()
            .map_or_else(|| "slots that are not known".to_owned(), |slots| format!("slots {slots}"));
        format!("{}: where history {} ({slots}) comes from can't be told", self.error, self.history)
    }
}

impl Past {
    /// The histories of which it can't be read where they come from.
    pub fn unread_origins(&self) -> impl Iterator<Item = UnreadOrigin> {
        self.unread.iter().map(|(history, error)| UnreadOrigin {
            history: history.clone(),
            slots: self.slots_of(history).cloned(),
            object: layout::history_file(&self.cluster, history),
            reason: error.problem.to_string(),
            error: unread(error, IF_DAMAGED),
        })
    }

    /// Fails if it can't be read of any history where it comes from.
    pub fn expect_origins(&self) -> Result<()> {
        self.unread.values().next().map_or(Ok(()), |error| Err(unread(error, IF_DAMAGED)))
    }

    /// Fails if what leads to the beginning of that path can't be told.
    pub(crate) fn expect_way_to(&self, path: &Path) -> Result<()> {
        self.unread_before(path).map_or(Ok(()), |error| Err(unread(error, IF_DAMAGED)))
    }

    /// Fails if it can't be told where the main line through that history goes on.
    pub(super) fn expect_main_line(&self, history: &ReplId, slots: &SlotSet) -> Result<()> {
        let Some(error) = self.unread_behind(history) else { return Ok(()) };
        let what = format!("where the log of slots {slots} went on behind history {history} can't be told");
        Err(unread(error, IF_DAMAGED).context(what))
    }

    /// Why it can't be told what leads to the beginning of that path, if it can't.
    pub(super) fn unread_before(&self, path: &Path) -> Option<&RepoError> {
        let first = path.stretches().first()?;
        self.unread.get(&first.history).filter(|_| !self.is_of_file(&first.history))
    }

    /// Why it can't be told where the main line through that history goes on, if it can't: another one may descend from it.
    pub(super) fn unread_behind(&self, history: &ReplId) -> Option<&RepoError> {
        if self.unread.is_empty() || self.is_of_file(history) {
            return None;
        }
        let line = self.chain.path(&self.chain.main_tip(history));
        let own: Vec<&ReplId> = line.stretches().iter().map(|stretch| &stretch.history).collect();
        let slots = self.slots_ever(&own);
        let is_apart = |other: &ReplId| {
            let others = self.slots_ever(&[other]);
            // With which slots either was seen may stand in a record that can't be read, too.
            let all_seen = self.unread_looks.is_empty() && !slots.is_empty() && !others.is_empty();
            let elsewhere = all_seen && slots.intersection(&others).is_empty();
            elsewhere
                || own.contains(&other)
                || self.is_of_file(other)
                || self.chain.leaves_out(history, other)
        };
        self.unread.iter().find(|(other, _)| !is_apart(other)).map(|(_, error)| error)
    }

    /// Whether the history is that of an append-only file alone: such come from no other.
    fn is_of_file(&self, history: &ReplId) -> bool {
        !self.files.like(history).is_empty()
    }

    /// All slots that the shards of those histories were seen with.
    fn slots_ever(&self, histories: &[&ReplId]) -> SlotSet {
        let seen = self.topologies.iter().flat_map(|topology| &topology.shards);
        let seen = seen.filter(|shard| shard.history.as_ref().is_some_and(|own| histories.contains(&own)));
        let shards = self.backups.iter().flat_map(|backup| &backup.shards);
        let shards = shards
            .filter(|shard| histories.contains(&&shard.history) || histories.contains(&&shard.cut().history));
        let records = histories.iter().filter_map(|history| self.histories.get(*history));
        let all = seen.map(|shard| &shard.slots).chain(shards.map(|shard| &shard.slots));
        all.chain(records.map(|record| &record.slots)).flat_map(SlotSet::ranges).copied().collect()
    }
}

/// The failure of whoever needs a record that is there and tells nothing, with what to do next.
pub(super) fn unread(error: &RepoError, if_damaged: &str) -> Error {
    let (kind, hint) = match error.problem {
        Problem::Untrusted(_) => (
            ErrorKind::Untrusted,
            "find out who can write to the repository before you use it; docs/security.md says what is checked",
        ),
        Problem::Newer(_) => (ErrorKind::Unsupported, "install a newer Slotkeep"),
        _ => (ErrorKind::Corrupt, if_damaged),
    };
    Error::new(kind, error.to_string()).hint(hint)
}
