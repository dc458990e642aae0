//! Reading no faster than was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ports::Clock;

/// A limit on bytes a second, shared by all who read.
pub(super) struct Throttle {
    clock: Arc<dyn Clock>,
    bytes_per_s: Option<u64>,
    began: Duration,
    bytes: AtomicU64,
}

impl Throttle {
    pub(super) fn new(clock: Arc<dyn Clock>, bytes_per_s: Option<u64>) -> Self {
        let began = clock.elapsed();
        Self { clock, bytes_per_s: bytes_per_s.filter(|rate| *rate > 0), began, bytes: AtomicU64::new(0) }
    }

    /// Counts bytes that were read, and waits until they were allowed to be.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_s else { return };
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let due_ms = u128::from(total) * 1000 / u128::from(rate);
        let due = self.began.saturating_add(Duration::from_millis(u64::try_from(due_ms).unwrap_or(u64::MAX)));
        let early = due.saturating_sub(self.clock.elapsed());
        if !early.is_zero() {
            self.clock.sleep(early).await;
        }
    }
}
