//! The time that passes, and waiting for it: before another try, and for a limit of bytes per second. The only code of this crate that knows
//! time; it stands below the jobs' ports.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

const FIRST_MS: u64 = 100;
const LONGEST_MS: u64 = 10_000;
/// How long before their end keys are not used any more: a request takes a while to arrive.
const BEFORE_END: Duration = Duration::from_secs(60);

/// Waits before try number `failures`, counted from 1: twice as long each time, and by chance up to half as long again, so that
/// many that failed together don't come back together.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub(crate) async fn before_try(failures: u32) {
    let doubled = FIRST_MS.saturating_mul(1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX));
    let pause_ms = doubled.min(LONGEST_MS);
    // The standard library seeds each of these at random.
    let jitter_ms = RandomState::new().hash_one(failures) % (pause_ms / 2 + 1);
    tokio::time::sleep(Duration::from_millis(pause_ms.saturating_add(jitter_ms))).await;
}

/// The time now.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A time shortly before that of this machine's clock; now if it is over.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub(super) fn shortly_before(end: SystemTime) -> Instant {
    let left = end.duration_since(SystemTime::now()).unwrap_or_default().saturating_sub(BEFORE_END);
    // A time that is too far away to be said is looked at again in a day.
    now().checked_add(left).unwrap_or_else(|| now() + Duration::from_secs(24 * 60 * 60))
}

/// Waits for that time.
pub(super) async fn until(moment: Instant) {
    tokio::time::sleep_until(moment).await;
}
