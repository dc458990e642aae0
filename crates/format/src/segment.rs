//! Segments: pieces of a replication stream, byte for byte, each with a record of what it is.
//!
//! ```text
//!  …  the stream's bytes, framed as every `*.zst` object, its seek table included
//!  4  0x184D2A5D                      skippable frame, which `zstd -d` passes over
//!  4  length of what follows
//!  …  the record, JSON
//! 32  BLAKE3 of the record
//!  4  length of the record
//!  8  "SLOTKSEG"
//! ```
//!
//! Invariants: a segment begins right behind a command and ends with one, outside transactions at both ends, so that a restore can
//! end at every segment's end; its record names the BLAKE3 of all stored bytes before it, so a segment proves itself. Segments
//! are committed by being there: they are complete or not visible.

use serde::{Deserialize, Serialize};
use slotkeep_model::{NodeAddr, ReplId};
use thiserror::Error;

use crate::json::{parse_versioned, text};
use crate::manifest::{ManifestError, ServerRecord};
use crate::timeline::Timeline;

/// The newest format of segments that this code writes and reads.
pub const SEGMENT_VERSION: u32 = 1;

/// What a segment ends with: the length of its record and the mark.
pub const SEGMENT_FOOTER_BYTES: u64 = 12;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5D;
const MARK: [u8; 8] = *b"SLOTKSEG";
const HASH_BYTES: u64 = 32;
/// Skippable magic and length, hash, footer.
const AROUND_RECORD_BYTES: u64 = 8 + HASH_BYTES + SEGMENT_FOOTER_BYTES;
/// The longest record that is believed: a day of samples.
const MOST_RECORD_BYTES: u64 = 16 << 20;

/// What is wrong with a segment.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// Its end is not that of a segment.
    #[error("{0}")]
    Footer(&'static str),
    /// Its record can't be read.
    #[error("its record is {0}")]
    Record(#[from] ManifestError),
    /// Its record contradicts itself.
    #[error("its record contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// What a segment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// [`SEGMENT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The history that the bytes belong to.
    #[serde(with = "text")]
    pub history: ReplId,
    /// The offset of its first byte.
    pub start: u64,
    /// The offset behind its last byte.
    pub end: u64,
    /// The database that is selected before its first command; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
    /// How many commands it holds.
    pub commands: u64,
    /// The node that it came from.
    #[serde(with = "text")]
    pub source: NodeAddr,
    /// What that node ran.
    pub server: ServerRecord,
    /// The primary's clock and offset while the bytes were received.
    pub times: Timeline,
    /// Length of the stored bytes before the record.
    pub stored_bytes: u64,
    /// BLAKE3 of the stored bytes before the record, in hex.
    pub blake3: String,
}

impl SegmentRecord {
    /// How many bytes of the stream it holds.
    pub const fn raw_bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The bytes that complete the segment's object, behind its frames and seek table.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        Self::render_json(&self.to_json()?)
    }

    /// The record alone.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// The bytes that complete a segment whose record is `json`: [`SegmentRecord::to_json`], to which a signature may have been added.
    pub fn render_json(json: &[u8]) -> Result<Vec<u8>, ManifestError> {
        let too_long = || ManifestError::Contradiction("the record is too long".to_owned());
        let length = u32::try_from(json.len()).map_err(|_| too_long())?;
        let content = u32::try_from(json.len() as u64 + HASH_BYTES + SEGMENT_FOOTER_BYTES);
        let mut out = Vec::new();
        out.extend(SKIPPABLE_MAGIC.to_le_bytes());
        out.extend(content.map_err(|_| too_long())?.to_le_bytes());
        out.extend(json);
        out.extend(blake3::hash(json).as_bytes());
        out.extend(length.to_le_bytes());
        out.extend(MARK);
        Ok(out)
    }

    /// How many bytes at the end of an object of `object_bytes` are its record with what stands around it, told from its last
    /// [`SEGMENT_FOOTER_BYTES`] bytes.
    pub fn stored_tail_bytes(footer: &[u8], object_bytes: u64) -> Result<u64, SegmentError> {
        let Some((length, mark)) = footer.split_first_chunk::<4>() else {
            return Err(SegmentError::Footer("it is too short to be a segment"));
        };
        if mark != MARK {
            return Err(SegmentError::Footer("it does not end as a segment does"));
        }
        let bytes = u64::from(u32::from_le_bytes(*length)).saturating_add(AROUND_RECORD_BYTES);
        if bytes > object_bytes || bytes > MOST_RECORD_BYTES {
            return Err(SegmentError::Footer("its record is longer than it can be"));
        }
        Ok(bytes)
    }

    /// Reads and checks the record from `tail`, the last bytes of an object of `object_bytes`, as many as
    /// [`SegmentRecord::stored_tail_bytes`] says.
    pub fn parse(tail: &[u8], object_bytes: u64) -> Result<Self, SegmentError> {
        let record: Self = parse_versioned(Self::json(tail)?, SEGMENT_VERSION)?;
        record.check(object_bytes.saturating_sub(tail.len() as u64))?;
        Ok(record)
    }

    /// The record's JSON as it was written, from the same bytes.
    pub fn json(tail: &[u8]) -> Result<&[u8], SegmentError> {
        let wrong = SegmentError::Footer;
        let (magic, rest) = tail.split_first_chunk::<4>().ok_or(wrong("it is cut short"))?;
        let (content, rest) = rest.split_first_chunk::<4>().ok_or(wrong("it is cut short"))?;
        if u32::from_le_bytes(*magic) != SKIPPABLE_MAGIC {
            return Err(wrong("its record does not start where it should"));
        }
        if u64::from(u32::from_le_bytes(*content)) != rest.len() as u64 {
            return Err(wrong("the length of its record is not what its end says"));
        }
        let behind = usize::try_from(HASH_BYTES + SEGMENT_FOOTER_BYTES).unwrap_or(usize::MAX);
        let split = rest.len().checked_sub(behind).and_then(|at| rest.split_at_checked(at));
        let (json, after) = split.ok_or(wrong("it is cut short"))?;
        if after.first_chunk::<32>() != Some(blake3::hash(json).as_bytes()) {
            return Err(wrong("its record is not what was written"));
        }
        Ok(json)
    }

    fn check(&self, before: u64) -> Result<(), SegmentError> {
        let wrong = SegmentError::Contradiction;
        if self.start == 0 || self.end <= self.start {
            return Err(wrong("it holds no bytes"));
        }
        if self.stored_bytes != before {
            return Err(wrong("its length is not that of the bytes before it"));
        }
        let samples = self.times.samples();
        let first = samples.first().is_none_or(|sample| sample.offset.saturating_add(1) >= self.start);
        let last = samples.last().is_none_or(|sample| sample.offset < self.end);
        if !first || !last {
            return Err(wrong("it has time samples of other bytes"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ProductRecord;
    use crate::timeline::TimeSample;

    fn record() -> SegmentRecord {
        let mut times = Timeline::default();
        assert!(times.push(TimeSample {
            from_ms: 1_700_000_000_000,
            until_ms: 1_700_000_000_001,
            offset: 9
        }));
        assert!(times.push(TimeSample {
            from_ms: 1_700_000_000_100,
            until_ms: 1_700_000_000_100,
            offset: 29
        }));
        SegmentRecord {
            format_version: SEGMENT_VERSION,
            history: "a".repeat(40).parse().unwrap(),
            start: 10,
            end: 30,
            database: Some(0),
            commands: 2,
            source: "127.0.0.1:7000".parse().unwrap(),
            server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
            times,
            stored_bytes: 5,
            blake3: blake3::hash(b"12345").to_hex().to_string(),
        }
    }

    fn read(object: &[u8]) -> Result<SegmentRecord, SegmentError> {
        let bytes = object.len() as u64;
        let footer = &object[object.len().saturating_sub(12)..];
        let tail = usize::try_from(SegmentRecord::stored_tail_bytes(footer, bytes)?).unwrap();
        SegmentRecord::parse(&object[object.len() - tail..], bytes)
    }

    fn object(record: &SegmentRecord) -> Vec<u8> {
        let mut object = b"12345".to_vec();
        object.extend(record.render().unwrap());
        object
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        assert_eq!(read(&object(&record())).unwrap(), record());
    }

    #[test]
    fn damage_anywhere_in_the_record_is_an_error() {
        let whole = object(&record());
        for bit in 5 * 8..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let spoilt: [fn(&mut SegmentRecord); 4] = [
            |record| record.end = record.start,
            |record| record.stored_bytes += 1,
            |record| record.start = 20,
            |record| record.end = 29,
        ];
        for spoil in spoilt {
            let mut record = record();
            spoil(&mut record);
            assert!(matches!(read(&object(&record)), Err(SegmentError::Contradiction(_))));
        }
    }

    #[test]
    fn stock_zstd_gives_the_stream_back() {
        let raw = b"*1\r\n$4\r\nPING\r\n";
        let mut frames = crate::FrameWriter::new().unwrap();
        let mut stored = frames.frame(raw).unwrap();
        stored.extend(frames.finish().unwrap());
        let mut record = record();
        record.stored_bytes = stored.len() as u64;
        stored.extend(record.render().unwrap());
        assert_eq!(zstd::stream::decode_all(stored.as_slice()).unwrap(), raw);
        assert!(read(&stored).is_ok());
    }
}
