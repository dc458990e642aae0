//! XXH3-128 of bytes that come in parts: in one go where they come whole, else as a stream, with the same result.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// How many bytes of records are gathered before they are hashed.
const RECORDS_BYTES: usize = 4096;

/// Hashes byte strings that come whole or in parts.
pub(super) struct PartHasher {
    stream: Box<Xxh3>,
    begun: bool,
}

impl PartHasher {
    pub(super) fn new() -> Self {
        Self { stream: Box::new(Xxh3::new()), begun: false }
    }

    /// Takes in a part; gives the hash of the whole with the last one.
    #[inline]
    pub(super) fn add(&mut self, bytes: &[u8], last: bool) -> Option<u128> {
        if last && !self.begun {
            return Some(xxh3_128(bytes));
        }
        self.add_part(bytes, last)
    }

    fn add_part(&mut self, bytes: &[u8], last: bool) -> Option<u128> {
        if !self.begun {
            self.stream.reset();
            self.begun = true;
        }
        self.stream.update(bytes);
        if !last {
            return None;
        }
        self.begun = false;
        Some(self.stream.digest128())
    }
}

/// Hashes a run of small records.
pub(super) struct Records {
    bytes: Vec<u8>,
    stream: Box<Xxh3>,
    begun: bool,
}

impl Records {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(RECORDS_BYTES), stream: Box::new(Xxh3::new()), begun: false }
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.begun = false;
    }

    #[inline]
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > RECORDS_BYTES {
            self.flush();
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        if !self.begun {
            self.stream.reset();
            self.begun = true;
        }
        self.stream.update(&self.bytes);
        self.bytes.clear();
    }

    pub(super) fn tag(&mut self, tag: u8) {
        self.bytes(&[tag]);
    }

    pub(super) fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    pub(super) fn tagged(&mut self, tag: u8, number: u64) {
        self.tag(tag);
        self.number(number);
    }

    #[inline]
    pub(super) fn hash(&mut self, hash: u128) {
        self.bytes(&hash.to_le_bytes());
    }

    pub(super) fn tagged_hash(&mut self, tag: u8, hash: u128) {
        self.tag(tag);
        self.hash(hash);
    }

    /// The hash of all records since [`Self::clear`].
    pub(super) fn finish(&mut self) -> u128 {
        if !self.begun {
            return xxh3_128(&self.bytes);
        }
        self.flush();
        self.stream.digest128()
    }
}
