//! Which backups a repository holds.
//!
//! What can't be read is named, never passed over: a listing with unreadable manifests says so.

use std::str::FromStr;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{BackupKind, CLOCKS_APART, sort_newest_first};

use crate::crypt::open_armored;
use crate::error::{Problem, RepoError};
use crate::known::{Known, Seen};
use crate::layout;
use crate::repository::Repository;

/// How many manifests one task reads at a time from a store.
const READS_IN_FLIGHT: usize = 8;
/// How many manifests one task reads in all.
const TASK_MANIFESTS: usize = 64;
/// How many tasks read from a store at a time: interpreting JSON is what takes the time.
const TASKS_IN_FLIGHT: usize = 4;
/// How many threads read from a folder at a time: each waits for the disk, file by file.
const FOLDER_TASKS_IN_FLIGHT: usize = 16;

/// Which backup is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupSelector {
    /// The one with the newest data.
    Latest,
    /// The one of that id, or the only one whose id starts so.
    Id(String),
}

impl FromStr for BackupSelector {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "latest" { Self::Latest } else { Self::Id(text.to_owned()) })
    }
}

/// The backups of one cluster.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those whose manifest can be read, oldest first.
    pub backups: Vec<Manifest>,
    /// Those whose manifest can't be read.
    pub unreadable: Vec<UnreadableBackup>,
    /// The newest backup that this machine has seen there is one of these: what can be read may be an old state that was put in its place. Why
    /// whoever wants the newest state is to be refused.
    pub newest_spoiled: Option<String>,
}

/// A backup whose manifest can't be read.
#[derive(Debug)]
pub struct UnreadableBackup {
    /// The backup's id.
    pub id: String,
    /// Why not.
    pub error: RepoError,
}

impl Repository {
    /// The names of the clusters that the repository holds something of. Refused if one of which this machine has seen a backup there is not among
    /// them.
    pub async fn clusters(&self) -> Result<Vec<String>, RepoError> {
        // First: what is written and seen meanwhile need not be listed.
        let seen = self.known.as_ref().map(Known::clusters).unwrap_or_default();
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|error| RepoError::new("list", self.location(), error))?;
        let names = listed.common_prefixes.iter().filter_map(|prefix| prefix.parts().next());
        let names: Vec<String> =
            names.map(|part| part.as_ref().to_owned()).filter(|name| layout::is_cluster_name(name)).collect();
        for gone in seen.iter().filter(|seen| !names.contains(seen)) {
            self.backup_ids(gone).await?;
        }
        Ok(names)
    }

    /// The ids of a cluster's backups, oldest first. Refused if the newest one that this machine has seen there is gone, and none is there,
    /// rightly signed, that is newer. One that is there and can't be read is not gone: who reads it is told, and new backups are made beside it.
    pub async fn backup_ids(&self, cluster: &str) -> Result<Vec<String>, RepoError> {
        let (seen, ids) = self.listed_ids(cluster).await?;
        if let Some(seen) = seen {
            self.check_seen(cluster, &seen, &ids).await?;
        }
        Ok(ids)
    }

    /// Refuses as [`Self::backup_ids`] does; asks nothing of the store where this machine has seen no backup. Gives what to say of the newest one
    /// that it has seen if that is there and is not what it was.
    pub async fn check_newest(&self, cluster: &str) -> Result<Option<String>, RepoError> {
        if self.known.as_ref().is_none_or(|known| known.newest(cluster).is_none()) {
            return Ok(None);
        }
        let (seen, ids) = self.listed_ids(cluster).await?;
        match seen {
            Some(seen) => self.check_seen(cluster, &seen, &ids).await,
            None => Ok(None),
        }
    }

    /// The newest backup that this machine has seen there, and the ids that are there, oldest first: those of all files, that what is no manifest
    /// is named where it can't be read.
    async fn listed_ids(&self, cluster: &str) -> Result<(Option<Seen<'_>>, Vec<String>), RepoError> {
        let folder = layout::backups(cluster);
        // First: what is written and seen meanwhile need not be listed.
        let seen = self.known.as_ref().and_then(|known| known.newest(cluster));
        let names: Vec<_> = self
            .store
            .list(Some(&folder))
            .map_ok(|object| object.location.filename().unwrap_or_default().to_owned())
            .try_collect()
            .await
            .map_err(|error| RepoError::new("list", &folder, error))?;
        let mut ids: Vec<String> =
            names.iter().filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        ids.sort();
        Ok((seen, ids))
    }

    /// Refuses unless one of these is as new as the backup that was seen there. Whoever can write there can make a file of any name: only
    /// what is signed counts.
    async fn check_seen(
        &self,
        cluster: &str,
        seen: &Seen<'_>,
        ids: &[String],
    ) -> Result<Option<String>, RepoError> {
        let mut instead = None;
        for id in ids.iter().rev().take_while(|id| **id >= seen.id) {
            match self.read_manifest(cluster, id).await {
                Ok(_) => return Ok(None),
                Err(error) if *id == seen.id => return Ok(seen.spoiled(&error.problem)),
                Err(error) => instead = Some(UnreadableBackup { id: id.clone(), error }),
            }
        }
        Err(seen.missed((self.location(), layout::backups(cluster)), instead))
    }

    /// The manifest of one backup. Its settings are there only if the repository can be read.
    pub async fn manifest(&self, cluster: &str, id: &str) -> Result<Manifest, RepoError> {
        let manifest = self.read_manifest(cluster, id).await?;
        self.saw(cluster, id).await?;
        Ok(manifest)
    }

    /// Remembers on this machine that the backup was there.
    pub(crate) async fn saw(&self, cluster: &str, id: &str) -> Result<(), RepoError> {
        match &self.known {
            Some(known) => known.saw(cluster, id).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn read_manifest(&self, cluster: &str, id: &str) -> Result<Manifest, RepoError> {
        let bytes = self.get_json(&layout::manifest(cluster, id)).await?;
        self.interpret(cluster, id, &bytes)
    }

    /// The manifest that these bytes are, whose signature has been found right.
    fn interpret(&self, cluster: &str, id: &str, bytes: &[u8]) -> Result<Manifest, RepoError> {
        let failed = |problem| RepoError::new("read", layout::manifest(cluster, id), problem);
        let mut manifest = Manifest::parse(bytes).map_err(|error| failed(error.into()))?;
        if manifest.id != id || manifest.cluster != cluster {
            let what = format!("it says it is backup {} of {}", manifest.id, manifest.cluster);
            return Err(failed(Problem::Damaged(what)));
        }
        if let Some(identity) = &self.keyring.identity
            && let Some(sealed) = Manifest::sealed_settings(bytes).map_err(|error| failed(error.into()))?
        {
            let json = open_armored(identity, &sealed).map_err(failed)?;
            manifest.settings = Manifest::parse_settings(&json).map_err(|error| failed(error.into()))?;
        }
        Ok(manifest)
    }

    /// All backups of a cluster.
    pub async fn backups(&self, cluster: &str) -> Result<Listing, RepoError> {
        let (seen, ids) = self.listed_ids(cluster).await?;
        let tasks = ids.chunks(TASK_MANIFESTS).map(|ids| {
            let (repository, cluster, ids) = (self.clone(), cluster.to_owned(), ids.to_vec());
            async { tokio::spawn(async move { repository.read_manifests(&cluster, ids).await }).await }
        });
        let tasks: Vec<_> = tasks.collect();
        let at_a_time = if self.folder().is_some() { FOLDER_TASKS_IN_FLIGHT } else { TASKS_IN_FLIGHT };
        let mut tasks = futures::stream::iter(tasks).buffered(at_a_time);
        let mut listing = Listing::default();
        while let Some(read) = tasks.next().await {
            let read = read.map_err(|error| worker_ended(cluster, &error))??;
            listing.backups.extend(read.backups);
            listing.unreadable.extend(read.unreadable);
        }
        let newest = listing.backups.last().map(|newest| newest.id.as_str());
        if let Some(seen) = seen.filter(|seen| newest.is_none_or(|newest| newest < seen.id.as_str())) {
            match listing.unreadable.iter().find(|backup| backup.id == seen.id) {
                Some(spoiled) => listing.newest_spoiled = seen.spoiled(&spoiled.error.problem),
                None => {
                    let instead = listing.unreadable.into_iter().find(|backup| backup.id > seen.id);
                    return Err(seen.missed((self.location(), layout::backups(cluster)), instead));
                }
            }
        }
        if let Some(newest) = newest {
            self.saw(cluster, newest).await?;
        }
        Ok(listing)
    }

    /// Those backups, in their order.
    async fn read_manifests(&self, cluster: &str, ids: Vec<String>) -> Result<Listing, RepoError> {
        let in_folder = self.read_manifests_in_folder(cluster, &ids).await?;
        let found = in_folder.into_iter().chain(std::iter::repeat_with(|| None));
        let reads = ids.into_iter().zip(found).map(|(id, found)| async move {
            // What could not be read there is read as from any store, which says why it can't be.
            let manifest = match found {
                Some(manifest) => Ok(manifest),
                None => self.read_manifest(cluster, &id).await,
            };
            (id, manifest)
        });
        let reads: Vec<_> = reads.collect();
        let mut reads = futures::stream::iter(reads).buffered(READS_IN_FLIGHT);
        let mut listing = Listing::default();
        while let Some((id, manifest)) = reads.next().await {
            match manifest {
                Ok(manifest) => listing.backups.push(manifest),
                Err(error) => listing.unreadable.push(UnreadableBackup { id, error }),
            }
        }
        Ok(listing)
    }

    /// The same from a local folder, where the store would take two threads for each file, one after the other; that was half of the work.
    async fn read_manifests_in_folder(
        &self,
        cluster: &str,
        ids: &[String],
    ) -> Result<Vec<Option<Manifest>>, RepoError> {
        let Some(folder) = self.folder().map(std::path::Path::to_owned) else { return Ok(vec![]) };
        let (repository, of, ids) = (self.clone(), cluster.to_owned(), ids.to_vec());
        let read = move |id: &String| {
            let path = layout::manifest(&of, id);
            let bytes = std::fs::read(folder.join(path.as_ref())).ok()?;
            repository.check_signature(&path, &bytes).ok()?;
            repository.interpret(&of, id, &bytes).ok()
        };
        let read = tokio::task::spawn_blocking(move || ids.iter().map(read).collect());
        read.await.map_err(|error| worker_ended(cluster, &error))
    }

    /// The backup that is meant.
    pub async fn find(&self, cluster: &str, selector: &BackupSelector) -> Result<Manifest, RepoError> {
        let ids = self.backup_ids(cluster).await?;
        let failed = |problem| {
            let what = match selector {
                BackupSelector::Latest => format!("the latest backup of `{cluster}` in {}", self.location()),
                BackupSelector::Id(id) => format!("backup `{id}` of `{cluster}` in {}", self.location()),
            };
            Err(RepoError::new("find", what, problem))
        };
        let id = match selector {
            BackupSelector::Latest => match self.latest(cluster, &ids).await? {
                Some(manifest) => return Ok(manifest),
                None => return failed(Problem::NoBackups),
            },
            BackupSelector::Id(wanted) if ids.contains(wanted) => wanted,
            BackupSelector::Id(wanted) => {
                let mut fitting =
                    ids.iter().filter(|id| !wanted.is_empty() && id.starts_with(wanted.as_str()));
                match (fitting.next(), fitting.next()) {
                    (Some(id), None) => id,
                    (None, _) => return failed(Problem::NoSuchBackup(newest(&ids))),
                    (Some(one), Some(other)) => {
                        let all = [one, other].into_iter().chain(fitting);
                        return failed(Problem::Ambiguous(all.cloned().collect()));
                    }
                }
            }
        };
        self.manifest(cluster, id).await
    }

    /// The backup with the newest data: the last one, unless that is an old moment which was merged since.
    async fn latest(&self, cluster: &str, ids: &[String]) -> Result<Option<Manifest>, RepoError> {
        let mut newest: Vec<Manifest> = Vec::new();
        for id in ids.iter().rev() {
            let manifest = self.manifest(cluster, id).await?;
            // What was made before holds nothing that is newer, however far apart the clocks are.
            let is_before = |newer: &Manifest| {
                let surely = manifest.finished_at.checked_add(CLOCKS_APART).unwrap_or(Timestamp::MAX);
                surely <= newer.data_at()
            };
            let is_last = manifest.kind != BackupKind::Merged || newest.iter().any(is_before);
            newest.push(manifest);
            if is_last {
                break;
            }
        }
        sort_newest_first(&mut newest);
        Ok(newest.into_iter().next())
    }
}

fn worker_ended(cluster: &str, error: &tokio::task::JoinError) -> RepoError {
    let what = format!("a worker ended unexpectedly: {error}");
    RepoError::new("read", layout::backups(cluster), Problem::Store(what))
}

/// The ids to name when none fits: the newest few.
fn newest(ids: &[String]) -> Vec<String> {
    ids.iter().rev().take(5).cloned().collect()
}
