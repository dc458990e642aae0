//! The keys of a repository: its own, and those that open them.
//!
//! A repository has a key of its own that objects are encrypted to, and one that signs. Both secrets stand in *key files*, age files to the
//! recipients that the user names. A key file is an age identity file when opened: the signing key is a comment in it.

use std::io::{Read, Write};
use std::sync::Arc;

use age::secrecy::{ExposeSecret, SecretString};
use age::{Decryptor, Encryptor, IdentityFile, x25519};
use slotkeep_format::RepositoryFile;

use super::{SigningKey, holds_secret};
use crate::error::Problem;

/// How much work a passphrase costs to try: 2^18 rounds, about a second; the library would measure and choose.
const WORK_FACTOR: u8 = 18;
const SIGNING_MARK: &str = "# signing key: ";

/// Who can read a repository that is made or rekeyed.
#[derive(Clone, Default)]
pub struct Recipients {
    keys: Vec<x25519::Recipient>,
    passphrase: Option<SecretString>,
}

impl std::fmt::Debug for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recipients")
            .field("keys", &self.keys)
            .field("passphrase", &self.passphrase.is_some())
            .finish()
    }
}

impl Recipients {
    /// Adds a public key, `age1…`.
    pub fn add_key(&mut self, text: &str) -> Result<(), Problem> {
        let text = text.trim();
        if holds_secret(text) {
            let what = "this is a secret key, and was to be a public key (age1…); where you have typed it, it may be kept";
            return Err(Problem::WrongKey(what.to_owned()));
        }
        let key = text.parse().map_err(|error| {
            // What looks like no public key may be a passphrase.
            let is_public = ["age1", "ssh-"].iter().any(|mark| text.starts_with(mark));
            let what = if is_public { format!("`{text}`") } else { "what was given".to_owned() };
            Problem::WrongKey(format!("{what} is no age recipient (age1…) that Slotkeep supports: {error}"))
        })?;
        self.keys.push(key);
        Ok(())
    }

    /// Lets whoever knows this passphrase read.
    pub fn set_passphrase(&mut self, passphrase: String) {
        self.passphrase = Some(passphrase.into());
    }

    /// Whether nobody was named: the repository is not to be encrypted.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.passphrase.is_none()
    }
}

/// What the user has to open a repository with.
#[derive(Clone, Default)]
pub struct Unlock {
    identities: Vec<Arc<dyn age::Identity + Send + Sync>>,
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unlock").field("identities", &self.identities.len()).finish_non_exhaustive()
    }
}

impl Unlock {
    /// Adds the identities of an age identity file (`age-keygen`).
    pub fn add_identity_file(&mut self, text: &str) -> Result<(), Problem> {
        let wrong = |what: String| Problem::WrongKey(format!("this is no age identity file: {what}"));
        let file = IdentityFile::from_buffer(text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let identities = file.into_identities().map_err(|error| wrong(error.to_string()))?;
        if identities.is_empty() {
            return Err(wrong("it holds no identity".to_owned()));
        }
        self.identities.extend(identities.into_iter().map(Arc::from));
        Ok(())
    }

    /// Adds a passphrase.
    pub fn add_passphrase(&mut self, passphrase: String) {
        let mut identity = age::scrypt::Identity::new(passphrase.into());
        // What another machine took a second for must not be refused here.
        identity.set_max_work_factor(WORK_FACTOR + 4);
        self.identities.push(Arc::new(identity));
    }

    /// Whether there is nothing to open with.
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty()
    }
}

/// The secrets of a repository.
pub(crate) struct NewKeys {
    pub(crate) identity: x25519::Identity,
    pub(crate) signing: Arc<SigningKey>,
}

impl NewKeys {
    pub(crate) fn generate() -> Result<Self, Problem> {
        Ok(Self { identity: x25519::Identity::generate(), signing: Arc::new(SigningKey::generate()?) })
    }

    /// The secrets as an age identity file.
    pub(crate) fn secret_text(&self, repository_id: &str) -> String {
        format!(
            "# keys of the Slotkeep repository {repository_id}\n{SIGNING_MARK}{}\n{}\n",
            self.signing.secret_text(),
            self.identity.to_string().expose_secret()
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let signing = text.lines().find_map(|line| line.strip_prefix(SIGNING_MARK))?;
        let identity = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'))?;
        let signing = SigningKey::parse(signing).ok()?;
        Some(Self { identity: identity.trim().parse().ok()?, signing: Arc::new(signing) })
    }

    /// Whether these are the keys that the repository names.
    pub(crate) fn fit(&self, file: &RepositoryFile) -> bool {
        let public = self.identity.to_public().to_string();
        file.recipients == [public] && file.signing_key.as_ref() == Some(&self.signing.public())
    }
}

/// The key files for these recipients, by their names: keys and a passphrase can't be in one.
pub(crate) fn wrap_keys(
    keys: &NewKeys,
    repository_id: &str,
    recipients: &Recipients,
) -> Result<Vec<(&'static str, Vec<u8>)>, Problem> {
    let failed = |error: String| Problem::Store(format!("encryption of the keys failed: {error}"));
    let text = keys.secret_text(repository_id);
    let seal = |encryptor: Result<Encryptor, age::EncryptError>| {
        let encryptor = encryptor.map_err(|error| failed(error.to_string()))?;
        let sealed = || {
            let mut stream = encryptor.wrap_output(Vec::new())?;
            stream.write_all(text.as_bytes())?;
            stream.finish()
        };
        sealed().map_err(|error: std::io::Error| failed(error.to_string()))
    };
    let mut files = Vec::new();
    if !recipients.keys.is_empty() {
        let keys = recipients.keys.iter().map(|key| key as &dyn age::Recipient);
        files.push(("recipients", seal(Encryptor::with_recipients(keys))?));
    }
    if let Some(passphrase) = &recipients.passphrase {
        let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
        recipient.set_work_factor(WORK_FACTOR);
        let one = std::iter::once(&recipient as &dyn age::Recipient);
        files.push(("passphrase", seal(Encryptor::with_recipients(one))?));
    }
    Ok(files)
}

/// The keys in a key file; `None` if what the user has does not open it.
pub(crate) fn open_key_file(file: &[u8], unlock: &Unlock) -> Result<Option<NewKeys>, Problem> {
    let damaged = Problem::DamagedKey;
    let decryptor = Decryptor::new_buffered(file).map_err(|error| damaged(error.to_string()))?;
    let identities = unlock.identities.iter().map(|identity| &**identity as &dyn age::Identity);
    let mut reader = match decryptor.decrypt(identities) {
        Ok(reader) => reader,
        // A wrong passphrase, or a file for others.
        Err(age::DecryptError::NoMatchingKeys | age::DecryptError::DecryptionFailed) => return Ok(None),
        Err(error) => return Err(damaged(error.to_string())),
    };
    let mut text = String::new();
    reader.read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    NewKeys::parse(&text).map(Some).ok_or_else(|| damaged("it holds no keys".to_owned()))
}

/// The keys that an open repository works with.
#[derive(Clone, Default)]
pub(crate) struct Keyring {
    pub(crate) recipient: Option<x25519::Recipient>,
    pub(crate) identity: Option<Arc<x25519::Identity>>,
    pub(crate) signing: Option<Arc<SigningKey>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("recipient", &self.recipient)
            .field("reads", &self.identity.is_some())
            .field("signs", &self.signing.is_some())
            .finish()
    }
}

impl Keyring {
    /// What `slotkeep.json` says alone.
    pub(crate) fn public(file: &RepositoryFile) -> Result<Self, Problem> {
        let recipient = match file.recipients.as_slice() {
            [] => None,
            [one] => {
                Some(one.parse().map_err(|error| Problem::Damaged(format!("its key is none: {error}")))?)
            }
            _ => return Err(Problem::Damaged("it names more than one key".to_owned())),
        };
        Ok(Self { recipient, identity: None, signing: None })
    }
}
