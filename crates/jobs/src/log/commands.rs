//! The commands of one segment.

use std::ops::{ControlFlow, Range};

use slotkeep_format::SegmentRecord;
use slotkeep_model::ReplOffset;
use slotkeep_repo::SegmentEntry;
use slotkeep_wire::stream::{Splitter, StreamCommand, StreamStart};

use super::past::Past;
use super::read::damaged;
use crate::{Context, Result};

/// A command and what stands around it.
pub(super) struct Seen<'a> {
    pub(super) command: StreamCommand<'a>,
    /// The database that it works on; `None` if that is not known.
    pub(super) database: Option<u32>,
    /// The last place before it at which a restore can end.
    pub(super) cut_before: u64,
    pub(super) in_transaction: bool,
    pub(super) segment: &'a SegmentRecord,
}

/// Visits the commands of a segment that lie in the range that is wanted, until `visit` breaks. Calls `progress` with the bytes of each piece.
pub(super) async fn scan(
    context: &Context,
    past: &Past,
    (entry, wanted): (&SegmentEntry, &Range<u64>),
    mut progress: impl FnMut(u64),
    mut visit: impl FnMut(&Seen<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let mut reader = past.repository.read_segment(entry).await?;
    let segment = reader.record().clone();
    let mut splitter = Splitter::new(StreamStart {
        offset: ReplOffset(entry.start.saturating_sub(1)),
        db: segment.database,
        in_transaction: false,
    });
    while let Some(bytes) = context.unless_stopped(async { Ok(reader.next().await?) }).await? {
        progress(bytes.len() as u64);
        let mut input = bytes.as_slice();
        loop {
            let (cut_before, database) = (splitter.safe_cut().0, splitter.db());
            let in_transaction = splitter.in_transaction();
            let found = splitter.next(&mut input).map_err(|error| damaged(entry, &error.to_string()))?;
            let Some(command) = found else { break };
            if command.start.0 < wanted.start || command.end.0 >= wanted.end {
                continue;
            }
            let seen = Seen { command, database, cut_before, in_transaction, segment: &segment };
            if visit(&seen).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
