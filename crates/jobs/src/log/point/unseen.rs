//! Slots that changed hands behind the last look at the cluster: nobody wrote that down, but the log shows it.
//!
//! A server refuses clients' writes to slots that it neither serves nor is given. A write to another slot says that the shard has got it since. Its
//! keys would die with the shard's former slots: a node does not keep keys of a slot that it neither serves nor imports.

use std::collections::BTreeSet;

use jiff::Timestamp;
use slotkeep_format::ShardState;
use slotkeep_model::{ReplOffset, Slot, SlotSet};
use slotkeep_wire::stream::{Outside, Splitter, StreamStart};

use super::moment::Planned;
use super::{CLOCKS_APART_MS, Past, Piece, Place, Times};
use crate::log::read::damaged;
use crate::log::windows::restorable;
use crate::{Error, ErrorKind, Result};

/// Writes to slots that a shard was not seen with.
#[derive(Default)]
struct Writes {
    slots: BTreeSet<Slot>,
    /// The offset of the first of them.
    first: Option<u64>,
}

/// What shows that a shard has got slots.
#[derive(Default)]
struct Signs {
    shown: Writes,
    /// What an atomic migration under way has brought. It is the old shard's until the slots are granted, and nobody's if they never are.
    coming: Option<Writes>,
}

impl Signs {
    fn take(&mut self, said: Outside, offset: u64) {
        match said {
            Outside::Write(slot) => {
                let writes = self.coming.as_mut().unwrap_or(&mut self.shown);
                writes.slots.insert(slot);
                writes.first.get_or_insert(offset);
            }
            Outside::MigrationBegins => {
                self.coming.get_or_insert_default();
            }
            Outside::MigrationGranted => {
                let granted = self.coming.take().unwrap_or_default();
                self.shown.slots.extend(granted.slots);
                self.shown.first = self.shown.first.into_iter().chain(granted.first).min();
            }
            Outside::MigrationEnds => self.coming = None,
        }
    }
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
        let mut shown = signs(past, &log, &own(shard.state)).await?.shown;
        let Some(first) = shown.first else { continue };
        moved.append(&mut shown.slots);
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
            if let Some(said) = Outside::of(&command, own) {
                signs.take(said, command.start.0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_atomic_migration_brings_counts_once_it_is_granted() {
        let slot = |number: u16| Outside::Write(Slot::new(number).unwrap());
        let (begins, granted, ends) =
            (Outside::MigrationBegins, Outside::MigrationGranted, Outside::MigrationEnds);
        let shown = |said: &[Outside]| {
            let mut signs = Signs::default();
            for (offset, said) in said.iter().enumerate() {
                signs.take(*said, offset as u64);
            }
            (signs.shown.slots.iter().map(|slot| slot.number()).collect::<Vec<_>>(), signs.shown.first)
        };
        assert_eq!(shown(&[slot(2), slot(1)]), (vec![1, 2], Some(0)));
        assert_eq!(shown(&[begins, slot(1)]), (vec![], None), "under way");
        assert_eq!(shown(&[begins, slot(1), ends]), (vec![], None), "broken off");
        assert_eq!(shown(&[begins, slot(1), granted, ends]), (vec![1], Some(1)));
        assert_eq!(shown(&[begins, slot(1), granted, slot(1)]), (vec![1], Some(1)));
        assert_eq!(shown(&[begins, slot(1), ends, slot(3)]), (vec![3], Some(3)));
    }
}
