//! Pieces in the spool that no line will seal: of an earlier run, and of lines that are another agent's now.
//!
//! Whoever took a line over has asked the server for the same bytes, if the server had them still. So what the repository holds by now is deleted; what
//! it does not is sealed, whoever has the line: these bytes may be the only ones there are, and segments may overlap.

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use slotkeep_repo::Repository;
use tokio::sync::mpsc;

use super::sealer::{settle_file, wait};
use super::spool::SpoolFolder;
use super::status::{Board, NoticeKind};
use super::supervise::Supervisor;
use crate::{Context, Result};

/// How many files of an earlier run are sealed at a time.
const SEALS_IN_FLIGHT: usize = 4;
/// How often files that no line will seal are looked at, and for how long their successor is given time to hold the same.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
const SETTLE_AFTER: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Seals what an earlier run left, however long the repository takes.
pub(super) async fn seal_leftovers(
    context: &Context,
    repository: &Repository,
    folder: &SpoolFolder,
    board: &Board,
) -> Result<()> {
    let files = futures::stream::iter(folder.leftovers()?).map(|file| async move {
        let mut pause = FIRST_PAUSE;
        loop {
            match settle_file(repository, folder, &file, true).await {
                Ok(_) => return Ok(()),
                Err(error) if context.stop.is_cancelled() => return Err(error),
                Err(error) => {
                    let words = format!("what an earlier run left can't be sealed yet: {error}");
                    board.pin(NoticeKind::Trouble, None, words);
                }
            }
            wait(context, &context.stop, pause).await;
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    });
    let outcomes: Vec<Result<()>> = files.buffer_unordered(SEALS_IN_FLIGHT).collect().await;
    outcomes.into_iter().collect()
}

/// Files that no line will seal.
pub(super) struct Abandoned {
    files: Vec<(PathBuf, Duration)>,
    queue: mpsc::UnboundedReceiver<PathBuf>,
    looked_at: Duration,
}

impl Abandoned {
    pub(super) const fn new(queue: mpsc::UnboundedReceiver<PathBuf>) -> Self {
        Self { files: Vec::new(), queue, looked_at: Duration::ZERO }
    }
}

impl Supervisor<'_> {
    /// Deals with what lines left that are not this agent's any more.
    pub(super) async fn settle_abandoned(&mut self) {
        let now = self.context.clock.elapsed();
        while let Ok(file) = self.abandoned.queue.try_recv() {
            self.abandoned.files.push((file, now));
        }
        if now.saturating_sub(self.abandoned.looked_at) < SETTLE_EVERY {
            return;
        }
        self.abandoned.looked_at = now;
        self.settle(|since| now.saturating_sub(since) >= SETTLE_AFTER).await;
    }

    /// Deletes what others hold by now; seals what they don't if that is wanted of a file of that age.
    pub(super) async fn settle(&mut self, wanted: impl Fn(Duration) -> bool) {
        for (file, since) in std::mem::take(&mut self.abandoned.files) {
            let settled =
                settle_file(&self.shared.repository, &self.shared.folder, &file, wanted(since)).await;
            match settled {
                Ok(true) => {}
                Ok(false) => self.abandoned.files.push((file, since)),
                Err(error) => {
                    self.trouble("what a former line left can't be sealed yet", &error);
                    self.abandoned.files.push((file, since));
                }
            }
        }
    }
}
