//! How histories, segments and bases belong together: which places of the past can be reached, and over which bytes.
//!
//! Offsets go on where a history descends from another, so on the way from a first history to one of its last descendants (a
//! [`Path`]) an offset alone says which byte is meant. What a history holds behind the fork to the next one on the path is a
//! divergent tail of it: a path of its own, off the main line. The main line goes on with the history that was seen to live last, and ends with
//! one that the cluster was seen to follow after all that descend from it: a server that took over may be gone, and the old one serve on.
//!
//! Invariants: no piece of a route holds a byte that no segment covers; a place is reached from the nearest base before it from which
//! every byte is there; a history that names itself among its forebears ends its path there.

mod behind;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;

use serde::Serialize;
use slotkeep_format::Parent;
use slotkeep_model::ReplId;

/// The last byte of a state: what the bytes up to it, in that history, have made of the dataset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The history.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The last byte.
    pub offset: u64,
}

/// Bytes of one history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// The history.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The first byte, and the one behind the last.
    pub range: Range<u64>,
}

impl Piece {
    /// How many bytes that is.
    pub const fn bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

/// A base, as the chain sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePlace {
    /// What the base holds.
    pub place: Place,
    /// The caller's number for it.
    pub number: usize,
}

/// One history: where it comes from and which bytes of it there are.
#[derive(Clone, Debug)]
struct Strand {
    parent: Option<Parent>,
    /// Of the segments, in the order of their starts, the longest first.
    ranges: Vec<Range<u64>>,
    /// What they cover together, without touching.
    runs: Vec<Range<u64>>,
    /// When it was first followed.
    rank: i64,
    /// When the cluster was last seen to follow it; `i64::MIN` if it never was.
    seen: i64,
}

impl Strand {
    /// One of which nothing was written down.
    const UNKNOWN: Self =
        Self { parent: None, ranges: Vec::new(), runs: Vec::new(), rank: i64::MIN, seen: i64::MIN };
}

/// Everything that a repository holds of a cluster's histories.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    strands: BTreeMap<ReplId, Strand>,
    bases: Vec<BasePlace>,
    /// When each history, or one that descends from it, lived last.
    lived: OnceLock<BTreeMap<ReplId, i64>>,
}

/// The part of a path that lies in one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The history.
    pub history: ReplId,
    /// The last byte before it: 0, or the fork at which the history begins.
    pub after: u64,
    /// The last byte of it: the fork to the next history, or the last number there is.
    pub until: u64,
}

/// The way from a first history to one of its descendants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    stretches: Vec<Stretch>,
}

/// A part of a path of which every place can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first place: a base.
    pub from: u64,
    /// The last place.
    pub to: u64,
}

/// Why a place can't be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The first bytes that are missing on the way from the nearest base before; none if there is no base before.
    pub gap: Option<Piece>,
    /// The last place before it, on the same path, that can be reached.
    pub before: Option<Place>,
    /// The first place after it, on the same path, that can be reached.
    pub after: Option<Place>,
}

impl Window {
    /// Whether that place of the path lies in it.
    pub const fn holds(&self, offset: u64) -> bool {
        self.from <= offset && offset <= self.to
    }
}

impl Path {
    /// Its parts, the oldest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Whether both begin with the same history.
    pub fn begins_as(&self, other: &Self) -> bool {
        let first = |path: &Self| path.stretches.first().map(|stretch| stretch.history.clone());
        first(self) == first(other)
    }

    /// The place of that offset; `None` for 0, and past the end of a path that ends at a place.
    pub fn place(&self, offset: u64) -> Option<Place> {
        let on = |stretch: &&Stretch| stretch.after < offset && offset <= stretch.until;
        let stretch = self.stretches.iter().find(on)?;
        Some(Place { history: stretch.history.clone(), offset })
    }

    /// Whether the path goes through that place.
    pub fn holds(&self, place: &Place) -> bool {
        // A base may be taken at the very fork, before its history has a byte of its own.
        self.stretches.iter().any(|stretch| {
            stretch.history == place.history && stretch.after <= place.offset && place.offset <= stretch.until
        })
    }

    /// The bytes behind `from` up to `to`, by history.
    pub fn pieces(&self, from: u64, to: u64) -> Vec<Piece> {
        let piece = |stretch: &Stretch| {
            let range = from.max(stretch.after).saturating_add(1)..to.min(stretch.until).saturating_add(1);
            (range.start < range.end).then(|| Piece { history: stretch.history.clone(), range })
        };
        self.stretches.iter().filter_map(piece).collect()
    }
}

impl Chain {
    /// Adds a history with its segments' ranges; `rank`: when it was first followed, in ms since 1970.
    pub fn add_history(
        &mut self,
        history: ReplId,
        parent: Option<Parent>,
        rank: i64,
        mut ranges: Vec<Range<u64>>,
    ) {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
        let mut runs: Vec<Range<u64>> = Vec::new();
        for range in &ranges {
            match runs.last_mut() {
                Some(run) if range.start <= run.end => run.end = run.end.max(range.end),
                _ => runs.push(range.clone()),
            }
        }
        self.strands.insert(history, Strand { parent, ranges, runs, rank, seen: i64::MIN });
        self.lived.take();
    }

    /// Adds that the cluster was seen to follow a history, in ms since 1970. One of which nothing is known otherwise stays unknown.
    pub fn add_look(&mut self, history: &ReplId, seen_ms: i64) {
        if let Some(strand) = self.strands.get_mut(history) {
            strand.seen = strand.seen.max(seen_ms);
            self.lived.take();
        }
    }

    /// Adds a base. A history that was not added is taken to have no segments and to come from nowhere.
    pub fn add_base(&mut self, base: BasePlace) {
        self.strands.entry(base.place.history.clone()).or_insert(Strand::UNKNOWN);
        self.lived.take();
        self.bases.push(base);
        self.bases.sort_by_key(|base| (base.place.offset, base.number));
    }

    /// The histories.
    pub fn histories(&self) -> impl Iterator<Item = &ReplId> {
        self.strands.keys()
    }

    /// Where a history comes from.
    pub fn parent(&self, history: &ReplId) -> Option<&Parent> {
        self.strands.get(history)?.parent.as_ref()
    }

    /// What there is of a history's bytes.
    pub fn runs(&self, history: &ReplId) -> &[Range<u64>] {
        self.strands.get(history).map(|strand| strand.runs.as_slice()).unwrap_or_default()
    }

    /// Whether there is a base or a byte of a history.
    pub fn holds(&self, history: &ReplId) -> bool {
        !self.runs(history).is_empty() || self.bases.iter().any(|base| base.place.history == *history)
    }

    /// The bases, by offset.
    pub fn bases(&self) -> &[BasePlace] {
        &self.bases
    }

    /// The histories that descend from one directly, the one that lived last first.
    pub fn children(&self, history: &ReplId) -> Vec<&ReplId> {
        let comes_from =
            |strand: &Strand| strand.parent.as_ref().is_some_and(|parent| parent.history == *history);
        let mut children: Vec<&ReplId> = self
            .strands
            .iter()
            .filter(|(child, strand)| comes_from(strand) && *child != history)
            .map(|(child, _)| child)
            .collect();
        children.sort_by_key(|child| std::cmp::Reverse(self.lived(child)));
        children
    }

    /// When a history or one that descends from it was last seen to live: it was followed for the first time, or the cluster was seen to
    /// follow it.
    fn lived(&self, history: &ReplId) -> i64 {
        let lived = self.lived.get_or_init(|| {
            let mut lived: BTreeMap<ReplId, i64> = BTreeMap::new();
            for (history, strand) in &self.strands {
                let own = strand.rank.max(strand.seen);
                let (mut at, mut passed) = (history, BTreeSet::new());
                while passed.insert(at) {
                    let newest = lived.entry(at.clone()).or_insert(own);
                    *newest = own.max(*newest);
                    let Some(parent) = self.parent(at) else { break };
                    at = &parent.history;
                }
            }
            lived
        });
        lived.get(history).copied().unwrap_or(i64::MIN)
    }

    /// The history that the main line goes on with behind that one; `None` if it ends there.
    fn main_child(&self, history: &ReplId) -> Option<&ReplId> {
        let child = self.children(history).into_iter().next()?;
        let seen = self.strands.get(history).map_or(i64::MIN, |strand| strand.seen);
        (seen <= self.lived(child)).then_some(child)
    }

    /// Whether the main line through `history` is the same whatever `other`, of which it is not known where it comes from, descends from: the
    /// cluster was seen to follow that one, and later every one that the line goes on with.
    pub fn leaves_out(&self, history: &ReplId, other: &ReplId) -> bool {
        if self.strands.get(other).is_none_or(|other| other.seen == i64::MIN) {
            return false;
        }
        let left = self.lived(other);
        let (mut at, mut passed) = (history, BTreeSet::new());
        while passed.insert(at) {
            match self.main_child(at) {
                Some(child) if self.lived(child) > left => at = child,
                Some(_) => return false,
                None => return self.strands.get(at).is_some_and(|last| last.seen > left),
            }
        }
        false
    }

    /// The history at which the main line through `history` ends.
    pub fn main_tip(&self, history: &ReplId) -> ReplId {
        let mut passed = BTreeSet::new();
        let mut tip = history;
        while passed.insert(tip) {
            match self.main_child(tip) {
                Some(child) => tip = child,
                None => break,
            }
        }
        tip.clone()
    }

    /// The histories at which lines end, so that every byte and every base is on the path to one of them: first those that no main line goes on
    /// behind, the one that lived last first, then those that hold something behind the fork at which it does.
    pub fn tips(&self) -> Vec<&ReplId> {
        let (mut last, mut passed) = (Vec::new(), Vec::new());
        for history in self.strands.keys() {
            match self.main_fork(history) {
                None => last.push(history),
                Some(fork) => {
                    let bytes = self.runs(history).last().is_some_and(|run| run.end > fork.saturating_add(1));
                    let is_behind =
                        |base: &BasePlace| base.place.history == *history && base.place.offset > fork;
                    if bytes || self.bases.iter().any(is_behind) {
                        passed.push(history);
                    }
                }
            }
        }
        last.sort_by_key(|history| std::cmp::Reverse(self.lived(history)));
        last.append(&mut passed);
        last
    }

    /// The last byte of a history that is on its main line; `None` if that ends with it.
    pub fn main_fork(&self, history: &ReplId) -> Option<u64> {
        self.parent(self.main_child(history)?).map(|parent| parent.fork)
    }

    /// The path that ends with that history.
    pub fn path(&self, tip: &ReplId) -> Path {
        let mut seen = BTreeSet::new();
        let mut stretches = Vec::new();
        let (mut history, mut until) = (tip, u64::MAX);
        while seen.insert(history) {
            let parent = self.parent(history).filter(|parent| !seen.contains(&parent.history));
            let after = parent.map_or(0, |parent| parent.fork);
            stretches.push(Stretch { history: history.clone(), after: after.min(until), until });
            let Some(parent) = parent else { break };
            until = parent.fork.min(until);
            history = &parent.history;
        }
        stretches.reverse();
        Path { stretches }
    }

    /// What a history holds behind the fork of the main line: writes that what followed does not have.
    pub fn divergent_tail(&self, history: &ReplId) -> Option<Piece> {
        let fork = self.main_fork(history)?;
        let end = self.runs(history).last()?.end;
        let start = fork.saturating_add(1);
        (end > start).then(|| Piece { history: history.clone(), range: start..end })
    }

    /// The first bytes of those pieces that no segment covers.
    pub fn first_gap(&self, pieces: &[Piece]) -> Option<Piece> {
        pieces.iter().find_map(|piece| {
            let runs = self.runs(&piece.history);
            let inside =
                runs.iter().find(|run| run.start <= piece.range.start && piece.range.start < run.end);
            let start = inside.map_or(piece.range.start, |run| run.end);
            if start >= piece.range.end {
                return None;
            }
            let next = runs.iter().map(|run| run.start).find(|next| *next > start);
            let end = next.unwrap_or(piece.range.end).min(piece.range.end);
            Some(Piece { history: piece.history.clone(), range: start..end })
        })
    }

    /// The bases on a path at or before an offset, the nearest first.
    fn bases_before<'a, 'p>(
        &'a self,
        path: &'p Path,
        offset: u64,
    ) -> impl Iterator<Item = &'a BasePlace> + use<'a, 'p> {
        let reaches = move |base: &&BasePlace| base.place.offset <= offset && path.holds(&base.place);
        self.bases.iter().rev().filter(reaches)
    }

    /// From which base, and over which bytes, a place is reached.
    pub fn route(&self, path: &Path, offset: u64) -> Result<(&BasePlace, Vec<Piece>), Unreachable> {
        let mut first_gap = None;
        for base in self.bases_before(path, offset) {
            let pieces = path.pieces(base.place.offset, offset);
            match self.first_gap(&pieces) {
                None => return Ok((base, pieces)),
                Some(gap) => first_gap = first_gap.or(Some(gap)),
            }
        }
        let windows = self.windows(path);
        let before = windows.iter().rev().find(|window| window.to < offset);
        let after = windows.iter().find(|window| window.from > offset);
        Err(Unreachable {
            gap: first_gap,
            before: before.and_then(|window| self.place_or_base(path, window.to)),
            after: after.and_then(|window| self.place_or_base(path, window.from)),
        })
    }

    /// The place of an offset on a path; where only a base is, that of the base.
    pub fn place_or_base(&self, path: &Path, offset: u64) -> Option<Place> {
        let base = || self.bases.iter().find(|base| base.place.offset == offset && path.holds(&base.place));
        path.place(offset).or_else(|| Some(base()?.place.clone()))
    }

    /// The parts of a path that can be reached, in order.
    pub fn windows(&self, path: &Path) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for base in self.bases.iter().filter(|base| path.holds(&base.place)) {
            let from = base.place.offset;
            let to = self.reach(path, from);
            match windows.last_mut() {
                Some(last) if from <= last.to => last.to = last.to.max(to),
                _ => windows.push(Window { from, to }),
            }
        }
        windows
    }

    /// The last byte up to which every byte behind `from` is there.
    fn reach(&self, path: &Path, from: u64) -> u64 {
        let mut reach = from;
        for stretch in path.stretches().iter().filter(|stretch| stretch.until > from) {
            let next = reach.saturating_add(1);
            if next <= stretch.after {
                break;
            }
            // Of a history that ended as it began no byte is on the path.
            if next > stretch.until {
                continue;
            }
            let runs = self.runs(&stretch.history);
            let Some(run) = runs.iter().find(|run| run.start <= next && next < run.end) else { break };
            reach = run.end.saturating_sub(1).min(stretch.until);
            if reach < stretch.until {
                break;
            }
        }
        reach
    }

    /// Which of a history's ranges to read for those bytes, and what of each: as few as possible. Bytes that no range covers are
    /// left out.
    pub fn choose(&self, piece: &Piece) -> Vec<(Range<u64>, Range<u64>)> {
        let ranges =
            self.strands.get(&piece.history).map(|strand| strand.ranges.as_slice()).unwrap_or_default();
        let mut chosen = Vec::new();
        let mut next = piece.range.start;
        // Of those that begin at or before the next byte, the one that goes farthest.
        let mut best: Option<&Range<u64>> = None;
        let mut waiting = ranges.iter().peekable();
        while next < piece.range.end {
            while let Some(range) = waiting.next_if(|range| range.start <= next) {
                best = best.filter(|best| best.end >= range.end).or(Some(range));
            }
            match best.filter(|best| best.end > next) {
                Some(range) => {
                    let end = range.end.min(piece.range.end);
                    chosen.push((range.clone(), next..end));
                    next = end;
                }
                None => match waiting.peek() {
                    Some(range) => next = range.start,
                    None => break,
                },
            }
        }
        chosen
    }
}

pub(crate) fn as_text<T: std::fmt::Display, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests;
