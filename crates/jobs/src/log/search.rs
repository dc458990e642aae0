//! Finding the command that is to be undone.
//!
//! An accident may hit several shards, each at its own moment: `FLUSHALL` on every primary, one after the other. What matches within a
//! minute counts as one accident, and each shard is brought back to just before its own first match.

use std::ops::{ControlFlow, Range};

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_model::{ReplId, SlotSet};
use slotkeep_repo::SegmentEntry;

use super::chain::{Path, Place, as_text};
use super::commands::{Seen, scan};
use super::past::{OwnLog, Past};
use super::pattern::Pattern;
use super::point::Span;
use super::times::{Times, Written, untold};
use crate::progress::{ShardProgress, add};
use crate::{Context, Error, ErrorKind, Result};

/// Matches that are this close to each other are one accident, in ms.
pub const ACCIDENT_MS: i64 = 60_000;

/// When a segment ends of which nothing tells: behind everything else.
const NO_MOMENT_MS: i64 = i64::MAX;

/// A command that matches.
#[derive(Clone, Debug, Serialize)]
pub struct Match {
    /// The history whose log it stands in.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The slots of that history's shard, as they were seen last.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// The command's first words, as text.
    pub command: String,
    /// The offset of its first byte.
    pub offset: u64,
    /// When it was written.
    pub written: Option<Span>,
    /// The last place before it at which a restore can end: before the transaction that it is part of.
    pub before: Place,
    /// Not after this; nothing if that is not known.
    #[serde(skip)]
    until_ms: Option<i64>,
    #[serde(skip)]
    time_ms: i64,
}

/// What is to be undone.
#[derive(Clone, Debug, Serialize)]
pub struct Accident {
    /// On each shard that was hit, the first match.
    pub matches: Vec<Match>,
    /// When it began, in ms since 1970.
    #[serde(skip)]
    pub moment_ms: i64,
}

/// The log of one shard, searched segment by segment.
struct Line<'a> {
    path: Path,
    slots: SlotSet,
    segments: Vec<(SegmentEntry, Range<u64>)>,
    /// Segments at either end that need no search any more.
    done: usize,
    /// When the next segment to search ends, in ms since 1970.
    next_ms: i64,
    found: Vec<Match>,
    past: &'a Past,
}

/// Which end of the log the search begins at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// The newest segments first, for the last match.
    Back,
    /// From a moment on, for the first one behind it.
    Forth(i64),
}

/// Finds the last command that matches, or with `after` the first one that was written after that moment, with what else matches on
/// the other shards at the time.
pub async fn find(
    context: &Context,
    past: &Past,
    pattern: &Pattern,
    after: Option<Timestamp>,
    progress: &ShardProgress,
) -> Result<Accident> {
    past.expect_log()?;
    let direction = after.map_or(Direction::Back, |after| Direction::Forth(after.as_millisecond()));
    let mut lines = Vec::new();
    for OwnLog { path, slots, segments } in past.logs(|_| true) {
        let mut line = Line { path, slots, segments, done: 0, next_ms: 0, found: vec![], past };
        line.start(direction).await?;
        lines.push(line);
    }
    while let Some(line) = next_line(&mut lines, direction) {
        line.search(context, pattern, direction, progress).await?;
    }
    let found = accident(lines, direction).ok_or_else(|| {
        let when = after.map(|after| format!(" after {after}")).unwrap_or_default();
        let what = format!("no command that matches `{}` is in the log{when}", pattern.as_str());
        Error::new(ErrorKind::NotFound, what)
            .hint("`slotkeep log` shows what is in it, destructive commands first")
    })?;
    if found.moment_ms == NO_MOMENT_MS { Err(untold()) } else { Ok(found) }
}

/// The line whose next segment is to be searched now; none when the rest is too far away from what was found.
fn next_line<'l, 'a>(lines: &'l mut [Line<'a>], direction: Direction) -> Option<&'l mut Line<'a>> {
    let times = lines.iter().flat_map(|line| &line.found).map(|found| found.time_ms);
    let anchor = match direction {
        Direction::Back => times.max(),
        Direction::Forth(_) => times.min(),
    };
    let open = lines.iter_mut().filter(|line| line.done < line.segments.len());
    match direction {
        Direction::Back => {
            let near = |line: &&mut Line<'_>| {
                anchor.is_none_or(|anchor| line.next_ms >= anchor.saturating_sub(ACCIDENT_MS))
            };
            open.filter(near).max_by_key(|line| line.next_ms)
        }
        Direction::Forth(_) => {
            let near = |line: &&mut Line<'_>| {
                line.found.is_empty()
                    && anchor.is_none_or(|anchor| line.next_ms <= anchor.saturating_add(ACCIDENT_MS))
            };
            open.filter(near).min_by_key(|line| line.next_ms)
        }
    }
}

/// What was found, as far as it belongs together: on each line the first match.
fn accident(lines: Vec<Line<'_>>, direction: Direction) -> Option<Accident> {
    let times = || lines.iter().flat_map(|line| &line.found).map(|found| found.time_ms);
    let (first, last) = match direction {
        Direction::Back => {
            let last = times().max()?;
            (last.saturating_sub(ACCIDENT_MS), last)
        }
        Direction::Forth(_) => {
            let first = times().min()?;
            (first, first.saturating_add(ACCIDENT_MS))
        }
    };
    // A shard may have lines that were left: the first one that was hit, which is the one that went on, says where to.
    let mut hit: Vec<(Path, SlotSet)> = Vec::new();
    let mut matches: Vec<Match> = Vec::new();
    for line in lines {
        let of_it = line.found.into_iter().filter(|found| (first..=last).contains(&found.time_ms));
        let is_known = hit
            .iter()
            .any(|(path, slots)| path.begins_as(&line.path) && !slots.intersection(&line.slots).is_empty());
        if let Some(first) = of_it.min_by_key(|found| found.offset).filter(|_| !is_known) {
            matches.push(first);
            hit.push((line.path, line.slots));
        }
    }
    matches.sort_by_key(|found| (found.time_ms, found.offset));
    let moment_ms = matches.first()?.time_ms;
    Some(Accident { matches, moment_ms })
}

impl Line<'_> {
    /// Goes to the first segment to search.
    async fn start(&mut self, direction: Direction) -> Result<()> {
        self.next_ms = match direction {
            Direction::Back => NO_MOMENT_MS,
            Direction::Forth(after_ms) => after_ms,
        };
        if let Direction::Forth(after_ms) = direction {
            let (mut low, mut high) = (0, self.segments.len());
            while low < high {
                let middle = low.midpoint(high);
                if self.ends_ms(middle).await?.is_none_or(|end| end > after_ms) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            // What lies behind the last sample of the one before may have been written later.
            self.done = low.saturating_sub(1);
        }
        self.look_ahead(direction).await
    }

    /// When the segment of that number ends, if it has time samples.
    async fn ends_ms(&self, number: usize) -> Result<Option<i64>> {
        let Some((entry, _)) = self.segments.get(number) else { return Ok(None) };
        Ok(self.past.record(entry).await?.times.samples().last().map(|sample| sample.until_ms))
    }

    fn next_segment(&self, direction: Direction) -> Option<usize> {
        match direction {
            Direction::Back => self.segments.len().checked_sub(self.done.saturating_add(1)),
            Direction::Forth(_) => Some(self.done).filter(|number| *number < self.segments.len()),
        }
    }

    async fn look_ahead(&mut self, direction: Direction) -> Result<()> {
        if let Some(number) = self.next_segment(direction)
            && let Some(end) = self.ends_ms(number).await?
        {
            self.next_ms = end;
        }
        Ok(())
    }

    async fn search(
        &mut self,
        context: &Context,
        pattern: &Pattern,
        direction: Direction,
        progress: &ShardProgress,
    ) -> Result<()> {
        let Some((entry, part)) = self.next_segment(direction).and_then(|number| self.segments.get(number))
        else {
            return Ok(());
        };
        // Before the first and behind the last sample of its own, those of other segments tell.
        let times = Times::on(self.past, &self.path);
        let around = Written {
            from_ms: times.written(part.start).await?.from_ms,
            until_ms: times.written(part.end.saturating_sub(1)).await?.until_ms,
        };
        let mut found: Vec<Match> = Vec::new();
        let read = |bytes| add(&progress.raw_bytes, bytes);
        scan(context, self.past, (entry, part), read, |seen| {
            if !pattern.matches(&seen.command) {
                return ControlFlow::Continue(());
            }
            let Some(matched) = self.matched(seen, around) else { return ControlFlow::Continue(()) };
            match direction {
                Direction::Forth(after_ms) if matched.until_ms.is_some_and(|until| until <= after_ms) => {
                    ControlFlow::Continue(())
                }
                Direction::Forth(_) => {
                    found.push(matched);
                    ControlFlow::Break(())
                }
                Direction::Back => {
                    // The first one of each moment is enough: memory stays bounded whatever matches.
                    if found.last().is_none_or(|last| last.time_ms != matched.time_ms) {
                        found.push(matched);
                    }
                    ControlFlow::Continue(())
                }
            }
        })
        .await?;
        self.found.append(&mut found);
        self.done += 1;
        self.look_ahead(direction).await
    }

    /// `around`: what samples of other segments tell.
    fn matched(&self, seen: &Seen<'_>, around: Written) -> Option<Match> {
        let offset = seen.command.start.0;
        let (from_ms, until_ms) = seen.segment.times.produced(offset);
        let (from_ms, until_ms) = (from_ms.or(around.from_ms), until_ms.or(around.until_ms));
        let place = self.path.place(seen.cut_before);
        let before = place
            .or_else(|| Some(Place { history: seen.segment.history.clone(), offset: seen.cut_before }))?;
        Some(Match {
            history: seen.segment.history.clone(),
            slots: self.slots.clone(),
            command: text_of(seen),
            offset,
            written: Span::of(Written { from_ms, until_ms }),
            before,
            until_ms,
            time_ms: until_ms.or(from_ms).unwrap_or(self.next_ms),
        })
    }
}

/// A command's first words as text: bytes that are no plain characters as `\xNN`, words that were cut with `…`.
pub(super) fn text_of(seen: &Seen<'_>) -> String {
    let kept = (0..).map_while(|number| seen.command.arg(number));
    let words: Vec<String> = kept.map(|word| word.escape_ascii().to_string()).collect();
    let more = seen.command.arg_count.saturating_sub(words.len() as u64);
    let rest = if more > 0 { format!(" … {more} more") } else { String::new() };
    format!("{}{rest}", words.join(" "))
}
