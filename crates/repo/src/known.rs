//! What this machine remembers of signed repositories, so that it notices when one is swapped or put back.
//!
//! The keys that a repository names stand in the repository, where whoever can write to the bucket can change them. So they are
//! remembered where a repository was first used, as SSH remembers hosts; and with them the newest backup that was seen there.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use slotkeep_format::RepositoryFile;

use crate::catalog::UnreadableBackup;
use crate::crypt::SigningKey;
use crate::error::{Problem, RepoError};
use crate::location::{Location, io_problem};

/// A folder of this machine's user, in which what is remembered lies.
#[derive(Clone, Debug)]
pub struct StateFolder(PathBuf);

/// What is remembered of one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    location: String,
    repository_id: String,
    recipients: Vec<String>,
    signing_key: Option<String>,
    /// The newest backup of each cluster.
    #[serde(default)]
    newest: BTreeMap<String, String>,
}

impl Remembered {
    fn parse(path: &Path, json: &[u8]) -> Result<Self, RepoError> {
        serde_json::from_slice(json)
            .map_err(|error| RepoError::new("read", path.display(), Problem::Damaged(error.to_string())))
    }
}

impl StateFolder {
    /// That folder; it is made when there is something to remember.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn known(&self, location: &Location) -> PathBuf {
        let name = match location {
            Location::Folder(path) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
            }
            Location::Url(url) => url.to_string(),
        };
        let hash = blake3::hash(name.trim_end_matches('/').as_bytes()).to_hex();
        self.0.join("known").join(format!("{}.json", hash.get(..32).unwrap_or_default()))
    }

    /// What is missed where a place is empty; nothing if this machine has used no signed repository there.
    pub(crate) async fn missed(&self, location: &Location) -> Result<Option<String>, RepoError> {
        let path = self.known(location);
        let Some(json) = read(&path).await? else { return Ok(None) };
        Ok(Some(format!(
            "it is empty, and the signed repository {} was used here before: it may not be mounted. If it is gone for good, remove {}",
            Remembered::parse(&path, &json)?.repository_id,
            path.display()
        )))
    }

    fn signing(&self, repository_id: &str) -> PathBuf {
        // An id that is no plain name must not lead out of the folder.
        let name = if repository_id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            repository_id
        } else {
            "other"
        };
        self.0.join("signing").join(format!("{name}.key"))
    }

    /// Keeps the signing key of a repository that was made here. Only this user can read it.
    pub(crate) async fn keep_signing_key(
        &self,
        repository_id: &str,
        key: &SigningKey,
    ) -> Result<(), RepoError> {
        let text =
            format!("# signs backups of the Slotkeep repository {repository_id}\n{}\n", key.secret_text());
        write_private(&self.signing(repository_id), text.as_bytes()).await
    }

    /// The signing key of that repository, if it is kept here.
    pub(crate) async fn signing_key(&self, repository_id: &str) -> Result<Option<SigningKey>, RepoError> {
        let path = self.signing(repository_id);
        match read(&path).await? {
            None => Ok(None),
            Some(bytes) => SigningKey::parse(&String::from_utf8_lossy(&bytes))
                .map(Some)
                .map_err(|problem| RepoError::new("read", path.display(), problem)),
        }
    }
}

/// What this machine remembers of the repository that is open.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    path: PathBuf,
    remembered: Arc<Mutex<Remembered>>,
    /// Held while the file is written: several manifests are read at a time.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Known {
    /// Compares a repository with what is remembered of its place, and remembers it if it is the first. Repositories without a signing key are
    /// not remembered; one that had a key and has none now is refused.
    pub(crate) async fn check(
        folder: &StateFolder,
        location: &Location,
        file: &RepositoryFile,
    ) -> Result<Option<Self>, RepoError> {
        let path = folder.known(location);
        let new = remembered(location, file);
        let Some(json) = read(&path).await? else {
            if file.signing_key.is_none() {
                return Ok(None);
            }
            return Self::remember(path, new).await.map(Some);
        };
        let old = Remembered::parse(&path, &json)?;
        let same = old.repository_id == new.repository_id
            && old.recipients == new.recipients
            && old.signing_key == new.signing_key;
        if !same {
            let what = format!(
                "this is not the repository that was used here before (its id or keys differ). If you have made it anew, remove {}",
                path.display()
            );
            return Err(RepoError::new("trust", location, Problem::Untrusted(what)));
        }
        Ok(Some(Self { path, remembered: Arc::new(Mutex::new(old)), writing: Arc::default() }))
    }

    /// Remembers a repository that was made here just now, whatever was there before.
    pub(crate) async fn made(
        folder: &StateFolder,
        location: &Location,
        file: &RepositoryFile,
    ) -> Result<Self, RepoError> {
        Self::remember(folder.known(location), remembered(location, file)).await
    }

    async fn remember(path: PathBuf, remembered: Remembered) -> Result<Self, RepoError> {
        save(&path, &remembered).await?;
        Ok(Self { path, remembered: Arc::new(Mutex::new(remembered)), writing: Arc::default() })
    }

    /// The newest backup of a cluster that was seen there, if one was.
    pub(crate) fn newest(&self, cluster: &str) -> Option<Seen<'_>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.newest.get(cluster).map(|id| Seen { known: self, id: id.clone() })
    }

    /// The clusters of which a backup was seen there.
    pub(crate) fn clusters(&self) -> Vec<String> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.newest.keys().cloned().collect()
    }

    /// Remembers a backup whose signature was right.
    pub(crate) async fn saw(&self, cluster: &str, id: &str) -> Result<(), RepoError> {
        let changed = {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            let newer = remembered.newest.get(cluster).is_none_or(|newest| newest.as_str() < id);
            newer.then(|| {
                remembered.newest.insert(cluster.to_owned(), id.to_owned());
                remembered.clone()
            })
        };
        let Some(mut remembered) = changed else { return Ok(()) };
        let _writing = self.writing.lock().await;
        // Another process may have seen newer ones meanwhile.
        if let Some(others) =
            read(&self.path).await?.and_then(|json| serde_json::from_slice::<Remembered>(&json).ok())
        {
            for (cluster, id) in others.newest {
                let newest = remembered.newest.entry(cluster).or_default();
                if *newest < id {
                    *newest = id;
                }
            }
        }
        save(&self.path, &remembered).await
    }
}

/// The newest backup of a cluster that this machine has seen in a repository.
pub(crate) struct Seen<'a> {
    known: &'a Known,
    pub(crate) id: String,
}

impl Seen<'_> {
    /// Why a repository is refused that holds neither that backup nor a newer one; `instead` is what bears a later id, and why that can't be
    /// read.
    pub(crate) fn missed(
        &self,
        (at, folder): (&Location, impl Display),
        instead: Option<UnreadableBackup>,
    ) -> RepoError {
        // That a newer version wrote it, or that the store does not answer, is no sign of anything.
        let instead = match instead {
            Some(instead) if !tells_of_change(&instead.error.problem) => return instead.error,
            instead => instead.map(|it| format!(" ({} can't be read: {})", it.id, it.error.problem)),
        };
        let what = format!(
            "backup {} was here and is not any more, nor a newer one{}: backups were taken away, or an old copy was put in place. If that was you, \
             remove {}",
            self.id,
            instead.unwrap_or_default(),
            self.known.path.display()
        );
        RepoError::new("trust", folder, Problem::Untrusted(what)).at(at)
    }

    /// Why nobody is to be given the newest state of a repository in which that backup is there, and is not what it was.
    pub(crate) fn spoiled(&self, why: &Problem) -> Option<String> {
        tells_of_change(why).then(|| {
            format!(
                "backup {}, the newest that was seen here, can't be read ({why}): what is left may be an old state that was put in its place",
                self.id
            )
        })
    }
}

/// Whether an object that can't be read for that reason is not what was written.
const fn tells_of_change(problem: &Problem) -> bool {
    matches!(problem, Problem::Damaged(_) | Problem::Untrusted(_) | Problem::Missing)
}

fn remembered(location: &Location, file: &RepositoryFile) -> Remembered {
    Remembered {
        location: location.to_string(),
        repository_id: file.repository_id.clone(),
        recipients: file.recipients.clone(),
        signing_key: file.signing_key.clone(),
        newest: BTreeMap::new(),
    }
}

async fn read(path: &Path) -> Result<Option<Vec<u8>>, RepoError> {
    match tokio::fs::read(path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RepoError::new("read", path.display(), io_problem(&error))),
    }
}

async fn save(path: &Path, remembered: &Remembered) -> Result<(), RepoError> {
    let json = serde_json::to_vec_pretty(remembered)
        .map_err(|error| RepoError::new("write", path.display(), Problem::Store(error.to_string())))?;
    write_private(path, &json).await
}

/// Writes a file that only this user can read, whole or not at all.
async fn write_private(path: &Path, bytes: &[u8]) -> Result<(), RepoError> {
    use tokio::io::AsyncWriteExt;
    let failed = |error: std::io::Error| RepoError::new("write", path.display(), io_problem(&error));
    if let Some(folder) = path.parent() {
        let mut private = tokio::fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(folder).await.map_err(failed)?;
    }
    // Two processes must not write one temporary file.
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let written = async {
        let mut file = tokio::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .await?;
        file.write_all(bytes).await?;
        file.sync_all().await?;
        tokio::fs::rename(&temporary, path).await
    };
    written.await.map_err(failed)
}
