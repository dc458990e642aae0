//! Whether a log is worth applying.

use slotkeep_model::ReplOffset;
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::{Past, Piece};
use crate::Result;
use crate::log::read::damaged;

/// A log up to so many bytes is read to see whether there is anything in it.
const SMALL_LOG_BYTES: u64 = 256 << 10;

/// Whether there is nothing in a short log that changes a dataset: an idle cluster's log is full of heartbeats.
pub(super) async fn is_idle(past: &Past, log: &[Piece]) -> Result<bool> {
    if log.iter().map(Piece::bytes).sum::<u64>() > SMALL_LOG_BYTES {
        return Ok(false);
    }
    for (entry, wanted) in log.iter().flat_map(|piece| past.segments_for(piece)) {
        let mut reader = past.repository.read_segment(&entry).await?;
        let start = StreamStart {
            offset: ReplOffset(entry.start.saturating_sub(1)),
            db: None,
            in_transaction: false,
        };
        let mut splitter = Splitter::new(start);
        while let Some(bytes) = reader.next().await? {
            let mut input = bytes.as_slice();
            while let Some(command) =
                splitter.next(&mut input).map_err(|error| damaged(&entry, &error.to_string()))?
            {
                let changes = !["PING", "REPLCONF", "SELECT"].iter().any(|name| command.is(name));
                if changes && command.start.0 >= wanted.start && command.end.0 < wanted.end {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
