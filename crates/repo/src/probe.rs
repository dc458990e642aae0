//! Looking at a place before it is relied on: whether it takes, gives back and deletes objects, keeps what exists, and has room.
//!
//! Invariant: nothing of a probe stays, unless the store takes objects and does not delete them.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions};

use crate::error::{Problem, RepoError};
use crate::location::{Location, io_problem};
use crate::repository::Repository;

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

    /// Whether both are one place, however they are spelt: the same folder behind links and mounts, the same bucket and prefix.
    pub async fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Folder(one), Self::Folder(other)) => {
                let (found, other_found) = (identity(one).await, identity(other).await);
                one == other || (found.is_some() && found == other_found)
            }
            (Self::Url(one), Self::Url(other)) => {
                // What stands before `@`, or first in the path of an https address, may be the bucket.
                let place = |url: &url::Url| {
                    let (scheme, _) = ObjectStoreScheme::parse(url).ok()?;
                    let path = ObjectPath::from_url_path(url.path()).ok()?;
                    Some((scheme, url.username().to_owned(), url.host_str().map(str::to_owned), path))
                };
                let found = place(one);
                one == other || (found.is_some() && found == place(other))
            }
            _ => false,
        }
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

impl Repository {
    /// The time by the store's clock, as it says when something was written just now. `nonce` makes the name of that unique.
    pub async fn store_time(&self, nonce: &str) -> Result<Timestamp, RepoError> {
        let path = format!("{PROBE_PREFIX}{nonce}");
        self.put_new(&path, PROBE_BYTES.to_vec()).await?;
        let told = self.written_at(&path).await;
        self.delete(&path).await?;
        told
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

/// By what the system tells a folder from all others.
async fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let about = tokio::fs::metadata(folder).await.ok()?;
    Some((about.dev(), about.ino()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_itself_however_it_is_spelt() {
        let folder = tempfile::tempdir().unwrap();
        let (one, link, other) =
            (folder.path().join("one"), folder.path().join("link"), folder.path().join("other"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let place = |text: &str| text.parse::<Location>().unwrap();
        let of = |path: &Path| Location::Folder(path.to_owned());
        for (same, another) in [
            (of(&one), of(&link)),
            (of(&one), of(&folder.path().join("other/../one/"))),
            (place("s3://bucket/redis"), place("s3://bucket/redis/")),
            (
                place("abfss://one@some.dfs.core.windows.net/x"),
                place("abfs://one@some.dfs.core.windows.net/x/"),
            ),
        ] {
            assert!(same.is_same_place(&another).await, "{same} {another}");
        }
        for (one, another) in [
            (of(&one), of(&other)),
            (of(&folder.path().join("none")), of(&folder.path().join("nowhere"))),
            (place("s3://bucket/redis"), place("s3://bucket/redis2")),
            (place("s3://bucket/redis"), place("s3://other/redis")),
            (place("s3://bucket/redis"), place("gs://bucket/redis")),
            (
                place("abfss://one@some.dfs.core.windows.net/x"),
                place("abfss://two@some.dfs.core.windows.net/x"),
            ),
            (
                place("https://some.blob.core.windows.net/one/x"),
                place("https://some.blob.core.windows.net/two/x"),
            ),
            (place("https://s3.amazonaws.com/one/x"), place("https://s3.amazonaws.com/two/x")),
        ] {
            assert!(!one.is_same_place(&another).await, "{one} {another}");
        }
    }
}
