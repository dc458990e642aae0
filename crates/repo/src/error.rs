//! What can go wrong with a repository, in kinds that a caller can act on.

use slotkeep_format::{DigestFileError, FrameError, IndexError, ManifestError, SegmentError};
use thiserror::Error;

use crate::store::{Changed, answer};

/// A failed operation on a repository: what was tried, on which object, and why it failed.
#[derive(Debug, Error)]
#[error("could not {doing} {on}: {problem}")]
pub struct RepoError {
    /// What was tried, as a verb phrase: `read`, `write`, `list`.
    pub doing: &'static str,
    /// The object or place.
    pub on: String,
    /// Why it failed.
    #[source]
    pub problem: Problem,
}

/// Why an operation failed.
#[derive(Debug, Error)]
pub enum Problem {
    /// The location is neither a path nor an address that is understood.
    #[error("{0}")]
    Location(String),
    /// What the environment says of the store makes no sense.
    #[error("the store's settings make no sense: {0}")]
    Settings(String),
    /// Where a folder was to be, there is a file.
    #[error("{0} is a file and no folder")]
    NotAFolder(String),
    /// In the folder lies a file that no object can be.
    #[error("there is a file whose name no object can have: `{}`", .0.escape_debug())]
    ForeignName(String),
    /// There is no repository at that place.
    #[error("there is no repository here (no `slotkeep.json`)")]
    NoRepository,
    /// There is a repository already.
    #[error("there is a repository here already")]
    AlreadyRepository,
    /// The place is in no bucket or container that exists.
    #[error("there is no such bucket or container")]
    NoBucket,
    /// The place holds other things and is not a repository.
    #[error("it is not empty and is not a repository")]
    NotEmpty,
    /// No backup fits.
    #[error("there is no such backup{}", similar(.0))]
    NoSuchBackup(Vec<String>),
    /// The repository holds no backup yet.
    #[error("it holds no backup yet")]
    NoBackups,
    /// More than one backup fits.
    #[error("that could be any of {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The object does not exist.
    #[error("it does not exist")]
    Missing,
    /// The object exists already; objects are never overwritten.
    #[error("it exists already")]
    Exists,
    /// The store refuses access.
    #[error("access denied: {0}")]
    Denied(String),
    /// No keys were given, and the machine's role was not to be had.
    #[error("the environment holds no keys, and this machine gives no role: {0}")]
    NoKeys(String),
    /// The store or its disk is full.
    #[error("no space left: {0}")]
    Full(String),
    /// The object's bytes are not those that were written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// A key file's bytes are not those that were written, and no other file opens.
    #[error("the key file is damaged: {0}")]
    DamagedKey(String),
    /// It is encrypted, and nothing was given to open it with.
    #[error("it is encrypted, and no identity was given")]
    Locked,
    /// There is nothing to open: the repository is not encrypted.
    #[error("the repository is not encrypted")]
    NotEncrypted,
    /// A key, an identity or a passphrase is wrong.
    #[error("{0}")]
    WrongKey(String),
    /// What is written here must be signed, and this machine has no key for it.
    #[error("this repository's backups are signed, and its signing key is not here")]
    NoSigningKey,
    /// It is not what this repository's key signed, or not the repository that was here before.
    #[error("it is not to be trusted: {0}")]
    Untrusted(String),
    /// The place is empty, and a repository is expected there.
    #[error("{0}")]
    Missed(String),
    /// The place is empty, the user gave this, which only an encrypted repository needs, and what would be made is not encrypted.
    #[error("there is none yet, and although {0} was given it would not be encrypted")]
    WouldBePlain(&'static str),
    /// What it builds on was given up by a prune that ran meanwhile.
    #[error("what it builds on was pruned, or is being pruned now: {0}")]
    Pruned(String),
    /// The store ignores conditions, and what was asked for can't be safe without them.
    #[error("the store overwrites objects although requests forbid it")]
    NoConditions,
    /// The backup's manifest may be there, now or later.
    #[error("it is not known whether backup {id} is listed, and nothing that it names was deleted ({why})")]
    MayBeListed {
        /// The backup's id.
        id: String,
        /// Why it is not known.
        why: String,
    },
    /// It was written in a newer format.
    #[error("{0}: use a newer Slotkeep")]
    Newer(String),
    /// The store failed in another way.
    #[error("{0}")]
    Store(String),
}

fn similar(ids: &[String]) -> String {
    if ids.is_empty() { String::new() } else { format!("; it holds {}", ids.join(", ")) }
}

impl RepoError {
    pub(crate) fn new(doing: &'static str, on: impl std::fmt::Display, problem: impl Into<Problem>) -> Self {
        Self { doing, on: on.to_string(), problem: problem.into() }
    }

    /// With the repository that it happened in, where there are several.
    pub(crate) fn at(mut self, location: &crate::location::Location) -> Self {
        let location = location.to_string();
        if !self.on.contains(&location) {
            self.on = format!("{} in {location}", self.on);
        }
        self
    }
}

impl Problem {
    /// Whether an object is there and can't be gone by: it is damaged, or not of those who write here.
    pub const fn is_spoiled(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Untrusted(_))
    }

    /// Whether an object is there and tells nothing: it is spoiled, or of a newer format.
    pub const fn tells_nothing(&self) -> bool {
        self.is_spoiled() || matches!(self, Self::Newer(_))
    }

    /// Whether an object tells nothing, or is not there any more.
    pub const fn is_unusable(&self) -> bool {
        self.tells_nothing() || matches!(self, Self::Missing)
    }
}

impl From<object_store::Error> for Problem {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as E;
        use object_store::path::Error::{BadSegment, NonUnicode};
        let words = causes(&error);
        if let Some(problem) = answer::of_the_store(&error, &words) {
            return problem;
        }
        let words = answer::in_one_line(&words);
        match error {
            E::NotFound { .. } => Self::Missing,
            E::Precondition { source, .. } if source.is::<Changed>() => Self::Damaged(source.to_string()),
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::Exists,
            E::InvalidPath { source: BadSegment { path, .. } | NonUnicode { path, .. } } => {
                Self::ForeignName(path)
            }
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Denied(words),
            other => match io_cause(&other) {
                Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
                    Self::Full(words)
                }
                Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
                    Self::Denied(words)
                }
                _ => Self::Store(words),
            },
        }
    }
}

impl From<ManifestError> for Problem {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::NewerVersion { .. } => Self::Newer(error.to_string()),
            ManifestError::Json(_) | ManifestError::Altered | ManifestError::Contradiction(_) => {
                Self::Damaged(error.to_string())
            }
        }
    }
}

impl From<FrameError> for Problem {
    fn from(error: FrameError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<SegmentError> for Problem {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::Record(error @ ManifestError::NewerVersion { .. }) => error.into(),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<IndexError> for Problem {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::NewerVersion(_) => Self::Newer(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<DigestFileError> for Problem {
    fn from(error: DigestFileError) -> Self {
        match error {
            DigestFileError::NewerVersion(_) => Self::Newer(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// The kind of the I/O error that caused `error`, if one did.
pub(crate) fn io_cause(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

/// The innermost causes of an error in one line; outer texts that merely repeat an inner one are left out.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !kept.iter().any(|outer| outer.contains(&text)) {
            kept.push(text);
        }
    }
    kept.join(": ")
}
