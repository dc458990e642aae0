//! All leases of a cluster, as one process sees them over time: who lives, and who holds what.
//!
//! Invariants: an agent is taken for dead only when its presence was seen unchanged for nine eighths of the time that it gave itself, by a process
//! that looked all the while: who slept, or could not look, gives everybody that time anew. A record that was seen is never replaced by an older one,
//! but that of a dead agent by any of its next process, which begins at 1 where the records of the agent were removed.

use std::collections::BTreeMap;

use super::LeaseRecord;

/// What the names of agents' presences begin with.
pub const PRESENCE_PREFIX: &str = "agent-";

/// The name of an agent's presence.
pub fn presence_name(agent: &str) -> String {
    format!("{PRESENCE_PREFIX}{agent}")
}

/// The newest record of each lease, and since when it has been that as far as this process knows. Times are of its own clock, in ms.
#[derive(Clone, Debug, Default)]
pub struct LeaseTable {
    leases: BTreeMap<String, Observed>,
    /// When was looked last; everything is judged by that moment.
    looked_ms: u64,
}

#[derive(Clone, Debug)]
struct Observed {
    record: LeaseRecord,
    since_ms: u64,
}

/// How a lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenure<'a> {
    /// A living process holds it.
    Held(&'a LeaseRecord),
    /// Nobody holds it.
    Free {
        /// Since when that is known.
        since_ms: u64,
        /// The agent whose process held it and did not give it up.
        left_by: Option<&'a str>,
    },
    /// There never was a record.
    New,
}

impl LeaseTable {
    /// Begins a look at all leases. If more than `longest_gap_ms` passed since the last one, nobody who lived then is taken for dead.
    pub fn look(&mut self, now_ms: u64, longest_gap_ms: u64) {
        let before_ms = std::mem::replace(&mut self.looked_ms, now_ms);
        if now_ms.saturating_sub(before_ms) <= longest_gap_ms {
            return;
        }
        for (name, observed) in &mut self.leases {
            if name.starts_with(PRESENCE_PREFIX) && !observed.record.is_over(observed.since_ms, before_ms) {
                observed.since_ms = now_ms;
            }
        }
    }

    /// The moment by which everything is judged.
    pub const fn looked_ms(&self) -> u64 {
        self.looked_ms
    }

    /// Takes note of a record that is, or was a moment ago, the newest of its lease.
    pub fn observe(&mut self, name: &str, record: LeaseRecord, now_ms: u64) {
        let is_new =
            |known: &Observed| known.record.number < record.number || self.is_back(name, known, &record);
        if self.leases.get(name).is_none_or(is_new) {
            self.leases.insert(name.to_owned(), Observed { record, since_ms: now_ms });
        }
    }

    /// Whether a record is of an agent that is back, while the one that is known is of a process of it that has ended.
    fn is_back(&self, name: &str, known: &Observed, record: &LeaseRecord) -> bool {
        let is_another = known.record.holder != record.holder;
        name.starts_with(PRESENCE_PREFIX)
            && is_another
            && known.record.is_over(known.since_ms, self.looked_ms)
    }

    /// The newest record of a lease.
    pub fn newest(&self, name: &str) -> Option<&LeaseRecord> {
        self.leases.get(name).map(|observed| &observed.record)
    }

    /// All leases that are no agent's presence, with their newest records, in the order of their names.
    pub fn leases(&self) -> impl Iterator<Item = (&str, &LeaseRecord)> {
        let all = self.leases.iter().map(|(name, observed)| (name.as_str(), &observed.record));
        all.filter(|(name, _)| !name.starts_with(PRESENCE_PREFIX))
    }

    /// The agents that live, with their presences, in the order of their names.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &LeaseRecord)> {
        self.leases.iter().filter_map(move |(name, observed)| {
            let agent = name.strip_prefix(PRESENCE_PREFIX)?;
            let lives = !observed.record.is_over(observed.since_ms, self.looked_ms);
            lives.then_some((agent, &observed.record))
        })
    }

    /// The presences of agents that have been dead for so long, or left so long ago.
    pub fn long_gone(&self, for_ms: u64) -> impl Iterator<Item = &str> {
        self.leases.iter().filter_map(move |(name, observed)| {
            let gone_ms = if observed.record.released {
                observed.since_ms
            } else {
                observed.record.expires_ms(observed.since_ms)
            };
            let gone = name.starts_with(PRESENCE_PREFIX) && self.looked_ms.saturating_sub(gone_ms) >= for_ms;
            gone.then_some(name.as_str())
        })
    }

    /// Forgets a lease whose records were removed.
    pub fn forget(&mut self, name: &str) {
        self.leases.remove(name);
    }

    /// How a lease stands that is not renewed.
    pub fn tenure(&self, name: &str) -> Tenure<'_> {
        let now_ms = self.looked_ms;
        let Some(Observed { record, since_ms }) = self.leases.get(name) else { return Tenure::New };
        if record.released {
            return Tenure::Free { since_ms: *since_ms, left_by: None };
        }
        let left_by = record.agent.as_deref();
        let presence = left_by.and_then(|agent| self.leases.get(&presence_name(agent)));
        let Some(presence) = presence else {
            // Its holder's presence is not seen, or was removed: as long as that of a dead one is waited for.
            let expires_ms = record.expires_ms(*since_ms);
            return if now_ms < expires_ms {
                Tenure::Held(record)
            } else {
                Tenure::Free { since_ms: expires_ms, left_by }
            };
        };
        let later = |moment_ms: u64| moment_ms.max(*since_ms);
        if presence.record.holder != record.holder {
            // The agent was started again.
            return Tenure::Free { since_ms: later(presence.since_ms), left_by };
        }
        if presence.record.released {
            return Tenure::Free { since_ms: later(presence.since_ms), left_by: None };
        }
        let expires_ms = presence.record.expires_ms(presence.since_ms);
        if now_ms < expires_ms {
            Tenure::Held(record)
        } else {
            Tenure::Free { since_ms: later(expires_ms), left_by }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Holder, LeaseNote};

    const DURATION_MS: u64 = 10_000;

    /// The first record of a lease that a process of agent `x` takes.
    fn taken_by(process: &str) -> LeaseRecord {
        let holder =
            Holder { process: process.to_owned(), agent: Some("x".to_owned()), duration_ms: DURATION_MS };
        LeaseRecord::taking(None, &holder, LeaseNote::default())
    }

    /// A table of a process that has seen word 50 of a process of `x` at 0 and has looked since; and when that was last.
    fn of_a_dead_agent() -> (LeaseTable, u64) {
        let mut table = LeaseTable::default();
        table.observe(&presence_name("x"), LeaseRecord { number: 50, ..taken_by("first") }, 0);
        for now_ms in (0..=DURATION_MS * 2).step_by(2000) {
            table.look(now_ms, DURATION_MS / 2);
        }
        assert_eq!(table.agents().count(), 0);
        (table, DURATION_MS * 2)
    }

    #[test]
    fn an_agent_of_which_nothing_was_left_lives_when_it_comes_back() {
        let (mut table, now_ms) = of_a_dead_agent();
        table.observe(&presence_name("x"), taken_by("second"), now_ms);
        table.observe("line-a", taken_by("second"), now_ms);
        assert_eq!(table.agents().map(|(agent, _)| agent).collect::<Vec<_>>(), ["x"]);
        assert_eq!(table.tenure("line-a"), Tenure::Held(&taken_by("second")));
        assert_eq!(table.long_gone(1000).count(), 0);
    }

    #[test]
    fn an_older_word_changes_nothing() {
        let (mut table, now_ms) = of_a_dead_agent();
        table.observe(&presence_name("x"), LeaseRecord { number: 49, ..taken_by("first") }, now_ms);
        assert_eq!(table.agents().count(), 0);
        // Nor that of another process, as long as the one that was seen may live.
        let mut table = LeaseTable::default();
        let newest = LeaseRecord { number: 50, ..taken_by("second") };
        table.observe(&presence_name("x"), newest.clone(), 0);
        table.observe(&presence_name("x"), LeaseRecord { number: 49, ..taken_by("first") }, 0);
        assert_eq!(table.newest(&presence_name("x")), Some(&newest));
    }
}
