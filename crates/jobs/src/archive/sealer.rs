//! From spool files to segments.
//!
//! Invariants: a file is deleted only when the repository holds what it held; a file is sealed up to its last safe cut, and what
//! lies behind that is asked for again from the server; a segment that is there already and whole is as good as one that was written. Where a line has a
//! lease, nothing counts as sealed before the lease was confirmed afterwards, and once it is lost nothing more is written for the line.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::{Effort, HistoryRecord, Parent, SpoolHeader, SpoolReader, SpoolRecord};
use slotkeep_model::ReplId;
use slotkeep_repo::{Problem, RepoError, Repository, SegmentEntry, SegmentMeta, SegmentWriter, StoredObject};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::held::contiguous;
use super::line::LineState;
use super::pack::Packed;
use super::scan::{scan_file, split, unreadable};
use super::share::TakenLease;
use super::spool::{ClosedFile, SpoolFolder};
use crate::{Context, Error, ErrorKind, Result};

const READ_BYTES: usize = 256 << 10;
/// How often a piece is cut at the most because damaged objects have its names.
const MOST_SPLITS: usize = 4;
/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How far a line has been sealed.
#[derive(Clone, Debug, Default)]
pub(crate) struct SealState {
    /// The end of the last segment, with its history.
    pub(crate) last: Option<(ReplId, u64)>,
    /// When that was, by the clock's [`crate::ports::Clock::elapsed`].
    pub(crate) at: Option<Duration>,
    /// Segments so far.
    pub(crate) segments: u64,
    /// What stands in the way now, if something does.
    pub(crate) trouble: Option<Arc<str>>,
}

/// What to do while the repository does not take segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Try again until it does, or the job is stopped.
    Persistent,
    /// Give up at the first failure.
    None,
}

/// Seals the files of one line, one after the other.
pub(crate) struct Sealer {
    pub(crate) context: Context,
    pub(crate) repository: Repository,
    pub(crate) folder: Arc<SpoolFolder>,
    pub(crate) patience: Patience,
    /// Cancelled when nothing more is to be sealed, not even what is on its way to the store. An archive seals what it has received; of a backup
    /// that the user stops nobody needs it.
    pub(crate) halt: CancellationToken,
    /// How the line stands, which knows of histories that it passed before they had a byte: no file is theirs.
    pub(crate) line: Option<watch::Receiver<LineState>>,
    /// The line's lease, where there are leases.
    pub(crate) lease: Option<Arc<TakenLease>>,
    /// Where files go that this line does not seal: they are settled by themselves.
    pub(crate) abandoned: Option<mpsc::UnboundedSender<PathBuf>>,
}

/// How it went with one file.
enum Outcome {
    /// The end of the segment, or nothing if the file held no whole command.
    Sealed(Option<(ReplId, u64)>),
    /// The lease is lost.
    Lost,
}

/// The way to a line's sealer.
pub(crate) struct SealerHandle {
    files: mpsc::UnboundedSender<ClosedFile>,
    /// Files that have been handed over and are not yet sealed.
    pub(crate) waiting: Arc<AtomicU64>,
    pub(crate) state: watch::Receiver<SealState>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl SealerHandle {
    /// Where closed files go. Their number is bounded: while some wait, pieces are cut by size alone, and all of them together are
    /// within the spool's limit.
    pub(crate) fn files(&self) -> mpsc::UnboundedSender<ClosedFile> {
        self.files.clone()
    }

    /// Waits until everything that was handed over is sealed or given up.
    pub(crate) async fn finish(self) -> Result<()> {
        drop(self.files);
        self.task
            .await
            .unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, format!("a worker ended: {error}"))))
    }
}

impl Sealer {
    /// Starts sealing.
    pub(crate) fn start(self) -> SealerHandle {
        let (files, queue) = mpsc::unbounded_channel();
        let (publish, state) = watch::channel(SealState::default());
        let waiting = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&waiting);
        let task = tokio::spawn(async move { self.run(queue, &publish, &count).await });
        SealerHandle { files, waiting, state, task }
    }

    async fn run(
        &self,
        mut queue: mpsc::UnboundedReceiver<ClosedFile>,
        publish: &watch::Sender<SealState>,
        waiting: &AtomicU64,
    ) -> Result<()> {
        let mut known = Histories { line: self.line.clone(), written: HashSet::new() };
        let mut outcome = Ok(true);
        while let Some(mut file) = queue.recv().await {
            waiting.store(1_u64.saturating_add(queue.len() as u64), Ordering::Relaxed);
            // After a failure the rest stays where it is, in order.
            if matches!(outcome, Ok(true)) {
                outcome = self.seal_in_time(&mut file, &mut known, publish).await;
            }
            if !matches!(outcome, Ok(true))
                && let Some(abandoned) = &self.abandoned
            {
                let _ = abandoned.send(file.path);
            }
            waiting.store(queue.len() as u64, Ordering::Relaxed);
        }
        outcome.map(drop)
    }

    /// Seals a file, however often it takes; false if the lease is lost.
    async fn seal_in_time(
        &self,
        file: &mut ClosedFile,
        known: &mut Histories,
        publish: &watch::Sender<SealState>,
    ) -> Result<bool> {
        let mut pause = FIRST_PAUSE;
        loop {
            let sealed = tokio::select! {
                sealed = Box::pin(self.seal(file, known)) => sealed,
                () = self.halt.cancelled() => return Err(Error::interrupted()),
            };
            let error = match sealed {
                Ok(Outcome::Lost) => return Ok(false),
                Ok(Outcome::Sealed(sealed)) => {
                    publish.send_modify(|state| {
                        state.trouble = None;
                        if let Some(sealed) = sealed {
                            state.last = Some(sealed);
                            state.segments = state.segments.saturating_add(1);
                            state.at = Some(self.context.clock.elapsed());
                        }
                    });
                    return Ok(true);
                }
                Err(error) => error,
            };
            publish.send_modify(|state| state.trouble = Some(error.to_string().into()));
            if self.patience == Patience::None || self.context.stop.is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, "a segment could not be stored; it is tried again");
            wait(&self.context, &self.context.stop, pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }
}

impl Sealer {
    /// Its pack is used once: while the repository takes nothing, packs are not kept in memory.
    async fn seal(&self, file: &mut ClosedFile, known: &mut Histories) -> Result<Outcome> {
        if let Some(lease) = &self.lease
            && !lease.may_write().await?
        {
            return Ok(Outcome::Lost);
        }
        let mut sealed = match file.packed.take() {
            Some(packed) => store_packed(&self.repository, *packed, known).await?,
            None => None,
        };
        if sealed.is_none() {
            sealed = store_file((&self.repository, &self.folder), &file.path, known, file.effort).await?;
        }
        if let Some(lease) = &self.lease
            && !lease.confirm().await?
        {
            return Ok(Outcome::Lost);
        }
        self.folder.remove(&file.path);
        Ok(Outcome::Sealed(sealed))
    }
}

/// Deals with a file that no line will seal: it is deleted if the repository has what it holds, whoever wrote that. Else it is sealed, if that is
/// `wanted`; segments may overlap, and these bytes may be the only ones there are. Says whether the file is gone.
pub(crate) async fn settle_file(
    (repository, folder): (&Repository, &SpoolFolder),
    path: &Path,
    wanted: bool,
    known: &WholeSegments,
) -> Result<bool> {
    if let Some((scanned, end)) = scan_file(path).await?
        && !is_held(repository, &scanned.header, end, known).await?
    {
        if !wanted {
            return Ok(false);
        }
        Box::pin(store_file((repository, folder), path, &mut Histories::default(), Effort::Usual)).await?;
    }
    folder.remove(path);
    Ok(true)
}

/// Which segments were found to be whole or not, as the store showed them then: a file that is tried again and again does not read them each time.
#[derive(Debug, Default)]
pub(crate) struct WholeSegments(Mutex<HashMap<String, (StoredObject, bool)>>);

impl WholeSegments {
    fn of(&self, segment: &SegmentEntry) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (stored, is_whole) = known.get(segment.path())?;
        (*stored == segment.stored()).then_some(*is_whole)
    }

    fn note(&self, segment: &SegmentEntry, is_whole: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(segment.path().to_owned(), (segment.stored(), is_whole));
    }
}

/// Whether whole segments hold everything from the header's start up to `end`. One that is damaged, or not of this repository's writers, holds nothing.
async fn is_held(
    repository: &Repository,
    header: &SpoolHeader,
    end: u64,
    known: &WholeSegments,
) -> Result<bool> {
    let mut segments = repository.segments(&header.cluster, &header.history).await?;
    segments.retain(|segment| segment.end > header.start && segment.start <= end);
    let covered = |segments: &[SegmentEntry]| {
        let ranges = segments.iter().map(|segment| (segment.start, segment.end));
        contiguous(ranges, header.start.saturating_sub(1)) >= end
    };
    if !covered(&segments) {
        return Ok(false);
    }
    let mut whole = Vec::new();
    for segment in segments {
        let is_whole = match known.of(&segment) {
            Some(is_whole) => is_whole,
            None => match read_whole(repository, &segment).await {
                Ok(()) => true,
                Err(error) if error.problem.is_spoiled() || matches!(error.problem, Problem::Missing) => {
                    false
                }
                Err(error) => return Err(error.into()),
            },
        };
        known.note(&segment, is_whole);
        if is_whole {
            whole.push(segment);
        }
    }
    Ok(covered(&whole))
}

/// Reads a segment that is there already, as what is in the spool may be the only copy else: some stores keep half of a write that broke. A machine
/// that only writes takes the store's word.
async fn read_whole(repository: &Repository, segment: &SegmentEntry) -> Result<(), RepoError> {
    if !repository.is_readable() {
        return Ok(());
    }
    let mut reader = repository.read_segment(segment).await?;
    while reader.next().await?.is_some() {}
    Ok(())
}

/// Whether a segment is stored.
enum Put {
    Stored,
    /// One of its name is there and is not whole: what is to be done about it.
    InTheWay(Error),
}

/// How it went with storing a segment. One that another wrote, or this agent before it was killed, is as good as ours if it is whole.
async fn outcome<T>(
    repository: &Repository,
    header: &SpoolHeader,
    range: Range<u64>,
    stored: Result<T, RepoError>,
) -> Result<Put> {
    match stored {
        Ok(_) => return Ok(Put::Stored),
        Err(RepoError { problem: Problem::Exists, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let segments = repository.segments(&header.cluster, &header.history).await?;
    let there = segments.iter().find(|segment| (segment.start, segment.end) == (range.start, range.end));
    // A listing that lags: the next try looks again.
    let missing = || Error::new(ErrorKind::Repository, "a segment that exists is not listed yet");
    let there = there.ok_or_else(missing)?;
    match read_whole(repository, there).await {
        Ok(()) => Ok(Put::Stored),
        // In the words themselves: a running archive tells no hints.
        Err(error) if error.problem.is_spoiled() => Ok(Put::InTheWay(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{error}; what it is to hold stays in the spool: delete that object by hand, and it is written anew, as nothing is ever overwritten"
            ),
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Waits about that long (between half of it and all of it), or until the job is stopped.
pub(crate) async fn wait(context: &Context, stop: &CancellationToken, pause: Duration) {
    let mut random = [0];
    // Without randomness all pauses are the same, which is no harm.
    let _ = context.rng.fill(&mut random);
    let part = u32::from(random.first().copied().unwrap_or_default());
    let jittered = pause / 2 + pause / 2 * part / 255;
    tokio::select! {
        () = context.clock.sleep(jittered) => {}
        () = stop.cancelled() => {}
    }
}

/// Which histories are written down already, and what else is known of where they come from.
#[derive(Default)]
struct Histories {
    line: Option<watch::Receiver<LineState>>,
    written: HashSet<ReplId>,
}

impl Histories {
    /// Writes down where a file's history comes from, and those before it, which may have ended before their first byte.
    async fn store(&mut self, repository: &Repository, header: &SpoolHeader) -> Result<()> {
        let before = header.parent.iter().zip(&self.line);
        let passed = before.flat_map(|(parent, line)| line.borrow().lineage.back_to(&parent.history, None));
        let mut records: Vec<HistoryRecord> =
            passed.map(|(history, parent)| history_record(header, &history, Some(parent))).collect();
        records.push(history_record(header, &header.history, header.parent.clone()));
        for record in records {
            if !self.written.contains(&record.history) {
                repository.put_history(&header.cluster, &record).await?;
                self.written.insert(record.history);
            }
        }
        Ok(())
    }
}

/// Stores a segment that was packed while its file was written; gives its end, or nothing if one of its name is in the way: its file can be stored
/// in pieces.
async fn store_packed(
    repository: &Repository,
    packed: Packed,
    known: &mut Histories,
) -> Result<Option<(ReplId, u64)>> {
    let header = &packed.header;
    known.store(repository, header).await?;
    let meta = SegmentMeta {
        database: header.database,
        commands: packed.commands,
        source: header.source.clone(),
        server: header.server.clone(),
        times: packed.times,
    };
    let range = header.start..packed.end.saturating_add(1);
    let put = repository.put_segment(&header.cluster, &header.history, range.clone(), packed.pack, meta);
    let stored = put.await;
    Ok(match outcome(repository, header, range, stored).await? {
        Put::Stored => Some((header.history.clone(), packed.end)),
        Put::InTheWay(_) => None,
    })
}

/// Stores what a file holds as a segment; gives the segment's end, or nothing if the file holds no whole command. Where one of that name is there and
/// is not whole, it is stored as smaller ones: nothing is overwritten, and these bytes are not to wait until somebody deletes it. A store that keeps half of
/// whatever it is given is not given ever more.
async fn store_file(
    (repository, folder): (&Repository, &SpoolFolder),
    path: &Path,
    known: &mut Histories,
    effort: Effort,
) -> Result<Option<(ReplId, u64)>> {
    // Never closed.
    let _turn = folder.reading.acquire().await;
    let Some((scanned, end)) = scan_file(path).await? else { return Ok(None) };
    let header = &scanned.header;
    known.store(repository, header).await?;
    let mut open = vec![(scanned.beginning(), scanned.reached(end))];
    let mut splits = 0;
    while let Some((from, to)) = open.pop() {
        let range = from.offset.saturating_add(1)..to.offset.saturating_add(1);
        let created = repository.create_segment_with(&header.cluster, &header.history, range.clone(), effort);
        let stored = match created.await {
            Ok(mut segment) => {
                write(&mut segment, path, (header.start, &range)).await?;
                let meta = SegmentMeta {
                    database: from.database,
                    commands: to.commands.saturating_sub(from.commands),
                    source: header.source.clone(),
                    server: header.server.clone(),
                    times: scanned.times_between(from, to),
                };
                segment.finish(meta).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Put::InTheWay(why) = outcome(repository, header, range, stored).await? {
            let middle = if splits < MOST_SPLITS { split(path, (from, to)).await? } else { None };
            let middle = middle.ok_or(why)?;
            splits += 1;
            open.extend([(middle, to), (from, middle)]);
        }
    }
    Ok(Some((header.history.clone(), end)))
}

/// Writes those bytes of a file that begins with that offset.
async fn write(segment: &mut SegmentWriter, path: &Path, (start, range): (u64, &Range<u64>)) -> Result<()> {
    let unreadable = |error: std::io::Error| unreadable(path, &error);
    let mut source = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut reader = SpoolReader::default();
    let mut at = start;
    while at < range.end {
        let read = source.read(&mut buffer).await.map_err(unreadable)?;
        if read == 0 {
            break;
        }
        reader.feed(buffer.get(..read).unwrap_or_default());
        while let Ok(Some(record)) = reader.record() {
            let SpoolRecord::Bytes(bytes) = record else { continue };
            let within = |offset: u64| {
                usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len())
            };
            let wanted = bytes.get(within(range.start)..within(range.end)).unwrap_or_default();
            segment.write(wanted).await?;
            at = at.saturating_add(bytes.len() as u64);
        }
    }
    Ok(())
}

pub(crate) fn history_record(
    header: &SpoolHeader,
    history: &ReplId,
    parent: Option<Parent>,
) -> HistoryRecord {
    HistoryRecord {
        format_version: HISTORY_VERSION,
        history: history.clone(),
        parent,
        slots: header.slots.clone(),
        source: header.source.clone(),
        first_seen_at: header.begun_at,
    }
}

#[cfg(test)]
#[path = "sealer_tests.rs"]
mod tests;
