//! Seams for time and randomness, so that a run can be replayed from a seed. The only code that asks the system for either.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// The time of day.
    fn now(&self) -> Timestamp;

    /// Time passed since some moment before; never runs backwards.
    fn elapsed(&self) -> Duration;

    /// Waits. Cancel-safe.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Where randomness comes from.
pub trait Rng: Send + Sync {
    /// Fills `bytes` with random bytes.
    fn fill(&self, bytes: &mut [u8]) -> crate::Result<()>;
}

/// The system's clock.
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    /// A clock that counts from now.
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The system's randomness.
pub struct SystemRng;

impl Rng for SystemRng {
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    fn fill(&self, bytes: &mut [u8]) -> crate::Result<()> {
        getrandom::fill(bytes).map_err(|error| {
            crate::Error::new(crate::ErrorKind::Failed, format!("the system gives no randomness: {error}"))
        })
    }
}

/// Random hexadecimal text of that many digits.
pub fn random_hex(rng: &dyn Rng, digits: usize) -> crate::Result<String> {
    let mut bytes = vec![0; digits.div_ceil(2)];
    rng.fill(&mut bytes)?;
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    Ok(nibbles.take(digits).filter_map(|nibble| char::from_digit(u32::from(nibble), 16)).collect())
}
