//! Leases in the store. The rules are in [`slotkeep_format::lease`]; here they meet requests that may fail.
//!
//! Invariants: a store that ignores conditions is refused; a record counts as ours only when it has been confirmed to be the newest. Old
//! records are removed, but so many stay that nobody takes a number that was used for a free one, unless it slept through all of them.

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::{LeaseClaim, LeaseRecord, LeaseStep};

use crate::error::{Problem, RepoError};
use crate::layout;
use crate::repository::Repository;

/// How many records stay behind the newest.
const KEPT_RECORDS: u64 = 100;

/// How a process stands to a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the lease under this epoch, and is to be asked again before that moment of its own clock.
    Held {
        /// The epoch.
        epoch: u64,
        /// When to call [`Lease::step`] again, in ms.
        until_ms: u64,
    },
    /// Another holds it, or it is not known who does.
    Waiting {
        /// When to call [`Lease::step`] again, in ms.
        until_ms: u64,
    },
}

/// One process's side of a lease.
pub struct Lease {
    repository: Repository,
    folder: Path,
    claim: LeaseClaim,
}

impl Repository {
    /// Wants the lease of that name of a cluster. `holder` must be unique to this process: random. Refused where the store ignores conditions: there
    /// two processes can't be kept apart.
    pub fn lease(
        &self,
        cluster: &str,
        name: &str,
        holder: String,
        duration_ms: u64,
    ) -> Result<Lease, RepoError> {
        let folder = layout::lease(cluster, name);
        if !self.refuses_overwrite() {
            return Err(RepoError::new("take", folder, Problem::NoConditions));
        }
        Ok(Lease { repository: self.clone(), folder, claim: LeaseClaim::new(holder, duration_ms) })
    }
}

impl Lease {
    /// Looks, and takes or renews the lease if it is time. `now_ms` is this process's own clock, which never runs backwards. After an error
    /// nothing is held that was not held before, and the next call looks anew.
    pub async fn step(&mut self, now_ms: &(dyn Fn() -> u64 + Sync)) -> Result<Standing, RepoError> {
        if let (LeaseStep::Wait { until_ms }, Some(held)) =
            (self.claim.next(now_ms()), self.claim.held(now_ms()))
        {
            return Ok(Standing::Held { epoch: held.epoch, until_ms });
        }
        let newest = self.newest().await?;
        self.claim.observe(newest, now_ms());
        let record = match self.claim.next(now_ms()) {
            LeaseStep::Wait { until_ms } => return Ok(Standing::Waiting { until_ms }),
            LeaseStep::Create(record) => record,
        };
        let sent_ms = now_ms();
        let created = self.create(&record).await;
        match created {
            Ok(true) => {}
            Ok(false) => {
                self.claim.lost();
                return Ok(Standing::Waiting { until_ms: now_ms() });
            }
            Err(error) => {
                self.claim.lost();
                return Err(error);
            }
        }
        let epoch = record.epoch;
        self.remove_before(record.number).await;
        self.claim.created(record, sent_ms);
        match (self.claim.next(now_ms()), self.claim.held(now_ms())) {
            (LeaseStep::Wait { until_ms }, Some(_)) => Ok(Standing::Held { epoch, until_ms }),
            // It took so long that the time is over already.
            _ => Ok(Standing::Waiting { until_ms: now_ms() }),
        }
    }

    /// Whether this process holds the lease by its own clock: enough to begin something. What was written counts only when [`Lease::confirm`] says
    /// so.
    pub fn epoch(&self, now_ms: u64) -> Option<u64> {
        self.claim.held(now_ms).map(|record| record.epoch)
    }

    /// Whether nobody has taken the lease over, asked of the store. What was written under `epoch` before a call that gives true counts, and whoever
    /// takes over later sees it; after false, or an error, it is not known, and must not be acknowledged.
    pub async fn confirm(&mut self, epoch: u64) -> Result<bool, RepoError> {
        let newest = self.newest().await?;
        let ours = newest.is_some_and(|newest| self.claim.is_ours(&newest) && newest.epoch == epoch);
        if !ours {
            self.claim.lost();
        }
        Ok(ours)
    }

    /// Gives the lease up, so that nobody needs to wait.
    pub async fn release(mut self) -> Result<(), RepoError> {
        match self.claim.release() {
            Some(record) => self.create(&record).await.map(drop),
            None => Ok(()),
        }
    }

    /// Creates a record; false if another has that number, or a later one.
    async fn create(&self, record: &LeaseRecord) -> Result<bool, RepoError> {
        let path = layout::lease_record(&self.folder, record.number);
        let json = record.render().map_err(|error| RepoError::new("write", &path, error))?;
        match self.repository.create(&path, json.into()).await {
            Ok(()) => Ok(self.newest().await?.as_ref() == Some(record)),
            Err(RepoError { problem: Problem::Exists, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn numbers(&self) -> Result<Vec<u64>, RepoError> {
        let listed = self.repository.store.list(Some(&self.folder));
        let objects: Vec<_> =
            listed.try_collect().await.map_err(|error| RepoError::new("list", &self.folder, error))?;
        let names = objects.iter().filter_map(|object| object.location.filename());
        Ok(names.filter_map(layout::lease_number).collect())
    }

    async fn newest(&self) -> Result<Option<LeaseRecord>, RepoError> {
        let Some(number) = self.numbers().await?.into_iter().max() else { return Ok(None) };
        let path = layout::lease_record(&self.folder, number);
        let failed = |problem| RepoError::new("read", &path, problem);
        let found = self.repository.store.get(&path).await.map_err(|error| failed(error.into()))?;
        let bytes = found.bytes().await.map_err(|error| failed(error.into()))?;
        let record = LeaseRecord::parse(&bytes).map_err(|error| failed(error.into()))?;
        if record.number == number {
            return Ok(Some(record));
        }
        Err(failed(Problem::Damaged(format!("it says it is number {}", record.number))))
    }

    /// Removes records that nobody needs; what can't be removed is removed after a later renewal.
    async fn remove_before(&self, newest: u64) {
        let Some(last) = newest.checked_sub(KEPT_RECORDS) else { return };
        let Ok(mut numbers) = self.numbers().await else { return };
        numbers.retain(|number| *number <= last);
        numbers.sort_unstable();
        for number in numbers {
            let path = layout::lease_record(&self.folder, number);
            if self.repository.store.delete(&path).await.is_err() {
                return;
            }
        }
    }
}
