//! Where backups are kept: object stores, the layout of a repository, its catalogue.
//!
//! Only this crate knows the names of objects. Objects are never overwritten; a backup's manifest is written last, by a
//! create that fails if it exists, so nothing is listed before it is whole.

mod catalog;
mod commit;
mod companions;
mod copy;
mod crypt;
mod error;
mod keys;
mod known;
pub mod layout;
mod lease;
mod lineage;
mod location;
mod mirror;
mod pack;
mod probe;
mod prune;
mod read;
mod repository;
mod segments;
mod sink;
mod store;
mod unfinished;
mod upload;
mod verify;
mod write;

pub use catalog::{BackupSelector, Listing, UnreadableBackup};
pub use companions::Companion;
pub use copy::{CopyError, Part};
pub use crypt::{Recipients, SigningKey, Unlock, fingerprint, holds_secret, shown};
pub use error::{Problem, RepoError};
pub use known::StateFolder;
pub use lease::{Hold, Lease, Standing};
pub use lineage::{KeptFence, Looks, UnreadLook};
pub use location::Location;
pub use pack::SegmentPack;
pub use probe::Probe;
pub use prune::{Marks, Pruned, Way};
pub use read::{FramedObject, ObjectStream};
pub use repository::{OpenOptions, Repository};
pub use segments::{SegmentEntry, SegmentMeta, SegmentReader, SegmentWriter};
pub use store::{RateLimit, StopPoint};
pub use verify::{Area, StoredObject};
pub use write::{ObjectWriter, WRITE_BUFFER_BYTES};
