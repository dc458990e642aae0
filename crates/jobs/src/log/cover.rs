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
use slotkeep_format::{Proofs, Severity, VerifyRecord};
use slotkeep_repo::{Area, Problem, RepoError, Repository, SegmentEntry, StoredObject};

use crate::Result;

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
            if covers {
                self.open(object).covers = true;
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
            .map(async |file| Ok::<_, RepoError>((file.modified_ms, word(repository, cluster, &file).await?)))
            .buffered(READS_IN_FLIGHT);
        while self.open.values().any(|open| open.covers)
            && let Some((at_ms, word)) = reads.try_next().await?
        {
            self.hear(at_ms, word, &mut words);
        }
        let left = self.open.into_iter().filter(|(_, open)| open.covers);
        words.unproved = left.map(|(path, _)| path).collect();
        Ok(words)
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
                        self.open.remove(&proof.object);
                        words.proved.insert(proof.object);
                    }
                }
            }
            Word::Record(record) => {
                for found in record.findings.into_iter().filter(|found| found.severity == Severity::Problem) {
                    if self.open.get(&found.object).is_some_and(|open| open.object.modified_ms <= at_ms) {
                        self.open.remove(&found.object);
                        words.spoiled.insert(found.object);
                    }
                }
            }
            Word::Nothing => {}
        }
    }
}

/// What a file in the folder of verifications says.
enum Word {
    Proofs(Proofs),
    Record(Box<VerifyRecord>),
    Nothing,
}

/// The id of a verification, if the path is that of its record.
pub(crate) fn record_id(path: &str) -> Option<&str> {
    let mut parts = path.rsplit('/');
    let id = parts.next()?.strip_suffix(".json")?;
    (parts.next() == Some("verify") && parts.count() == 1).then_some(id)
}

async fn word(repository: &Repository, cluster: &str, file: &StoredObject) -> Result<Word, RepoError> {
    let read = match record_id(&file.path) {
        Some(id) => repository.verification(cluster, id).await.map(|record| Word::Record(Box::new(record))),
        None => repository.proofs(file).await.map(|proofs| proofs.map_or(Word::Nothing, Word::Proofs)),
    };
    match read {
        Err(RepoError {
            problem: Problem::Damaged(_) | Problem::Untrusted(_) | Problem::Newer(_) | Problem::Missing,
            ..
        }) => Ok(Word::Nothing),
        read => read,
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

    /// Leaves out what may be damaged, as long as others hold the same bytes.
    pub(crate) fn without_doubtful(&self, mut segments: Vec<SegmentEntry>) -> Vec<SegmentEntry> {
        // What is known to be damaged first: what is only not proved may be needed in its place.
        for doubtful in [&self.spoiled, &self.unproved] {
            let paths = segments.iter().map(SegmentEntry::path).filter(|path| doubtful.contains(*path));
            let paths: Vec<String> = paths.map(str::to_owned).collect();
            for path in paths {
                let others = segments
                    .iter()
                    .filter(|other| other.path() != path && !self.spoiled.contains(other.path()));
                let ranges: Vec<Range<u64>> = others.map(|other| other.start..other.end).collect();
                segments.retain(|one| one.path() != path || !hold(&ranges, one.start..one.end));
            }
        }
        segments
    }
}

/// Whether ranges, given in the order of their starts, hold all of these bytes together.
pub(crate) fn hold(ranges: &[Range<u64>], wanted: Range<u64>) -> bool {
    let mut at = wanted.start;
    for range in ranges.iter().take_while(|range| range.start < wanted.end) {
        if range.start > at {
            return false;
        }
        at = at.max(range.end);
        if at >= wanted.end {
            return true;
        }
    }
    at >= wanted.end
}

#[cfg(test)]
mod tests;
