//! How often a stream is read: at once while little comes, less often and more at a time while much does. Each read costs a waking of this
//! process, and another of the spool's thread, whatever it brings.
//!
//! Pure: knows no clock. A busy stream is at most [`GATHER`] late, which is less than the disk takes.

use std::time::Duration;

/// How long a busy stream gathers between two reads.
const GATHER: Duration = Duration::from_millis(5);
/// From so many bytes a second on a stream is busy.
const BUSY_BYTES_PER_S: u64 = 2 << 20;
/// For so long bytes are counted before that is decided again.
const WINDOW: Duration = Duration::from_millis(100);

/// When to read next.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    counted_since: Duration,
    counted_bytes: u64,
    busy: bool,
    not_before: Duration,
}

impl Pace {
    /// Takes notice of a read. If there was `more` than it could take, the next one does not wait.
    pub(crate) fn took(&mut self, bytes: usize, more: bool, now: Duration) {
        self.counted_bytes = self.counted_bytes.saturating_add(bytes as u64);
        let counted = now.saturating_sub(self.counted_since);
        if counted >= WINDOW {
            let counted_ms = u64::try_from(counted.as_millis()).unwrap_or(u64::MAX);
            self.busy =
                self.counted_bytes.saturating_mul(1000) >= BUSY_BYTES_PER_S.saturating_mul(counted_ms);
            (self.counted_since, self.counted_bytes) = (now, 0);
        }
        self.not_before = if self.busy && !more { now.saturating_add(GATHER) } else { now };
    }

    /// How long to wait before the next read.
    pub(crate) fn pause(&self, now: Duration) -> Option<Duration> {
        self.not_before.checked_sub(now).filter(|pause| !pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_a_busy_stream_gathers() {
        let mut pace = Pace::default();
        for ms in (1000..1100).step_by(10) {
            pace.took(1000, false, at(ms));
            assert_eq!(pace.pause(at(ms)), None, "100 KB/s at {ms}");
        }
        for ms in 1100..1300 {
            pace.took(16 << 10, false, at(ms));
        }
        assert_eq!(pace.pause(at(1299)), Some(GATHER));
        assert_eq!(pace.pause(at(1302)), Some(at(2)));
        assert_eq!(pace.pause(at(1304)), None);
        pace.took(256 << 10, true, at(1304));
        assert_eq!(pace.pause(at(1304)), None, "more is there");
        // After a silence it is quiet again.
        pace.took(14, false, at(2400));
        assert_eq!(pace.pause(at(2400)), None);
    }
}
