//! Writing an object of any length with bounded memory.

use blake3::Hasher;
use bytes::Bytes;
use object_store::{ObjectStoreExt, WriteMultipart};
use slotkeep_format::manifest::{HeaderRecord, ObjectRecord};

use crate::crypt::Sealer;
use crate::error::RepoError;
use crate::location::object_path;
use crate::repository::Repository;

/// How many parts of one object are on their way to the store at a time.
const PARTS_IN_FLIGHT: usize = 2;

/// The most memory that one [`ObjectWriter`] holds for a store that wants large parts: those on their way and one being filled.
pub const WRITE_BUFFER_BYTES: usize = (PARTS_IN_FLIGHT + 1) * (8 << 20);

/// An object that is being written. It is visible only once [`ObjectWriter::finish`] has returned; dropped or aborted, it leaves
/// nothing that a reader could see.
pub struct ObjectWriter {
    repository: Repository,
    path: String,
    upload: WriteMultipart,
    /// On the heap: it is large, and futures hold it.
    hasher: Box<Hasher>,
    stored_bytes: u64,
    /// Of a repository that is encrypted.
    sealed: Option<(Box<Sealer>, HeaderRecord)>,
}

impl Repository {
    /// Begins an object.
    pub async fn create_object(&self, path: String) -> Result<ObjectWriter, RepoError> {
        let mut writer = self.create_stored_object(path).await?;
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

    /// Begins an object whose bytes are stored as they are given: they are encrypted already, or not to be.
    pub(crate) async fn create_stored_object(&self, path: String) -> Result<ObjectWriter, RepoError> {
        let object = object_path(&path)?;
        self.must_be_there().await?;
        let upload =
            self.store.put_multipart(&object).await.map_err(|error| RepoError::new("write", &path, error))?;
        let upload = WriteMultipart::new_with_chunk_size(upload, self.part_bytes());
        Ok(ObjectWriter {
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
        let Some((sealer, _)) = &mut self.sealed else { return self.put(bytes).await };
        let stored = sealer.seal(&bytes).map_err(|problem| RepoError::new("encrypt", &self.path, problem))?;
        self.put(stored.into()).await
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), RepoError> {
        self.upload
            .wait_for_capacity(PARTS_IN_FLIGHT)
            .await
            .map_err(|error| RepoError::new("write", &self.path, error))?;
        self.hasher.update(&bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(bytes.len() as u64);
        self.upload.put(bytes);
        Ok(())
    }

    /// Completes the object, durable when this returns; `raw_bytes` is the length of what it holds before compression.
    pub async fn finish(mut self, raw_bytes: u64) -> Result<ObjectRecord, RepoError> {
        let mut header = None;
        if let Some((sealer, record)) = self.sealed.take() {
            let rest = sealer.finish().map_err(|problem| RepoError::new("encrypt", &self.path, problem))?;
            self.put(rest.into()).await?;
            header = Some(record);
        }
        let Self { repository, path, upload, hasher, stored_bytes, .. } = self;
        let finished = upload.finish().await;
        let blake3 = hasher.finalize().to_hex().to_string();
        let record = ObjectRecord { path, stored_bytes, raw_bytes, blake3, header };
        if let Err(error) = finished {
            let error = RepoError::new("write", &record.path, error);
            // The object may be complete although the answer never came: its own bytes tell.
            repository.verify(&record, |_| ()).await.map_err(|_| error)?;
        }
        repository.must_hold(&record.path).await?;
        Ok(record)
    }

    /// Gives the object up and removes what the store has of it.
    pub async fn abort(self) -> Result<(), RepoError> {
        let Self { path, upload, .. } = self;
        upload.abort().await.map_err(|error| RepoError::new("abort the writing of", path, error))
    }
}
