//! What is needed and what is not. Pure.
//!
//! Invariants: an object is not needed only if it is known what it is, and why nothing needs it; objects that nothing names are left alone
//! as long as the backup that they may belong to may still run; a segment is given up for another only if that one is proved to be whole.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use slotkeep_format::{Holdings, KeptFor, RetentionPlan, RetentionPolicy, Unneeded, plan_retention};
use slotkeep_model::ReplId;
use slotkeep_repo::StoredObject;

use super::stock::{BaseStock, HistoryStock, Stock};
use crate::ObjectKind;

/// For how long after an agent's last word what agents have told each other of is kept, though no backup names it.
const TOLD_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How to judge.
pub(super) struct Rules<'a> {
    pub(super) policy: &'a RetentionPolicy,
    /// Backups that stay for another reason: their manifests can't be deleted.
    pub(super) locked: &'a BTreeSet<String>,
    /// How old an object that nothing names must be.
    pub(super) grace: SignedDuration,
    pub(super) now: Timestamp,
}

/// An object that is not needed.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) object: StoredObject,
    pub(super) kind: ObjectKind,
    pub(super) why: Unneeded,
}

/// What is needed and what is not.
#[derive(Default)]
pub(super) struct Judgement {
    pub(super) keep: BTreeMap<String, BTreeSet<KeptFor>>,
    /// By path.
    pub(super) unneeded: BTreeMap<String, Candidate>,
    /// What stays: objects and bytes.
    pub(super) stays: BTreeMap<ObjectKind, (u64, u64)>,
    /// Of these, what nothing names and is too young to be given up.
    pub(super) young: (u64, u64),
}

/// Judges everything that there is.
pub(super) fn judge(stock: &Stock, rules: &Rules<'_>) -> Judgement {
    let mut policy = rules.policy.clone();
    policy.pinned.extend(stock.pinned.iter().chain(rules.locked).cloned());
    let all_readable = stock.unreadable.is_empty();
    let named: BTreeSet<&str> = stock
        .manifests
        .iter()
        .flat_map(slotkeep_format::Manifest::objects)
        .map(|object| object.path.as_str())
        .collect();
    let young = young_bases(stock, &named, rules);
    let held = Holdings {
        manifests: &stock.manifests,
        all_readable,
        parents: &stock.parents,
        unlisted: &young.bases,
    };
    let plan = plan_retention(held, &policy, rules.now);
    let mut judging =
        Judging { stock, rules, plan: &plan, young: &young, all_readable, out: Judgement::default() };
    judging.manifests();
    for (id, history) in &stock.histories {
        judging.bases(history);
        judging.segments(history, id);
    }
    judging.history_files();
    judging.topologies();
    let mut out = judging.out;
    out.keep = plan.keep;
    out
}

/// Bases that nothing names yet, of backups that may still run.
struct Young {
    folders: BTreeSet<String>,
    bases: Vec<(ReplId, u64)>,
}

fn young_bases(stock: &Stock, named: &BTreeSet<&str>, rules: &Rules<'_>) -> Young {
    let unlisted = || {
        stock
            .histories
            .iter()
            .flat_map(|(id, history)| history.bases.iter().map(move |(folder, base)| (id, folder, base)))
    };
    let is_unlisted =
        |base: &BaseStock| !base.objects.iter().any(|object| named.contains(object.path.as_str()));
    // An archive lists its base once all shards are followed; until then it writes the log behind it.
    let last_listed = |id: &ReplId| {
        let shards = stock.manifests.iter().flat_map(|manifest| &manifest.shards);
        shards.filter(|shard| shard.history == *id).map(|shard| shard.offset).max()
    };
    // Any agent may go on from what another has told. When all have been silent for so long, none comes back that could not begin anew.
    let silent_ms = stock.last_word_ms.map(|word_ms| rules.now.as_millisecond().saturating_sub(word_ms));
    let tells = silent_ms.is_some_and(|silent_ms| {
        i128::from(silent_ms) < SignedDuration::max(TOLD_FOR, rules.grace).as_millis()
    });
    let is_told =
        |base: &BaseStock| tells && base.objects.iter().any(|object| stock.told.contains(&object.path));
    let is_followed = |id: &ReplId, base: &BaseStock| {
        let segments = stock.histories.get(id).map(|history| history.segments.as_slice()).unwrap_or_default();
        let mut behind = segments.iter().filter(|(range, _)| range.end > base.offset);
        last_listed(id).is_none_or(|listed| listed < base.offset)
            && (is_told(base) || behind.any(|(_, object)| rules.is_young(object)))
    };
    // A backup takes its bases one after the other: the youngest one counts for all.
    let running: BTreeSet<&str> = unlisted()
        .filter(|(id, _, base)| {
            let fresh = || base.objects.iter().any(|object| rules.is_young(object));
            is_unlisted(base) && (fresh() || is_followed(id, base))
        })
        .map(|(_, _, base)| base.backup.as_str())
        .collect();
    let mut young = Young { folders: BTreeSet::new(), bases: Vec::new() };
    for (id, folder, base) in unlisted() {
        if is_unlisted(base) && running.contains(base.backup.as_str()) {
            young.folders.insert(folder.clone());
            young.bases.push((id.clone(), base.offset));
        }
    }
    young
}

impl Rules<'_> {
    fn is_young(&self, object: &StoredObject) -> bool {
        let age_ms = self.now.as_millisecond().saturating_sub(object.modified_ms);
        i128::from(age_ms) < self.grace.as_millis()
    }
}

struct Judging<'a> {
    stock: &'a Stock,
    rules: &'a Rules<'a>,
    plan: &'a RetentionPlan,
    young: &'a Young,
    all_readable: bool,
    out: Judgement,
}

impl Judging<'_> {
    fn give_up(&mut self, object: &StoredObject, kind: ObjectKind, why: Unneeded) {
        let candidate = Candidate { object: object.clone(), kind, why };
        self.out.unneeded.insert(object.path.clone(), candidate);
    }

    fn stay(&mut self, object: &StoredObject, kind: ObjectKind) {
        let (objects, bytes) = self.out.stays.entry(kind).or_default();
        *objects = objects.saturating_add(1);
        *bytes = bytes.saturating_add(object.bytes);
    }

    fn stay_young(&mut self, object: &StoredObject, kind: ObjectKind) {
        self.stay(object, kind);
        let (objects, bytes) = &mut self.out.young;
        *objects = objects.saturating_add(1);
        *bytes = bytes.saturating_add(object.bytes);
    }

    fn manifests(&mut self) {
        let gone: BTreeSet<&String> = self.plan.remove.iter().collect();
        for (id, object) in &self.stock.manifest_objects {
            if gone.contains(id) {
                self.give_up(object, ObjectKind::Backup, Unneeded::NotKept);
            } else {
                self.stay(object, ObjectKind::Backup);
            }
        }
    }

    fn bases(&mut self, history: &HistoryStock) {
        for (folder, base) in &history.bases {
            for object in &base.objects {
                if self.plan.objects.contains(&object.path) {
                    self.give_up(object, ObjectKind::Base, Unneeded::OfRemoved);
                } else if self.plan.named.contains(&object.path) || !self.all_readable {
                    self.stay(object, ObjectKind::Base);
                } else if self.young.folders.contains(folder) || self.rules.is_young(object) {
                    self.stay_young(object, ObjectKind::Base);
                } else {
                    self.give_up(object, ObjectKind::Base, Unneeded::Unlisted);
                }
            }
        }
    }

    fn segments(&mut self, history: &HistoryStock, id: &ReplId) {
        // The end of the segment that goes farthest, of those that are needed, begin before the next one and are proved to be whole.
        let mut covered_to = 0;
        for (range, object) in &history.segments {
            let need = self.plan.log.as_ref().filter(|_| self.stock.lineage_known);
            let Some(need) = need else {
                self.stay(object, ObjectKind::Log);
                continue;
            };
            if !need.needs(id, range) {
                // It may be the beginning of a line whose base is still being stored.
                if self.rules.is_young(object) {
                    self.stay_young(object, ObjectKind::Log);
                } else {
                    self.give_up(object, ObjectKind::Log, Unneeded::Outside);
                }
            } else if range.end <= covered_to {
                self.give_up(object, ObjectKind::Log, Unneeded::Covered);
            } else {
                if self.stock.overlaps.is_proved(&object.path) {
                    covered_to = range.end;
                }
                self.stay(object, ObjectKind::Log);
            }
        }
    }

    /// The file of a history goes when nothing is left of it, nor of those that descend from it, and no backup that stays begins or ends in one of
    /// them: a cut may lie where its history begins, before the first byte.
    fn history_files(&mut self) {
        let goes: BTreeSet<&String> = self.plan.remove.iter().collect();
        let standing = self.stock.manifests.iter().filter(|manifest| !goes.contains(&manifest.id));
        let shards = standing.flat_map(|manifest| &manifest.shards);
        let named: BTreeSet<ReplId> =
            shards.flat_map(|shard| [shard.history.clone(), shard.cut().history]).collect();
        let mut needed: BTreeSet<&ReplId> = BTreeSet::new();
        for (id, history) in &self.stock.histories {
            let stays = history.contents().any(|object| !self.out.unneeded.contains_key(&object.path));
            let young = history.file.as_ref().is_some_and(|file| self.rules.is_young(file));
            let nothing = !stays && !young && !named.contains(id);
            if nothing && self.all_readable && self.stock.lineage_known {
                continue;
            }
            let mut at = id;
            while needed.insert(at) {
                let Some(parent) = self.stock.parents.get(at) else { break };
                at = &parent.history;
            }
        }
        for (id, history) in &self.stock.histories {
            let Some(file) = &history.file else { continue };
            if needed.contains(id) {
                self.stay(file, ObjectKind::History);
            } else {
                self.give_up(file, ObjectKind::History, Unneeded::Empty);
            }
        }
    }

    /// The one that was valid at the first moment that is needed stays, and all since.
    fn topologies(&mut self) {
        let from = self.plan.topologies_from.filter(|_| self.all_readable);
        let before =
            from.map_or(0, |from| self.stock.topologies.partition_point(|seen| seen.seen_at <= from));
        for (number, topology) in self.stock.topologies.iter().enumerate() {
            if number.saturating_add(1) < before && !self.rules.is_young(&topology.object) {
                self.give_up(&topology.object, ObjectKind::Topology, Unneeded::Old);
            } else {
                self.stay(&topology.object, ObjectKind::Topology);
            }
        }
    }
}
