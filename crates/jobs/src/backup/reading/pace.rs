//! How fast a server is read: so many keys and so many bytes a second, and no faster after a pause.

use std::sync::Arc;
use std::time::Duration;

use crate::ports::Clock;

/// What may be read at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A pace.
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    keys_per_s: u64,
    bytes_per_s: u64,
    /// When all that was read would have been read at that pace.
    due: Duration,
}

impl Pace {
    /// So many keys and so many bytes a second; 0 is no limit.
    pub(super) fn new(clock: Arc<dyn Clock>, keys_per_s: u64, bytes_per_s: u64) -> Self {
        let due = clock.elapsed();
        Self { clock, keys_per_s, bytes_per_s, due }
    }

    /// Waits until so much more may have been read.
    pub(super) async fn keep(&mut self, keys: u64, bytes: u64) {
        let takes = span(keys, self.keys_per_s).max(span(bytes, self.bytes_per_s));
        let now = self.clock.elapsed();
        self.due = self.due.max(now.saturating_sub(BURST)).saturating_add(takes);
        let left = self.due.saturating_sub(now);
        if left > Duration::ZERO {
            self.clock.sleep(left).await;
        }
    }
}

/// How long so much takes at that many a second.
fn span(amount: u64, per_s: u64) -> Duration {
    if per_s == 0 {
        return Duration::ZERO;
    }
    let ns = u128::from(amount).saturating_mul(1_000_000_000) / u128::from(per_s);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_what_the_rate_says() {
        assert_eq!(span(500, 1000), Duration::from_millis(500));
        assert_eq!(span(1, 3), Duration::from_nanos(333_333_333));
        assert_eq!(span(7, 0), Duration::ZERO);
        assert_eq!(span(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }
}
