//! The file that makes a folder or bucket a repository: JSON, for people to read.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::json::{parse_versioned, render};
use crate::manifest::ManifestError;

/// The newest format of `slotkeep.json` that this code reads. Version 2 added encryption and signatures.
pub const REPOSITORY_VERSION: u32 = 2;
/// The format of a `slotkeep.json` without keys, which every version reads.
pub const REPOSITORY_VERSION_WITHOUT_KEYS: u32 = 1;

/// `slotkeep.json`: what makes a folder or a bucket a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryFile {
    /// [`REPOSITORY_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Chosen at random when the repository was made.
    pub repository_id: String,
    /// When the repository was made, by the clock of the machine that made it.
    pub created_at: Timestamp,
    /// Whether the store refused to create an object that existed when the repository was made; absent if nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditional_create: Option<bool>,
    /// The age recipient that objects are encrypted to, the repository's own; none in a repository that is not encrypted.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// The public half of the Ed25519 key that signs manifests and the log, in hex; absent if nothing is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<String>,
}

impl RepositoryFile {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, REPOSITORY_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
}
