//! Which backups to keep, and what the ones that stay need. A plan only: nothing here deletes.
//!
//! Invariants: an object that a kept manifest names is kept; of the log, everything is kept that leads from a kept base to the cut of a kept
//! backup, and everything behind the oldest base of the window (of all kept backups, if no window was promised), in its history and those that
//! descend from it; if a manifest can't be read, it is not known what it names, and nothing but manifests is given up. The newest
//! backup and the newest complete one are never removed.

mod log;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use slotkeep_model::ReplId;

use crate::lineage::Parent;
use crate::manifest::{BackupKind, CLOCKS_APART, Manifest, ObjectRecord, sort_newest_first};

pub use log::LogNeed;

/// What is to be kept. A backup stays if any rule asks for it; the calendar is that of UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// The newest so many.
    pub last: usize,
    /// Every backup so young.
    pub within: Option<SignedDuration>,
    /// The newest of each of the last so many hours that have one.
    pub hourly: usize,
    /// The same for days.
    pub daily: usize,
    /// The same for weeks, which begin on Monday.
    pub weekly: usize,
    /// The same for months.
    pub monthly: usize,
    /// Every backup so young, the one before, and all log since: any moment since then can be restored. Log that is older stays only as
    /// far as kept backups need it. Without a window all log behind the oldest kept base stays.
    pub window: Option<SignedDuration>,
    /// These, by their ids.
    pub pinned: BTreeSet<String>,
}

impl RetentionPolicy {
    /// Whether it asks for anything but pinned backups.
    pub const fn has_rules(&self) -> bool {
        let counted =
            self.last > 0 || self.hourly > 0 || self.daily > 0 || self.weekly > 0 || self.monthly > 0;
        counted || self.within.is_some() || self.window.is_some()
    }
}

/// Why a backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptFor {
    /// It is pinned.
    Pinned,
    /// It is one of the last.
    Last,
    /// It is young enough.
    Within,
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
    /// It is the newest one, or the newest complete one.
    Newest,
}

/// What a repository holds of a cluster, as far as retention is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'a> {
    /// The backups.
    pub manifests: &'a [Manifest],
    /// Whether these are all that the repository holds of the cluster.
    pub all_readable: bool,
    /// Which history each history descends from.
    pub parents: &'a BTreeMap<ReplId, Parent>,
    /// Bases that no manifest names and one may name soon: their histories, and the last byte that each holds.
    pub unlisted: &'a [(ReplId, u64)],
}

/// What goes and what stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The ids of the backups that stay, and why; in order.
    pub keep: BTreeMap<String, BTreeSet<KeptFor>>,
    /// The ids of the backups that go, oldest first.
    pub remove: Vec<String>,
    /// The objects that backups that stay name.
    pub named: BTreeSet<String>,
    /// The objects that only backups that go name.
    pub objects: BTreeSet<String>,
    /// The log that is needed; `None` if that can't be known, and all of it is.
    pub log: Option<LogNeed>,
    /// How the cluster looked from then on is needed, and how it looked at that moment; all of it, if absent.
    pub topologies_from: Option<Timestamp>,
}

/// Plans for the backups of one cluster.
pub fn plan_retention(held: Holdings<'_>, policy: &RetentionPolicy, now: Timestamp) -> RetentionPlan {
    let mut newest_first: Vec<&Manifest> = held.manifests.iter().collect();
    newest_first.sort_by(|a, b| b.id.cmp(&a.id));
    let mut plan = RetentionPlan::default();
    choose(&newest_first, policy, now, &mut plan);
    let is_kept = |manifest: &&Manifest| plan.keep.contains_key(&manifest.id);
    let (kept, gone): (Vec<&Manifest>, Vec<&Manifest>) =
        newest_first.iter().partition(|manifest| is_kept(manifest));
    plan.remove = gone.iter().rev().map(|manifest| manifest.id.clone()).collect();
    plan.named = named(&kept);
    if held.all_readable {
        plan.objects = &named(&gone) - &plan.named;
        let since = |manifest: &&&Manifest| {
            let why = plan.keep.get(&manifest.id);
            let asks = |kept_for| why.is_some_and(|why| why.contains(&kept_for));
            policy.window.is_none() || asks(KeptFor::Window) || asks(KeptFor::Newest)
        };
        let open: BTreeSet<&str> = kept.iter().filter(since).map(|manifest| manifest.id.as_str()).collect();
        let mut need = LogNeed::new(held.parents);
        for manifest in &kept {
            for shard in &manifest.shards {
                if open.contains(manifest.id.as_str()) {
                    need.everything_behind(&shard.history, shard.offset);
                } else {
                    need.up_to_cut(&shard.history, shard.offset, &shard.cut());
                }
            }
        }
        for (history, offset) in held.unlisted {
            need.everything_behind(history, *offset);
        }
        plan.log = Some(need.joined());
        plan.topologies_from = topologies_from(&kept);
    }
    plan
}

fn named(manifests: &[&Manifest]) -> BTreeSet<String> {
    manifests.iter().flat_map(|manifest| manifest.objects()).map(path).collect()
}

fn path(object: &ObjectRecord) -> String {
    object.path.clone()
}

/// The moment of the oldest base of these backups; `None` if it is not known.
fn topologies_from(kept: &[&Manifest]) -> Option<Timestamp> {
    let mut oldest: Option<Timestamp> = None;
    for manifest in kept {
        let bases = manifest.shards.iter().map(|shard| shard.server_time);
        // The bases of an incremental backup are older than itself.
        let unknown = manifest.kind != BackupKind::Full
            && manifest.shards.iter().any(|shard| shard.server_time.is_none());
        if unknown {
            return None;
        }
        for moment in bases.flatten().chain([manifest.started_at]) {
            oldest = Some(oldest.map_or(moment, |oldest| oldest.min(moment)));
        }
    }
    // Topologies are dated by another clock.
    oldest.and_then(|oldest| oldest.checked_sub(CLOCKS_APART).ok())
}

fn choose(newest_first: &[&Manifest], policy: &RetentionPolicy, now: Timestamp, plan: &mut RetentionPlan) {
    let mut keep = |manifest: &Manifest, why| {
        plan.keep.entry(manifest.id.clone()).or_default().insert(why);
    };
    for manifest in newest_first.iter().filter(|manifest| policy.pinned.contains(&manifest.id)) {
        keep(manifest, KeptFor::Pinned);
    }
    // Machines remember the newest one that they saw, and take its absence for an attack.
    let last_made = newest_first.first();
    // An old moment that was merged today takes no place that is meant for what is new.
    let mut newest_first = newest_first.to_vec();
    sort_newest_first(&mut newest_first);
    // What lacks slots is no substitute for a whole backup.
    let whole: Vec<&&Manifest> = newest_first.iter().filter(|manifest| !manifest.partial).collect();
    for newest in last_made.into_iter().chain(newest_first.first()).chain(whole.first().copied()) {
        keep(newest, KeptFor::Newest);
    }
    // The log goes on behind this one, and another one behind the newest of append-only files; none can behind a backup that was read key by key.
    for of_files in [false, true] {
        let goes_on = |manifest: &&&&Manifest| manifest.is_anchored() && manifest.is_of_aof() == of_files;
        if let Some(newest) = whole.iter().find(goes_on) {
            keep(newest, KeptFor::Newest);
        }
    }
    for manifest in whole.iter().take(policy.last) {
        keep(manifest, KeptFor::Last);
    }
    // A span that reaches back behind all time keeps everything.
    let begins =
        |span: Option<SignedDuration>| span.map(|span| now.checked_sub(span).unwrap_or(Timestamp::MIN));
    if let Some(begins) = begins(policy.within) {
        for manifest in newest_first.iter().filter(|manifest| manifest.finished_at >= begins) {
            keep(manifest, KeptFor::Within);
        }
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
            let period = manifest.data_at().strftime(format).to_string();
            if seen.len() < most && seen.insert(period) {
                keep(manifest, why);
            }
        }
    }
    if let Some(begins) = begins(policy.window) {
        // A moment at the beginning of the window needs a base from before it: one for each kind of log.
        let mut begun = BTreeSet::new();
        for manifest in &newest_first {
            let inside = manifest.data_at() >= begins;
            let begins_it = || !manifest.partial && manifest.is_anchored();
            if inside || (begins_it() && begun.insert(manifest.is_of_aof())) {
                keep(manifest, KeptFor::Window);
            }
        }
    }
}

#[cfg(test)]
mod tests;
