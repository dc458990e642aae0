//! What writes left in a local folder that were killed: the library writes beside an object's place (`<name>#<n>`) and renames.
//!
//! Listings pass such files over, as no reader may take them for objects; so they are looked for in the folder itself. Invariant: only what bears such a
//! name is ever deleted here, and only if it was not written to since it was looked at.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::RepoError;
use crate::location::io_problem;
use crate::repository::Repository;
use crate::verify::StoredObject;

/// Whether a file of that name is beside its place still.
pub(crate) fn is_beside_its_place(name: &str) -> bool {
    // As the library sees it: what stands behind the first `#` are digits.
    let digits = name.split_once('#').map(|(_, digits)| digits);
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Repository {
    /// The files of a cluster, and those of the repository itself, that writes have begun and not ended: of processes that write now, or were
    /// killed. In the order of their paths; none in an object store, which keeps them to itself.
    pub async fn unfinished_writes(&self, cluster: &str) -> Result<Vec<StoredObject>, RepoError> {
        let Some(root) = self.folder() else { return Ok(Vec::new()) };
        let failed = |error: std::io::Error| RepoError::new("list", self.location(), io_problem(&error));
        let (root, cluster) = (root.to_owned(), cluster.to_owned());
        let found = tokio::task::spawn_blocking(move || find(&root, &cluster)).await;
        found.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)
    }

    /// Deletes such a file, unless it was written to since. Whether it is gone.
    pub async fn remove_unfinished(&self, file: &StoredObject) -> Result<bool, RepoError> {
        let Some(root) = self.folder().filter(|_| is_beside_its_place(file.name())) else { return Ok(false) };
        let failed = |error: std::io::Error| RepoError::new("delete", &file.path, io_problem(&error));
        let path = root.join(&file.path);
        let outcome = async {
            let about = tokio::fs::symlink_metadata(&path).await?;
            if !about.is_file() || modified_ms(&about) != file.modified_ms || about.len() != file.bytes {
                return Ok(false);
            }
            tokio::fs::remove_file(&path).await.map(|()| true)
        };
        match outcome.await {
            Ok(gone) => Ok(gone),
            // Its write has ended, or another prune was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(failed(error)),
        }
    }
}

fn find(root: &Path, cluster: &str) -> std::io::Result<Vec<StoredObject>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            if kind.is_dir() && (folder != root || name == *cluster) {
                open.push(entry.path());
            } else if kind.is_file() && name.to_str().is_some_and(is_beside_its_place) {
                let about = match entry.metadata() {
                    Ok(about) => about,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                let path = entry.path();
                let Some(path) = path.strip_prefix(root).ok().and_then(Path::to_str) else { continue };
                let modified_ms = modified_ms(&about);
                found.push(StoredObject { path: path.to_owned(), bytes: about.len(), modified_ms });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn modified_ms(about: &std::fs::Metadata) -> i64 {
    let since = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    // A file whose age is not known is taken for young.
    since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Location;

    #[test]
    fn only_what_the_library_names_so_is_unfinished() {
        for name in ["rdb.zst#1", "x#12", "slotkeep.json#3"] {
            assert!(is_beside_its_place(name), "{name}");
        }
        for name in ["rdb.zst", "x#", "x#1a", "#", "a#b#1", "x1"] {
            assert!(!is_beside_its_place(name), "{name}");
        }
    }

    #[tokio::test]
    async fn unfinished_writes_are_found_and_deleted_if_nobody_writes() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Folder(folder.path().to_owned());
        let repository =
            Repository::init(&location, "id".to_owned(), jiff::Timestamp::UNIX_EPOCH).await.unwrap();
        std::fs::create_dir_all(folder.path().join("main/history")).unwrap();
        std::fs::create_dir_all(folder.path().join("other")).unwrap();
        for name in ["main/history/rdb.zst#1", "main/history/rdb.zst", "other/x#1", "slotkeep.json#1"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let found = repository.unfinished_writes("main").await.unwrap();
        let paths: Vec<&str> = found.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["main/history/rdb.zst#1", "slotkeep.json#1"]);
        std::fs::write(folder.path().join("main/history/rdb.zst#1"), "and more").unwrap();
        assert!(!repository.remove_unfinished(&found[0]).await.unwrap());
        assert!(repository.remove_unfinished(&found[1]).await.unwrap());
        let object = StoredObject { path: "main/history/rdb.zst".to_owned(), bytes: 20, modified_ms: 0 };
        assert!(!repository.remove_unfinished(&object).await.unwrap());
        assert!(folder.path().join("main/history/rdb.zst").exists());
    }
}
