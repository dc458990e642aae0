//! Reading objects back: whole and verified, or a frame at a time.
//!
//! Invariant: an object that is read to its end has the length and the BLAKE3 that the manifest names, or the reading fails. A part of an
//! encrypted object is proved by the header that the manifest names: it fixes the key that each part is sealed with, at its place.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use blake3::Hasher;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::frames::{Frame, SEEK_FOOTER_BYTES, SeekTable};
use slotkeep_format::manifest::{HeaderRecord, ObjectRecord};
use zstd::bulk::Decompressor;

use crate::crypt::{Layer, MOST_HEADER_BYTES, Opened, SealedObject};
use crate::error::{Problem, RepoError};
use crate::location::{Location, object_path};
use crate::repository::Repository;

/// How much of a local file is read at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// How many such pieces are being read, or wait to be taken.
const PIECES_IN_FLIGHT: usize = 2;

/// The stored bytes of an object, in order.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, object_store::Error>>;

/// Where a file is cut into the pieces in which it is read: ascending offsets. Behind the last one it comes in pieces of [`PIECE_BYTES`].
#[derive(Default)]
struct Cuts(Vec<u64>);

impl Cuts {
    /// Pieces that hold whole frames, so that none has to be put together.
    fn between_frames(table: &SeekTable) -> Self {
        let (mut cuts, mut start) = (Vec::new(), 0);
        for frame in table.frames() {
            if frame.stored_end().saturating_sub(start) > PIECE_BYTES && frame.stored_start > start {
                cuts.push(frame.stored_start);
                start = frame.stored_start;
            }
        }
        cuts.extend(table.frames().last().map(Frame::stored_end));
        Self(cuts)
    }

    /// The pieces of a file of so many bytes.
    fn ranges(self, bytes: u64) -> impl Iterator<Item = Range<u64>> + Send + 'static {
        let mut cuts = self.0.into_iter().peekable();
        let mut start = 0_u64;
        std::iter::from_fn(move || {
            while cuts.next_if(|cut| *cut <= start).is_some() {}
            let end = match cuts.peek() {
                // A frame is a little longer than that at the most; a table that was damaged may say anything.
                Some(cut) => start.saturating_add(2 * PIECE_BYTES).min(*cut),
                None => start.saturating_add(PIECE_BYTES),
            };
            let end = end.min(bytes);
            let range = start..end;
            start = end;
            (!range.is_empty()).then_some(range)
        })
    }
}

/// The bytes of one object in order, decrypted, and checked against its record when they end.
pub struct ObjectStream {
    record: ObjectRecord,
    source: Opened,
    stored: Arc<Mutex<Stored>>,
}

/// What came from the store so far.
#[derive(Default)]
struct Stored {
    hasher: Hasher,
    bytes: u64,
}

impl ObjectStream {
    /// The next piece, or `None` after the last one, once length and BLAKE3 have been found right.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RepoError> {
        match self.source.next().await {
            Ok(Some(piece)) => Ok(Some(piece)),
            Ok(None) => self.check().map(|()| None),
            Err(problem) => Err(RepoError::new("read", &self.record.path, problem)),
        }
    }

    fn check(&self) -> Result<(), RepoError> {
        let damaged = |what: String| Err(RepoError::new("read", &self.record.path, Problem::Damaged(what)));
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.bytes != self.record.stored_bytes {
            return damaged(format!(
                "it has {} bytes, the manifest says {}",
                stored.bytes, self.record.stored_bytes
            ));
        }
        let found = stored.hasher.finalize().to_hex();
        if *found != *self.record.blake3 {
            return damaged(format!("its BLAKE3 is {found}, the manifest says {}", self.record.blake3));
        }
        Ok(())
    }
}

impl Repository {
    /// Reads an object from its beginning to its end.
    pub async fn stream(&self, record: &ObjectRecord) -> Result<ObjectStream, RepoError> {
        self.stream_in(record, None).await
    }

    /// The same; a local file that is not encrypted comes in these pieces.
    async fn stream_in(&self, record: &ObjectRecord, cuts: Option<Cuts>) -> Result<ObjectStream, RepoError> {
        if !self.is_encrypted() {
            return self.stored_stream_in(record, cuts).await;
        }
        let failed = |problem| RepoError::new("read", &record.path, problem);
        let identity = self.identity().map_err(failed)?;
        let mut stream = self.stored_stream(record).await?;
        if let Opened::Plain(stored) = stream.source {
            stream.source = Opened::sealed(stored, identity).await.map_err(failed)?;
        }
        Ok(stream)
    }

    /// The same, not decrypted.
    pub(crate) async fn stored_stream(&self, record: &ObjectRecord) -> Result<ObjectStream, RepoError> {
        self.stored_stream_in(record, None).await
    }

    async fn stored_stream_in(
        &self,
        record: &ObjectRecord,
        cuts: Option<Cuts>,
    ) -> Result<ObjectStream, RepoError> {
        let path = object_path(&record.path)?;
        let failed = |problem| RepoError::new("read", &record.path, problem);
        let (bytes, pieces) = self.pieces_in(path, cuts).await.map_err(|error| failed(error.into()))?;
        if bytes != record.stored_bytes {
            let what = format!("it has {bytes} bytes, the manifest says {}", record.stored_bytes);
            return Err(failed(Problem::Damaged(what)));
        }
        let stored = Arc::<Mutex<Stored>>::default();
        let seen = Arc::clone(&stored);
        let counted = self.clone();
        let stream = pieces.inspect_ok(move |piece| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.hasher.update(piece);
            seen.bytes = seen.bytes.saturating_add(piece.len() as u64);
            counted.note_read(piece.len());
        });
        Ok(ObjectStream { record: record.clone(), source: Opened::Plain(stream.boxed()), stored })
    }

    /// The length of an object and its stored bytes. A local file is read in large pieces, one ahead; the library's own stream takes
    /// 8 KiB at a time, each on another thread.
    pub(crate) async fn pieces(&self, path: Path) -> Result<(u64, Pieces), object_store::Error> {
        self.pieces_in(path, None).await
    }

    async fn pieces_in(&self, path: Path, cuts: Option<Cuts>) -> Result<(u64, Pieces), object_store::Error> {
        if let Location::Url(_) = self.location() {
            let found = self.store.get(&path).await?;
            return Ok((found.meta.size, found.into_stream()));
        }
        let bytes = self.store.head(&path).await?.size;
        let store = Arc::clone(&self.store);
        let ranges = cuts.unwrap_or_default().ranges(bytes);
        let reads = futures::stream::iter(ranges).map(move |range| {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move { store.get_range(&path, range).await }
        });
        Ok((bytes, reads.buffered(PIECES_IN_FLIGHT).boxed()))
    }

    /// The layer over an object of so many stored bytes; reads what every reading of an encrypted one needs.
    pub(crate) async fn layer(
        &self,
        path: &Path,
        stored_bytes: u64,
        header: Option<&HeaderRecord>,
    ) -> Result<Layer, Problem> {
        if !self.is_encrypted() {
            return Ok(Layer::Plain(stored_bytes));
        }
        self.identity()?;
        let most = header.map_or(MOST_HEADER_BYTES, |header| header.bytes.min(MOST_HEADER_BYTES));
        let beginning = self.store.get_range(path, 0..most.min(stored_bytes)).await?;
        if header.is_some_and(|header| *blake3::hash(&beginning).to_hex() != *header.blake3) {
            return Err(Problem::Damaged("its header is not the one that the manifest names".to_owned()));
        }
        let header_bytes = SealedObject::header_bytes(&beginning)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| Problem::Damaged("it does not begin as an age file does".to_owned()))?;
        let header = beginning.slice(..header_bytes);
        let (last, _) = SealedObject::last_chunk(header.len() as u64, stored_bytes)?;
        let tail = self.store.get_range(path, last).await?;
        Ok(Layer::Sealed(SealedObject::new(stored_bytes, header, tail)?))
    }

    /// A part of an object, by a ranged read.
    pub(crate) async fn part(&self, path: &Path, layer: &Layer, range: Range<u64>) -> Result<Bytes, Problem> {
        let wanted = range.end.saturating_sub(range.start);
        let bytes = match layer {
            Layer::Plain(_) => {
                let stored = self.store.get_range(path, range).await?;
                self.note_read(stored.len());
                stored
            }
            Layer::Sealed(_) if wanted == 0 => Bytes::new(),
            Layer::Sealed(object) => {
                let stored = self.store.get_range(path, object.stored_range(&range)).await?;
                self.note_read(stored.len());
                object.open(self.identity()?, &range, &stored)?
            }
        };
        if bytes.len() as u64 != wanted {
            let what = format!("{} bytes came where {wanted} were asked for", bytes.len());
            return Err(Problem::Damaged(what));
        }
        self.note_read(bytes.len());
        Ok(bytes)
    }

    /// Reads an object that fits into memory, at most `most_bytes` long.
    pub async fn read(&self, record: &ObjectRecord, most_bytes: usize) -> Result<Vec<u8>, RepoError> {
        let mut stream = self.stream(record).await?;
        let mut whole = Vec::new();
        while let Some(piece) = stream.next().await? {
            if whole.len() + piece.len() > most_bytes {
                let problem = Problem::Damaged(format!("it is longer than {most_bytes} bytes"));
                return Err(RepoError::new("read", &record.path, problem));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// Reads an object to its end and checks its length and BLAKE3; calls `progress` with the bytes of each piece.
    pub async fn verify(
        &self,
        record: &ObjectRecord,
        mut progress: impl FnMut(u64),
    ) -> Result<(), RepoError> {
        let mut stream = self.stored_stream(record).await?;
        while let Some(piece) = stream.next().await? {
            progress(piece.len() as u64);
        }
        Ok(())
    }

    /// What a manifest would say of a framed object that none names; reads all of it. Whether it holds what was written, nothing here tells.
    pub async fn describe(&self, path: &str, stored_bytes: u64) -> Result<ObjectRecord, RepoError> {
        let failed = |problem| RepoError::new("read", path, problem);
        let object = object_path(path)?;
        let layer = self.layer(&object, stored_bytes, None).await.map_err(failed)?;
        let end = layer.bytes();
        let tail = async |bytes: u64| {
            self.part(&object, &layer, end.saturating_sub(bytes)..end).await.map_err(failed)
        };
        let footer = tail(SEEK_FOOTER_BYTES).await?;
        let table_bytes = SeekTable::stored_bytes(&footer, end).map_err(|error| failed(error.into()))?;
        let table = SeekTable::parse(&tail(table_bytes).await?, end).map_err(|error| failed(error.into()))?;
        let header = layer.header().map(|header| HeaderRecord {
            bytes: header.len() as u64,
            blake3: blake3::hash(header).to_hex().to_string(),
        });
        let (_, mut pieces) = self.pieces(object).await.map_err(|error| failed(error.into()))?;
        let mut hasher = Box::new(Hasher::new());
        while let Some(piece) = pieces.try_next().await.map_err(|error| failed(error.into()))? {
            hasher.update(&piece);
            self.note_read(piece.len());
        }
        Ok(ObjectRecord {
            path: path.to_owned(),
            stored_bytes,
            raw_bytes: table.raw_bytes(),
            blake3: hasher.finalize().to_hex().to_string(),
            header,
        })
    }

    /// Opens a framed object: reads its seek table.
    pub async fn framed(&self, record: &ObjectRecord) -> Result<FramedObject, RepoError> {
        let failed = |problem| RepoError::new("read", &record.path, problem);
        let path = object_path(&record.path)?;
        let meta = self.store.head(&path).await.map_err(|error| failed(error.into()))?;
        if meta.size != record.stored_bytes {
            let what = format!("it has {} bytes, the manifest says {}", meta.size, record.stored_bytes);
            return Err(failed(Problem::Damaged(what)));
        }
        let layer = self.layer(&path, meta.size, record.header.as_ref()).await.map_err(failed)?;
        let end = layer.bytes();
        let tail =
            async |bytes: u64| self.part(&path, &layer, end.saturating_sub(bytes)..end).await.map_err(failed);
        let footer = tail(SEEK_FOOTER_BYTES).await?;
        let table_bytes = SeekTable::stored_bytes(&footer, end).map_err(|error| failed(error.into()))?;
        let table = SeekTable::parse(&tail(table_bytes).await?, end).map_err(|error| failed(error.into()))?;
        if table.raw_bytes() != record.raw_bytes {
            let what =
                format!("it holds {} bytes, the manifest says {}", table.raw_bytes(), record.raw_bytes);
            return Err(failed(Problem::Damaged(what)));
        }
        let decompressor = Decompressor::new().map_err(|error| failed(Problem::Store(error.to_string())))?;
        Ok(FramedObject {
            repository: self.clone(),
            record: record.clone(),
            path,
            layer,
            table,
            decompressor,
            sequence: None,
        })
    }
}

/// A framed object, open for reading.
pub struct FramedObject {
    repository: Repository,
    record: ObjectRecord,
    path: Path,
    layer: Layer,
    table: SeekTable,
    decompressor: Decompressor<'static>,
    sequence: Option<Sequence>,
}

/// Where the reading in order stands.
struct Sequence {
    stream: ObjectStream,
    pending: Bytes,
    next_frame: usize,
}

impl Sequence {
    /// Takes the next piece behind what waits.
    fn push(&mut self, piece: Bytes) {
        if self.pending.is_empty() {
            self.pending = piece;
            return;
        }
        let mut both = BytesMut::with_capacity(self.pending.len().saturating_add(piece.len()));
        both.extend_from_slice(&self.pending);
        both.extend_from_slice(&piece);
        self.pending = both.freeze();
    }
}

impl FramedObject {
    /// Where its frames lie.
    pub fn table(&self) -> &SeekTable {
        &self.table
    }

    /// One frame, by a ranged read.
    pub async fn frame(&mut self, number: usize) -> Result<Vec<u8>, RepoError> {
        let failed = |problem| RepoError::new("read", &self.record.path, problem);
        let Some(frame) = self.table.frames().get(number) else {
            return Err(failed(Problem::Damaged(format!("it has no frame {number}"))));
        };
        let range = frame.stored_start..frame.stored_end();
        let stored = self.repository.part(&self.path, &self.layer, range).await.map_err(failed)?;
        frame.decompress(&mut self.decompressor, &stored).map_err(|error| failed(error.into()))
    }

    /// The next frame in order, or `None` after the last one, once the whole object's BLAKE3 has been found right.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, RepoError> {
        self.next_in(Vec::new()).await
    }

    /// The same, in a buffer that is used again.
    pub async fn next_in(&mut self, mut buffer: Vec<u8>) -> Result<Option<Vec<u8>>, RepoError> {
        if self.sequence.is_none() {
            let cuts = Cuts::between_frames(&self.table);
            let stream = self.repository.stream_in(&self.record, Some(cuts)).await?;
            self.sequence = Some(Sequence { stream, pending: Bytes::new(), next_frame: 0 });
        }
        let Some(sequence) = &mut self.sequence else { return Ok(None) };
        let frame: Option<Frame> = self.table.frames().get(sequence.next_frame).copied();
        let wanted = frame.map_or(usize::MAX, |frame| frame.stored_bytes as usize);
        while sequence.pending.len() < wanted {
            match sequence.stream.next().await? {
                // Behind the last frame stands the seek table, which has been read already.
                Some(_) if frame.is_none() => {}
                Some(piece) => sequence.push(piece),
                None => break,
            }
        }
        let Some(frame) = frame else { return Ok(None) };
        let failed = |problem| RepoError::new("read", &self.record.path, problem);
        if sequence.pending.len() < wanted {
            return Err(failed(Problem::Damaged(format!("it ends inside frame {}", frame.number))));
        }
        sequence.next_frame += 1;
        let stored = sequence.pending.split_to(wanted);
        let made = frame.decompress_into(&mut self.decompressor, &stored, &mut buffer);
        made.map(|()| Some(buffer)).map_err(|error| failed(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_in_pieces_that_leave_nothing_out() {
        let ranges = |cuts: &[u64], bytes| Cuts(cuts.to_vec()).ranges(bytes).collect::<Vec<_>>();
        assert_eq!(ranges(&[], 0), []);
        assert_eq!(ranges(&[], PIECE_BYTES + 1), [0..PIECE_BYTES, PIECE_BYTES..PIECE_BYTES + 1]);
        assert_eq!(ranges(&[3, 7], 9), [0..3, 3..7, 7..9]);
        // What a table says that is not the file's.
        assert_eq!(ranges(&[0, 3, 3, 20, 30], 9), [0..3, 3..9]);
        let far =
            [0..2 * PIECE_BYTES, 2 * PIECE_BYTES..4 * PIECE_BYTES, 4 * PIECE_BYTES..4 * PIECE_BYTES + 1];
        assert_eq!(ranges(&[u64::MAX], 4 * PIECE_BYTES + 1), far);
    }
}
