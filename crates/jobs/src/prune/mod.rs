//! Giving up what no rule keeps and nothing kept needs, in two steps: marked first, deleted by a later run after a time of grace.
//!
//! ```text
//! stock (what there is) ─► judge (what is needed; pure) ─► plan ─► marks ─► what went is written down ─► stock, judge again ─► delete
//! ```
//!
//! Invariants: an object is deleted only if it was marked for the whole grace and nothing kept needs it now; manifests go before what
//! they name, and what a manifest that is still there names stays; what is given up is written down before it is looked for once more who
//! needs it, so a backup that is committed meanwhile is seen, or sees that it comes too late; killed anywhere, the next run goes on.

mod judge;
mod pin;
mod report;
mod stock;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use slotkeep_format::{MarkedObject, RetentionPolicy};
use slotkeep_repo::{Marks, Repository, StoredObject};

use crate::{Context, Error, ErrorKind, Result};
use judge::{Candidate, Judgement, Rules, judge};
use stock::Stock;

pub use pin::{Pinned, pin, unpin};
pub use report::{BackupRow, ObjectRow, PruneReport, Refusal, Step, TotalRow, UnfinishedRow};
pub(crate) use sweep::compare_clocks;

/// The shortest grace. Whoever lists an object has to have finished reading it by then, and whoever writes one, to have named it.
pub const SHORTEST_GRACE: SignedDuration = SignedDuration::from_hours(1);

/// By how much clocks may differ that are set at all, well below [`SHORTEST_GRACE`].
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What to prune, and how.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Which backups to keep; what is pinned in the repository is added.
    pub policy: RetentionPolicy,
    /// How long an object stays marked before it is deleted.
    pub grace: SignedDuration,
    /// By how much this machine's clock and the store's may differ; without it they are not compared. Ages are told by both.
    pub clock_tolerance: Option<SignedDuration>,
}

/// What a run would do.
pub struct PrunePlan {
    options: PruneOptions,
    now: Timestamp,
    stock: Stock,
    judgement: Judgement,
    marks: Marks,
    /// Of what is not needed: since when it is marked.
    marked: BTreeMap<String, Timestamp>,
    /// What writes have left that were killed.
    unfinished: Vec<StoredObject>,
}

impl PrunePlan {
    /// Looks at what there is, and changes nothing.
    pub async fn make(context: &Context, repository: &Repository, options: &PruneOptions) -> Result<Self> {
        if !options.policy.has_rules() {
            return Err(Error::new(ErrorKind::Usage, "which backups are to be kept? no rule says so").hint(
                "give --keep-last, --keep-within, --keep-daily, --window and the like, or [retention] in slotkeep.toml",
            ));
        }
        if options.grace < SHORTEST_GRACE {
            let what =
                "the grace is shorter than an hour: a backup or restore that runs might need what is deleted";
            return Err(Error::new(ErrorKind::Usage, what).hint("give --grace 1h or more"));
        }
        let cluster = &options.cluster;
        let marks = repository.marks(cluster).await?;
        let stock = Stock::take(repository, cluster).await?;
        let now = context.clock.now();
        let judgement = judge(&stock, &options.rules(now, &BTreeSet::new()));
        let known: BTreeMap<&str, &MarkedObject> = marks
            .newest
            .iter()
            .flat_map(|record| &record.objects)
            .map(|object| (object.path.as_str(), object))
            .collect();
        let mut marked = BTreeMap::new();
        for (path, candidate) in &judgement.unneeded {
            let object = &candidate.object;
            // A mark speaks of the object that was there then.
            let same =
                |mark: &&&MarkedObject| (mark.bytes, mark.modified_ms) == (object.bytes, object.modified_ms);
            if let Some(mark) = known.get(path.as_str()).filter(same) {
                marked.insert(path.clone(), mark.marked_at);
            }
        }
        let age_ms = |file: &StoredObject| now.as_millisecond().saturating_sub(file.modified_ms);
        let mut unfinished = repository.unfinished_writes(cluster).await?;
        unfinished.retain(|file| i128::from(age_ms(file)) >= options.grace.as_millis());
        Ok(Self { options: options.clone(), now, stock, judgement, marks, marked, unfinished })
    }

    /// What would be done with an object that is not needed.
    fn step(&self, path: &str) -> Step {
        match self.marked.get(path) {
            None => Step::Mark,
            Some(at) if self.now.duration_since(*at) >= self.options.grace => Step::Delete,
            Some(_) => Step::Wait,
        }
    }

    /// What is to be deleted now.
    fn due(&self) -> impl Iterator<Item = (&String, &Candidate)> {
        self.judgement.unneeded.iter().filter(|(path, _)| self.step(path) == Step::Delete)
    }

    /// What was marked and is needed now, or has changed.
    fn released(&self) -> u64 {
        let before = self.marks.newest.iter().flat_map(|record| &record.objects);
        let there = self.stock.paths();
        before
            .filter(|object| there.contains(object.path.as_str()) && !self.marked.contains_key(&object.path))
            .count() as u64
    }
}

impl PruneOptions {
    fn rules<'a>(&'a self, now: Timestamp, locked: &'a BTreeSet<String>) -> Rules<'a> {
        Rules { policy: &self.policy, locked, grace: self.grace, now }
    }
}
