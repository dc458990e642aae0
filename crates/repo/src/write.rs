//! Writing an object of any length with bounded memory, here and in all companions.

use std::sync::Arc;

use blake3::Hasher;
use bytes::Bytes;
use futures::FutureExt;
use object_store::ObjectStoreExt;
use slotkeep_format::manifest::{HeaderRecord, ObjectRecord};

use crate::companions::{Companion, Write, everywhere};
use crate::crypt::Sealer;
use crate::error::RepoError;
use crate::location::object_path;
use crate::repository::Repository;
use crate::upload::Upload;

/// How many parts of one object are on their way to the store at a time.
const PARTS_IN_FLIGHT: usize = 2;

/// The most memory that one [`ObjectWriter`] holds for each store that wants large parts: those on their way and one being filled. An object of more
/// than 5,000 parts holds larger ones, in all less than a hundredth of its own length.
pub const WRITE_BUFFER_BYTES: usize = (PARTS_IN_FLIGHT + 1) * (8 << 20);

/// An object that is being written. It is visible only once [`ObjectWriter::finish`] has returned; dropped or aborted, it leaves
/// nothing that a reader could see.
pub struct ObjectWriter {
    own: Writing,
    others: Vec<(Arc<Companion>, Writing)>,
}

/// An object on its way into one repository.
pub(crate) struct Writing {
    repository: Repository,
    path: String,
    upload: Upload,
    /// On the heap: it is large, and futures hold it.
    hasher: Box<Hasher>,
    stored_bytes: u64,
    /// Of a repository that is encrypted.
    sealed: Option<(Box<Sealer>, HeaderRecord)>,
}

impl Repository {
    /// Begins an object, here and in all companions.
    pub async fn create_object(&self, path: String) -> Result<ObjectWriter, RepoError> {
        let mut begun: Vec<(Arc<Companion>, Option<Writing>)> =
            self.live_companions().map(|companion| (Arc::clone(companion), None)).collect();
        let others: Vec<Write<'_>> = begun
            .iter_mut()
            .map(|(companion, writing)| {
                let (companion, path) = (&**companion, path.clone());
                let start = async move {
                    *writing = Some(companion.repository().begin_object(path).await?);
                    Ok(())
                };
                (companion, start.boxed())
            })
            .collect();
        let own = everywhere(&self.location, self.begin_object(path.clone()), others).await;
        let others: Vec<_> = begun.into_iter().filter_map(|(one, writing)| Some((one, writing?))).collect();
        match own {
            Ok(own) => Ok(ObjectWriter { own, others }),
            Err(error) => {
                for (_, writing) in others {
                    // The first error is the one to report.
                    let _ = writing.abort().await;
                }
                Err(error)
            }
        }
    }

    /// Begins an object whose bytes are stored as they are given: they are encrypted already, or not to be.
    pub(crate) async fn create_stored_object(&self, path: String) -> Result<ObjectWriter, RepoError> {
        Ok(ObjectWriter { own: self.begin_stored_object(path).await?, others: vec![] })
    }

    pub(crate) async fn begin_object(&self, path: String) -> Result<Writing, RepoError> {
        let mut writer = self.begin_stored_object(path).await?;
        if let Some(recipient) = &self.keyring.recipient {
            let started = Sealer::start(recipient);
            let (sealer, header) =
                started.map_err(|problem| RepoError::new("encrypt", &writer.path, problem))?;
            let blake3 = blake3::hash(&header).to_hex().to_string();
            let record = HeaderRecord { bytes: header.len() as u64, blake3 };
            writer.put(header.into()).await?;
            writer.sealed = Some((Box::new(sealer), record));
        }
        Ok(writer)
    }

    async fn begin_stored_object(&self, path: String) -> Result<Writing, RepoError> {
        let object = object_path(&path)?;
        self.must_be_there().await?;
        let upload =
            self.store.put_multipart(&object).await.map_err(|error| RepoError::new("write", &path, error))?;
        let upload = Upload::new(upload, self.part_bytes());
        Ok(Writing {
            repository: self.clone(),
            path,
            upload,
            hasher: Box::new(Hasher::new()),
            stored_bytes: 0,
            sealed: None,
        })
    }
}

impl ObjectWriter {
    /// Appends bytes; waits while too many parts are on their way. Not cancel-safe: cancelled, the object must be aborted.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RepoError> {
        let Self { own, others } = self;
        let location = own.repository.location.clone();
        let each = others.iter_mut();
        let each = each.map(|(companion, writing)| (&**companion, writing.write(bytes.clone()).boxed()));
        everywhere(&location, own.write(bytes.clone()), each.collect()).await?;
        for (_, writing) in others.extract_if(.., |(companion, _)| companion.failure().is_some()) {
            // Nobody waits for one that was given up.
            tokio::spawn(writing.abort());
        }
        Ok(())
    }

    /// Completes the object, durable when this returns; `raw_bytes` is the length of what it holds before compression. What failed leaves nothing
    /// in the store. Not cancel-safe: cancelled, the object must be aborted.
    pub async fn finish(&mut self, raw_bytes: u64) -> Result<ObjectRecord, RepoError> {
        let Self { own, others } = self;
        let location = own.repository.location.clone();
        let each = others.iter_mut().map(|(companion, writing)| {
            let companion = &**companion;
            let finish = async move {
                companion.know_object(writing.finish(raw_bytes).await?);
                Ok(())
            };
            (companion, finish.boxed())
        });
        everywhere(&location, own.finish(raw_bytes), each.collect()).await
    }

    /// Gives the object up and removes what the stores have of it, also if writing or completing it was cancelled. What was completed stays.
    pub async fn abort(self) -> Result<(), RepoError> {
        let Self { own, others } = self;
        let location = own.repository.location.clone();
        let companions: Vec<Arc<Companion>> = others.iter().map(|(one, _)| Arc::clone(one)).collect();
        let each = companions.iter().zip(others);
        let each = each.map(|(companion, (_, writing))| (&**companion, writing.abort().boxed()));
        everywhere(&location, own.abort(), each.collect()).await
    }
}

impl Writing {
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), RepoError> {
        let Some((sealer, _)) = &mut self.sealed else { return self.put(bytes).await };
        let stored = sealer.seal(&bytes).map_err(|problem| RepoError::new("encrypt", &self.path, problem))?;
        self.put(stored.into()).await
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), RepoError> {
        self.upload
            .fewer_than(PARTS_IN_FLIGHT)
            .await
            .map_err(|error| RepoError::new("write", &self.path, error))?;
        self.hasher.update(&bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(bytes.len() as u64);
        self.upload.put(bytes);
        Ok(())
    }

    pub(crate) async fn finish(&mut self, raw_bytes: u64) -> Result<ObjectRecord, RepoError> {
        let mut header = None;
        if let Some((sealer, record)) = self.sealed.take() {
            let rest = sealer.finish().map_err(|problem| RepoError::new("encrypt", &self.path, problem))?;
            self.put(rest.into()).await?;
            header = Some(record);
        }
        let finished = self.upload.complete().await;
        let blake3 = self.hasher.finalize().to_hex().to_string();
        let (path, stored_bytes) = (self.path.clone(), self.stored_bytes);
        let record = ObjectRecord { path, stored_bytes, raw_bytes, blake3, header };
        if let Err(error) = finished {
            let error = RepoError::new("write", &record.path, error);
            // The first error is the one to report.
            let _ = self.upload.abort().await;
            // The object may be complete although the answer never came: its own bytes tell.
            self.repository.verify(&record, |_| ()).await.map_err(|_| error)?;
        }
        self.repository.must_hold(&record.path).await?;
        Ok(record)
    }

    pub(crate) async fn abort(self) -> Result<(), RepoError> {
        let Self { path, mut upload, .. } = self;
        upload.abort().await.map_err(|error| RepoError::new("abort the writing of", path, error))
    }
}
