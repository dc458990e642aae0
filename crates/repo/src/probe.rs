//! Looking at a place before it is relied on: whether it takes, gives back and deletes objects, keeps what exists, and has room.
//!
//! Invariant: nothing of a probe stays, unless the store takes objects and does not delete them.

use std::path::{Path, PathBuf};

use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::error::{Problem, RepoError};
use crate::location::{Location, io_problem};

/// What the name of a probe begins with.
pub(crate) const PROBE_PREFIX: &str = "slotkeep-probe-";
/// What a probe writes.
const PROBE_BYTES: &[u8] = b"slotkeep probe: may be deleted";

/// What a probe of a place has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Whether a create that must fail because the object exists did fail. Some stores answer such a request with success and
    /// overwrite the object: there, two writers can destroy each other's backups.
    pub refuses_overwrite: bool,
}

impl Location {
    /// Whether the first backup would make a repository here: a local folder that does not exist or is empty.
    pub async fn can_become_repository(&self) -> Result<bool, RepoError> {
        self.is_new_folder().await
    }

    /// Writes a small object, reads it back, tries to create it again and deletes it. `nonce` makes its name unique. If the folder
    /// does not exist yet, the nearest folder above it is probed, in which it would have to be made.
    pub async fn probe(&self, nonce: &str) -> Result<Probe, RepoError> {
        let place = match self {
            Self::Folder(path) => Self::Folder(nearest_folder(path).await),
            Self::Url(_) => self.clone(),
        };
        probe(&*place.store().await?, nonce, &place).await
    }

    /// How many bytes a local folder's file system has left for this user; unknown for an object store.
    pub async fn free_bytes(&self) -> Result<Option<u64>, RepoError> {
        let Self::Folder(path) = self else { return Ok(None) };
        let folder = nearest_folder(path).await;
        let failed = |error: std::io::Error| RepoError::new("look at", self, io_problem(&error));
        let found = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&folder)).await;
        let found = found.map_err(|error| failed(std::io::Error::other(error)))?;
        let about = found.map_err(|error| failed(error.into()))?;
        Ok(Some(about.f_bavail.saturating_mul(about.f_frsize)))
    }
}

/// Probes a store.
pub(crate) async fn probe(
    store: &dyn ObjectStore,
    nonce: &str,
    place: &Location,
) -> Result<Probe, RepoError> {
    let path = ObjectPath::from(format!("{PROBE_PREFIX}{nonce}"));
    let on = format!("{place}/{path}");
    let probed = write_twice(store, &path, &on).await;
    let deleted = store.delete(&path).await.map_err(|error| RepoError::new("delete", &on, error));
    match (probed, deleted) {
        (Ok(probe), Ok(())) => Ok(probe),
        // What failed first says more than what failed of the cleaning up.
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

/// Removes what earlier probes left that were killed.
pub(crate) async fn remove_probes(store: &dyn ObjectStore, place: &Location) -> Result<(), RepoError> {
    let left = store.list_with_delimiter(None).await;
    let left = left.map_err(|error| RepoError::new("list", place, error))?.objects;
    for object in left.iter().filter(|object| object.location.as_ref().starts_with(PROBE_PREFIX)) {
        match store.delete(&object.location).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(RepoError::new("delete", &object.location, error)),
        }
    }
    Ok(())
}

async fn write_twice(store: &dyn ObjectStore, path: &ObjectPath, on: &str) -> Result<Probe, RepoError> {
    let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let failed = |error| RepoError::new("write", on, error);
    let mut conditional = true;
    match store.put_opts(path, PROBE_BYTES.into(), create()).await {
        Ok(_) => {}
        // A store that knows no conditions may say so.
        Err(Error::NotSupported { .. } | Error::NotImplemented { .. }) => {
            conditional = false;
            store.put(path, PROBE_BYTES.into()).await.map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    let read = async { store.get(path).await?.bytes().await };
    let found = read.await.map_err(|error| RepoError::new("read", on, error))?;
    if found != PROBE_BYTES {
        let problem = Problem::Damaged("it does not hold what was written a moment ago".to_owned());
        return Err(RepoError::new("read", on, problem));
    }
    if !conditional {
        return Ok(Probe { refuses_overwrite: false });
    }
    match store.put_opts(path, PROBE_BYTES.into(), create()).await {
        Ok(_) => Ok(Probe { refuses_overwrite: false }),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
            Ok(Probe { refuses_overwrite: true })
        }
        Err(error) => Err(failed(error)),
    }
}

/// The folder itself, or the nearest one above it that exists. A path that leads through a file ends there, and fails where it is
/// used.
async fn nearest_folder(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for folder in absolute.ancestors() {
        if tokio::fs::symlink_metadata(folder).await.is_ok() {
            return folder.to_owned();
        }
    }
    absolute
}
