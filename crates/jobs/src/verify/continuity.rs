//! Which bytes of which histories the log holds, told from the names of its segments and the files of its histories. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use slotkeep_format::Parent;
use slotkeep_format::manifest::ShardCut;
use slotkeep_model::ReplId;

/// What is known of a history: where it comes from, and which of its bytes there are, as runs in order that do not touch.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) parent: Option<Parent>,
    pub(super) runs: Vec<Range<u64>>,
}

/// Joins ranges, given in the order of their starts, to runs that do not touch.
pub(super) fn runs(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match runs.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => runs.push(range),
        }
    }
    runs
}

/// What is missing of `wanted`.
pub(super) fn missing(runs: &[Range<u64>], wanted: Range<u64>) -> Vec<Range<u64>> {
    let mut at = wanted.start;
    let mut holes = Vec::new();
    for run in runs {
        if run.end <= at {
            continue;
        }
        if run.start >= wanted.end {
            break;
        }
        if run.start > at {
            holes.push(at..run.start);
        }
        at = run.end;
    }
    if at < wanted.end {
        holes.push(at..wanted.end);
    }
    holes
}

/// Why a base does not lead to a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Bytes of a history are missing.
    Bytes { history: ReplId, range: Range<u64> },
    /// The cut's history does not descend from the base's.
    Unrelated { history: ReplId },
    /// The line left the base's history at that offset, before the base was made.
    Left { at: u64 },
}

/// Which bytes of which histories lead from a base to a cut, the last history first; or that none do.
pub(super) fn line(
    histories: &BTreeMap<ReplId, Held>,
    base: (&ReplId, u64),
    cut: &ShardCut,
) -> Result<Vec<(ReplId, Range<u64>)>, Broken> {
    let mut line = Vec::new();
    let (mut history, mut end) = (cut.history.clone(), cut.offset.saturating_add(1));
    // The last byte that the line has of the history.
    let mut left_at = u64::MAX;
    // A line visits each history once: files that name each other as parents lead nowhere.
    for _ in 0..=histories.len() {
        if history == *base.0 {
            let start = base.1.saturating_add(1);
            if base.1 > left_at {
                return Err(Broken::Left { at: left_at });
            }
            if start < end {
                line.push((history, start..end));
            }
            return Ok(line);
        }
        let Some(parent) = histories.get(&history).and_then(|held| held.parent.clone()) else {
            return Err(Broken::Unrelated { history });
        };
        let start = parent.fork.saturating_add(1);
        if start < end {
            line.push((history, start..end));
        }
        end = end.min(start);
        left_at = left_at.min(parent.fork);
        history = parent.history;
    }
    Err(Broken::Unrelated { history })
}

/// What is missing on the way from a base to a cut.
pub(super) fn breaks(
    histories: &BTreeMap<ReplId, Held>,
    base: (&ReplId, u64),
    cut: &ShardCut,
) -> Vec<Broken> {
    let line = match line(histories, base, cut) {
        Ok(line) => line,
        Err(broken) => return vec![broken],
    };
    let holes = line.into_iter().flat_map(|(history, range)| {
        let runs = histories.get(&history).map(|held| held.runs.as_slice()).unwrap_or_default();
        let holes = missing(runs, range);
        holes.into_iter().map(move |range| Broken::Bytes { history: history.clone(), range })
    });
    holes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    fn id(letter: &str) -> ReplId {
        letter.repeat(40).parse().unwrap()
    }

    #[test]
    fn ranges_join_to_runs() {
        let ranges = [1..5, 5..9, 7..8, 12..14, 13..20];
        assert_eq!(runs(ranges.into_iter()), [1..9, 12..20]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let runs = [1..9, 12..20];
        assert_eq!(missing(&runs, 2..8), []);
        assert_eq!(missing(&runs, 2..25), [9..12, 20..25]);
        assert_eq!(missing(&runs, 9..12), one(9..12));
        assert_eq!(missing(&[], 3..4), one(3..4));
    }

    #[test]
    fn a_line_follows_forks_back_to_the_base() {
        let (old, new) = (id("a"), id("b"));
        let mut histories = BTreeMap::new();
        histories.insert(old.clone(), Held { parent: None, runs: vec![11..51, 60..70] });
        let parent = Some(Parent { history: old.clone(), fork: 50 });
        histories.insert(new.clone(), Held { parent, runs: one(51..90) });
        let cut = |offset| ShardCut { history: new.clone(), offset };
        assert_eq!(breaks(&histories, (&old, 10), &cut(89)), []);
        let short = Broken::Bytes { history: new.clone(), range: 90..91 };
        assert_eq!(breaks(&histories, (&old, 10), &cut(90)), [short]);
        let early = Broken::Bytes { history: old.clone(), range: 9..11 };
        assert_eq!(breaks(&histories, (&old, 8), &cut(60)), [early]);
        assert_eq!(breaks(&histories, (&id("c"), 8), &cut(60)), [Broken::Unrelated { history: old }]);
        assert_eq!(breaks(&histories, (&new, 60), &cut(60)), []);
    }

    #[test]
    fn a_base_behind_where_the_line_left_its_history_leads_nowhere() {
        let (old, new) = (id("a"), id("b"));
        let parent = Some(Parent { history: old.clone(), fork: 30 });
        let histories = BTreeMap::from([
            (old.clone(), Held { parent: None, runs: one(1..50) }),
            (new.clone(), Held { parent, runs: one(31..90) }),
        ]);
        let cut = |history: &ReplId, offset| ShardCut { history: history.clone(), offset };
        assert_eq!(breaks(&histories, (&old, 40), &cut(&new, 60)), [Broken::Left { at: 30 }]);
        for offset in [30, 20] {
            assert_eq!(breaks(&histories, (&old, offset), &cut(&new, 60)), []);
        }
        assert_eq!(breaks(&histories, (&old, 30), &cut(&new, 30)), [], "where the history begins");
        assert_eq!(breaks(&histories, (&old, 40), &cut(&old, 40)), []);
    }

    #[test]
    fn histories_that_descend_from_each_other_end() {
        let (one, other) = (id("a"), id("b"));
        let from = |parent: &ReplId| Held {
            parent: Some(Parent { history: parent.clone(), fork: 5 }),
            runs: vec![],
        };
        let histories = BTreeMap::from([(one.clone(), from(&other)), (other.clone(), from(&one))]);
        let cut = ShardCut { history: one, offset: 9 };
        assert!(matches!(breaks(&histories, (&id("c"), 1), &cut)[..], [Broken::Unrelated { .. }]));
    }
}
