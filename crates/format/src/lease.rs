//! Leases: who may write to one line of the log, as records in the store and as decisions, without I/O or a clock.
//!
//! A lease is a run of records, each a file with the next number, made by a create that fails if the file exists: so of two that want the
//! next word, one gets it. That needs no conditional update, which local folders don't have. A renewal has the same epoch, a take-over the next one.
//!
//! Time is judged by each side's own clock alone, which need only run at about the right speed. A holder counts from before it asked for
//! its record, and stops after seven eighths of the duration; another takes over after it has seen the same record for nine eighths. Whatever
//! the clocks show, a record was made between the two beginnings.
//!
//! Two sorts of leases. An agent's *presence* is a lease of its own, renewed as long as it lives ([`LeaseClaim`]). All others, of a line or of the
//! cluster, are not renewed: they are their holder's until another takes them, which it does when the holder's presence has ended
//! ([`LeaseTable`]). So what many lines cost does not grow with time.
//!
//! Invariants: what is *confirmed* under one epoch is never contested by another. A holder writes, then confirms that its record is still the
//! newest, and only then counts what it wrote as written. Who takes over looks at what is written after its record is there, so it
//! sees everything that was ever confirmed. This holds whatever clocks, pauses and lost answers do; time only decides when to try.

use serde::{Deserialize, Serialize};

mod note;
mod table;

pub use note::{ClusterMark, LeaseNote, LineBase, LineCut, LineShard};
pub use table::{LeaseTable, PRESENCE_PREFIX, Tenure, presence_name};

use crate::json::{parse_versioned, render};
use crate::manifest::ManifestError;

/// The newest format of lease records that this code writes and reads.
pub const LEASE_VERSION: u32 = 1;

/// One word about a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// [`LEASE_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Which record of its lease it is, counted from 1.
    pub number: u64,
    /// Grows with every change of the holder.
    pub epoch: u64,
    /// Who holds it: chosen at random by each process.
    pub holder: String,
    /// The agent that the process is: the same after a restart on the same machine. Absent where a lease is no agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// How long it holds without another word, in ms.
    pub duration_ms: u64,
    /// Whether the holder has given it up.
    #[serde(default)]
    pub released: bool,
    /// What the holder says with it.
    #[serde(default, skip_serializing_if = "LeaseNote::is_empty")]
    pub note: LeaseNote,
}

impl LeaseRecord {
    /// Takes a lease over, `before` being its newest record.
    pub fn taking(before: Option<&Self>, holder: &Holder, note: LeaseNote) -> Self {
        Self {
            format_version: LEASE_VERSION,
            number: before.map_or(0, |before| before.number).saturating_add(1),
            epoch: before.map_or(0, |before| before.epoch).saturating_add(1),
            holder: holder.process.clone(),
            agent: holder.agent.clone(),
            duration_ms: holder.duration_ms,
            released: false,
            note,
        }
    }

    /// The same holder's next word.
    #[must_use]
    pub fn going_on(&self, note: LeaseNote) -> Self {
        Self { number: self.number.saturating_add(1), note, ..self.clone() }
    }

    /// The holder's last word.
    #[must_use]
    pub fn releasing(&self, note: LeaseNote) -> Self {
        Self { released: true, ..self.going_on(note) }
    }

    /// Whether another process may take what was last written by this record's holder, having seen the record as the newest since `since_ms`.
    fn is_over(&self, since_ms: u64, now_ms: u64) -> bool {
        self.released || now_ms >= self.expires_ms(since_ms)
    }

    const fn expires_ms(&self, since_ms: u64) -> u64 {
        since_ms.saturating_add(self.duration_ms).saturating_add(self.duration_ms / 8)
    }

    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, LEASE_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
}

/// Who takes leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Chosen at random by each process.
    pub process: String,
    /// The agent that the process is, if it is one.
    pub agent: Option<String>,
    /// How long its presence holds without another word, in ms.
    pub duration_ms: u64,
}

/// What to do next about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseStep {
    /// Nothing before that moment of one's own clock; then look again.
    Wait {
        /// The moment, in ms.
        until_ms: u64,
    },
    /// Try to create this record.
    Create(Box<LeaseRecord>),
}

/// One process's view of a lease. All times are of its own clock, in ms, which never runs backwards.
#[derive(Clone, Debug)]
pub struct LeaseClaim {
    holder: Holder,
    /// What is said with the next record.
    note: LeaseNote,
    seen: Option<Seen>,
    held: Option<Held>,
    /// Whether it was ever held.
    was_held: bool,
}

/// The newest record, and since when it has been that as far as we know.
#[derive(Clone, Debug)]
struct Seen {
    newest: Option<LeaseRecord>,
    since_ms: u64,
}

#[derive(Clone, Debug)]
struct Held {
    record: LeaseRecord,
    until_ms: u64,
}

impl LeaseClaim {
    /// A process that wants a lease. If `holder` is an agent, what an earlier process of the same agent held is free to it.
    pub fn new(holder: Holder) -> Self {
        Self { holder, note: LeaseNote::default(), seen: None, held: None, was_held: false }
    }

    /// What to say with the next record.
    pub fn say(&mut self, note: LeaseNote) {
        self.note = note;
    }

    /// The process that has taken an agent's lease from this one, which is the same agent: two of them run.
    pub fn double(&self) -> Option<&LeaseRecord> {
        let newest = self.seen.as_ref()?.newest.as_ref()?;
        let of_another = newest.holder != self.holder.process;
        (self.was_held && of_another && self.holder.agent.is_some()).then_some(newest)
    }

    /// Takes note of the newest record, as it was read from the store just now.
    pub fn observe(&mut self, newest: Option<LeaseRecord>, now_ms: u64) {
        if self.held.as_ref().is_some_and(|held| newest.as_ref() != Some(&held.record)) {
            self.held = None;
        }
        if self.seen.as_ref().is_none_or(|seen| seen.newest != newest) {
            self.seen = Some(Seen { newest, since_ms: now_ms });
        }
    }

    /// What to do now.
    pub fn next(&self, now_ms: u64) -> LeaseStep {
        if let Some(held) = &self.held {
            let renew_ms = held.until_ms.saturating_sub(self.holder.duration_ms / 2);
            return if now_ms < renew_ms {
                LeaseStep::Wait { until_ms: renew_ms }
            } else {
                LeaseStep::Create(Box::new(held.record.going_on(self.note.clone())))
            };
        }
        let Some(seen) = &self.seen else { return LeaseStep::Wait { until_ms: now_ms } };
        let take = |before| {
            LeaseStep::Create(Box::new(LeaseRecord::taking(before, &self.holder, self.note.clone())))
        };
        let Some(newest) = &seen.newest else { return take(None) };
        // A record of our own that we don't hold by: its answer came too late or not at all. Nobody else holds it.
        let ours = newest.holder == self.holder.process
            || (newest.agent.is_some() && newest.agent == self.holder.agent);
        if ours || newest.is_over(seen.since_ms, now_ms) {
            take(Some(newest))
        } else {
            LeaseStep::Wait { until_ms: newest.expires_ms(seen.since_ms) }
        }
    }

    /// The record was created, asked for at `sent_ms`, and confirmed to be the newest.
    pub fn created(&mut self, record: LeaseRecord, sent_ms: u64) {
        let duration_ms = self.holder.duration_ms;
        let until_ms = sent_ms.saturating_add(duration_ms).saturating_sub(duration_ms / 8);
        self.seen = Some(Seen { newest: Some(record.clone()), since_ms: sent_ms });
        self.was_held = true;
        self.held = Some(Held { record, until_ms });
    }

    /// Whether a record came of what was tried is not known, or it was not ours: look before anything else.
    pub fn lost(&mut self) {
        self.held = None;
    }

    /// The record by which the lease is held now.
    pub fn held(&self, now_ms: u64) -> Option<&LeaseRecord> {
        self.held.as_ref().filter(|held| now_ms < held.until_ms).map(|held| &held.record)
    }

    /// Until when it is held by one's own clock, if it is.
    pub fn held_until_ms(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.until_ms)
    }

    /// Whether that is the record by which the lease is held, if it is, whatever the clock says.
    pub fn is_ours(&self, record: &LeaseRecord) -> bool {
        self.held.as_ref().is_some_and(|held| held.record == *record)
    }

    /// The last word of a holder that gives the lease up.
    pub fn release(&mut self) -> Option<LeaseRecord> {
        let held = self.held.take()?;
        Some(held.record.releasing(LeaseNote::default()))
    }
}

#[cfg(test)]
mod simulation;
