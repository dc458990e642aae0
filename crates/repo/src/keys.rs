//! Opening and changing the keys of a repository, as far as that touches the store.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use slotkeep_format::RepositoryFile;

use crate::crypt::{Keyring, NewKeys, Recipients, Unlock, open_key_file, wrap_keys};
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::repository::{OpenOptions, Repository};
use crate::store::{Creating, create_new};

/// The key files of a repository, oldest first, with their numbers.
pub(crate) async fn key_files(store: &dyn ObjectStore) -> Result<Vec<(u32, Path)>, RepoError> {
    let listed = store.list_with_delimiter(None).await;
    let listed = listed.map_err(|error| RepoError::new("list", "the repository's keys", error))?;
    let mut files: Vec<(u32, Path)> = listed
        .objects
        .into_iter()
        .filter_map(|object| Some((layout::key_file_number(object.location.filename()?)?, object.location)))
        .collect();
    files.sort();
    Ok(files)
}

/// Writes the key files for these recipients, numbered so.
pub(crate) async fn write_key_files(
    store: &dyn ObjectStore,
    how: Creating,
    number: u32,
    keys: &NewKeys,
    repository_id: &str,
    recipients: &Recipients,
) -> Result<(), RepoError> {
    let failed = |problem| RepoError::new("encrypt", "the repository's keys", problem);
    for (kind, sealed) in wrap_keys(keys, repository_id, recipients).map_err(failed)? {
        let path = layout::key_file(number, kind);
        create_new(store, &path, sealed.into(), how)
            .await
            .map_err(|problem| RepoError::new("write", &path, problem))?;
    }
    Ok(())
}

/// The repository's keys, opened by what the user has.
async fn unlock(
    store: &dyn ObjectStore,
    file: &RepositoryFile,
    unlock: &Unlock,
) -> Result<NewKeys, RepoError> {
    for (_, path) in key_files(store).await?.into_iter().rev() {
        let failed = |problem| RepoError::new("read", &path, problem);
        let found = store.get(&path).await.map_err(|error| failed(error.into()))?;
        let bytes = found.bytes().await.map_err(|error| failed(error.into()))?;
        let Some(keys) = open_key_file(&bytes, unlock).map_err(failed)? else { continue };
        if !keys.fit(file) {
            let what = "its keys are not those that `slotkeep.json` names: one of the two was replaced";
            return Err(failed(Problem::Untrusted(what.to_owned())));
        }
        return Ok(keys);
    }
    let what = "neither identity nor passphrase opens it: it was encrypted for others";
    Err(RepoError::new("open", "the repository's keys", Problem::WrongKey(what.to_owned())))
}

/// The keys to work with, from what the repository says, what the user has, and what this machine keeps.
pub(crate) async fn keyring(
    store: &dyn ObjectStore,
    file: &RepositoryFile,
    options: &OpenOptions,
) -> Result<Keyring, RepoError> {
    let failed = |problem| RepoError::new("use", layout::REPOSITORY_FILE, problem);
    let mut keyring = Keyring::public(file).map_err(failed)?;
    let Some(public) = &file.signing_key else { return Ok(keyring) };
    if !options.unlock.is_empty() {
        let keys = unlock(store, file, &options.unlock).await?;
        keyring.identity = Some(std::sync::Arc::new(keys.identity));
        keyring.signing = Some(keys.signing);
    }
    if !options.signing_keys.is_empty() {
        let Some(key) = options.signing_keys.iter().find(|key| key.public() == *public) else {
            let what = "this is the signing key of another repository";
            return Err(failed(Problem::WrongKey(what.to_owned())));
        };
        keyring.signing = Some(std::sync::Arc::clone(key));
    }
    if let (None, Some(state)) = (&keyring.signing, &options.state) {
        let kept = state.signing_key(&file.repository_id).await?;
        keyring.signing = kept.filter(|key| key.public() == *public).map(std::sync::Arc::new);
    }
    Ok(keyring)
}

impl Repository {
    /// Whether objects are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.keyring.recipient.is_some()
    }

    /// Refuses if what is written here must be signed, and can't be; also where it is written to companions that are required.
    pub fn check_signs(&self) -> Result<(), RepoError> {
        match (&self.file().signing_key, &self.keyring.signing) {
            (Some(_), None) => Err(RepoError::new("write to", self.location(), Problem::NoSigningKey)),
            _ => {
                let required = self.companions().iter().filter(|companion| companion.is_required());
                required.map(|companion| companion.repository()).try_for_each(Self::check_signs)
            }
        }
    }

    /// Refuses if the data is encrypted and nothing was given to open it with.
    pub fn check_reads(&self) -> Result<(), RepoError> {
        if self.is_readable() {
            return Ok(());
        }
        Err(RepoError::new("read", self.location(), Problem::Locked))
    }

    /// Whether the data can be read: it is not encrypted, or an identity was given that opens it.
    pub fn is_readable(&self) -> bool {
        !self.is_encrypted() || self.keyring.identity.is_some()
    }

    /// The repository's own secrets, as an age identity file with the signing key in a comment. With them objects can be decrypted by `age`.
    pub fn export_keys(&self) -> Result<String, RepoError> {
        Ok(self.secrets()?.secret_text(&self.file().repository_id))
    }

    /// The signing key as text, for another host that is to write backups and must not read them.
    pub fn export_signing_key(&self) -> Result<String, RepoError> {
        match &self.keyring.signing {
            Some(key) => Ok(key.secret_text().to_owned()),
            None if self.file().signing_key.is_none() => {
                Err(RepoError::new("read", "the signing key", Problem::NotEncrypted))
            }
            None => Err(RepoError::new("read", "the signing key", Problem::NoSigningKey)),
        }
    }

    /// Lets only these recipients open the repository from now on. Objects stay as they are: whoever could open it before may have kept its
    /// keys.
    pub async fn rekey(&self, recipients: &Recipients) -> Result<(), RepoError> {
        let keys = self.secrets()?;
        if recipients.is_empty() {
            let what = "name at least one recipient or a passphrase".to_owned();
            return Err(RepoError::new("rekey", self.location(), Problem::WrongKey(what)));
        }
        let old = key_files(&*self.store).await?;
        let number = old.last().map_or(0, |(number, _)| *number).saturating_add(1);
        let id = &self.file().repository_id;
        write_key_files(&*self.store, self.creating(), number, &keys, id, recipients).await?;
        for (_, path) in old {
            self.store.delete(&path).await.map_err(|error| RepoError::new("delete", &path, error))?;
        }
        Ok(())
    }

    fn secrets(&self) -> Result<NewKeys, RepoError> {
        match (&self.keyring.identity, &self.keyring.signing) {
            (Some(identity), Some(signing)) => {
                Ok(NewKeys { identity: (**identity).clone(), signing: std::sync::Arc::clone(signing) })
            }
            _ if self.is_encrypted() => Err(RepoError::new("open", "the repository's keys", Problem::Locked)),
            _ => Err(RepoError::new("open", "the repository's keys", Problem::NotEncrypted)),
        }
    }
}
