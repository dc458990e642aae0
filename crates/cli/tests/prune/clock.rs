//! Days that pass without waiting for them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use slotkeep_format::RetentionPolicy;
use slotkeep_jobs::ports::{Clock, SystemClock};
use slotkeep_jobs::prune::{PruneOptions, PrunePlan, PruneReport};
use slotkeep_jobs::{Context, Result};
use slotkeep_repo::Repository;

use crate::harness;

/// This machine's clock, some hours ahead.
struct Ahead(SystemClock, i64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        self.0.now() + SignedDuration::from_hours(self.1)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

pub(crate) fn context(hours: i64) -> Context {
    Context { clock: Arc::new(Ahead(SystemClock::new(), hours)), ..harness::context() }
}

pub(crate) fn options(policy: &RetentionPolicy) -> PruneOptions {
    PruneOptions {
        cluster: "main".to_owned(),
        policy: policy.clone(),
        grace: SignedDuration::from_hours(24),
        // Here the days pass by the one clock alone.
        clock_tolerance: None,
    }
}

pub(crate) fn last(last: usize) -> RetentionPolicy {
    RetentionPolicy { last, ..RetentionPolicy::default() }
}

pub(crate) fn plan(repository: &Repository, policy: &RetentionPolicy, hours: i64) -> PrunePlan {
    harness::RUNTIME.block_on(PrunePlan::make(&context(hours), repository, &options(policy))).unwrap()
}

pub(crate) fn act(repository: &Repository, plan: &PrunePlan, hours: i64) -> Result<PruneReport> {
    harness::RUNTIME.block_on(plan.run(&context(hours), repository))
}

/// Prunes so many hours from now.
#[track_caller]
pub(crate) fn prune(repository: &Repository, policy: &RetentionPolicy, hours: i64) -> PruneReport {
    act(repository, &plan(repository, policy, hours), hours).unwrap()
}
