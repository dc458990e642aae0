//! An agent's presence, and what it sees of the leases of all.
//!
//! Runs beside everything else, so that no slow work costs an agent its leases; a store that does not answer costs it them, which is what others
//! go by. Its clock counts from an arbitrary moment and never runs backwards.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use slotkeep_format::{Holder, LeaseNote, LeaseRecord};
use slotkeep_repo::{Lease, RepoError, Repository, Standing};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::archive::status::ms;
use crate::ports::Clock;
use crate::{Context, Error, ErrorKind, Result};

/// How many records are read at a time.
const READS_IN_FLIGHT: usize = 8;
/// How often a lease's time is looked at within it.
const BEATS: u32 = 5;
/// How long the last word may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// What was seen of the leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When it was asked for.
    pub(crate) at_ms: u64,
    /// The newest record of each lease.
    pub(crate) newest: BTreeMap<String, LeaseRecord>,
    /// Why the last look or word failed, if it did.
    pub(crate) trouble: Option<Arc<str>>,
    /// Another process is this agent.
    pub(crate) double: bool,
}

/// Until when this agent's presence holds, by its own clock.
#[derive(Clone)]
pub(crate) struct PresenceTime {
    clock: Arc<dyn Clock>,
    until_ms: Arc<AtomicU64>,
}

impl PresenceTime {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, until_ms: Arc::default() }
    }

    pub(crate) fn holds_until(&self, until_ms: u64) {
        self.until_ms.store(until_ms, Ordering::Relaxed);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        ms(self.clock.elapsed())
    }

    /// Whether nobody else can take anything over yet.
    pub(crate) fn holds(&self) -> bool {
        self.now_ms() < self.until_ms.load(Ordering::Relaxed)
    }
}

/// The way to the keeper.
pub(crate) struct KeeperHandle {
    pub(crate) seen: watch::Receiver<Arc<Seen>>,
    pub(crate) time: PresenceTime,
    note: watch::Sender<LeaseNote>,
    hurry: Arc<Notify>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl KeeperHandle {
    /// What to say with the presence from its next renewal on.
    pub(crate) fn say(&self, note: LeaseNote) {
        self.note.send_replace(note);
    }

    /// Has the leases looked at now.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Ends the presence with a last word, so that nobody waits.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        // Its last word has a limit of its own.
        let _ = self.task.await;
    }
}

/// The keeper.
pub(crate) struct Keeper {
    context: Context,
    repository: Repository,
    cluster: String,
    beat: Duration,
    presence: Lease,
    time: PresenceTime,
    records: HashMap<String, LeaseRecord>,
    note: watch::Receiver<LeaseNote>,
}

impl Keeper {
    /// Begins the presence, and looks at the leases once, before anything is done.
    pub(crate) async fn start(
        context: &Context,
        repository: &Repository,
        cluster: &str,
        holder: &Holder,
        note: LeaseNote,
    ) -> Result<KeeperHandle> {
        let agent = holder.agent.clone().unwrap_or_default();
        let (note_sender, note) = watch::channel(note);
        let time = PresenceTime::new(Arc::clone(&context.clock));
        let mut keeper = Self {
            context: context.clone(),
            repository: repository.clone(),
            cluster: cluster.to_owned(),
            beat: Duration::from_millis(holder.duration_ms) / BEATS,
            presence: repository.presence(cluster, &agent, holder.clone()),
            time: time.clone(),
            records: HashMap::new(),
            note,
        };
        let first = keeper.renew_and_look().await?;
        keeper.check_kept_apart().await?;
        let (publish, seen) = watch::channel(Arc::new(first));
        let (stop, hurry) = (CancellationToken::new(), Arc::<Notify>::default());
        let (stopped, hurried) = (stop.clone(), Arc::clone(&hurry));
        let task = tokio::spawn(async move { Box::pin(keeper.run(&publish, &stopped, &hurried)).await });
        Ok(KeeperHandle { seen, time, note: note_sender, hurry, stop, task })
    }

    /// Refuses a store that overwrites although the repository's file says that it does not, as it may where the repository was brought there.
    async fn check_kept_apart(&self) -> Result<()> {
        let now_ms = ms(self.context.clock.elapsed());
        // Without conditions nobody holds a lease, and a record that is not held any more is another's affair.
        if !self.repository.refuses_overwrite()
            || self.presence.epoch(now_ms).is_none()
            || self.presence.is_kept_by_the_store(now_ms).await?
        {
            return Ok(());
        }
        let words = "this store overwrites objects although requests forbid it, and slotkeep.json says that it does not: the repository seems to have \
                     been brought here from another store";
        Err(Error::new(ErrorKind::Unsupported, words).hint(
            "make a repository here with `slotkeep copy`, which finds out what the store does, and archive to that (docs/stores.md)",
        ))
    }

    async fn run(mut self, publish: &watch::Sender<Arc<Seen>>, stop: &CancellationToken, hurry: &Notify) {
        loop {
            tokio::select! {
                () = self.context.clock.sleep(self.beat) => {}
                () = hurry.notified() => {}
                () = stop.cancelled() => break,
            }
            let clock = Arc::clone(&self.context.clock);
            let limit = self.beat.saturating_mul(BEATS) / 2;
            let looked = tokio::select! {
                looked = Box::pin(self.renew_and_look()) => Some(looked),
                () = clock.sleep(limit) => None,
                () = stop.cancelled() => break,
            };
            match looked {
                Some(Ok(seen)) => {
                    let double = seen.double;
                    publish.send_replace(Arc::new(seen));
                    if double {
                        return;
                    }
                }
                Some(Err(error)) => note_trouble(publish, &error.to_string()),
                None => note_trouble(publish, "the repository does not answer in time"),
            }
        }
        let Self { context, presence, .. } = self;
        if let Some(Err(error)) = context.within(FAREWELL_LIMIT, Box::pin(presence.release())).await {
            tracing::debug!(%error, "others learn later that this agent has left");
        }
    }

    /// Cancel-safe.
    async fn renew_and_look(&mut self) -> Result<Seen, RepoError> {
        self.presence.say(self.note.borrow_and_update().clone());
        let clock = Arc::clone(&self.context.clock);
        let now_ms = move || ms(clock.elapsed());
        let standing = self.presence.step(&now_ms).await;
        self.time.holds_until(self.presence.held_until_ms().unwrap_or_default());
        let double = standing? == Standing::Double;
        let at_ms = now_ms();
        let numbers = self.repository.leases(&self.cluster).await?;
        let is_new =
            |name: &String, number: u64| self.records.get(name).is_none_or(|known| known.number != number);
        let new: Vec<(String, u64)> = numbers
            .iter()
            .filter(|(name, number)| is_new(name, **number))
            .map(|(name, number)| (name.clone(), *number))
            .collect();
        let reads = new.into_iter().map(|(name, number)| {
            let (repository, cluster) = (self.repository.clone(), self.cluster.clone());
            async move {
                let record = repository.lease_record(&cluster, &name, number).await?;
                Ok::<_, RepoError>(record.map(|record| (name, record)))
            }
        });
        let read: Vec<Option<(String, LeaseRecord)>> =
            futures::stream::iter(reads).buffer_unordered(READS_IN_FLIGHT).try_collect().await?;
        self.records.retain(|name, _| numbers.contains_key(name));
        self.records.extend(read.into_iter().flatten());
        let newest = self.records.iter().map(|(name, record)| (name.clone(), record.clone())).collect();
        Ok(Seen { at_ms, newest, trouble: None, double })
    }
}

fn note_trouble(publish: &watch::Sender<Arc<Seen>>, words: &str) {
    tracing::debug!(words, "the leases can't be looked at");
    publish.send_modify(|seen| {
        let trouble = Some(Arc::from(words));
        *seen = Arc::new(Seen { trouble, ..Seen::clone(seen) });
    });
}
