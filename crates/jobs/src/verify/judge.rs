//! What objects must agree on: the log has no holes, cuts can be reached, manifests add up, and nothing has gone that was there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use slotkeep_format::verify::BackupVerdict;
use slotkeep_format::{Depth, Severity, VerifyFinding, decode_digest};
use slotkeep_model::{ReplId, SlotDigest};
use slotkeep_repo::{Repository, layout};

use super::Run;
use super::continuity::{Broken, Held, breaks, line, missing, runs};
use super::findings::{DERIVED_ADVICE, LOG_ADVICE, LOOK_ADVICE, finding, problem};
use super::inventory::{Backup, HistoryWork, Inventory};
use super::log::seam;
use super::proofs::{Gone, Known, gone};
use crate::Result;

const LOG: (Depth, &str) = (Depth::Structure, "log");
const TOTAL: (Depth, &str) = (Depth::Structure, "total");
const UNLISTED: (Depth, &str) = (Depth::Objects, "unlisted");
/// A digest object has at most this many bytes: a header and 16384 rows.
const DIGEST_MOST_BYTES: usize = 1 << 20;
/// Objects of a backup that is not listed may belong to one that runs, for so long.
const RUNNING_MS: i64 = 24 * 3_600_000;

impl Run<'_> {
    /// Judges what belongs to no single object, and writes down which small files are proved.
    pub(super) async fn judge(
        &mut self,
        repository: &Repository,
        inventory: &Inventory,
        known: &Known,
        lost: &Gone,
    ) -> Result<()> {
        let held = held(inventory);
        self.unlisted(inventory, lost);
        self.lost(inventory, &held, lost);
        if self.options.depth >= Depth::Structure {
            self.holes(inventory, &held);
            self.summaries.sort_by_key(|summary| summary.start);
            self.seams();
            self.totals_of_backups(repository, inventory, known).await?;
        }
        self.prove_files(inventory, known, &held).await
    }

    /// What lies in the folders of bases that no manifest names.
    fn unlisted(&mut self, inventory: &Inventory, lost: &Gone) {
        let now_ms = self.context.clock.now().as_millisecond();
        for history in inventory.histories.values() {
            for (folder, newest_ms) in &history.unlisted {
                let id = folder.rsplit('/').next().and_then(|name| Some(name.split_once('-')?.1));
                let id = id.unwrap_or_default();
                if inventory.backups.iter().any(|backup| backup.id == id && !backup.readable) {
                    // Its manifest has a finding of its own.
                    continue;
                }
                if inventory.pruned.gave_up_backup(&self.options.cluster, id) {
                    let what = format!("it is a base of backup {id}, which was pruned");
                    let advice = "the next prune deletes it";
                    self.findings.push(finding(Severity::Note, UNLISTED, folder, what, advice));
                    continue;
                }
                let was_listed = lost.keys().any(|path| path.ends_with(&format!("/backups/{id}.json")));
                let what = if was_listed {
                    format!("it is a base of backup {id}, whose manifest was here and is gone")
                } else {
                    format!("it is a base of backup {id}, which no manifest names")
                };
                let young = now_ms.saturating_sub(*newest_ms) < RUNNING_MS;
                let (severity, advice) = match (was_listed, young) {
                    (true, _) => (
                        Severity::Warning,
                        "restore the manifest from a copy of the repository, if nobody deleted it on purpose",
                    ),
                    (false, true) => (Severity::Note, "a backup is running, or was broken off"),
                    (false, false) => (
                        Severity::Warning,
                        "a backup was broken off, and `slotkeep prune` deletes it; or its manifest was lost, and `slotkeep repair` lists it again",
                    ),
                };
                self.findings.push(finding(severity, UNLISTED, folder, what, advice));
            }
        }
    }

    /// What was proved once and is not there now, unless something stands in for it or nothing needs it.
    fn lost(&mut self, inventory: &Inventory, held: &BTreeMap<ReplId, Held>, lost: &Gone) {
        let oldest_topology =
            inventory.files.iter().map(|file| &file.stored.path).find(|path| path.contains("/topology/"));
        let (cluster, pruned) = (self.options.cluster.as_str(), &inventory.pruned);
        let judge = |path: &str| -> Option<(Severity, &'static str)> {
            let mut parts = path.split('/').rev();
            let (name, folder, history) = (parts.next()?, parts.next()?, parts.next());
            let id = name.trim_end_matches(".json");
            match folder {
                "backups" if pruned.gave_up_backup(cluster, id) => None,
                "topology" if pruned.gave_up_topology(cluster, id) => None,
                "backups" => Some((Severity::Note, "it was deleted, or lost")),
                // The old ones go first when they are deleted on purpose.
                "topology" if oldest_topology.is_some_and(|oldest| oldest.as_str() < path) => {
                    Some((Severity::Problem, LOOK_ADVICE))
                }
                "topology" => Some((Severity::Note, "it was deleted, or lost")),
                "log" => {
                    let history: ReplId = history?.parse().ok()?;
                    let (work, held) = (inventory.histories.get(&history)?, held.get(&history)?);
                    let range = segment_range(name)?;
                    let needed = needed(work, inventory, &history, range.start);
                    let given_up = pruned.log_of(cluster, &history);
                    let lost = missing(&held.runs, range)
                        .into_iter()
                        .any(|hole| !missing(&given_up, hole).is_empty());
                    (needed && lost).then_some((Severity::Problem, LOG_ADVICE))
                }
                _ => None,
            }
        };
        self.findings.extend(gone(lost, judge));
    }

    fn holes(&mut self, inventory: &Inventory, held: &BTreeMap<ReplId, Held>) {
        for (id, history) in &inventory.histories {
            let Some(held) = held.get(id) else { continue };
            let around = Around {
                bases: base_offsets(inventory, id, history),
                cuts: cut_offsets(inventory, id),
                given_up: inventory.pruned.log_of(&self.options.cluster, id),
                archived: inventory.archived,
            };
            self.findings.extend(holes_of(id, history, held, &around));
        }
        for backup in &inventory.backups {
            for (number, cut) in &backup.shards {
                let Some(base) = inventory.bases.get(*number) else { continue };
                for broken in breaks(held, (&base.history, base.offset), cut) {
                    let what = match broken {
                        Broken::Bytes { history, range } => {
                            format!(
                                "its log is not whole: bytes {} to {} of history {history} are missing (slots {})",
                                range.start,
                                range.end.saturating_sub(1),
                                base.slots
                            )
                        }
                        Broken::Unrelated { history } => {
                            format!(
                                "its cut is in history {}, which does not descend from {}: nothing says where {history} comes from (slots {})",
                                cut.history, base.history, base.slots
                            )
                        }
                        Broken::Left { at } => {
                            format!(
                                "its cut is in history {}, whose line left history {} at offset {at}, before its base at offset {} (slots {})",
                                cut.history, base.history, base.offset, base.slots
                            )
                        }
                    };
                    let advice = "it can be restored up to the bytes before; take a new backup";
                    let found = VerifyFinding {
                        offset: Some(cut.offset),
                        ..problem(LOG, &backup.path, what, advice)
                    };
                    self.findings.push(found);
                }
            }
        }
    }

    fn seams(&mut self) {
        for before in &self.summaries {
            let after = self.summaries.partition_point(|other| other.start < before.end);
            let same_log = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
            for after in self.summaries.iter().skip(after).take_while(|other| other.start == before.end) {
                if same_log(&after.path) == same_log(&before.path) {
                    self.findings.extend(seam(before, after));
                }
            }
        }
    }

    /// Whether the digest of each manifest that is not proved yet is the sum of those of its bases.
    async fn totals_of_backups(
        &mut self,
        repository: &Repository,
        inventory: &Inventory,
        known: &Known,
    ) -> Result<()> {
        for backup in &inventory.backups {
            let file = inventory.files.iter().find(|file| file.stored.path == backup.path);
            let proved = file.is_some_and(|file| {
                known.proved(&file.stored, Some(&file.blake3), Depth::Structure).is_some()
            });
            let Some(said) = backup.digest.filter(|_| !proved) else { continue };
            let Some(found) = self.sum(repository, inventory, backup).await? else { continue };
            if found != said {
                let what = format!(
                    "it says {} keys with digest {:032x}, its bases have {} keys with digest {:032x}",
                    said.keys, said.sum, found.keys, found.sum
                );
                self.findings.push(problem(TOTAL, &backup.path, what, DERIVED_ADVICE));
            }
        }
        Ok(())
    }

    /// What the bases of a backup add up to; `None` if one of them is not right or was not looked at.
    async fn sum(
        &self,
        repository: &Repository,
        inventory: &Inventory,
        backup: &Backup,
    ) -> Result<Option<SlotDigest>> {
        let mut sum = SlotDigest::default();
        for (number, _) in &backup.shards {
            if let Some(digest) = self.digests.get(number) {
                sum.merge(*digest);
                continue;
            }
            let object = inventory.bases.get(*number).and_then(|base| base.record.digest.as_ref());
            let bad = |path: &str| self.findings.iter().any(|finding| finding.object == path);
            let Some(object) = object.filter(|object| !bad(&object.path)) else { return Ok(None) };
            let Ok(bytes) = repository.read(object, DIGEST_MOST_BYTES).await else { return Ok(None) };
            let Ok((digest, _)) = decode_digest(&bytes) else { return Ok(None) };
            sum.merge(digest.total());
        }
        Ok(Some(sum))
    }

    /// A small file is proved to the depth of the run if nothing was found about it nor about the log that it speaks of.
    async fn prove_files(
        &mut self,
        inventory: &Inventory,
        known: &Known,
        held: &BTreeMap<ReplId, Held>,
    ) -> Result<()> {
        let now = self.context.clock.now();
        let found: BTreeSet<&str> = self.findings.iter().map(|finding| finding.object.as_str()).collect();
        let log_is_fine = !found.iter().any(|path| path.contains("/log/"));
        let deep = self.options.sample_percent.is_none() && (log_is_fine || held.is_empty());
        let wanted = self.options.depth.min(Depth::Structure);
        let depth = if deep { wanted } else { Depth::Objects };
        for file in &inventory.files {
            if found.contains(file.stored.path.as_str()) {
                continue;
            }
            let total = if known.proved(&file.stored, Some(&file.blake3), wanted).is_some() {
                &mut self.totals.proved_before
            } else {
                self.ledger.prove(&file.stored, &file.blake3, depth, now).await?;
                &mut self.totals.proved
            };
            *total = total.saturating_add(1);
        }
        Ok(())
    }
}

/// What is known of every history.
fn held(inventory: &Inventory) -> BTreeMap<ReplId, Held> {
    let of = |work: &HistoryWork| Held {
        parent: work.file.as_ref().and_then(|file| file.parent.clone()),
        runs: runs(work.segments.iter().map(|segment| segment.entry.start..segment.entry.end)),
    };
    inventory.histories.iter().map(|(id, work)| (id.clone(), of(work))).collect()
}

/// The offsets of all bases of a history, listed or not.
fn base_offsets(inventory: &Inventory, id: &ReplId, history: &HistoryWork) -> BTreeSet<u64> {
    let listed = inventory.bases.iter().filter(|base| base.history == *id).map(|base| base.offset);
    let unlisted = history.unlisted.keys().filter_map(|folder| {
        let (offset, _) = folder.rsplit('/').next()?.split_once('-')?;
        offset.parse().ok()
    });
    listed.chain(unlisted).collect()
}

/// Where listed backups end in the log of a history, those that have followed it.
fn cut_offsets(inventory: &Inventory, id: &ReplId) -> BTreeSet<u64> {
    let shards = inventory.backups.iter().flat_map(|backup| &backup.shards);
    let cuts = shards.filter(|(number, cut)| {
        let base = inventory.bases.get(*number);
        cut.history == *id && base.is_none_or(|base| base.history != cut.history || base.offset < cut.offset)
    });
    cuts.map(|(_, cut)| cut.offset).collect()
}

/// What is known of a history besides its log.
struct Around {
    bases: BTreeSet<u64>,
    cuts: BTreeSet<u64>,
    given_up: Vec<Range<u64>>,
    /// Whether an archive has ever kept the cluster's log.
    archived: bool,
}

impl Around {
    // Prunes leave whole segments out: a hole that began as a gap has been given up with what was around it.
    fn gave_up(&self, offset: u64) -> bool {
        self.given_up.iter().any(|range| range.contains(&offset))
    }

    /// Whether the log can begin there, as a base ends before it.
    fn begins(&self, start: u64) -> bool {
        self.bases.contains(&start.saturating_sub(1))
    }

    /// Whether nobody meant to keep the log behind that offset: a backup that is taken by itself follows the stream to its cut, and ends.
    fn was_not_kept(&self, history: &HistoryWork, end: u64) -> bool {
        let mut last = history.segments.iter().map(|segment| &segment.entry).filter(|entry| entry.end == end);
        let is_at_cut = |start: u64| self.cuts.range(start.saturating_sub(1)..end).next().is_some();
        !self.archived || last.any(|entry| is_at_cut(entry.start))
    }
}

/// Where the log of a history is not whole, or nothing leads to it, although it was not given up.
fn holes_of(id: &ReplId, history: &HistoryWork, held: &Held, around: &Around) -> Vec<VerifyFinding> {
    let mut found = Vec::new();
    let mut not_kept: Vec<Range<u64>> = Vec::new();
    let object = |start: u64| {
        let segment = history.segments.iter().find(|segment| segment.entry.start == start);
        segment.map_or_else(|| id.to_string(), |segment| segment.stored.path.clone())
    };
    if let Some(first) = held.runs.first() {
        let led_to = around.bases.range(first.start.saturating_sub(1)..).next().is_some();
        let fork = held.parent.as_ref().map(|parent| parent.fork);
        let pruned = around.gave_up(first.start.saturating_sub(1));
        if !led_to && !pruned && fork.is_none_or(|fork| fork.saturating_add(1) < first.start) {
            let what = match fork {
                Some(fork) => format!(
                    "the log begins at offset {}, its history at {}: what is between is missing",
                    first.start,
                    fork.saturating_add(1)
                ),
                None => format!(
                    "the log begins at offset {}, where no base ends: what leads to it is missing",
                    first.start
                ),
            };
            found.push(VerifyFinding {
                offset: Some(first.start),
                ..problem(LOG, object(first.start), what, LOG_ADVICE)
            });
        }
    }
    for pair in held.runs.windows(2) {
        let [before, after] = pair else { continue };
        let hole: Range<u64> = before.end..after.start;
        let begins = around.begins(after.start);
        if around.gave_up(hole.start) && (around.gave_up(hole.end.saturating_sub(1)) || begins) {
            continue;
        }
        if begins && around.was_not_kept(history, hole.start) {
            not_kept.push(hole);
            continue;
        }
        let what = format!(
            "bytes {} to {} of history {id} before it are missing",
            hole.start,
            hole.end.saturating_sub(1)
        );
        let (severity, advice) = if begins {
            (
                Severity::Warning,
                "a base begins a new line behind the gap; moments in the gap can't be restored",
            )
        } else {
            (Severity::Problem, LOG_ADVICE)
        };
        let found_here = finding(severity, LOG, object(after.start), what, advice);
        found.push(VerifyFinding { offset: Some(hole.start), ..found_here });
    }
    if let Some(last) = not_kept.last() {
        let more = match not_kept.len() {
            1 => String::new(),
            gaps => format!("; gaps like it before: {}", gaps.saturating_sub(1)),
        };
        let what = format!(
            "the log of history {id} was not kept from byte {} to its base at {}{more}",
            last.start,
            last.end.saturating_sub(1)
        );
        let advice = "moments in between can't be restored; `slotkeep archive` keeps every write";
        let note = finding(Severity::Note, LOG, object(last.end), what, advice);
        found.push(VerifyFinding { offset: Some(last.start), ..note });
    }
    found
}

/// Whether anything that is kept needs the log of a history from that offset on: a base or log before it, or a parent.
fn needed(work: &HistoryWork, inventory: &Inventory, id: &ReplId, start: u64) -> bool {
    let from_base = base_offsets(inventory, id, work).range(..=start).next().is_some();
    let from_log = work.segments.first().is_some_and(|first| first.entry.start < start);
    let from_parent = work.file.as_ref().and_then(|file| file.parent.as_ref()).is_some_and(|parent| {
        inventory.histories.get(&parent.history).is_some_and(|parent| !parent.segments.is_empty())
    });
    from_base || from_log || from_parent
}

/// The bytes that a segment of that name holds.
fn segment_range(name: &str) -> Option<Range<u64>> {
    let (start, end) = name.strip_suffix(".zst")?.split_once('-')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

/// The worst finding about what each backup needs.
pub(super) fn verdicts(inventory: &Inventory, findings: &[VerifyFinding]) -> Vec<BackupVerdict> {
    let held = held(inventory);
    let mut worst: BTreeMap<&str, Severity> = BTreeMap::new();
    for finding in findings {
        let place = worst.entry(finding.object.as_str()).or_insert(Severity::Ok);
        *place = finding.severity.max(*place);
    }
    let of_path = |path: &str| worst.get(path).copied().unwrap_or(Severity::Ok);
    let verdict = |backup: &Backup| {
        // A drill's findings name the backup itself.
        let mut paths = vec![of_path(&backup.path), of_path(&backup.id), of_path(layout::REPOSITORY_FILE)];
        for (number, cut) in &backup.shards {
            let Some(base) = inventory.bases.get(*number) else { continue };
            paths.extend(base.record.objects().map(|object| of_path(&object.path)));
            for (history, range) in line(&held, (&base.history, base.offset), cut).unwrap_or_default() {
                let Some(work) = inventory.histories.get(&history) else { continue };
                let on_line = work
                    .segments
                    .iter()
                    .filter(|segment| segment.entry.start < range.end && range.start < segment.entry.end);
                paths.extend(on_line.map(|segment| of_path(&segment.stored.path)));
            }
        }
        let worst = paths.into_iter().max().unwrap_or(Severity::Ok);
        BackupVerdict { id: backup.id.clone(), worst }
    };
    inventory.backups.iter().map(verdict).collect()
}
