//! How far a job over several shards has come: numbers that the job writes and a display reads when it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What is being done for one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for its turn.
    Queued,
    /// The server prepares the snapshot.
    Waiting,
    /// Bytes are flowing.
    Running,
    /// The last bytes are made durable.
    Finishing,
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// What is stored is read and checked, before any of it is used.
    Verifying,
}

impl Phase {
    const ALL: [Self; 7] = [
        Self::Queued,
        Self::Waiting,
        Self::Running,
        Self::Finishing,
        Self::Done,
        Self::Failed,
        Self::Verifying,
    ];
}

/// The progress of one shard.
#[derive(Debug)]
pub struct ShardProgress {
    /// What to call the shard: its slots.
    pub name: String,
    phase: AtomicU8,
    /// Bytes of the RDB so far.
    pub raw_bytes: AtomicU64,
    /// Bytes stored so far.
    pub stored_bytes: AtomicU64,
    /// Keys seen so far.
    pub keys: AtomicU64,
    /// Keys that are expected; 0 if that is not known.
    pub expected_keys: AtomicU64,
}

impl ShardProgress {
    /// Progress that has not begun.
    pub fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            phase: AtomicU8::new(0),
            raw_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            expected_keys: AtomicU64::new(0),
        })
    }

    /// What is being done.
    pub fn phase(&self) -> Phase {
        Phase::ALL.get(usize::from(self.phase.load(Ordering::Relaxed))).copied().unwrap_or(Phase::Queued)
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Starts anew, after an attempt that failed.
    pub(crate) fn restart(&self) {
        for counter in [&self.raw_bytes, &self.stored_bytes, &self.keys] {
            counter.store(0, Ordering::Relaxed);
        }
        self.enter(Phase::Waiting);
    }
}

pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
