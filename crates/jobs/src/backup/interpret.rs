//! What an RDB means: its digest and its index, made while it passes.

use slotkeep_format::{IndexEntry, IndexWriter};
use slotkeep_model::{DatasetDigest, TimestampMs};
use slotkeep_rdb::Digester;
use slotkeep_rdb::{Event, Level, Parser};

/// The version of the hash that `slotkeep-rdb` documents; digests of different versions can't be compared.
pub(crate) const HASH_VERSION: u32 = 1;

/// What an RDB was found to hold.
#[derive(Debug)]
pub(crate) struct Interpretation {
    pub(crate) digest: DatasetDigest,
}

/// Reads an RDB piece by piece.
pub(crate) struct Interpreter {
    parser: Parser,
    digester: Digester,
    digest: DatasetDigest,
    index: IndexWriter,
    keys: u64,
}

impl Default for Interpreter {
    fn default() -> Self {
        Self {
            parser: Parser::new(Level::Element),
            digester: Digester::new(),
            digest: DatasetDigest::default(),
            index: IndexWriter::default(),
            keys: 0,
        }
    }
}

impl Interpreter {
    /// Reads on; the reason if the RDB can't be understood.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<(), String> {
        while let Some(event) = self.parser.next(&mut piece).map_err(|error| error.to_string())? {
            if let Event::SlotImport { .. } = event {
                return Err("it holds slots that the shard was importing (CLUSTER MIGRATESLOTS)".to_owned());
            }
            let Some(key) = self.digester.event(&event) else { continue };
            self.keys += 1;
            key.add_to(&mut self.digest);
            let expiry = key.expiry_ms.map(|expiry_ms| (TimestampMs(expiry_ms), key.hash));
            let entry = IndexEntry {
                offset: key.offset,
                slot: key.slot,
                database: key.db,
                fingerprint: key.fingerprint,
                expiry,
            };
            self.index.push(&entry).map_err(|error| error.to_string())?;
        }
        Ok(())
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
    pub(crate) fn finish(self) -> Result<Interpretation, String> {
        self.parser.finish().map_err(|error| error.to_string())?;
        let mut digest = self.digest;
        digest.functions = self.digester.functions();
        Ok(Interpretation { digest })
    }
}
