//! Shards that no agent follows, and how long that has been so: between two agents there is always a moment.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use slotkeep_model::SlotSet;

/// Since when lines have been followed by nobody, and which were named.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    since: HashMap<String, Duration>,
    named: HashSet<String>,
}

impl Orphans {
    /// Takes note of the lines that nobody follows, with their slots. Gives the slots of all that have had nobody for longer than `limit` as often as
    /// there is a new one.
    pub(super) fn note<'a>(
        &mut self,
        lines: impl Iterator<Item = (&'a str, &'a SlotSet)>,
        now: Duration,
        limit: Duration,
    ) -> Option<SlotSet> {
        let mut since = HashMap::new();
        let (mut late, mut slots) = (HashSet::new(), Vec::new());
        for (name, of_line) in lines {
            let known = self.since.get(name).copied().unwrap_or(now);
            since.insert(name.to_owned(), known);
            if now.saturating_sub(known) > limit {
                late.insert(name.to_owned());
                slots.extend(of_line.ranges().iter().copied());
            }
        }
        self.since = since;
        let is_news = late.iter().any(|name| !self.named.contains(name));
        self.named = late;
        is_news.then(|| slots.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_nobody_follows_for_long_is_named_once() {
        let mut orphans = Orphans::default();
        let mut at = |seconds, lines: &[(&str, &str)]| {
            let lines: Vec<(&str, SlotSet)> =
                lines.iter().map(|(name, slots)| (*name, slots.parse().unwrap())).collect();
            let lines = lines.iter().map(|(name, slots)| (*name, slots));
            let named = orphans.note(lines, Duration::from_secs(seconds), Duration::from_secs(15));
            named.map(|slots| slots.to_string())
        };
        let (a, b) = (("a", "0-5"), ("b", "6-9"));
        assert_eq!(at(0, &[a]), None);
        assert_eq!(at(15, &[a]), None);
        // Somebody took it.
        assert_eq!(at(16, &[]), None);
        assert_eq!(at(17, &[a]), None);
        assert_eq!(at(30, &[a, b]), None);
        assert_eq!(at(33, &[a, b]), Some("0-5".to_owned()));
        assert_eq!(at(34, &[a, b]), None);
        assert_eq!(at(46, &[a, b]), Some("0-9".to_owned()));
        assert_eq!(at(47, &[a, b]), None);
        // Again.
        assert_eq!(at(48, &[b]), None);
        assert_eq!(at(49, &[a, b]), None);
        assert_eq!(at(65, &[a, b]), Some("0-9".to_owned()));
    }
}
