//! A second look at what was found wrong: a prune may have given it up meanwhile, and other segments may hold what a damaged one does not.
//!
//! A prune writes down what it gives up before it deletes it, and deletes manifests before what they name: what is missing and was given up is
//! known by the records as they are now, or by the manifests that are there no more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use slotkeep_format::{Severity, VerifyFinding};
use slotkeep_model::ReplId;
use slotkeep_repo::{Area, Pruned, Repository, SegmentEntry, layout};

use super::Run;
use super::continuity::{missing, runs};
use super::findings::COVERED_ADVICE;
use super::inventory::Inventory;
use crate::Result;

/// What the repository holds now.
struct Now<'a> {
    cluster: &'a str,
    inventory: &'a Inventory,
    pruned: Pruned,
    /// The paths of the manifests that are there.
    manifests: BTreeSet<String>,
    /// The segments of those histories of which any is missing.
    segments: BTreeMap<ReplId, Vec<SegmentEntry>>,
}

impl Run<'_> {
    /// Takes back what was found missing and has been given up, and says where damaged log has a substitute.
    pub(super) async fn look_again(&mut self, repository: &Repository, inventory: &Inventory) -> Result<()> {
        let lost: Vec<&VerifyFinding> = self.findings.iter().filter(|found| may_be_pruned(found)).collect();
        if !lost.is_empty() {
            let now = Now::look(repository, (&self.options.cluster, inventory), &lost).await?;
            self.findings.retain(|found| !may_be_pruned(found) || !now.explains(found));
        }
        self.substitutes(inventory);
        Ok(())
    }

    /// Damaged segments whose bytes others hold too are not the end of the log.
    fn substitutes(&mut self, inventory: &Inventory) {
        let is_bad = |found: &&VerifyFinding| found.severity == Severity::Problem;
        let bad: BTreeSet<String> =
            self.findings.iter().filter(is_bad).map(|found| found.object.clone()).collect();
        for found in self.findings.iter_mut().filter(|found| found.check == "bytes") {
            let Some((history, range)) = layout::segment_of(&found.object) else { continue };
            let Some(work) = inventory.histories.get(&history) else { continue };
            let whole = work.segments.iter().filter(|segment| !bad.contains(&segment.stored.path));
            let whole = runs(whole.map(|segment| segment.entry.start..segment.entry.end));
            if missing(&whole, range).is_empty() {
                found.advice = Some(COVERED_ADVICE.to_owned());
            }
        }
    }
}

/// Whether a prune may have done that.
fn may_be_pruned(found: &VerifyFinding) -> bool {
    found.severity == Severity::Problem && matches!(found.check.as_str(), "present" | "log")
}

impl<'a> Now<'a> {
    async fn look(
        repository: &Repository,
        (cluster, inventory): (&'a str, &'a Inventory),
        found: &[&VerifyFinding],
    ) -> Result<Self> {
        // What a prune wrote down before it deleted anything, before what it has deleted.
        let pruned = repository.pruned(cluster).await?;
        let manifests = repository.stored_objects(cluster, Area::Backups).await?;
        let manifests = manifests.into_iter().map(|object| object.path).collect();
        let mut segments = BTreeMap::new();
        let histories: BTreeSet<ReplId> =
            found.iter().filter_map(|found| history_of(&found.object)).collect();
        for history in histories {
            let held = repository.segments(cluster, &history).await?;
            segments.insert(history, held);
        }
        Ok(Self { cluster, inventory, pruned, manifests, segments })
    }

    /// Whether what was found missing is needed no more.
    fn explains(&self, found: &VerifyFinding) -> bool {
        let path = found.object.as_str();
        if let Some(backup) = self.inventory.backups.iter().find(|backup| backup.path == path) {
            return !self.manifests.contains(&backup.path);
        }
        if found.check != "present" {
            return false;
        }
        if let Some((history, range)) = layout::segment_of(path) {
            return self.is_done_without(path, &history, range);
        }
        if layout::base_of(path).is_some() {
            return !self.is_named(path);
        }
        // The file of a history goes when nothing else is left of it.
        let left = history_of(path).and_then(|history| self.segments.get(&history));
        left.is_some_and(Vec::is_empty)
    }

    /// Whether a manifest that is there still names the object.
    fn is_named(&self, path: &str) -> bool {
        let backups = self.inventory.backups.iter();
        let mut there = backups.filter(|backup| self.manifests.contains(&backup.path));
        there.any(|backup| {
            let bases = backup.shards.iter().filter_map(|(number, _)| self.inventory.bases.get(*number));
            bases.flat_map(|base| base.record.objects()).any(|object| object.path == path)
        })
    }

    /// Whether each of these bytes was given up, or is in another segment.
    fn is_done_without(&self, path: &str, history: &ReplId, range: Range<u64>) -> bool {
        let held = self.segments.get(history).map(Vec::as_slice).unwrap_or_default();
        let held = held.iter().filter(|segment| segment.path() != path);
        let held = runs(held.map(|segment| segment.start..segment.end));
        let given_up = self.pruned.log_of(self.cluster, history);
        missing(&held, range).into_iter().all(|hole| missing(&given_up, hole).is_empty())
    }
}

/// The history whose folder an object is in.
fn history_of(path: &str) -> Option<ReplId> {
    let mut parts = path.split('/').skip(1);
    let is_history = parts.next()? == "history";
    is_history.then(|| parts.next()?.parse().ok()).flatten()
}
