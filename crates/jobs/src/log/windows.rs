//! Which moments can be restored, and the graph of histories behind that.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::TimeSample;
use slotkeep_model::{ReplId, SlotSet};
use slotkeep_repo::RepoError;

use super::chain::{Path, Piece, Place, Window, as_text};
use super::past::Past;
use super::point::{Span, View, settled_within};
use super::times::{Times, Written};
use crate::Result;

/// Which moments of a cluster can be restored.
#[derive(Debug, Default, Serialize)]
pub struct Restorable {
    /// Spans in which every shard can be restored, by the servers' clocks, oldest first.
    pub moments: Vec<Moments>,
    /// The shards' own windows.
    pub shards: Vec<ShardWindow>,
}

/// A span of moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Moments {
    /// The first one.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
}

impl Moments {
    /// Whether a later span begins within this one or just behind it: times are in whole milliseconds.
    fn touches(&self, later: &Self) -> bool {
        later.from.as_millisecond() <= self.to.as_millisecond().saturating_add(1)
    }
}

/// A part of one shard's log that a base leads into.
#[derive(Clone, Debug, Serialize)]
pub struct ShardWindow {
    /// The shard's slots, as they were seen last.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// The history at its end.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The first place: a base.
    pub from: Place,
    /// The last place.
    pub to: Place,
    /// The moments that it covers; absent if no time samples lie in it.
    pub moments: Option<Moments>,
    /// How far apart the time samples in its newest segment are while writes come, in ms: of a moment, at most writes of so long
    /// before it may be missing.
    pub uncertainty_ms: Option<u64>,
    /// The record that can't be read and that says what leads to the first place: what is before it may be kept, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread_before: Option<String>,
    /// A record that can't be read and by which the shard may have left this log before its last place: its moments are not among those of all shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread_behind: Option<String>,
}

/// Finds the windows of all shards and what they have in common.
pub async fn restorable(past: &Past) -> Result<Restorable> {
    let mut lines: BTreeMap<ReplId, Vec<ShardWindow>> = BTreeMap::new();
    for tip in past.chain.tips() {
        let path = past.chain.path(tip);
        if !past.segments_on(&path).is_empty() || !past.files.ends(tip).is_empty() {
            lines.insert(tip.clone(), line_windows(past, tip, &path).await?);
        }
    }
    let moments = common(past, &lines);
    // A line that was left shares with the one that went on what lies before.
    let mut known = BTreeSet::new();
    let in_order = past.chain.tips().into_iter().filter_map(|tip| lines.remove(tip)).flatten();
    let mut shards: Vec<ShardWindow> =
        in_order.filter(|window| known.insert((window.from.clone(), window.to.clone()))).collect();
    shards.sort_by_key(|window| (window.slots.ranges().first().copied(), window.from.offset));
    Ok(Restorable { moments, shards })
}

async fn line_windows(past: &Past, tip: &ReplId, path: &Path) -> Result<Vec<ShardWindow>> {
    let times = Times::on(past, path);
    let slots = past.slots_of(tip).cloned().unwrap_or_default();
    let object = |error: Option<&RepoError>| error.map(|error| error.on.clone());
    let mut unread_before = object(past.unread_before(path));
    let unread_behind = object(past.unread_behind(tip));
    let mut windows = Vec::new();
    for Window { from, to } in past.chain.windows(path) {
        let inside = |sample: &TimeSample| from <= sample.offset && sample.offset <= to;
        let first = times.first_with(from).await?.filter(inside);
        let last = times.last_within(to).await?.filter(inside);
        let place = |offset: u64| past.chain.place_or_base(path, offset);
        let (Some(from_place), Some(to_place)) = (place(from), place(to)) else { continue };
        windows.push(ShardWindow {
            slots: slots.clone(),
            history: tip.clone(),
            uncertainty_ms: step_before(past, path, to).await?,
            from: from_place,
            to: to_place,
            moments: first.zip(last).and_then(|(first, last)| moments(first.until_ms, last.until_ms)),
            unread_before: unread_before.take(),
            unread_behind: unread_behind.clone(),
        });
    }
    Ok(windows)
}

fn moments(from_ms: i64, to_ms: i64) -> Option<Moments> {
    let moment = |ms: i64| Timestamp::from_millisecond(ms).ok();
    Some(Moments { from: moment(from_ms)?, to: moment(to_ms)? })
}

/// The longest step between samples between which bytes were written, in the segment that holds that offset.
async fn step_before(past: &Past, path: &Path, offset: u64) -> Result<Option<u64>> {
    let segments = past.segments_on(path);
    let Some((entry, _)) = segments.iter().find(|(_, part)| part.contains(&offset)) else { return Ok(None) };
    let record = past.record(entry).await?;
    let steps = record.times.samples().windows(2).filter_map(|pair| match pair {
        [before, after] if before.offset < after.offset => {
            u64::try_from(after.until_ms.saturating_sub(before.from_ms)).ok()
        }
        _ => None,
    });
    Ok(steps.max())
}

/// The moments at which every shard of the cluster as it was then can be restored, and at which it is known how it was.
fn common(past: &Past, lines: &BTreeMap<ReplId, Vec<ShardWindow>>) -> Vec<Moments> {
    let mut all: Vec<Moments> = Vec::new();
    for (view, valid) in View::all(past) {
        // Before slots are assigned there is nothing to restore.
        let mut spans = if view.shards.is_empty() { vec![] } else { vec![valid] };
        for state in &view.shards {
            let mut tips: Vec<ReplId> = Vec::new();
            if let Ok(history) = View::history_of(past, state)
                && past.unread_behind(&history).is_none()
            {
                tips.extend(past.files.like(&history).into_iter().cloned());
                tips.push(past.chain.main_tip(&history));
            }
            let own = tips.iter().filter_map(|tip| lines.get(tip)).flatten();
            let own: Vec<Moments> = own.filter_map(|window| window.moments).collect();
            spans = intersect(&spans, &own);
        }
        for span in spans {
            match all.last_mut() {
                Some(last) if last.touches(&span) => last.to = last.to.max(span.to),
                _ => all.push(span),
            }
        }
    }
    settled_within(&past.topologies, &past.unread_looks, all)
}

fn intersect(one: &[Moments], other: &[Moments]) -> Vec<Moments> {
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    let both = pairs.map(|(a, b)| Moments { from: a.from.max(b.from), to: a.to.min(b.to) });
    let mut spans: Vec<Moments> = both.filter(|span| span.from <= span.to).collect();
    spans.sort_by_key(|span| span.from);
    spans
}

/// A history and what there is of it.
#[derive(Debug, Serialize)]
pub struct HistoryNode {
    /// The history.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The slots of its shard.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// Where it comes from: the last byte that it has in common with its parent.
    pub parent: Option<Place>,
    /// The record that says so, if it can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
    /// Its bases.
    pub bases: Vec<NodeBase>,
    /// What there is of its log, without the tail.
    pub log: Vec<NodeLog>,
    /// Writes behind the fork to what followed, which are not part of it.
    pub divergent: Option<NodeLog>,
}

/// A base of a history.
#[derive(Debug, Serialize)]
pub struct NodeBase {
    /// The last byte that it holds.
    pub offset: u64,
    /// The backup that it belongs to; absent if it is in none yet.
    pub backup: Option<String>,
}

/// Bytes of a history's log, without a gap.
#[derive(Debug, Serialize)]
pub struct NodeLog {
    /// The first byte.
    pub first: u64,
    /// The last byte.
    pub last: u64,
    /// When they were written.
    pub written: Option<Span>,
}

/// The graph of histories, each behind the one it comes from.
pub async fn history_graph(past: &Past) -> Result<Vec<HistoryNode>> {
    let roots = past.chain.histories().filter(|history| {
        past.chain
            .parent(history)
            .is_none_or(|parent| !past.chain.histories().any(|known| *known == parent.history))
    });
    let mut roots: Vec<&ReplId> = roots.collect();
    roots.sort_by_key(|root| past.slots_of(root).and_then(|slots| slots.ranges().first().copied()));
    let mut waiting: Vec<&ReplId> = roots.into_iter().rev().collect();
    let mut nodes = Vec::new();
    while let Some(history) = waiting.pop() {
        nodes.push(node(past, history).await?);
        waiting.extend(past.chain.children(history).into_iter().rev());
    }
    Ok(nodes)
}

async fn node(past: &Past, history: &ReplId) -> Result<HistoryNode> {
    let tail = past.chain.divergent_tail(history);
    let limit = tail.as_ref().map_or(u64::MAX, |tail| tail.range.start);
    let times = Times::on(past, &past.chain.path(history));
    let log = async |piece: Piece| {
        let (first, last) = (piece.range.start, piece.range.end.saturating_sub(1));
        let (begun, ended) = (times.written(first).await?, times.written(last).await?);
        let whole =
            Written { from_ms: begun.from_ms.or(begun.until_ms), until_ms: ended.until_ms.or(ended.from_ms) };
        Ok::<_, crate::Error>(NodeLog { first, last, written: Span::of(whole) })
    };
    let mut logs = Vec::new();
    for run in past.chain.runs(history) {
        let range = run.start..run.end.min(limit);
        if range.start < range.end {
            logs.push(log(Piece { history: history.clone(), range }).await?);
        }
    }
    let own = past.chain.bases().iter().filter(|base| base.place.history == *history);
    let bases = own.filter_map(|base| {
        let (manifest, _) = past.base(base.number)?;
        let backup = past.is_listed(base.number).then(|| manifest.id.clone());
        Some(NodeBase { offset: base.place.offset, backup })
    });
    Ok(HistoryNode {
        history: history.clone(),
        slots: past.slots_of(history).cloned().unwrap_or_default(),
        parent: past
            .chain
            .parent(history)
            .map(|parent| Place { history: parent.history.clone(), offset: parent.fork }),
        unread: past.unread.get(history).map(|error| error.on.clone()),
        bases: bases.collect(),
        log: logs,
        divergent: match tail {
            Some(tail) => Some(log(tail).await?),
            None => None,
        },
    })
}
