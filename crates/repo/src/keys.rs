//! Opening and changing the keys of a repository, as far as that touches the store.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use slotkeep_format::RepositoryFile;

use crate::crypt::{Keyring, NewKeys, Recipients, Unlock, open_key_file, wrap_keys};
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::repository::{OpenOptions, Repository};
use crate::store::{Creating, create_new};

/// How often the key files are looked at while others change them.
const LISTINGS: u32 = 3;

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

/// Writes the key files for these recipients, numbered so. Gives where they are.
pub(crate) async fn write_key_files(
    store: &dyn ObjectStore,
    how: Creating,
    number: u32,
    keys: &NewKeys,
    repository_id: &str,
    recipients: &Recipients,
) -> Result<Vec<Path>, RepoError> {
    let failed = |problem| RepoError::new("encrypt", "the repository's keys", problem);
    let mut written = Vec::new();
    for (kind, sealed) in wrap_keys(keys, repository_id, recipients).map_err(failed)? {
        let path = layout::key_file(number, kind);
        create_new(store, &path, sealed.into(), how)
            .await
            .map_err(|problem| RepoError::new("write", &path, problem))?;
        written.push(path);
    }
    Ok(written)
}

/// The repository's keys, opened by what the user has. A file that is damaged, or was put there, keeps nobody out whom another lets in.
async fn unlock(
    store: &dyn ObjectStore,
    file: &RepositoryFile,
    unlock: &Unlock,
) -> Result<NewKeys, RepoError> {
    let what = "neither identity nor passphrase opens it: it was encrypted for others";
    let mut failure = RepoError::new("open", "the repository's keys", Problem::WrongKey(what.to_owned()));
    for _ in 0..LISTINGS {
        let (mut failures, mut is_gone) = (Vec::new(), false);
        for (_, path) in key_files(store).await?.into_iter().rev() {
            match open_one(store, &path, file, unlock).await {
                Ok(Some(keys)) => return Ok(keys),
                Ok(None) => {}
                // Who changes readers deletes the older files.
                Err(Problem::Missing) => is_gone = true,
                Err(problem) => failures.push(RepoError::new("read", &path, problem)),
            }
        }
        if let Some(first) = failures.into_iter().next() {
            failure = first;
        }
        if !is_gone {
            break;
        }
    }
    Err(failure)
}

/// The keys in one file; `None` if what the user has does not open it.
async fn open_one(
    store: &dyn ObjectStore,
    path: &Path,
    file: &RepositoryFile,
    unlock: &Unlock,
) -> Result<Option<NewKeys>, Problem> {
    let bytes = store.get(path).await?.bytes().await?;
    let Some(keys) = open_key_file(&bytes, unlock)? else { return Ok(None) };
    if keys.fit(file) {
        return Ok(Some(keys));
    }
    let what = "its keys are not those that `slotkeep.json` names: one of the two was replaced";
    Err(Problem::Untrusted(what.to_owned()))
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
    /// keys. Gives the names of key files that open it besides, as another wrote them at the same time.
    pub async fn rekey(&self, recipients: &Recipients) -> Result<Vec<String>, RepoError> {
        let keys = self.secrets()?;
        if recipients.is_empty() {
            let what = "name at least one recipient or a passphrase".to_owned();
            return Err(RepoError::new("rekey", self.location(), Problem::WrongKey(what)));
        }
        let old = key_files(&*self.store).await?;
        let number = old.last().map_or(0, |(number, _)| *number).saturating_add(1);
        let id = &self.file().repository_id;
        let written = write_key_files(&*self.store, self.creating(), number, &keys, id, recipients).await?;
        for (_, path) in old {
            match self.store.delete(&path).await {
                // Whoever changes readers at the same time deletes it too.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(RepoError::new("delete", &path, error)),
            }
        }
        let others = key_files(&*self.store).await?.into_iter().map(|(_, path)| path);
        Ok(others.filter(|path| !written.contains(path)).map(|path| path.to_string()).collect())
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
