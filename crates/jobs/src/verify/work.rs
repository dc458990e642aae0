//! Which objects are to be looked at: those that are not proved yet to the depth that was asked for, or a sample of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use slotkeep_format::Depth;
use slotkeep_format::verify::VerifyTotals;
use slotkeep_model::ReplId;
use slotkeep_repo::StoredObject;

use super::VerifyOptions;
use super::base::BaseJob;
use super::inventory::{BaseWork, HistoryWork, Inventory, SmallFile};
use super::log::SegmentJob;
use super::proofs::{Known, fingerprint};

/// One thing to look at.
pub(super) enum Job {
    Base(Box<BaseJob>),
    Segment(SegmentJob),
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Work {
    pub(super) jobs: Vec<Job>,
    pub(super) stored_bytes: u64,
    pub(super) objects: u64,
    pub(super) totals: VerifyTotals,
    pub(super) oldest_proof_at: Option<Timestamp>,
}

/// Offsets of each history at which something ends, with the object that says so.
type Ends = BTreeMap<ReplId, Vec<(u64, String)>>;

impl Work {
    pub(super) fn plan(inventory: &Inventory, known: &Known, options: &VerifyOptions, run: &str) -> Self {
        let mut work = Self::default();
        let planner = Planner { known, options, run };
        for (number, base) in inventory.bases.iter().enumerate() {
            planner.base(number, base, &mut work);
        }
        let mut ends = planner.ends(inventory);
        for (id, history) in &inventory.histories {
            planner.history(history, ends.remove(id).unwrap_or_default(), &mut work);
        }
        work.totals.objects = work.totals.objects.saturating_add(inventory.files.len() as u64);
        work
    }

    fn add(&mut self, objects: usize, stored_bytes: u64, job: Job) {
        self.objects = self.objects.saturating_add(objects as u64);
        self.stored_bytes = self.stored_bytes.saturating_add(stored_bytes);
        self.jobs.push(job);
    }
}

struct Planner<'a> {
    known: &'a Known,
    options: &'a VerifyOptions,
    run: &'a str,
}

impl Planner<'_> {
    /// The depth to which single objects are looked into.
    fn depth(&self) -> Depth {
        self.options.depth.min(Depth::Structure)
    }

    fn proved(&self, object: &StoredObject, blake3: Option<&str>, work: &mut Work) -> bool {
        let proved = self.known.proved(object, blake3, self.depth());
        let Some(at) = proved else { return false };
        work.oldest_proof_at = Some(work.oldest_proof_at.map_or(at, |oldest| oldest.min(at)));
        true
    }

    /// Whether the sample holds the object: by chance, but the same throughout a run.
    fn sampled(&self, path: &str) -> bool {
        let Some(percent) = self.options.sample_percent else { return true };
        fingerprint(&format!("{} {path}", self.run)) % 100 < u128::from(percent)
    }

    fn base(&self, number: usize, base: &BaseWork, work: &mut Work) {
        let mut stored = base.stored.clone();
        let mut open = 0_usize;
        for (object, place) in base.record.objects().zip(&mut stored) {
            let Some(found) = place else { continue };
            work.totals.objects = work.totals.objects.saturating_add(1);
            if !self.proved(found, Some(&object.blake3), work) {
                open = open.saturating_add(1);
            } else if self.depth() < Depth::Structure {
                // At this depth objects stand for themselves.
                *place = None;
                work.totals.proved_before = work.totals.proved_before.saturating_add(1);
            }
        }
        let there = stored.iter().flatten().count();
        if open == 0 {
            if self.depth() >= Depth::Structure {
                work.totals.proved_before = work.totals.proved_before.saturating_add(there as u64);
            }
            return;
        }
        if !self.sampled(&base.record.rdb.path) {
            work.totals.left_out = work.totals.left_out.saturating_add(there as u64);
            return;
        }
        let bytes = stored.iter().flatten().fold(0, |sum: u64, object| sum.saturating_add(object.bytes));
        let job = BaseJob { number, record: base.record.clone(), slots: base.slots.clone(), stored };
        work.add(there, bytes, Job::Base(Box::new(job)));
    }

    /// What ends where in the log: cuts, bases and forks whose own files are not proved yet.
    fn ends(&self, inventory: &Inventory) -> Ends {
        let mut ends = Ends::new();
        if self.depth() < Depth::Structure {
            return ends;
        }
        let is_new = |path: &str| {
            let file = inventory.files.iter().find(|file| file.stored.path == path);
            file.is_some_and(|file| !self.file_proved(file))
        };
        let mut add = |history: &ReplId, offset: u64, by: &str| {
            ends.entry(history.clone()).or_default().push((offset, by.to_owned()));
        };
        for backup in inventory.backups.iter().filter(|backup| is_new(&backup.path)) {
            for (number, cut) in &backup.shards {
                add(&cut.history, cut.offset, &backup.path);
                if let Some(base) = inventory.bases.get(*number) {
                    add(&base.history, base.offset, &backup.path);
                }
            }
        }
        for (id, history) in &inventory.histories {
            let parent = history.file.as_ref().and_then(|file| file.parent.as_ref());
            let path = inventory.files.iter().find(|file| file.stored.path.contains(id.as_str()));
            if let (Some(parent), Some(path)) = (parent, path)
                && is_new(&path.stored.path)
            {
                add(&parent.history, parent.fork, &path.stored.path);
            }
        }
        for ends in ends.values_mut() {
            ends.sort();
            ends.dedup();
        }
        ends
    }

    fn file_proved(&self, file: &SmallFile) -> bool {
        self.known.proved(&file.stored, Some(&file.blake3), self.depth()).is_some()
    }

    fn history(&self, history: &HistoryWork, ends: Vec<(u64, String)>, work: &mut Work) {
        let segments = &history.segments;
        let mut ends_of: Vec<Vec<(u64, String)>> = segments.iter().map(|_| Vec::new()).collect();
        for end in ends {
            let holds = segments.iter().position(|one| (one.entry.start..one.entry.end).contains(&end.0));
            if let Some(place) = holds.and_then(|number| ends_of.get_mut(number)) {
                place.push(end);
            }
        }
        let mut counts = Vec::new();
        for segment in segments {
            work.totals.objects = work.totals.objects.saturating_add(1);
            let (open, sampled) =
                (!self.proved(&segment.stored, None, work), self.sampled(&segment.stored.path));
            let total = match (open, sampled) {
                (false, _) => Some(&mut work.totals.proved_before),
                (true, false) => Some(&mut work.totals.left_out),
                (true, true) => None,
            };
            if let Some(total) = total {
                *total = total.saturating_add(1);
            }
            counts.push(open && sampled);
        }
        let neighbours = self.depth() >= Depth::Structure && self.options.sample_percent.is_none();
        for (number, (segment, ends)) in segments.iter().zip(ends_of).enumerate() {
            let own = counts.get(number).copied().unwrap_or(false);
            // A new segment must fit to the one before it.
            let next = neighbours && counts.get(number.saturating_add(1)).copied().unwrap_or(false);
            if own || next || !ends.is_empty() {
                let (entry, stored) = (segment.entry.clone(), segment.stored.clone());
                let job = SegmentJob { entry, stored, ends, counts: own };
                work.add(usize::from(own), segment.stored.bytes, Job::Segment(job));
            }
        }
    }
}
