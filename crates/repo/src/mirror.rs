//! A place that is a mirror of a repository: the same id, the same keys, the same objects under the same names.
//!
//! Invariants: what is signed names its repository, so signed bytes are copied only to where the id and the keys are the same; a mirror's
//! key files are there before its `slotkeep.json`, as with `init`, and no others; making one that was broken off goes on.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::RepositoryFile;

use crate::crypt::Keyring;
use crate::error::{Problem, RepoError};
use crate::keys::key_files;
use crate::known::Known;
use crate::layout::{REPOSITORY_FILE, key_file_number};
use crate::location::Location;
use crate::probe::{PROBE_PREFIX, probe, remove_probes};
use crate::repository::{
    OpenOptions, Repository, check_fingerprint, check_may_be_plain, check_not_missed, creating,
    read_repository_file,
};
use crate::store::{create_new, stack};

impl Repository {
    /// Whether what is stored here means the same there: neither encrypts or signs, or both are the same repository.
    pub fn mirrors(&self, other: &Self) -> bool {
        let (one, other) = (self.file(), other.file());
        let plain = |file: &RepositoryFile| file.signing_key.is_none() && file.recipients.is_empty();
        let same = one.repository_id == other.repository_id
            && one.recipients == other.recipients
            && one.signing_key == other.signing_key;
        same || (plain(one) && plain(other))
    }

    /// Opens the repository at that place; `None` if the place is empty and could become a mirror of this one.
    pub async fn open_target(
        &self,
        location: &Location,
        options: &OpenOptions,
    ) -> Result<Option<Self>, RepoError> {
        if location.is_new_folder().await? {
            self.check_may_mirror(location, options).await?;
            return Ok(None);
        }
        let store = stack(location.store().await?, options.limit.clone(), options.stop.clone());
        if read_repository_file(location, &store).await?.is_some() {
            return Self::open_with(location, options).await.map(Some);
        }
        let mut listed = store.list(None);
        while let Some(object) =
            listed.try_next().await.map_err(|error| RepoError::new("list", location, error))?
        {
            let name = object.location.as_ref();
            if key_file_number(name).is_none() && !name.starts_with(PROBE_PREFIX) {
                return Err(RepoError::new("make a repository in", location, Problem::NotEmpty));
            }
        }
        self.check_may_mirror(location, options).await?;
        Ok(None)
    }

    /// Refuses an empty place where another repository is expected, an encrypted one though this is none, or where one was used before: it may
    /// not be mounted.
    async fn check_may_mirror(&self, location: &Location, options: &OpenOptions) -> Result<(), RepoError> {
        check_fingerprint(location, self.file(), options)?;
        if !self.is_encrypted() {
            check_may_be_plain(location, options)?;
        }
        check_not_missed(location, options).await
    }

    /// Makes an empty place a mirror of this repository; `nonce` makes the name of what is written to probe the store unique.
    pub async fn make_mirror(
        &self,
        location: &Location,
        nonce: &str,
        options: &OpenOptions,
    ) -> Result<Self, RepoError> {
        location.create_folder().await?;
        let store = stack(location.store().await?, options.limit.clone(), options.stop.clone());
        let probed = probe(&*store, nonce, location).await?;
        remove_probes(&*store, location).await?;
        let file =
            RepositoryFile { conditional_create: Some(probed.refuses_overwrite), ..self.file().clone() };
        let keyring =
            Keyring::public(&file).map_err(|problem| RepoError::new("use", self.location(), problem))?;
        let write = async |path: &Path, bytes: bytes::Bytes| {
            create_new(&*store, path, bytes.into(), creating(&file))
                .await
                .map_err(|problem| RepoError::new("write", format!("{location}/{path}"), problem))
        };
        let keys = key_files(&*self.store).await?;
        for (_, path) in &keys {
            let read = async { self.store.get(path).await?.bytes().await };
            write(path, read.await.map_err(|error| RepoError::new("read", path, error))?).await?;
        }
        // A making that was killed may have left those of readers who were removed since. What is a mirror already has readers of its own.
        if read_repository_file(location, &store).await?.is_none() {
            for (_, path) in key_files(&*store).await?.into_iter().filter(|file| !keys.contains(file)) {
                store.delete(&path).await.map_err(|error| RepoError::new("delete", &path, error))?;
            }
        }
        let json = file.render().map_err(|error| RepoError::new("write", REPOSITORY_FILE, error))?;
        write(&Path::from(REPOSITORY_FILE), json.into()).await?;
        let known = match &options.state {
            Some(state) if file.signing_key.is_some() => Some(Known::made(state, location, &file).await?),
            _ => None,
        };
        let mut made = Self::with(location, store, file);
        made.keyring = Arc::new(keyring);
        made.known = known;
        Ok(made.in_folder())
    }

    /// The names of the key files: who may open the repository.
    pub async fn key_file_names(&self) -> Result<Vec<String>, RepoError> {
        Ok(key_files(&*self.store).await?.into_iter().map(|(_, path)| path.to_string()).collect())
    }
}
