//! A dataset to be read: a backup, an RDB file, or an RDB on standard input.
//!
//! Invariants: a dataset is one RDB or several of disjoint slots, in the order of their first slots; whatever reads it sees them in that
//! order, so that what comes out does not depend on which was read first.

mod feed;
mod read;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::BaseRecord;
use slotkeep_model::{ServerVersion, SlotSet};
use slotkeep_repo::Repository;

use crate::progress::ShardProgress;
use crate::{Error, ErrorKind, Result};

pub(crate) use feed::Feed;
pub(crate) use read::{EventSink, RdbFacts, check_envelope, read};

/// What can be read.
pub struct Dataset {
    /// What it is.
    pub origin: Origin,
    inputs: Vec<Input>,
    /// The progress of each RDB, with its length in bytes if that is known (else 0).
    pub progress: Vec<(Arc<ShardProgress>, u64)>,
}

/// Where a dataset comes from.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// A backup.
    Backup {
        /// The name under which the repository keeps the cluster's backups.
        cluster: String,
        /// The backup's id.
        id: String,
        /// Slots that the backup lacks; empty if it lacks none.
        #[serde(skip_serializing_if = "String::is_empty")]
        missing_slots: String,
    },
    /// An RDB file.
    File {
        /// Its path.
        path: String,
    },
    /// An RDB on standard input.
    Stdin,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Backup { cluster, id, missing_slots } if missing_slots.is_empty() => {
                write!(f, "backup {id} of {cluster}")
            }
            Self::Backup { cluster, id, missing_slots } => {
                write!(f, "backup {id} of {cluster}, which lacks slots {missing_slots}")
            }
            Self::File { path } => f.write_str(path),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// One RDB.
#[derive(Clone)]
pub(crate) struct Input {
    /// Its slots as text, or the file's name.
    pub(crate) name: String,
    /// The slots that its keys are of; not known of a file.
    pub(crate) slots: Option<SlotSet>,
    /// The moment that its expiries are compared with, and the server that wrote it; both stand in a file itself.
    pub(crate) moment: Option<Timestamp>,
    pub(crate) server: Option<ServerVersion>,
    pub(crate) place: Place,
}

/// Where the bytes of an RDB are.
#[derive(Clone)]
pub(crate) enum Place {
    Base(Repository, Box<BaseRecord>),
    File(PathBuf),
    Stdin,
}

impl Dataset {
    /// A backup.
    pub fn of_backup(repository: &Repository, manifest: &Manifest) -> Self {
        let moment = moment(manifest);
        let shards = manifest.shards.iter().map(|shard| {
            let input = Input {
                name: shard.slots.to_string(),
                slots: Some(shard.slots.clone()),
                moment: Some(moment),
                server: shard.server.version(),
                place: Place::Base(repository.clone(), Box::new(shard.base.clone())),
            };
            (input, shard.base.rdb.raw_bytes)
        });
        let origin = Origin::Backup {
            cluster: manifest.cluster.clone(),
            id: manifest.id.clone(),
            missing_slots: manifest.missing_slots.to_string(),
        };
        Self::new(origin, shards.collect())
    }

    /// An RDB file.
    pub fn of_file(path: PathBuf) -> Result<Self> {
        let shown = path.display().to_string();
        let meta = std::fs::metadata(&path).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Failed,
            };
            Error::new(kind, format!("can't open {shown}: {error}")).hint(
                "name an RDB file, or a backup: its id, the beginning of its id, or `latest`, with --repo",
            )
        })?;
        if meta.is_dir() {
            return Err(Error::new(ErrorKind::Usage, format!("{shown} is a folder, not an RDB file"))
                .hint("to read a repository, give it as --repo and name a backup, or `latest`"));
        }
        let input =
            Input { name: shown.clone(), slots: None, moment: None, server: None, place: Place::File(path) };
        Ok(Self::new(Origin::File { path: shown }, vec![(input, meta.len())]))
    }

    /// An RDB on standard input.
    pub fn of_stdin() -> Self {
        let name = "standard input".to_owned();
        let input = Input { name, slots: None, moment: None, server: None, place: Place::Stdin };
        Self::new(Origin::Stdin, vec![(input, 0)])
    }

    fn new(origin: Origin, inputs: Vec<(Input, u64)>) -> Self {
        let progress =
            inputs.iter().map(|(input, bytes)| (ShardProgress::new(input.title()), *bytes)).collect();
        Self { origin, inputs: inputs.into_iter().map(|(input, _)| input).collect(), progress }
    }

    /// The RDBs that may hold keys of those slots, each with its progress; all if `None`.
    pub(crate) fn inputs(&self, slots: Option<&SlotSet>) -> Vec<(&Input, &Arc<ShardProgress>)> {
        let wanted = |input: &Input| match (slots, &input.slots) {
            (Some(wanted), Some(held)) => !wanted.intersection(held).is_empty(),
            _ => true,
        };
        let both = self.inputs.iter().zip(self.progress.iter().map(|(progress, _)| progress));
        both.filter(|(input, _)| wanted(input)).collect()
    }

    /// Keeps only the RDB of that number, counted from 1.
    pub fn only(&mut self, number: usize) -> Result<()> {
        let index = number.checked_sub(1).filter(|index| *index < self.inputs.len());
        let index = index.ok_or_else(|| {
            let what = format!("there is no shard {number}: {} has {}", self.origin, self.inputs.len());
            Error::new(ErrorKind::Usage, what)
                .hint("shards are counted from 1, in the order of `slotkeep show`")
        })?;
        self.inputs = vec![self.inputs.swap_remove(index)];
        self.progress = vec![self.progress.swap_remove(index)];
        Ok(())
    }

    /// The bytes of its objects as stored, or of its file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let of_input = |(input, (_, bytes)): (&Input, &(_, u64))| match &input.place {
            Place::Base(_, record) => record.objects().map(|object| object.stored_bytes).sum(),
            _ => *bytes,
        };
        self.inputs.iter().zip(&self.progress).map(of_input).sum()
    }

    /// How many RDBs it has.
    pub fn shards(&self) -> usize {
        self.inputs.len()
    }
}

impl Input {
    fn title(&self) -> String {
        match self.place {
            Place::Base(..) => format!("slots {}", self.name),
            _ => self.name.clone(),
        }
    }

    /// What messages call it.
    pub(crate) fn path(&self) -> &str {
        match &self.place {
            Place::Base(_, record) => &record.rdb.path,
            _ => &self.name,
        }
    }
}

/// The moment up to which keys of a backup may have expired: the latest server time of its shards.
pub(crate) fn moment(manifest: &Manifest) -> Timestamp {
    let latest = manifest.shards.iter().filter_map(|shard| shard.server_time).max();
    latest.unwrap_or(manifest.finished_at)
}
