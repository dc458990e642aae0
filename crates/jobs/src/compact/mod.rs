//! Many small segments of the log become few large ones.
//!
//! Invariants: no moment is without a segment that holds each byte: the large segment is written and read back, that is written down as a
//! proof, and `prune` gives up what it covers, in two steps; a large segment that nothing proves is read again, and if it is damaged, the small ones
//! are joined as though it were not there; nothing but a large segment that is not what the small ones say is deleted here; the newest segment of a
//! history is left alone, as whoever seals goes on from it; a large segment says all that the small ones said, every time sample
//! included, or it is not written.

mod groups;
mod join;
mod run;

use serde::Serialize;
use slotkeep_model::ReplId;
use slotkeep_repo::{Repository, SegmentEntry};

use crate::log::chain::as_text;
use crate::log::cover::{Named, Overlaps, named};
use crate::{Context, Result};
use groups::groups;
use run::Run;

/// What to compact, and how.
#[derive(Clone, Debug)]
pub struct CompactOptions {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// About how large segments become, in stored bytes.
    pub target_bytes: u64,
}

/// Segments that are to become one.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The history.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// The offset of the first byte.
    pub start: u64,
    /// The offset behind the last byte.
    pub end: u64,
    /// How many segments that are.
    pub segments: usize,
    /// Their length as stored, together.
    pub stored_bytes: u64,
}

/// A seam over which segments were not joined.
#[derive(Clone, Debug, Serialize)]
pub struct Seam {
    /// The segment behind it.
    pub segment: String,
    /// Why.
    pub why: String,
}

/// What a run would do, or what it came to.
#[derive(Clone, Debug, Serialize)]
pub struct CompactReport {
    /// The cluster.
    pub cluster: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The new segments.
    pub groups: Vec<Group>,
    /// How many small segments are covered by them.
    pub segments: usize,
    /// The stored length of these.
    pub stored_bytes: u64,
    /// Where segments were not joined although their sizes ask for it.
    pub seams: Vec<Seam>,
    /// How many segments that hold the bytes of others too are read first, as nothing proves that they are whole; of a run, how many of them are.
    pub read_again: usize,
}

/// What a run would do.
pub struct CompactPlan {
    cluster: String,
    target_bytes: u64,
    histories: Vec<HistoryPlan>,
}

/// What there is of one history.
struct HistoryPlan {
    history: ReplId,
    segments: Vec<SegmentEntry>,
    /// Of these, what holds the bytes of others too and is not proved to be whole.
    unproved: Vec<SegmentEntry>,
}

impl CompactPlan {
    /// Looks at the names of the segments and at what was proved, and reads no segment.
    pub async fn make(repository: &Repository, options: &CompactOptions) -> Result<Self> {
        let mut overlaps = Overlaps::default();
        let mut histories = Vec::new();
        for history in repository.histories(&options.cluster).await? {
            let segments = repository.segments(&options.cluster, &history).await?;
            overlaps.add(&segments.iter().map(named).collect::<Vec<Named>>());
            histories.push(HistoryPlan { history, segments, unproved: Vec::new() });
        }
        let words = overlaps.ask(repository, &options.cluster).await?;
        for plan in &mut histories {
            plan.unproved = words.to_be_proved(&plan.segments);
        }
        Ok(Self { cluster: options.cluster.clone(), target_bytes: options.target_bytes, histories })
    }

    /// What would be done, as far as names tell.
    pub fn preview(&self) -> CompactReport {
        let of = |plan: &HistoryPlan| -> Vec<Group> {
            let groups = groups(plan.segments.clone(), self.target_bytes).into_iter();
            groups.map(|entries| Group::of(&plan.history, &entries)).collect()
        };
        let groups = self.histories.iter().flat_map(of).collect();
        let read_again = self.histories.iter().map(|plan| plan.unproved.len()).sum();
        CompactReport { dry_run: true, read_again, ..report(&self.cluster, groups, vec![]) }
    }

    /// Writes the large segments. Needs what opens an encrypted repository. Where segments are damaged, the rest is done, and then it fails.
    pub async fn run(&self, context: &Context, repository: &Repository) -> Result<CompactReport> {
        let preview = self.preview();
        if preview.groups.is_empty() && preview.read_again == 0 {
            return Ok(report(&self.cluster, vec![], vec![]));
        }
        repository.check_signs()?;
        repository.check_reads()?;
        Run::new(context, repository, self)?.all().await
    }
}

impl Group {
    fn of(history: &ReplId, entries: &[SegmentEntry]) -> Self {
        Self {
            history: history.clone(),
            start: entries.first().map_or(0, |entry| entry.start),
            end: entries.last().map_or(0, |entry| entry.end),
            segments: entries.len(),
            stored_bytes: entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.object_bytes)),
        }
    }
}

/// The report of a run that read nothing again.
fn report(cluster: &str, groups: Vec<Group>, seams: Vec<Seam>) -> CompactReport {
    CompactReport {
        cluster: cluster.to_owned(),
        dry_run: false,
        segments: groups.iter().map(|group| group.segments).sum(),
        stored_bytes: groups.iter().fold(0, |sum, group| sum.saturating_add(group.stored_bytes)),
        groups,
        seams,
        read_again: 0,
    }
}
