//! Reading a stored base through what is derived from it: its digest, its index, the records of chosen slots.

use std::collections::BTreeSet;

use slotkeep_format::manifest::BaseRecord;
use slotkeep_format::{IndexEntry, IndexReader, decode_digest};
use slotkeep_model::{DatasetDigest, SlotSet, TimestampMs, key_slot};
use slotkeep_rdb::{Digester, Event, KeyDigest, Level, Parser, key_fingerprint};
use slotkeep_repo::{FramedObject, Problem, RepoError, Repository};

use crate::backup::HASH_VERSION;
use crate::{Error, ErrorKind, Result};

/// A digest object has at most this many bytes: a header and 16384 rows.
const DIGEST_MOST_BYTES: usize = 1 << 20;
/// The opcodes that a stream of chosen records needs between them.
const OPCODE_SELECTDB: u8 = 0xfe;

/// A base that has a digest and an index.
pub(crate) struct Base<'a> {
    repository: &'a Repository,
    record: &'a BaseRecord,
}

impl<'a> Base<'a> {
    /// The base, if it was interpreted when it was taken.
    pub(crate) fn open(repository: &'a Repository, record: &'a BaseRecord) -> Result<Self> {
        match &record.not_interpreted {
            None => Ok(Self { repository, record }),
            Some(reason) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} was stored without being understood: {reason}", record.rdb.path),
            )
            .hint("a newer Slotkeep may understand it; its bytes are whole")),
        }
    }

    /// The digest as it was when the base was taken.
    pub(crate) async fn digest(&self) -> Result<DatasetDigest> {
        let object = self.record.digest.as_ref().ok_or_else(|| self.lacks("digest"))?;
        let bytes = self.repository.read(object, DIGEST_MOST_BYTES).await?;
        let damaged =
            |error| RepoError { doing: "read", on: object.path.clone(), problem: Problem::from(error) };
        let (digest, hash_version) = decode_digest(&bytes).map_err(damaged)?;
        if hash_version == HASH_VERSION {
            return Ok(digest);
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} was made with version {hash_version} of the hash, this Slotkeep uses {HASH_VERSION}",
                object.path
            ),
        )
        .hint("compare with the Slotkeep that made it, or take a new backup"))
    }

    /// The databases that hold keys, expired ones included.
    pub(crate) async fn databases(&self) -> Result<BTreeSet<u32>> {
        let mut databases = BTreeSet::new();
        self.each_entry(|entry| {
            databases.insert(entry.database);
        })
        .await?;
        Ok(databases)
    }

    /// The digest without the keys that have expired at `moment`.
    pub(crate) async fn digest_at(&self, moment: TimestampMs) -> Result<DatasetDigest> {
        let mut digest = self.digest().await?;
        self.each_entry(|entry| {
            if let Some((_, hash)) = entry.expiry.filter(|(expiry, _)| *expiry <= moment) {
                digest.slot_mut(entry.slot).remove_key(hash);
            }
        })
        .await?;
        Ok(digest)
    }

    /// Calls `visit` with every key of those slots: its digest and its name.
    pub(crate) async fn keys_in(
        &self,
        slots: &SlotSet,
        mut visit: impl FnMut(&KeyDigest, &[u8]),
    ) -> Result<()> {
        let wanted = self.extents(|entry| slots.contains(entry.slot)).await?;
        let mut records = self.records(Level::Element).await?;
        let mut digester = Digester::new();
        for extent in &wanted {
            let mut take = |event: &Event<'_>| {
                if let Some(key) = digester.event(event) {
                    visit(&key, digester.key());
                }
                Ok(())
            };
            records.read(extent, &mut take).await?;
        }
        Ok(())
    }

    /// Where the records lie that may be of that key, whatever the database.
    pub(crate) async fn extents_of(&self, key: &[u8]) -> Result<Vec<Extent>> {
        let slot = key_slot(key);
        self.extents(|entry| entry.slot == slot && entry.fingerprint == key_fingerprint(entry.database, key))
            .await
    }

    /// Where the records lie whose index entries are wanted.
    async fn extents(&self, mut wanted: impl FnMut(&IndexEntry) -> bool) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut open: Option<(u64, u32)> = None;
        self.each_entry(|entry| {
            if let Some((start, database)) = open.take() {
                extents.push(Extent { start, end: entry.offset, database });
            }
            if wanted(&entry) {
                open = Some((entry.offset, entry.database));
            }
        })
        .await?;
        if let Some((start, database)) = open {
            extents.push(Extent { start, end: self.record.rdb.raw_bytes, database });
        }
        Ok(extents)
    }

    /// Makes ready to read records.
    pub(crate) async fn records(&self, level: Level) -> Result<Records> {
        Records::open(self.repository, self.record, level).await
    }

    async fn each_entry(&self, mut visit: impl FnMut(IndexEntry)) -> Result<()> {
        let object = self.record.index.as_ref().ok_or_else(|| self.lacks("index"))?;
        let damaged =
            |error| RepoError { doing: "read", on: object.path.clone(), problem: Problem::from(error) };
        let mut framed = self.repository.framed(object).await?;
        let mut reader = IndexReader::default();
        while let Some(piece) = framed.next().await? {
            reader.feed(&piece, &mut visit).map_err(damaged)?;
        }
        reader.finish().map_err(damaged)?;
        Ok(())
    }

    fn lacks(&self, what: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("the manifest names no {what} for {}", self.record.rdb.path))
    }
}

/// Where a record lies in the RDB.
pub(crate) struct Extent {
    start: u64,
    /// The start of the next record, or the end of the RDB: a few opcodes may stand before it.
    end: u64,
    pub(crate) database: u32,
}

/// Records of an RDB, read one by one. The parser sees them as one RDB: a magic, then each record behind its `SELECTDB`.
pub(crate) struct Records {
    object: FramedObject,
    path: String,
    frame: Option<(usize, Vec<u8>)>,
    parser: Parser,
}

impl Records {
    async fn open(repository: &Repository, record: &BaseRecord, level: Level) -> Result<Self> {
        let object = repository.framed(&record.rdb).await?;
        let mut records =
            Self { object, path: record.rdb.path.clone(), frame: None, parser: Parser::new(level) };
        records.parse(record.rdb_version.to_string().as_bytes(), &mut |_| Ok(()))?;
        Ok(records)
    }

    /// Calls `visit` with the events of a record, the last of which is its [`Event::KeyEnd`]. Offsets in them are not those of the RDB.
    pub(crate) async fn read(
        &mut self,
        extent: &Extent,
        visit: &mut impl FnMut(&Event<'_>) -> Result<()>,
    ) -> Result<()> {
        // A 32-bit length, whatever the number: loaders accept any form.
        let [a, b, c, d] = extent.database.to_be_bytes();
        self.parse(&[OPCODE_SELECTDB, 0x80, a, b, c, d], visit)?;
        let mut at = extent.start;
        while at < extent.end {
            let Some(frame) = self.object.table().frame_at(at).copied() else {
                return Err(self.damaged(format!("the index names offset {at}, which it does not have")));
            };
            if self.frame.as_ref().is_none_or(|(number, _)| *number != frame.number) {
                self.frame = Some((frame.number, self.object.frame(frame.number).await?));
            }
            let Some((number, bytes)) = self.frame.take() else { continue };
            let from = usize::try_from(at.saturating_sub(frame.raw_start)).unwrap_or(usize::MAX);
            let until = usize::try_from(extent.end.saturating_sub(frame.raw_start)).unwrap_or(usize::MAX);
            let piece = bytes.get(from..until.min(bytes.len())).unwrap_or_default();
            at = at.saturating_add(piece.len() as u64);
            let ended = self.parse(piece, visit)?;
            self.frame = Some((number, bytes));
            if ended {
                return Ok(());
            }
        }
        Err(self.damaged(format!("the record at offset {} does not end where the index says", extent.start)))
    }

    /// Parses on; true once a key has ended. What follows the record belongs to the next one and is passed over.
    fn parse(&mut self, mut bytes: &[u8], visit: &mut impl FnMut(&Event<'_>) -> Result<()>) -> Result<bool> {
        loop {
            let event = match self.parser.next(&mut bytes) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(false),
                Err(error) => return Err(self.damaged(error.to_string())),
            };
            visit(&event)?;
            if let Event::KeyEnd { .. } = event {
                return Ok(true);
            }
        }
    }

    fn damaged(&self, what: String) -> Error {
        RepoError { doing: "read", on: self.path.clone(), problem: Problem::Damaged(what) }.into()
    }
}
