//! What is to be copied, from what both sides hold. Pure: reads nothing.
//!
//! Invariants: what lies in the target under the same path with the same length is not copied again, since objects are written whole or not at
//! all and never changed; with another length it is never overwritten, and what needs it is refused; what the target has pruned stays away, but
//! for log that it gave up because no backup that needs it was listed yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use slotkeep_format::Manifest;
use slotkeep_format::manifest::ObjectRecord;
use slotkeep_model::ReplId;
use slotkeep_repo::layout::{history_file, manifest_file};
use slotkeep_repo::{Part, Pruned, SegmentEntry, StoredObject};

use super::report::{Refused, State};
use crate::{ErrorKind, ObjectKind};

/// A backup of the source, and the histories from its bases to its cuts, each with its bytes, as [`slotkeep_repo::Way`] has them.
pub(super) struct Wanted {
    pub(super) manifest: Manifest,
    pub(super) ways: Vec<(ReplId, Range<u64>)>,
    /// Whether each cut follows its base, as far as the source knows.
    pub(super) leads: bool,
}

/// What is known of one cluster on both sides.
pub(super) struct Sight<'a> {
    pub(super) cluster: &'a str,
    pub(super) here: &'a [StoredObject],
    pub(super) there: &'a [StoredObject],
    /// The backups to copy, oldest first.
    pub(super) wanted: Vec<Wanted>,
    /// Whether only what these need is wanted, and not all log.
    pub(super) only: bool,
    /// What the target has pruned.
    pub(super) pruned: &'a Pruned,
}

/// What an object is, as far as copying goes.
pub(super) enum Item {
    Object(ObjectRecord),
    Segment(SegmentEntry),
    File(Part),
}

/// An object to copy.
pub(super) struct Work {
    pub(super) kind: ObjectKind,
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) item: Item,
}

/// A backup, what must be in the target before it is listed there, and its pins.
pub(super) struct BackupPlan {
    pub(super) id: String,
    pub(super) state: State,
    /// Bases, and where histories come from.
    pub(super) objects: BTreeSet<String>,
    pub(super) ways: Vec<(ReplId, Range<u64>)>,
    pub(super) manifest_bytes: u64,
    pub(super) pins: Vec<Work>,
}

impl BackupPlan {
    /// Whether it needs the object at that path.
    pub(super) fn needs(&self, path: &str) -> bool {
        let crosses = |history: &ReplId, range: &Range<u64>| {
            self.ways.iter().any(|(of, way)| of == history && meet(way, range))
        };
        self.objects.contains(path)
            || slotkeep_repo::layout::segment_of(path)
                .is_some_and(|(history, range)| crosses(&history, &range))
    }
}

/// Whether they have a byte in common.
fn meet(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start.max(other.start) < one.end.min(other.end)
}

/// How many objects, and their length as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects = self.objects.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What is to be copied of one cluster, in this order.
pub(super) struct ClusterPlan {
    pub(super) cluster: String,
    /// Where histories come from, how the cluster looked, fences.
    pub(super) files: Vec<Work>,
    /// Bases and log.
    pub(super) data: Vec<Work>,
    pub(super) backups: Vec<BackupPlan>,
    /// Records of verifications.
    pub(super) records: Vec<Work>,
    pub(super) there: BTreeMap<ObjectKind, Sum>,
    pub(super) refused: Vec<Refused>,
    pub(super) remarks: Vec<String>,
}

/// The segments of a history, to tell what they cover.
#[derive(Default)]
struct Covered {
    /// Starts in order, each with the farthest end of those up to it.
    until: Vec<(u64, u64)>,
}

impl Covered {
    fn of(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_by_key(|range| range.start);
        let mut farthest = 0;
        let until = ranges.into_iter().map(|range| {
            farthest = range.end.max(farthest);
            (range.start, farthest)
        });
        Self { until: until.collect() }
    }

    fn holds(&self, range: &Range<u64>) -> bool {
        let behind = self.until.partition_point(|(start, _)| *start <= range.start);
        let before = behind.checked_sub(1).and_then(|last| self.until.get(last));
        before.is_some_and(|(_, end)| *end >= range.end)
    }

    /// Whether several together hold all of it.
    fn leads_through(&self, way: &Range<u64>) -> bool {
        let reached = self
            .until
            .iter()
            .try_fold(way.start, |at, (start, end)| if *start <= at { Ok(at.max(*end)) } else { Err(at) });
        reached.unwrap_or_else(|before_a_gap| before_a_gap) >= way.end
    }
}

struct Planner<'a> {
    there: HashMap<&'a str, u64>,
    plan: ClusterPlan,
}

impl Planner<'_> {
    /// Whether the object is to be copied; notes it if the target has it, or something else in its place.
    fn is_missing(&mut self, kind: ObjectKind, path: &str, bytes: u64) -> bool {
        match self.there.get(path) {
            None => true,
            Some(there) if *there == bytes => {
                self.plan.there.entry(kind).or_default().add(bytes);
                false
            }
            Some(_) if kind == ObjectKind::History => {
                self.plan.there.entry(kind).or_default().add(bytes);
                self.plan.remarks.push(format!(
                    "the target's {path} was written there and is another: it stays, as what is known first of a history does"
                ));
                false
            }
            Some(there) => {
                let why = format!(
                    "the target holds {there} bytes under this name, the source {bytes}: nothing is ever overwritten"
                );
                self.refuse(path, why, ErrorKind::Conflict);
                false
            }
        }
    }

    fn refuse(&mut self, path: &str, why: String, kind: ErrorKind) {
        self.plan.refused.push(Refused { path: path.to_owned(), why, kind });
    }

    /// An object of a base, and whether the source has it.
    fn base(&mut self, record: &ObjectRecord, here: bool) {
        if !here && !self.there.contains_key(record.path.as_str()) {
            self.refuse(&record.path, "the source does not have it".to_owned(), ErrorKind::Corrupt);
        } else if self.is_missing(ObjectKind::Base, &record.path, record.stored_bytes) {
            self.plan.data.push(Work {
                kind: ObjectKind::Base,
                path: record.path.clone(),
                bytes: record.stored_bytes,
                item: Item::Object(record.clone()),
            });
        }
    }

    fn segment(&mut self, object: &StoredObject, history: &ReplId, held: bool) {
        if held && !self.there.contains_key(object.path.as_str()) {
            // The target has compacted its log.
            self.plan.there.entry(ObjectKind::Log).or_default().add(object.bytes);
        } else if self.is_missing(ObjectKind::Log, &object.path, object.bytes)
            && let Some(entry) = SegmentEntry::of(history, object)
        {
            self.plan.data.push(Work {
                kind: ObjectKind::Log,
                path: object.path.clone(),
                bytes: object.bytes,
                item: Item::Segment(entry),
            });
        }
    }

    /// A pin of a backup that the target has or gets.
    fn pin(&mut self, object: &StoredObject, backup: String) {
        let of = |plan: &BackupPlan| plan.id == backup && plan.state != State::GivenUp;
        let Some(place) = self.plan.backups.iter().position(of) else { return };
        let work = self.file(ObjectKind::Pin, object, Part::Pin(backup));
        if let Some(backup) = self.plan.backups.get_mut(place) {
            backup.pins.extend(work);
        }
    }

    fn file(&mut self, kind: ObjectKind, object: &StoredObject, part: Part) -> Option<Work> {
        let missing = self.is_missing(kind, &object.path, object.bytes);
        missing.then(|| Work { kind, path: object.path.clone(), bytes: object.bytes, item: Item::File(part) })
    }
}

/// Makes the plan for one cluster.
pub(super) fn plan(sight: Sight<'_>) -> ClusterPlan {
    let cluster = sight.cluster;
    let here: HashMap<&str, u64> =
        sight.here.iter().map(|object| (object.path.as_str(), object.bytes)).collect();
    let mut planner = Planner {
        there: sight.there.iter().map(|object| (object.path.as_str(), object.bytes)).collect(),
        plan: ClusterPlan {
            cluster: cluster.to_owned(),
            files: vec![],
            data: vec![],
            backups: vec![],
            records: vec![],
            there: BTreeMap::new(),
            refused: vec![],
            remarks: vec![],
        },
    };
    let only = sight.only.then(|| ways(&sight.wanted));
    let mut log = Log::new(cluster, sight.there, sight.pruned, only);
    let here_and_there = coverage(cluster, sight.here.iter().chain(sight.there));
    let mut bases = BTreeSet::new();
    for wanted in sight.wanted {
        let id = wanted.manifest.id.clone();
        if sight.pruned.gave_up_backup(cluster, &id) {
            planner.plan.backups.push(BackupPlan::new(wanted, State::GivenUp, 0));
            continue;
        }
        for record in wanted.manifest.objects().filter(|record| bases.insert(record.path.clone())) {
            planner.base(record, here.contains_key(record.path.as_str()));
        }
        let lacking = wanted.ways.iter().find(|(history, way)| {
            !way.is_empty() && !here_and_there.get(history).is_some_and(|held| held.leads_through(way))
        });
        let path = manifest_file(cluster, &id);
        let broken = match lacking {
            Some((history, way)) => Some(format!(
                "its log is not whole in the source: some of the bytes {} to {} of history {history} are missing",
                way.start,
                way.end.saturating_sub(1)
            )),
            None if !wanted.leads => Some(
                "a cut of it does not follow its base, as far as the source knows where histories come from: it can't be restored (`slotkeep verify` \
                 says more)"
                    .to_owned(),
            ),
            None => None,
        };
        if let Some(why) = broken
            && !planner.there.contains_key(path.as_str())
        {
            planner.refuse(&path, why, ErrorKind::Corrupt);
            planner.plan.backups.push(BackupPlan::new(wanted, State::Refused, 0));
            continue;
        }
        let bytes = here.get(path.as_str()).copied().unwrap_or_default();
        let there = planner.there.get(path.as_str()) == Some(&bytes);
        let state = if planner.is_missing(ObjectKind::Backup, &path, bytes) {
            State::ToCopy
        } else if there {
            State::There
        } else {
            State::Refused
        };
        planner.plan.backups.push(BackupPlan::new(wanted, state, bytes));
    }
    log.come_back(cluster, &planner.plan.backups, sight.there);
    others(&mut planner, sight.here, &mut log);
    let plan = &mut planner.plan;
    for backup in &mut plan.backups {
        let refused = plan.refused.iter().any(|refused| backup.needs(&refused.path));
        if refused && backup.state == State::ToCopy {
            backup.state = State::Refused;
        }
    }
    planner.plan
}

/// The bytes of each history that these backups need.
fn ways(wanted: &[Wanted]) -> BTreeMap<ReplId, Vec<Range<u64>>> {
    let mut ways: BTreeMap<ReplId, Vec<Range<u64>>> = BTreeMap::new();
    for one in wanted {
        for shard in &one.manifest.shards {
            ways.entry(shard.history.clone()).or_default();
        }
        for (history, way) in &one.ways {
            ways.entry(history.clone()).or_default().push(way.clone());
        }
    }
    ways
}

/// What these segments hold, by history.
fn coverage<'a>(cluster: &str, objects: impl Iterator<Item = &'a StoredObject>) -> BTreeMap<ReplId, Covered> {
    let mut held: BTreeMap<ReplId, Vec<Range<u64>>> = BTreeMap::new();
    for object in objects {
        if let Some(Part::Segment(history, range)) = Part::of(cluster, &object.path) {
            held.entry(history).or_default().push(range);
        }
    }
    held.into_iter().map(|(history, ranges)| (history, Covered::of(ranges))).collect()
}

/// Which log is copied.
struct Log<'a> {
    /// What only some backups need; all if not given.
    only: Option<BTreeMap<ReplId, Vec<Range<u64>>>>,
    /// What the target holds.
    held: BTreeMap<ReplId, Covered>,
    pruned: &'a Pruned,
    /// What the target has pruned, by history, as far as it was asked for.
    gone: BTreeMap<ReplId, Vec<Range<u64>>>,
    /// What comes back though the target has pruned it.
    back: Back,
}

/// Log that the target gave up without knowing of the backups that need it: those of a copy that was broken off before it listed them.
enum Back {
    /// Nothing was given up for another reason.
    All,
    /// What backups need that are listed now.
    Ways(BTreeMap<ReplId, Vec<Range<u64>>>),
}

impl<'a> Log<'a> {
    fn new(
        cluster: &str,
        there: &[StoredObject],
        pruned: &'a Pruned,
        only: Option<BTreeMap<ReplId, Vec<Range<u64>>>>,
    ) -> Self {
        let held = coverage(cluster, there.iter());
        Self { only, held, pruned, gone: BTreeMap::new(), back: Back::Ways(BTreeMap::new()) }
    }

    /// Learns which backups are to be listed in the target, and what it holds.
    fn come_back(&mut self, cluster: &str, backups: &[BackupPlan], there: &[StoredObject]) {
        let mut coming = backups.iter().filter(|backup| backup.state == State::ToCopy).peekable();
        // A prune keeps the newest backup always: where none is, all log was given up for want of one.
        let is_manifest = |path: &str| matches!(Part::of(cluster, path), Some(Part::Manifest(_)));
        let lists_none = !there.iter().any(|object| is_manifest(&object.path));
        if lists_none && coming.peek().is_some() {
            self.back = Back::All;
            return;
        }
        let mut ways: BTreeMap<ReplId, Vec<Range<u64>>> = BTreeMap::new();
        for (history, way) in coming.flat_map(|backup| &backup.ways) {
            ways.entry(history.clone()).or_default().push(way.clone());
        }
        self.back = Back::Ways(ways);
    }

    fn wants_history(&self, history: &ReplId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains_key(history))
    }

    fn wants(&mut self, cluster: &str, history: &ReplId, range: &Range<u64>) -> bool {
        let crosses = |ways: &BTreeMap<ReplId, Vec<Range<u64>>>| {
            let ways = ways.get(history).map(Vec::as_slice).unwrap_or_default();
            ways.iter().any(|way| meet(way, range))
        };
        if !self.only.as_ref().is_none_or(crosses) {
            return false;
        }
        let comes_back = match &self.back {
            Back::All => true,
            Back::Ways(ways) => crosses(ways),
        };
        let pruned = self.pruned;
        let gone = self.gone.entry(history.clone()).or_insert_with(|| pruned.log_of(cluster, history));
        comes_back || !gone.iter().any(|gone| gone.start <= range.start && range.end <= gone.end)
    }

    fn holds(&self, history: &ReplId, range: &Range<u64>) -> bool {
        self.held.get(history).is_some_and(|held| held.holds(range))
    }
}

/// Everything but bases and manifests.
fn others(planner: &mut Planner<'_>, here: &[StoredObject], log: &mut Log<'_>) {
    let cluster = planner.plan.cluster.clone();
    for object in here {
        match Part::of(&cluster, &object.path) {
            Some(Part::History(history)) if log.wants_history(&history) => {
                let work = planner.file(ObjectKind::History, object, Part::History(history));
                planner.plan.files.extend(work);
            }
            Some(Part::Segment(history, range)) if log.wants(&cluster, &history, &range) => {
                let held = log.holds(&history, &range);
                planner.segment(object, &history, held);
            }
            Some(Part::Topology(id)) if !log.pruned.gave_up_topology(&cluster, &id) => {
                let work = planner.file(ObjectKind::Topology, object, Part::Topology(id));
                planner.plan.files.extend(work);
            }
            Some(part @ Part::Fence(_)) => {
                let work = planner.file(ObjectKind::Fence, object, part);
                planner.plan.files.extend(work);
            }
            Some(part @ Part::Verification(_)) => {
                let work = planner.file(ObjectKind::Verification, object, part);
                planner.plan.records.extend(work);
            }
            Some(Part::Pin(backup)) => planner.pin(object, backup),
            _ => {}
        }
    }
}

impl BackupPlan {
    fn new(wanted: Wanted, state: State, manifest_bytes: u64) -> Self {
        let Wanted { manifest, ways, leads: _ } = wanted;
        let of_base = |history: &ReplId| manifest.shards.iter().any(|shard| shard.history == *history);
        let passed = ways.iter().filter(|(history, _)| !of_base(history));
        let histories = passed.map(|(history, _)| history_file(&manifest.cluster, history));
        let objects = manifest.objects().map(|object| object.path.clone()).chain(histories).collect();
        Self { id: manifest.id, state, objects, ways, manifest_bytes, pins: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str, bytes: u64) -> StoredObject {
        StoredObject { path: path.to_owned(), bytes, modified_ms: 0 }
    }

    fn segment(range: Range<u64>) -> String {
        format!("main/history/{}/log/{:020}-{:020}.zst", "a".repeat(40), range.start, range.end)
    }

    fn planned(here: &[StoredObject], there: &[StoredObject], pruned: &Pruned) -> ClusterPlan {
        plan(Sight { cluster: "main", here, there, wanted: vec![], only: false, pruned })
    }

    #[test]
    fn a_log_leads_through_where_segments_touch() {
        let covered = Covered::of(vec![20..30, 1..5, 5..12, 8..10]);
        assert!(covered.leads_through(&(1..12)) && covered.leads_through(&(3..11)));
        assert!(covered.leads_through(&(20..30)) && covered.leads_through(&(7..7)));
        assert!(!covered.leads_through(&(1..13)) && !covered.leads_through(&(11..25)));
        assert!(!covered.leads_through(&(0..5)) && !covered.leads_through(&(29..31)));
        assert!(!covered.holds(&(1..12)) && covered.holds(&(8..10)));
    }

    fn paths(work: &[Work]) -> Vec<&str> {
        work.iter().map(|work| work.path.as_str()).collect()
    }

    #[test]
    fn what_is_there_whole_or_inside_of_a_larger_segment_is_not_copied_again() {
        let here = [
            object(&segment(1..5), 10),
            object(&segment(5..9), 10),
            object(&segment(9..20), 10),
            object(&segment(20..30), 10),
        ];
        let there = [object(&segment(1..5), 10), object(&segment(4..12), 30), object(&segment(15..30), 30)];
        let plan = planned(&here, &there, &Pruned::default());
        assert_eq!(paths(&plan.data), [segment(9..20)]);
        assert_eq!(plan.there[&ObjectKind::Log], Sum { objects: 3, bytes: 30 });
        assert!(plan.refused.is_empty());
    }

    #[test]
    fn another_object_of_that_name_is_refused_and_another_history_file_stays() {
        let history = format!("main/history/{}/history.json", "a".repeat(40));
        let here = [object(&history, 10), object(&segment(1..5), 10), object("main/topology/t.json", 7)];
        let there = [object(&history, 11), object(&segment(1..5), 9)];
        let plan = planned(&here, &there, &Pruned::default());
        assert!(plan.data.is_empty());
        assert_eq!(paths(&plan.files), ["main/topology/t.json"]);
        assert_eq!(plan.refused.len(), 1);
        assert_eq!(
            (plan.refused[0].path.as_str(), plan.refused[0].kind),
            (&*segment(1..5), ErrorKind::Conflict)
        );
        assert_eq!(plan.remarks.len(), 1);
    }

    #[test]
    fn what_the_target_has_pruned_stays_away() {
        let mut record = slotkeep_format::PrunedRecord::new(
            "id".to_owned(),
            "main".to_owned(),
            jiff::Timestamp::UNIX_EPOCH,
        );
        let history: ReplId = "a".repeat(40).parse().unwrap();
        record.add_log(&history, std::slice::from_ref(&(1..9)));
        record.topologies.insert("old".to_owned());
        let pruned = Pruned { records: vec![record] };
        let here = [
            object(&segment(1..5), 10),
            object(&segment(5..12), 10),
            object("main/topology/old.json", 7),
            object("main/topology/new.json", 7),
        ];
        let plan = planned(&here, &[], &pruned);
        assert_eq!(paths(&plan.data), [segment(5..12)]);
        assert_eq!(paths(&plan.files), ["main/topology/new.json"]);
    }
}
