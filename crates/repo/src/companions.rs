//! Repositories that get what is written to another one, while it is written.
//!
//! Invariants: all of them get the same objects under the same names, each encrypted and signed in its own way; a backup is listed in one only
//! when all that it names is complete there; what fails in a required one fails for all of them; an optional one that fails, or that alone has
//! held up the others for as long as it may, is given up and gets nothing more. No queue stands between them: a piece is handed on when
//! every one that counts has taken it.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join, join_all};
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{BaseRecord, ObjectRecord};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{Problem, RepoError};
use crate::location::Location;
use crate::repository::Repository;
use crate::store::pause;

/// A repository that gets what is written to another one.
#[derive(Debug)]
pub struct Companion {
    repository: Repository,
    /// How long it alone may hold up the others, in all; without one they wait for it as long as its store takes.
    patience: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Its records of the objects that it got, by their paths: sealed for others, they have other bytes here.
    objects: HashMap<String, ObjectRecord>,
    /// Its records of bases that it had before, by the paths of their RDBs.
    bases: HashMap<String, BaseRecord>,
    given_up: Option<String>,
    lists: bool,
    waits: Waits,
}

/// How long one was waited for: moments at which several wait at once count once.
#[derive(Debug, Default)]
struct Waits {
    ended: Duration,
    waiting: u32,
    since: Option<Instant>,
}

impl Waits {
    fn begin(&mut self) {
        self.waiting = self.waiting.saturating_add(1);
        self.since.get_or_insert_with(pause::now);
    }

    fn end(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.ended = self.so_far();
            self.since = None;
        }
    }

    fn so_far(&self) -> Duration {
        self.ended.saturating_add(self.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

/// Ends a wait, also one that is cancelled.
struct Waiting<'a>(&'a Companion);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waits.end();
    }
}

/// What is to be done in a companion.
pub(crate) type Write<'a> = (&'a Companion, BoxFuture<'a, Result<(), RepoError>>);

impl Companion {
    /// One that must have what is written, or the writing fails.
    pub fn required(repository: Repository) -> Self {
        Self { repository, patience: None, state: Mutex::default() }
    }

    /// One that may fail, and that may hold up the others for that long in all.
    pub fn optional(repository: Repository, patience: Duration) -> Self {
        Self { repository, patience: Some(patience), state: Mutex::default() }
    }

    /// The repository.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether the others fail with it.
    pub const fn is_required(&self) -> bool {
        self.patience.is_none()
    }

    /// How long it may hold up the others, if it is not required.
    pub const fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Whether the backup that was committed last is listed in it.
    pub fn lists(&self) -> bool {
        self.state().lists
    }

    /// Why it was given up, if it was.
    pub fn failure(&self) -> Option<String> {
        self.state().given_up.clone()
    }

    /// How long it alone held up the others.
    pub fn held_up(&self) -> Duration {
        self.state().waits.so_far()
    }

    /// Writes nothing more to it, for that reason. What was said first stays.
    pub fn give_up(&self, why: impl std::fmt::Display) {
        self.state().given_up.get_or_insert_with(|| why.to_string());
    }

    /// Tells it of its own record of a base that it had before: a backup that builds on it names that.
    pub fn know_base(&self, base: &BaseRecord) {
        self.state().bases.insert(base.rdb.path.clone(), base.clone());
    }

    pub(crate) fn know_object(&self, record: ObjectRecord) {
        self.state().objects.insert(record.path.clone(), record);
    }

    fn is_live(&self) -> bool {
        self.state().given_up.is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same backup, as it stands here.
    fn manifest(&self, manifest: &Manifest) -> Result<Manifest, RepoError> {
        let mut own = manifest.clone();
        let state = self.state();
        for shard in &mut own.shards {
            let base = &mut shard.base;
            if let Some(known) = state.bases.get(&base.rdb.path) {
                base.clone_from(known);
                continue;
            }
            for record in std::iter::once(&mut base.rdb).chain(&mut base.index).chain(&mut base.digest) {
                let found = state.objects.get(&record.path);
                record
                    .clone_from(found.ok_or_else(|| RepoError::new("name", &record.path, Problem::Missing))?);
            }
        }
        Ok(own)
    }

    /// Does it here, and gives this one up if that fails, or if it takes longer than it may once everything else is done.
    async fn patiently(
        &self,
        patience: Duration,
        mut write: BoxFuture<'_, Result<(), RepoError>>,
        mut needed: watch::Receiver<bool>,
    ) {
        if !self.is_live() {
            return;
        }
        let early = tokio::select! {
            biased;
            outcome = &mut write => Some(outcome),
            _ = needed.wait_for(|done| *done) => None,
        };
        let outcome = match early {
            Some(outcome) => outcome,
            None => self.within(patience, write).await,
        };
        if let Err(error) = outcome {
            self.give_up(error.at(self.repository.location()));
        }
    }

    async fn within(
        &self,
        patience: Duration,
        write: BoxFuture<'_, Result<(), RepoError>>,
    ) -> Result<(), RepoError> {
        let left = {
            let mut state = self.state();
            let left = patience.saturating_sub(state.waits.so_far());
            state.waits.begin();
            left
        };
        let _waiting = Waiting(self);
        let outcome = tokio::time::timeout(left, write).await;
        outcome.unwrap_or_else(|_| {
            let what = format!(
                "it is too slow: it alone held up the others for {} s in all",
                patience.as_secs_f32()
            );
            Err(RepoError::new("write to", self.repository.location(), Problem::Store(what)))
        })
    }

    /// Deletes what it got of a backup that it will not list, as far as it still may hold up anybody. What it may list stays.
    async fn take_back(&self) {
        let Some(patience) = self.patience else { return };
        let paths: Vec<String> = self.state().objects.keys().cloned().collect();
        for path in paths {
            // What can't be deleted stays, unlisted, until a prune.
            let _ = self.within(patience, Box::pin(self.repository.discard_here(path))).await;
        }
    }
}

/// Does something in a repository and in its companions. Fails if that failed in it or in a required one; all that is required has come to its
/// end then.
pub(crate) async fn everywhere<T>(
    location: &Location,
    own: impl Future<Output = Result<T, RepoError>>,
    others: Vec<Write<'_>>,
) -> Result<T, RepoError> {
    if others.is_empty() {
        return own.await;
    }
    let (done, needed) = watch::channel(false);
    let (mut required, mut optional) = (Vec::new(), Vec::new());
    for (companion, write) in others {
        match companion.patience {
            None => required
                .push(async { write.await.map_err(|error| error.at(companion.repository.location())) }),
            Some(patience) => optional.push(companion.patiently(patience, write, needed.clone())),
        }
    }
    let all_needed = async {
        let (own, required) = join(own, join_all(required)).await;
        done.send_replace(true);
        let own = own.map_err(|error| error.at(location))?;
        required.into_iter().collect::<Result<(), _>>().map(|()| own)
    };
    let (mut all_needed, mut optional) = (pin!(all_needed), pin!(join_all(optional)));
    tokio::select! {
        biased;
        outcome = &mut all_needed => {
            let own = outcome?;
            optional.await;
            Ok(own)
        }
        _ = &mut optional => all_needed.await,
    }
}

impl Repository {
    /// The same repository; everything that is written through it for a backup goes to these as well, with bases, log, histories, topologies
    /// and the manifest. What is read comes from this one.
    #[must_use]
    pub fn with_companions(mut self, companions: Vec<Companion>) -> Self {
        self.companions = companions.into_iter().map(Arc::new).collect();
        self
    }

    /// Who gets what is written here.
    pub fn companions(&self) -> &[Arc<Companion>] {
        &self.companions
    }

    /// Those that were not given up.
    pub(crate) fn live_companions(&self) -> impl Iterator<Item = &Arc<Companion>> {
        self.companions.iter().filter(|companion| companion.is_live())
    }

    /// Lists a backup here and in all companions; in this one only when it is listed in all required ones. Where it is listed it is whole,
    /// also if that fails somewhere else.
    pub(crate) async fn commit_everywhere(&self, manifest: &Manifest) -> Result<(), RepoError> {
        if self.companions.is_empty() {
            return self.commit_here(manifest).await;
        }
        for companion in self.companions.iter().filter(|companion| companion.is_required()) {
            let listed = companion.list(manifest).await;
            listed.map_err(|error| error.at(companion.repository.location()))?;
        }
        let optional = self.live_companions().filter(|companion| !companion.is_required());
        let optional: Vec<Write<'_>> = optional.map(|one| (&**one, one.list_boxed(manifest))).collect();
        self.commit_here(manifest).await.map_err(|error| error.at(&self.location))?;
        everywhere(&self.location, async { Ok(()) }, optional).await?;
        for companion in self.companions.iter().filter(|companion| !companion.lists()) {
            companion.take_back().await;
        }
        Ok(())
    }
}

impl Companion {
    async fn list(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let own = self.manifest(manifest)?;
        let listed = self.repository.commit_here(&own).await;
        self.state().lists = listed.is_ok();
        listed
    }

    fn list_boxed<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<(), RepoError>> {
        Box::pin(self.list(manifest))
    }
}
