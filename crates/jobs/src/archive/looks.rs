//! How the cluster looked over time, as this agent saw it, and what of that is still to be written down.
//!
//! Invariants: every agent keeps its own looks, so that whoever takes the lead over can say what happened while nobody had it; with each change goes
//! until when the cluster was seen as before; changes that can't be written down now are written down later; a look says how the cluster is when it ends only if it
//! began just before: what an agent saw that was frozen meanwhile may have changed since.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::TopologyRecord;

/// How many changes are kept at the most that are not written down.
const KEPT_CHANGES: usize = 32;
/// A cluster that does not change is written down anew so often: so long a span of moments is in doubt at the most if slots change hands
/// while no agent runs.
const CONFIRMED_EVERY: Duration = Duration::from_hours(1);

/// A look takes no longer, unless the agent did not run meanwhile.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The cluster as it looked from one look until another.
#[derive(Debug)]
struct Look {
    record: TopologyRecord,
    /// When the last look began that found it so.
    as_known_at: Timestamp,
}

/// The looks of one agent, oldest first, each different from the one before.
#[derive(Debug, Default)]
pub(super) struct Looks {
    looks: VecDeque<Look>,
    /// How many of them the repository holds, the first or none; absent where this agent does not lead, or does not know yet.
    written: Option<usize>,
}

impl Looks {
    /// Takes note of a look that began at that moment; whether it says anything.
    pub(super) fn see(&mut self, mut record: TopologyRecord, began_at: Timestamp) -> bool {
        if record.seen_at.duration_since(began_at).unsigned_abs() > LOOK_LIMIT {
            return false;
        }
        if let Some(last) = self.looks.back_mut() {
            let age = record.seen_at.duration_since(last.record.seen_at).unsigned_abs();
            let is_confirmed = self.written.is_none() || age < CONFIRMED_EVERY;
            if is_confirmed && last.record.shows_the_same(&record) {
                last.as_known_at = began_at;
                return true;
            }
            record.as_before_until = Some(last.as_known_at);
        }
        self.looks.push_back(Look { record, as_known_at: began_at });
        if self.looks.len() > KEPT_CHANGES {
            self.drop_one();
        }
        true
    }

    /// Drops the oldest change that is not written down: the one behind it came at some time since the one before it.
    fn drop_one(&mut self) {
        let number = self.written.unwrap_or_default();
        let dropped = self.looks.remove(number);
        if let (Some(dropped), Some(next)) = (dropped, self.looks.get_mut(number)) {
            next.record.as_before_until = dropped.record.as_before_until;
        }
    }

    /// Whether it is known what the repository holds.
    pub(super) const fn is_joined(&self) -> bool {
        self.written.is_some()
    }

    /// Another agent writes down what is seen, or nobody does.
    pub(super) fn leave(&mut self) {
        self.written = None;
    }

    /// Goes on behind the newest record of the repository. Looks that began before it were its writer's to write down.
    pub(super) fn join(&mut self, newest: Option<&TopologyRecord>) {
        self.written = Some(0);
        let Some(newest) = newest else { return };
        let last = self.looks.len().saturating_sub(1);
        let later = self.looks.iter().position(|look| look.as_known_at >= newest.seen_at).unwrap_or(last);
        // This agent may have seen a little later than the writer what the record shows.
        let same = self.looks.iter().skip(later).position(|look| look.record.shows_the_same(newest));
        self.looks.drain(..later.saturating_add(same.unwrap_or_default()).min(last));
        let Some(first) = self.looks.front_mut() else { return };
        if same.is_some() {
            first.record = newest.clone();
            self.written = Some(1);
            return;
        }
        // Nothing tells until when it was as the record shows it.
        first.record.as_before_until = Some(newest.seen_at);
        if first.record.seen_at < newest.seen_at {
            first.record.seen_at = first.as_known_at;
        }
    }

    /// Takes notice of the newest record of the repository before more is written: an agent that led before may have written it late. One that is ahead of
    /// this agent's own looks is by a clock that is off, and says nothing of what came before them.
    pub(super) fn heed(&mut self, newest: &TopologyRecord) {
        let known = self.looks.front().filter(|_| self.written == Some(1));
        let is_past = self.looks.back().is_some_and(|last| last.as_known_at >= newest.seen_at);
        if is_past && known.is_none_or(|known| known.record.id != newest.id) {
            self.join(Some(newest));
        }
    }

    /// Has the cluster written down once more as it was seen last, where that is all there is to write: nobody may look for a while.
    pub(super) fn confirm(&mut self, id: String) {
        let Some(last) = self.looks.back().filter(|_| self.written == Some(self.looks.len())) else { return };
        let known_at = last.as_known_at;
        if known_at > last.record.seen_at {
            let again = TopologyRecord {
                id,
                seen_at: known_at,
                as_before_until: Some(known_at),
                ..last.record.clone()
            };
            self.looks.push_back(Look { record: again, as_known_at: known_at });
        }
    }

    /// What is to be written down next, if this agent is to do it.
    pub(super) fn unwritten(&self) -> Option<&TopologyRecord> {
        self.looks.get(self.written?).map(|look| &look.record)
    }

    /// Notes that this was written down; whether the cluster looks different by it than by the record before.
    pub(super) fn wrote(&mut self) -> bool {
        let before = if self.written == Some(1) { self.looks.pop_front() } else { None };
        self.written = Some(1);
        let now = self.looks.front();
        before.zip(now).is_some_and(|(before, now)| !before.record.shows_the_same(&now.record))
    }
}

#[cfg(test)]
mod tests {
    use slotkeep_format::ShardState;
    use slotkeep_format::lineage::TOPOLOGY_VERSION;
    use slotkeep_format::manifest::NodeRecord;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    /// Two shards, of which the first has so many slots, seen at that second.
    fn seen(second: i64, slots: u16) -> TopologyRecord {
        let shard = |port: u16, slots: String| ShardState {
            slots: slots.parse().unwrap(),
            importing: slotkeep_model::SlotSet::default(),
            migrating: slotkeep_model::SlotSet::default(),
            unfollowed: slotkeep_model::SlotSet::default(),
            config_epoch: 1,
            primary: NodeRecord {
                id: None,
                addr: format!("127.0.0.1:{port}").parse().unwrap(),
                online: true,
            },
            replicas: vec![],
            history: None,
            offset: None,
        };
        TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: format!("{second:013}-{slots}"),
            seen_at: at(second),
            as_before_until: None,
            cluster_mode: true,
            current_epoch: 1,
            shards: vec![shard(1, format!("0-{}", slots - 1)), shard(2, format!("{slots}-16383"))],
        }
    }

    fn looks_from(seen_of: &[(i64, u16)]) -> Looks {
        let mut looks = Looks::default();
        for (second, slots) in seen_of {
            looks.see(seen(*second, *slots), at(*second));
        }
        looks
    }

    /// What is written down: when it was seen, until when it was as before, and how many slots the first shard has.
    fn write(looks: &mut Looks) -> Vec<(i64, Option<i64>, usize)> {
        let mut written = Vec::new();
        while let Some(record) = looks.unwritten() {
            let second = |at: Timestamp| at.as_second() - 1_000_000;
            let slots = record.shards[0].slots.len();
            written.push((second(record.seen_at), record.as_before_until.map(second), slots));
            looks.wrote();
        }
        written
    }

    #[test]
    fn what_was_seen_while_nobody_led_is_written_down_as_it_was_seen() {
        // The one that led looked at 0, and died; slots went at 3, came back at 7, and others went at 9.
        let mut looks =
            looks_from(&[(-9, 5), (-1, 7), (2, 7), (4, 6), (6, 6), (8, 7), (10, 8), (12, 8), (25, 8)]);
        assert_eq!(write(&mut looks), []);
        looks.join(Some(&seen(0, 7)));
        assert_eq!(write(&mut looks), [(4, Some(2), 6), (8, Some(6), 7), (10, Some(8), 8)]);
        looks.see(seen(27, 9), at(27));
        assert_eq!(write(&mut looks), [(27, Some(25), 9)]);
        // Another one leads for a while.
        looks.leave();
        looks.see(seen(29, 7), at(29));
        assert_eq!(write(&mut looks), []);
        looks.see(seen(31, 6), at(31));
        looks.join(Some(&seen(30, 7)));
        assert_eq!(write(&mut looks), [(31, Some(30), 6)]);
    }

    /// As of an agent that is stopped within a look, or whose machine sleeps.
    #[test]
    fn a_look_that_took_long_says_nothing() {
        let mut looks = looks_from(&[(0, 6)]);
        looks.join(None);
        write(&mut looks);
        assert!(!looks.see(seen(60, 7), at(1)));
        assert!(!looks.see(seen(60, 7), at(90)), "the clock was set back");
        assert_eq!(write(&mut looks), []);
        assert!(looks.see(seen(62, 8), at(61)));
        assert_eq!(write(&mut looks), [(62, Some(0), 8)]);
    }

    #[test]
    fn a_record_that_came_late_is_corrected() {
        let mut looks = looks_from(&[(0, 6)]);
        looks.join(None);
        assert_eq!(write(&mut looks), [(0, None, 6)]);
        looks.see(seen(30, 6), at(30));
        // Its own newest record is no news.
        looks.heed(&seen(0, 6));
        assert_eq!(write(&mut looks), []);
        looks.heed(&seen(20, 7));
        assert_eq!(write(&mut looks), [(30, Some(20), 6)]);
        looks.see(seen(40, 8), at(40));
        looks.heed(&seen(3000, 8));
        assert_eq!(write(&mut looks), [(40, Some(30), 8)]);
    }

    #[test]
    fn what_nobody_saw_lies_between_the_newest_record_and_the_first_look() {
        let mut looks = looks_from(&[(25, 6)]);
        looks.join(Some(&seen(0, 7)));
        assert_eq!(write(&mut looks), [(25, Some(0), 6)]);
        // Without any record nothing is before the first look.
        let mut looks = looks_from(&[(25, 6)]);
        looks.join(None);
        assert_eq!(write(&mut looks), [(25, None, 6)]);
        // What is as the record shows it needs no other.
        let mut looks = looks_from(&[(25, 6)]);
        looks.join(Some(&seen(0, 6)));
        assert_eq!(write(&mut looks), []);
        looks.see(seen(3600, 6), at(3600));
        assert_eq!(write(&mut looks), [(3600, Some(25), 6)]);
    }

    /// As where a shard's primary can't be reached from here.
    #[test]
    fn an_agent_that_sees_less_writes_that_down_behind_what_is_there() {
        let mut looks = looks_from(&[(-100, 6), (10, 6)]);
        looks.join(Some(&seen(0, 7)));
        assert_eq!(write(&mut looks), [(10, Some(0), 6)]);
    }

    #[test]
    fn of_many_changes_that_cannot_be_written_down_the_newest_are_kept() {
        let mut looks = looks_from(&[(0, 1)]);
        looks.join(None);
        assert_eq!(write(&mut looks), [(0, None, 1)]);
        for number in 1..100 {
            looks.see(seen(number, u16::try_from(number).unwrap() + 1), at(number));
        }
        let written = write(&mut looks);
        assert_eq!(written.len(), KEPT_CHANGES - 1);
        let first = 101 - i64::try_from(KEPT_CHANGES).unwrap();
        assert_eq!(written[0], (first, Some(0), usize::try_from(first).unwrap() + 1));
        assert_eq!(written.last(), Some(&(99, Some(98), 100)));
    }

    #[test]
    fn a_cluster_that_does_not_change_is_written_down_now_and_then() {
        let mut looks = looks_from(&[(0, 6)]);
        looks.join(None);
        write(&mut looks);
        for second in (0..=7200).step_by(100) {
            looks.see(seen(second, 6), at(second));
        }
        assert_eq!(write(&mut looks), [(3600, Some(3500), 6), (7200, Some(7100), 6)]);
        // At its end, if it was seen since.
        looks.confirm("last".to_owned());
        assert_eq!(write(&mut looks), []);
        looks.see(seen(7300, 6), at(7300));
        looks.confirm("last".to_owned());
        assert_eq!(write(&mut looks), [(7300, Some(7300), 6)]);
        looks.leave();
        looks.see(seen(7400, 6), at(7400));
        looks.confirm("last".to_owned());
        looks.join(Some(&seen(7350, 6)));
        assert_eq!(write(&mut looks), []);
    }
}
