//! Spool files: what has been received of a stream and is not yet sealed, on the local disk.
//!
//! ```text
//!  1  kind: `H` header, `B` bytes of the stream, `T` time sample
//!  4  length of the payload
//!  8  XXH3-64 of kind, length and payload
//!  …  the payload
//! ```
//!
//! The header is the first record; its payload is JSON. The bytes of all `B` records in their order are the stream from the header's
//! `start` on. A time sample is three numbers of eight bytes: `from_ms`, `until_ms`, `offset`. All numbers are little-endian.
//!
//! Invariants: a record is complete or not there: a file that was cut anywhere, or whose tail was never written, gives the records
//! before that place and nothing else. No record is longer than [`MOST_PAYLOAD_BYTES`], so that a damaged length takes no memory.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use slotkeep_model::{NodeAddr, ReplId, SlotSet};
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use crate::json::{parse_versioned, text};
use crate::lineage::Parent;
use crate::manifest::{ManifestError, ServerRecord};
use crate::timeline::TimeSample;

/// The newest format of spool files that this code writes and reads.
pub const SPOOL_VERSION: u32 = 1;

/// The longest payload of a record.
pub const MOST_PAYLOAD_BYTES: usize = 1 << 20;

const HEAD_BYTES: usize = 13;
const HEADER: u8 = b'H';
const BYTES: u8 = b'B';
const TIME: u8 = b'T';

/// Why the records of a spool file end before the file does.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// A record whose bytes are not those that were written, or that were never all written.
    #[error("the record at byte {at} is not whole")]
    NotWhole {
        /// Where the record begins.
        at: u64,
    },
    /// The header can't be read.
    #[error("its header is {0}")]
    Header(#[from] ManifestError),
}

/// What a spool file holds: everything that its segment will say but what can be told from the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolHeader {
    /// [`SPOOL_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The name under which the repository keeps the cluster.
    pub cluster: String,
    /// The history that the bytes belong to.
    #[serde(with = "text")]
    pub history: ReplId,
    /// Where the history comes from, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The offset of the first byte.
    pub start: u64,
    /// The database that is selected before the first byte; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
    /// The slots of the shard.
    #[serde(with = "text")]
    pub slots: SlotSet,
    /// The node that the bytes come from.
    #[serde(with = "text")]
    pub source: NodeAddr,
    /// What that node runs.
    pub server: ServerRecord,
    /// When the file was begun, by the clock of the machine that wrote it.
    pub begun_at: Timestamp,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolRecord {
    /// The first record of a file.
    Header(Box<SpoolHeader>),
    /// The next bytes of the stream.
    Bytes(Vec<u8>),
    /// A time sample.
    Time(TimeSample),
}

/// Appends the header to `out`.
pub fn encode_header(header: &SpoolHeader, out: &mut Vec<u8>) -> Result<(), ManifestError> {
    let json = serde_json::to_vec(header)?;
    if json.len() > MOST_PAYLOAD_BYTES {
        return Err(ManifestError::Contradiction("the header is too long".to_owned()));
    }
    encode(HEADER, &json, out);
    Ok(())
}

/// Appends bytes of the stream to `out`, in as many records as they need.
pub fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for piece in bytes.chunks(MOST_PAYLOAD_BYTES) {
        encode(BYTES, piece, out);
    }
}

/// What stands before `payload` in a record of the stream's bytes, for whoever writes both without a copy. Nothing if `payload` is longer than
/// [`MOST_PAYLOAD_BYTES`].
pub fn bytes_head(payload: &[u8]) -> Option<[u8; HEAD_BYTES]> {
    (payload.len() <= MOST_PAYLOAD_BYTES).then(|| head(BYTES, payload))
}

/// Appends a time sample to `out`.
pub fn encode_time(sample: &TimeSample, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(24);
    payload.extend(sample.from_ms.to_le_bytes());
    payload.extend(sample.until_ms.to_le_bytes());
    payload.extend(sample.offset.to_le_bytes());
    encode(TIME, &payload, out);
}

/// `payload` is at most [`MOST_PAYLOAD_BYTES`] long.
fn encode(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&head(kind, payload));
    out.extend_from_slice(payload);
}

fn head(kind: u8, payload: &[u8]) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sum = checksum(kind, length, payload).to_le_bytes();
    let mut head = [kind; HEAD_BYTES];
    for (place, byte) in head.iter_mut().skip(1).zip(length.into_iter().chain(sum)) {
        *place = byte;
    }
    head
}

fn checksum(kind: u8, length: [u8; 4], payload: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&[kind]);
    hasher.update(&length);
    hasher.update(payload);
    hasher.digest()
}

/// Reads records from the bytes of a file, fed in pieces of any size.
#[derive(Debug, Default)]
pub struct SpoolReader {
    buffer: Vec<u8>,
    /// How much of the front of `buffer` has been read.
    taken: usize,
    /// Where the next record begins in the file.
    at: u64,
}

impl SpoolReader {
    /// Takes the next bytes of the file.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record; `None` if more bytes are needed. After an error there are no further records.
    pub fn record(&mut self) -> Result<Option<SpoolRecord>, SpoolError> {
        let not_whole = SpoolError::NotWhole { at: self.at };
        let unread = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((head, rest)) = unread.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [kind, a, b, c, d, sum @ ..] = *head;
        let length = [a, b, c, d];
        let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if bytes > MOST_PAYLOAD_BYTES {
            return Err(not_whole);
        }
        let Some(payload) = rest.get(..bytes) else { return Ok(None) };
        if checksum(kind, length, payload) != u64::from_le_bytes(sum) {
            return Err(not_whole);
        }
        let record = match kind {
            HEADER => {
                let header: SpoolHeader = parse_versioned(payload, SPOOL_VERSION)?;
                SpoolRecord::Header(Box::new(header))
            }
            BYTES => SpoolRecord::Bytes(payload.to_vec()),
            TIME => SpoolRecord::Time(time_sample(payload).ok_or(not_whole)?),
            _ => return Err(not_whole),
        };
        let whole = HEAD_BYTES.saturating_add(bytes);
        self.taken = self.taken.saturating_add(whole);
        self.at = self.at.saturating_add(whole as u64);
        Ok(Some(record))
    }

    /// Where the records that were read end in the file.
    pub const fn read_bytes(&self) -> u64 {
        self.at
    }

    /// Whether bytes are left that make no whole record.
    pub fn is_torn(&self) -> bool {
        self.taken < self.buffer.len()
    }
}

fn time_sample(payload: &[u8]) -> Option<TimeSample> {
    let (from_ms, rest) = payload.split_first_chunk::<8>()?;
    let (until_ms, rest) = rest.split_first_chunk::<8>()?;
    let offset: [u8; 8] = rest.try_into().ok()?;
    Some(TimeSample {
        from_ms: i64::from_le_bytes(*from_ms),
        until_ms: i64::from_le_bytes(*until_ms),
        offset: u64::from_le_bytes(offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ProductRecord;
    use proptest::prelude::*;

    fn header() -> SpoolHeader {
        SpoolHeader {
            format_version: SPOOL_VERSION,
            cluster: "main".to_owned(),
            history: "a".repeat(40).parse().unwrap(),
            parent: Some(Parent { history: "b".repeat(40).parse().unwrap(), fork: 9 }),
            start: 10,
            database: None,
            slots: "0-5".parse().unwrap(),
            source: "127.0.0.1:7000".parse().unwrap(),
            server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
            begun_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn records() -> Vec<SpoolRecord> {
        vec![
            SpoolRecord::Header(Box::new(header())),
            SpoolRecord::Bytes(b"*1\r\n$4\r\nPING\r\n".to_vec()),
            SpoolRecord::Time(TimeSample { from_ms: -5, until_ms: 7, offset: u64::MAX }),
            SpoolRecord::Bytes(vec![7; 1000]),
        ]
    }

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        for record in records() {
            match record {
                SpoolRecord::Header(header) => encode_header(&header, &mut file).unwrap(),
                SpoolRecord::Bytes(bytes) => encode_bytes(&bytes, &mut file),
                SpoolRecord::Time(sample) => encode_time(&sample, &mut file),
            }
        }
        file
    }

    fn read(pieces: &[&[u8]]) -> (Vec<SpoolRecord>, bool) {
        let mut reader = SpoolReader::default();
        let mut found = Vec::new();
        for piece in pieces {
            reader.feed(piece);
            loop {
                match reader.record() {
                    Ok(Some(record)) => found.push(record),
                    Ok(None) => break,
                    Err(_) => return (found, false),
                }
            }
        }
        (found, !reader.is_torn())
    }

    #[test]
    fn a_file_cut_anywhere_gives_the_records_before() {
        let whole = file();
        for end in 0..whole.len() {
            let (found, _) = read(&[&whole[..end]]);
            assert!(found.len() < records().len());
            assert_eq!(found, records()[..found.len()], "{end}");
        }
        assert_eq!(read(&[&whole]), (records(), true));
    }

    #[test]
    fn a_tail_of_zeros_is_no_record() {
        let mut padded = file();
        padded.extend([0; 4096]);
        assert_eq!(read(&[&padded]), (records(), false));
    }

    #[test]
    fn damage_ends_the_records() {
        let whole = file();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (found, clean) = read(&[&damaged]);
            assert!(!clean && found == records()[..found.len()], "bit {bit}");
        }
    }

    #[test]
    fn a_head_and_its_bytes_are_a_record() {
        let (mut whole, bytes) = (Vec::new(), vec![7; 1000]);
        encode_bytes(&bytes, &mut whole);
        assert_eq!(whole, [bytes_head(&bytes).unwrap().as_slice(), &bytes].concat());
        assert_eq!(bytes_head(&vec![0; MOST_PAYLOAD_BYTES + 1]), None);
    }

    #[test]
    fn long_bytes_are_split() {
        let bytes = vec![1; MOST_PAYLOAD_BYTES + 1];
        let mut file = Vec::new();
        encode_bytes(&bytes, &mut file);
        let (found, clean) = read(&[&file]);
        assert!(clean && found.len() == 2);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_records(size in 1_usize..300) {
            let whole = file();
            let pieces: Vec<&[u8]> = whole.chunks(size).collect();
            prop_assert_eq!(read(&pieces), (records(), true));
        }
    }
}
