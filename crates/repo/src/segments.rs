//! Segments of the log: written whole or not at all, found by their names, proved by their own records.
//!
//! Invariants: a segment's name says which bytes of which history it holds, so that a listing shows gaps; a segment that is there is
//! never written again; what a reader gives has the BLAKE3 of the segment's record, or the last read fails.

use std::ops::Range;
use std::sync::Arc;

use blake3::Hasher;
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::frames::{FRAME_RAW_BYTES, SEEK_FOOTER_BYTES};
use slotkeep_format::manifest::ServerRecord;
use slotkeep_format::segment::{SEGMENT_FOOTER_BYTES, SEGMENT_VERSION};
use slotkeep_format::{Effort, SeekTable, SegmentRecord, Timeline};
use slotkeep_model::{NodeAddr, ReplId};
use zstd::bulk::Decompressor;

use crate::companions::{Companion, everywhere};
use crate::crypt::Layer;
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::pack::SegmentPack;
use crate::repository::Repository;
use crate::sink::Sink;
use crate::verify::StoredObject;

/// How much of a segment is read at a time; also the size up to which a segment is read in one request.
const READ_BYTES: u64 = 4 << 20;

/// A segment as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// The history that its bytes belong to.
    pub history: ReplId,
    /// The offset of its first byte.
    pub start: u64,
    /// The offset behind its last byte.
    pub end: u64,
    /// Its length as stored.
    pub object_bytes: u64,
    /// When the store says that it was written, in ms since 1970.
    pub modified_ms: i64,
    path: Path,
}

impl SegmentEntry {
    pub(crate) const fn new(
        history: ReplId,
        range: Range<u64>,
        (object_bytes, modified_ms): (u64, i64),
        path: Path,
    ) -> Self {
        Self { history, start: range.start, end: range.end, object_bytes, modified_ms, path }
    }

    /// Its path in the repository.
    pub fn path(&self) -> &str {
        self.path.as_ref()
    }

    /// Its object.
    pub fn stored(&self) -> StoredObject {
        StoredObject { path: self.path.to_string(), bytes: self.object_bytes, modified_ms: self.modified_ms }
    }
}

/// What a segment's record says beyond the bytes themselves.
#[derive(Clone, Debug)]
pub struct SegmentMeta {
    /// The database selected before its first command.
    pub database: Option<u32>,
    /// How many commands it holds.
    pub commands: u64,
    /// The node that it came from.
    pub source: NodeAddr,
    /// What that node ran.
    pub server: ServerRecord,
    /// The primary's clock and offset while the bytes were received.
    pub times: Timeline,
}

impl Repository {
    /// The segments of a history, in the order of their offsets; of those that begin at the same offset the longest first. Objects
    /// with other names are not segments.
    pub async fn segments(&self, cluster: &str, history: &ReplId) -> Result<Vec<SegmentEntry>, RepoError> {
        let folder = layout::log(cluster, history);
        let listed = self.store.list(Some(&folder)).try_collect::<Vec<_>>().await;
        let listed = listed.map_err(|error| RepoError::new("list", &folder, error))?;
        let mut segments: Vec<SegmentEntry> = listed
            .into_iter()
            .filter_map(|object| {
                let range = layout::segment_range(object.location.filename()?)?;
                let shown = (object.size, object.last_modified.timestamp_millis());
                Some(SegmentEntry::new(history.clone(), range, shown, object.location))
            })
            .collect();
        segments.sort_by_key(|segment| (segment.start, std::cmp::Reverse(segment.end)));
        Ok(segments)
    }

    /// The record of a segment, by reading the end of its object.
    pub async fn segment_record(&self, entry: &SegmentEntry) -> Result<SegmentRecord, RepoError> {
        Ok(self.segment_tail(entry).await?.0)
    }

    /// The record, how the object is layered, and what has been read of it: all if it is small.
    pub(crate) async fn segment_tail(
        &self,
        entry: &SegmentEntry,
    ) -> Result<(SegmentRecord, Layer, Fetched), RepoError> {
        let failed = |problem: Problem| RepoError::new("read", &entry.path, problem);
        let layer = self.layer(&entry.path, entry.object_bytes, None).await.map_err(failed)?;
        let object_bytes = layer.bytes();
        let mut fetched = Fetched { start: object_bytes, bytes: Bytes::new() };
        let guess = object_bytes.saturating_sub(READ_BYTES)..object_bytes;
        self.fetch(entry, &layer, guess, &mut fetched).await?;
        let footer = fetched.tail(SEGMENT_FOOTER_BYTES).unwrap_or_default();
        let tail_bytes =
            SegmentRecord::stored_tail_bytes(footer, object_bytes).map_err(|error| failed(error.into()))?;
        if tail_bytes > fetched.bytes.len() as u64 {
            let whole = object_bytes.saturating_sub(tail_bytes)..object_bytes;
            self.fetch(entry, &layer, whole, &mut fetched).await?;
        }
        let tail = fetched.tail(tail_bytes).unwrap_or_default();
        let record = self.check_tail(entry, tail, object_bytes).map_err(failed)?;
        Ok((record, layer, fetched))
    }

    /// The record in the last bytes of a segment that holds `object_bytes`, found to be signed and of this segment.
    pub(crate) fn check_tail(
        &self,
        entry: &SegmentEntry,
        tail: &[u8],
        object_bytes: u64,
    ) -> Result<SegmentRecord, Problem> {
        let record = SegmentRecord::parse(tail, object_bytes)?;
        self.check_signature(&entry.path, SegmentRecord::json(tail)?)?;
        if (record.start, record.end) != (entry.start, entry.end) || record.history != entry.history {
            let what =
                format!("its record says it holds {}..{} of {}", record.start, record.end, record.history);
            return Err(Problem::Damaged(what));
        }
        Ok(record)
    }

    async fn fetch(
        &self,
        entry: &SegmentEntry,
        layer: &Layer,
        range: Range<u64>,
        into: &mut Fetched,
    ) -> Result<(), RepoError> {
        let start = range.start;
        if range.is_empty() {
            // Stores refuse to read nothing.
            *into = Fetched { start, bytes: Bytes::new() };
            return Ok(());
        }
        let bytes = self.part(&entry.path, layer, range).await;
        let bytes = bytes.map_err(|problem| RepoError::new("read", &entry.path, problem))?;
        *into = Fetched { start, bytes };
        Ok(())
    }

    /// Opens a segment to read all of it.
    pub async fn read_segment(&self, entry: &SegmentEntry) -> Result<SegmentReader, RepoError> {
        let failed = |problem: Problem| RepoError::new("read", &entry.path, problem);
        let (record, layer, mut fetched) = self.segment_tail(entry).await?;
        let frames_and_table = record.stored_bytes;
        let table = async |bytes: u64, fetched: &mut Fetched| {
            let range = frames_and_table.saturating_sub(bytes)..frames_and_table;
            if fetched.slice(&range).is_none() {
                self.fetch(entry, &layer, range.clone(), fetched).await?;
            }
            fetched
                .slice(&range)
                .ok_or_else(|| failed(Problem::Damaged("it is too short to be a segment".to_owned())))
        };
        let footer = table(SEEK_FOOTER_BYTES, &mut fetched).await?;
        let table_bytes =
            SeekTable::stored_bytes(&footer, frames_and_table).map_err(|error| failed(error.into()))?;
        let seek_table = table(table_bytes, &mut fetched).await?;
        let table = SeekTable::parse(&seek_table, frames_and_table).map_err(|error| failed(error.into()))?;
        if table.raw_bytes() != record.raw_bytes() {
            let what = format!("it holds {} bytes, its name says {}", table.raw_bytes(), record.raw_bytes());
            return Err(failed(Problem::Damaged(what)));
        }
        let decompressor = Decompressor::new().map_err(|error| failed(Problem::Store(error.to_string())))?;
        Ok(SegmentReader {
            repository: self.clone(),
            entry: entry.clone(),
            layer,
            record,
            table,
            seek_table,
            fetched,
            decompressor,
            hasher: Box::new(Hasher::new()),
            next_frame: 0,
        })
    }

    pub(crate) async fn must_not_exist(&self, path: &Path) -> Result<(), RepoError> {
        match self.store.head(path).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(RepoError::new("write", path, error)),
            Ok(_) => Err(RepoError::new("write", path, Problem::Exists)),
        }
    }

    /// Begins a segment that holds the bytes `start..end` of a history, packed with the usual effort. Fails if it is there already.
    pub async fn create_segment(
        &self,
        cluster: &str,
        history: &ReplId,
        range: Range<u64>,
    ) -> Result<SegmentWriter, RepoError> {
        self.create_segment_with(cluster, history, range, Effort::Usual).await
    }

    /// The same with another effort.
    pub async fn create_segment_with(
        &self,
        cluster: &str,
        history: &ReplId,
        range: Range<u64>,
        effort: Effort,
    ) -> Result<SegmentWriter, RepoError> {
        let path = layout::segment(cluster, history, &range);
        let pack = SegmentPack::new(effort).map_err(|error| RepoError::new("write", &path, error))?;
        self.begin_segment(path, history, range, pack).await
    }

    /// Stores a segment that is packed already, durable when this returns. Fails if it is there already.
    pub async fn put_segment(
        &self,
        cluster: &str,
        history: &ReplId,
        range: Range<u64>,
        pack: SegmentPack,
        meta: SegmentMeta,
    ) -> Result<SegmentRecord, RepoError> {
        let path = layout::segment(cluster, history, &range);
        self.begin_segment(path, history, range, pack).await?.finish(meta).await
    }

    async fn begin_segment(
        &self,
        path: Path,
        history: &ReplId,
        range: Range<u64>,
        pack: SegmentPack,
    ) -> Result<SegmentWriter, RepoError> {
        let mut own = Sink::new(self, &path);
        let others = self.live_companions();
        let mut others: Vec<_> =
            others.map(|one| (Arc::clone(one), Sink::new(one.repository(), &path))).collect();
        let looks = others.iter_mut().map(|(one, sink)| (&**one, sink.look().boxed())).collect();
        everywhere(&self.location, own.look().boxed(), looks).await?;
        if own.is_there && others.iter().all(|(_, sink)| sink.is_there) {
            return Err(RepoError::new("write", &path, Problem::Exists));
        }
        Ok(SegmentWriter { path, history: history.clone(), range, pack, own, others })
    }
}

/// A part of an object that has been read.
pub(crate) struct Fetched {
    start: u64,
    bytes: Bytes,
}

impl Fetched {
    pub(crate) fn tail(&self, bytes: u64) -> Option<&[u8]> {
        let from = self.bytes.len().checked_sub(usize::try_from(bytes).ok()?)?;
        self.bytes.get(from..)
    }

    fn slice(&self, range: &Range<u64>) -> Option<Bytes> {
        let from = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let until = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (from <= until && until <= self.bytes.len()).then(|| self.bytes.slice(from..until))
    }
}

/// A segment that is being read.
pub struct SegmentReader {
    repository: Repository,
    entry: SegmentEntry,
    layer: Layer,
    record: SegmentRecord,
    table: SeekTable,
    seek_table: Bytes,
    fetched: Fetched,
    decompressor: Decompressor<'static>,
    /// On the heap: it is large, and futures hold it.
    hasher: Box<Hasher>,
    next_frame: usize,
}

impl SegmentReader {
    /// What the segment is.
    pub const fn record(&self) -> &SegmentRecord {
        &self.record
    }

    /// The next bytes of the stream, at most 1 MiB, or `None` after the last ones, once the segment's BLAKE3 has been found right. Not
    /// cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, RepoError> {
        let failed = |problem: Problem| RepoError::new("read", &self.entry.path, problem);
        let Some(frame) = self.table.frames().get(self.next_frame).copied() else {
            self.hasher.update(&self.seek_table);
            let found = self.hasher.finalize().to_hex();
            if *found != *self.record.blake3 {
                let what = format!("its BLAKE3 is {found}, its record says {}", self.record.blake3);
                return Err(failed(Problem::Damaged(what)));
            }
            self.seek_table = Bytes::new();
            return Ok(None);
        };
        let range = frame.stored_start..frame.stored_end();
        if self.fetched.slice(&range).is_none() {
            let until = range.start.saturating_add(READ_BYTES).max(range.end).min(self.record.stored_bytes);
            self.repository.fetch(&self.entry, &self.layer, range.start..until, &mut self.fetched).await?;
        }
        let stored = self.fetched.slice(&range);
        let stored = stored.ok_or_else(|| failed(Problem::Damaged("it is cut short".to_owned())))?;
        self.hasher.update(&stored);
        self.next_frame += 1;
        frame.decompress(&mut self.decompressor, &stored).map(Some).map_err(|error| failed(error.into()))
    }
}

/// A segment that is being written. It is visible only once [`SegmentWriter::finish`] has returned; dropped before, it leaves nothing
/// that a reader could see.
pub struct SegmentWriter {
    path: Path,
    history: ReplId,
    range: Range<u64>,
    pack: SegmentPack,
    own: Sink,
    others: Vec<(Arc<Companion>, Sink)>,
}

/// A segment that is packed to its end, on its way into its repositories.
struct Storing<'w> {
    own: &'w mut Sink,
    others: &'w mut Vec<(Arc<Companion>, Sink)>,
}

impl SegmentWriter {
    /// Appends bytes of the stream. Not cancel-safe.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), RepoError> {
        for piece in bytes.chunks(FRAME_RAW_BYTES) {
            self.pack.write(piece).map_err(|error| RepoError::new("write", &self.path, error))?;
            let packed = self.pack.take();
            self.storing().append(packed).await?;
        }
        Ok(())
    }

    const fn storing(&mut self) -> Storing<'_> {
        Storing { own: &mut self.own, others: &mut self.others }
    }

    /// Completes the segment, durable when this returns. Not cancel-safe; a segment that fails is given up.
    pub async fn finish(self, meta: SegmentMeta) -> Result<SegmentRecord, RepoError> {
        let Self { path, history, range, pack, mut own, mut others } = self;
        let mut storing = Storing { own: &mut own, others: &mut others };
        let completed = match complete(&path, history, range, pack, meta) {
            Ok((record, pieces)) => storing.append(pieces).await.map(|()| record),
            Err(error) => Err(error),
        };
        let record = match completed {
            Ok(record) => record,
            Err(error) => {
                own.abort().await;
                for (_, sink) in others {
                    sink.abort().await;
                }
                return Err(error);
            }
        };
        let location = own.repository.location.clone();
        let each = others.iter_mut().map(|(one, sink)| {
            let finish = async { sink.finish(&record).await.map(drop) };
            (&**one, finish.boxed())
        });
        let written = everywhere(&location, own.finish(&record).boxed(), each.collect()).await?;
        if written { Ok(record) } else { Err(RepoError::new("write", &path, Problem::Exists)) }
    }
}

impl Storing<'_> {
    async fn append(&mut self, pieces: Vec<Bytes>) -> Result<(), RepoError> {
        let location = self.own.repository.location.clone();
        for piece in pieces {
            let others = self.others.iter_mut();
            let each = others.map(|(one, sink)| (&**one, sink.append(piece.clone()).boxed())).collect();
            everywhere(&location, self.own.append(piece.clone()).boxed(), each).await?;
            for (_, sink) in self.others.extract_if(.., |(companion, _)| companion.failure().is_some()) {
                // Nobody waits for one that was given up.
                tokio::spawn(sink.abort());
            }
        }
        Ok(())
    }
}

/// The record of a segment, and what the pack has still to store before it.
fn complete(
    path: &Path,
    history: ReplId,
    range: Range<u64>,
    pack: SegmentPack,
    meta: SegmentMeta,
) -> Result<(SegmentRecord, Vec<Bytes>), RepoError> {
    let wanted = range.end.saturating_sub(range.start);
    if pack.raw_bytes() != wanted {
        let what = format!("{} bytes were given for a segment of {wanted}", pack.raw_bytes());
        return Err(RepoError::new("write", path, Problem::Damaged(what)));
    }
    let (packed, pieces) = pack.end().map_err(|error| RepoError::new("write", path, error))?;
    let record = SegmentRecord {
        format_version: SEGMENT_VERSION,
        history,
        start: range.start,
        end: range.end,
        database: meta.database,
        commands: meta.commands,
        source: meta.source,
        server: meta.server,
        times: meta.times,
        stored_bytes: packed.stored_bytes,
        blake3: packed.blake3.to_hex().to_string(),
    };
    Ok((record, pieces))
}
