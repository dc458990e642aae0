//! The local disk before the repository: what has been received is written to files here and made durable, until it is sealed.
//!
//! Invariants: what [`SpoolState::durable`] names is on the disk, and survives the end of this process and of the machine; a file
//! that is not being written any more is whole up to its last safe cut, whatever happened to its writer; a folder is used by one
//! process at a time; no other user can read it, as what is in it is plain even where the repository is encrypted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use slotkeep_format::SpoolHeader;
use tokio::sync::Semaphore;

use super::pack::Holding;
use crate::ports::{Rng, random_hex};
use crate::{Error, ErrorKind, Result, private};

mod writer;

pub(crate) use writer::{ClosedFile, SpoolState, SpoolStopped, SpoolWriter};

const SUFFIX: &str = "spool";
const LOCK: &str = "lock";
/// The file that says which agent uses the folder.
const AGENT: &str = "agent";
const AGENT_DIGITS: usize = 16;
/// What folders of processes that keep nothing are called.
const PASSING: &str = "backup-";

/// A folder for spool files.
#[derive(Debug)]
pub(crate) struct SpoolFolder {
    path: PathBuf,
    used_bytes: AtomicU64,
    limit_bytes: u64,
    sequence: AtomicU64,
    /// What the packs of its files take.
    holding: Holding,
    /// Files are read again one at a time: each takes the memory of a segment.
    pub(crate) reading: Semaphore,
    /// Removed with everything in it when it is dropped.
    passing: bool,
    _lock: File,
}

impl SpoolFolder {
    /// The folder of an agent, for one cluster of one repository. What an earlier run left is still in it.
    pub(crate) fn open(
        root: &Path,
        repository_id: &str,
        cluster: &str,
        limit_bytes: u64,
    ) -> Result<Arc<Self>> {
        let place = Self::place(root, repository_id, cluster);
        let folder = Self::lock(place, limit_bytes, false)?;
        let used = folder.leftovers()?.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
        folder.used_bytes.store(used, Ordering::Relaxed);
        Ok(Arc::new(folder))
    }

    /// A folder for a run that leaves nothing behind: what it did not seal is on the servers still.
    pub(crate) fn passing(
        root: &Path,
        repository_id: &str,
        cluster: &str,
        id: &str,
        limit_bytes: u64,
    ) -> Result<Arc<Self>> {
        let place = Self::place(root, repository_id, cluster);
        remove_abandoned(&place);
        Ok(Arc::new(Self::lock(place.join(format!("{PASSING}{id}")), limit_bytes, true)?))
    }

    fn place(root: &Path, repository_id: &str, cluster: &str) -> PathBuf {
        let short: String = repository_id.chars().take(16).collect();
        root.join(format!("{cluster}-{short}"))
    }

    fn lock(path: PathBuf, limit_bytes: u64, passing: bool) -> Result<Self> {
        private::make_folder(&path).map_err(|error| failed("make", &path, &error))?;
        // One that was there may have been made by hand, or copied.
        let open = private::close_folder(&path).map_err(|error| failed("close to others", &path, &error))?;
        if let Some(mode) = open {
            tracing::warn!(
                "{} is another user's folder and not closed to others (mode {mode:o}): they may read what waits there, in plain; run `chmod 700` on it as its \
                 owner, or name another folder with --spool",
                path.display()
            );
        }
        let name = path.join(LOCK);
        let options = private::to_write().create(true).truncate(false).open(&name);
        let lock = options.map_err(|error| failed("open", &name, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let what =
                    format!("another slotkeep archives this cluster already: it uses {}", path.display());
                return Err(Error::new(ErrorKind::Usage, what)
                    .hint("stop the other one first, or give this one its own place: --spool DIR"));
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &name, &error)),
        }
        Ok(Self {
            path,
            used_bytes: AtomicU64::new(0),
            limit_bytes,
            sequence: AtomicU64::new(0),
            holding: Holding::default(),
            reading: Semaphore::new(1),
            passing,
            _lock: lock,
        })
    }

    /// Who the agent is that uses this folder: chosen at random by the first run, and kept. The folder's lock keeps two processes from being
    /// one agent, unless somebody copies the folder.
    pub(crate) fn agent(&self, rng: &dyn Rng) -> Result<String> {
        let path = self.path.join(AGENT);
        if let Ok(text) = fs::read_to_string(&path) {
            let id = text.trim();
            if id.len() == AGENT_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(id.to_owned());
            }
        }
        let id = random_hex(rng, AGENT_DIGITS)?;
        let write = || {
            let mut file = private::to_write().create(true).truncate(true).open(&path)?;
            file.write_all(id.as_bytes())?;
            file.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| failed("write", &path, &error))?;
        Ok(id)
    }

    /// The files that an earlier run left.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let listed = fs::read_dir(&self.path).map_err(|error| failed("read", &self.path, &error))?;
        let paths = listed.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX)).collect();
        files.sort();
        Ok(files)
    }

    /// Whether as much is waiting to be sealed as is allowed.
    pub(crate) fn is_full(&self) -> bool {
        self.used_bytes() >= self.limit_bytes
    }

    /// Whether there is room for a while after it was full.
    pub(crate) fn has_room_again(&self) -> bool {
        self.used_bytes() <= self.limit_bytes / 2
    }

    /// What is waiting to be sealed, in bytes.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Deletes a file that has been sealed or is of no use.
    pub(crate) fn remove(&self, file: &Path) {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        match fs::remove_file(file) {
            Ok(()) => {
                let _ = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                    Some(used.saturating_sub(bytes))
                });
            }
            Err(error) => tracing::warn!(file = %file.display(), %error, "a sealed spool file stays"),
        }
    }

    fn create(&self, header: &SpoolHeader) -> io::Result<(PathBuf, File)> {
        loop {
            let number = self.sequence.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{:020}-{number:06}.{SUFFIX}", header.history, header.start);
            let path = self.path.join(name);
            match private::to_write().create_new(true).open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for SpoolFolder {
    fn drop(&mut self) {
        if self.passing
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "a temporary folder stays behind");
        }
        if self.passing {
            // The folders above stay if they are in use.
            for above in self.path.ancestors().skip(1).take(2) {
                let _ = fs::remove_dir(above);
            }
        }
    }
}

/// Removes the folders of runs that were killed.
fn remove_abandoned(place: &Path) {
    let Ok(listed) = fs::read_dir(place) else { return };
    for path in listed.filter_map(|entry| Some(entry.ok()?.path())) {
        let passing =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PASSING.as_bytes()));
        let abandoned = || File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if passing && abandoned() {
            // What is left of it is tried again next time.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, format!("can't {doing} {}: {error}", path.display()))
        .hint("name a folder on a local disk with enough space: --spool DIR")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use slotkeep_format::spool::SPOOL_VERSION;

    use super::*;
    use crate::ports::SystemRng;

    #[test]
    fn a_folder_of_ours_that_others_may_read_is_closed_to_them() {
        let place = tempfile::tempdir().unwrap();
        let (id, cluster) = ("0123456789abcdef", "main");
        let folder = SpoolFolder::place(place.path(), id, cluster);
        fs::create_dir(&folder).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        for open in [0o755, 0o2770, 0o701] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(open)).unwrap();
            drop(SpoolFolder::open(place.path(), id, cluster, 1 << 20).unwrap());
            assert_eq!(mode(&folder), open & !0o077);
        }
    }

    #[test]
    fn what_is_received_is_for_this_user_alone() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("state/spool");
        let folder = SpoolFolder::open(&root, "0123456789abcdef", "main", 1 << 20).unwrap();
        folder.agent(&SystemRng).unwrap();
        let header = SpoolHeader {
            format_version: SPOOL_VERSION,
            cluster: "main".to_owned(),
            history: "a".repeat(40).parse().unwrap(),
            parent: None,
            start: 1,
            slots: slotkeep_model::SlotSet::full(),
            begun_at: jiff::Timestamp::UNIX_EPOCH,
            database: None,
            source: "127.0.0.1:7000".parse().unwrap(),
            server: slotkeep_format::manifest::ServerRecord {
                product: slotkeep_format::manifest::ProductRecord::Valkey,
                version: "8.0.0".to_owned(),
            },
        };
        let (file, _) = folder.create(&header).unwrap();
        let inside = [LOCK, AGENT].map(|name| folder.path.join(name));
        for path in [&root, &folder.path, &file].into_iter().chain(&inside) {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        }
    }
}
