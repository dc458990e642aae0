//! The bytes of the log between two places, across segments and histories.
//!
//! Invariants: bytes come in order and without a gap, or reading fails; at most one frame of a segment is held; a segment that was
//! read is read to its end, so that its BLAKE3 has been found right when the reader says that there is no more.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use slotkeep_format::SegmentRecord;
use slotkeep_model::ReplOffset;
use slotkeep_repo::{SegmentEntry, SegmentReader};
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::chain::Piece;
use super::past::Past;
use crate::{Error, ErrorKind, Result};

/// Bytes of the log.
#[derive(Debug)]
pub struct LogChunk {
    /// The offset of the first one.
    pub start: u64,
    /// The bytes; at least one.
    pub bytes: Vec<u8>,
    /// The segment that they are from.
    pub segment: Arc<SegmentRecord>,
}

/// Reads the log.
pub struct LogReader {
    past: Arc<Past>,
    waiting: VecDeque<(SegmentEntry, Range<u64>)>,
    current: Option<Current>,
    /// The next byte to give, and the one behind the last.
    next: u64,
    end: u64,
    /// The database selected before the first byte, once the first chunk was read; `None` if that is not known.
    database: Option<u32>,
    begun: bool,
}

struct Current {
    entry: SegmentEntry,
    reader: SegmentReader,
    segment: Arc<SegmentRecord>,
    part: Range<u64>,
    /// The offset of the reader's next byte.
    at: u64,
    /// Follows the bytes before the first one that is wanted, for the database they select.
    prefix: Option<Splitter>,
}

impl LogReader {
    /// A reader of those bytes, which must follow each other and all be there.
    pub fn new(past: Arc<Past>, pieces: &[Piece]) -> Result<Self> {
        if let Some(gap) = past.chain.first_gap(pieces) {
            let what = format!("the log of history {} lacks the bytes {}", gap.history, bytes_of(&gap.range));
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let next = pieces.first().map_or(0, |piece| piece.range.start);
        let waiting = pieces.iter().flat_map(|piece| past.segments_for(piece)).collect();
        Ok(Self {
            past,
            waiting,
            current: None,
            next,
            end: pieces.last().map_or(next, |piece| piece.range.end),
            database: None,
            begun: false,
        })
    }

    /// The database that is selected before the first byte; `None` before the first chunk was read, or if that is not known.
    pub const fn database(&self) -> Option<u32> {
        self.database
    }

    /// The next bytes, or `None` after the last ones. Not cancel-safe.
    pub async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            if self.current.is_none() && !self.open_next().await? {
                if self.next == self.end {
                    return Ok(None);
                }
                let what = format!("the log ends at offset {} where {} was wanted", self.next, self.end);
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            let Some(current) = &mut self.current else { continue };
            let Some(mut bytes) = current.reader.next().await? else {
                self.current = None;
                continue;
            };
            let start = current.at;
            current.at = start.saturating_add(bytes.len() as u64);
            let wanted = current.part.start.max(start)..current.part.end.min(current.at);
            if let Some(prefix) = &mut current.prefix {
                let before = length(start, wanted.start.min(current.at));
                let failed = follow(prefix, bytes.get(..before).unwrap_or_default());
                failed.map_err(|what| damaged(&current.entry, &what))?;
            }
            if wanted.start >= wanted.end {
                continue;
            }
            if let Some(prefix) = current.prefix.take() {
                self.database = prefix.db();
            }
            if wanted.start != self.next {
                return Err(damaged(
                    &current.entry,
                    &format!("it gives offset {} where {} was wanted", wanted.start, self.next),
                ));
            }
            bytes.truncate(length(start, wanted.end));
            bytes.drain(..length(start, wanted.start));
            self.next = wanted.end;
            return Ok(Some(LogChunk { start: wanted.start, bytes, segment: Arc::clone(&current.segment) }));
        }
    }

    async fn open_next(&mut self) -> Result<bool> {
        let Some((entry, part)) = self.waiting.pop_front() else { return Ok(false) };
        let reader = self.past.repository.read_segment(&entry).await?;
        let segment = Arc::new(reader.record().clone());
        let at = entry.start;
        let prefix = (!self.begun).then(|| {
            Splitter::new(StreamStart {
                offset: ReplOffset(at.saturating_sub(1)),
                db: segment.database,
                in_transaction: false,
            })
        });
        self.begun = true;
        self.current = Some(Current { entry, reader, segment, part, at, prefix });
        Ok(true)
    }
}

/// Passes bytes through a splitter for what it learns from them.
pub(super) fn follow(splitter: &mut Splitter, mut bytes: &[u8]) -> Result<(), String> {
    loop {
        match splitter.next(&mut bytes) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

pub(super) fn damaged(entry: &SegmentEntry, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("segment {} can't be used: {what}", entry.path()))
        .hint("restore to a moment before it, or from a backup after it (`slotkeep list --history`)")
}

fn length(from: u64, until: u64) -> usize {
    usize::try_from(until.saturating_sub(from)).unwrap_or(usize::MAX)
}

/// A range of offsets for people.
pub(super) fn bytes_of(range: &Range<u64>) -> String {
    format!("{} to {}", range.start, range.end.saturating_sub(1))
}
