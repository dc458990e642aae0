//! Which backups to keep, and what may be deleted when the others go. A plan only: nothing here deletes.
//!
//! Invariants: an object that a kept manifest names is kept; of the log, everything is kept that lies behind the oldest kept base of
//! its history, and everything of the histories that descend from it, so every cut of a kept backup and every moment of the window stays within reach; if a manifest can't be read, it is not known what it
//! names, and nothing but manifests is given up. The newest complete backup is never removed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use slotkeep_model::ReplId;

use crate::manifest::{Manifest, ObjectRecord};

/// What is to be kept. A backup stays if any rule asks for it; the calendar is that of UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// The newest so many.
    pub last: usize,
    /// The newest of each of the last so many hours that have one.
    pub hourly: usize,
    /// The same for days.
    pub daily: usize,
    /// The same for weeks, which begin on Monday.
    pub weekly: usize,
    /// The same for months.
    pub monthly: usize,
    /// Every backup so young, and the one before: any moment since then can be restored if the log is there.
    pub window: Option<SignedDuration>,
    /// These, by their ids.
    pub pinned: BTreeSet<String>,
}

/// Why a backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptFor {
    /// It is pinned.
    Pinned,
    /// It is one of the last.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is in the window, or where the window begins.
    Window,
    /// It is the newest complete one.
    Newest,
}

/// What goes and what stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The ids of the backups that stay, and why; in order.
    pub keep: BTreeMap<String, BTreeSet<KeptFor>>,
    /// The ids of the backups that go, oldest first.
    pub remove: Vec<String>,
    /// The objects that only backups that go name.
    pub objects: BTreeSet<String>,
    /// For each history that a backup names: the first offset of the log that is needed; `None` if nothing of it is. Histories that no backup
    /// names are not here, and are left alone.
    pub log_from: BTreeMap<ReplId, Option<u64>>,
}

/// Plans for the backups of one cluster. `all_readable`: whether these are all that the repository holds of it. `parents`: which history each history
/// descends from.
pub fn plan_retention(
    manifests: &[Manifest],
    all_readable: bool,
    parents: &BTreeMap<ReplId, ReplId>,
    policy: &RetentionPolicy,
    now: Timestamp,
) -> RetentionPlan {
    let mut newest_first: Vec<&Manifest> = manifests.iter().collect();
    newest_first.sort_by(|a, b| b.id.cmp(&a.id));
    let mut plan = RetentionPlan::default();
    choose(&newest_first, policy, now, &mut plan);
    let is_kept = |manifest: &&Manifest| plan.keep.contains_key(&manifest.id);
    let (kept, gone): (Vec<&Manifest>, Vec<&Manifest>) =
        newest_first.iter().partition(|manifest| is_kept(manifest));
    plan.remove = gone.iter().rev().map(|manifest| manifest.id.clone()).collect();
    if all_readable {
        let named = |manifests: &[&Manifest]| -> BTreeSet<String> {
            manifests.iter().flat_map(|manifest| manifest.objects()).map(path).collect()
        };
        plan.objects = &named(&gone) - &named(&kept);
        log_needed(&kept, &gone, parents, &mut plan);
    }
    plan
}

fn path(object: &ObjectRecord) -> String {
    object.path.clone()
}

fn choose(newest_first: &[&Manifest], policy: &RetentionPolicy, now: Timestamp, plan: &mut RetentionPlan) {
    let mut keep = |manifest: &Manifest, why| {
        plan.keep.entry(manifest.id.clone()).or_default().insert(why);
    };
    for manifest in newest_first.iter().filter(|manifest| policy.pinned.contains(&manifest.id)) {
        keep(manifest, KeptFor::Pinned);
    }
    // What lacks slots is no substitute for a whole backup.
    let whole: Vec<&&Manifest> = newest_first.iter().filter(|manifest| !manifest.partial).collect();
    if let Some(newest) = whole.first() {
        keep(newest, KeptFor::Newest);
    }
    for manifest in whole.iter().take(policy.last) {
        keep(manifest, KeptFor::Last);
    }
    let calendar = [
        (policy.hourly, "%Y-%m-%d %H", KeptFor::Hourly),
        (policy.daily, "%Y-%m-%d", KeptFor::Daily),
        (policy.weekly, "%G-%V", KeptFor::Weekly),
        (policy.monthly, "%Y-%m", KeptFor::Monthly),
    ];
    for (most, format, why) in calendar {
        let mut seen = BTreeSet::new();
        for manifest in &whole {
            let period = manifest.finished_at.strftime(format).to_string();
            if seen.len() < most && seen.insert(period) {
                keep(manifest, why);
            }
        }
    }
    if let Some(begins) = policy.window.and_then(|window| now.checked_sub(window).ok()) {
        for manifest in &whole {
            keep(manifest, KeptFor::Window);
            // A moment at the beginning of the window needs a base from before it.
            if manifest.finished_at < begins {
                break;
            }
        }
    }
}

/// From which offset on the log of each named history is needed: of a kept base's own history what lies behind the base, and all of what
/// descends from it.
fn log_needed(
    kept: &[&Manifest],
    gone: &[&Manifest],
    parents: &BTreeMap<ReplId, ReplId>,
    plan: &mut RetentionPlan,
) {
    let mut bases: BTreeMap<&ReplId, u64> = BTreeMap::new();
    for shard in kept.iter().flat_map(|manifest| &manifest.shards) {
        let first = shard.offset.saturating_add(1);
        bases.entry(&shard.history).and_modify(|from| *from = first.min(*from)).or_insert(first);
    }
    let descends = |history: &ReplId| {
        // A cycle can't be, but files can be damaged.
        let ancestors = std::iter::successors(parents.get(history), |ancestor| parents.get(*ancestor));
        ancestors.take(parents.len()).any(|ancestor| bases.contains_key(ancestor))
    };
    for shard in kept.iter().chain(gone).flat_map(|manifest| &manifest.shards) {
        for history in [shard.history.clone(), shard.cut().history] {
            let from = if descends(&history) { Some(0) } else { bases.get(&history).copied() };
            plan.log_from.insert(history, from);
        }
    }
}

#[cfg(test)]
mod tests;
