//! Which bytes of the log are needed.
//!
//! Invariants: what is needed is never less than what a restore reads; where it is not known how histories belong together, all of the
//! log behind a base is needed.

use std::collections::BTreeMap;
use std::ops::Range;

use slotkeep_model::ReplId;

use crate::lineage::Parent;
use crate::manifest::ShardCut;

/// Bytes of histories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogNeed {
    ranges: BTreeMap<ReplId, Vec<Range<u64>>>,
    parents: BTreeMap<ReplId, Parent>,
}

impl LogNeed {
    /// Nothing yet; `parents`: which history each history descends from.
    pub fn new(parents: &BTreeMap<ReplId, Parent>) -> Self {
        Self { ranges: BTreeMap::new(), parents: parents.clone() }
    }

    /// Whether any of these bytes is needed.
    pub fn needs(&self, history: &ReplId, range: &Range<u64>) -> bool {
        self.of(history).iter().any(|needed| needed.start < range.end && range.start < needed.end)
    }

    /// What is needed of a history, in order.
    pub fn of(&self, history: &ReplId) -> &[Range<u64>] {
        self.ranges.get(history).map(Vec::as_slice).unwrap_or_default()
    }

    fn add(&mut self, history: &ReplId, range: Range<u64>) {
        if range.start < range.end {
            self.ranges.entry(history.clone()).or_default().push(range);
        }
    }

    /// Adds everything behind a base: in its history, and in all that descend from it and forked off behind the base.
    pub(super) fn everything_behind(&mut self, history: &ReplId, offset: u64) {
        self.add(history, offset.saturating_add(1)..u64::MAX);
        let descendants: Vec<ReplId> =
            self.parents.keys().filter(|child| self.descends(child, history, offset)).cloned().collect();
        for child in descendants {
            self.add(&child, 0..u64::MAX);
        }
    }

    fn descends(&self, child: &ReplId, history: &ReplId, offset: u64) -> bool {
        let mut at = child;
        // Files that name each other as parents lead nowhere.
        for _ in 0..=self.parents.len() {
            let Some(parent) = self.parents.get(at) else { return false };
            if parent.history == *history {
                return parent.fork >= offset;
            }
            at = &parent.history;
        }
        false
    }

    /// Adds what leads from a base to a cut.
    pub(super) fn up_to_cut(&mut self, history: &ReplId, offset: u64, cut: &ShardCut) {
        let mut way = Vec::new();
        let (mut at, mut end) = (cut.history.clone(), cut.offset.saturating_add(1));
        // The last byte that the line has of the history.
        let mut left_at = u64::MAX;
        for _ in 0..=self.parents.len() {
            // A base behind where the line left its history leads nowhere.
            if at == *history && offset <= left_at {
                way.push((at, offset.saturating_add(1)..end));
                for (history, range) in way {
                    self.add(&history, range);
                }
                return;
            }
            let Some(parent) = self.parents.get(&at) else { break };
            way.push((at, parent.fork.saturating_add(1)..end));
            end = end.min(parent.fork.saturating_add(1));
            left_at = left_at.min(parent.fork);
            at = parent.history.clone();
        }
        // The way is not known.
        self.everything_behind(history, offset);
        self.add(&cut.history, 0..u64::MAX);
    }

    /// The same with ranges that touch joined.
    pub(super) fn joined(mut self) -> Self {
        for ranges in self.ranges.values_mut() {
            ranges.sort_by_key(|range| range.start);
            let mut joined: Vec<Range<u64>> = Vec::new();
            for range in ranges.drain(..) {
                match joined.last_mut() {
                    Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                    _ => joined.push(range),
                }
            }
            *ranges = joined;
        }
        self
    }
}
