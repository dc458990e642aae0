//! What a repository knows of a cluster's past: its histories, and how it looked from when on.

use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::ObjectMeta;
use object_store::path::Path;
use slotkeep_format::{FenceRecord, HistoryRecord, ManifestError, TopologyRecord};
use slotkeep_model::ReplId;

use crate::companions::everywhere;
use crate::crypt::bears_signature;
use crate::error::{Problem, RepoError};
use crate::layout;
use crate::repository::Repository;

/// How many files are read at a time.
const READS_IN_FLIGHT: usize = 8;
/// No record of a fence is longer: a thousand nodes take 300 KiB.
const MOST_FENCE_BYTES: u64 = 64 << 20;

/// The record of a fence, and whether its word is to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFence {
    /// What was set before.
    pub record: FenceRecord,
    /// Whether this repository's key signed it, or nothing is signed here. If not, whoever can write to the store may have made it up.
    pub is_proved: bool,
}

/// How a cluster looked over time.
#[derive(Debug, Default)]
pub struct Looks {
    /// What was written down, oldest first.
    pub records: Vec<TopologyRecord>,
    /// Records that are there and tell nothing: they are damaged, not to be trusted, or of a newer format. Oldest first.
    pub unread: Vec<UnreadLook>,
}

/// A record of how a cluster looked that can't be read.
#[derive(Debug)]
pub struct UnreadLook {
    /// The record.
    pub object: String,
    /// The cluster looked so first at this moment, by the record's name, or later, as a record may be written late:
    pub from: Timestamp,
    /// but not after it was written, by the store.
    pub until: Timestamp,
    /// Why it can't be read.
    pub error: RepoError,
}

impl Repository {
    /// The histories that the repository holds something of: bases, log, or only where they come from.
    pub async fn histories(&self, cluster: &str) -> Result<Vec<ReplId>, RepoError> {
        let folder = layout::histories(cluster);
        let listed = self.store.list_with_delimiter(Some(&folder)).await;
        let listed = listed.map_err(|error| RepoError::new("list", &folder, error))?;
        let names = listed.common_prefixes.iter().filter_map(|prefix| prefix.filename());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Where a history comes from; `None` if that was never written down, as for a backup without a log.
    pub async fn history(&self, cluster: &str, history: &ReplId) -> Result<Option<HistoryRecord>, RepoError> {
        let path = layout::history(cluster, history);
        let record = match self.read_small(&path, HistoryRecord::parse).await {
            Ok(record) => record,
            Err(RepoError { problem: Problem::Missing, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if record.history == *history {
            return Ok(Some(record));
        }
        let what = format!("it says it is of history {}", record.history);
        Err(RepoError::new("read", &path, Problem::Damaged(what)))
    }

    /// Writes down where a history comes from. What was written first stays.
    pub async fn put_history(&self, cluster: &str, record: &HistoryRecord) -> Result<(), RepoError> {
        let others = self.live_companions();
        let others =
            others.map(|one| (&**one, one.repository().put_history_here(cluster, record).boxed())).collect();
        everywhere(&self.location, self.put_history_here(cluster, record), others).await
    }

    async fn put_history_here(&self, cluster: &str, record: &HistoryRecord) -> Result<(), RepoError> {
        let path = layout::history(cluster, &record.history);
        let json = record.render().map_err(|error| RepoError::new("write", &path, error))?;
        match self.put_json(&path, json).await {
            Err(RepoError { problem: Problem::Exists, .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// How the cluster looked over time, oldest first.
    pub async fn topologies(&self, cluster: &str) -> Result<Vec<TopologyRecord>, RepoError> {
        let Looks { records, unread } = self.looks(cluster).await?;
        unread.into_iter().next().map_or(Ok(records), |look| Err(look.error))
    }

    /// How the cluster looked over time, as far as it can be read. Records that are deleted meanwhile are left out.
    pub async fn looks(&self, cluster: &str) -> Result<Looks, RepoError> {
        let mut listed = self.topology_objects(cluster).await?;
        listed.sort_by(|one, other| one.location.cmp(&other.location));
        let mut reads = futures::stream::iter(listed)
            .map(async |object| (self.topology_at(cluster, &object.location).await, object))
            .buffered(READS_IN_FLIGHT);
        let mut looks = Looks::default();
        while let Some((read, object)) = reads.next().await {
            match read {
                Ok(record) => looks.records.push(record),
                Err(error) if matches!(error.problem, Problem::Missing) => {}
                Err(error) if error.problem.tells_nothing() => {
                    // What has no id's name is none of ours, and nothing tells when it may have counted.
                    let Some(from) = object.location.filename().and_then(layout::id_time) else {
                        return Err(error);
                    };
                    let written = Timestamp::from_millisecond(object.last_modified.timestamp_millis());
                    let until = written.map_or(Timestamp::MAX, |written| written.max(from));
                    looks.unread.push(UnreadLook { object: object.location.to_string(), from, until, error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(looks)
    }

    /// How the cluster looked when that was last written down; `None` if it never was, or if that record tells nothing: it is damaged, not to be
    /// trusted, of a newer format or just deleted.
    pub async fn newest_topology(&self, cluster: &str) -> Result<Option<TopologyRecord>, RepoError> {
        let listed = self.topology_objects(cluster).await?;
        let Some(newest) = listed.into_iter().map(|object| object.location).max() else { return Ok(None) };
        match self.topology_at(cluster, &newest).await {
            Err(error) if error.problem.is_unusable() => Ok(None),
            read => read.map(Some),
        }
    }

    async fn topology_objects(&self, cluster: &str) -> Result<Vec<ObjectMeta>, RepoError> {
        let folder = layout::topologies(cluster);
        let listed = self.store.list(Some(&folder));
        let mut objects: Vec<ObjectMeta> =
            listed.try_collect().await.map_err(|error| RepoError::new("list", &folder, error))?;
        objects.retain(|object| {
            object.location.filename().is_some_and(|name| name.strip_suffix(".json").is_some())
        });
        Ok(objects)
    }

    async fn topology_at(&self, cluster: &str, path: &Path) -> Result<TopologyRecord, RepoError> {
        let record = self.read_small(path, TopologyRecord::parse).await?;
        if layout::topology(cluster, &record.id) == *path {
            return Ok(record);
        }
        let what = format!("it says it is {}", record.id);
        Err(RepoError::new("read", path, Problem::Damaged(what)))
    }

    /// Writes down how the cluster looks. A record that is there already stays: a word came through whose answer was lost.
    pub async fn put_topology(&self, cluster: &str, record: &TopologyRecord) -> Result<(), RepoError> {
        let others = self.live_companions();
        let others =
            others.map(|one| (&**one, one.repository().put_topology_here(cluster, record).boxed())).collect();
        everywhere(&self.location, self.put_topology_here(cluster, record), others).await
    }

    async fn put_topology_here(&self, cluster: &str, record: &TopologyRecord) -> Result<(), RepoError> {
        let path = layout::topology(cluster, &record.id);
        let json = record.render().map_err(|error| RepoError::new("write", &path, error))?;
        match self.put_json(&path, json).await {
            Err(RepoError { problem: Problem::Exists, .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// The fence that stands: the newest record; `None` if there never was one.
    pub async fn fence(&self, cluster: &str) -> Result<Option<FenceRecord>, RepoError> {
        match self.fence_to_lift(cluster).await? {
            Some(kept) if !kept.is_proved => {
                let what = "it is not signed, as earlier versions wrote it: lift that fence first (`slotkeep fence --undo`)";
                let on = layout::fence(cluster, &kept.record.id);
                Err(RepoError::new("build on", on, Problem::Untrusted(what.to_owned())))
            }
            kept => Ok(kept.map(|kept| kept.record)),
        }
    }

    /// The same, also if the record bears no signature where this repository's files are signed: earlier versions wrote such, and what
    /// they have fenced must not stay so.
    pub async fn fence_to_lift(&self, cluster: &str) -> Result<Option<KeptFence>, RepoError> {
        let folder = layout::fences(cluster);
        let listed = self.store.list(Some(&folder)).map_ok(|object| object.location);
        let paths: Vec<Path> =
            listed.try_collect().await.map_err(|error| RepoError::new("list", &folder, error))?;
        let Some(newest) = paths.into_iter().max() else { return Ok(None) };
        let failed = |problem: Problem| RepoError::new("read", &newest, problem);
        let bytes = self.read_file(newest.as_ref(), MOST_FENCE_BYTES).await?;
        let is_proved = self.file().signing_key.is_none() || bears_signature(&bytes);
        if is_proved {
            self.check_signature(&newest, &bytes).map_err(failed)?;
        }
        let record = FenceRecord::parse(&bytes).map_err(|error| failed(error.into()))?;
        Ok(Some(KeptFence { record, is_proved }))
    }

    /// Writes down a fence, which stands for all before it.
    pub async fn put_fence(&self, cluster: &str, record: &FenceRecord) -> Result<(), RepoError> {
        let path = layout::fence(cluster, &record.id);
        let json = record.render().map_err(|error| RepoError::new("write", &path, error))?;
        self.put_json(&path, json).await
    }

    pub(crate) async fn read_small<T>(
        &self,
        path: &Path,
        parse: impl FnOnce(&[u8]) -> Result<T, ManifestError>,
    ) -> Result<T, RepoError> {
        let failed = |problem: Problem| RepoError::new("read", path, problem);
        let bytes = self.get_json(path).await?;
        parse(&bytes).map_err(|error| failed(error.into()))
    }
}
