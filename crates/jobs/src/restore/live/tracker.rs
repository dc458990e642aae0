//! How far a base has been restored: up to which byte every key is acknowledged.
//!
//! Invariants: `open` holds the first byte of every batch that is being filled or is on its way; `position` is a record's first
//! byte, and every key before it is either acknowledged, left out on purpose, or in a batch of `open`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// A place between two records of an RDB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The offset of the record that follows.
    pub(super) offset: u64,
    /// The database that is selected there.
    pub(super) database: u32,
}

struct Inner {
    open: BTreeMap<u64, u32>,
    position: Position,
}

/// How far one base has been restored.
pub(super) struct Tracker {
    inner: Mutex<Inner>,
    closed: Notify,
}

impl Tracker {
    /// A tracker of a base that is done up to there.
    pub(super) fn new(position: Position) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { open: BTreeMap::new(), position }), closed: Notify::new() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a batch begins with the record at that position.
    pub(super) fn open(&self, start: Position) {
        self.inner().open.insert(start.offset, start.database);
    }

    /// Notes that every key of the batch that began there is done.
    pub(super) fn close(&self, start_offset: u64) {
        self.inner().open.remove(&start_offset);
        self.closed.notify_waiters();
    }

    /// Notes that every key before that position is done or in a batch.
    pub(super) fn advance(&self, position: Position) {
        self.inner().position = position;
    }

    /// Where to go on if everything stopped now.
    pub(super) fn mark(&self) -> Position {
        let inner = self.inner();
        let oldest = inner.open.first_key_value();
        oldest.map_or(inner.position, |(offset, database)| Position { offset: *offset, database: *database })
    }

    /// Waits until no batch is open.
    pub(super) async fn settled(&self) {
        loop {
            let closed = self.closed.notified();
            tokio::pin!(closed);
            // Registered before the look, or a batch closed in between would go unnoticed.
            closed.as_mut().enable();
            if self.inner().open.is_empty() {
                return;
            }
            closed.await;
        }
    }
}
