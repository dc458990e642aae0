//! Places that the user names: when they were, and whether a restore can end there.

use jiff::Timestamp;
use slotkeep_format::manifest::ShardRecord;
use slotkeep_model::ReplOffset;
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::{Past, Path, Place, Times};
use crate::log::read::damaged;
use crate::log::times::untold;
use crate::{Error, ErrorKind, Result};

/// The base that was taken at that very place, if there is one.
pub(super) fn base_at<'p>(past: &'p Past, place: &Place) -> Option<&'p ShardRecord> {
    let base = past.chain.bases().iter().find(|base| base.place == *place)?;
    past.base(base.number).map(|(_, record)| record)
}

/// When the last of those bytes was written, in ms since 1970.
pub(super) async fn moment_of(past: &Past, places: &[Place]) -> Result<i64> {
    let mut latest: Option<i64> = None;
    for place in places {
        let base = base_at(past, place);
        if base.is_none()
            && past.chain.parent(&place.history).is_none()
            && past.chain.runs(&place.history).is_empty()
        {
            past.expect_way_to(&past.chain.path(&place.history))?;
            let what = format!("there is no log of a history {}", place.history);
            return Err(
                Error::new(ErrorKind::NotFound, what).hint("`slotkeep list --history` shows the histories")
            );
        }
        let written = Times::on(past, &past.chain.path(&place.history)).written(place.offset).await?;
        // What a base holds was written before the server told its time.
        let taken = base.and_then(|record| record.server_time).map(Timestamp::as_millisecond);
        latest = latest.max(written.until_ms.or(taken).or(written.from_ms));
    }
    latest.ok_or_else(untold)
}

/// Refuses an offset that is not the end of a command outside transactions, and names those around it.
pub(super) async fn check_cut(past: &Past, path: &Path, offset: u64) -> Result<()> {
    let segments = past.segments_on(path);
    let Some((entry, _)) = segments.iter().find(|(_, part)| part.contains(&offset)) else {
        // At a base, or where nothing is: the way there will tell.
        return Ok(());
    };
    let mut reader = past.repository.read_segment(entry).await?;
    let start =
        StreamStart { offset: ReplOffset(entry.start.saturating_sub(1)), db: None, in_transaction: false };
    let mut splitter = Splitter::new(start);
    let mut before = entry.start.saturating_sub(1);
    while let Some(bytes) = reader.next().await? {
        let mut input = bytes.as_slice();
        while splitter.next(&mut input).map_err(|error| damaged(entry, &error.to_string()))?.is_some() {
            match splitter.safe_cut().0 {
                cut if cut == offset => return Ok(()),
                cut if cut < offset => before = cut,
                cut => return Err(no_cut(offset, before, cut)),
            }
        }
    }
    Err(no_cut(offset, before, entry.end.saturating_sub(1)))
}

fn no_cut(offset: u64, before: u64, after: u64) -> Error {
    let what = format!("a restore can't end at offset {offset}: it is inside a command or a transaction");
    Error::new(ErrorKind::Usage, what)
        .hint(format!("the nearest offsets at which it can: {before} and {after}"))
}
