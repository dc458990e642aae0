//! A repository: one store, one `slotkeep.json`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use slotkeep_format::RepositoryFile;
use slotkeep_format::manifest::REPOSITORY_VERSION;

use crate::error::{Problem, RepoError};
use crate::layout::REPOSITORY_FILE;
use crate::location::{Location, object_path};

/// An open repository.
#[derive(Clone, Debug)]
pub struct Repository {
    location: Location,
    pub(crate) store: Arc<dyn ObjectStore>,
    file: RepositoryFile,
    /// Shared by all clones.
    bytes_read: Arc<AtomicU64>,
}

impl Repository {
    /// Makes a repository with that id. A local folder is created if there is none, and must be empty.
    pub async fn init(location: &Location, repository_id: String, now: Timestamp) -> Result<Self, RepoError> {
        location.create_folder().await?;
        let store = location.store()?;
        if read_repository_file(location, &store).await?.is_some() {
            return Err(RepoError::new("make a repository in", location, Problem::AlreadyRepository));
        }
        let occupied =
            store.list(None).try_next().await.map_err(|error| RepoError::new("list", location, error))?;
        if occupied.is_some() {
            return Err(RepoError::new("make a repository in", location, Problem::NotEmpty));
        }
        let file = RepositoryFile {
            format_version: REPOSITORY_VERSION,
            repository_id,
            created_at: now,
            recipients: vec![],
        };
        let json = file.render().map_err(|error| RepoError::new("write", REPOSITORY_FILE, error))?;
        put_new(&store, &Path::from(REPOSITORY_FILE), json)
            .await
            .map_err(|problem| RepoError::new("write", format!("{location}/{REPOSITORY_FILE}"), problem))?;
        Ok(Self::with(location, store, file))
    }

    /// Opens a repository that exists.
    pub async fn open(location: &Location) -> Result<Self, RepoError> {
        if location.is_new_folder().await? {
            return Err(RepoError::new("open", location, Problem::NoRepository));
        }
        let store = location.store()?;
        match read_repository_file(location, &store).await? {
            Some(file) => Ok(Self::with(location, store, file)),
            None => Err(RepoError::new("open", location, Problem::NoRepository)),
        }
    }

    /// Opens a repository, or makes one if the location is a local folder that does not exist or is empty.
    pub async fn open_or_create(
        location: &Location,
        repository_id: String,
        now: Timestamp,
    ) -> Result<Self, RepoError> {
        if location.is_new_folder().await? {
            return Self::init(location, repository_id, now).await;
        }
        Self::open(location).await
    }

    fn with(location: &Location, store: Arc<dyn ObjectStore>, file: RepositoryFile) -> Self {
        Self { location: location.clone(), store, file, bytes_read: Arc::default() }
    }

    /// How many stored bytes of objects were read since it was opened; manifests are not counted.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub(crate) fn note_read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What its `slotkeep.json` says.
    pub fn file(&self) -> &RepositoryFile {
        &self.file
    }

    /// The largest piece that is buffered for one part of an upload: small for a local folder, at least what object stores ask
    /// of a part for the others.
    pub(crate) fn part_bytes(&self) -> usize {
        match self.location {
            Location::Folder(_) => 1 << 20,
            Location::Url(_) => 8 << 20,
        }
    }

    /// Writes a small object that must not exist yet.
    pub async fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<(), RepoError> {
        let object = object_path(path)?;
        put_new(&self.store, &object, bytes).await.map_err(|problem| RepoError::new("write", path, problem))
    }

    /// Deletes an object that this process wrote and that no manifest names.
    pub async fn discard(&self, path: &str) -> Result<(), RepoError> {
        self.store.delete(&object_path(path)?).await.map_err(|error| RepoError::new("delete", path, error))
    }
}

async fn read_repository_file(
    location: &Location,
    store: &Arc<dyn ObjectStore>,
) -> Result<Option<RepositoryFile>, RepoError> {
    let on = || format!("{location}/{REPOSITORY_FILE}");
    let bytes = match store.get(&Path::from(REPOSITORY_FILE)).await {
        Ok(found) => found.bytes().await.map_err(|error| RepoError::new("read", on(), error))?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(RepoError::new("read", on(), error)),
    };
    RepositoryFile::parse(&bytes).map(Some).map_err(|error| RepoError::new("read", on(), error))
}

async fn put_new(store: &Arc<dyn ObjectStore>, path: &Path, bytes: Vec<u8>) -> Result<(), Problem> {
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(path, bytes.into(), create).await.map(drop).map_err(Problem::from)
}
