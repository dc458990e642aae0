//! What an RDB means: its digest and its index, made while it passes.

use slotkeep_format::{IndexEntry, IndexWriter};
use slotkeep_model::{DatasetDigest, Slot, TimestampMs};
use slotkeep_rdb::Digester;
use slotkeep_rdb::{Event, Level, Parser};

/// The version of the hash that `slotkeep-rdb` documents; digests of different versions can't be compared.
pub(crate) const HASH_VERSION: u32 = 1;

/// How many keys are added to the digest at a time.
const SUMMED_AT_A_TIME: usize = 64;

/// What an RDB was found to hold.
#[derive(Debug)]
pub(crate) struct Interpretation {
    pub(crate) digest: DatasetDigest,
}

/// Why an RDB can't be understood, and at which of its bytes and in which key, if that is known.
#[derive(Debug)]
pub(crate) struct NotUnderstood {
    /// Without the key: it stands in manifests, which anybody can read.
    pub(crate) reason: String,
    pub(crate) offset: Option<u64>,
    /// The first bytes of the key.
    pub(crate) key: Option<Box<[u8]>>,
}

impl From<slotkeep_rdb::Error> for NotUnderstood {
    fn from(mut error: slotkeep_rdb::Error) -> Self {
        let key = error.key.take();
        Self { reason: error.to_string(), offset: Some(error.offset), key }
    }
}

impl From<NotUnderstood> for String {
    fn from(why: NotUnderstood) -> Self {
        why.reason
    }
}

/// Reads an RDB piece by piece.
pub(crate) struct Interpreter {
    parser: Parser,
    digester: Digester,
    digest: DatasetDigest,
    /// Keys that are not yet in the digest. Each needs a row that is in no cache; the processor fetches many at once, if they are
    /// asked for in a row.
    unsummed: Vec<(Slot, u128)>,
    index: IndexWriter,
    keys: u64,
}

impl Default for Interpreter {
    fn default() -> Self {
        Self {
            parser: Parser::new(Level::Element),
            digester: Digester::new(),
            digest: DatasetDigest::default(),
            unsummed: Vec::with_capacity(SUMMED_AT_A_TIME),
            index: IndexWriter::default(),
            keys: 0,
        }
    }
}

impl Interpreter {
    /// Reads on; the reason if the RDB can't be understood.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<(), NotUnderstood> {
        while let Some(event) = self.parser.next(&mut piece)? {
            if let Event::SlotImport { .. } = event {
                let reason = "it holds slots that the shard was importing (CLUSTER MIGRATESLOTS)".to_owned();
                return Err(NotUnderstood { reason, offset: None, key: None });
            }
            let Some(key) = self.digester.event(&event) else { continue };
            self.keys += 1;
            if !key.is_empty_collection() {
                self.unsummed.push((key.slot, key.hash));
                if self.unsummed.len() == SUMMED_AT_A_TIME {
                    self.sum();
                }
            }
            let expiry = key.expiry_ms.map(|expiry_ms| (TimestampMs(expiry_ms), key.hash));
            let entry = IndexEntry {
                offset: key.offset,
                slot: key.slot,
                database: key.db,
                fingerprint: key.fingerprint,
                expiry,
            };
            let pushed = self.index.push(&entry);
            pushed.map_err(|error| NotUnderstood {
                reason: error.to_string(),
                offset: Some(key.offset),
                key: None,
            })?;
        }
        Ok(())
    }

    fn sum(&mut self) {
        for (slot, hash) in self.unsummed.drain(..) {
            self.digest.slot_mut(slot).add_key(hash);
        }
    }

    /// Keys seen so far.
    pub(crate) const fn keys(&self) -> u64 {
        self.keys
    }

    /// The index as far as it has been written.
    pub(crate) const fn index(&mut self) -> &mut IndexWriter {
        &mut self.index
    }

    /// Ends the reading; the reason if the RDB is not complete.
    pub(crate) fn finish(mut self) -> Result<Interpretation, NotUnderstood> {
        self.parser.finish()?;
        self.sum();
        let mut digest = self.digest;
        digest.functions = self.digester.functions();
        Ok(Interpretation { digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_goes_into_a_manifest_names_no_key() {
        // A string whose encoding is none, in the key `user:ada`.
        let why = Interpreter::default().feed(b"REDIS0009\x00\x08user:ada\xc5").unwrap_err();
        assert_eq!(why.key.as_deref(), Some(&b"user:ada"[..]));
        let reason = String::from(why);
        assert!(reason.contains("string encoding 5 is not known"), "{reason}");
        assert!(!reason.contains("ada"), "{reason}");
    }
}
