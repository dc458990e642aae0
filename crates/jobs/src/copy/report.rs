//! What a copy would do, or came to, as data.

use serde::Serialize;

use crate::{ErrorKind, ObjectKind};

/// What becomes of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is to be copied.
    ToCopy,
    /// It was copied.
    Copied,
    /// The target has it.
    There,
    /// The target had it and has pruned it: it is not copied again.
    GivenUp,
    /// It is not copied: something that it needs is refused.
    Refused,
}

/// A backup of the source.
#[derive(Clone, Debug, Serialize)]
pub struct BackupRow {
    /// The cluster.
    pub cluster: String,
    /// Its id.
    pub id: String,
    /// What becomes of it.
    pub state: State,
}

/// Objects of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct KindRow {
    /// The cluster.
    pub cluster: String,
    /// Their kind.
    pub kind: ObjectKind,
    /// How many are to be copied, or were.
    pub objects: u64,
    /// Their length as stored.
    pub bytes: u64,
    /// How many the target has.
    pub there_objects: u64,
    /// Their length as stored.
    pub there_bytes: u64,
}

/// An object that is not copied.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// Its path.
    pub path: String,
    /// Why not.
    pub why: String,
    /// What sort of failure it is.
    #[serde(skip)]
    pub kind: ErrorKind,
}

/// What a copy would do, or came to.
#[derive(Clone, Debug, Serialize)]
pub struct CopyReport {
    /// The repository that is copied.
    pub from: String,
    /// The one that is brought up to date.
    pub to: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Whether the target was made, or would be.
    pub makes_target: bool,
    /// The backups of the source, oldest first.
    pub backups: Vec<BackupRow>,
    /// The objects by cluster and kind.
    pub kinds: Vec<KindRow>,
    /// How many bytes are to be copied, or were.
    pub bytes: u64,
    /// How many bytes of what is wanted the target has.
    pub there_bytes: u64,
    /// How long it took, in ms; absent if nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// What is not copied.
    pub refused: Vec<Refused>,
    /// What the user should know.
    pub remarks: Vec<String>,
}

impl CopyReport {
    /// The worst sort of failure among what was refused.
    pub fn worst(&self) -> Option<ErrorKind> {
        let of = |kind: ErrorKind| self.refused.iter().any(|refused| refused.kind == kind).then_some(kind);
        of(ErrorKind::Untrusted)
            .or_else(|| of(ErrorKind::Corrupt))
            .or_else(|| self.refused.first().map(|refused| refused.kind))
    }
}
