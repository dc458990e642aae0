//! A folder for the time being, which holds data in plain; and what killed runs have left of such folders.
//!
//! Invariants: while a process works in such a folder it holds the lock on the file beside it, and the kernel takes the lock from it however it
//! ends; what is removed bears such a name, is this user's, and holds a lock file that nobody has locked. A folder without one, as other programs
//! and earlier versions make it, is never touched.

use std::fs::{self, DirEntry, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Error, ErrorKind, Result, private};

const PREFIX: &str = "slotkeep-";
/// What they are made for, as it stands in their names.
const KINDS: [&str; 4] = ["diff", "fold", "recover", "verify"];
const LOCK: &str = "lock";
const INSIDE: &str = "in";
/// How often one is made anew that another run took for abandoned before it was locked.
const TRIES: u32 = 8;

/// A folder for the time being: removed when it is dropped, or by the next run that makes one in the same place if this process is killed.
#[derive(Debug)]
pub struct WorkFolder {
    inside: PathBuf,
    // Removed before the lock is given back.
    _folder: TempDir,
    _lock: File,
}

impl WorkFolder {
    /// Makes one in that folder, for a fold of a log.
    pub fn for_fold(parent: &Path) -> Result<Self> {
        Self::make(parent, "fold")
    }

    /// Makes one in that folder; `kind` is one of [`KINDS`].
    pub(crate) fn make(parent: &Path, kind: &str) -> Result<Self> {
        Self::try_make(parent, kind).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
                _ => ErrorKind::Failed,
            };
            let what = format!("can't make a temporary folder in {}: {error}", parent.display());
            Error::new(kind, what).hint("name a folder with enough space: --spool DIR")
        })
    }

    fn try_make(parent: &Path, kind: &str) -> io::Result<Self> {
        for _ in 0..TRIES {
            let folder = tempfile::Builder::new().prefix(&format!("{PREFIX}{kind}-")).tempdir_in(parent)?;
            let inside = folder.path().join(INSIDE);
            let made = lock(&folder.path().join(LOCK)).and_then(|lock| {
                private::make_folder(&inside)?;
                Ok(lock)
            });
            match made {
                Ok(Some(lock)) => {
                    remove_abandoned(parent, folder.path());
                    return Ok(Self { inside, _folder: folder, _lock: lock });
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound && parent.exists() => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("another run removes it each time"))
    }

    /// Where to work.
    pub fn path(&self) -> &Path {
        &self.inside
    }
}

/// Makes the file and locks it; nothing if another run was faster, which takes the folder for abandoned.
fn lock(path: &Path) -> io::Result<Option<File>> {
    keep(private::to_write().create_new(true).open(path)?, path)
}

fn keep(file: File, path: &Path) -> io::Result<Option<File>> {
    match file.try_lock() {
        // A file system that knows no locks: nobody can find this one abandoned.
        Ok(()) | Err(TryLockError::Error(_)) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
    }
    // It may have been removed before it was locked.
    let (held, there) = (file.metadata()?, fs::symlink_metadata(path)?);
    Ok(((held.dev(), held.ino()) == (there.dev(), there.ino())).then_some(file))
}

/// Removes what killed runs of the user of `own` have left beside it.
fn remove_abandoned(parent: &Path, own: &Path) {
    let (Ok(entries), Ok(own)) = (fs::read_dir(parent), fs::symlink_metadata(own)) else { return };
    for entry in entries.flatten() {
        if let Some(_lock) = abandoned(&entry, own.uid()) {
            let path = entry.path();
            match fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!(folder = %path.display(), "removed what a killed run has left"),
                Err(error) => {
                    tracing::warn!(folder = %path.display(), %error, "what a killed run has left can't be removed");
                }
            }
        }
    }
}

/// The lock of a folder whose process is gone.
fn abandoned(entry: &DirEntry, user: u32) -> Option<File> {
    let name = entry.file_name();
    let (kind, rest) = name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
    let is_ours = KINDS.contains(&kind) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // Of a link, the entry's own.
    let about = entry.metadata().ok().filter(|about| is_ours && about.is_dir() && about.uid() == user)?;
    let path = entry.path().join(LOCK);
    let there = fs::symlink_metadata(&path).ok()?;
    if !there.is_file() || there.uid() != user || there.dev() != about.dev() {
        return None;
    }
    let lock = File::open(&path).ok()?;
    lock.try_lock().ok().map(|()| lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// As a run leaves it that is killed.
    fn killed(parent: &Path, name: &str) {
        let folder = parent.join(name);
        fs::create_dir_all(folder.join(INSIDE)).unwrap();
        fs::write(folder.join(LOCK), "").unwrap();
        fs::write(folder.join(INSIDE).join("rdb"), "plain").unwrap();
    }

    #[test]
    fn what_killed_runs_have_left_is_removed_by_the_next_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let spool = place.path();
        killed(spool, "slotkeep-recover-a1b2C3");
        killed(spool, "slotkeep-verify-a1b2C3");
        // Others', of an earlier version, and what is no folder.
        killed(spool, "slotkeep-archive-a1b2C3");
        killed(spool, "slotkeep-recover-of mine");
        killed(spool, "main-0123");
        fs::create_dir(spool.join("slotkeep-recover-earlier")).unwrap();
        killed(&spool.join("main-0123"), "elsewhere");
        std::os::unix::fs::symlink(spool.join("main-0123/elsewhere"), spool.join("slotkeep-recover-link"))
            .unwrap();
        let kept = [
            "main-0123",
            "slotkeep-archive-a1b2C3",
            "slotkeep-recover-earlier",
            "slotkeep-recover-link",
            "slotkeep-recover-of mine",
        ];

        let living = WorkFolder::make(spool, "recover").unwrap();
        fs::write(living.path().join("rdb"), "mine").unwrap();
        let other = WorkFolder::make(spool, "verify").unwrap();
        let mut found = names(spool);
        let made =
            |one: &WorkFolder| one.path().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let both = [made(&living), made(&other)];
        assert!(both.iter().all(|name| found.contains(name)), "{found:?}");
        found.retain(|name| !both.contains(name));
        assert_eq!(found, kept);
        assert_eq!(fs::read_to_string(living.path().join("rdb")).unwrap(), "mine");
        assert_eq!(names(&spool.join("main-0123/elsewhere")), ["in", "lock"]);
        drop((living, other));
        assert_eq!(names(spool), kept);
    }

    #[test]
    fn a_lock_on_a_file_that_another_run_removed_is_no_lock() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(LOCK);
        let open = || private::to_write().create_new(true).open(&path).unwrap();
        let removed = open();
        fs::remove_file(&path).unwrap();
        assert_eq!(keep(removed, &path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let removed = open();
        fs::remove_file(&path).unwrap();
        let there = open();
        assert!(keep(removed, &path).unwrap().is_none());
        let locked = File::open(&path).unwrap();
        locked.try_lock().unwrap();
        assert!(keep(there, &path).unwrap().is_none());
        drop(locked);
        assert!(keep(File::open(&path).unwrap(), &path).unwrap().is_some());
    }
}
