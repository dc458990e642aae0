//! What a restore remembers between two runs, in a local file.
//!
//! For each base: up to which byte every key is acknowledged, and how far keys may have been sent beyond that. The second is a promise,
//! made durable before the first key behind it leaves: a key of that stretch that is found on the target may be this restore's own,
//! one found further on is not. The servers' process ids stand there too: a server that is another one at the next run, or was
//! started again, may lack what its predecessor acknowledged, and its slots are gone through from the beginning.
//!
//! The file is replaced as a whole, so a crash leaves the one before.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use slotkeep_format::Manifest;
use slotkeep_model::SlotSet;

use super::options::OnConflict;
use super::run::Run;
use super::target::SlotMap;
use super::tracker::{Position, Tracker};
use crate::{Error, ErrorKind, Result, private};

const FORMAT_VERSION: u32 = 1;
/// How far ahead a promise reaches: one write of the file for so many bytes of RDB.
const PROMISE_BYTES: u64 = 64 << 20;

/// The file's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format_version: u32,
    /// The repository that is restored from.
    repository: String,
    cluster: String,
    backup: String,
    /// Chosen at random by the first run; part of the names of temporary keys.
    pub(super) restore_id: String,
    /// The policy that keys on the target were judged by.
    pub(super) on_conflict: OnConflict,
    pub(super) shards: Vec<ShardRecord>,
    servers: Vec<ServerRecord>,
    /// Slots that must be gone through from the beginning, as text.
    suspect: String,
}

/// How far one base has been restored.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    /// Every key before is acknowledged.
    pub(super) acknowledged: Position,
    /// No key behind has been sent.
    pub(super) promised: u64,
}

/// A server that keys were written to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ServerRecord {
    run_id: String,
    slots: String,
}

impl Record {
    /// What a restore remembers that has not begun.
    pub(super) fn new(
        manifest: &Manifest,
        repository: &str,
        restore_id: String,
        on_conflict: OnConflict,
    ) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            repository: repository.to_owned(),
            cluster: manifest.cluster.clone(),
            backup: manifest.id.clone(),
            restore_id,
            on_conflict,
            shards: vec![ShardRecord::default(); manifest.shards.len()],
            servers: Vec::new(),
            suspect: String::new(),
        }
    }

    /// Reads what an earlier run left; `None` if there is no file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let unusable = |why: String| {
            Error::new(ErrorKind::Failed, format!("can't go on from {}: {why}", path.display()))
                .hint("begin anew with --restart, or name another file with --state")
        };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let record: Self = serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        if record.format_version != FORMAT_VERSION {
            return Err(unusable(format!("it has format version {}", record.format_version)));
        }
        Ok(Some(record))
    }

    /// Refuses to go on with something else than what was begun.
    pub(super) fn check(
        &self,
        manifest: &Manifest,
        repository: &str,
        on_conflict: OnConflict,
        path: &Path,
    ) -> Result<()> {
        let differs = |what: String| {
            Error::new(ErrorKind::Usage, format!("{} remembers a restore {what}", path.display()))
                .hint("run that command again, or begin anew with --restart")
        };
        let same = self.repository == repository
            && self.cluster == manifest.cluster
            && self.backup == manifest.id
            && self.shards.len() == manifest.shards.len();
        if !same {
            return Err(differs(format!("of backup {} of `{}`", self.backup, self.cluster)));
        }
        if self.on_conflict != on_conflict {
            return Err(differs(format!("with --on-conflict {}", self.on_conflict)));
        }
        Ok(())
    }

    /// How much of the bases is acknowledged, in percent.
    pub(super) fn percent(&self, manifest: &Manifest) -> u8 {
        let all: u64 = manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes).sum();
        let done: u64 = self.shards.iter().map(|shard| shard.acknowledged.offset).sum();
        let percent = u128::from(done) * 100 / u128::from(all.max(1));
        u8::try_from(percent.min(100)).unwrap_or(100)
    }

    /// The slots that an earlier run left to be gone through, and those whose server is not the one that was written to.
    pub(super) fn suspects(&self, map: &SlotMap) -> SlotSet {
        let mut suspect: Vec<_> =
            self.suspect.parse::<SlotSet>().unwrap_or_else(|_| SlotSet::full()).iter().collect();
        for server in &self.servers {
            let Ok(slots) = server.slots.parse::<SlotSet>() else { return SlotSet::full() };
            let gone =
                |slot: &slotkeep_model::Slot| map.owner(*slot).is_some_and(|now| now.run_id != server.run_id);
            suspect.extend(slots.iter().filter(gone));
        }
        suspect.into_iter().collect()
    }
}

/// The file of a restore that is running.
pub(super) struct Journal {
    path: PathBuf,
    record: Mutex<Record>,
    trackers: Vec<Arc<Tracker>>,
    saving: tokio::sync::Mutex<()>,
}

impl Journal {
    /// A journal that goes on from a record; one tracker for each base.
    pub(super) fn new(path: PathBuf, record: Record, trackers: Vec<Arc<Tracker>>) -> Self {
        Self { path, record: Mutex::new(record), trackers, saving: tokio::sync::Mutex::new(()) }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it durable that keys up to that offset of a base may be sent.
    pub(super) async fn promise(&self, run: &Run, shard: usize, end: u64) -> Result<()> {
        {
            let mut record = self.record();
            let Some(shard) = record.shards.get_mut(shard) else { return Ok(()) };
            if shard.promised >= end {
                return Ok(());
            }
            shard.promised = end.saturating_add(PROMISE_BYTES);
        }
        self.save(run).await
    }

    /// Writes down how far the restore has come.
    pub(super) async fn save(&self, run: &Run) -> Result<()> {
        let _one_at_a_time = self.saving.lock().await;
        let text = {
            let mut record = self.record();
            for (shard, tracker) in record.shards.iter_mut().zip(&self.trackers) {
                shard.acknowledged = tracker.mark();
            }
            // In this order: a server that is replaced in between is then both old and suspect, never new and trusted.
            let map = run.target.map();
            record.suspect = run.target.suspects().to_string();
            let server = |node: &super::target::TargetNode| ServerRecord {
                run_id: node.run_id.clone(),
                slots: node.slots.to_string(),
            };
            record.servers = map.nodes.iter().map(server).collect();
            serde_json::to_vec_pretty(&*record)
        };
        let text = text.map_err(|error| self.failed(&error.to_string()))?;
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || replace(&path, &text)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(error) => Err(self.failed(&error.to_string())),
        }
    }

    /// Removes the file: there is nothing left to go on from.
    pub(super) fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the state file could not be removed");
        }
    }

    fn failed(&self, why: &str) -> Error {
        Error::new(ErrorKind::Failed, format!("can't write the state file {}: {why}", self.path.display()))
            .hint("name a file that can be written with --state")
    }
}

fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        private::make_folder(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = private::to_write().create(true).truncate(true).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_state_of_a_restore_is_for_this_user_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state/restore.json");
        for text in [b"{}", b"[]"] {
            replace(&path, text).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), text);
        }
        for path in [path.as_path(), path.parent().unwrap()] {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        }
    }
}
