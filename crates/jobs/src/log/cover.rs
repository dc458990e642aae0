//! Which segments are proved to be whole, where another could be done without because of that.
//!
//! A segment *covers* another if it holds all of its bytes. By their names alone that is no proof: it may not have been stored whole, or have been
//! damaged since. It is proved if somebody read it to its end and found it right, a compaction or a verification, and found nothing wrong with it
//! since, and the store shows it as it was then. What says so is not encrypted (and signed, where the repository is): a host that can't read the
//! log knows it too.
//!
//! Invariants: of each segment the newest word counts, damage before proof; what can't be read, or speaks of an older object, says nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use slotkeep_format::Severity;
use slotkeep_repo::{Area, RepoError, Repository, SegmentEntry, StoredObject};

use crate::Result;
use crate::verifications::{Word, record_id, word};

/// How many records are read at a time.
const READS_IN_FLIGHT: usize = 4;

/// A segment: the bytes that it holds, by its name, and its object.
pub(crate) type Named = (Range<u64>, StoredObject);

/// A segment as its name shows it.
pub(crate) fn named(entry: &SegmentEntry) -> Named {
    (entry.start..entry.end, entry.stored())
}

/// Segments that cover others, and those others.
#[derive(Default)]
pub(crate) struct Overlaps {
    /// By path.
    open: BTreeMap<String, Open>,
    /// How many of them cover others.
    covers: usize,
}

struct Open {
    object: StoredObject,
    covers: bool,
}

/// What is known of such segments.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// What is whole, of those that cover others.
    proved: BTreeSet<String>,
    /// What is not right.
    spoiled: BTreeSet<String>,
    /// What covers others and may be whole or not.
    unproved: BTreeSet<String>,
    /// All that cover others.
    covers: BTreeSet<String>,
}

impl Overlaps {
    /// Adds the segments of a history, in the order of their starts, of those that begin at the same offset the longest first.
    pub(crate) fn add(&mut self, segments: &[Named]) {
        for (number, (range, object)) in segments.iter().enumerate() {
            let behind = segments.iter().skip(number.saturating_add(1));
            let mut covers = false;
            for (_, inside) in behind
                .take_while(|(other, _)| other.start < range.end)
                .filter(|(other, _)| other.end <= range.end)
            {
                self.open(inside);
                covers = true;
            }
            if covers && !std::mem::replace(&mut self.open(object).covers, true) {
                self.covers = self.covers.saturating_add(1);
            }
        }
    }

    fn open(&mut self, object: &StoredObject) -> &mut Open {
        let fresh = || Open { object: object.clone(), covers: false };
        self.open.entry(object.path.clone()).or_insert_with(fresh)
    }

    /// Looks for what was proved and what was found, the newest first, until it is known of all that cover others.
    pub(crate) async fn ask(mut self, repository: &Repository, cluster: &str) -> Result<Words> {
        let covers = || self.open.iter().filter(|(_, open)| open.covers);
        let mut words =
            Words { covers: covers().map(|(path, _)| path.clone()).collect(), ..Words::default() };
        let oldest_ms = covers().map(|(_, open)| open.object.modified_ms).min();
        let Some(oldest_ms) = oldest_ms else { return Ok(words) };
        let mut files = repository.stored_objects(cluster, Area::Verifications).await?;
        // What was written before it does not speak of it.
        files.retain(|file| file.modified_ms >= oldest_ms);
        files.sort_by_key(|file| (Reverse(file.modified_ms), record_id(&file.path).is_none()));
        let mut reads = futures::stream::iter(files)
            .map(async |file| match word(repository, cluster, &file).await {
                Err(error) if error.problem.is_unusable() => Ok((file.modified_ms, Word::Nothing)),
                word => Ok::<_, RepoError>((file.modified_ms, word?)),
            })
            .buffered(READS_IN_FLIGHT);
        while self.covers > 0
            && let Some((at_ms, word)) = reads.try_next().await?
        {
            self.hear(at_ms, word, &mut words);
        }
        let left = self.open.into_iter().filter(|(_, open)| open.covers);
        words.unproved = left.map(|(path, _)| path).collect();
        Ok(words)
    }

    /// Leaves out what is known.
    fn close(&mut self, path: &str) {
        if self.open.remove(path).is_some_and(|open| open.covers) {
            self.covers = self.covers.saturating_sub(1);
        }
    }

    fn hear(&mut self, at_ms: i64, word: Word, words: &mut Words) {
        match word {
            Word::Proofs(proofs) => {
                for proof in proofs.proofs {
                    let speaks = |open: &Open| {
                        (open.object.bytes, open.object.modified_ms)
                            == (proof.stored_bytes, proof.modified_ms)
                    };
                    if self.open.get(&proof.object).is_some_and(speaks) {
                        self.close(&proof.object);
                        words.proved.insert(proof.object);
                    }
                }
            }
            Word::Record(record) => {
                for found in record.findings.into_iter().filter(|found| found.severity == Severity::Problem) {
                    if self.open.get(&found.object).is_some_and(|open| open.object.modified_ms <= at_ms) {
                        self.close(&found.object);
                        words.spoiled.insert(found.object);
                    }
                }
            }
            Word::Nothing => {}
        }
    }
}

impl Words {
    /// Whether the segment that covers others is whole.
    pub(crate) fn is_proved(&self, path: &str) -> bool {
        self.proved.contains(path)
    }

    /// Of these segments, given in the order of their starts, those that cover others and are to be read to know whether they are whole. Where one is
    /// covered by another that is whole, nothing depends on it.
    pub(crate) fn to_be_proved(&self, segments: &[SegmentEntry]) -> Vec<SegmentEntry> {
        let mut covered_to = 0;
        let mut open = Vec::new();
        for segment in segments {
            let path = segment.path();
            if self.is_proved(path) {
                covered_to = segment.end.max(covered_to);
            } else if segment.end > covered_to && self.covers.contains(path) {
                open.push(segment.clone());
            }
        }
        open
    }

    /// Leaves out what may be damaged, as long as others hold the same bytes. The segments are given in the order of their starts.
    pub(crate) fn without_doubtful(&self, segments: Vec<SegmentEntry>) -> Vec<SegmentEntry> {
        if self.spoiled.is_empty() && self.unproved.is_empty() {
            return segments;
        }
        let usable = |one: &SegmentEntry| if self.spoiled.contains(one.path()) { 0 } else { one.end };
        let mut reach = Reach::of(segments.iter().map(|one| (one.start, usable(one))));
        let mut left_out = BTreeSet::new();
        // What is known to be damaged first: what is only not proved may be needed in its place.
        for doubtful in [&self.spoiled, &self.unproved] {
            for (number, one) in segments.iter().enumerate().filter(|(_, one)| doubtful.contains(one.path()))
            {
                let own = reach.change(number, 0);
                if reach.holds(one.start..one.end) {
                    left_out.insert(number);
                } else {
                    reach.change(number, own);
                }
            }
        }
        let numbered = segments.into_iter().enumerate();
        numbered.filter(|(number, _)| !left_out.contains(number)).map(|(_, segment)| segment).collect()
    }
}

/// How far the log goes without a gap, where some of its segments may not be used: ends of segments in a tree of maxima, so that to leave one out and
/// to look for those that hold its bytes costs little however many there are.
struct Reach {
    starts: Vec<u64>,
    /// The leaves, of which each is the end of a segment, or 0 if it may not be used, are its second half; what is at `n` is the greater one of what is at
    /// `2n` and `2n + 1`.
    tree: Vec<u64>,
}

impl Reach {
    /// Of starts and ends, in the order of the starts.
    fn of(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        let (starts, ends): (Vec<u64>, Vec<u64>) = ranges.unzip();
        let mut tree = vec![0; starts.len()];
        tree.extend(ends);
        let mut reach = Self { starts, tree };
        for number in (1..reach.starts.len()).rev() {
            reach.renew(number);
        }
        reach
    }

    fn at(&self, number: usize) -> u64 {
        self.tree.get(number).copied().unwrap_or(0)
    }

    fn renew(&mut self, number: usize) {
        let greater = self.at(number * 2).max(self.at(number * 2 + 1));
        if let Some(place) = self.tree.get_mut(number) {
            *place = greater;
        }
    }

    /// Gives a segment another end; returns the one that it had.
    fn change(&mut self, segment: usize, end: u64) -> u64 {
        let mut number = self.starts.len().saturating_add(segment);
        let Some(place) = self.tree.get_mut(number) else { return 0 };
        let before = std::mem::replace(place, end);
        while number > 1 {
            number /= 2;
            self.renew(number);
        }
        before
    }

    /// The farthest end of the first segments.
    fn farthest(&self, first: usize) -> u64 {
        let (mut from, mut to) = (self.starts.len(), self.starts.len().saturating_add(first));
        let mut farthest = 0;
        while from < to {
            if from % 2 == 1 {
                farthest = self.at(from).max(farthest);
                from += 1;
            }
            if to % 2 == 1 {
                to -= 1;
                farthest = self.at(to).max(farthest);
            }
            (from, to) = (from / 2, to / 2);
        }
        farthest
    }

    /// Whether the segments that may be used hold all of these bytes together.
    fn holds(&self, wanted: Range<u64>) -> bool {
        let mut at = wanted.start;
        while at < wanted.end {
            let farthest = self.farthest(self.starts.partition_point(|start| *start <= at));
            if farthest <= at {
                return false;
            }
            at = farthest;
        }
        true
    }
}

#[cfg(test)]
mod tests;
