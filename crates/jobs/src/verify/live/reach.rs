//! How the log in the repository comes to where the cluster was captured.
//!
//! An archive that runs brings it there by itself, within the time after which it seals: it is waited for. Where none was heard of for a
//! while, the log is continued by this run, beginning before the capture, as a capture may take longer than the servers' backlogs reach
//! back. Only segments of the log come to the repository; no backup is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use slotkeep_format::manifest::ShardCut;
use slotkeep_model::ReplId;
use slotkeep_repo::{Area, Repository, SegmentEntry};

use super::LiveOptions;
use crate::archive::SealPolicy;
use crate::backup::{BackupOptions, BackupPlan, Continuation};
use crate::cut::CutOptions;
use crate::{Context, ErrorKind, Result};

/// An archive seals at the latest so long after a byte, or a few of its pieces later; one that was not heard of for longer does not run.
const HEARD_WITHIN: Duration = Duration::from_secs(150);
/// How often the log is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many bytes of log may wait on the disk here.
const SPOOL_LIMIT_BYTES: u64 = 4 << 30;

/// The way there.
pub(super) struct Reach<'a> {
    context: &'a Context,
    repository: &'a Repository,
    plan: &'a BackupPlan,
    options: BackupOptions,
    wait: Duration,
    continuation: Option<Continuation>,
    /// Whether an archive brought the log there.
    archived: bool,
}

impl<'a> Reach<'a> {
    /// Makes ready, before the cluster is captured. Fails with [`ErrorKind::Gap`] if no archive runs and the log can't be continued.
    pub(super) async fn begin(
        context: &'a Context,
        repository: &'a Repository,
        cluster: &str,
        plan: &'a BackupPlan,
        (live, spool): (&LiveOptions, &Path),
    ) -> Result<Self> {
        let options = BackupOptions {
            cluster: cluster.to_owned(),
            jobs: plan.shards.len(),
            jobs_per_host: plan.shards.len(),
            prefer: live.prefer,
            include_secrets: false,
            // What is there to be followed, not ended at the base.
            cut: Some(CutOptions { barrier: None }),
            spool: spool.join("spool"),
            spool_limit_bytes: SPOOL_LIMIT_BYTES,
            seal: SealPolicy::default(),
        };
        let wait = live.wait;
        let mut reach =
            Self { context, repository, plan, options, wait, continuation: None, archived: false };
        if wait.is_zero() || !context.unless_stopped(reach.is_archived()).await? {
            reach.go_on().await?;
        }
        Ok(reach)
    }

    async fn go_on(&mut self) -> Result<()> {
        let started = Continuation::start(self.context, self.repository, self.plan, &self.options).await;
        let started = started.map_err(|error| match error.kind() {
            ErrorKind::Gap => error
                .context("the log in the repository does not lead to what the cluster holds now")
                .hint("let `slotkeep archive` run, or take a backup first"),
            _ => error,
        });
        self.continuation = Some(started?);
        Ok(())
    }

    /// Whether something has added to the log lately.
    async fn is_archived(&self) -> Result<bool> {
        let now_ms = self.context.clock.now().as_millisecond();
        let lately_ms = now_ms.saturating_sub(i64::try_from(HEARD_WITHIN.as_millis()).unwrap_or(i64::MAX));
        for history in self.repository.histories(&self.options.cluster).await? {
            let objects =
                self.repository.stored_objects(&self.options.cluster, Area::History(&history)).await?;
            let mut segments = objects.iter().filter(|object| SegmentEntry::of(&history, object).is_some());
            if segments.any(|segment| segment.modified_ms >= lately_ms) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until the repository holds the log up to these places, one for each shard in the order of their slots.
    pub(super) async fn complete(&mut self, cuts: &[ShardCut]) -> Result<()> {
        let context = self.context;
        if self.continuation.is_none() {
            self.archived = context.unless_stopped(self.wait_for_archive(cuts)).await?;
            if self.archived {
                return Ok(());
            }
            self.go_on().await?;
        }
        match &mut self.continuation {
            Some(continuation) => context.unless_stopped(continuation.complete(context, cuts)).await,
            None => Ok(()),
        }
    }

    /// Whether an archive brings the log there in time.
    async fn wait_for_archive(&self, cuts: &[ShardCut]) -> Result<bool> {
        let began = self.context.clock.elapsed();
        let mut left: BTreeMap<&ReplId, u64> = cuts.iter().map(|cut| (&cut.history, cut.offset)).collect();
        loop {
            let mut reached = Vec::new();
            for (history, offset) in &left {
                let segments = self.repository.segments(&self.options.cluster, history).await?;
                // Up to there, or farther: whether bytes are missing before it is found on the way there.
                if segments.iter().any(|segment| segment.start <= *offset && *offset < segment.end) {
                    reached.push((*history).clone());
                }
            }
            left.retain(|history, _| !reached.contains(history));
            if left.is_empty() {
                return Ok(true);
            }
            if self.context.clock.elapsed().saturating_sub(began) >= self.wait {
                return Ok(false);
            }
            self.context.clock.sleep(LOOK_EVERY).await;
        }
    }

    /// Ends what was begun; gives whether an archive brought the log there.
    pub(super) async fn end(self) -> Result<bool> {
        if let Some(continuation) = self.continuation {
            continuation.stop().await?;
        }
        Ok(self.archived)
    }
}
