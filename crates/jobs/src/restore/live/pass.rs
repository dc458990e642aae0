//! One way through the base of one shard: every key that is wanted, to the node that serves it.
//!
//! Keys whose payload fits go in batches, one being filled for each node. A value is gathered until it is whole or longer than
//! allowed; then it goes element by element, and the pass waits for it. Nothing is held beyond one batch a node, one value
//! and one frame.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use slotkeep_format::manifest::BaseRecord;
use slotkeep_model::{Slot, SlotSet, key_slot};
use slotkeep_rdb::{DumpBuilder, Event, KeyHeader, ValueType, footer_version};
use slotkeep_repo::Repository;

use super::batch::{BatchBuilder, RestoreKey, show_key};
use super::journal::Journal;
use super::large::{Fate, LargeKey, LargeValue, Outcome};
use super::options::OnConflict;
use super::run::{Counters, Run};
use super::source::{Source, damaged, real_offset};
use super::target::SlotMap;
use super::tracker::{Position, Tracker};
use crate::progress::{Phase, ShardProgress};
use crate::{Error, ErrorKind, Result};

const BATCH_BYTES: usize = 64 << 10;
const BATCH_COMMANDS: usize = 128;

/// What to go through.
pub(super) struct Pass<'a> {
    pub(super) run: &'a Arc<Run>,
    pub(super) repository: &'a Repository,
    pub(super) base: &'a BaseRecord,
    /// Which shard of the backup it is.
    pub(super) shard: usize,
    pub(super) tracker: &'a Arc<Tracker>,
    /// Only keys of these slots; all if `None`.
    pub(super) only: Option<&'a SlotSet>,
    /// Up to which offset keys may have been written by this restore before.
    pub(super) tolerant_below: u64,
    /// Kept up to date in the main pass.
    pub(super) journal: Option<&'a Journal>,
    pub(super) progress: &'a Arc<ShardProgress>,
    /// The restore's id, which is in the names of temporary keys.
    pub(super) id: &'a str,
}

/// What is being done with the value that is being read.
enum Value {
    /// It is passed over.
    Unwanted,
    /// It is gathered in `State::payload`.
    Gathered,
    /// It goes element by element.
    Large(Box<LargeValue>),
}

/// How the reading ended.
enum Ended {
    AtTheEnd,
    /// A large value must be sent again from its beginning.
    Again(Position, String),
}

struct State {
    map: Arc<SlotMap>,
    open: Vec<Option<BatchBuilder>>,
    now_ms: i64,
    value: Value,
    /// Type byte and value so far.
    payload: Vec<u8>,
    key: Key,
    last: Position,
    /// Up to which offset bytes have been taken in.
    read_to: u64,
    /// Where a value stands that was sent before, without knowing what became of it.
    retried: Option<u64>,
}

/// The key whose value is being read.
#[derive(Default)]
struct Key {
    name: Vec<u8>,
    slot: Option<Slot>,
    expiry_ms: Option<i64>,
    value_type: Option<ValueType>,
    start: Position,
}

impl Pass<'_> {
    /// Goes through the base from that position on, and waits until every key is acknowledged.
    pub(super) async fn run(&self, from: Position) -> Result<()> {
        self.progress.enter(Phase::Running);
        let mut from = from;
        let mut attempt = 0;
        let mut failing: Option<(u64, std::time::Duration)> = None;
        while let Ended::Again(position, reason) = self.read(from, failing.map(|(offset, _)| offset)).await? {
            let now = self.run.context.clock.elapsed();
            let since = match failing {
                Some((offset, since)) if offset == position.offset => since,
                _ => {
                    attempt = 0;
                    now
                }
            };
            failing = Some((position.offset, since));
            if now.saturating_sub(since) > self.run.options.patience {
                let what =
                    format!("a large value at offset {} could not be written: {reason}", position.offset);
                return Err(Error::new(ErrorKind::Unreachable, what)
                    .hint("see that the target is whole (CLUSTER INFO), then run the same command again: it goes on from here"));
            }
            tracing::info!(offset = position.offset, %reason, "a large value is sent again");
            self.run.pause(attempt).await;
            attempt = attempt.saturating_add(1);
            if let Err(error) = self.run.target.look_again(&self.run.context, None).await {
                tracing::debug!(%error, "the target can't be looked at");
            }
            from = position;
        }
        tokio::select! {
            () = self.tracker.settled() => {}
            () = self.run.halt.cancelled() => return Err(Error::interrupted()),
        }
        self.progress.enter(Phase::Done);
        Ok(())
    }

    async fn read(&self, from: Position, retried: Option<u64>) -> Result<Ended> {
        let mut source = Source::open(self.repository, self.base, from).await?;
        let map = self.run.target.map();
        let mut state = State {
            open: map.nodes.iter().map(|_| None).collect(),
            map,
            now_ms: 0,
            value: Value::Unwanted,
            payload: Vec::new(),
            key: Key::default(),
            last: from,
            read_to: from.offset,
            retried,
        };
        loop {
            let next = tokio::select! {
                next = source.next_bytes() => next,
                () = self.run.halt.cancelled() => Err(Error::interrupted()),
            };
            let outcome = match next {
                Ok(Some(bytes)) => self.take(&mut source, &mut state, &bytes).await,
                Ok(None) => break,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(again)) => {
                    // What was gathered before that value is on no other way to the target.
                    self.flush_all(&mut state).await?;
                    return Ok(again);
                }
                Err(error) => {
                    if let Value::Large(large) = std::mem::replace(&mut state.value, Value::Unwanted) {
                        large.abandon(self.run).await;
                    }
                    return Err(error);
                }
            }
        }
        source.finish()?;
        Ok(Ended::AtTheEnd)
    }

    /// Takes in a frame.
    async fn take(&self, source: &mut Source, state: &mut State, bytes: &[u8]) -> Result<Option<Ended>> {
        self.promise(state, bytes.len()).await?;
        self.follow_map(state).await?;
        state.now_ms = self.run.context.clock.now().as_millisecond();
        let shift = source.shift();
        let path = source.path().to_owned();
        let mut input = bytes;
        let mut keys = 0;
        while let Some(event) = source.parser.next(&mut input).map_err(|error| damaged(&path, &error))? {
            match event {
                Event::Key(header) => self.begin(state, &header, shift)?,
                Event::ValueBytes(piece) => {
                    if let Some(again) = self.value_bytes(state, piece).await? {
                        return Ok(Some(again));
                    }
                }
                Event::KeyEnd { end_offset } => {
                    keys += 1;
                    let end = real_offset(shift, end_offset);
                    if let Some(again) = self.finish_key(state, end).await? {
                        return Ok(Some(again));
                    }
                }
                Event::SlotImport { .. } => {
                    let what = format!("{path} holds slots that its shard was importing");
                    return Err(Error::new(ErrorKind::Unsupported, what));
                }
                _ => {}
            }
        }
        self.flush_all(state).await?;
        self.tracker.advance(state.last);
        Counters::add(&self.run.counters.rdb_bytes, bytes.len() as u64);
        state.read_to = state.read_to.saturating_add(bytes.len() as u64);
        self.progress.raw_bytes.store(state.read_to, Ordering::Relaxed);
        crate::progress::add(&self.progress.keys, keys);
        Ok(None)
    }

    /// Notes in the journal, before anything is sent, how far keys may be written without the journal knowing.
    async fn promise(&self, state: &State, more: usize) -> Result<()> {
        let Some(journal) = self.journal else { return Ok(()) };
        journal.promise(self.run, self.shard, state.read_to.saturating_add(more as u64)).await
    }

    async fn follow_map(&self, state: &mut State) -> Result<()> {
        let map = self.run.target.map();
        if !Arc::ptr_eq(&map, &state.map) {
            self.flush_all(state).await?;
            state.open = map.nodes.iter().map(|_| None).collect();
            state.map = map;
        }
        Ok(())
    }

    fn begin(&self, state: &mut State, header: &KeyHeader<'_>, shift: (u64, u64)) -> Result<()> {
        let slot = key_slot(header.key);
        let start = Position { offset: real_offset(shift, header.offset), database: header.db };
        state.last = start;
        state.value = Value::Unwanted;
        state.payload.clear();
        if self.only.is_some_and(|only| !only.contains(slot)) {
            return Ok(());
        }
        let Some(owner) = state.map.owner(slot) else { return Ok(()) };
        let now_ms = state.now_ms.saturating_add(owner.clock_ahead_ms);
        if header.expiry_ms.is_some_and(|expiry_ms| expiry_ms <= now_ms) {
            Counters::add(&self.run.counters.skipped_expired, 1);
            return Ok(());
        }
        if header.has_meta {
            Counters::add(&self.run.counters.without_metadata, 1);
        }
        if !header.value_type.loads_on(owner.server) {
            let what = format!(
                "{} does not know the type of key `{}` (type {})",
                owner.server,
                show_key(header.key),
                header.value_type.byte()
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        state.key.name.clear();
        state.key.name.extend_from_slice(header.key);
        state.key.slot = Some(slot);
        state.key.expiry_ms = header.expiry_ms;
        state.key.value_type = Some(header.value_type);
        state.key.start = start;
        state.payload.push(header.value_type.byte());
        state.value = Value::Gathered;
        Ok(())
    }

    async fn value_bytes(&self, state: &mut State, piece: &[u8]) -> Result<Option<Ended>> {
        match &mut state.value {
            Value::Unwanted => Ok(None),
            Value::Gathered => {
                let most = self.run.options.max_restore_bytes;
                if state.payload.len().saturating_add(piece.len()) <= most {
                    state.payload.extend_from_slice(piece);
                    return Ok(None);
                }
                self.begin_large(state, piece).await
            }
            Value::Large(large) => {
                let outcome = large.feed(self.run, piece).await;
                Self::unless_again(state, outcome)
            }
        }
    }

    async fn begin_large(&self, state: &mut State, piece: &[u8]) -> Result<Option<Ended>> {
        let (Some(slot), Some(value_type)) = (state.key.slot, state.key.value_type) else { return Ok(None) };
        let key = LargeKey {
            key: state.key.name.clone(),
            slot,
            database: state.key.start.database,
            expiry_ms: state.key.expiry_ms,
            value_type,
            rdb_version: self.base.rdb_version,
            tolerant: state.key.start.offset < self.tolerant_below
                || state.retried == Some(state.key.start.offset),
        };
        let first = state.payload.get(1..).unwrap_or_default().to_vec();
        state.payload = Vec::new();
        let large = match LargeValue::begin(self.run, key, self.id).await {
            Ok(Outcome::Going(large)) => large,
            Ok(Outcome::Settled(fate)) => {
                self.settle_large(fate)?;
                state.value = Value::Unwanted;
                return Ok(None);
            }
            Ok(Outcome::Again(reason)) => return Ok(Some(Ended::Again(state.key.start, reason))),
            Err(error) => return Err(error),
        };
        state.value = Value::Large(large);
        for bytes in [first.as_slice(), piece] {
            if let Value::Large(large) = &mut state.value {
                let outcome = large.feed(self.run, bytes).await;
                if let Some(again) = Self::unless_again(state, outcome)? {
                    return Ok(Some(again));
                }
            }
        }
        Ok(None)
    }

    fn unless_again(state: &State, outcome: Result<Option<String>>) -> Result<Option<Ended>> {
        Ok(outcome?.map(|reason| Ended::Again(state.key.start, reason)))
    }

    fn settle_large(&self, fate: Fate) -> Result<()> {
        let counters = &self.run.counters;
        match fate {
            Fate::Written(node) => {
                Counters::add(&counters.element_wise, 1);
                counters.restored(&node, 1);
            }
            Fate::AlreadyOurs => Counters::add(&counters.already_restored, 1),
            Fate::Expired => Counters::add(&counters.skipped_expired, 1),
            Fate::Exists { key, slot } => match self.run.options.on_conflict {
                OnConflict::Skip => Counters::add(&counters.skipped_existing, 1),
                OnConflict::Fail | OnConflict::Replace => return Err(super::run::key_exists(&key, slot)),
            },
        }
        Ok(())
    }

    async fn finish_key(&self, state: &mut State, end: u64) -> Result<Option<Ended>> {
        let after = Position { offset: end, database: state.last.database };
        match std::mem::replace(&mut state.value, Value::Unwanted) {
            Value::Unwanted => {}
            Value::Gathered => self.push(state).await?,
            Value::Large(large) => match large.finish(self.run).await? {
                Outcome::Settled(fate) => self.settle_large(fate)?,
                Outcome::Again(reason) => return Ok(Some(Ended::Again(state.key.start, reason))),
                Outcome::Going(_) => {}
            },
        }
        state.last = after;
        Ok(None)
    }

    /// Puts the key that has been gathered into the batch of its node.
    async fn push(&self, state: &mut State) -> Result<()> {
        let (Some(slot), Some(value_type)) = (state.key.slot, state.key.value_type) else { return Ok(()) };
        let node = state.map.index(slot);
        let Some(server) = state.map.nodes.get(node).map(|node| node.server) else { return Ok(()) };
        let version = footer_version(value_type, server).unwrap_or_else(|| server.newest_rdb().number);
        let (mut footer, _) = DumpBuilder::new(value_type, version);
        footer.value_bytes(state.payload.get(1..).unwrap_or_default());
        state.payload.extend_from_slice(&footer.footer());

        let database = state.key.start.database;
        let fits = |batch: &BatchBuilder| batch.database() == database;
        if !state.open.get(node).and_then(Option::as_ref).is_some_and(fits) {
            self.flush(state, node).await?;
        }
        let Some(place) = state.open.get_mut(node) else { return Ok(()) };
        let batch = place.get_or_insert_with(|| {
            self.tracker.open(state.key.start);
            BatchBuilder::new(database, state.key.start.offset)
        });
        batch.push(&RestoreKey {
            key: &state.key.name,
            slot,
            expiry_ms: state.key.expiry_ms,
            payload: &state.payload,
            replace: self.run.options.on_conflict == OnConflict::Replace,
            tolerant: state.key.start.offset < self.tolerant_below,
        });
        if batch.len_bytes() >= BATCH_BYTES || batch.commands() >= BATCH_COMMANDS {
            self.flush(state, node).await?;
        }
        Ok(())
    }

    async fn flush_all(&self, state: &mut State) -> Result<()> {
        for node in 0..state.open.len() {
            self.flush(state, node).await?;
        }
        Ok(())
    }

    /// Sends the batch of a node, once its window has room.
    async fn flush(&self, state: &mut State, node: usize) -> Result<()> {
        let Some(batch) = state.open.get_mut(node).and_then(Option::take) else { return Ok(()) };
        let Some(addr) = state.map.nodes.get(node).map(|node| &node.addr) else { return Ok(()) };
        let window = self.run.window(addr);
        let cost = u32::try_from(batch.cost().min(super::run::WINDOW_BYTES)).unwrap_or(u32::MAX);
        let share = tokio::select! {
            share = window.acquire_many_owned(cost) => share,
            () = self.run.halt.cancelled() => return Err(Error::interrupted()),
        };
        // The window is never closed.
        let Ok(share) = share else { return Err(Error::interrupted()) };
        self.run.dispatch_batch(addr, batch.finish(self.tracker, share));
        Ok(())
    }
}
