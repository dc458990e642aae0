//! The log behind what a repository holds already, continued for a while: as an incremental backup does, but no backup is written.
//!
//! Invariant: only whole segments are added to the repository, each of them a piece of the servers' streams, and where histories come from; nothing
//! that is listed changes.

use std::sync::Arc;

use slotkeep_format::manifest::{BackupKind, ShardCut};
use slotkeep_repo::Repository;

use super::commit::put_histories;
use super::{BackupOptions, BackupPlan, CUT_LIMIT, Run, find_held};
use crate::archive::fleet::Fleet;
use crate::archive::held::Lead;
use crate::archive::line::Shared;
use crate::progress::ShardProgress;
use crate::{Context, Error, ErrorKind, Result};

/// A log that is being continued.
pub(crate) struct Continuation {
    fleet: Fleet,
}

impl Continuation {
    /// Begins to follow every shard of the plan from where the log in the repository ends. Fails with [`ErrorKind::Gap`] if no backup leads
    /// to what the servers follow now, or if a server can't continue from there.
    pub(crate) async fn start(
        context: &Context,
        repository: &Repository,
        plan: &BackupPlan,
        options: &BackupOptions,
    ) -> Result<Self> {
        let held = context.unless_stopped(find_held(context, repository, plan, options)).await?;
        let run = Run::begin(context, repository, plan, options)?;
        let own = Context { stop: context.stop.child_token(), ..context.clone() };
        let shared = Arc::new(run.shared(own, BackupKind::Incremental)?);
        let mut continuation = Self { fleet: Fleet::new(shared) };
        for (shard, held) in plan.shards.iter().zip(held) {
            let progress = ShardProgress::new(format!("slots {}", shard.shard.slots));
            continuation.fleet.add(shard.shard.clone(), Lead::from(held), progress, Default::default());
        }
        match continuation.fleet.until_following().await {
            Ok(()) => Ok(continuation),
            Err(error) => {
                // The first error is the one to report.
                let _ = continuation.stop().await;
                Err(error)
            }
        }
    }

    /// Waits until the repository holds everything up to these cuts, one for each shard of the plan, in its order.
    pub(crate) async fn complete(&mut self, context: &Context, cuts: &[ShardCut]) -> Result<()> {
        let complete = tokio::select! {
            complete = self.fleet.until_complete(cuts) => complete?,
            () = context.clock.sleep(CUT_LIMIT) => false,
        };
        if complete {
            let Shared { repository, cluster, .. } = &*self.fleet.shared;
            for (line, cut) in self.fleet.lines.iter().zip(cuts) {
                let Some(base) = line.base() else { continue };
                let histories = line.histories(&base, cut);
                put_histories(context, repository, cluster, (&line.shard(), &histories)).await?;
            }
            return Ok(());
        }
        Err(Error::new(ErrorKind::Gap, "the log could not be brought to where the cluster was captured")
            .hint("run it again when no failover is under way"))
    }

    /// Ends it. What was followed to a boundary between commands stays in the repository.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.fleet.stop().await
    }
}
