//! Leases: who may write to one line of the log, as records in the store and as decisions, without I/O or a clock.
//!
//! A lease is a run of records, each a file with the next number, made by a create that fails if the file exists: so of two that want the
//! next word, one gets it. That needs no conditional update, which local folders don't have. A renewal has the same epoch, a take-over the next one.
//!
//! Time is judged by each side's own clock alone, which need only run at about the right speed. A holder counts from before it asked for
//! its record, and stops after seven eighths of the duration; another takes over after it has seen the same record for nine eighths. Whatever
//! the clocks show, a record was made between the two beginnings.
//!
//! Invariants: what is *confirmed* under one epoch is never contested by another. A holder writes, then confirms that its record is still the
//! newest, and only then counts what it wrote as written. Who takes over looks at what is written after its record is there, so it
//! sees everything that was ever confirmed. This holds whatever clocks, pauses and lost answers do; time only decides when to try.

use serde::{Deserialize, Serialize};

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
    /// How long it holds without another word, in ms.
    pub duration_ms: u64,
    /// Whether the holder has given it up.
    #[serde(default)]
    pub released: bool,
}

impl LeaseRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, LEASE_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
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
    Create(LeaseRecord),
}

/// One process's view of a lease. All times are of its own clock, in ms, which never runs backwards.
#[derive(Clone, Debug)]
pub struct LeaseClaim {
    holder: String,
    duration_ms: u64,
    seen: Option<Seen>,
    held: Option<Held>,
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
    /// A process that wants a lease; `holder` must be its alone.
    pub const fn new(holder: String, duration_ms: u64) -> Self {
        Self { holder, duration_ms, seen: None, held: None }
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
            let renew_ms = held.until_ms.saturating_sub(self.duration_ms / 2);
            return if now_ms < renew_ms {
                LeaseStep::Wait { until_ms: renew_ms }
            } else {
                LeaseStep::Create(self.record_after(&held.record, held.record.epoch))
            };
        }
        let Some(seen) = &self.seen else { return LeaseStep::Wait { until_ms: now_ms } };
        let Some(newest) = &seen.newest else {
            return LeaseStep::Create(LeaseRecord {
                format_version: LEASE_VERSION,
                number: 1,
                epoch: 1,
                holder: self.holder.clone(),
                duration_ms: self.duration_ms,
                released: false,
            });
        };
        let expires_ms =
            seen.since_ms.saturating_add(newest.duration_ms).saturating_add(newest.duration_ms / 8);
        // A record of our own that we don't hold by: its answer came too late or not at all. Nobody else holds it.
        let free = newest.released || newest.holder == self.holder || now_ms >= expires_ms;
        if free {
            LeaseStep::Create(self.record_after(newest, newest.epoch.saturating_add(1)))
        } else {
            LeaseStep::Wait { until_ms: expires_ms }
        }
    }

    fn record_after(&self, before: &LeaseRecord, epoch: u64) -> LeaseRecord {
        LeaseRecord {
            format_version: LEASE_VERSION,
            number: before.number.saturating_add(1),
            epoch,
            holder: self.holder.clone(),
            duration_ms: self.duration_ms,
            released: false,
        }
    }

    /// The record was created, asked for at `sent_ms`, and confirmed to be the newest.
    pub fn created(&mut self, record: LeaseRecord, sent_ms: u64) {
        let until_ms = sent_ms.saturating_add(self.duration_ms).saturating_sub(self.duration_ms / 8);
        self.seen = Some(Seen { newest: Some(record.clone()), since_ms: sent_ms });
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

    /// Whether that is the record by which the lease is held, if it is, whatever the clock says.
    pub fn is_ours(&self, record: &LeaseRecord) -> bool {
        self.held.as_ref().is_some_and(|held| held.record == *record)
    }

    /// The last word of a holder that gives the lease up.
    pub fn release(&mut self) -> Option<LeaseRecord> {
        let held = self.held.take()?;
        let record = self.record_after(&held.record, held.record.epoch);
        Some(LeaseRecord { released: true, ..record })
    }
}

#[cfg(test)]
mod simulation;
