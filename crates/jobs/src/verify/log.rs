//! A segment: its object whole, every command parsed, its ends on boundaries; and what neighbours must agree on.

use slotkeep_format::segment::SegmentRecord;
use slotkeep_format::{Depth, TimeSample, VerifyFinding};
use slotkeep_model::ReplOffset;
use slotkeep_repo::{RepoError, SegmentEntry, StoredObject};
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::findings::{LOG_ADVICE, of_object, problem};
use super::object::{Looker, Outcome};
use crate::Result;

const BYTES: (Depth, &str) = (Depth::Objects, "bytes");
const STREAM: (Depth, &str) = (Depth::Structure, "stream");
const CUT: (Depth, &str) = (Depth::Structure, "cut");
const TIME: (Depth, &str) = (Depth::Structure, "time");

/// A segment to look at.
pub(super) struct SegmentJob {
    pub(super) entry: SegmentEntry,
    pub(super) stored: StoredObject,
    /// Offsets in it at which something ends: the cuts of backups, bases and forks, with the object that says so. In order.
    pub(super) ends: Vec<(u64, String)>,
    /// Whether it has to be proved, or is read for its neighbours' sake only.
    pub(super) counts: bool,
}

/// What the neighbours of a segment must fit to.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) path: String,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first_db: Option<u32>,
    pub(super) last_db: Option<u32>,
    pub(super) first_sample: Option<TimeSample>,
    pub(super) last_sample: Option<TimeSample>,
}

impl Looker {
    /// Looks at a segment as deep as was asked for.
    pub(super) async fn segment(&self, job: SegmentJob) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let record = match self.read_log(&job, &mut outcome).await {
            Ok(record) => record,
            Err(error) => {
                outcome.findings.push(of_object(error, BYTES, job.entry.path(), LOG_ADVICE)?);
                return Ok(outcome);
            }
        };
        if job.counts && !outcome.findings.iter().any(|finding| finding.object == job.stored.path) {
            outcome.proved.push((job.stored, record.blake3));
        }
        Ok(outcome)
    }

    async fn read_log(&self, job: &SegmentJob, outcome: &mut Outcome) -> Result<SegmentRecord, RepoError> {
        let mut reader = self.repository.read_segment(&job.entry).await?;
        let record = reader.record().clone();
        let mut commands = Commands::new(&record, job);
        let raw_bytes = record.raw_bytes().max(1);
        let (mut raw, mut counted) = (0_u64, 0_u64);
        while let Some(piece) = reader.next().await? {
            if self.depth >= Depth::Structure {
                commands.feed(&piece);
            }
            // Stored bytes come in the proportion of the original ones; the record counts at the end.
            raw = raw.saturating_add(piece.len() as u64);
            let share = u128::from(job.entry.object_bytes) * u128::from(raw) / u128::from(raw_bytes);
            let stored = u64::try_from(share).unwrap_or(u64::MAX).min(job.entry.object_bytes);
            self.count(stored.saturating_sub(counted));
            counted = stored;
        }
        self.count(job.entry.object_bytes.saturating_sub(counted));
        if self.depth >= Depth::Structure {
            outcome.totals.raw_bytes = raw;
            outcome.totals.commands = commands.count;
            commands.finish(&record, outcome);
        }
        Ok(record)
    }
}

/// The commands of a segment while it passes.
struct Commands<'a> {
    path: &'a str,
    start: u64,
    splitter: Splitter,
    ends: std::iter::Peekable<std::slice::Iter<'a, (u64, String)>>,
    count: u64,
    findings: Vec<VerifyFinding>,
    failed: bool,
}

impl<'a> Commands<'a> {
    fn new(record: &SegmentRecord, job: &'a SegmentJob) -> Self {
        let before = record.start.saturating_sub(1);
        let start = StreamStart { offset: ReplOffset(before), db: record.database, in_transaction: false };
        Self {
            path: job.entry.path(),
            start: record.start,
            splitter: Splitter::new(start),
            ends: job.ends.iter().peekable(),
            count: 0,
            findings: Vec::new(),
            failed: false,
        }
    }

    fn feed(&mut self, mut piece: &[u8]) {
        while !self.failed {
            match self.splitter.next(&mut piece) {
                Ok(Some(_)) => self.count = self.count.saturating_add(1),
                Ok(None) => break,
                Err(error) => {
                    let at = self.splitter.offset().0;
                    self.push(Some(at), STREAM, self.path.to_owned(), error.to_string());
                    self.failed = true;
                }
            }
            self.pass_ends();
        }
    }

    /// Judges what ends at or before the last safe place.
    fn pass_ends(&mut self) {
        let safe = self.splitter.safe_cut().0;
        while let Some((offset, by)) = self.ends.next_if(|(offset, _)| *offset <= safe) {
            if *offset != safe && *offset >= self.start {
                let what =
                    format!("it ends at offset {offset}, inside a command or a transaction of {}", self.path);
                self.push(Some(*offset), CUT, by.clone(), what);
            }
        }
    }

    fn push(&mut self, offset: Option<u64>, check: (Depth, &str), object: String, what: String) {
        self.findings.push(VerifyFinding { offset, ..problem(check, object, what, LOG_ADVICE) });
    }

    fn finish(mut self, record: &SegmentRecord, outcome: &mut Outcome) {
        let last = record.end.saturating_sub(1);
        let path = self.path.to_owned();
        if !self.failed {
            if self.splitter.safe_cut().0 != last {
                let at = self.splitter.safe_cut().0;
                let what = format!(
                    "its last safe place is offset {at}, it ends at {last}: inside a command or a transaction"
                );
                self.push(Some(at), STREAM, path.clone(), what);
            }
            if self.count != record.commands {
                let what = format!("it holds {} commands, its record says {}", self.count, record.commands);
                self.push(None, STREAM, path.clone(), what);
            }
            outcome.summary = Some(Summary {
                path,
                start: record.start,
                end: record.end,
                first_db: record.database,
                last_db: self.splitter.db(),
                first_sample: record.times.samples().first().copied(),
                last_sample: record.times.samples().last().copied(),
            });
        }
        outcome.findings.append(&mut self.findings);
    }
}

/// What does not fit between two segments of which the second begins where the first ends.
pub(super) fn seam(before: &Summary, after: &Summary) -> Vec<VerifyFinding> {
    let mut found = Vec::new();
    if before.end != after.start {
        return found;
    }
    if let (Some(left), Some(said)) = (before.last_db, after.first_db)
        && left != said
    {
        let what = format!(
            "it says that database {said} is selected where it begins, {} leaves {left}",
            before.path
        );
        found.push(VerifyFinding {
            offset: Some(after.start),
            ..problem(STREAM, &after.path, what, LOG_ADVICE)
        });
    }
    if let (Some(earlier), Some(later)) = (before.last_sample, after.first_sample)
        && later.contradicts(&earlier)
    {
        let what = format!("its times begin before those of {} end", before.path);
        let advice = "a server's clock was set back: moments around it can't be told apart";
        found.push(VerifyFinding {
            offset: Some(after.start),
            ..super::findings::finding(slotkeep_format::Severity::Warning, TIME, &after.path, what, advice)
        });
    }
    found
}
