//! What pruning keeps in the repository, and deleting.
//!
//! Invariants: no record is ever changed, and none needs a condition: pins and marks have names of their own, a backup is pinned as long as any
//! of its pins exists, and of records of marks the newest alone counts, so that a lost one only delays.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::manifest::{BaseRecord, ShardRecord};
use slotkeep_format::{Manifest, MarkRecord, PinRecord, PrunedRecord, Unneeded};
use slotkeep_model::ReplId;

use crate::error::{Problem, RepoError};
use crate::layout;
use crate::location::object_path;
use crate::repository::Repository;
use crate::segments::SegmentEntry;

/// How many objects are looked at at a time.
const HEADS_IN_FLIGHT: usize = 16;
/// How often records are listed of which some are gone when they are read: more often only a store does that whose listings are late.
const LISTINGS: u32 = 4;

/// What is marked.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// The newest record; `None` if there is none, or it can't be read: then nothing is marked.
    pub newest: Option<MarkRecord>,
    /// The ids of all records, the newest last.
    pub ids: Vec<String>,
}

/// What was given up, and what is being given up.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The records that can be read, the newest last.
    pub records: Vec<PrunedRecord>,
}

/// What leads from the base of a shard to its cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The histories, the cut's first and the base's last, each with those of its bytes that are needed: none of one that ended before its first
    /// byte, or at whose beginning the cut is. Where they come from is needed of each.
    pub parts: Vec<(ReplId, Range<u64>)>,
    /// Whether it comes to the base. It does not where it is not known what a history comes from, or where the line had left the base's history
    /// before the base was made.
    pub leads: bool,
}

impl Pruned {
    /// Whether that backup was given up, or is about to be.
    pub fn gave_up_backup(&self, cluster: &str, id: &str) -> bool {
        let path = layout::manifest(cluster, id);
        self.records
            .iter()
            .any(|record| record.backups.contains(id) || record.going.contains_key(path.as_ref()))
    }

    /// Whether that topology was given up, or is about to be.
    pub fn gave_up_topology(&self, cluster: &str, id: &str) -> bool {
        let path = layout::topology(cluster, id);
        self.records
            .iter()
            .any(|record| record.topologies.contains(id) || record.going.contains_key(path.as_ref()))
    }

    /// What of a history's log was given up, or is about to be: ranges in order that do not touch.
    pub fn log_of(&self, cluster: &str, history: &ReplId) -> Vec<Range<u64>> {
        let mut all = PrunedRecord::new(String::new(), cluster.to_owned(), Timestamp::UNIX_EPOCH);
        for record in &self.records {
            all.merge(record);
        }
        let going: Vec<Range<u64>> = self.going_log(cluster, history).collect();
        all.add_log(history, &going);
        all.log.into_iter().find(|log| log.history == *history).map(|log| log.ranges).unwrap_or_default()
    }

    /// What of a history's log is about to be given up.
    fn going_log(&self, cluster: &str, history: &ReplId) -> impl Iterator<Item = Range<u64>> {
        let folder = layout::log(cluster, history);
        let going = self.records.iter().flat_map(|record| &record.going);
        going.filter(|(_, why)| **why == Unneeded::Outside).filter_map(move |(path, _)| {
            let name = path.strip_prefix(folder.as_ref())?.strip_prefix('/')?;
            layout::segment_range(name)
        })
    }
}

impl Repository {
    /// Deletes an object that nothing needs. One that is gone already has been deleted.
    pub async fn delete(&self, path: &str) -> Result<(), RepoError> {
        match self.store.delete(&object_path(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(RepoError::new("delete", path, error)),
        }
    }

    /// Whether an object is there.
    pub async fn is_there(&self, path: &str) -> Result<bool, RepoError> {
        match self.store.head(&object_path(path)?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(RepoError::new("look at", path, error)),
        }
    }

    /// What is marked.
    pub async fn marks(&self, cluster: &str) -> Result<Marks, RepoError> {
        let folder = layout::marks(cluster);
        let ids = self.record_ids(&folder).await?;
        let Some(newest) = ids.last() else { return Ok(Marks::default()) };
        let read = self.read_small(&record(&folder, newest), MarkRecord::parse).await;
        let newest = readable(read)?.filter(|mark| mark.id == *newest && mark.cluster == cluster);
        Ok(Marks { newest, ids })
    }

    /// Writes down what is marked.
    pub async fn put_marks(&self, marks: &MarkRecord) -> Result<(), RepoError> {
        let path = record(&layout::marks(&marks.cluster), &marks.id);
        let json = marks.render().map_err(|error| RepoError::new("write", &path, error))?;
        self.put_json(&path, json).await
    }

    /// Deletes a record of marks that another one has replaced.
    pub async fn delete_marks(&self, cluster: &str, id: &str) -> Result<(), RepoError> {
        self.delete(record(&layout::marks(cluster), id).as_ref()).await
    }

    /// What was given up. A record that can't be read is left out: what it explains is missing without an explanation then.
    pub async fn pruned(&self, cluster: &str) -> Result<Pruned, RepoError> {
        let folder = layout::gone(cluster);
        let mut tries = 0_u32;
        loop {
            let (mut pruned, mut replaced) = (Pruned::default(), false);
            for id in self.record_ids(&folder).await? {
                let read = self.read_small(&record(&folder, &id), PrunedRecord::parse).await;
                replaced |= matches!(&read, Err(RepoError { problem: Problem::Missing, .. }));
                let found = readable(read)?.filter(|found| found.id == id && found.cluster == cluster);
                pruned.records.extend(found);
            }
            tries = tries.saturating_add(1);
            // Before a record is deleted, another is there that says the same: not yet when they were listed.
            if !replaced || tries >= LISTINGS {
                return Ok(pruned);
            }
        }
    }

    /// Writes down what is given up.
    pub async fn put_pruned(&self, pruned: &PrunedRecord) -> Result<(), RepoError> {
        let path = record(&layout::gone(&pruned.cluster), &pruned.id);
        let json = pruned.render().map_err(|error| RepoError::new("write", &path, error))?;
        self.put_json(&path, json).await
    }

    /// Deletes a record of what was given up, which another one repeats.
    pub async fn delete_pruned(&self, cluster: &str, id: &str) -> Result<(), RepoError> {
        self.delete(record(&layout::gone(cluster), id).as_ref()).await
    }

    /// The ids of the backups that are pinned, each with its pins. What a pin says is not read: that it is there counts.
    pub async fn pins(&self, cluster: &str) -> Result<BTreeMap<String, BTreeSet<String>>, RepoError> {
        let folder = layout::pins(cluster);
        let listed: Vec<_> = self
            .store
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(|error| RepoError::new("list", &folder, error))?;
        let mut pins: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for object in listed {
            let mut parts = object.location.as_ref().rsplit('/');
            if let (Some(_), Some(backup)) = (parts.next(), parts.next()) {
                pins.entry(backup.to_owned()).or_default().insert(object.location.to_string());
            }
        }
        Ok(pins)
    }

    /// Pins a backup.
    pub async fn put_pin(&self, pin: &PinRecord) -> Result<(), RepoError> {
        let path = record(&layout::pins(&pin.cluster).join(pin.backup.as_str()), &pin.id);
        let json = pin.render().map_err(|error| RepoError::new("write", &path, error))?;
        self.put_json(&path, json).await
    }

    /// Refuses a backup that names an RDB which is not there: of a base that was there when the work on this backup began.
    pub(crate) async fn check_bases(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let looks = manifest.shards.iter().map(|shard| {
            let (path, store) = (&shard.base.rdb.path, &self.store);
            async move { (path, store.head(&Path::from(path.as_str())).await) }
        });
        let looks: Vec<_> = looks.collect();
        let mut heads = futures::stream::iter(looks).buffer_unordered(HEADS_IN_FLIGHT);
        while let Some((path, found)) = heads.next().await {
            match found {
                Ok(_) => {}
                Err(object_store::Error::NotFound { .. }) => {
                    let on = layout::manifest(&manifest.cluster, &manifest.id);
                    return Err(RepoError::new("write", on, Problem::Pruned(path.clone())));
                }
                Err(error) => return Err(RepoError::new("look at", path, error)),
            }
        }
        Ok(())
    }

    /// Whether a base that no backup names yet can be gone on from: it is there, and no prune is about to delete it. Asked after something was
    /// written by which a prune knows that the base is needed, so that one of the two sees the other.
    pub async fn base_stands(&self, cluster: &str, base: &BaseRecord) -> Result<bool, RepoError> {
        let pruned = self.pruned(cluster).await?;
        let is_going = |path: &String| pruned.records.iter().any(|record| record.going.contains_key(path));
        for object in base.objects() {
            if is_going(&object.path) {
                return Ok(false);
            }
            if !self.is_there(&object.path).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// When a record of marks was written, by the store's clock.
    pub async fn marked_at(&self, marks: &MarkRecord) -> Result<Timestamp, RepoError> {
        self.written_at(record(&layout::marks(&marks.cluster), &marks.id).as_ref()).await
    }

    /// When a record of what is given up was written, by the store's clock.
    pub async fn announced_at(&self, pruned: &PrunedRecord) -> Result<Timestamp, RepoError> {
        self.written_at(record(&layout::gone(&pruned.cluster), &pruned.id).as_ref()).await
    }

    /// Refuses a backup that needs what a prune is about to delete, or has given up and is not there.
    pub(crate) async fn check_not_pruned(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let pruned = self.pruned(&manifest.cluster).await?;
        if pruned.records.is_empty() {
            return Ok(());
        }
        let path = layout::manifest(&manifest.cluster, &manifest.id);
        let refuse = |what: String| Err(RepoError::new("write", &path, Problem::Pruned(what)));
        let is_going = |path: &str| pruned.records.iter().any(|record| record.going.contains_key(path));
        if let Some(object) = manifest.objects().find(|object| is_going(&object.path)) {
            return refuse(object.path.clone());
        }
        for shard in &manifest.shards {
            for (history, needed) in self.way(&manifest.cluster, shard).await?.parts {
                let file = layout::history_file(&manifest.cluster, &history);
                if is_going(&file) {
                    return refuse(file);
                }
                if self.lacks_log(&manifest.cluster, &pruned, &history, &needed).await? {
                    return refuse(format!("the log of history {history} up to {}", needed.end));
                }
            }
        }
        Ok(())
    }

    /// Whether any of these bytes is about to be given up, or was, and did not come back: a copy that was broken off before it listed a backup
    /// brings its log again.
    async fn lacks_log(
        &self,
        cluster: &str,
        pruned: &Pruned,
        history: &ReplId,
        needed: &Range<u64>,
    ) -> Result<bool, RepoError> {
        let shared = |range: Range<u64>| {
            let both = range.start.max(needed.start)..range.end.min(needed.end);
            (!both.is_empty()).then_some(both)
        };
        if pruned.going_log(cluster, history).any(|range| shared(range).is_some()) {
            return Ok(true);
        }
        let gone: Vec<Range<u64>> = pruned.log_of(cluster, history).into_iter().filter_map(shared).collect();
        if gone.is_empty() {
            return Ok(false);
        }
        // After the records: a prune has deleted the log before it says there that it is gone.
        let there = self.segments(cluster, history).await?;
        let ends = |bytes: &Range<u64>| {
            let on =
                |at: u64, segment: &SegmentEntry| if segment.start <= at { at.max(segment.end) } else { at };
            there.iter().fold(bytes.start, on)
        };
        Ok(gone.iter().any(|bytes| ends(bytes) < bytes.end))
    }

    /// What leads from the base of a shard to its cut, as far as it is known where histories come from.
    pub async fn way(&self, cluster: &str, shard: &ShardRecord) -> Result<Way, RepoError> {
        let cut = shard.cut();
        let (mut history, mut end) = (cut.history, cut.offset.saturating_add(1));
        let (mut way, mut seen) = (Way::default(), BTreeSet::new());
        // The last byte that the line has of the history.
        let mut left_at = u64::MAX;
        while history != shard.history {
            let record = self.history(cluster, &history).await?;
            let parent = record.and_then(|record| record.parent).filter(|_| seen.insert(history.clone()));
            let Some(parent) = parent else { return Ok(way) };
            let start = parent.fork.saturating_add(1);
            way.parts.push((history, start..end.max(start)));
            left_at = left_at.min(parent.fork);
            (history, end) = (parent.history, end.min(start));
        }
        let start = shard.offset.saturating_add(1);
        way.leads = shard.offset <= left_at;
        way.parts.push((history, start..end.max(start)));
        Ok(way)
    }

    async fn record_ids(&self, folder: &Path) -> Result<Vec<String>, RepoError> {
        let listed: Vec<_> = self
            .store
            .list(Some(folder))
            .try_collect()
            .await
            .map_err(|error| RepoError::new("list", folder, error))?;
        let names = listed.iter().filter_map(|object| object.location.filename());
        let mut ids: Vec<String> =
            names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        ids.sort();
        Ok(ids)
    }
}

fn record(folder: &Path, id: &str) -> Path {
    folder.clone().join(format!("{id}.json"))
}

/// Nothing, where a record is damaged, was not signed, or went away while it was looked for.
fn readable<T>(read: Result<T, RepoError>) -> Result<Option<T>, RepoError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(RepoError {
            problem: Problem::Damaged(_) | Problem::Untrusted(_) | Problem::Missing, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}
