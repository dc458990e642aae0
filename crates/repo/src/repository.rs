//! A repository: one store, one `slotkeep.json`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use slotkeep_format::RepositoryFile;
use slotkeep_format::repository_file::{REPOSITORY_VERSION, REPOSITORY_VERSION_WITHOUT_KEYS};

use crate::commit::Named;
use crate::companions::{Companion, Write, everywhere};
use crate::crypt::{Keyring, NewKeys, Recipients, SigningKey, Unlock, fingerprint, sign, unsigned};
use crate::error::{Problem, RepoError};
use crate::keys::{keyring, write_key_files};
use crate::known::{Known, StateFolder};
use crate::layout::REPOSITORY_FILE;
use crate::location::{Location, io_problem, object_path};
use crate::probe::{PROBE_PREFIX, probe, remove_probes};
use crate::store::{Creating, NotCreated, RateLimit, StopPoint, create_new, stack};

/// How to use a repository.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// A limit on the bytes per second to and from the store.
    pub limit: Option<RateLimit>,
    /// What opens an encrypted repository for reading.
    pub unlock: Unlock,
    /// Keys that sign, if they are neither in [`OpenOptions::state`] nor to be had with [`OpenOptions::unlock`]; one of them must be this
    /// repository's if it is signed.
    pub signing_keys: Vec<Arc<SigningKey>>,
    /// Where this machine remembers repositories and keeps their signing keys.
    pub state: Option<StateFolder>,
    /// The repository must have one of these [`fingerprint`]s, if there are any.
    pub trust: Vec<String>,
    /// Who may read a repository that is made; nobody: it is not encrypted.
    pub recipients: Recipients,
    /// What the user gave that only an encrypted repository needs, such as "an identity". One that is not encrypted is then made by
    /// [`Repository::init_with`] alone, never unasked.
    pub expects_encryption: Option<&'static str>,
    /// Where this process is to be killed, for tests.
    pub stop: Option<StopPoint>,
}

/// An open repository.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) location: Location,
    pub(crate) store: Arc<dyn ObjectStore>,
    file: Arc<RepositoryFile>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) known: Option<Known>,
    /// The local folder that the store was opened in.
    folder: Option<Arc<std::path::Path>>,
    /// Shared by all clones.
    bytes_read: Arc<AtomicU64>,
    /// Who gets what is written here. They have none themselves.
    pub(crate) companions: Arc<[Arc<Companion>]>,
    /// What is not taken back any more. Shared by all clones.
    pub(crate) named: Arc<Named>,
}

impl Repository {
    /// Makes a repository with that id. A local folder is created if there is none, and must be empty.
    pub async fn init(location: &Location, repository_id: String, now: Timestamp) -> Result<Self, RepoError> {
        Self::init_with(location, repository_id, now, &OpenOptions::default()).await
    }

    /// The same, with options.
    pub async fn init_with(
        location: &Location,
        repository_id: String,
        now: Timestamp,
        options: &OpenOptions,
    ) -> Result<Self, RepoError> {
        location.create_folder().await?;
        let made = Self::init_in(location.store().await?, location, repository_id, now, options).await?;
        Ok(made.in_folder())
    }

    /// The same in a store that was opened already; `location` is what errors call it.
    pub async fn init_in(
        store: Arc<dyn ObjectStore>,
        location: &Location,
        repository_id: String,
        now: Timestamp,
        options: &OpenOptions,
    ) -> Result<Self, RepoError> {
        let store = stack(store, options.limit.clone(), options.stop.clone());
        if read_repository_file(location, &store).await?.is_some() {
            return Err(RepoError::new("make a repository in", location, Problem::AlreadyRepository));
        }
        let mut listed = store.list(None);
        while let Some(object) =
            listed.try_next().await.map_err(|error| RepoError::new("list", location, error))?
        {
            if !object.location.as_ref().starts_with(PROBE_PREFIX) {
                return Err(RepoError::new("make a repository in", location, Problem::NotEmpty));
            }
        }
        let probed = probe(&*store, &repository_id, location).await?;
        remove_probes(&*store, location).await?;
        let mut file = RepositoryFile {
            format_version: REPOSITORY_VERSION_WITHOUT_KEYS,
            repository_id,
            created_at: now,
            conditional_create: Some(probed.refuses_overwrite),
            recipients: vec![],
            signing_key: None,
        };
        let mut keyring = Keyring::default();
        if !options.recipients.is_empty() {
            let keys =
                NewKeys::generate().map_err(|problem| RepoError::new("make keys for", location, problem))?;
            file.format_version = REPOSITORY_VERSION;
            file.recipients = vec![keys.identity.to_public().to_string()];
            file.signing_key = Some(keys.signing.public());
            let (id, recipients) = (&file.repository_id, &options.recipients);
            // First: where it can't be kept, the place stays empty and `init` can be tried again.
            if let Some(state) = &options.state {
                state.keep_signing_key(id, &keys.signing).await?;
            }
            // Before anything can be encrypted to it, the key is where it can be got back from.
            write_key_files(&*store, creating(&file), 1, &keys, id, recipients).await?;
            keyring.recipient = Some(keys.identity.to_public());
            keyring.signing = Some(keys.signing);
        }
        let json = file.render().map_err(|error| RepoError::new("write", REPOSITORY_FILE, error))?;
        create_new(&*store, &Path::from(REPOSITORY_FILE), json.into(), creating(&file))
            .await
            .map_err(|problem| RepoError::new("write", format!("{location}/{REPOSITORY_FILE}"), problem))?;
        let known = match &options.state {
            Some(state) if file.signing_key.is_some() => Some(Known::made(state, location, &file).await?),
            _ => None,
        };
        Ok(Self { keyring: Arc::new(keyring), known, ..Self::with(location, store, file) })
    }

    /// Opens a repository that exists.
    pub async fn open(location: &Location) -> Result<Self, RepoError> {
        Self::open_with(location, &OpenOptions::default()).await
    }

    /// The same, with options.
    pub async fn open_with(location: &Location, options: &OpenOptions) -> Result<Self, RepoError> {
        if location.is_new_folder().await? {
            return Err(RepoError::new("open", location, Problem::NoRepository));
        }
        Ok(Self::open_in(location.store().await?, location, options).await?.in_folder())
    }

    /// The same in a store that was opened already; `location` is what errors call it.
    pub async fn open_in(
        store: Arc<dyn ObjectStore>,
        location: &Location,
        options: &OpenOptions,
    ) -> Result<Self, RepoError> {
        let store = stack(store, options.limit.clone(), options.stop.clone());
        let Some(file) = read_repository_file(location, &store).await? else {
            return Err(RepoError::new("open", location, Problem::NoRepository));
        };
        check_fingerprint(location, &file, options)?;
        let known = match &options.state {
            Some(state) => Known::check(state, location, &file).await?,
            None => None,
        };
        let keyring = keyring(&*store, &file, options).await?;
        Ok(Self { keyring: Arc::new(keyring), known, ..Self::with(location, store, file) })
    }

    /// Opens a repository, or makes one if the location is a local folder that does not exist or is empty.
    pub async fn open_or_create(
        location: &Location,
        repository_id: String,
        now: Timestamp,
    ) -> Result<Self, RepoError> {
        Self::open_or_create_with(location, repository_id, now, &OpenOptions::default()).await
    }

    /// The same, with options.
    pub async fn open_or_create_with(
        location: &Location,
        repository_id: String,
        now: Timestamp,
        options: &OpenOptions,
    ) -> Result<Self, RepoError> {
        if location.is_new_folder().await? {
            Self::check_may_be_made(location, options).await?;
            return Self::init_with(location, repository_id, now, options).await;
        }
        Self::open_with(location, options).await
    }

    /// Refuses if a repository is expected at that place, which is empty, or an encrypted one at all: what is mounted there may be away, and one
    /// that is made in its stead would take unencrypted what was to be encrypted.
    pub async fn check_may_be_made(location: &Location, options: &OpenOptions) -> Result<(), RepoError> {
        check_not_missed(location, options).await?;
        if options.trust.is_empty() {
            return check_may_be_plain(location, options);
        }
        let what = format!(
            "it is empty, and the repository of fingerprint {} is expected: it may not be mounted",
            options.trust.join(" or ")
        );
        Err(RepoError::new("make a repository in", location, Problem::Missed(what)))
    }

    pub(crate) fn with(location: &Location, store: Arc<dyn ObjectStore>, file: RepositoryFile) -> Self {
        let (location, file, keyring) = (location.clone(), Arc::new(file), Arc::default());
        let (bytes_read, companions, named) = (Arc::default(), Arc::default(), Arc::default());
        Self { location, store, file, keyring, known: None, folder: None, bytes_read, companions, named }
    }

    /// How many stored bytes of objects were read since it was opened; manifests are not counted.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub(crate) fn note_read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What its `slotkeep.json` says.
    pub fn file(&self) -> &RepositoryFile {
        &self.file
    }

    /// The largest piece that is buffered for one part of an upload: small for a local folder, at least what object stores ask
    /// of a part for the others.
    pub(crate) fn part_bytes(&self) -> usize {
        match self.location {
            Location::Folder(_) => 1 << 20,
            Location::Url(_) => 8 << 20,
        }
    }

    /// Writes a small object that must not exist yet. If it exists with the same bytes it has been written: the answer to an earlier try was lost.
    pub async fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<(), RepoError> {
        self.create(&object_path(path)?, bytes).await
    }

    /// The same, knowing the local folder that it is in.
    pub(crate) fn in_folder(mut self) -> Self {
        if let Location::Folder(folder) = &self.location {
            self.folder = Some(Arc::from(folder.as_path()));
        }
        self
    }

    /// The local folder that it is in, if it is in one.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    /// How many bytes an object has as stored; `None` if it is not there.
    pub async fn stored_bytes(&self, path: &str) -> Result<Option<u64>, RepoError> {
        match self.store.head(&object_path(path)?).await {
            Ok(about) => Ok(Some(about.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(RepoError::new("look at", path, error)),
        }
    }

    /// When an object was written, by the store's clock.
    pub async fn written_at(&self, path: &str) -> Result<Timestamp, RepoError> {
        let failed = |problem: Problem| RepoError::new("look at", path, problem);
        let about = self.store.head(&object_path(path)?).await.map_err(|error| failed(error.into()))?;
        Timestamp::from_millisecond(about.last_modified.timestamp_millis())
            .map_err(|error| failed(Problem::Store(error.to_string())))
    }

    /// Fails if the folder of a local repository is gone, as when what is mounted there is not: the library would make the folder anew,
    /// and what is written there would be missed later.
    pub(crate) async fn must_be_there(&self) -> Result<(), RepoError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let failed = |problem| RepoError::new("write to", &self.location, problem);
        match tokio::fs::try_exists(folder.join(REPOSITORY_FILE)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(Problem::NoRepository)),
            Err(error) => Err(failed(io_problem(&error))),
        }
    }

    /// Fails if an object that was just written is not in the local repository: its folder may have gone after [`Self::must_be_there`] had
    /// seen it, and the library have made another.
    pub(crate) async fn must_hold(&self, path: &str) -> Result<(), RepoError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        self.must_be_there().await?;
        let failed = |problem| RepoError::new("write", path, problem);
        match tokio::fs::try_exists(folder.join(path)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(Problem::NoRepository)),
            Err(error) => Err(failed(io_problem(&error))),
        }
    }

    /// Writes an object in one piece. It must not exist yet, unless it holds the same bytes.
    pub(crate) async fn create(&self, path: &Path, stored: impl Into<PutPayload>) -> Result<(), RepoError> {
        let created = self.create_unseen(path, stored).await;
        created.map_err(|(error, _)| error)?;
        self.must_hold(path.as_ref()).await
    }

    /// The same, but where it succeeds [`Self::must_hold`] is still to be asked. With the failure it gives whether it is certain that nothing was
    /// written and will be.
    pub(crate) async fn create_unseen(
        &self,
        path: &Path,
        stored: impl Into<PutPayload>,
    ) -> Result<(), (RepoError, bool)> {
        self.must_be_there().await.map_err(|error| (error, true))?;
        let created = create_new(&*self.store, path, stored.into(), creating(&self.file));
        let Err(NotCreated { problem, is_certain }) = Box::pin(created).await else { return Ok(()) };
        // That it was not found where nothing is mounted says nothing.
        let is_certain = is_certain && self.must_be_there().await.is_ok();
        Err((RepoError::new("write", path, problem), is_certain))
    }

    /// Writes a JSON file that must not exist yet; signs it if this repository's files are signed.
    pub(crate) async fn put_json(&self, path: &Path, json: Vec<u8>) -> Result<(), RepoError> {
        let signed = self.sign(path, json).map_err(|problem| RepoError::new("write", path, problem))?;
        self.create(path, signed).await
    }

    /// A JSON file's bytes, with its signature if this repository's files are signed.
    pub(crate) fn sign(&self, path: &Path, json: Vec<u8>) -> Result<Vec<u8>, Problem> {
        match (&self.file.signing_key, &self.keyring.signing) {
            (None, _) => Ok(json),
            (Some(_), None) => Err(Problem::NoSigningKey),
            (Some(_), Some(key)) => sign(key, &self.file.repository_id, path.as_ref(), &json),
        }
    }

    /// Reads a JSON file; its signature has been found right if this repository's files are signed.
    pub(crate) async fn get_json(&self, path: &Path) -> Result<Bytes, RepoError> {
        let failed = |problem| RepoError::new("read", path, problem);
        let found = self.store.get(path).await.map_err(|error| failed(error.into()))?;
        let bytes = found.bytes().await.map_err(|error| failed(error.into()))?;
        self.check_signature(path, &bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Checks the signature of a JSON file that was read from that path.
    pub(crate) fn check_signature(&self, path: &Path, json: &[u8]) -> Result<(), Problem> {
        match &self.file.signing_key {
            Some(key) => unsigned(key, &self.file.repository_id, path.as_ref(), json),
            None => Ok(()),
        }
    }

    /// Whether that JSON file of that path bears a signature, and the right one; false where nothing is signed.
    pub fn check_signed(&self, path: &str, json: &[u8]) -> Result<bool, RepoError> {
        let checked = self.check_signature(&object_path(path)?, json);
        checked.map_err(|problem| RepoError::new("read", path, problem))?;
        Ok(self.file.signing_key.is_some())
    }

    pub(crate) fn creating(&self) -> Creating {
        creating(&self.file)
    }

    /// What opens objects.
    pub(crate) fn identity(&self) -> Result<&age::x25519::Identity, Problem> {
        self.keyring.identity.as_deref().ok_or(Problem::Locked)
    }

    /// Whether the store refuses to create what exists. Where it does not, two writers of one line can't be kept apart.
    pub fn refuses_overwrite(&self) -> bool {
        creating(&self.file) == Creating::Conditional
    }

    /// Deletes an object that this process wrote, here and in every companion; but nothing that a manifest names which is listed there, or which
    /// this process may have listed.
    pub async fn discard(&self, path: &str) -> Result<(), RepoError> {
        let others: Vec<Write<'_>> = self
            .live_companions()
            .map(|companion| {
                let deleted = companion.repository().discard_here(path.to_owned());
                let deleted = async {
                    match deleted.await {
                        Err(RepoError { problem: Problem::Missing, .. }) => Ok(()),
                        outcome => outcome,
                    }
                };
                (&**companion, deleted.boxed())
            })
            .collect();
        everywhere(&self.location, self.discard_here(path.to_owned()), others).await
    }

    pub(crate) async fn discard_here(&self, path: String) -> Result<(), RepoError> {
        if self.is_named(&path).await? {
            return Ok(());
        }
        let object = object_path(&path)?;
        self.store.delete(&object).await.map_err(|error| RepoError::new("delete", path, error))
    }
}

/// Refuses an empty place in which this machine has used a signed repository before.
pub(crate) async fn check_not_missed(location: &Location, options: &OpenOptions) -> Result<(), RepoError> {
    let Some(state) = &options.state else { return Ok(()) };
    let Some(missed) = state.missed(location).await? else { return Ok(()) };
    Err(RepoError::new("make a repository in", location, Problem::Missed(missed)))
}

/// Refuses to make what is not encrypted where the user gave what only an encrypted repository needs.
pub(crate) fn check_may_be_plain(location: &Location, options: &OpenOptions) -> Result<(), RepoError> {
    match options.expects_encryption {
        Some(given) => Err(RepoError::new("make a repository in", location, Problem::WouldBePlain(given))),
        None => Ok(()),
    }
}

/// Refuses what has none of the fingerprints that are trusted, if there are any.
pub(crate) fn check_fingerprint(
    location: &Location,
    file: &RepositoryFile,
    options: &OpenOptions,
) -> Result<(), RepoError> {
    let found = fingerprint(file);
    if options.trust.is_empty() || found.as_ref().is_some_and(|found| options.trust.contains(found)) {
        return Ok(());
    }
    let found = found.unwrap_or_else(|| "none: nothing is signed".to_owned());
    let what = format!("its fingerprint is {found}");
    Err(RepoError::new("trust", location, Problem::Untrusted(what)))
}

pub(crate) async fn read_repository_file(
    location: &Location,
    store: &Arc<dyn ObjectStore>,
) -> Result<Option<RepositoryFile>, RepoError> {
    let on = || format!("{location}/{REPOSITORY_FILE}");
    let bytes = match store.get(&Path::from(REPOSITORY_FILE)).await {
        Ok(found) => found.bytes().await.map_err(|error| RepoError::new("read", on(), error))?,
        Err(error) => match Problem::from(error) {
            Problem::Missing => return Ok(None),
            problem => return Err(RepoError::new("read", on(), problem)),
        },
    };
    RepositoryFile::parse(&bytes).map(Some).map_err(|error| RepoError::new("read", on(), error))
}

/// How the repository's store creates, as `init` found it. Earlier versions did not look, and relied on the condition.
pub(crate) const fn creating(file: &RepositoryFile) -> Creating {
    match file.conditional_create {
        Some(false) => Creating::LookingFirst,
        Some(true) | None => Creating::Conditional,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_to_a_folder_that_vanished_is_not_taken_for_written() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("mounted");
        let location = Location::Folder(folder.clone());
        let repository = Repository::init(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap();
        repository.put_new("main/object", b"kept".to_vec()).await.unwrap();
        repository.must_hold("main/object").await.unwrap();
        // The library has made the folder anew and the object in it.
        std::fs::rename(&folder, place.path().join("away")).unwrap();
        std::fs::create_dir_all(folder.join("main")).unwrap();
        std::fs::write(folder.join("main/object"), b"kept").unwrap();
        assert!(repository.must_hold("main/object").await.is_err());
        // What is mounted there came back, and the object is not in it.
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::rename(place.path().join("away"), &folder).unwrap();
        let error = repository.must_hold("main/other").await.unwrap_err();
        assert!(matches!(error.problem, Problem::NoRepository));
    }

    #[tokio::test]
    async fn every_write_is_looked_for_where_the_repository_is() {
        let place = tempfile::tempdir().unwrap();
        let location = Location::Folder(place.path().join("made-anew"));
        let mut repository =
            Repository::init(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap();
        // What the store writes goes elsewhere than to the folder that the repository is in.
        let mounted = place.path().join("mounted");
        std::fs::create_dir(&mounted).unwrap();
        std::fs::copy(place.path().join("made-anew").join(REPOSITORY_FILE), mounted.join(REPOSITORY_FILE))
            .unwrap();
        repository.folder = Some(Arc::from(mounted.as_path()));
        let small = repository.put_new("main/small", b"lost".to_vec()).await;
        assert!(matches!(small.unwrap_err().problem, Problem::NoRepository));
        let mut large = repository.create_object("main/large".to_owned()).await.unwrap();
        large.write(Bytes::from_static(b"lost")).await.unwrap();
        assert!(matches!(large.finish(4).await.unwrap_err().problem, Problem::NoRepository));
    }
}
