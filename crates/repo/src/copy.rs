//! Copying objects into another repository, byte for byte, each proved on the way.
//!
//! Invariants: bytes are copied as they are stored, never decrypted and encrypted again; an object becomes visible in the target only when all
//! its bytes have been read and found right; a manifest is created when all that it names is there; nothing is overwritten.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use blake3::Hasher;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use slotkeep_format::manifest::ObjectRecord;
use slotkeep_format::segment::SEGMENT_FOOTER_BYTES;
use slotkeep_format::{
    FenceRecord, HistoryRecord, Manifest, PinRecord, SegmentRecord, TopologyRecord, VerifyRecord,
};
use slotkeep_model::ReplId;

use crate::crypt::Opened;
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::location::object_path;
use crate::repository::Repository;
use crate::segments::SegmentEntry;
use crate::verify::StoredObject;
use crate::write::ObjectWriter;

/// An object of at most so many stored bytes is held whole, proved, and written in one request, by a create that fails if it exists.
const ONE_PUT_BYTES: u64 = 8 << 20;

/// What an object of a cluster is, as its path tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The manifest of the backup of that id.
    Manifest(String),
    /// The file that says where that history comes from.
    History(ReplId),
    /// Those bytes of that history.
    Segment(ReplId, Range<u64>),
    /// How the cluster looked; its id.
    Topology(String),
    /// What the verification of that id came to.
    Verification(String),
    /// Which nodes were kept from taking writes; its id.
    Fence(String),
    /// A pin of the backup of that id.
    Pin(String),
}

impl Part {
    /// What the object at that path is; `None` for objects of bases, which manifests name, and for those that belong to one
    /// repository alone: leases, what is to be pruned and was, proofs, manifests that could not be read.
    pub fn of(cluster: &str, path: &str) -> Option<Self> {
        let inside = path.strip_prefix(cluster)?.strip_prefix('/')?;
        let id = |name: &str| name.strip_suffix(".json").map(str::to_owned);
        match *inside.split('/').collect::<Vec<_>>().as_slice() {
            ["backups", name] => id(name).map(Self::Manifest),
            ["history", history, layout::HISTORY_FILE] => history.parse().ok().map(Self::History),
            ["history", history, "log", name] => {
                Some(Self::Segment(history.parse().ok()?, layout::segment_range(name)?))
            }
            ["topology", name] => id(name).map(Self::Topology),
            ["verify", name] => id(name).map(Self::Verification),
            ["fence", name] => id(name).map(Self::Fence),
            ["pin", backup, name] => id(name).map(|_| Self::Pin(backup.to_owned())),
            _ => None,
        }
    }
}

/// Why an object was not copied, and on which side.
#[derive(Debug)]
pub enum CopyError {
    /// It could not be read, or is not what was written.
    Source(RepoError),
    /// It could not be written.
    Target(RepoError),
}

impl Repository {
    /// Every object of a cluster, in the order of their paths.
    pub async fn objects_of(&self, cluster: &str) -> Result<Vec<StoredObject>, RepoError> {
        let folder = Path::from(cluster);
        let listed = self.store.list(Some(&folder)).map_ok(|object| StoredObject {
            path: object.location.to_string(),
            bytes: object.size,
            modified_ms: object.last_modified.timestamp_millis(),
        });
        let mut objects: Vec<StoredObject> =
            listed.try_collect().await.map_err(|error| RepoError::new("list", &folder, error))?;
        objects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }

    /// Copies an object that a manifest names. `progress` is told the bytes of each piece.
    pub async fn copy_object(
        &self,
        target: &Self,
        record: &ObjectRecord,
        mut progress: impl FnMut(u64),
    ) -> Result<(), CopyError> {
        let mut stream = self.stored_stream(record).await.map_err(CopyError::Source)?;
        let mut incoming = Incoming::new(target, &record.path, record.stored_bytes);
        loop {
            match stream.next().await {
                Ok(Some(piece)) => {
                    progress(piece.len() as u64);
                    incoming.write(piece).await?;
                }
                Ok(None) => return incoming.finish().await,
                Err(error) => return Err(incoming.refuse(error).await),
            }
        }
    }

    /// Copies a segment, proved by its own record. Of an encrypted repository that takes an identity.
    pub async fn copy_segment(
        &self,
        target: &Self,
        entry: &SegmentEntry,
        mut progress: impl FnMut(u64),
    ) -> Result<(), CopyError> {
        let failed = |problem: Problem| CopyError::Source(RepoError::new("read", entry.path(), problem));
        // The record of a large one is read first: it says up to where its BLAKE3 goes.
        let mut proof = if entry.object_bytes <= ONE_PUT_BYTES {
            Proof::Whole(Vec::new())
        } else {
            let (record, layer, fetched) = self.segment_tail(entry).await.map_err(CopyError::Source)?;
            let tail = fetched.tail(layer.bytes().saturating_sub(record.stored_bytes));
            let wanted_tail = tail.unwrap_or_default().to_vec();
            Proof::Running(Box::new(Running {
                record,
                wanted_tail,
                hasher: Hasher::new(),
                bytes: 0,
                tail: vec![],
            }))
        };
        let path = object_path(entry.path()).map_err(CopyError::Source)?;
        let (bytes, pieces) = self.pieces(path).await.map_err(|error| failed(error.into()))?;
        if bytes != entry.object_bytes {
            let what = format!("it has {bytes} bytes, the listing showed {}", entry.object_bytes);
            return Err(failed(Problem::Damaged(what)));
        }
        // What comes from the store is opened to be proved, and kept as it came to be written.
        let kept = Arc::<Mutex<VecDeque<Bytes>>>::default();
        let keep = Arc::clone(&kept);
        let pieces = pieces
            .inspect_ok(move |piece| {
                keep.lock().unwrap_or_else(PoisonError::into_inner).push_back(piece.clone());
            })
            .boxed();
        let mut opened = if self.is_encrypted() {
            let identity = self.identity().map_err(failed)?;
            Opened::sealed(pieces, identity).await.map_err(failed)?
        } else {
            Opened::Plain(pieces)
        };
        let mut incoming = Incoming::new(target, entry.path(), bytes);
        loop {
            let plain = match opened.next().await {
                Ok(plain) => plain,
                Err(problem) => {
                    return Err(incoming.refuse(RepoError::new("read", entry.path(), problem)).await);
                }
            };
            loop {
                let piece = kept.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(piece) = piece else { break };
                self.note_read(piece.len());
                progress(piece.len() as u64);
                incoming.write(piece).await?;
            }
            match plain {
                Some(plain) => proof.feed(&plain),
                None => break,
            }
        }
        match proof.check(self, entry) {
            Ok(()) => incoming.finish().await,
            Err(problem) => Err(incoming.refuse(RepoError::new("read", entry.path(), problem)).await),
        }
    }

    /// Copies a small file, its seal and signature proved. Gives its length.
    pub async fn copy_file(&self, target: &Self, path: &str, part: &Part) -> Result<u64, CopyError> {
        let object = object_path(path).map_err(CopyError::Source)?;
        let failed = |problem: Problem| CopyError::Source(RepoError::new("read", path, problem));
        let bytes = match part {
            // Those of earlier versions are sealed and not signed; whoever reads them asks.
            Part::Verification(_) | Part::Fence(_) => {
                self.read_file(path, ONE_PUT_BYTES).await.map(Bytes::from).map_err(CopyError::Source)?
            }
            _ => self.get_json(&object).await.map_err(CopyError::Source)?,
        };
        let parsed = match part {
            Part::History(_) => HistoryRecord::parse(&bytes).map(drop),
            Part::Topology(_) => TopologyRecord::parse(&bytes).map(drop),
            Part::Verification(_) => VerifyRecord::parse(&bytes).map(drop),
            Part::Fence(_) => FenceRecord::parse(&bytes).map(drop),
            Part::Pin(_) => PinRecord::parse(&bytes).map(drop),
            Part::Manifest(_) | Part::Segment(..) => {
                return Err(failed(Problem::Damaged("it is no small file".to_owned())));
            }
        };
        parsed.map_err(|error| failed(error.into()))?;
        let length = bytes.len() as u64;
        target.create(&object, bytes).await.map_err(CopyError::Target)?;
        Ok(length)
    }

    /// Makes a backup visible in the target, where all that it names must be complete. One that builds on what a prune is deleting there is
    /// refused, and not listed. Gives the length of its manifest.
    pub async fn copy_manifest(&self, target: &Self, cluster: &str, id: &str) -> Result<u64, CopyError> {
        let path = layout::manifest(cluster, id);
        let bytes = self.get_json(&path).await.map_err(CopyError::Source)?;
        let manifest = Manifest::parse(&bytes)
            .map_err(|error| CopyError::Source(RepoError::new("read", &path, Problem::from(error))))?;
        let length = bytes.len() as u64;
        target.commit_as(&manifest, bytes).await.map_err(CopyError::Target)?;
        Ok(length)
    }
}

/// What proves a segment while its bytes go by.
enum Proof {
    /// All of it, to be looked at when it is here.
    Whole(Vec<u8>),
    /// What its record says, and what has come so far.
    Running(Box<Running>),
}

/// A segment whose record has been read, and that goes by.
struct Running {
    record: SegmentRecord,
    wanted_tail: Vec<u8>,
    hasher: Hasher,
    bytes: u64,
    tail: Vec<u8>,
}

impl Running {
    fn feed(&mut self, plain: &[u8]) {
        let left = self.record.stored_bytes.saturating_sub(self.bytes);
        let at = usize::try_from(left).unwrap_or(usize::MAX).min(plain.len());
        let (hashed, behind) = plain.split_at_checked(at).unwrap_or((plain, &[]));
        self.hasher.update(hashed);
        self.bytes = self.bytes.saturating_add(plain.len() as u64);
        // No more than shows that it is too long.
        if self.tail.len() <= self.wanted_tail.len() {
            self.tail.extend_from_slice(behind);
        }
    }
}

impl Proof {
    fn feed(&mut self, plain: &[u8]) {
        match self {
            Self::Whole(whole) => whole.extend_from_slice(plain),
            Self::Running(running) => running.feed(plain),
        }
    }

    fn check(self, repository: &Repository, entry: &SegmentEntry) -> Result<(), Problem> {
        let damaged = |what: &str| Problem::Damaged(what.to_owned());
        let (record, found) = match self {
            Self::Running(running) => {
                if running.tail != running.wanted_tail {
                    return Err(damaged("its record was read twice and was not the same"));
                }
                (running.record, running.hasher.finalize())
            }
            Self::Whole(whole) => {
                let length = whole.len() as u64;
                let from_end = |bytes: u64| {
                    let start = length.checked_sub(bytes).and_then(|start| usize::try_from(start).ok());
                    whole.get(start?..)
                };
                let footer = from_end(SEGMENT_FOOTER_BYTES).unwrap_or_default();
                let tail = from_end(SegmentRecord::stored_tail_bytes(footer, length)?).unwrap_or_default();
                let record = repository.check_tail(entry, tail, length)?;
                let hashed = usize::try_from(record.stored_bytes).ok().and_then(|end| whole.get(..end));
                (record, blake3::hash(hashed.ok_or_else(|| damaged("it is cut short"))?))
            }
        };
        let found = found.to_hex();
        if *found == *record.blake3 {
            return Ok(());
        }
        Err(Problem::Damaged(format!("its BLAKE3 is {found}, its record says {}", record.blake3)))
    }
}

/// An object on its way into the target.
struct Incoming<'a> {
    target: &'a Repository,
    path: &'a str,
    stored_bytes: u64,
    /// What has come, as long as it is to be written in one request.
    small: Vec<u8>,
    large: Option<ObjectWriter>,
}

impl<'a> Incoming<'a> {
    const fn new(target: &'a Repository, path: &'a str, stored_bytes: u64) -> Self {
        Self { target, path, stored_bytes, small: Vec::new(), large: None }
    }

    /// Not cancel-safe.
    async fn write(&mut self, piece: Bytes) -> Result<(), CopyError> {
        if self.stored_bytes <= ONE_PUT_BYTES {
            self.small.extend_from_slice(&piece);
            return Ok(());
        }
        let large = match &mut self.large {
            Some(large) => large,
            none => {
                let begun = self.target.create_stored_object(self.path.to_owned()).await;
                none.insert(begun.map_err(CopyError::Target)?)
            }
        };
        large.write(piece).await.map_err(CopyError::Target)
    }

    /// Completes the object, whose bytes have been proved.
    async fn finish(self) -> Result<(), CopyError> {
        let path = object_path(self.path).map_err(CopyError::Source)?;
        let Some(mut large) = self.large else {
            return self.target.create(&path, self.small).await.map_err(CopyError::Target);
        };
        // Uploads in parts know no condition: so it is looked at as late as can be.
        if let Err(error) = self.target.must_not_exist(&path).await {
            // The first error is the one to report.
            let _ = large.abort().await;
            return Err(CopyError::Target(error));
        }
        large.finish(0).await.map(drop).map_err(CopyError::Target)
    }

    /// Gives the object up: it is not what it should be.
    async fn refuse(self, error: RepoError) -> CopyError {
        if let Some(large) = self.large {
            // Nothing of it is visible; the first error is the one to report.
            let _ = large.abort().await;
        }
        CopyError::Source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_repository_alone_is_no_part_of_a_copy() {
        let history = "a".repeat(40);
        let parts = [
            ("main/backups/id.json".to_owned(), Part::Manifest("id".to_owned())),
            (format!("main/history/{history}/history.json"), Part::History(history.parse().unwrap())),
            (
                format!("main/history/{history}/log/{:020}-{:020}.zst", 1, 9),
                Part::Segment(history.parse().unwrap(), 1..9),
            ),
            ("main/topology/id.json".to_owned(), Part::Topology("id".to_owned())),
            ("main/verify/id.json".to_owned(), Part::Verification("id".to_owned())),
            ("main/fence/id.json".to_owned(), Part::Fence("id".to_owned())),
            ("main/pin/backup/id.json".to_owned(), Part::Pin("backup".to_owned())),
        ];
        for (path, part) in parts {
            assert_eq!(Part::of("main", &path), Some(part), "{path}");
            assert_eq!(Part::of("mai", &path), None, "{path}");
        }
        let others = [
            "main/lease/cluster/00000000000000000001.json",
            "main/prune/mark/id.json",
            "main/prune/gone/id.json",
            "main/verify/id/000001.json",
            "main/lost/id.json",
            "main/backups/id.json#1",
            "slotkeep.json",
        ];
        for path in others {
            assert_eq!(Part::of("main", path), None, "{path}");
        }
    }
}
