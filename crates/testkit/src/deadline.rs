//! Waiting: the one place of this crate that looks at a clock or sleeps. Real servers run in real time, so their clock is
//! the machine's, not a test's.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long to rest between two looks at a condition: short beside what a server needs, long beside what a look costs.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A moment by which something must have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// The deadline that lies `limit` ahead.
    pub fn after(limit: Duration) -> Self {
        Self { at: now() + limit, limit }
    }

    /// What is left until then; zero when it has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(now())
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }

    /// Looks again and again until `look` gives `Ok`, and returns that.
    ///
    /// `look` says in its `Err` what stands in the way. [`Error::Deadline`] if that is still so at the deadline.
    pub fn wait_for<T>(self, what: &str, mut look: impl FnMut() -> Result<T, NotYet>) -> Result<T> {
        loop {
            match look() {
                Ok(value) => return Ok(value),
                Err(NotYet::Never(error)) => return Err(error),
                Err(NotYet::Because(last)) if self.has_passed() => {
                    return Err(Error::Deadline { what: what.to_owned(), limit: self.limit, last });
                }
                Err(NotYet::Because(_)) => rest(LOOK_EVERY.min(self.left())),
            }
        }
    }
}

/// Why a condition is not met.
#[derive(Debug)]
pub enum NotYet {
    /// It may be later.
    Because(String),
    /// It will never be: waiting on is pointless.
    Never(Error),
}

impl NotYet {
    /// It may be met later; until then, this stands in the way.
    pub fn because(reason: impl Into<String>) -> Self {
        Self::Because(reason.into())
    }
}

impl From<Error> for NotYet {
    /// A server that cannot be asked now may be asked later.
    fn from(error: Error) -> Self {
        match error {
            Error::ServerDied { .. } => Self::Never(error),
            other => Self::Because(other.to_string()),
        }
    }
}

/// [`Deadline::wait_for`] with a deadline `limit` ahead.
pub fn wait_for<T>(limit: Duration, what: &str, look: impl FnMut() -> Result<T, NotYet>) -> Result<T> {
    Deadline::after(limit).wait_for(what, look)
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts to measure.
    pub fn start() -> Self {
        Self(now())
    }

    /// The time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Lets others run between two writes: a client that never rests starves servers, and what is tested, on a machine with few cores.
pub fn breathe() {
    rest(Duration::from_micros(200));
}

/// Lets that much time pass: for a link or a client slowed down on purpose, never to wait for a condition.
pub(crate) fn rest(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "real servers run in real time; only this module sleeps")]
    std::thread::sleep(time);
}

/// The time of day, in ms since 1970.
pub(crate) fn now_ms() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "real servers run in real time; only this module reads the clock"
    )]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "real servers run in real time; only this module reads the clock"
    )]
    Instant::now()
}
