//! What is in the log between two moments: commands, keys, rates, and above all what destroys data.
//!
//! Memory does not depend on the log: counters for command names, a bounded number of keys, and the newest of the destructive commands.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::{ControlFlow, Range};

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_model::{ReplId, Slot, SlotSet};
use slotkeep_repo::SegmentEntry;
use slotkeep_wire::stream::{KEPT_BYTES, StreamCommand};

use super::chain::as_text;
use super::commands::{Seen, scan};
use super::past::{OwnLog, Past};
use super::pattern::Pattern;
use super::point::Span;
use super::search::text_of;
use super::times::Written;
use crate::progress::{ShardProgress, add};
use crate::{Context, Result};

/// How many destructive commands are kept, the newest.
const KEPT_DESTRUCTIVE: usize = 200;
/// Of how many keys account is kept.
const KEPT_KEYS: usize = 1024;
/// How many keys are reported.
const SHOWN_KEYS: usize = 20;
/// A `DEL` or `UNLINK` of at least so many keys counts as destructive.
const MANY_KEYS: u64 = 10;
/// The most names that are counted one by one; modules may bring any number.
const MOST_NAMES: usize = 1024;

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct SurveyOptions {
    /// From this moment on.
    pub from: Option<Timestamp>,
    /// Up to this moment.
    pub to: Option<Timestamp>,
    /// The shard that serves this slot; all shards if not given.
    pub slot: Option<Slot>,
    /// Commands that match; all if not given.
    pub pattern: Option<Pattern>,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Survey {
    /// Destructive commands, the newest 200, in the order of their times.
    pub destructive: Vec<Entry>,
    /// How many destructive commands there were in all.
    pub destructive_count: u64,
    /// Commands by name, those with most bytes first.
    pub commands: Vec<CommandCount>,
    /// Keys that were written most: the count is a lower bound.
    pub keys: Vec<KeyCount>,
    /// The shards' logs.
    pub shards: Vec<ShardSurvey>,
}

/// One command of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// When it was written, by the server's clock.
    pub written: Option<Span>,
    /// The slots of its shard.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// Its history.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The offset of its first byte.
    pub offset: u64,
    /// The offset of its last byte: with it, a restore ends behind the command.
    pub end: u64,
    /// The last offset before it at which a restore can end.
    pub before: u64,
    /// The database it works on; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
    /// Whether it is part of a transaction.
    pub in_transaction: bool,
    /// How many arguments it has, its name included.
    pub arg_count: u64,
    /// Its first four arguments, of each the first 64 bytes. Bytes that are not printable ASCII, and `\`, `"` and `'`, stand as
    /// `\n`, `\r`, `\t`, `\\`, `\"`, `\'` or `\xNN`.
    pub args: Vec<String>,
    /// The same in one line.
    #[serde(skip)]
    pub text: String,
}

/// How often a command occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandCount {
    /// Its name, in capitals.
    pub name: String,
    /// How often.
    pub count: u64,
    /// How many bytes of the log.
    pub bytes: u64,
}

/// How often a key is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyCount {
    /// Its first 64 bytes, written as arguments are.
    pub key: String,
    /// At least so often.
    pub at_least: u64,
}

/// The log of one shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardSurvey {
    /// Its slots.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// How many commands.
    pub commands: u64,
    /// How many bytes they take.
    pub bytes: u64,
    /// When the first and the last of them were written.
    pub written: Option<Span>,
}

/// Looks at the log; `each` gets every command in the order of its shard's log.
pub async fn survey(
    context: &Context,
    past: &Past,
    options: &SurveyOptions,
    progress: &ShardProgress,
    mut each: impl FnMut(&Entry),
    wants_each: bool,
) -> Result<Survey> {
    past.expect_log()?;
    let mut tally = Tally::default();
    let mut shards = Vec::new();
    let wanted = |slots: &SlotSet| options.slot.is_none_or(|slot| slots.contains(slot));
    for OwnLog { slots, segments, .. } in past.logs(wanted) {
        if segments.is_empty() {
            continue;
        }
        let mut shard = ShardSurvey { slots, commands: 0, bytes: 0, written: None };
        for segment in &segments {
            if !overlaps(past, segment, options).await? {
                continue;
            }
            let read = |bytes| add(&progress.raw_bytes, bytes);
            let mut clock = SegmentClock::default();
            scan(context, past, (&segment.0, &segment.1), read, |seen| {
                let written = clock.written(seen);
                if options.meets(&written, &seen.command) {
                    shard.count(seen, written);
                    tally.count(seen);
                    let destructive = is_destructive(&seen.command);
                    if wants_each || destructive {
                        let entry = entry(seen, &shard.slots, written);
                        if destructive {
                            tally.keep(entry.clone());
                        }
                        each(&entry);
                    }
                }
                ControlFlow::Continue(())
            })
            .await?;
        }
        shards.push(shard);
    }
    shards.sort_by_key(|shard| shard.slots.ranges().first().copied());
    Ok(tally.finish(shards))
}

/// Whether a segment may hold commands of the time that is asked for.
async fn overlaps(
    past: &Past,
    (entry, _): &(SegmentEntry, Range<u64>),
    options: &SurveyOptions,
) -> Result<bool> {
    if options.from.is_none() && options.to.is_none() {
        return Ok(true);
    }
    let record = past.record(entry).await?;
    let samples = record.times.samples();
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(true) };
    // What stands before the first sample was written before it, what stands behind the last one after it.
    let ends_behind = last.offset.saturating_add(1) < entry.end;
    let too_early = !ends_behind && options.from.is_some_and(|from| last.until_ms < from.as_millisecond());
    let begins_before = first.offset >= entry.start;
    let too_late = !begins_before && options.to.is_some_and(|to| first.from_ms > to.as_millisecond());
    Ok(!too_early && !too_late)
}

impl SurveyOptions {
    fn meets(&self, written: &Written, command: &StreamCommand<'_>) -> bool {
        let early =
            self.from.zip(written.until_ms).is_some_and(|(from, until)| until < from.as_millisecond());
        let late = self.to.zip(written.from_ms).is_some_and(|(to, from)| from > to.as_millisecond());
        !early && !late && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(command))
    }
}

/// When commands were written: looked up once for all between two samples.
#[derive(Default)]
struct SegmentClock {
    until_offset: u64,
    written: Written,
}

impl SegmentClock {
    fn written(&mut self, seen: &Seen<'_>) -> Written {
        let offset = seen.command.start.0;
        if offset > self.until_offset || self.until_offset == 0 {
            let times = &seen.segment.times;
            let (from_ms, until_ms) = times.produced(offset);
            self.written = Written { from_ms, until_ms };
            let next = times.samples().partition_point(|sample| sample.offset < offset);
            self.until_offset = times.samples().get(next).map_or(u64::MAX, |sample| sample.offset);
        }
        self.written
    }
}

fn entry(seen: &Seen<'_>, slots: &SlotSet, written: Written) -> Entry {
    let args = (0..).map_while(|number| seen.command.arg(number));
    Entry {
        written: Span::of(written),
        slots: slots.clone(),
        history: seen.segment.history.clone(),
        offset: seen.command.start.0,
        end: seen.command.end.0,
        before: seen.cut_before,
        database: seen.database,
        in_transaction: seen.in_transaction,
        arg_count: seen.command.arg_count,
        args: args.map(|arg| arg.escape_ascii().to_string()).collect(),
        text: text_of(seen),
    }
}

/// Whether a command takes away much at once, or puts something in the place of something else.
fn is_destructive(command: &StreamCommand<'_>) -> bool {
    let second = |word: &str| command.arg(1).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()));
    let whole = ["FLUSHALL", "FLUSHDB", "SWAPDB", "RENAME", "TRIMSLOTS", "SFLUSH"];
    whole.iter().any(|name| command.is(name))
        || ((command.is("DEL") || command.is("UNLINK")) && command.arg_count > MANY_KEYS)
        || (command.is("FUNCTION") && (second("FLUSH") || second("DELETE")))
        || (command.is("CLUSTER") && second("FLUSHSLOT"))
}

/// Whether the first argument is a key, as far as names tell.
fn names_a_key(command: &StreamCommand<'_>) -> bool {
    let none = [
        "MULTI",
        "EXEC",
        "SELECT",
        "PING",
        "REPLCONF",
        "PUBLISH",
        "SPUBLISH",
        "FUNCTION",
        "SCRIPT",
        "CLUSTER",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB",
        "EVAL",
        "EVALSHA",
        "XGROUP",
        "TRIMSLOTS",
        "SFLUSH",
    ];
    !none.iter().any(|name| command.is(name))
}

impl ShardSurvey {
    fn count(&mut self, seen: &Seen<'_>, written: Written) {
        self.commands += 1;
        self.bytes = self.bytes.saturating_add(length(&seen.command));
        if let Some(span) = Span::of(written) {
            let whole = self.written.get_or_insert(span);
            whole.from = whole.from.or(span.from);
            whole.until = span.until.or(whole.until);
        }
    }
}

fn length(command: &StreamCommand<'_>) -> u64 {
    command.end.0.saturating_sub(command.start.0).saturating_add(1)
}

#[derive(Default)]
struct Tally {
    names: BTreeMap<Vec<u8>, (u64, u64)>,
    keys: FrequentKeys,
    destructive: VecDeque<Entry>,
    destructive_count: u64,
}

impl Tally {
    fn count(&mut self, seen: &Seen<'_>) {
        let name = seen.command.arg(0).unwrap_or_default().to_ascii_uppercase();
        let known = self.names.len() < MOST_NAMES || self.names.contains_key(&name);
        let row = self.names.entry(if known { name } else { b"(OTHERS)".to_vec() }).or_default();
        row.0 += 1;
        row.1 = row.1.saturating_add(length(&seen.command));
        if let Some(key) = seen.command.arg(1).filter(|_| names_a_key(&seen.command)) {
            self.keys.count(key);
        }
    }

    fn keep(&mut self, entry: Entry) {
        self.destructive_count += 1;
        self.destructive.push_back(entry);
        if self.destructive.len() > KEPT_DESTRUCTIVE * 2 {
            self.trim();
        }
    }

    /// Keeps the newest. Shards come one after the other, so the newest are not simply the last.
    fn trim(&mut self) {
        let time = |entry: &Entry| entry.written.and_then(|span| span.until.or(span.from));
        self.destructive.make_contiguous().sort_by_key(time);
        let surplus = self.destructive.len().saturating_sub(KEPT_DESTRUCTIVE);
        self.destructive.drain(..surplus);
    }

    fn finish(mut self, shards: Vec<ShardSurvey>) -> Survey {
        self.trim();
        let name = |name: &[u8]| name.escape_ascii().to_string();
        let rows = self.names.iter();
        let mut commands: Vec<CommandCount> =
            rows.map(|(bytes, row)| CommandCount { name: name(bytes), count: row.0, bytes: row.1 }).collect();
        commands.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        Survey {
            destructive: self.destructive.into(),
            destructive_count: self.destructive_count,
            commands,
            keys: self.keys.finish(),
            shards,
        }
    }
}

/// The keys that occur most, after Misra and Gries: of a key that occurs more often than one in [`KEPT_KEYS`], account is kept.
#[derive(Default)]
struct FrequentKeys {
    counts: HashMap<Vec<u8>, u64>,
}

impl FrequentKeys {
    fn count(&mut self, key: &[u8]) {
        if let Some(count) = self.counts.get_mut(key) {
            *count += 1;
        } else if self.counts.len() < KEPT_KEYS {
            self.counts.insert(key.to_vec(), 1);
        } else {
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
        }
    }

    fn finish(self) -> Vec<KeyCount> {
        let mut keys: Vec<(Vec<u8>, u64)> = self.counts.into_iter().collect();
        keys.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let text = |key: &[u8]| {
            let rest = if key.len() >= KEPT_BYTES { "…" } else { "" };
            format!("{}{rest}", key.escape_ascii())
        };
        keys.iter()
            .take(SHOWN_KEYS)
            .map(|(key, at_least)| KeyCount { key: text(key), at_least: *at_least })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_keys_are_found_in_bounded_memory() {
        let mut keys = FrequentKeys::default();
        for number in 0..100_000_u32 {
            keys.count(format!("once:{number}").as_bytes());
            if number % 10 == 0 {
                keys.count(b"often");
            }
            assert!(keys.counts.len() <= KEPT_KEYS);
        }
        let found = keys.finish();
        assert_eq!(found[0].key, "often");
        assert!((9_000..=10_000).contains(&found[0].at_least), "{found:?}");
    }
}
