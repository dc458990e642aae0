//! Making a backup visible by writing its manifest, and what must stay because of it.
//!
//! Invariants: what a manifest names that this process has asked for is taken back only if it is certain that the manifest is not there and will not
//! be; a commit whose outcome nobody knows says so ([`Problem::MayBeListed`]), and is never taken for one that failed.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::civil::Date;
use object_store::path::Path;
use slotkeep_format::Manifest;

use crate::crypt::seal_armored;
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::repository::Repository;
use crate::store::pause;

/// How often it is tried to delete a manifest that must not stay.
const TRIES: u32 = 3;

/// The objects that manifests name, as far as this process has had to know.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Those which this process has listed, or may have: their paths, each with the number of those manifests.
    own: Mutex<HashMap<String, u64>>,
    others: Mutex<Others>,
}

/// What was read of manifests, whoever listed them, because something was to be taken back.
#[derive(Debug, Default)]
struct Others {
    /// Their ids. A manifest never changes.
    read: HashSet<String>,
    /// What they name.
    objects: HashSet<String>,
}

impl Named {
    /// Whether the object must stay because of what this process has done.
    fn holds(&self, path: &str) -> bool {
        self.counts().contains_key(path)
    }

    fn add(&self, manifest: &Manifest) {
        let mut counts = self.counts();
        for object in manifest.objects() {
            let count = counts.entry(object.path.clone()).or_default();
            *count = count.saturating_add(1);
        }
    }

    fn remove(&self, manifest: &Manifest) {
        let mut counts = self.counts();
        for object in manifest.objects() {
            let Some(count) = counts.get_mut(&object.path) else { continue };
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&object.path);
            }
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Repository {
    /// Makes a backup visible. Everything it names must be complete; nothing may be written for it afterwards. A backup that builds on what a
    /// prune is deleting is refused, and not listed. With companions it is listed in them as well, in this one the last of those that are
    /// required. Fails with [`Problem::MayBeListed`] if nobody knows whether it is listed: then [`Repository::discard`] keeps what it names.
    pub async fn commit(&self, manifest: &Manifest) -> Result<(), RepoError> {
        self.commit_everywhere(manifest).await
    }

    pub(crate) async fn commit_here(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let json = self.stored_manifest(manifest)?;
        self.commit_as(manifest, json).await
    }

    /// Whether a manifest that is listed names an object, or may: a repair may have listed what this process has not, and so may an agent
    /// that was told of it. Whoever lists a base does so after it was taken, by a clock that may be some hours off.
    pub(crate) async fn is_named(&self, path: &str) -> Result<bool, RepoError> {
        if self.named.holds(path) {
            return Ok(true);
        }
        let Some((folder, _, taken)) = layout::base_of(path) else { return Ok(false) };
        let cluster = folder.split('/').next().unwrap_or_default();
        let since = day_before(taken);
        let listed = self.backup_ids(cluster).await?;
        for id in listed.into_iter().filter(|id| id.as_str() >= since.as_str()) {
            if self.named.others().read.contains(&id) {
                continue;
            }
            let manifest = match self.read_manifest(cluster, &id).await {
                Ok(manifest) => manifest,
                // Deleted since it was listed.
                Err(RepoError { problem: Problem::Missing, .. }) => continue,
                // One that can't be read may name it.
                Err(RepoError { problem: Problem::Damaged(_) | Problem::Newer(_), .. }) => return Ok(true),
                Err(error) => return Err(error),
            };
            let mut others = self.named.others();
            others.objects.extend(manifest.objects().map(|object| object.path.clone()));
            others.read.insert(id);
        }
        Ok(self.named.others().objects.contains(path))
    }

    /// The same with these bytes, which hold that manifest.
    pub(crate) async fn commit_as(&self, manifest: &Manifest, json: Bytes) -> Result<(), RepoError> {
        self.check_not_pruned(manifest).await?;
        self.check_bases(manifest).await?;
        // Before it is asked for: a commit that is cancelled may have been carried out.
        self.named.add(manifest);
        if let Err(error) = self.list(manifest, json).await {
            if !matches!(error.problem, Problem::MayBeListed { .. }) {
                self.named.remove(manifest);
            }
            return Err(error);
        }
        let (cluster, id) = (&manifest.cluster, &manifest.id);
        self.saw(cluster, id).await.map_err(|error| {
            let on = format!("backup {id} of `{cluster}`, which is listed and whole, in {}", error.on);
            RepoError::new("remember", on, error.problem)
        })
    }

    /// Writes the manifest, and deletes it again if a prune has come in between.
    async fn list(&self, manifest: &Manifest, json: Bytes) -> Result<(), RepoError> {
        let path = layout::manifest(&manifest.cluster, &manifest.id);
        let unknown = |why: &dyn std::fmt::Display| {
            let problem = Problem::MayBeListed { id: manifest.id.clone(), why: why.to_string() };
            RepoError::new("write", &path, problem).at(self.location())
        };
        match self.create_unseen(&path, json).await {
            Ok(()) => {}
            Err((error, true)) => return Err(error),
            Err((error, false)) => return Err(unknown(&error.problem)),
        }
        self.must_hold(path.as_ref()).await.map_err(|error| unknown(&error))?;
        // A prune writes down what it gives up before it looks for backups that need it: it has seen this one, or is seen here.
        // One that has come to its end in between is told of by what it deleted.
        let refused = match self.check_not_pruned(manifest).await {
            Ok(()) => self.check_bases(manifest).await,
            refused => refused,
        };
        let Err(refused) = refused else { return Ok(()) };
        match self.unlist(&path).await {
            Ok(()) => Err(refused),
            Err(error) => Err(unknown(&format!("{refused}; so it was to be deleted again, and {error}"))),
        }
    }

    /// Deletes a manifest that was written just now; when this succeeds it is gone.
    async fn unlist(&self, path: &Path) -> Result<(), RepoError> {
        let mut failures = 0_u32;
        loop {
            let Err(error) = self.delete(path.as_ref()).await else { break };
            // Its answer may have been lost.
            if self.must_not_exist(path).await.is_ok() {
                break;
            }
            failures = failures.saturating_add(1);
            if failures >= TRIES {
                return Err(error);
            }
            pause::before_try(failures).await;
        }
        // What is not mounted is not gone.
        self.must_be_there().await
    }

    /// A manifest as it is stored here: its settings sealed, and signed.
    fn stored_manifest(&self, manifest: &Manifest) -> Result<Bytes, RepoError> {
        let path = layout::manifest(&manifest.cluster, &manifest.id);
        let failed = |problem| RepoError::new("write", &path, problem);
        let json = match &self.keyring.recipient {
            Some(recipient) if !manifest.settings.is_empty() => {
                let settings = manifest.render_settings().map_err(|error| failed(error.into()))?;
                manifest.render_sealed(&seal_armored(recipient, &settings).map_err(failed)?)
            }
            _ => manifest.render(),
        };
        let json = json.map_err(|error| failed(error.into()))?;
        self.sign(&path, json).map(Bytes::from).map_err(failed)
    }
}

/// What the ids of backups of the day before that one begin with, and all before of those are behind; nothing if it is no such id.
fn day_before(id: &str) -> String {
    let day = id.get(..8).and_then(|day| Date::strptime("%Y%m%d", day).ok());
    day.and_then(|day| day.yesterday().ok()).map(|day| day.strftime("%Y%m%d").to_string()).unwrap_or_default()
}
