//! How long nothing has come from a server, by what this process could have heard.
//!
//! Only time in which the stream was listened to counts. While the disk kept this process waiting, or it stood still as a whole, bytes that
//! came lie unread: that says nothing of the server.
//!
//! Pure: knows no clock.

use std::time::Duration;

/// How long nothing has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Silence {
    heard_nothing_for: Duration,
}

impl Silence {
    /// Something has come, or nothing has to.
    pub(crate) const fn end(&mut self) {
        self.heard_nothing_for = Duration::ZERO;
    }

    /// Nothing has come for so long, listening for `most` at a time. More than that was not listened.
    pub(crate) fn goes_on(&mut self, listened: Duration, most: Duration) {
        self.heard_nothing_for = self.heard_nothing_for.saturating_add(listened.min(most));
    }

    pub(crate) const fn length(&self) -> Duration {
        self.heard_nothing_for
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_have_been_heard_counts() {
        let (tick, mut silence) = (Duration::from_millis(200), Silence::default());
        for _ in 0..10 {
            silence.goes_on(Duration::from_millis(150), tick);
        }
        assert_eq!(silence.length(), Duration::from_millis(1500));
        // The process stood still.
        silence.goes_on(Duration::from_secs(3600), tick);
        assert_eq!(silence.length(), Duration::from_millis(1700));
        silence.end();
        assert_eq!(silence.length(), Duration::ZERO);
    }
}
