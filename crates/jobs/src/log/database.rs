//! Which database is selected at a place of the log.
//!
//! A stream says it once, and a replica that passes its primary's stream on does not say it again: a segment may be of one that no command in
//! it selects. It is looked for backwards, up to the nearest base, whose RDB tells (`repl-stream-db`).

use slotkeep_model::ReplOffset;
use slotkeep_repo::SegmentEntry;
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::chain::Place;
use super::past::Past;
use super::read::{damaged, follow};
use crate::Result;
use crate::rdb_head::RdbHead;

/// The database that is selected behind a place; `None` if nothing tells.
pub async fn database_behind(past: &Past, place: &Place) -> Result<Option<u32>> {
    let path = past.chain.path(&place.history);
    let (base, pieces) = match past.chain.route(&path, place.offset) {
        Ok((base, pieces)) => (Some(base), pieces),
        Err(_) => (None, path.pieces(0, place.offset)),
    };
    let segments: Vec<_> = pieces.iter().flat_map(|piece| past.segments_for(piece)).collect();
    let mut next = place.offset.saturating_add(1);
    for (entry, part) in segments.iter().rev() {
        // What was selected before a gap tells nothing.
        if part.end != next {
            return Ok(None);
        }
        if let Some(database) = selected(past, entry, part.end).await? {
            return Ok(Some(database));
        }
        next = part.start;
    }
    match base.and_then(|base| past.base(base.number)) {
        Some((_, shard)) => Ok(RdbHead::read(past.repository(), &shard.base.rdb).await?.database),
        None => Ok(None),
    }
}

/// The database that a segment shows to be selected before a byte of it.
async fn selected(past: &Past, entry: &SegmentEntry, end: u64) -> Result<Option<u32>> {
    let mut reader = past.repository.read_segment(entry).await?;
    let before = ReplOffset(entry.start.saturating_sub(1));
    let start = StreamStart { offset: before, db: reader.record().database, in_transaction: false };
    let mut splitter = Splitter::new(start);
    let mut left = end.saturating_sub(entry.start);
    while let Some(bytes) = reader.next().await? {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        left = left.saturating_sub(wanted as u64);
        follow(&mut splitter, bytes.get(..wanted).unwrap_or_default())
            .map_err(|what| damaged(entry, &what))?;
    }
    Ok(splitter.db())
}
