//! The envelope of an RDB: its magic and its CRC64, checked without reading what is between. It works on versions that nobody
//! knows yet.
//!
//! Invariant: `tail` holds the last bytes seen, at most eight, which may turn out to be the CRC; `crc` covers all before them.

use crc_fast::{CrcAlgorithm, Digest};
use slotkeep_model::RdbVersion;

use crate::primitive::wide;

const CRC_BYTES: usize = 8;
/// The first RDB version that ends with a CRC64.
const FIRST_WITH_CRC: u16 = 5;

/// What the CRC64 at the end of an RDB says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crc {
    /// It is that of the bytes before it.
    Matches(u64),
    /// It is zero: the server did not compute one.
    NotComputed,
    /// RDBs of this version have none.
    None,
}

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvelopeReport {
    /// The version in the magic.
    pub version: RdbVersion,
    /// Length of the RDB in bytes.
    pub bytes: u64,
    /// What its CRC64 says.
    pub crc: Crc,
}

/// An RDB whose magic or CRC64 is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The first nine bytes are not `REDIS` or `VALKEY` and a number.
    #[error("not an RDB: it starts with `{}`", .found.escape_ascii())]
    BadMagic {
        /// The bytes found.
        found: [u8; RdbVersion::MAGIC_LEN],
    },
    /// The bytes are too few to be an RDB.
    #[error("truncated: {bytes} bytes are too few for an RDB")]
    Truncated {
        /// How many there were.
        bytes: u64,
    },
    /// The bytes are not those that the server wrote.
    #[error("the CRC64 of {bytes} bytes is {computed:016x}, but the RDB ends with {stored:016x}")]
    CrcMismatch {
        /// Length of the RDB in bytes.
        bytes: u64,
        /// The CRC64 of the bytes before the last eight.
        computed: u64,
        /// The last eight bytes.
        stored: u64,
    },
}

/// Checks the envelope of an RDB that is fed in chunks.
pub struct Envelope {
    crc: Digest,
    magic: [u8; RdbVersion::MAGIC_LEN],
    tail: [u8; CRC_BYTES],
    tail_len: usize,
    bytes: u64,
}

impl Default for Envelope {
    fn default() -> Self {
        Self::new()
    }
}

impl Envelope {
    /// An envelope of which nothing was seen.
    pub fn new() -> Self {
        Self {
            crc: Digest::new(CrcAlgorithm::Crc64Redis),
            magic: [0; RdbVersion::MAGIC_LEN],
            tail: [0; CRC_BYTES],
            tail_len: 0,
            bytes: 0,
        }
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.note_magic(chunk);
        self.bytes = self.bytes.saturating_add(wide(chunk.len()));
        if let Some((body, last)) = chunk.split_last_chunk::<CRC_BYTES>() {
            self.crc.update(self.tail.get(..self.tail_len).unwrap_or_default());
            self.crc.update(body);
            self.tail = *last;
            self.tail_len = CRC_BYTES;
            return;
        }
        for &byte in chunk {
            if self.tail_len == CRC_BYTES {
                self.crc.update(self.tail.get(..1).unwrap_or_default());
                self.tail.rotate_left(1);
                self.tail_len -= 1;
            }
            if let Some(place) = self.tail.get_mut(self.tail_len) {
                *place = byte;
                self.tail_len += 1;
            }
        }
    }

    fn note_magic(&mut self, chunk: &[u8]) {
        let seen = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        for (place, byte) in self.magic.iter_mut().skip(seen).zip(chunk) {
            *place = *byte;
        }
    }

    /// The magic's version, once nine bytes were fed and if they are a magic.
    pub fn version(&self) -> Option<RdbVersion> {
        if self.bytes < wide(RdbVersion::MAGIC_LEN) {
            return None;
        }
        RdbVersion::from_magic(&self.magic)
    }

    /// Checks the whole, after its last byte.
    pub fn finish(self) -> Result<EnvelopeReport, EnvelopeError> {
        let bytes = self.bytes;
        if bytes < wide(RdbVersion::MAGIC_LEN) {
            return Err(EnvelopeError::Truncated { bytes });
        }
        let Some(version) = self.version() else {
            return Err(EnvelopeError::BadMagic { found: self.magic });
        };
        if version.number < FIRST_WITH_CRC {
            return Ok(EnvelopeReport { version, bytes, crc: Crc::None });
        }
        if bytes < wide(RdbVersion::MAGIC_LEN + CRC_BYTES) + 1 {
            return Err(EnvelopeError::Truncated { bytes });
        }
        let stored = u64::from_le_bytes(self.tail);
        if stored == 0 {
            return Ok(EnvelopeReport { version, bytes, crc: Crc::NotComputed });
        }
        let computed = self.crc.finalize();
        if computed != stored {
            return Err(EnvelopeError::CrcMismatch { bytes, computed, stored });
        }
        Ok(EnvelopeReport { version, bytes, crc: Crc::Matches(stored) })
    }
}
