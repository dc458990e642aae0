//! What the repository holds already: bases, and how far the log behind each goes without a gap.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use slotkeep_format::manifest::{BaseRecord, ShardRecord};
use slotkeep_format::{Manifest, Parent};
use slotkeep_model::{ReplId, ReplOffset, SlotSet};
use slotkeep_repo::{Repository, SegmentEntry};
use slotkeep_wire::info::Replication;
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::decide::Position;
use crate::Result;
use crate::backup::base::TakenBase;
use crate::rdb_head::RdbHead;

/// A base and the end of the log behind it.
pub(crate) type Held = (Position, Arc<TakenBase>);

/// What a repository holds of one cluster.
pub(crate) struct Holdings {
    repository: Repository,
    cluster: String,
    /// Newest first.
    manifests: Vec<Manifest>,
    /// Bases that are in no backup yet, the newest first.
    unlisted: Vec<Arc<TakenBase>>,
    parents: HashMap<ReplId, Parent>,
    segments: HashMap<ReplId, Vec<SegmentEntry>>,
}

impl Holdings {
    /// Looks at the repository.
    pub(crate) async fn read(repository: &Repository, cluster: &str) -> Result<Self> {
        let mut manifests = repository.backups(cluster).await?.backups;
        manifests.sort_by_cached_key(|manifest| Reverse((manifest.order_at(), manifest.id.clone())));
        let mut parents = HashMap::new();
        for history in repository.histories(cluster).await? {
            let record = repository.history(cluster, &history).await?;
            if let Some(parent) = record.and_then(|record| record.parent) {
                parents.insert(history, parent);
            }
        }
        Ok(Self {
            repository: repository.clone(),
            cluster: cluster.to_owned(),
            manifests,
            unlisted: Vec::new(),
            parents,
            segments: HashMap::new(),
        })
    }

    /// Adds a base that is in no backup yet, unless a backup lists it.
    pub(crate) fn add_base(&mut self, base: Arc<TakenBase>) {
        if !self.lists(&base.base.rdb.path) {
            self.unlisted.insert(0, base);
        }
    }

    /// Whether a backup names that RDB.
    pub(crate) fn lists(&self, rdb: &str) -> bool {
        self.listed().any(|listed| listed == rdb)
    }

    /// What the newest backup that names that RDB says of the base: a repair may have made its index again.
    pub(crate) fn said_of(&self, rdb: &str) -> Option<&BaseRecord> {
        let mut shards = self.manifests.iter().flat_map(|manifest| &manifest.shards);
        shards.find(|shard| shard.base.rdb.path == rdb).map(|shard| &shard.base)
    }

    /// The RDBs of all bases that backups list.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &String> {
        let shards = self.manifests.iter().flat_map(|manifest| &manifest.shards);
        shards.map(|shard| &shard.base.rdb.path)
    }

    /// The newest base from which the log leads to the history that the server follows now, or to the one before.
    pub(crate) async fn leading_to(&mut self, server: &Replication) -> Result<Option<Held>> {
        for base in self.unlisted.clone() {
            if let Some(held) = self.behind_base(&base, server).await? {
                return Ok(Some(held));
            }
        }
        for number in 0..self.manifests.len() {
            let Some(manifest) = self.manifests.get(number) else { break };
            let shards = manifest.shards.iter().filter(|shard| shard.is_anchored());
            let bases: Vec<Arc<TakenBase>> =
                shards.map(|shard| Arc::new(TakenBase::of(shard, &manifest.id))).collect();
            for base in bases {
                if let Some(held) = self.behind_base(&base, server).await? {
                    return Ok(Some(held));
                }
            }
        }
        Ok(None)
    }

    /// The newest backup with a base of those slots that no log of replication can go on behind, and that shard of it.
    pub(crate) fn not_of_replication(&self, slots: &SlotSet) -> Option<(&str, &ShardRecord)> {
        self.manifests.iter().find_map(|manifest| {
            let own = |shard: &&ShardRecord| {
                let stands_apart = !shard.is_anchored() || shard.aof().is_some();
                stands_apart && !shard.slots.intersection(slots).is_empty()
            };
            Some((manifest.id.as_str(), manifest.shards.iter().find(own)?))
        })
    }

    /// The base, and where the log behind it ends in what the server follows, if it leads there.
    async fn behind_base(&mut self, base: &Arc<TakenBase>, server: &Replication) -> Result<Option<Held>> {
        let ends = self.ends(&base.history, base.offset).await?;
        let rank = |history: &ReplId| match history {
            history if *history == server.replid => Some(0),
            history if Some(history) == server.previous_replid.as_ref() => Some(1),
            _ => None,
        };
        let best = ends
            .into_iter()
            .filter_map(|end| Some((rank(&end.0)?, end)))
            .min_by_key(|(rank, (_, offset))| (*rank, Reverse(*offset)));
        let Some((_, (history, offset))) = best else { return Ok(None) };
        let database = self.database_at(&history, offset).await?;
        // A server does not say again what it had selected when the base was made.
        let at_base = history == base.history && offset == base.offset;
        let database = match database {
            None if at_base => self.database_of(base).await,
            known => known,
        };
        Ok(Some((Position { history, offset, database }, Arc::clone(base))))
    }

    /// The database that was selected when a base was made, if that can be read: whoever reads the log can look there as well.
    async fn database_of(&self, base: &TakenBase) -> Option<u32> {
        match base.read.as_ref().and_then(|read| read.database) {
            None if self.repository.is_readable() => {
                RdbHead::read(&self.repository, &base.base.rdb).await.ok()?.database
            }
            known => known,
        }
    }

    /// Where the log behind a base ends: in its own history, and in each that descends from it.
    async fn ends(&mut self, history: &ReplId, offset: u64) -> Result<Vec<(ReplId, u64)>> {
        let mut ends: Vec<(ReplId, u64)> = Vec::new();
        let mut open = vec![(history.clone(), offset)];
        while let Some((history, from)) = open.pop() {
            let segments = self.segments_of(&history).await?;
            let end = contiguous(segments.iter().map(|segment| (segment.start, segment.end)), from);
            for (child, parent) in &self.parents {
                let descends = parent.history == history && (from..=end).contains(&parent.fork);
                if descends && ends.iter().all(|(known, _)| known != child) {
                    open.push((child.clone(), parent.fork));
                }
            }
            ends.push((history, end));
        }
        Ok(ends)
    }

    async fn segments_of(&mut self, history: &ReplId) -> Result<&[SegmentEntry]> {
        if !self.segments.contains_key(history) {
            let found = self.repository.segments(&self.cluster, history).await?;
            self.segments.insert(history.clone(), found);
        }
        Ok(self.segments.get(history).map(Vec::as_slice).unwrap_or_default())
    }

    /// The database that is selected behind `offset`, from the segment that ends there. Not known where segments are encrypted and this machine
    /// only writes; whoever reads them knows it from the segments before.
    async fn database_at(&mut self, history: &ReplId, offset: u64) -> Result<Option<u32>> {
        if !self.repository.is_readable() {
            return Ok(None);
        }
        let behind = offset.saturating_add(1);
        let last = self.segments_of(history).await?.iter().find(|segment| segment.end == behind).cloned();
        let Some(last) = last else { return Ok(None) };
        let mut reader = self.repository.read_segment(&last).await?;
        let start = StreamStart {
            offset: ReplOffset(last.start.saturating_sub(1)),
            db: reader.record().database,
            in_transaction: false,
        };
        let mut splitter = Splitter::new(start);
        while let Some(bytes) = reader.next().await? {
            let mut rest = bytes.as_slice();
            while let Ok(Some(_)) = splitter.next(&mut rest) {}
        }
        Ok(splitter.db())
    }
}

/// The last byte up to which ranges, in the order of their starts, hold everything behind `from` without a gap. Ranges end before
/// their second number.
pub(crate) fn contiguous(ranges: impl Iterator<Item = (u64, u64)>, from: u64) -> u64 {
    ranges.fold(from, |reached, (start, end)| {
        if start <= reached.saturating_add(1) { reached.max(end.saturating_sub(1)) } else { reached }
    })
}

#[cfg(test)]
mod tests {
    use super::contiguous;

    #[test]
    fn a_log_is_held_up_to_its_first_gap() {
        let ranges = [(1, 11), (11, 21), (15, 18), (22, 31)];
        assert_eq!(contiguous(ranges.into_iter(), 0), 20);
        assert_eq!(contiguous(ranges.into_iter(), 12), 20);
        assert_eq!(contiguous(ranges.into_iter(), 21), 30);
        assert_eq!(contiguous(ranges.into_iter(), 40), 40);
        assert_eq!(contiguous(std::iter::empty(), 7), 7);
    }
}
