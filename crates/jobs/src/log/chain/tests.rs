use proptest::prelude::*;

use super::*;

fn id(number: usize) -> ReplId {
    format!("{number:040}").parse().unwrap()
}

fn parent(number: usize, fork: u64) -> Parent {
    Parent { history: id(number), fork }
}

/// One range; a `vec![1..2]` looks like a mistake.
fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

fn base(history: usize, offset: u64, number: usize) -> BasePlace {
    BasePlace { place: Place { history: id(history), offset }, number }
}

/// Two failovers; the second lost the tail of the history before.
fn failovers() -> Chain {
    let mut chain = Chain::default();
    chain.add_history(id(1), None, 1, vec![11..21, 21..41]);
    chain.add_history(id(2), Some(parent(1, 30)), 2, one(31..51));
    chain.add_history(id(3), Some(parent(2, 50)), 3, vec![51..61, 71..81]);
    chain.add_base(base(1, 10, 0));
    chain.add_base(base(3, 75, 1));
    chain
}

#[test]
fn a_route_goes_through_forks_and_leaves_divergent_tails_out() {
    let chain = failovers();
    let path = chain.path(&chain.main_tip(&id(1)));
    let (from, pieces) = chain.route(&path, 60).unwrap();
    assert_eq!(from.number, 0);
    assert_eq!(
        pieces,
        [
            Piece { history: id(1), range: 11..31 },
            Piece { history: id(2), range: 31..51 },
            Piece { history: id(3), range: 51..61 },
        ]
    );
    assert_eq!(chain.windows(&path), [Window { from: 10, to: 60 }, Window { from: 75, to: 80 }]);
    assert_eq!(chain.divergent_tail(&id(1)), Some(Piece { history: id(1), range: 31..41 }));
    assert_eq!(chain.divergent_tail(&id(2)), None);
}

#[test]
fn a_history_that_ended_before_its_first_byte_breaks_nothing_off() {
    let mut chain = Chain::default();
    chain.add_history(id(1), None, 1, one(11..31));
    chain.add_history(id(2), Some(parent(1, 30)), 2, Vec::new());
    chain.add_history(id(3), Some(parent(2, 30)), 3, one(31..41));
    chain.add_base(base(1, 10, 0));
    let path = chain.path(&id(3));
    assert_eq!(chain.windows(&path), [Window { from: 10, to: 40 }]);
    let (_, pieces) = chain.route(&path, 40).unwrap();
    let histories: Vec<_> = pieces.into_iter().map(|piece| piece.history).collect();
    assert_eq!(histories, [id(1), id(3)]);
}

#[test]
fn what_followed_a_place_goes_through_forks_and_leaves_divergent_tails_out() {
    let mut chain = failovers();
    let place = Place { history: id(1), offset: 30 };
    let path = chain.path(&chain.main_tip(&id(1)));
    let followed = [Piece { history: id(2), range: 31..51 }, Piece { history: id(3), range: 51..61 }];
    assert_eq!(chain.behind(&place, None), followed);
    // What is missing of it ends it, however much there is behind.
    assert_eq!(path.pieces(30, 60), followed);
    // The server that took over there writes a history of its own, which is followed last.
    chain.add_history(id(4), Some(parent(1, 30)), 4, one(31..35));
    assert_eq!(chain.behind(&place, Some(&id(4))), followed);
    // Of a place that the main line did not come by, what its own history holds.
    let lost = Place { history: id(1), offset: 33 };
    assert_eq!(chain.behind(&lost, None), [Piece { history: id(1), range: 34..41 }]);
    // Where the first bytes behind the fork are missing nothing takes their place.
    let mut chain = Chain::default();
    chain.add_history(id(1), None, 1, one(11..41));
    chain.add_history(id(2), Some(parent(1, 30)), 2, one(35..51));
    assert_eq!(chain.behind(&place, None), []);
}

#[test]
fn a_divergent_tail_is_reached_by_its_own_path() {
    let chain = failovers();
    let (from, pieces) = chain.route(&chain.path(&id(1)), 40).unwrap();
    assert_eq!((from.number, pieces), (0, vec![Piece { history: id(1), range: 11..41 }]));
}

#[test]
fn what_is_missing_is_named_with_the_places_around_it() {
    let chain = failovers();
    let path = chain.path(&id(3));
    let missing = chain.route(&path, 72).unwrap_err();
    assert_eq!(missing.gap, Some(Piece { history: id(3), range: 61..71 }));
    assert_eq!(missing.before, Some(Place { history: id(3), offset: 60 }));
    assert_eq!(missing.after, Some(Place { history: id(3), offset: 75 }));
    let too_early = chain.route(&path, 9).unwrap_err();
    assert_eq!((too_early.gap, too_early.before), (None, None));
    assert_eq!(too_early.after, Some(Place { history: id(1), offset: 10 }));
}

#[test]
fn a_loop_of_histories_ends() {
    let mut chain = Chain::default();
    chain.add_history(id(1), Some(parent(2, 5)), 1, one(6..10));
    chain.add_history(id(2), Some(parent(1, 9)), 2, one(10..12));
    assert!(chain.path(&id(1)).stretches().len() <= 2);
    chain.add_look(&id(1), 7);
    chain.main_tip(&id(1));
    chain.tips();
}

#[test]
fn the_main_line_is_the_one_that_was_seen_to_live_last() {
    let mut chain = failovers();
    let tips = |chain: &Chain| chain.tips().into_iter().cloned().collect::<Vec<_>>();
    // What the first one holds behind the fork is on a line of its own.
    assert_eq!(tips(&chain), [id(3), id(1)]);
    chain.add_look(&id(2), 2);
    assert_eq!(chain.main_tip(&id(1)), id(3), "the third one was followed since");
    chain.add_look(&id(1), 4);
    assert_eq!(chain.main_tip(&id(1)), id(1));
    assert_eq!(tips(&chain), [id(1), id(3)]);
    assert_eq!(chain.divergent_tail(&id(1)), None);
    chain.add_look(&id(2), 5);
    assert_eq!(chain.main_tip(&id(1)), id(2), "it was left by the third one before");
    // It holds nothing behind that fork, but ends a line now.
    assert_eq!(tips(&chain), [id(2), id(3), id(1)]);
    assert_eq!(chain.divergent_tail(&id(1)), Some(Piece { history: id(1), range: 31..41 }));
    // Of two that took over, the one that lived last goes on.
    chain.add_history(id(4), Some(parent(2, 45)), 6, one(46..50));
    assert_eq!(chain.main_tip(&id(1)), id(4));
    chain.add_look(&id(3), 7);
    assert_eq!(chain.main_tip(&id(1)), id(3));
    chain.add_look(&id(9), 8);
    assert!(!chain.histories().any(|known| *known == id(9)));
}

#[test]
fn the_longest_segments_are_read() {
    let mut chain = Chain::default();
    chain.add_history(id(1), None, 0, vec![1..5, 1..20, 5..10, 10..15, 15..30, 20..25, 40..50]);
    let chosen = chain.choose(&Piece { history: id(1), range: 3..45 });
    assert_eq!(chosen, [(1..20, 3..20), (15..30, 20..30), (40..50, 40..45)]);
}

/// A history: its parent and fork, its ranges.
type Drawn = (Option<(usize, u64)>, Vec<Range<u64>>);

/// A graph: for each history its parent and fork, its ranges; and bases.
#[derive(Debug, Clone)]
struct Graph {
    histories: Vec<Drawn>,
    bases: Vec<(usize, u64)>,
}

const END: u64 = 40;

fn graphs() -> impl Strategy<Value = Graph> {
    let range = (1..END, 1_u64..15).prop_map(|(start, length)| start..(start + length).min(END));
    let history =
        (proptest::option::of((any::<prop::sample::Index>(), 0..END)), prop::collection::vec(range, 0..8));
    let histories = prop::collection::vec(history, 1..5);
    let bases = prop::collection::vec((any::<prop::sample::Index>(), 0..END), 0..4);
    (histories, bases).prop_map(|(histories, bases)| {
        let count = histories.len();
        let histories: Vec<_> = histories
            .into_iter()
            .enumerate()
            .map(|(number, (parent, ranges))| {
                let parent = parent.filter(|_| number > 0).map(|(index, fork)| (index.index(number), fork));
                (parent, ranges)
            })
            .collect();
        let bases = bases.into_iter().map(|(index, offset)| (index.index(count), offset)).collect();
        Graph { histories, bases }
    })
}

impl Graph {
    fn chain(&self) -> Chain {
        let mut chain = Chain::default();
        for (number, (from, ranges)) in self.histories.iter().enumerate() {
            let parent = from.map(|(history, fork)| parent(history, fork));
            chain.add_history(id(number), parent, i64::try_from(number).unwrap(), ranges.clone());
        }
        for (number, (history, offset)) in self.bases.iter().enumerate() {
            chain.add_base(base(*history, *offset, number));
        }
        chain
    }

    /// Which history a byte belongs to, seen from a history; the fork that leads there is the lowest one on the way.
    fn owner(&self, history: usize, offset: u64) -> usize {
        match self.histories[history].0 {
            Some((parent, fork)) if offset <= fork => self.owner(parent, offset),
            _ => history,
        }
    }

    fn has_byte(&self, history: usize, offset: u64) -> bool {
        let owner = self.owner(history, offset);
        self.histories[owner].1.iter().any(|range| range.contains(&offset))
    }

    fn has_base(&self, history: usize, offset: u64) -> bool {
        self.bases.iter().any(|(of, at)| {
            *at == offset && {
                // On the way from `history` up: below every fork passed, and not below its own.
                let (mut here, mut limit) = (history, u64::MAX);
                loop {
                    let from = self.histories[here].0;
                    let after = from.map_or(0, |(_, fork)| fork).min(limit);
                    if here == *of && after <= offset && offset <= limit {
                        return true;
                    }
                    let Some((parent, fork)) = from else { return false };
                    limit = limit.min(fork);
                    here = parent;
                }
            }
        })
    }

    fn reachable(&self, history: usize, offset: u64) -> bool {
        self.has_base(history, offset)
            || (offset > 0 && self.has_byte(history, offset) && self.reachable(history, offset - 1))
    }
}

proptest! {
    #[test]
    fn every_byte_and_every_base_is_on_the_way_to_a_tip(
        graph in graphs(), looks in prop::collection::vec((0_usize..5, 0_i64..6), 0..4)
    ) {
        // Nothing forks off a history before that begins.
        let mut graph = graph;
        for number in 1..graph.histories.len() {
            if let Some((parent, fork)) = graph.histories[number].0 {
                let begun = graph.histories[parent].0.map_or(0, |(_, fork)| fork);
                graph.histories[number].0 = Some((parent, fork.max(begun)));
            }
        }
        let mut chain = graph.chain();
        for (history, seen) in looks {
            chain.add_look(&id(history), seen);
        }
        let paths: Vec<Path> = chain.tips().into_iter().map(|tip| chain.path(tip)).collect();
        let is_held = |place: &Place| paths.iter().any(|path| path.holds(place));
        for (number, (from, ranges)) in graph.histories.iter().enumerate() {
            // What a history has before its own fork is its parent's.
            let after = from.map_or(0, |(_, fork)| fork);
            for offset in ranges.iter().flat_map(Clone::clone).filter(|offset| *offset > after) {
                prop_assert!(is_held(&Place { history: id(number), offset }), "{} of {}", offset, number);
            }
            let main = Place { history: chain.main_tip(&id(number)), offset: u64::MAX };
            prop_assert!(is_held(&main), "{:?}", main);
        }
        for base in chain.bases() {
            let from = chain.parent(&base.place.history).map_or(0, |parent| parent.fork);
            prop_assert!(base.place.offset < from || is_held(&base.place));
        }
    }

    #[test]
    fn places_are_reached_exactly_if_a_base_and_every_byte_are_there(graph in graphs()) {
        let chain = graph.chain();
        for history in 0..graph.histories.len() {
            let path = chain.path(&id(history));
            let windows = chain.windows(&path);
            for offset in 0..END {
                let expected = graph.reachable(history, offset);
                let route = chain.route(&path, offset);
                prop_assert_eq!(route.is_ok(), expected, "{} of {}", offset, history);
                prop_assert_eq!(windows.iter().any(|w| w.from <= offset && offset <= w.to), expected);
                match route {
                    Ok((base, pieces)) => {
                        let bytes: u64 = pieces.iter().map(Piece::bytes).sum();
                        prop_assert_eq!(bytes, offset - base.place.offset);
                        for piece in &pieces {
                            let chosen = chain.choose(piece);
                            let mut next = piece.range.start;
                            for (segment, part) in &chosen {
                                prop_assert!(segment.start <= part.start && part.end <= segment.end);
                                prop_assert_eq!(part.start, next);
                                next = part.end;
                            }
                            prop_assert_eq!(next, piece.range.end);
                        }
                    }
                    Err(missing) => {
                        let before = (0..offset).rev().find(|offset| graph.reachable(history, *offset));
                        let after = (offset + 1..END).find(|offset| graph.reachable(history, *offset));
                        prop_assert_eq!(missing.before.map(|place| place.offset), before);
                        prop_assert_eq!(missing.after.map(|place| place.offset), after);
                    }
                }
            }
        }
    }
}
