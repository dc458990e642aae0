//! A shard's base and log, for whoever applies them: an engine, or a new node that follows.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use slotkeep_format::manifest::ShardRecord;
use slotkeep_format::{TimeSample, Timeline};
use slotkeep_model::ReplOffset;
use slotkeep_repo::Repository;

use super::chain::Piece;
use super::past::Past;
use super::point::ShardPoint;
use super::read::LogReader;
use crate::link::{Feed, Snapshot, TimeOf};
use crate::source::{ByteSource, ObjectSource};
use crate::{Error, ErrorKind, Result};

/// The log as a source of bytes; without a reader it has none.
pub struct LogSource(Option<LogReader>);

impl ByteSource for LogSource {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(reader) = &mut self.0 else { return Ok(None) };
        Ok(reader.next().await?.map(|chunk| Bytes::from(chunk.bytes)))
    }
}

/// What brings one shard to its point.
pub async fn feed(
    repository: &Repository,
    past: Option<&Arc<Past>>,
    record: &ShardRecord,
    point: &ShardPoint,
) -> Result<Feed<ObjectSource, LogSource>> {
    let base = &record.base.rdb;
    let log = match past {
        _ if point.log_bytes == 0 => None,
        Some(past) => Some(LogReader::new(Arc::clone(past), &point.log)?),
        None => return Err(Error::new(ErrorKind::Failed, "a log is to be applied and none was opened")),
    };
    Ok(Feed {
        base: Snapshot {
            source: ObjectSource(repository.framed(base).await?),
            len_bytes: base.raw_bytes,
            // What the follower has in the end belongs to the history of the cut.
            history: point.cut.history.clone(),
            offset: ReplOffset(record.offset),
        },
        log: LogSource(log),
        // Heartbeats alone are not applied: what is given ends with the base.
        cut: ReplOffset(if point.log_bytes == 0 { record.offset } else { point.cut.offset }),
    })
}

/// Gives the server's time at an offset of those pieces, by the samples of their segments; `at`, the moment that they lead to, where
/// there is none.
pub async fn time_of(past: &Past, pieces: &[Piece], at: Option<Timestamp>) -> Result<TimeOf> {
    let mut times = Timeline::default();
    for piece in pieces {
        for (entry, part) in past.segments_for(piece) {
            let record = past.record(&entry).await?;
            let inside = |sample: &&TimeSample| sample.offset < part.end;
            record.times.samples().iter().filter(inside).for_each(|sample| {
                // A clock that another server had ahead contradicts the samples before and is left out.
                times.push(*sample);
            });
        }
    }
    let at_ms = at.and_then(|at| u64::try_from(at.as_millisecond()).ok());
    if times.samples().is_empty() && at_ms.is_none() {
        return Err(Error::new(
            ErrorKind::Gap,
            "the log's expiry times are relative (Redis before 7.0), and nothing tells when it was written",
        ));
    }
    Ok(Box::new(move |offset: ReplOffset| {
        let (from, until) = times.produced(offset.0);
        let sampled = until.or(from).and_then(|ms| u64::try_from(ms).ok());
        sampled.or(at_ms).unwrap_or_default()
    }))
}
