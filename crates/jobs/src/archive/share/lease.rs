//! A lease that this agent has taken: of a line, or of the cluster.
//!
//! Invariants: once it is lost it stays lost; [`TakenLease::confirm`] gives true only if everything that was written before the call is seen by
//! whoever takes over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use slotkeep_format::LeaseNote;
use slotkeep_repo::Hold;
use tokio::sync::{Mutex, Notify};

use super::keeper::PresenceTime;
use crate::Result;

/// The lease.
pub(crate) struct TakenLease {
    name: String,
    hold: Mutex<Hold>,
    said: std::sync::Mutex<LeaseNote>,
    lost: AtomicBool,
    time: PresenceTime,
    /// Rung when it is found to be lost.
    changed: Arc<Notify>,
}

impl TakenLease {
    pub(crate) fn new(name: String, hold: Hold, time: PresenceTime, changed: Arc<Notify>) -> Arc<Self> {
        let said = std::sync::Mutex::new(hold.record().note.clone());
        Arc::new(Self { name, hold: Mutex::new(hold), said, lost: AtomicBool::new(false), time, changed })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether another is known to have taken it.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Another has taken it.
    pub(crate) fn lose(&self) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    fn judge(&self, held: bool) -> bool {
        if !held {
            self.lose();
        }
        held && !self.is_lost()
    }

    /// Whether something may be written: nobody can have taken the lease by one's own clock, or nobody has by the store's word.
    pub(crate) async fn may_write(&self) -> Result<bool> {
        if self.is_lost() {
            return Ok(false);
        }
        if self.time.holds() {
            return Ok(true);
        }
        self.confirm().await
    }

    /// Whether what was written before counts: nobody has taken the lease, asked of the store.
    pub(crate) async fn confirm(&self) -> Result<bool> {
        let held = self.hold.lock().await.confirm().await?;
        Ok(self.judge(held))
    }

    /// Says something, unless it was said last. False if the lease is lost.
    pub(crate) async fn say(&self, note: LeaseNote) -> Result<bool> {
        if self.is_lost() || *self.said.lock().unwrap_or_else(PoisonError::into_inner) == note {
            return Ok(!self.is_lost());
        }
        let held = self.hold.lock().await.say(note.clone()).await?;
        if held {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = note;
        }
        Ok(self.judge(held))
    }

    /// What was said last.
    pub(crate) fn said(&self) -> LeaseNote {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives it up; `note` stays for whoever takes it.
    pub(crate) async fn release(&self, note: LeaseNote) -> Result<()> {
        if self.is_lost() {
            return Ok(());
        }
        self.hold.lock().await.release(note).await?;
        self.lost.store(true, Ordering::Relaxed);
        Ok(())
    }
}
