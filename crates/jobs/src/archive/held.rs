//! What the repository holds already: bases, and how far the log behind each goes without a gap.
//!
//! Invariant: what can't be read costs what needs it and nothing else. A log that ends in a segment that can't be read is gone on with from before it: nobody
//! is to go on behind what can't be replayed, and servers and spools may still have those bytes.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use slotkeep_format::manifest::{BaseRecord, ShardRecord, sort_newest_first};
use slotkeep_format::{Manifest, Parent};
use slotkeep_model::{ReplId, ReplOffset, SlotSet};
use slotkeep_repo::{RepoError, Repository, SegmentEntry};
use slotkeep_wire::info::Replication;
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::decide::Position;
use crate::Result;
use crate::backup::base::TakenBase;
use crate::rdb_head::RdbHead;

/// So many segments at the end of a history that can't be read are taken for a store that can't be read at all.
const MOST_SPOILED: usize = 16;

/// A base and the end of the log behind it.
pub(crate) type Held = (Position, Arc<TakenBase>);

/// Where the log leads.
#[derive(Debug)]
pub(crate) enum Lead {
    /// From a base to what the server follows.
    Here(Held),
    /// No base leads there.
    Nowhere,
    /// It would lead there, but for what can't be read: why.
    Broken(String),
}

impl From<Option<Held>> for Lead {
    fn from(held: Option<Held>) -> Self {
        held.map_or(Self::Nowhere, Self::Here)
    }
}

/// What a repository holds of one cluster.
pub(crate) struct Holdings {
    repository: Repository,
    cluster: String,
    /// Newest first.
    manifests: Vec<Manifest>,
    /// Bases that are in no backup yet, the newest first.
    unlisted: Vec<Arc<TakenBase>>,
    parents: HashMap<ReplId, Parent>,
    /// Histories of which it can't be read where they come from, and why.
    unreadable: HashMap<ReplId, String>,
    segments: HashMap<ReplId, Vec<SegmentEntry>>,
    /// Why segments at the ends of histories can't be read. They are none of `segments`.
    spoiled: HashMap<ReplId, Vec<String>>,
    /// What of it has not been told yet.
    untold: Vec<String>,
}

impl Holdings {
    /// Looks at the repository.
    pub(crate) async fn read(repository: &Repository, cluster: &str) -> Result<Self> {
        let mut manifests = repository.backups(cluster).await?.backups;
        sort_newest_first(&mut manifests);
        let (mut parents, mut unreadable) = (HashMap::new(), HashMap::new());
        for history in repository.histories(cluster).await? {
            match repository.history(cluster, &history).await {
                Ok(record) => {
                    if let Some(parent) = record.and_then(|record| record.parent) {
                        parents.insert(history, parent);
                    }
                }
                Err(error) if error.problem.is_spoiled() => {
                    unreadable.insert(history, error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self {
            repository: repository.clone(),
            cluster: cluster.to_owned(),
            manifests,
            unlisted: Vec::new(),
            parents,
            unreadable,
            segments: HashMap::new(),
            spoiled: HashMap::new(),
            untold: Vec::new(),
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

    /// Why segments were taken for not there, as far as that was not asked before.
    pub(crate) fn newly_spoiled(&mut self) -> Vec<String> {
        std::mem::take(&mut self.untold)
    }

    /// The newest base from which the log leads to the history that the server follows now, or to the one before. A segment at its end that can't be
    /// read is as good as none, unless the base lies at its end: whoever went on behind it would keep a log that nobody can replay.
    pub(crate) async fn leading_to(&mut self, server: &Replication) -> Result<Lead> {
        let followed = std::iter::once(&server.replid).chain(&server.previous_replid);
        let mut broken = followed.into_iter().find_map(|history| self.unreadable_above(history));
        for base in self.unlisted.clone() {
            match Box::pin(self.behind_base(&base, server)).await? {
                Lead::Here(held) => return Ok(Lead::Here(held)),
                Lead::Broken(why) => broken = Some(why),
                Lead::Nowhere => {}
            }
        }
        for number in 0..self.manifests.len() {
            let Some(manifest) = self.manifests.get(number) else { break };
            let shards = manifest.shards.iter().filter(|shard| shard.is_anchored());
            let bases: Vec<Arc<TakenBase>> =
                shards.map(|shard| Arc::new(TakenBase::of(shard, &manifest.id))).collect();
            for base in bases {
                match Box::pin(self.behind_base(&base, server)).await? {
                    Lead::Here(held) => return Ok(Lead::Here(held)),
                    Lead::Broken(why) => broken = Some(why),
                    Lead::Nowhere => {}
                }
            }
        }
        Ok(broken.map_or(Lead::Nowhere, Lead::Broken))
    }

    /// Why it can't be read where that history comes from, or one that it descends from, or what a log of theirs ends in.
    fn unreadable_above(&self, history: &ReplId) -> Option<String> {
        let mut passed = HashSet::new();
        let mut at = history;
        while passed.insert(at) {
            let spoiled = self.spoiled.get(at).and_then(|all| all.last());
            if let Some(why) = self.unreadable.get(at).or(spoiled) {
                return Some(why.clone());
            }
            at = &self.parents.get(at)?.history;
        }
        None
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
    async fn behind_base(&mut self, base: &Arc<TakenBase>, server: &Replication) -> Result<Lead> {
        let rank = |history: &ReplId| match history {
            history if *history == server.replid => Some(0),
            history if Some(history) == server.previous_replid.as_ref() => Some(1),
            _ => None,
        };
        let mut passed_over = None;
        loop {
            let ends = self.ends(&base.history, base.offset).await?;
            let best = ends
                .into_iter()
                .filter_map(|end| Some((rank(&end.0)?, end)))
                .min_by_key(|(rank, (_, offset))| (*rank, Reverse(*offset)));
            let Some((_, (history, offset))) = best else {
                return Ok(passed_over.map_or(Lead::Nowhere, Lead::Broken));
            };
            let at_base = history == base.history && offset == base.offset;
            let database = match self.database_at(&history, offset).await? {
                Ok(database) => database,
                // What lies before a base is not needed behind it.
                Err(_) if at_base => None,
                Err((segment, why)) => {
                    if !self.pass_over(&segment, &why) {
                        return Ok(Lead::Broken(why));
                    }
                    passed_over = Some(why);
                    continue;
                }
            };
            // A server does not say again what it had selected when the base was made.
            let database = match database {
                None if at_base => self.database_of(base).await,
                known => known,
            };
            return Ok(Lead::Here((Position { history, offset, database }, Arc::clone(base))));
        }
    }

    /// Takes a segment for not there; false if that has been done too often.
    fn pass_over(&mut self, segment: &SegmentEntry, why: &str) -> bool {
        let spoiled = self.spoiled.entry(segment.history.clone()).or_default();
        if spoiled.len() >= MOST_SPOILED {
            return false;
        }
        tracing::warn!("{why}; the log is gone on with from before it");
        spoiled.push(why.to_owned());
        self.untold.push(why.to_owned());
        if let Some(segments) = self.segments.get_mut(&segment.history) {
            segments.retain(|other| other.path() != segment.path());
        }
        true
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

    /// The database that is selected behind `offset`, from the segment that ends there, or that segment and why it can't be read. Not known where segments
    /// are encrypted and this machine only writes; whoever reads them knows it from the segments before.
    async fn database_at(
        &mut self,
        history: &ReplId,
        offset: u64,
    ) -> Result<std::result::Result<Option<u32>, (SegmentEntry, String)>> {
        if !self.repository.is_readable() {
            return Ok(Ok(None));
        }
        let Some(last) = self.last_segment(history, offset).await? else { return Ok(Ok(None)) };
        let mut read = selected_behind(&self.repository, &last).await;
        // One bad answer is not to cost what the segment holds.
        if read.as_ref().is_err_and(|error| error.problem.is_spoiled()) {
            read = selected_behind(&self.repository, &last).await;
        }
        match read {
            Ok(database) => Ok(Ok(database)),
            Err(error) if error.problem.is_spoiled() => Ok(Err((last, error.to_string()))),
            Err(error) => Err(error.into()),
        }
    }

    /// The segment that ends at `offset`, the shortest of those; where a history has no byte yet, that of the one it comes from.
    async fn last_segment(&mut self, history: &ReplId, offset: u64) -> Result<Option<SegmentEntry>> {
        let behind = offset.saturating_add(1);
        let (mut at, mut passed) = (history.clone(), HashSet::new());
        while passed.insert(at.clone()) {
            let segments = self.segments_of(&at).await?;
            if let Some(last) = segments.iter().rev().find(|segment| segment.end == behind) {
                return Ok(Some(last.clone()));
            }
            match self.parents.get(&at).filter(|parent| parent.fork == offset) {
                Some(parent) => at = parent.history.clone(),
                None => break,
            }
        }
        Ok(None)
    }
}

/// The database that is selected behind a segment, if it is known.
async fn selected_behind(repository: &Repository, segment: &SegmentEntry) -> Result<Option<u32>, RepoError> {
    let mut reader = repository.read_segment(segment).await?;
    let start = StreamStart {
        offset: ReplOffset(segment.start.saturating_sub(1)),
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

/// The last byte up to which ranges, in the order of their starts, hold everything behind `from` without a gap. Ranges end before
/// their second number.
pub(crate) fn contiguous(ranges: impl Iterator<Item = (u64, u64)>, from: u64) -> u64 {
    ranges.fold(from, |reached, (start, end)| {
        if start <= reached.saturating_add(1) { reached.max(end.saturating_sub(1)) } else { reached }
    })
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
