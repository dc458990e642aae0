//! What pruning writes down: what is to go, what went, and which backups are pinned.
//!
//! Invariants: a mark speaks of one object as it was, with its length and time of writing, and of the newest record of marks only; what went is
//! written down before it is deleted, so that whoever finds it missing knows why.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use slotkeep_model::ReplId;

use crate::json::{parse_versioned, render, text};
use crate::manifest::ManifestError;

/// The newest format of these records that this code writes and reads.
pub const PRUNE_VERSION: u32 = 1;

/// Why an object is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unneeded {
    /// A backup that no rule keeps.
    NotKept,
    /// An object that only backups that go name.
    OfRemoved,
    /// An object of a base that no backup names.
    Unlisted,
    /// Log that nothing kept leads over.
    Outside,
    /// Log whose bytes a larger segment holds too.
    Covered,
    /// The file of a history of which nothing is left.
    Empty,
    /// How the cluster looked before the oldest base.
    Old,
}

/// An object that is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedObject {
    /// Its path.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When the store says that it was written, in ms since 1970.
    pub modified_ms: i64,
    /// Why it goes.
    pub why: Unneeded,
    /// Since when it is marked, by the clock of the machine that marked it.
    pub marked_at: Timestamp,
}

/// Everything that is to go. The newest record alone counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRecord {
    /// [`PRUNE_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Its id; ids sort by time.
    pub id: String,
    /// The cluster.
    pub cluster: String,
    /// The objects.
    pub objects: Vec<MarkedObject>,
}

/// Bytes of a history that were given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedLog {
    /// The history.
    #[serde(with = "text")]
    pub history: ReplId,
    /// The bytes, without touching, in order: the first, and the one behind the last.
    pub ranges: Vec<Range<u64>>,
}

/// What was given up, and what a run is about to delete. Every record counts; a later one repeats what earlier ones say and takes the place of
/// those whose runs are over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedRecord {
    /// [`PRUNE_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Its id; ids sort by time.
    pub id: String,
    /// The cluster.
    pub cluster: String,
    /// When, by the clock of the machine that wrote it.
    pub at: Timestamp,
    /// The ids of the backups.
    pub backups: BTreeSet<String>,
    /// The log.
    pub log: Vec<PrunedLog>,
    /// The ids of topologies.
    pub topologies: BTreeSet<String>,
    /// What the run that wrote this is about to delete, by path: a backup that is committed now and needs any of it comes too late.
    pub going: BTreeMap<String, Unneeded>,
}

/// A backup that stays until its pins are taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// [`PRUNE_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Its id.
    pub id: String,
    /// The cluster.
    pub cluster: String,
    /// The backup.
    pub backup: String,
    /// When it was pinned, by the clock of the machine that pinned it.
    pub at: Timestamp,
}

impl MarkRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, PRUNE_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
}

impl PinRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, PRUNE_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
}

impl PrunedRecord {
    /// Nothing.
    pub const fn new(id: String, cluster: String, at: Timestamp) -> Self {
        Self {
            format_version: PRUNE_VERSION,
            id,
            cluster,
            at,
            backups: BTreeSet::new(),
            log: Vec::new(),
            topologies: BTreeSet::new(),
            going: BTreeMap::new(),
        }
    }

    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, PRUNE_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }

    /// Adds bytes of a history.
    pub fn add_log(&mut self, history: &ReplId, more: &[Range<u64>]) {
        let mut all: BTreeMap<ReplId, Vec<Range<u64>>> =
            std::mem::take(&mut self.log).into_iter().map(|log| (log.history, log.ranges)).collect();
        let ranges = all.entry(history.clone()).or_default();
        ranges.extend(more.iter().filter(|range| range.start < range.end).cloned());
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges.drain(..) {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        *ranges = joined;
        self.log = all.into_iter().map(|(history, ranges)| PrunedLog { history, ranges }).collect();
    }

    /// Adds what another record says was given up.
    pub fn merge(&mut self, other: &Self) {
        self.backups.extend(other.backups.iter().cloned());
        self.topologies.extend(other.topologies.iter().cloned());
        for log in &other.log {
            self.add_log(&log.history, &log.ranges);
        }
    }

    /// Whether all of these bytes were given up.
    pub fn gave_up(&self, history: &ReplId, bytes: &Range<u64>) -> bool {
        let mut ranges = self.log.iter().filter(|log| log.history == *history).flat_map(|log| &log.ranges);
        ranges.any(|range| range.start <= bytes.start && bytes.end <= range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(letter: &str) -> ReplId {
        letter.repeat(40).parse().unwrap()
    }

    #[test]
    fn records_read_as_they_were_written() {
        let mut pruned = PrunedRecord::new("x".to_owned(), "main".to_owned(), Timestamp::UNIX_EPOCH);
        pruned.backups.insert("b".to_owned());
        pruned.add_log(&history("a"), &[1..10, 20..u64::MAX]);
        assert_eq!(PrunedRecord::parse(&pruned.render().unwrap()).unwrap(), pruned);
        let object = MarkedObject {
            path: "main/backups/b.json".to_owned(),
            bytes: 7,
            modified_ms: -1,
            why: Unneeded::NotKept,
            marked_at: Timestamp::UNIX_EPOCH,
        };
        let mark = MarkRecord {
            format_version: PRUNE_VERSION,
            id: "x".to_owned(),
            cluster: "main".to_owned(),
            objects: vec![object],
        };
        assert_eq!(MarkRecord::parse(&mark.render().unwrap()).unwrap(), mark);
    }

    #[test]
    fn what_was_given_up_adds_up() {
        let mut one = PrunedRecord::new("x".to_owned(), "main".to_owned(), Timestamp::UNIX_EPOCH);
        one.add_log(&history("a"), &[10..20, 5..10, 30..30]);
        let mut other = one.clone();
        other.log.clear();
        other.add_log(&history("a"), std::slice::from_ref(&(25..40)));
        other.add_log(&history("b"), std::slice::from_ref(&(1..2)));
        one.merge(&other);
        assert_eq!(one.log[0].ranges, [5..20, 25..40]);
        assert!(one.gave_up(&history("a"), &(6..20)) && one.gave_up(&history("b"), &(1..2)));
        assert!(!one.gave_up(&history("a"), &(19..26)) && !one.gave_up(&history("c"), &(1..2)));
    }
}
