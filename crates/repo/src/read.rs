//! Reading objects back: whole and verified, or a frame at a time.
//!
//! Invariant: an object that is read to its end has the length and the BLAKE3 that the manifest names, or the reading fails.

use std::sync::Arc;

use blake3::Hasher;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::frames::{Frame, SEEK_FOOTER_BYTES, SeekTable};
use slotkeep_format::manifest::ObjectRecord;
use zstd::bulk::Decompressor;

use crate::error::{Problem, RepoError};
use crate::location::{Location, object_path};
use crate::repository::Repository;

/// How much of a local file is read at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// How many such pieces are being read, or wait to be taken.
const PIECES_IN_FLIGHT: usize = 2;

/// The stored bytes of an object, in order.
type Pieces = BoxStream<'static, Result<Bytes, object_store::Error>>;

/// The bytes of one object in order, checked against its record when they end.
pub struct ObjectStream {
    repository: Repository,
    record: ObjectRecord,
    stream: Pieces,
    hasher: Hasher,
    bytes: u64,
}

impl ObjectStream {
    /// The next piece, or `None` after the last one, once length and BLAKE3 have been found right.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RepoError> {
        match self.stream.next().await {
            Some(Ok(piece)) => {
                self.repository.note_read(piece.len());
                self.hasher.update(&piece);
                self.bytes = self.bytes.saturating_add(piece.len() as u64);
                Ok(Some(piece))
            }
            Some(Err(error)) => Err(RepoError::new("read", &self.record.path, error)),
            None => self.check().map(|()| None),
        }
    }

    fn check(&self) -> Result<(), RepoError> {
        let damaged = |what: String| Err(RepoError::new("read", &self.record.path, Problem::Damaged(what)));
        if self.bytes != self.record.stored_bytes {
            return damaged(format!(
                "it has {} bytes, the manifest says {}",
                self.bytes, self.record.stored_bytes
            ));
        }
        let found = self.hasher.finalize().to_hex();
        if *found != *self.record.blake3 {
            return damaged(format!("its BLAKE3 is {found}, the manifest says {}", self.record.blake3));
        }
        Ok(())
    }
}

impl Repository {
    /// Reads an object from its beginning to its end.
    pub async fn stream(&self, record: &ObjectRecord) -> Result<ObjectStream, RepoError> {
        let path = object_path(&record.path)?;
        let stream = self.pieces(path).await.map_err(|error| RepoError::new("read", &record.path, error))?;
        Ok(ObjectStream {
            repository: self.clone(),
            record: record.clone(),
            stream,
            hasher: Hasher::new(),
            bytes: 0,
        })
    }

    /// The stored bytes of an object. A local file is read in large pieces, one ahead; the library's own stream takes 8 KiB at a time, each
    /// on another thread.
    async fn pieces(&self, path: Path) -> Result<Pieces, object_store::Error> {
        if let Location::Url(_) = self.location() {
            return Ok(self.store.get(&path).await?.into_stream());
        }
        let bytes = self.store.head(&path).await?.size;
        let store = Arc::clone(&self.store);
        let starts = (0..bytes).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
        let ranges = starts.map(move |start| start..start.saturating_add(PIECE_BYTES).min(bytes));
        let reads = futures::stream::iter(ranges).map(move |range| {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move { store.get_range(&path, range).await }
        });
        Ok(reads.buffered(PIECES_IN_FLIGHT).boxed())
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
        let mut stream = self.stream(record).await?;
        while let Some(piece) = stream.next().await? {
            progress(piece.len() as u64);
        }
        Ok(())
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
        let tail = async |bytes: u64| {
            let start = meta.size.saturating_sub(bytes);
            let range = start..meta.size;
            let bytes = self.store.get_range(&path, range).await.map_err(|error| failed(error.into()))?;
            self.note_read(bytes.len());
            Ok::<_, RepoError>(bytes)
        };
        let footer = tail(SEEK_FOOTER_BYTES).await?;
        let table_bytes =
            SeekTable::stored_bytes(&footer, meta.size).map_err(|error| failed(error.into()))?;
        let table =
            SeekTable::parse(&tail(table_bytes).await?, meta.size).map_err(|error| failed(error.into()))?;
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
    table: SeekTable,
    decompressor: Decompressor<'static>,
    sequence: Option<Sequence>,
}

/// Where the reading in order stands.
struct Sequence {
    stream: ObjectStream,
    pending: BytesMut,
    next_frame: usize,
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
        let stored =
            self.repository.store.get_range(&self.path, range).await.map_err(|error| failed(error.into()))?;
        self.repository.note_read(stored.len());
        frame.decompress(&mut self.decompressor, &stored).map_err(|error| failed(error.into()))
    }

    /// The next frame in order, or `None` after the last one, once the whole object's BLAKE3 has been found right.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, RepoError> {
        if self.sequence.is_none() {
            let stream = self.repository.stream(&self.record).await?;
            self.sequence = Some(Sequence { stream, pending: BytesMut::new(), next_frame: 0 });
        }
        let Some(sequence) = &mut self.sequence else { return Ok(None) };
        let frame: Option<Frame> = self.table.frames().get(sequence.next_frame).copied();
        let wanted = frame.map_or(usize::MAX, |frame| frame.stored_bytes as usize);
        while sequence.pending.len() < wanted {
            match sequence.stream.next().await? {
                // Behind the last frame stands the seek table, which has been read already.
                Some(_) if frame.is_none() => {}
                Some(piece) => sequence.pending.extend_from_slice(&piece),
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
        frame.decompress(&mut self.decompressor, &stored).map(Some).map_err(|error| failed(error.into()))
    }
}
