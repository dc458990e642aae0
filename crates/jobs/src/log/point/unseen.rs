//! Slots that changed hands behind the last look at the cluster: nobody wrote that down, but the log shows it.
//!
//! A server refuses clients' writes to slots that it neither serves nor is given. A write to another slot says that the shard has got it since. Its
//! keys would die with the shard's former slots: a node does not keep keys of a slot that it neither serves nor imports.

use std::collections::BTreeSet;

use jiff::Timestamp;
use slotkeep_format::ShardState;
use slotkeep_model::{ReplOffset, Slot, SlotSet};
use slotkeep_wire::stream::{Splitter, StreamStart, writes_outside};

use super::moment::Planned;
use super::{CLOCKS_APART_MS, Past, Piece, Place, Times};
use crate::log::read::damaged;
use crate::log::windows::restorable;
use crate::{Error, ErrorKind, Result};

/// What shows that a shard has got slots.
#[derive(Default)]
struct Signs {
    slots: BTreeSet<Slot>,
    /// The offset of the first such write.
    first: Option<u64>,
}

/// Refuses a moment at which some shard had been written to in slots that the newest look does not show it with.
pub(super) async fn check_unmoved(past: &Past, moment_ms: i64, planned: &[Planned<'_>]) -> Result<()> {
    let Some(newest) = past.topologies.last().filter(|newest| newest.cluster_mode) else { return Ok(()) };
    let seen_ms = newest.seen_at.as_millisecond();
    if moment_ms < seen_ms {
        return Ok(());
    }
    let mut moved = BTreeSet::new();
    let mut settled_ms = i64::MAX;
    for shard in planned {
        let Some(seen) = seen_offset(past, shard, seen_ms).await? else { continue };
        let log = if seen < shard.cut.offset { shard.path.pieces(seen, shard.cut.offset) } else { vec![] };
        let mut signs = signs(past, &log, &own(shard.state)).await?;
        let Some(first) = signs.first else { continue };
        moved.append(&mut signs.slots);
        let before = Times::on(past, &shard.path).around_offset(first).await?.before;
        let before_ms = before.map_or(seen_ms, |before| before.until_ms);
        settled_ms = settled_ms.min(before_ms.saturating_sub(CLOCKS_APART_MS));
    }
    if moved.is_empty() {
        return Ok(());
    }
    let moved: SlotSet = moved.into_iter().collect();
    let what = format!(
        "slots {moved} changed hands, or began to, after the cluster was looked at last, at {}: which shard served them at {} is not known",
        newest.seen_at,
        text(moment_ms)
    );
    let hint = match last_offered(past, settled_ms).await? {
        Some(ms) => format!("restore to {0} or earlier (--at {0})", text(ms)),
        None => "restore a backup (--backup, `slotkeep list`)".to_owned(),
    };
    Err(Error::new(ErrorKind::Gap, what).hint(hint))
}

fn text(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default()
}

/// The slots that a shard may be written to in.
fn own(state: &ShardState) -> SlotSet {
    let sets = [&state.slots, &state.importing, &state.unfollowed];
    sets.into_iter().flat_map(SlotSet::ranges).copied().collect()
}

/// A place of a shard that was certainly written behind the newest look or is its own, so that what it gave away before is not taken for a sign.
async fn seen_offset(past: &Past, shard: &Planned<'_>, seen_ms: i64) -> Result<Option<u64>> {
    let told = shard.state.history.clone().zip(shard.state.offset);
    let told = told.map(|(history, offset)| Place { history, offset });
    if let Some(place) = told.filter(|place| shard.path.holds(place)) {
        return Ok(Some(place.offset));
    }
    let around = Times::on(past, &shard.path).around(seen_ms.saturating_add(CLOCKS_APART_MS)).await?;
    Ok(around.after.map(|sample| sample.offset))
}

async fn signs(past: &Past, log: &[Piece], own: &SlotSet) -> Result<Signs> {
    let mut signs = Signs::default();
    for (entry, wanted) in log.iter().flat_map(|piece| past.segments_for(piece)) {
        match signs_in(past, &entry, &wanted, own, &mut signs).await {
            // It may lie before the base. A restore that needs it finds out by itself.
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            result => result?,
        }
    }
    Ok(signs)
}

async fn signs_in(
    past: &Past,
    entry: &slotkeep_repo::SegmentEntry,
    wanted: &std::ops::Range<u64>,
    own: &SlotSet,
    signs: &mut Signs,
) -> Result<()> {
    let mut reader = past.repository.read_segment(entry).await?;
    let offset = ReplOffset(entry.start.saturating_sub(1));
    let mut splitter = Splitter::new(StreamStart { offset, db: None, in_transaction: false });
    while let Some(bytes) = reader.next().await? {
        let mut input = bytes.as_slice();
        while let Some(command) =
            splitter.next(&mut input).map_err(|error| damaged(entry, &error.to_string()))?
        {
            if command.start.0 < wanted.start || command.end.0 >= wanted.end {
                continue;
            }
            if let Some(slot) = writes_outside(&command, own) {
                signs.slots.insert(slot);
                signs.first = Some(signs.first.map_or(command.start.0, |first| first.min(command.start.0)));
            }
        }
    }
    Ok(())
}

/// The last moment up to that one that is offered.
async fn last_offered(past: &Past, until_ms: i64) -> Result<Option<i64>> {
    let spans = restorable(past).await?.moments;
    let ends = spans.iter().filter(|span| span.from.as_millisecond() <= until_ms);
    Ok(ends.map(|span| span.to.as_millisecond().min(until_ms)).max())
}
