//! Leases in the store. The rules are in [`slotkeep_format::lease`]; here they meet requests that may fail.
//!
//! Invariants: a store that ignores conditions is refused, but for the presence of an agent, whose lease nobody else wants; a record counts as
//! ours only when it has been confirmed to be the newest. Old records are removed, but never the newest of a lease of a line: its number
//! would be taken anew.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions};
use slotkeep_format::lease::{Holder, LeaseClaim, LeaseNote, LeaseRecord, LeaseStep, presence_name};

use crate::error::{Problem, RepoError};
use crate::layout;
use crate::repository::Repository;

/// How many records stay behind the newest.
const KEPT_RECORDS: u64 = 20;

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
    /// Another process that is the same agent has taken it: two of them run.
    Double,
}

/// One process's side of a lease that is renewed.
pub struct Lease {
    run: Run,
    claim: LeaseClaim,
}

/// A lease that is not renewed, and that this process has taken: it is its own until somebody writes the next record.
#[derive(Debug)]
pub struct Hold {
    run: Run,
    record: LeaseRecord,
}

/// Where the records of a lease lie.
#[derive(Debug)]
struct Run {
    repository: Repository,
    folder: Path,
}

impl Repository {
    /// Wants the lease of that name of a cluster. The holder's process must be this process's alone: random. Refused where the store
    /// ignores conditions: there two processes can't be kept apart.
    pub fn lease(&self, cluster: &str, name: &str, holder: Holder) -> Result<Lease, RepoError> {
        Ok(Lease { run: self.run(cluster, name)?, claim: LeaseClaim::new(holder) })
    }

    /// The presence of an agent, in any store.
    pub fn presence(&self, cluster: &str, agent: &str, holder: Holder) -> Lease {
        let folder = layout::lease(cluster, &presence_name(agent));
        Lease { run: Run { repository: self.clone(), folder }, claim: LeaseClaim::new(holder) }
    }

    /// Takes a lease that is not renewed; `before` is its newest record, as it was seen. Nothing if another was faster. After an error it may
    /// have been taken: look at what is there.
    pub async fn take_lease(
        &self,
        cluster: &str,
        name: &str,
        before: Option<&LeaseRecord>,
        holder: &Holder,
        note: LeaseNote,
    ) -> Result<Option<Hold>, RepoError> {
        let run = self.run(cluster, name)?;
        let record = LeaseRecord::taking(before, holder, note);
        Ok(run.create(&record).await?.then_some(Hold { run, record }))
    }

    /// A lease that this process has taken, as that record says.
    pub fn hold(&self, cluster: &str, name: &str, record: LeaseRecord) -> Result<Hold, RepoError> {
        Ok(Hold { run: self.run(cluster, name)?, record })
    }

    fn run(&self, cluster: &str, name: &str) -> Result<Run, RepoError> {
        let folder = layout::lease(cluster, name);
        if !self.refuses_overwrite() {
            return Err(RepoError::new("take", folder, Problem::NoConditions));
        }
        Ok(Run { repository: self.clone(), folder })
    }

    /// The numbers of the newest records of all leases of a cluster, by the leases' names.
    pub async fn leases(&self, cluster: &str) -> Result<BTreeMap<String, u64>, RepoError> {
        let folder = layout::leases(cluster);
        let mut listed = self.store.list(Some(&folder));
        let mut newest = BTreeMap::new();
        loop {
            let object = listed.try_next().await.map_err(|error| RepoError::new("list", &folder, error))?;
            let Some(object) = object else { return Ok(newest) };
            let Some((name, number)) = layout::lease_of(&folder, &object.location) else { continue };
            let known = newest.entry(name).or_insert(number);
            *known = number.max(*known);
        }
    }

    /// A record of a lease; nothing if newer ones have come and it was removed.
    pub async fn lease_record(
        &self,
        cluster: &str,
        name: &str,
        number: u64,
    ) -> Result<Option<LeaseRecord>, RepoError> {
        Run { repository: self.clone(), folder: layout::lease(cluster, name) }.read(number).await
    }

    /// Removes the records of a presence whose agent is gone for good. Of a lease of another sort nothing may be removed.
    pub async fn remove_presence(&self, cluster: &str, agent: &str) -> Result<(), RepoError> {
        let run = Run { repository: self.clone(), folder: layout::lease(cluster, &presence_name(agent)) };
        for number in run.numbers().await? {
            let path = layout::lease_record(&run.folder, number);
            let deleted = self.store.delete(&path).await;
            deleted.map_err(|error| RepoError::new("delete", &path, error))?;
        }
        Ok(())
    }
}

impl Lease {
    /// What to say with the next record.
    pub fn say(&mut self, note: LeaseNote) {
        self.claim.say(note);
    }

    /// Looks, and takes or renews the lease if it is time. `now_ms` is this process's own clock, which never runs backwards. After an error
    /// nothing is held that was not held before, and the next call looks anew.
    pub async fn step(&mut self, now_ms: &(dyn Fn() -> u64 + Sync)) -> Result<Standing, RepoError> {
        if let (LeaseStep::Wait { until_ms }, Some(held)) =
            (self.claim.next(now_ms()), self.claim.held(now_ms()))
        {
            return Ok(Standing::Held { epoch: held.epoch, until_ms });
        }
        // Who holds it need not look: if there is another's record, the next number is taken.
        if self.claim.held(now_ms()).is_none() {
            let newest = self.run.newest().await?;
            self.claim.observe(newest, now_ms());
            if self.claim.double().is_some() {
                return Ok(Standing::Double);
            }
        }
        let record = match self.claim.next(now_ms()) {
            LeaseStep::Wait { until_ms } => return Ok(Standing::Waiting { until_ms }),
            LeaseStep::Create(record) => *record,
        };
        let sent_ms = now_ms();
        let created = self.run.create(&record).await;
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
        self.claim.created(record, sent_ms);
        match (self.claim.next(now_ms()), self.claim.held(now_ms())) {
            (LeaseStep::Wait { until_ms }, Some(_)) => Ok(Standing::Held { epoch, until_ms }),
            // It took so long that the time is over already.
            _ => Ok(Standing::Waiting { until_ms: now_ms() }),
        }
    }

    /// Until when this process holds the lease by its own clock, in ms, if it does.
    pub fn held_until_ms(&self) -> Option<u64> {
        self.claim.held_until_ms()
    }

    /// Whether this process holds the lease by its own clock: enough to begin something. What was written counts only when [`Lease::confirm`] says
    /// so.
    pub fn epoch(&self, now_ms: u64) -> Option<u64> {
        self.claim.held(now_ms).map(|record| record.epoch)
    }

    /// Whether nobody has taken the lease over, asked of the store. What was written under `epoch` before a call that gives true counts, and whoever
    /// takes over later sees it; after false, or an error, it is not known, and must not be acknowledged.
    pub async fn confirm(&mut self, epoch: u64) -> Result<bool, RepoError> {
        let newest = self.run.newest().await?;
        let ours = newest.is_some_and(|newest| self.claim.is_ours(&newest) && newest.epoch == epoch);
        if !ours {
            self.claim.lost();
        }
        Ok(ours)
    }

    /// Whether the store refuses to write the record that holds this lease once more, as it must where leases keep processes apart, whatever
    /// `slotkeep.json` says: a repository may have been brought to another store. Nobody else writes under that name, and the bytes are
    /// the same, so nothing changes where it does not refuse. Only while the lease is held.
    pub async fn is_kept_by_the_store(&self, now_ms: u64) -> Result<bool, RepoError> {
        let Some(held) = self.claim.held(now_ms) else {
            return Err(RepoError::new("look at", &self.run.folder, Problem::Missing));
        };
        let path = layout::lease_record(&self.run.folder, held.number);
        let store = &self.run.repository.store;
        let stored = async { store.get(&path).await?.bytes().await };
        let stored = stored.await.map_err(|error| RepoError::new("read", &path, error))?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match store.put_opts(&path, stored.into(), create).await {
            Ok(_) | Err(Error::NotSupported { .. } | Error::NotImplemented { .. }) => Ok(false),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(true),
            Err(error) => Err(RepoError::new("write", &path, error)),
        }
    }

    /// Gives the lease up, so that nobody needs to wait.
    pub async fn release(mut self) -> Result<(), RepoError> {
        match self.claim.release() {
            Some(record) => self.run.create(&record).await.map(drop),
            None => Ok(()),
        }
    }
}

impl Hold {
    /// The newest record that this process knows it wrote.
    pub const fn record(&self) -> &LeaseRecord {
        &self.record
    }

    /// Whether nobody has taken the lease over, asked of the store. What was written before a call that gives true counts, and whoever takes
    /// over later sees it; after false, or an error, it is not known, and must not be acknowledged. False once is false for ever.
    pub async fn confirm(&mut self) -> Result<bool, RepoError> {
        let Some(newest) = self.run.numbers().await?.into_iter().max() else { return Ok(false) };
        if newest == self.record.number {
            return Ok(true);
        }
        if newest < self.record.number {
            return Ok(false);
        }
        // A word of our own whose answer was lost may have come through.
        let found = self.run.read(newest).await?;
        let ours = |found: &LeaseRecord| {
            found.holder == self.record.holder && found.epoch == self.record.epoch && !found.released
        };
        match found.filter(ours) {
            Some(found) => {
                self.record = found;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Says something else under the same epoch; false if another has taken the lease over.
    pub async fn say(&mut self, note: LeaseNote) -> Result<bool, RepoError> {
        if !self.confirm().await? {
            return Ok(false);
        }
        let record = self.record.going_on(note);
        let said = self.run.create(&record).await?;
        if said {
            self.record = record;
        }
        Ok(said)
    }

    /// Gives the lease up, so that nobody needs to wait; `note` stays for whoever takes it. Nothing happens if another has it already.
    pub async fn release(&mut self, note: LeaseNote) -> Result<(), RepoError> {
        if !self.confirm().await? {
            return Ok(());
        }
        self.run.create(&self.record.releasing(note)).await.map(drop)
    }
}

impl Run {
    /// Creates a record; false if another has that number, or a later one. Removes records that nobody needs any more.
    async fn create(&self, record: &LeaseRecord) -> Result<bool, RepoError> {
        let path = layout::lease_record(&self.folder, record.number);
        let json = record.render().map_err(|error| RepoError::new("write", &path, error))?;
        match self.repository.put_json(&path, json).await {
            Ok(()) => {
                let numbers = self.numbers().await?;
                let newest = numbers.iter().max() == Some(&record.number);
                if newest {
                    self.remove_before(record.number, numbers).await;
                }
                Ok(newest)
            }
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
        match self.read(number).await? {
            Some(record) => Ok(Some(record)),
            None => {
                let path = layout::lease_record(&self.folder, number);
                Err(RepoError::new("read", path, Problem::Missing))
            }
        }
    }

    async fn read(&self, number: u64) -> Result<Option<LeaseRecord>, RepoError> {
        let path = layout::lease_record(&self.folder, number);
        let failed = |problem| RepoError::new("read", &path, problem);
        let bytes = match self.repository.get_json(&path).await {
            Ok(bytes) => bytes,
            Err(RepoError { problem: Problem::Missing, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let record = LeaseRecord::parse(&bytes).map_err(|error| failed(error.into()))?;
        if record.number == number {
            return Ok(Some(record));
        }
        Err(failed(Problem::Damaged(format!("it says it is number {}", record.number))))
    }

    /// What can't be removed is removed after a later record.
    async fn remove_before(&self, newest: u64, mut numbers: Vec<u64>) {
        let Some(last) = newest.checked_sub(KEPT_RECORDS) else { return };
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
