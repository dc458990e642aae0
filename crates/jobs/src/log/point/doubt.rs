//! What is not known exactly of a moment: the cluster is looked at now and then, and what changed between two looks is seen only afterwards.

use jiff::Timestamp;
use slotkeep_format::{ShardState, TopologyRecord};
use slotkeep_model::SlotSet;
use slotkeep_repo::UnreadLook;

use super::{CLOCKS_APART_MS, SEEN_LATE_MS};
use crate::log::origins::unread;
use crate::log::windows::Moments;
use crate::{Error, ErrorKind, Result};

/// Two looks that follow each other, and the moments at which the cluster may have been as either shows it.
struct Doubt<'a> {
    before: &'a TopologyRecord,
    after: &'a TopologyRecord,
    /// The last moment at which it was certainly as before, in ms since 1970.
    early_ms: i64,
    /// The first one at which it was certainly as afterwards.
    late_ms: i64,
}

impl<'a> Doubt<'a> {
    fn all(topologies: &'a [TopologyRecord]) -> impl Iterator<Item = Self> {
        topologies.windows(2).filter_map(|pair| {
            let [before, after] = pair else { return None };
            Some(Self::between(before, after))
        })
    }

    /// Those that a moment lies in.
    fn at(topologies: &'a [TopologyRecord], moment_ms: i64) -> impl Iterator<Item = Self> {
        Self::all(topologies).filter(move |doubt| doubt.early_ms < moment_ms && moment_ms < doubt.late_ms)
    }

    /// Whether it is about who served what.
    fn is_of_owners(&self) -> bool {
        owners(self.before) != owners(self.after)
    }

    fn between(before: &'a TopologyRecord, after: &'a TopologyRecord) -> Self {
        let seen_ms = after.seen_at.as_millisecond();
        let recorded = after.as_before_until.map(Timestamp::as_millisecond);
        let as_before_until = recorded.unwrap_or(seen_ms.saturating_sub(SEEN_LATE_MS));
        let as_before_until = as_before_until.max(before.seen_at.as_millisecond());
        Self {
            before,
            after,
            early_ms: as_before_until.saturating_sub(CLOCKS_APART_MS),
            late_ms: seen_ms.saturating_add(CLOCKS_APART_MS),
        }
    }
}

/// Moments at which it is not known who served which slots.
struct Unsettled<'a> {
    /// The last moment before them, in ms since 1970.
    early_ms: i64,
    /// The first one behind them.
    late_ms: i64,
    why: Why<'a>,
}

enum Why<'a> {
    /// Slots changed hands, which was seen only afterwards.
    Moved { before: &'a TopologyRecord, after: &'a TopologyRecord },
    /// What was seen can't be read. What the record behind it says of the one before is said of this one, and counts no more.
    Unread(&'a UnreadLook),
}

impl<'a> Unsettled<'a> {
    fn all(topologies: &'a [TopologyRecord], unread: &'a [UnreadLook]) -> impl Iterator<Item = Self> {
        let moved = Doubt::all(topologies).filter(Doubt::is_of_owners).map(|doubt| Self {
            early_ms: doubt.early_ms,
            late_ms: doubt.late_ms,
            why: Why::Moved { before: doubt.before, after: doubt.after },
        });
        unread.iter().map(|look| Self::around(look, topologies)).chain(moved)
    }

    fn around(look: &'a UnreadLook, topologies: &[TopologyRecord]) -> Self {
        let before = topologies.iter().rev().find(|seen| seen.seen_at <= look.from);
        let after = topologies.iter().find(|seen| seen.seen_at > look.until);
        let ms = |seen: &TopologyRecord| seen.seen_at.as_millisecond();
        Self {
            early_ms: before.map_or(i64::MIN, |seen| ms(seen).saturating_sub(CLOCKS_APART_MS)),
            late_ms: after.map_or(i64::MAX, |seen| ms(seen).saturating_add(CLOCKS_APART_MS)),
            why: Why::Unread(look),
        }
    }

    const fn holds(&self, moment_ms: i64) -> bool {
        self.early_ms < moment_ms && moment_ms < self.late_ms
    }

    /// The refusal of a moment.
    fn refuse(&self, moment_ms: i64, hint: String) -> Error {
        match self.why {
            Why::Moved { before, after } => {
                let what = format!(
                    "slots {} changed hands between {} and {}: which shard served them at {} is not known exactly",
                    moved(before, after),
                    text(self.early_ms),
                    text(self.late_ms),
                    text(moment_ms)
                );
                Error::new(ErrorKind::Gap, what).hint(hint)
            }
            Why::Unread(look) => {
                let what = format!("how the cluster looked at {} can't be told", text(moment_ms));
                unread(&look.error, &hint).context(what)
            }
        }
    }
}

/// Refuses a moment at which it is not known who served some slots.
pub(super) fn check_settled(
    topologies: &[TopologyRecord],
    unread: &[UnreadLook],
    moment_ms: i64,
) -> Result<()> {
    let at = |moment_ms| Unsettled::all(topologies, unread).find(|unsettled| unsettled.holds(moment_ms));
    let Some(unsettled) = at(moment_ms) else { return Ok(()) };
    // Its ends may lie in others.
    let (mut earlier_ms, mut later_ms) = (unsettled.early_ms, unsettled.late_ms);
    while let Some(other) = at(earlier_ms) {
        earlier_ms = other.early_ms;
    }
    while let Some(other) = at(later_ms) {
        later_ms = other.late_ms;
    }
    let earlier = (earlier_ms > i64::MIN).then(|| format!("to {} or earlier", text(earlier_ms)));
    let later = (later_ms < i64::MAX).then(|| format!("to {} or later", text(later_ms)));
    let others: Vec<String> = earlier.into_iter().chain(later).collect();
    let hint = match others.as_slice() {
        [] => "restore a backup (--backup, `slotkeep list`)".to_owned(),
        some => format!("restore {}", some.join(", or ")),
    };
    Err(unsettled.refuse(moment_ms, hint))
}

/// What is left of spans without the moments that [`check_settled`] refuses.
pub(in crate::log) fn settled_within(
    topologies: &[TopologyRecord],
    unread: &[UnreadLook],
    mut spans: Vec<Moments>,
) -> Vec<Moments> {
    let moment = |ms: i64| Timestamp::from_millisecond(ms).ok();
    for unsettled in Unsettled::all(topologies, unread) {
        let early = moment(unsettled.early_ms).unwrap_or(Timestamp::MIN);
        let late = moment(unsettled.late_ms).unwrap_or(Timestamp::MAX);
        let halves = |span: Moments| {
            [Moments { to: span.to.min(early), ..span }, Moments { from: span.from.max(late), ..span }]
        };
        spans = spans.into_iter().flat_map(halves).filter(|span| span.from <= span.to).collect();
    }
    spans
}

/// The moments of which a record that can't be read would tell how the cluster looked; without an end where nothing before or behind it tells.
pub(in crate::log) fn unsettled_by(
    look: &UnreadLook,
    topologies: &[TopologyRecord],
) -> (Option<Timestamp>, Option<Timestamp>) {
    let Unsettled { early_ms, late_ms, .. } = Unsettled::around(look, topologies);
    let moment = |ms: i64| Timestamp::from_millisecond(ms).ok();
    (moment(early_ms), moment(late_ms))
}

fn text(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default()
}

/// Marks slots that may have been on their way at a moment, with both shards of each move. A mark too many does no harm: a slot of which no key has
/// moved is all with its old shard. Of a mark too few keys would die: a node does not keep keys of a slot that it neither serves nor imports.
pub(super) fn mark_moves(shards: &mut [ShardState], topologies: &[TopologyRecord], moment_ms: i64) {
    for doubt in Doubt::at(topologies, moment_ms) {
        for seen in doubt.before.shards.iter().chain(&doubt.after.shards) {
            if let Some(shard) = shards.iter_mut().find(|shard| shard.slots == seen.slots) {
                shard.importing = union(&shard.importing, &seen.importing);
                shard.migrating = union(&shard.migrating, &seen.migrating);
                shard.unfollowed = union(&shard.unfollowed, &seen.unfollowed);
            }
        }
    }
    // A look may have come between the two words that begin a move, and a replica that was promoted may not know of it.
    let coming = shards.iter().fold(SlotSet::default(), |all, shard| union(&all, &shard.importing));
    for shard in shards {
        let others = coming.intersection(&shard.slots).intersection(&shard.importing.complement());
        shard.migrating = union(&shard.migrating, &others);
    }
}

fn union(one: &SlotSet, other: &SlotSet) -> SlotSet {
    one.ranges().iter().chain(other.ranges()).copied().collect()
}

/// Which slots each shard served; who its nodes were does not matter.
fn owners(topology: &TopologyRecord) -> Vec<&SlotSet> {
    let mut owners: Vec<&SlotSet> = topology.shards.iter().map(|shard| &shard.slots).collect();
    owners.retain(|slots| !slots.is_empty());
    owners.sort_by_key(|slots| slots.ranges().first().copied());
    owners
}

/// Slots that lie in another set of slots than before.
fn moved(before: &TopologyRecord, after: &TopologyRecord) -> SlotSet {
    let kept = |slots: &SlotSet| {
        let best = before.shards.iter().map(|shard| shard.slots.intersection(slots)).max_by_key(SlotSet::len);
        best.unwrap_or_default()
    };
    let stayed: SlotSet = after
        .shards
        .iter()
        .map(|shard| kept(&shard.slots))
        .flat_map(|slots| slots.ranges().to_vec())
        .collect();
    stayed.complement()
}

#[cfg(test)]
mod tests {
    use slotkeep_format::lineage::TOPOLOGY_VERSION;
    use slotkeep_format::manifest::NodeRecord;

    use super::*;

    /// Shards, each with its slots, those that come and those that go, seen at that second.
    fn seen(second: i64, as_before_until: Option<i64>, shards: &[[&str; 3]]) -> TopologyRecord {
        let at = |second| Timestamp::from_second(second).unwrap();
        let shard = |(port, [slots, importing, migrating]): (usize, &[&str; 3])| ShardState {
            slots: slots.parse().unwrap(),
            importing: importing.parse().unwrap(),
            migrating: migrating.parse().unwrap(),
            unfollowed: SlotSet::default(),
            config_epoch: 1,
            primary: NodeRecord {
                id: None,
                addr: format!("127.0.0.1:{}", port + 1).parse().unwrap(),
                online: true,
            },
            replicas: vec![],
            history: None,
            offset: None,
        };
        TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: format!("{second:013}"),
            seen_at: at(second),
            as_before_until: as_before_until.map(at),
            cluster_mode: true,
            current_epoch: 1,
            shards: shards.iter().enumerate().map(shard).collect(),
        }
    }

    const STILL: [[&str; 3]; 2] = [["0-99", "", ""], ["100-16383", "", ""]];

    /// The marks at a moment: of each shard the slots that come and those that go.
    fn marks(topologies: &[TopologyRecord], second: i64) -> Vec<[String; 2]> {
        let at = topologies.iter().rposition(|topology| topology.seen_at.as_second() <= second).unwrap();
        let mut shards = topologies[at].shards.clone();
        mark_moves(&mut shards, topologies, second * 1000);
        shards.iter().map(|shard| [shard.importing.to_string(), shard.migrating.to_string()]).collect()
    }

    #[test]
    fn a_move_counts_from_the_last_look_without_it() {
        let moving = [["0-99", "", "7"], ["100-16383", "7", ""]];
        let topologies = [seen(0, None, &STILL), seen(100, Some(98), &moving), seen(200, Some(198), &STILL)];
        let none = [[String::new(), String::new()], [String::new(), String::new()]];
        let marked = [[String::new(), "7".to_owned()], ["7".to_owned(), String::new()]];
        assert_eq!(marks(&topologies, 96), none);
        for second in [97, 99, 101, 150, 199, 201] {
            assert_eq!(marks(&topologies, second), marked, "{second}");
        }
        assert_eq!(marks(&topologies, 202), none);
    }

    #[test]
    fn a_move_that_its_target_alone_tells_of_is_one() {
        let begun = [["0-99", "", ""], ["100-16383", "7", ""]];
        let topologies = [seen(0, None, &STILL), seen(100, Some(98), &begun)];
        assert_eq!(
            marks(&topologies, 100),
            [[String::new(), "7".to_owned()], ["7".to_owned(), String::new()]]
        );
        // A shard that says it is given what it has gives nothing away.
        let odd = [["0-99", "7", ""], ["100-16383", "", ""]];
        assert_eq!(marks(&[seen(0, None, &odd)], 5)[1], [String::new(), String::new()]);
    }

    #[test]
    fn moments_between_two_looks_that_differ_in_who_served_what_are_refused() {
        let moved = [["0-98", "", ""], ["99-16383", "", ""]];
        // Nobody led from 0 to 25; whoever took over had seen it as before until 1.
        let topologies = [seen(0, None, &STILL), seen(25, Some(1), &moved)];
        let refused = |second: i64| check_settled(&topologies, &[], second * 1000).is_err();
        assert!(!refused(-1) && refused(0) && refused(3) && refused(26) && !refused(27));
        // The same moments are not offered.
        let span = |from: i64, to: i64| {
            let at = |second| Timestamp::from_second(second).unwrap();
            Moments { from: at(from), to: at(to) }
        };
        let offered = |from, to| settled_within(&topologies, &[], vec![span(from, to)]);
        assert_eq!(offered(-10, 40), [span(-10, -1), span(27, 40)]);
        assert_eq!((offered(2, 20), offered(2, 30)), (vec![], vec![span(27, 30)]));
        assert_eq!(offered(30, 40), [span(30, 40)]);
    }

    #[test]
    fn the_last_settled_moment_may_lie_before_several_doubts() {
        let moved = |last: &'static str, first: &'static str| [[last, "", ""], [first, "", ""]];
        let topologies = [
            seen(0, None, &STILL),
            seen(10, Some(8), &moved("0-98", "99-16383")),
            seen(12, Some(9), &moved("0-97", "98-16383")),
        ];
        let at = |second| Timestamp::from_second(second).unwrap();
        let span = Moments { from: at(-5), to: at(13) };
        assert_eq!(settled_within(&topologies, &[], vec![span]), [Moments { to: at(6), ..span }]);
    }

    #[test]
    fn a_refusal_names_moments_that_are_not_refused() {
        let moved = |last: &'static str, first: &'static str| [[last, "", ""], [first, "", ""]];
        let topologies = [
            seen(0, None, &STILL),
            seen(10, Some(8), &moved("0-98", "99-16383")),
            seen(12, Some(9), &moved("0-97", "98-16383")),
        ];
        // From 6 to 12, and from 8 to 14.
        for moment_ms in [7_000, 9_000, 13_000] {
            let refused = check_settled(&topologies, &[], moment_ms).unwrap_err();
            let hint = "restore to 1970-01-01T00:00:06Z or earlier, or to 1970-01-01T00:00:14Z or later";
            assert_eq!(refused.advice(), Some(hint));
        }
        assert!(
            check_settled(&topologies, &[], 6_000).is_ok() && check_settled(&topologies, &[], 14_000).is_ok()
        );
    }
}
