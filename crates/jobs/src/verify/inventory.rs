//! What there is to verify: every manifest, history and topology is read, every other object looked up in a listing.
//!
//! Manifests are read before histories are listed: what a manifest names is there when the manifest is.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt, TryStreamExt};
use slotkeep_format::manifest::{BaseRecord, ShardCut};
use slotkeep_format::{
    Depth, HistoryRecord, Manifest, ManifestError, Seal, Severity, TopologyRecord, VerifyFinding, check_seal,
};
use slotkeep_model::{ReplId, SlotDigest, SlotSet};
use slotkeep_repo::{Area, Problem, Pruned, RepoError, Repository, SegmentEntry, StoredObject, layout};

use super::findings::{BASE_ADVICE, DERIVED_ADVICE, LOG_ADVICE, LOOK_ADVICE, finding, of_object, problem};
use super::proofs::fingerprint;
use crate::Result;

/// Manifests, histories and topologies are read whole; none is longer than this.
const FILE_MOST_BYTES: u64 = 256 << 20;
/// How many of them are read at a time.
const READS_IN_FLIGHT: usize = 8;
const PRESENT: (Depth, &str) = (Depth::Objects, "present");
const BYTES: (Depth, &str) = (Depth::Objects, "bytes");
const SIGNATURE_ADVICE: &str =
    "find out who can write to the repository; it is not used, docs/security.md says why";

/// A small file that was read and found whole.
pub(super) struct SmallFile {
    pub(super) stored: StoredObject,
    pub(super) blake3: String,
}

/// A backup.
pub(super) struct Backup {
    pub(super) id: String,
    pub(super) path: String,
    /// Which of [`Inventory::bases`] each shard has, and where its part ends.
    pub(super) shards: Vec<(usize, ShardCut)>,
    pub(super) digest: Option<SlotDigest>,
    /// Whether its manifest can be read.
    pub(super) readable: bool,
}

/// A base that a manifest names.
pub(super) struct BaseWork {
    pub(super) record: BaseRecord,
    pub(super) slots: SlotSet,
    pub(super) history: ReplId,
    pub(super) offset: u64,
    /// Its objects as a listing shows them, in the order of [`BaseRecord::objects`]; `None` where one is missing or has another length.
    pub(super) stored: Vec<Option<StoredObject>>,
}

/// A segment of the log.
pub(super) struct SegmentWork {
    pub(super) entry: SegmentEntry,
    pub(super) stored: StoredObject,
}

/// A history.
#[derive(Default)]
pub(super) struct HistoryWork {
    pub(super) file: Option<HistoryRecord>,
    /// In the order of their starts, of those that begin at the same offset the longest first.
    pub(super) segments: Vec<SegmentWork>,
    /// Folders of bases that no manifest names, and when the newest object in each was written.
    pub(super) unlisted: BTreeMap<String, i64>,
}

/// What there is to verify.
#[derive(Default)]
pub(super) struct Inventory {
    pub(super) backups: Vec<Backup>,
    pub(super) bases: Vec<BaseWork>,
    pub(super) histories: BTreeMap<ReplId, HistoryWork>,
    pub(super) files: Vec<SmallFile>,
    pub(super) findings: Vec<VerifyFinding>,
    /// What was given up on purpose.
    pub(super) pruned: Pruned,
    /// Whether an archive has ever kept the cluster's log here.
    pub(super) archived: bool,
    /// Fingerprints of the paths of all objects that were listed.
    pub(super) present: HashSet<u128>,
    by_path: BTreeMap<String, usize>,
}

impl Inventory {
    /// Looks at everything that the repository holds of the cluster.
    pub(super) async fn take(repository: &Repository, cluster: &str) -> Result<Self> {
        let mut inventory = Self::default();
        // What is sound and not the newest is no proof.
        repository.check_newest(cluster).await?;
        inventory.repository_file(repository).await?;
        inventory.manifests(repository, cluster).await?;
        inventory.topologies(repository, cluster).await?;
        let mut histories: BTreeSet<ReplId> = repository.histories(cluster).await?.into_iter().collect();
        histories.extend(inventory.bases.iter().map(|base| base.history.clone()));
        for history in histories {
            inventory.history(repository, cluster, &history).await?;
        }
        inventory.missing_objects();
        inventory.archived = !repository.leases(cluster).await?.is_empty();
        // Last: what is given up is written down before it is deleted.
        inventory.pruned = repository.pruned(cluster).await?;
        Ok(inventory)
    }

    async fn repository_file(&mut self, repository: &Repository) -> Result<()> {
        let bytes = repository.read_file(layout::REPOSITORY_FILE, FILE_MOST_BYTES).await?;
        let version = repository.file().format_version;
        self.sealed(repository, layout::REPOSITORY_FILE, &bytes, version)?;
        Ok(())
    }

    /// Notes what the seal says, where the file could be read.
    fn sealed(&mut self, repository: &Repository, path: &str, bytes: &[u8], version: u32) -> Result<()> {
        // A signature says more than a seal, which anybody can make.
        if path != layout::REPOSITORY_FILE {
            match repository.check_signed(path, bytes) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if matches!(error.problem, Problem::Untrusted(_)) => {
                    let what = error.problem.to_string();
                    self.findings.push(problem((Depth::Objects, "signature"), path, what, SIGNATURE_ADVICE));
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if check_seal(bytes) == Seal::Intact {
            return Ok(());
        }
        // Files of the first version were written without seals.
        let severity = if version <= 1 { Severity::Note } else { Severity::Problem };
        let what = "it carries no seal: changed bytes in it would not be seen";
        let advice =
            if version <= 1 { "" } else { "it was changed after it was written: look at what it says" };
        self.findings.push(finding(severity, (Depth::Objects, "seal"), path, what, advice));
        Ok(())
    }

    async fn manifests(&mut self, repository: &Repository, cluster: &str) -> Result<()> {
        let stored = repository.stored_objects(cluster, Area::Backups).await?;
        let mut reads = read_all(repository, stored);
        while let Some((stored, bytes)) = reads.try_next().await? {
            self.present.insert(fingerprint(&stored.path));
            let Some(id) = stored.name().strip_suffix(".json").map(str::to_owned) else { continue };
            let parsed = bytes.and_then(|bytes| {
                let manifest = Manifest::parse(&bytes).map_err(|error| unreadable(&stored.path, error))?;
                Ok((bytes, manifest))
            });
            let (bytes, manifest) = match parsed {
                Ok(read) => read,
                // It was deleted since it was listed.
                Err(RepoError { problem: Problem::Missing, .. }) => continue,
                Err(error) => {
                    self.findings.push(of_object(error, BYTES, &stored.path, BASE_ADVICE)?);
                    self.backups.push(Backup::unreadable(id, stored.path));
                    continue;
                }
            };
            if manifest.id != id || manifest.cluster != cluster {
                let what = format!("it is the manifest of backup {} of {}", manifest.id, manifest.cluster);
                self.findings.push(problem((Depth::Objects, "name"), &stored.path, what, BASE_ADVICE));
                self.backups.push(Backup::unreadable(id, stored.path));
                continue;
            }
            self.sealed(repository, &stored.path, &bytes, manifest.format_version)?;
            let shards = manifest.shards.iter().map(|shard| {
                let base = self.by_path.get(&shard.base.rdb.path).copied().unwrap_or_else(|| {
                    self.by_path.insert(shard.base.rdb.path.clone(), self.bases.len());
                    self.bases.push(BaseWork {
                        record: shard.base.clone(),
                        slots: shard.slots.clone(),
                        history: shard.history.clone(),
                        offset: shard.offset,
                        stored: Vec::new(),
                    });
                    self.bases.len().saturating_sub(1)
                });
                (base, shard.cut())
            });
            self.backups.push(Backup {
                id,
                path: stored.path.clone(),
                shards: shards.collect(),
                digest: manifest.digest,
                readable: true,
            });
            self.files.push(SmallFile::new(stored, &bytes));
        }
        Ok(())
    }

    async fn topologies(&mut self, repository: &Repository, cluster: &str) -> Result<()> {
        let stored = repository.stored_objects(cluster, Area::Topologies).await?;
        let mut reads = read_all(repository, stored);
        while let Some((stored, bytes)) = reads.try_next().await? {
            self.present.insert(fingerprint(&stored.path));
            let Some(id) = stored.name().strip_suffix(".json") else { continue };
            let parsed = bytes.and_then(|bytes| {
                let record =
                    TopologyRecord::parse(&bytes).map_err(|error| unreadable(&stored.path, error))?;
                Ok((bytes, record))
            });
            match parsed {
                Ok((_, record)) if record.id != id => {
                    let what = format!("it is the topology {}", record.id);
                    self.findings.push(problem((Depth::Objects, "name"), &stored.path, what, LOOK_ADVICE));
                }
                Ok((bytes, _)) => {
                    self.sealed(repository, &stored.path, &bytes, u32::MAX)?;
                    self.files.push(SmallFile::new(stored, &bytes));
                }
                Err(RepoError { problem: Problem::Missing, .. }) => {}
                Err(error) => self.findings.push(of_object(error, BYTES, &stored.path, LOOK_ADVICE)?),
            }
        }
        Ok(())
    }

    async fn history(&mut self, repository: &Repository, cluster: &str, history: &ReplId) -> Result<()> {
        let mut work = HistoryWork::default();
        for stored in repository.stored_objects(cluster, Area::History(history)).await? {
            self.present.insert(fingerprint(&stored.path));
            if let Some(entry) = SegmentEntry::of(history, &stored) {
                work.segments.push(SegmentWork { entry, stored });
            } else if stored.name() == layout::HISTORY_FILE {
                work.file = self.history_file(repository, history, stored).await?;
            } else if let Some(folder) = base_folder(&stored.path) {
                if self.by_path.contains_key(&format!("{folder}/{}", layout::RDB_FILE)) {
                    self.found(stored);
                } else {
                    let newest = work.unlisted.entry(folder.to_owned()).or_insert(i64::MIN);
                    *newest = stored.modified_ms.max(*newest);
                }
            }
        }
        work.segments.sort_by_key(|segment| (segment.entry.start, std::cmp::Reverse(segment.entry.end)));
        if work.file.is_none() && !work.segments.is_empty() {
            let path = layout::history_file(cluster, history);
            // A damaged one has its own finding.
            if !self.present.contains(&fingerprint(&path)) {
                let what = "it is missing: nothing says where this log comes from";
                self.findings.push(problem(PRESENT, path, what, LOG_ADVICE));
            }
        }
        self.histories.insert(history.clone(), work);
        Ok(())
    }

    async fn history_file(
        &mut self,
        repository: &Repository,
        history: &ReplId,
        stored: StoredObject,
    ) -> Result<Option<HistoryRecord>> {
        let read = repository.read_file(&stored.path, FILE_MOST_BYTES).await.and_then(|bytes| {
            let record = HistoryRecord::parse(&bytes).map_err(|error| unreadable(&stored.path, error))?;
            Ok((bytes, record))
        });
        match read {
            Ok((_, record)) if record.history != *history => {
                let what = format!("it is that of history {}", record.history);
                self.findings.push(problem((Depth::Objects, "name"), &stored.path, what, LOG_ADVICE));
                Ok(None)
            }
            Ok((bytes, record)) => {
                self.sealed(repository, &stored.path, &bytes, u32::MAX)?;
                self.files.push(SmallFile::new(stored, &bytes));
                Ok(Some(record))
            }
            Err(error) => {
                self.findings.push(of_object(error, BYTES, &stored.path, LOG_ADVICE)?);
                Ok(None)
            }
        }
    }

    /// An object of a base that a manifest names.
    fn found(&mut self, stored: StoredObject) {
        let Some(folder) = base_folder(&stored.path) else { return };
        let number = self.by_path.get(&format!("{folder}/{}", layout::RDB_FILE));
        let Some(base) = number.and_then(|number| self.bases.get_mut(*number)) else { return };
        base.stored.resize(base.record.objects().count(), None);
        let place = base.record.objects().position(|object| object.path == stored.path);
        if let Some(place) = place.and_then(|place| base.stored.get_mut(place)) {
            *place = Some(stored);
        }
    }

    /// Names what manifests name and the listing does not show, or shows with another length.
    fn missing_objects(&mut self) {
        for base in &mut self.bases {
            base.stored.resize(base.record.objects().count(), None);
            for (object, stored) in base.record.objects().zip(&mut base.stored) {
                let advice = if *object == base.record.rdb { BASE_ADVICE } else { DERIVED_ADVICE };
                match stored {
                    None => self.findings.push(problem(PRESENT, &object.path, "it is missing", advice)),
                    Some(found) if found.bytes != object.stored_bytes => {
                        let what = format!(
                            "it has {} bytes, the manifest says {}",
                            found.bytes, object.stored_bytes
                        );
                        self.findings.push(problem((Depth::Objects, "length"), &object.path, what, advice));
                        *stored = None;
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

impl Backup {
    fn unreadable(id: String, path: String) -> Self {
        Self { id, path, shards: Vec::new(), digest: None, readable: false }
    }
}

impl SmallFile {
    fn new(stored: StoredObject, bytes: &[u8]) -> Self {
        Self { stored, blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

type Read = (StoredObject, std::result::Result<Vec<u8>, RepoError>);

/// Reads files, a few at a time, in order.
fn read_all(
    repository: &Repository,
    stored: Vec<StoredObject>,
) -> futures::stream::BoxStream<'_, Result<Read>> {
    futures::stream::iter(stored)
        .map(async move |stored| {
            let bytes = repository.read_file(&stored.path, FILE_MOST_BYTES).await;
            Ok((stored, bytes))
        })
        .buffered(READS_IN_FLIGHT)
        .boxed()
}

fn unreadable(path: &str, error: ManifestError) -> RepoError {
    RepoError { doing: "read", on: path.to_owned(), problem: Problem::from(error) }
}

/// The folder of a base that an object is in.
fn base_folder(path: &str) -> Option<&str> {
    let (folder, _) = path.rsplit_once('/')?;
    (folder.rsplit('/').nth(1) == Some("base")).then_some(folder)
}
