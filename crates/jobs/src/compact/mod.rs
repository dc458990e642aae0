//! Many small segments of the log become few large ones.
//!
//! Invariants: nothing is deleted here, and no moment is without a segment that holds each byte: the large segment is written and read back,
//! and `prune` gives up what it covers, in two steps; the newest segment of a history is left alone, as whoever seals goes on from
//! it; a large segment says all that the small ones said, every time sample included, or it is not written.

mod groups;
mod join;

use serde::Serialize;
use slotkeep_model::ReplId;
use slotkeep_repo::{Repository, SegmentEntry};

use crate::log::chain::as_text;
use crate::{Context, Error, Result};
use groups::groups;
use join::{Joined, join};

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
    #[serde(skip)]
    entries: Vec<SegmentEntry>,
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
}

/// What a run would do.
pub struct CompactPlan {
    cluster: String,
    groups: Vec<Group>,
}

impl CompactPlan {
    /// Looks at the names of the segments, and reads none.
    pub async fn make(repository: &Repository, options: &CompactOptions) -> Result<Self> {
        let mut all = Vec::new();
        for history in repository.histories(&options.cluster).await? {
            let segments = repository.segments(&options.cluster, &history).await?;
            all.extend(
                groups(segments, options.target_bytes)
                    .into_iter()
                    .map(|entries| Group::of(&history, entries)),
            );
        }
        Ok(Self { cluster: options.cluster.clone(), groups: all })
    }

    /// What would be done, as far as names tell.
    pub fn preview(&self) -> CompactReport {
        report(&self.cluster, true, self.groups.clone(), vec![])
    }

    /// Writes the large segments. Needs what opens an encrypted repository.
    pub async fn run(&self, context: &Context, repository: &Repository) -> Result<CompactReport> {
        if self.groups.is_empty() {
            return Ok(report(&self.cluster, false, vec![], vec![]));
        }
        repository.check_signs()?;
        repository.check_reads()?;
        let (mut written, mut seams) = (Vec::new(), Vec::new());
        for group in &self.groups {
            let mut rest = group.entries.as_slice();
            while !rest.is_empty() {
                if context.stop.is_cancelled() {
                    return Err(Error::interrupted());
                }
                let Joined { count, seam } = join(repository, &self.cluster, rest).await?;
                let (joined, left) = rest.split_at_checked(count.max(1)).unwrap_or((rest, &[]));
                if joined.len() > 1 {
                    written.push(Group::of(&group.history, joined.to_vec()));
                }
                seams.extend(seam);
                rest = left;
            }
        }
        Ok(report(&self.cluster, false, written, seams))
    }
}

impl Group {
    fn of(history: &ReplId, entries: Vec<SegmentEntry>) -> Self {
        Self {
            history: history.clone(),
            start: entries.first().map_or(0, |entry| entry.start),
            end: entries.last().map_or(0, |entry| entry.end),
            segments: entries.len(),
            stored_bytes: entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.object_bytes)),
            entries,
        }
    }
}

fn report(cluster: &str, dry_run: bool, groups: Vec<Group>, seams: Vec<Seam>) -> CompactReport {
    CompactReport {
        cluster: cluster.to_owned(),
        dry_run,
        segments: groups.iter().map(|group| group.segments).sum(),
        stored_bytes: groups.iter().fold(0, |sum, group| sum.saturating_add(group.stored_bytes)),
        groups,
        seams,
    }
}
