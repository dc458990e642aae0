//! What a repository holds of a cluster's past, and what its segments say about time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use slotkeep_format::lease::PRESENCE_PREFIX;
use slotkeep_format::manifest::{BackupKind, FORMAT_VERSION, ShardRecord};
use slotkeep_format::{HistoryRecord, Manifest, SegmentRecord, TopologyRecord};
use slotkeep_model::{ReplId, SlotSet};
use slotkeep_repo::{
    Listing, Looks, RepoError, Repository, SegmentEntry, UnreadLook, UnreadableBackup, layout,
};

use super::chain::{BasePlace, Chain, Path, Piece, Place};
use super::cover::{Overlaps, named};
use super::files::{self, FileLines};
use crate::backup::how_read;
use crate::{Error, ErrorKind, Result};

/// How many histories are looked at at a time.
const READS_IN_FLIGHT: usize = 8;
/// How many time samples, those of the segments' records, are remembered: some 50 MB.
const REMEMBERED_SAMPLES: usize = 2_000_000;
/// What a record counts beside its samples.
const RECORD_WEIGHT: usize = 16;

/// What a repository holds of a cluster: backups, histories with their segments, and how the cluster looked.
pub struct Past {
    pub(super) repository: Repository,
    /// The name under which the repository keeps the cluster.
    pub cluster: String,
    /// The backups whose manifests can be read, oldest first.
    pub backups: Vec<Manifest>,
    /// Those whose manifests can't be read.
    pub unreadable: Vec<UnreadableBackup>,
    /// Why nobody is to be given the newest state: [`Listing::newest_spoiled`].
    pub newest_spoiled: Option<String>,
    /// How the cluster looked, oldest first: as it was written down or, where it never was, as backups of append-only files show it.
    pub topologies: Vec<TopologyRecord>,
    /// Records of how it looked that can't be read.
    pub(super) unread_looks: Vec<UnreadLook>,
    /// Where histories come from, as far as it was written down.
    pub histories: BTreeMap<ReplId, HistoryRecord>,
    /// Histories whose records can't be read, and why.
    pub(super) unread: BTreeMap<ReplId, RepoError>,
    /// How all of it belongs together.
    pub chain: Chain,
    /// What backups of append-only files tell.
    pub(super) files: FileLines,
    /// Whether nothing but they shows how the cluster looked.
    files_alone: bool,
    segments: BTreeMap<ReplId, Vec<SegmentEntry>>,
    /// Of each base of the chain, by number, who names it.
    bases: Vec<Named>,
    /// Of each base that agents tell each other of and that is in no backup yet, what a backup of it alone would say.
    told: Vec<Manifest>,
    records: Mutex<Remembered>,
}

/// Who names a base.
#[derive(Clone, Copy)]
enum Named {
    /// A backup, as a shard of it.
    Backup { backup: usize, shard: usize },
    /// An agent.
    Told(usize),
}

/// The log that leads to a tip, as far as none that was named before it has it.
pub(super) struct OwnLog {
    pub(super) path: Path,
    /// The slots of the tip's shard when they were seen last.
    pub(super) slots: SlotSet,
    pub(super) segments: Vec<(SegmentEntry, Range<u64>)>,
}

/// Records that were read.
#[derive(Default)]
struct Remembered {
    records: HashMap<String, Arc<SegmentRecord>>,
    samples: usize,
}

impl Remembered {
    fn add(&mut self, path: &str, record: &Arc<SegmentRecord>) {
        let samples = record.times.samples().len().saturating_add(RECORD_WEIGHT);
        if self.samples.saturating_add(samples) > REMEMBERED_SAMPLES {
            *self = Self::default();
        }
        if self.records.insert(path.to_owned(), Arc::clone(record)).is_none() {
            self.samples = self.samples.saturating_add(samples);
        }
    }
}

impl Past {
    /// Looks at what a repository holds of a cluster. Listings only: no segment is read.
    pub async fn load(repository: &Repository, cluster: &str) -> Result<Self> {
        let Listing { backups, unreadable, newest_spoiled } = repository.backups(cluster).await?;
        let Looks { records: mut topologies, unread: unread_looks } = repository.looks(cluster).await?;
        let mut files_alone = false;
        if topologies.is_empty() && unread_looks.is_empty() {
            topologies = files::topologies(&backups);
            files_alone = !topologies.is_empty();
        }
        topologies.sort_by(|a, b| (a.seen_at, &a.id).cmp(&(b.seen_at, &b.id)));
        let mut known = repository.histories(cluster).await?;
        // A name that was made up for a base that stands at no offset is no history of the cluster.
        let shards = || backups.iter().flat_map(|backup| &backup.shards);
        let made_up: BTreeSet<&ReplId> =
            shards().filter(|shard| !shard.is_anchored()).map(|shard| &shard.history).collect();
        known.retain(|history| !made_up.contains(history));
        let read: Vec<_> = futures::stream::iter(known)
            .map(async |history| {
                let record = match repository.history(cluster, &history).await {
                    Err(error) if error.problem.tells_nothing() => Err(error),
                    known => Ok(known?),
                };
                let segments = repository.segments(cluster, &history).await?;
                Ok::<_, Error>((history, record, segments))
            })
            .buffered(READS_IN_FLIGHT)
            .try_collect()
            .await?;
        let mut past = Self {
            repository: repository.clone(),
            cluster: cluster.to_owned(),
            files: FileLines::of(&backups),
            files_alone,
            backups,
            unreadable,
            newest_spoiled,
            topologies,
            unread_looks,
            histories: BTreeMap::new(),
            unread: BTreeMap::new(),
            chain: Chain::default(),
            segments: BTreeMap::new(),
            bases: Vec::new(),
            told: Vec::new(),
            records: Mutex::default(),
        };
        let mut overlaps = Overlaps::default();
        for (_, _, segments) in &read {
            overlaps.add(&segments.iter().map(named).collect::<Vec<_>>());
        }
        // Who can't read what verifications have left goes by the names alone.
        let words = overlaps.ask(repository, cluster).await.unwrap_or_default();
        for (history, record, segments) in read {
            let record = record.unwrap_or_else(|error| {
                past.unread.insert(history.clone(), error);
                None
            });
            past.add_history(history, record, words.without_doubtful(segments));
        }
        past.add_bases();
        past.add_told().await?;
        past.add_looks();
        Ok(past)
    }

    fn add_history(&mut self, history: ReplId, record: Option<HistoryRecord>, segments: Vec<SegmentEntry>) {
        let parent = record.as_ref().and_then(|record| record.parent.clone());
        let rank = record.as_ref().map_or(i64::MIN, |record| record.first_seen_at.as_millisecond());
        let ranges = segments.iter().map(|segment| segment.start..segment.end).collect();
        self.chain.add_history(history.clone(), parent, rank, ranges);
        self.histories.extend(record.map(|record| (history.clone(), record)));
        self.segments.insert(history, segments);
    }

    /// Bases by the manifests that name them. Backups share bases: the first one that names a base counts. A base that stands at no offset
    /// is none of the chain.
    fn add_bases(&mut self) {
        let mut seen = BTreeSet::new();
        for (backup, manifest) in self.backups.iter().enumerate() {
            let shards = manifest.shards.iter().enumerate();
            for (shard, record) in shards.filter(|(_, record)| record.is_anchored()) {
                if seen.insert(&record.base.rdb.path) {
                    let place = Place { history: record.history.clone(), offset: record.offset };
                    self.chain.add_base(BasePlace { place, number: self.bases.len() });
                    self.bases.push(Named::Backup { backup, shard });
                }
            }
        }
    }

    /// Bases that agents tell each other of and that no backup names yet, as while slots move: then an archive writes none.
    async fn add_told(&mut self) -> Result<()> {
        let named = self.backups.iter().flat_map(|backup| &backup.shards);
        let mut seen: BTreeSet<String> = named.map(|shard| shard.base.rdb.path.clone()).collect();
        for record in told(&self.repository, &self.cluster).await? {
            let rdb = &record.base.rdb.path;
            // What was told long ago may have been pruned since.
            if record.is_anchored()
                && seen.insert(rdb.clone())
                && self.repository.stored_bytes(rdb).await?.is_some()
            {
                let place = Place { history: record.history.clone(), offset: record.offset };
                self.chain.add_base(BasePlace { place, number: self.bases.len() });
                self.bases.push(Named::Told(self.told.len()));
                self.told.push(self.alone(record));
            }
        }
        Ok(())
    }

    /// What a backup of that base alone would say, under the id that it was taken under.
    fn alone(&self, record: ShardRecord) -> Manifest {
        let id = layout::base_of(&record.base.rdb.path).map(|(_, _, id)| id.to_owned()).unwrap_or_default();
        let seen = self.topologies.last();
        let taken_at = record.server_time.or(seen.map(|seen| seen.seen_at)).unwrap_or(Timestamp::UNIX_EPOCH);
        Manifest {
            format_version: FORMAT_VERSION,
            id,
            cluster: self.cluster.clone(),
            kind: BackupKind::Full,
            partial: true,
            missing_slots: record.slots.complement(),
            started_at: taken_at,
            finished_at: taken_at,
            slotkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_mode: seen.is_none_or(|seen| seen.cluster_mode),
            current_epoch: seen.map_or(record.config_epoch, |seen| seen.current_epoch),
            shards: vec![record],
            settings: vec![],
            cut: None,
            digest: None,
        }
    }

    /// When each history was followed, as far as it was seen.
    fn add_looks(&mut self) {
        for topology in &self.topologies {
            for history in topology.shards.iter().filter_map(|shard| shard.history.as_ref()) {
                self.chain.add_look(history, topology.seen_at.as_millisecond());
            }
        }
    }

    /// The backup that names a base of the chain, and the shard as that backup has it. For a base that is in no backup yet, what one of it
    /// alone would say.
    pub fn base(&self, number: usize) -> Option<(&Manifest, &ShardRecord)> {
        match *self.bases.get(number)? {
            Named::Backup { backup, shard } => {
                let manifest = self.backups.get(backup)?;
                Some((manifest, manifest.shards.get(shard)?))
            }
            Named::Told(number) => {
                let manifest = self.told.get(number)?;
                Some((manifest, manifest.shards.first()?))
            }
        }
    }

    /// Whether a backup names that base.
    pub fn is_listed(&self, number: usize) -> bool {
        matches!(self.bases.get(number), Some(Named::Backup { .. }))
    }

    /// The repository.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether there is a log at all.
    pub fn has_log(&self) -> bool {
        self.segments.values().any(|segments| !segments.is_empty()) || !self.files.is_empty()
    }

    /// The newest backup, where all log is that of append-only files: nothing goes on behind it, and each shard has a moment of its own there.
    pub(super) fn newest_of_files(&self) -> Option<&Manifest> {
        let of_files = |backup: &&Manifest| backup.shards.iter().all(|shard| shard.aof().is_some());
        self.backups.iter().rfind(of_files).filter(|_| self.files_alone)
    }

    /// Fails if there is no log.
    pub fn expect_log(&self) -> Result<()> {
        if self.has_log() {
            return Ok(());
        }
        let what =
            format!("{} holds no log of `{}`{}", self.repository.location(), self.cluster, self.why_not());
        Err(Error::new(ErrorKind::NotFound, what).hint(
            "`slotkeep archive` keeps one; without it only backups can be restored (--backup, `slotkeep list`)",
        ))
    }

    /// That some backups do not count where a log is asked for, if there are such.
    pub(super) fn why_not(&self) -> String {
        let mut unanchored = self.backups.iter().filter(|backup| !backup.is_anchored());
        let Some(last) = unanchored.next_back() else { return String::new() };
        let record = last.shards.iter().find(|shard| !shard.is_anchored());
        let how = record.map(how_read).unwrap_or_default();
        format!(" (backup {} was {how}: it stands at no offset, and no log can go on behind it)", last.id)
    }

    /// Which segments to read for those bytes, and which of their bytes.
    pub(crate) fn segments_for(&self, piece: &Piece) -> Vec<(SegmentEntry, Range<u64>)> {
        let entries = self.segments.get(&piece.history).map(Vec::as_slice).unwrap_or_default();
        let entry = |range: &Range<u64>| {
            let order = (range.start, std::cmp::Reverse(range.end));
            let at =
                entries.binary_search_by_key(&order, |entry| (entry.start, std::cmp::Reverse(entry.end)));
            entries.get(at.ok()?).cloned()
        };
        let chosen = self.chain.choose(piece);
        chosen.into_iter().filter_map(|(segment, part)| Some((entry(&segment)?, part))).collect()
    }

    /// The segments of a whole path in order, each with the bytes of it that lie on the path.
    pub(super) fn segments_on(&self, path: &Path) -> Vec<(SegmentEntry, Range<u64>)> {
        path.pieces(0, u64::MAX - 1).iter().flat_map(|piece| self.segments_for(piece)).collect()
    }

    /// The whole log, each byte once: line by line for those whose slots are wanted, first what main lines lead through.
    pub(super) fn logs(&self, wanted: impl Fn(&SlotSet) -> bool) -> Vec<OwnLog> {
        let mut known: BTreeMap<ReplId, u64> = BTreeMap::new();
        let mut logs = Vec::new();
        for tip in self.chain.tips() {
            let path = self.chain.path(tip);
            let slots = self.slots_of(tip).cloned();
            // Of which shard it is may stand in a record that can't be read.
            let is_told = slots.is_some() || !self.unread.contains_key(tip);
            let slots = slots.unwrap_or_default();
            if is_told && !wanted(&slots) {
                continue;
            }
            let mut segments = Vec::new();
            for mut piece in path.pieces(0, u64::MAX - 1) {
                let known = known.entry(piece.history.clone()).or_default();
                piece.range.start = piece.range.start.max(*known);
                *known = piece.range.end.max(*known);
                segments.extend(self.segments_for(&piece));
            }
            logs.push(OwnLog { path, slots, segments });
        }
        logs
    }

    /// A segment's record, read once.
    pub(super) async fn record(&self, entry: &SegmentEntry) -> Result<Arc<SegmentRecord>> {
        let remembered = || self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = remembered().records.get(entry.path()) {
            return Ok(Arc::clone(record));
        }
        let record = Arc::new(self.repository.segment_record(entry).await?);
        remembered().add(entry.path(), &record);
        Ok(record)
    }

    /// The slots of a history's shard when they were seen last.
    pub fn slots_of(&self, history: &ReplId) -> Option<&SlotSet> {
        let mut seen = self.topologies.iter().rev().flat_map(|topology| &topology.shards);
        let in_topology =
            seen.find(|shard| shard.history.as_ref() == Some(history)).map(|shard| &shard.slots);
        let mut shards = self.backups.iter().rev().flat_map(|backup| &backup.shards);
        in_topology
            .or_else(|| self.histories.get(history).map(|record| &record.slots))
            .or_else(|| shards.find(|shard| shard.history == *history).map(|shard| &shard.slots))
    }

    /// How the cluster looked at a moment, as far as it was seen.
    pub fn topology_at(&self, moment: Timestamp) -> Option<&TopologyRecord> {
        let count = self.topologies.partition_point(|topology| topology.seen_at <= moment);
        self.topologies.get(count.saturating_sub(1))
    }
}

/// The bases that agents tell each other of. What a lease says that can't be read is not told.
async fn told(repository: &Repository, cluster: &str) -> Result<Vec<ShardRecord>> {
    let mut told = Vec::new();
    for (name, number) in repository.leases(cluster).await? {
        if name.starts_with(PRESENCE_PREFIX) {
            continue;
        }
        let record = match repository.lease_record(cluster, &name, number).await {
            Ok(record) => record,
            Err(error) if error.problem.is_unusable() => {
                tracing::warn!(%error, "what an agent has said can't be read");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let base = record.and_then(|record| record.note.shard).and_then(|shard| shard.base);
        told.extend(base.map(|base| base.record));
    }
    Ok(told)
}
