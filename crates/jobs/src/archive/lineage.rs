//! How the histories of one line descend from each other, and whether a place in one has been passed in another.

use std::collections::HashMap;

use slotkeep_format::Parent;
use slotkeep_model::ReplId;

/// Parents of histories.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lineage {
    parents: HashMap<ReplId, Parent>,
}

/// Whether a place has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Reached,
    NotYet,
    /// The line left that history before.
    Never,
}

impl Lineage {
    /// Adds where a history comes from.
    pub(crate) fn add(&mut self, child: &ReplId, parent: &Parent) {
        self.parents.insert(child.clone(), parent.clone());
    }

    /// Where a history comes from, if that is known.
    pub(crate) fn parent(&self, history: &ReplId) -> Option<Parent> {
        self.parents.get(history).cloned()
    }

    /// The histories from `history` back to `ancestor`, which is not one of them, and where each comes from; the oldest first. As far as is known
    /// here: all of them if `ancestor` is not one of its forebears.
    pub(crate) fn back_to(&self, history: &ReplId, ancestor: Option<&ReplId>) -> Vec<(ReplId, Parent)> {
        let mut passed = Vec::new();
        let mut at = history;
        // A chain longer than the table goes in a circle.
        while Some(at) != ancestor && passed.len() < self.parents.len() {
            let Some(parent) = self.parents.get(at) else { break };
            passed.push((at.clone(), parent.clone()));
            at = &parent.history;
        }
        passed.reverse();
        passed
    }

    /// Where the line of `history` left `ancestor`: nothing if it does not descend from it.
    fn left(&self, history: &ReplId, ancestor: &ReplId) -> Option<u64> {
        let mut at = history;
        // A chain longer than the table goes in a circle.
        for _ in 0..=self.parents.len() {
            let parent = self.parents.get(at)?;
            if parent.history == *ancestor {
                return Some(parent.fork);
            }
            at = &parent.history;
        }
        None
    }

    /// Whether `next` lies behind `complete` on the same line.
    pub(crate) fn advances(&self, complete: &(ReplId, u64), next: &(ReplId, u64)) -> bool {
        if complete.0 == next.0 {
            return next.1 > complete.1;
        }
        self.left(&next.0, &complete.0).is_some()
    }

    /// Whether everything up to `target` is held by a line that is complete up to `complete`.
    pub(crate) fn reach(&self, target: (&ReplId, u64), complete: (&ReplId, u64)) -> Reach {
        let (history, offset) = target;
        if history == complete.0 {
            return if offset <= complete.1 { Reach::Reached } else { Reach::NotYet };
        }
        if let Some(fork) = self.left(complete.0, history) {
            return if offset <= fork { Reach::Reached } else { Reach::Never };
        }
        // The first bytes of a history may be the last ones of its parent.
        match self.parents.get(history) {
            Some(parent) if offset <= parent.fork => self.reach((&parent.history, offset), complete),
            _ => Reach::NotYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(letter: &str) -> ReplId {
        letter.repeat(40).parse().unwrap()
    }

    fn lineage() -> Lineage {
        let mut lineage = Lineage::default();
        lineage.add(&id("b"), &Parent { history: id("a"), fork: 100 });
        lineage.add(&id("c"), &Parent { history: id("b"), fork: 200 });
        lineage
    }

    #[test]
    fn a_place_is_reached_in_its_own_history_or_before_the_fork() {
        let reach = |target: &str, offset, complete: &str, at| {
            lineage().reach((&id(target), offset), (&id(complete), at))
        };
        assert_eq!(reach("a", 50, "a", 50), Reach::Reached);
        assert_eq!(reach("a", 51, "a", 50), Reach::NotYet);
        assert_eq!(reach("a", 100, "c", 250), Reach::Reached);
        assert_eq!(reach("a", 101, "c", 250), Reach::Never);
        assert_eq!(reach("b", 200, "b", 150), Reach::NotYet);
        assert_eq!(reach("b", 100, "a", 100), Reach::Reached, "nothing came behind the fork yet");
        assert_eq!(reach("b", 101, "a", 100), Reach::NotYet);
        assert_eq!(reach("x", 1, "a", 100), Reach::NotYet);
    }

    #[test]
    fn the_way_back_goes_through_every_history_that_is_known() {
        let back = |history: &str, ancestor: Option<&str>| {
            let passed = lineage().back_to(&id(history), ancestor.map(id).as_ref());
            passed.into_iter().map(|(history, parent)| (history, parent.fork)).collect::<Vec<_>>()
        };
        assert_eq!(back("c", Some("a")), [(id("b"), 100), (id("c"), 200)]);
        assert_eq!(back("c", Some("b")), [(id("c"), 200)]);
        assert_eq!(back("c", None), back("c", Some("x")));
        assert_eq!(back("c", Some("x")), back("c", Some("a")));
        assert!(back("a", Some("a")).is_empty() && back("x", Some("a")).is_empty());
        let mut circle = lineage();
        circle.add(&id("a"), &Parent { history: id("c"), fork: 300 });
        assert_eq!(circle.back_to(&id("c"), None).len(), 3);
    }

    #[test]
    fn a_late_segment_of_a_line_that_ended_is_no_advance() {
        let advances = |complete: (&str, u64), next: (&str, u64)| {
            lineage().advances(&(id(complete.0), complete.1), &(id(next.0), next.1))
        };
        assert!(advances(("a", 50), ("a", 60)));
        assert!(advances(("a", 50), ("b", 110)));
        assert!(!advances(("b", 110), ("a", 120)));
        assert!(!advances(("x", 0), ("a", 120)));
    }
}
