//! Pieces in the spool that no line has written in this run: of an earlier run, and of lines that are another agent's now.
//!
//! Whoever took a line over has asked the server for the same bytes, if the server had them still. So what the repository holds by now is deleted; what
//! it does not is sealed, whoever has the line: these bytes may be the only ones there are, and segments may overlap.
//!
//! Invariants: no shard waits for a repository that is slow; a file is one task's at a time; files that go on where a line's log ends are sealed by that line,
//! before what it receives, and it asks the server for what comes behind them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::Parent;
use slotkeep_model::ReplId;
use slotkeep_repo::Repository;
use slotkeep_wire::info::Replication;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::decide::Position;
use super::scan::scan_file;
use super::sealer::{WholeSegments, settle_file, wait};
use super::spool::SpoolFolder;
use super::status::{Board, NoticeKind};
use super::supervise::Supervisor;
use crate::{Context, Error, ErrorKind, Result};

/// How many files of an earlier run are sealed at a time.
const SEALS_IN_FLIGHT: usize = 4;
/// How long sealing them may take before shards are followed beside it.
const FIRST_LIMIT: Duration = Duration::from_secs(5);
/// How often files that no line will seal are looked at, and for how long their successor is given time to hold the same.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
const SETTLE_AFTER: Duration = Duration::from_secs(60);
/// For so long, at the end.
const END_LIMIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A file of an earlier run, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) path: PathBuf,
    pub(crate) history: ReplId,
    /// Where that history comes from, if its writer knew.
    pub(crate) parent: Option<Parent>,
    /// Its first byte.
    start: u64,
    /// Its last safe cut.
    end: u64,
    /// The database selected there, if it is known.
    database: Option<u32>,
}

impl Leftover {
    /// Nothing if it can't be read, or holds no whole command.
    async fn of(path: PathBuf) -> Option<Self> {
        let (scanned, end) = scan_file(&path).await.ok()??;
        let (header, database) = (scanned.header, scanned.database);
        Some(Self {
            path,
            history: header.history,
            parent: header.parent,
            start: header.start,
            end,
            database,
        })
    }

    /// Where a line goes on behind it.
    pub(crate) fn reached(&self) -> Position {
        Position { history: self.history.clone(), offset: self.end, database: self.database }
    }

    /// Whether what it holds goes on from there.
    fn goes_on_from(&self, at: &Position) -> bool {
        let joins = self.start <= at.next_offset() && self.end > at.offset;
        let forks = self.parent.as_ref().is_some_and(|parent| {
            parent.history == at.history && parent.fork == at.offset && self.start == at.next_offset()
        });
        forks || (joins && self.history == at.history)
    }
}

/// Takes out the files that go on from that place, one behind the other, in the histories that the server can go on in. Where a history forks, the line
/// went on in the new one.
fn take_next(files: &mut Vec<Leftover>, from: &Position, followed: &[&ReplId]) -> Vec<Leftover> {
    let (mut at, mut taken) = (from.clone(), Vec::new());
    loop {
        let fitting = files
            .iter()
            .enumerate()
            .filter(|(_, file)| followed.contains(&&file.history) && file.goes_on_from(&at));
        let next = fitting.min_by_key(|(_, file)| (file.history == at.history, file.start));
        let Some(number) = next.map(|(number, _)| number) else { return taken };
        let file = files.remove(number);
        at = file.reached();
        taken.push(file);
    }
}

/// What an earlier run left.
#[derive(Default)]
pub(super) struct Left {
    /// All its files.
    files: Vec<PathBuf>,
    /// What those hold that a line may go on from.
    leftovers: Vec<Leftover>,
}

impl Left {
    async fn of(files: Vec<PathBuf>) -> Self {
        let read = futures::stream::iter(files.clone()).map(Leftover::of);
        let leftovers = read.buffered(SEALS_IN_FLIGHT).filter_map(async |left| left).collect().await;
        Self { files, leftovers }
    }
}

/// Seals what an earlier run left, as far as the repository takes it soon; gives what is still there then.
pub(super) async fn seal_leftovers(
    context: &Context,
    repository: &Repository,
    folder: &SpoolFolder,
    board: &Board,
    lease_time: Duration,
) -> Result<Left> {
    let seals = futures::stream::iter(folder.leftovers()?).map(|file| async move {
        let (mut pause, known) = (FIRST_PAUSE, WholeSegments::default());
        while let Err(error) = settle_file((repository, folder), &file, true, &known).await {
            board.pin(NoticeKind::Trouble, None, cannot_seal("what an earlier run left", &error));
            if context.stop.is_cancelled() {
                return;
            }
            wait(context, &context.stop, pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    });
    let all = seals.buffer_unordered(SEALS_IN_FLIGHT).collect::<Vec<()>>();
    // Others leave shards for an agent that they see, for a lease time.
    let limit = FIRST_LIMIT.min(lease_time / 2);
    let sealed = context.within(limit, context.unless_stopped(async { Ok(all.await) })).await;
    if matches!(sealed, Some(Ok(_))) || context.stop.is_cancelled() {
        return Ok(Left::default());
    }
    Ok(Left::of(folder.leftovers()?).await)
}

fn cannot_seal(what: &str, error: &Error) -> String {
    format!("{what} can't be sealed yet: {error}")
}

/// A file that no line will seal.
struct Waiting {
    path: PathBuf,
    /// Since when.
    since: Duration,
    /// When it is looked at again.
    next_at: Duration,
    /// How much later, if that fails.
    pause: Duration,
}

impl Waiting {
    const fn new(path: PathBuf, now: Duration) -> Self {
        Self { path, since: now, next_at: now.saturating_add(SETTLE_EVERY), pause: SETTLE_EVERY }
    }

    fn looked_at(&mut self, now: Duration, failed: bool) {
        self.pause = if failed { self.pause.saturating_mul(2).min(LONGEST_PAUSE) } else { SETTLE_EVERY };
        self.next_at = now.saturating_add(self.pause);
    }
}

/// A file that was dealt with, and why that failed, if it did.
type Settled = (PathBuf, Option<Error>);

/// Files that no line will seal.
pub(super) struct Abandoned {
    files: Vec<Waiting>,
    /// Those among them that a line may still go on from.
    leftovers: Vec<Leftover>,
    queue: mpsc::UnboundedReceiver<PathBuf>,
    /// What was found out for them.
    known: Arc<WholeSegments>,
    /// What deals with them just now.
    task: Option<AbortOnDropHandle<Vec<Settled>>>,
}

impl Abandoned {
    pub(super) fn new(queue: mpsc::UnboundedReceiver<PathBuf>, left: Left, now: Duration) -> Self {
        let files = left.files.into_iter().map(|path| Waiting::new(path, now)).collect();
        Self { files, leftovers: left.leftovers, queue, known: Arc::default(), task: None }
    }

    fn take_in(&mut self, now: Duration) {
        while let Ok(file) = self.queue.try_recv() {
            self.files.push(Waiting::new(file, now));
        }
    }

    /// Stops what deals with the files, so that each is nobody's.
    async fn interrupt(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // What it had done is seen by what is there.
            let _ = task.await;
        }
        self.forget_the_gone();
    }

    fn forget_the_gone(&mut self) {
        self.files.retain(|file| file.path.exists());
        self.leftovers.retain(|left| left.path.exists());
    }

    /// Takes out what a line seals that goes on from there, if its server can go on behind that: what an earlier run received of a primary that is none
    /// any more is no way for a line.
    pub(super) async fn take_next(&mut self, from: &Position, server: &Replication) -> Vec<Leftover> {
        if self.leftovers.is_empty() {
            return Vec::new();
        }
        self.interrupt().await;
        let followed: Vec<&ReplId> = std::iter::once(&server.replid).chain(&server.previous_replid).collect();
        let taken = take_next(&mut self.leftovers, from, &followed);
        self.files.retain(|file| taken.iter().all(|left| left.path != file.path));
        taken
    }
}

impl Supervisor<'_> {
    /// Deals with what no line of this run will seal, beside everything else.
    pub(super) async fn settle_abandoned(&mut self) {
        let now = self.context.clock.elapsed();
        self.abandoned.take_in(now);
        if let Some(task) = self.abandoned.task.take_if(|task| task.is_finished()) {
            for (path, error) in task.await.unwrap_or_default() {
                if let Some(file) = self.abandoned.files.iter_mut().find(|file| file.path == path) {
                    file.looked_at(now, error.is_some());
                }
                if let Some(error) = error {
                    self.cannot_settle(&error);
                }
            }
            self.abandoned.forget_the_gone();
        }
        if self.abandoned.task.is_some() {
            return;
        }
        let due = self.abandoned.files.iter().filter(|file| file.next_at <= now);
        let files: Vec<(PathBuf, bool)> =
            due.map(|file| (file.path.clone(), now.saturating_sub(file.since) >= SETTLE_AFTER)).collect();
        if files.is_empty() {
            return;
        }
        let (repository, folder) = (self.shared.repository.clone(), Arc::clone(&self.shared.folder));
        let known = Arc::clone(&self.abandoned.known);
        let settling = async move {
            let mut settled = Vec::new();
            for (file, wanted) in files {
                let failed = settle_file((&repository, &folder), &file, wanted, &known).await.err();
                settled.push((file, failed));
            }
            settled
        };
        self.abandoned.task = Some(AbortOnDropHandle::new(tokio::spawn(settling)));
    }

    /// Seals at the end what nobody has sealed, as far as the repository takes it at once.
    pub(super) async fn settle_at_the_end(&mut self) {
        let now = self.context.clock.elapsed();
        self.abandoned.take_in(now);
        self.abandoned.interrupt().await;
        let files = std::mem::take(&mut self.abandoned.files);
        let (repository, folder) = (&self.shared.repository, &self.shared.folder);
        let mut failed = Vec::new();
        let settling = async {
            for file in files {
                let settled = settle_file((repository, folder), &file.path, true, &self.abandoned.known);
                let Err(error) = settled.await else { continue };
                // What one file holds, or what is in its way, says nothing of the others.
                let goes_on = matches!(error.kind(), ErrorKind::Failed | ErrorKind::Corrupt);
                failed.push(error);
                if !goes_on {
                    break;
                }
            }
        };
        // Leases are still to be given up, and whoever stops agents does not wait for ever.
        let in_time = self.context.within(END_LIMIT, settling).await.is_some();
        for error in &failed {
            self.cannot_settle(error);
        }
        if !in_time {
            let words = format!("the repository did not take it in {} s", END_LIMIT.as_secs());
            self.cannot_settle(&Error::new(ErrorKind::Repository, words));
        }
    }

    fn cannot_settle(&mut self, error: &Error) {
        self.trouble_in_words(cannot_seal("what a former line left", error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(letter: &str) -> ReplId {
        letter.repeat(40).parse().unwrap()
    }

    fn file(history: &str, start: u64, end: u64) -> Leftover {
        let path = format!("{history}-{start}").into();
        Leftover { path, history: id(history), parent: None, start, end, database: Some(3) }
    }

    fn at(history: &str, offset: u64) -> Position {
        Position { history: id(history), offset, database: None }
    }

    #[test]
    fn a_line_takes_what_goes_on_from_where_its_log_ends() {
        let fork = Some(Parent { history: id("a"), fork: 40 });
        let forked = Leftover { parent: fork, ..file("b", 41, 50) };
        let all = [
            file("c", 21, 30),
            // Ends before the log does, like what is held already.
            file("a", 1, 15),
            file("a", 11, 25),
            file("a", 26, 40),
            // What this agent received of a primary that was given up.
            file("a", 41, 45),
            forked.clone(),
            file("b", 51, 60),
            // Behind a gap.
            file("b", 70, 80),
        ];
        let mut files = all.to_vec();
        let (a, b) = (id("a"), id("b"));
        let taken = take_next(&mut files, &at("a", 20), &[&b, &a]);
        assert_eq!(taken, [all[2].clone(), all[3].clone(), forked, all[6].clone()]);
        assert_eq!(files, [all[0].clone(), all[1].clone(), all[4].clone(), all[7].clone()]);
        assert_eq!(taken.last().unwrap().reached(), Position { database: Some(3), ..at("b", 60) });
        assert_eq!(take_next(&mut files, &at("b", 60), &[&b, &a]), []);
        assert_eq!(take_next(&mut files, &at("d", 20), &[&id("d")]), []);
        // The server still goes on in the old history: what came of another node meanwhile is no way there.
        let mut files = all.to_vec();
        let taken = take_next(&mut files, &at("a", 20), &[&a]);
        assert_eq!(taken, [all[2].clone(), all[3].clone(), all[4].clone()]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        // Its bytes can't be read: it is none.
        let path = folder.path().join("a.spool");
        std::fs::create_dir(&path).unwrap();
        let left = Left::of(vec![path.clone()]).await;
        assert!(left.leftovers.is_empty());
        let abandoned = Abandoned::new(mpsc::unbounded_channel().1, left, Duration::ZERO);
        assert!(abandoned.files.iter().map(|file| &file.path).eq([&path]));
    }

    #[test]
    fn what_fails_is_tried_again_with_growing_pauses() {
        let seconds = Duration::from_secs;
        let mut file = Waiting::new("a".into(), seconds(100));
        assert_eq!(file.next_at, seconds(105));
        for pause in [10, 20, 30, 30] {
            let now = file.next_at;
            file.looked_at(now, true);
            assert_eq!(file.next_at, now + seconds(pause));
        }
        file.looked_at(seconds(300), false);
        assert_eq!(file.next_at, seconds(305));
    }
}
