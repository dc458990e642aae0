//! Who may have a snapshot made: so many shards at a time, and so many a host, for each forks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The gates.
#[derive(Debug)]
pub(crate) struct Gates {
    all: Arc<Semaphore>,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    per_host: usize,
}

/// A turn; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permits: (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
}

impl Gates {
    pub(crate) fn new(jobs: usize, per_host: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(jobs.max(1))),
            hosts: Mutex::default(),
            per_host: per_host.max(1),
        }
    }

    /// Waits for a turn on that host. Cancel-safe.
    pub(crate) async fn enter(&self, host: &str) -> Turn {
        let gate = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            let gate =
                hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.per_host)));
            Arc::clone(gate)
        };
        // A host's turn first: a shard that waits for its host must not keep others from theirs.
        let host = gate.acquire_owned().await.ok();
        let all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn { _permits: (host, all) }
    }
}
