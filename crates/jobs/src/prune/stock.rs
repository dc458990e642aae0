//! What a repository holds of a cluster: everything that could be given up.
//!
//! Objects are listed before manifests are: a backup that is committed meanwhile is seen with all that it names, or its objects are young
//! and named by nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use slotkeep_format::{Manifest, Parent};
use slotkeep_model::ReplId;
use slotkeep_repo::{Area, Looks, Problem, RepoError, Repository, SegmentEntry, StoredObject, layout};

use crate::Result;
use crate::log::cover::{Named, Overlaps, Words};

/// How many histories are looked at at a time.
const READS_IN_FLIGHT: usize = 8;

/// What there is of one history.
#[derive(Default)]
pub(super) struct HistoryStock {
    pub(super) file: Option<StoredObject>,
    /// In the order of their starts, of those that begin at the same offset the longest first.
    pub(super) segments: Vec<Named>,
    /// By their folders.
    pub(super) bases: BTreeMap<String, BaseStock>,
}

/// What there is of one base.
pub(super) struct BaseStock {
    pub(super) offset: u64,
    /// The backup that took it.
    pub(super) backup: String,
    pub(super) objects: Vec<StoredObject>,
}

/// How the cluster looked.
pub(super) struct TopologyStock {
    pub(super) seen_at: Timestamp,
    pub(super) object: StoredObject,
}

/// What there is.
#[derive(Default)]
pub(super) struct Stock {
    pub(super) manifests: Vec<Manifest>,
    pub(super) manifest_objects: BTreeMap<String, StoredObject>,
    /// Backups whose manifests can't be read.
    pub(super) unreadable: Vec<String>,
    pub(super) histories: BTreeMap<ReplId, HistoryStock>,
    pub(super) parents: BTreeMap<ReplId, Parent>,
    /// Whether every history's file can be read.
    pub(super) lineage_known: bool,
    /// Oldest first.
    pub(super) topologies: Vec<TopologyStock>,
    pub(super) pinned: BTreeSet<String>,
    /// What is known of segments that hold the bytes of others too.
    pub(super) overlaps: Words,
    /// The RDBs of bases that agents tell each other of: a backup is to name them, however old they are.
    pub(super) told: BTreeSet<String>,
    /// When an agent said anything last, in ms since 1970.
    pub(super) last_word_ms: Option<i64>,
    /// What could not be read, for people.
    pub(super) remarks: Vec<String>,
}

impl Stock {
    /// Looks at everything.
    pub(super) async fn take(repository: &Repository, cluster: &str) -> Result<Self> {
        let mut stock = Self { lineage_known: true, ..Self::default() };
        let histories = repository.histories(cluster).await?;
        let mut reads = futures::stream::iter(histories)
            .map(async |history| {
                let objects = repository.stored_objects(cluster, Area::History(&history)).await?;
                let record = repository.history(cluster, &history).await;
                Ok::<_, RepoError>((history, objects, record))
            })
            .buffered(READS_IN_FLIGHT);
        while let Some((history, objects, record)) = reads.try_next().await? {
            let own = HistoryStock::of(&history, objects);
            match record {
                Ok(Some(record)) => {
                    stock.parents.extend(record.parent.map(|parent| (history.clone(), parent)));
                }
                // It is written before any log is, and read after the log was listed: it has been lost.
                Ok(None) if !own.segments.is_empty() => {
                    stock.lineage_known = false;
                    stock.remarks.push(format!(
                        "the file of history {history} is missing, which says where its log goes on from: `slotkeep repair` makes it again"
                    ));
                }
                Ok(None) => {}
                Err(error) if matches!(error.problem, Problem::Damaged(_)) => {
                    stock.lineage_known = false;
                    stock.remarks.push(format!(
                        "{error}: no log is deleted until `slotkeep repair` has made it again"
                    ));
                }
                Err(error) => {
                    stock.lineage_known = false;
                    stock.remark(error)?;
                }
            }
            stock.histories.insert(history, own);
        }
        drop(reads);
        let mut overlaps = Overlaps::default();
        stock.histories.values().for_each(|history| overlaps.add(&history.segments));
        stock.overlaps = overlaps.ask(repository, cluster).await?;
        stock.told(repository, cluster).await?;
        stock.topologies(repository, cluster).await?;
        stock.backups(repository, cluster).await?;
        stock.pinned = repository.pins(cluster).await?.into_keys().collect();
        Ok(stock)
    }

    async fn told(&mut self, repository: &Repository, cluster: &str) -> Result<()> {
        let words = repository.stored_objects(cluster, Area::Leases).await?;
        self.last_word_ms = words.iter().map(|word| word.modified_ms).max();
        for (name, number) in repository.leases(cluster).await? {
            match repository.lease_record(cluster, &name, number).await {
                Ok(record) => {
                    let base = record.and_then(|record| record.note.shard).and_then(|shard| shard.base);
                    self.told.extend(base.map(|base| base.record.base.rdb.path));
                }
                Err(error) => self.remark(error)?,
            }
        }
        Ok(())
    }

    async fn topologies(&mut self, repository: &Repository, cluster: &str) -> Result<()> {
        let objects = repository.stored_objects(cluster, Area::Topologies).await?;
        let Looks { records, unread } = match repository.looks(cluster).await {
            Ok(looks) => looks,
            Err(error) => return self.remark(error),
        };
        let mut by_name: BTreeMap<String, StoredObject> =
            objects.into_iter().map(|object| (object.name().to_owned(), object)).collect();
        for record in records {
            if let Some(object) = by_name.remove(&format!("{}.json", record.id)) {
                self.topologies.push(TopologyStock { seen_at: record.seen_at, object });
            }
        }
        for look in unread {
            // It goes as those do that were written beside it.
            let name = look.object.rsplit('/').next().and_then(|name| by_name.remove(name));
            self.topologies.extend(name.map(|object| TopologyStock { seen_at: look.until, object }));
            self.remark(look.error)?;
        }
        self.topologies.sort_by(|a, b| (a.seen_at, &a.object.path).cmp(&(b.seen_at, &b.object.path)));
        Ok(())
    }

    async fn backups(&mut self, repository: &Repository, cluster: &str) -> Result<()> {
        for object in repository.stored_objects(cluster, Area::Backups).await? {
            if let Some(id) = object.name().strip_suffix(".json") {
                self.manifest_objects.insert(id.to_owned(), object);
            }
        }
        let listing = repository.backups(cluster).await?;
        self.manifests = listing.backups;
        for backup in listing.unreadable {
            // One that another prune has deleted since it was listed is no damage.
            if !matches!(backup.error.problem, Problem::Missing) {
                self.unreadable.push(backup.id);
                self.remark(backup.error)?;
            }
        }
        Ok(())
    }

    /// Notes what is wrong with an object; an error only if the store does not answer.
    fn remark(&mut self, error: RepoError) -> Result<()> {
        if !error.problem.is_unusable() {
            return Err(error.into());
        }
        self.remarks.push(error.to_string());
        Ok(())
    }

    /// The paths of all objects.
    pub(super) fn paths(&self) -> HashSet<&str> {
        self.objects().map(|object| object.path.as_str()).collect()
    }

    /// Every object.
    fn objects(&self) -> impl Iterator<Item = &StoredObject> {
        let histories =
            self.histories.values().flat_map(|history| history.file.iter().chain(history.contents()));
        let topologies = self.topologies.iter().map(|topology| &topology.object);
        self.manifest_objects.values().chain(histories).chain(topologies)
    }
}

impl HistoryStock {
    /// Everything but its file.
    pub(super) fn contents(&self) -> impl Iterator<Item = &StoredObject> {
        let bases = self.bases.values().flat_map(|base| &base.objects);
        self.segments.iter().map(|(_, object)| object).chain(bases)
    }

    fn of(history: &ReplId, objects: Vec<StoredObject>) -> Self {
        let mut own = Self::default();
        for object in objects {
            if let Some(entry) = SegmentEntry::of(history, &object) {
                own.segments.push((entry.start..entry.end, object));
            } else if object.name() == layout::HISTORY_FILE {
                own.file = Some(object);
            } else if let Some((folder, offset, backup)) = layout::base_of(&object.path) {
                let (folder, backup) = (folder.to_owned(), backup.to_owned());
                let fresh = || BaseStock { offset, backup, objects: Vec::new() };
                own.bases.entry(folder).or_insert_with(fresh).objects.push(object);
            }
        }
        own.segments.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
        own
    }
}
