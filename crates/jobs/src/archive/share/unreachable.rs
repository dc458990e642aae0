//! Lines whose nodes this agent can't follow: another may be able to, from where it stands.

use std::collections::HashMap;
use std::time::Duration;

/// After so many lease times without a node a line is given up.
const GIVEN_AFTER: u32 = 2;
/// For so many lease times it is left to others then.
const AVOIDED_FOR: u32 = 5;

/// Since when lines have had no node, and until when lines are left to others.
#[derive(Debug, Default)]
pub(crate) struct Unreachable {
    since: HashMap<String, Duration>,
    avoided: HashMap<String, Duration>,
}

impl Unreachable {
    /// Takes note of the lines there are, each with whether it has no node; gives those that have had none for too long.
    pub(crate) fn note<'a>(
        &mut self,
        lines: impl Iterator<Item = (&'a str, bool)>,
        now: Duration,
        lease_time: Duration,
    ) -> Vec<String> {
        self.avoided.retain(|_, until| *until > now);
        let mut since = HashMap::new();
        for (name, _) in lines.filter(|(_, lost)| *lost) {
            let known = self.since.get(name).copied().unwrap_or(now);
            since.insert(name.to_owned(), known);
        }
        self.since = since;
        let limit = lease_time.saturating_mul(GIVEN_AFTER);
        let too_long = self.since.iter().filter(|(_, since)| now.saturating_sub(**since) >= limit);
        too_long.map(|(name, _)| name.clone()).collect()
    }

    /// Leaves a line to others for a while.
    pub(crate) fn avoid(&mut self, name: String, now: Duration, lease_time: Duration) {
        self.avoided.insert(name, now.saturating_add(lease_time.saturating_mul(AVOIDED_FOR)));
    }

    /// Whether a line is not left to others.
    pub(crate) fn may_take(&self, name: &str) -> bool {
        !self.avoided.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_node_is_given_up_and_left_alone_for_a_while() {
        let lease_time = Duration::from_secs(10);
        let mut unreachable = Unreachable::default();
        let at = |unreachable: &mut Unreachable, seconds, lost| {
            unreachable.note(
                [("a", lost), ("b", false)].into_iter(),
                Duration::from_secs(seconds),
                lease_time,
            )
        };
        assert!(at(&mut unreachable, 0, true).is_empty());
        assert!(at(&mut unreachable, 19, true).is_empty());
        // It had one in between.
        assert!(at(&mut unreachable, 20, false).is_empty());
        assert!(at(&mut unreachable, 21, true).is_empty());
        assert_eq!(at(&mut unreachable, 41, true), ["a"]);
        unreachable.avoid("a".to_owned(), Duration::from_secs(41), lease_time);
        assert!(!unreachable.may_take("a") && unreachable.may_take("b"));
        at(&mut unreachable, 91, false);
        assert!(unreachable.may_take("a"));
    }
}
