//! A client that writes without rest while things happen to the cluster, and remembers what it was promised.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::cluster_client::ClusterClient;
use crate::deadline::{NotYet, breathe, wait_for};
use crate::error::{Error, Result};

/// How long one write is tried again before the next one's turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// A thread that writes one key after the other, round and round: `SET writer:<n> <number>`, the number one more with every
/// write of all. It goes on through failovers until it is stopped or dropped.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    written: Mutex<Written>,
}

/// What a [`Writer`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The last number of each key that the server acknowledged.
    pub acknowledged: BTreeMap<String, u64>,
    /// The last number of each key that was sent, acknowledged or not.
    pub attempted: BTreeMap<String, u64>,
    /// How many writes were given up.
    pub failed: u64,
}

impl Writer {
    /// Starts to write that many keys, round and round.
    pub fn start(cluster: &Cluster, keys: u64) -> Result<Self> {
        let mut client = cluster.client()?;
        client.set_patience(PATIENCE);
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let thread = thread::spawn(move || mine.write(&mut client, keys.max(1)));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until that many more writes were acknowledged.
    pub fn wait_for_more(&self, writes: u64) -> Result<()> {
        let goal = self.acknowledged().saturating_add(writes);
        wait_for(Duration::from_mins(1), &format!("{writes} more writes"), || match self.acknowledged() {
            count if count >= goal => Ok(()),
            count => Err(NotYet::because(format!("{} are missing", goal - count))),
        })
    }

    /// Stops after the current write and returns what was written.
    pub fn stop(mut self) -> Written {
        self.end();
        self.shared.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by then, and what it wrote is known.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn write(&self, client: &mut ClusterClient, keys: u64) {
        let mut number = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            breathe();
            number += 1;
            let key = format!("writer:{}", number % keys);
            self.note(|written| written.attempted.insert(key.clone(), number));
            if client.command(&["SET", &key, &number.to_string()]).is_ok() {
                self.note(|written| written.acknowledged.insert(key, number));
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
            } else {
                self.note(|written| {
                    written.failed += 1;
                    None
                });
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Written) -> Option<u64>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut written);
    }
}

impl Written {
    /// Reads every key: it must hold a number that was sent, and none older than the last acknowledged.
    pub fn verify(&self, client: &mut ClusterClient) -> Result<()> {
        for (key, &attempted) in &self.attempted {
            let acknowledged = self.acknowledged.get(key).copied();
            let reply = client.command(&["GET", key])?;
            let found: Option<u64> = reply.text().ok().and_then(|text| text.parse().ok());
            if found < acknowledged || found > Some(attempted) {
                return Err(Error::Mismatch {
                    key: key.clone(),
                    expected: format!("{acknowledged:?} to {attempted}"),
                    found: format!("{reply:?}"),
                });
            }
        }
        Ok(())
    }
}
