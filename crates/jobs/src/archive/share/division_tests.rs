use super::*;

const PATIENCE_MS: u64 = 1000;

fn free(name: &str, near: &[usize]) -> Seat {
    Seat { name: name.to_owned(), state: SeatState::Free { since_ms: 0, left_by: None }, near: near.to_vec() }
}

fn held(name: &str, by: usize, near: &[usize]) -> Seat {
    Seat { state: SeatState::Held { by, ties: Ties::Stream }, ..free(name, near) }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:02}")).collect()
}

/// What each agent does.
fn all(agents: usize, seats: &[Seat], now_ms: u64) -> Vec<Division> {
    (0..agents).map(|me| divide(agents, me, seats, now_ms, PATIENCE_MS)).collect()
}

#[test]
fn one_agent_takes_everything() {
    let seats: Vec<Seat> = names(12).iter().map(|name| free(name, &[])).collect();
    assert_eq!(all(1, &seats, 0)[0].take, (0..12).collect::<Vec<_>>());
    assert_eq!(all(1, &seats[..1], 0)[0].give, Vec::<usize>::new());
}

#[test]
fn agents_that_see_the_same_take_each_shard_once_and_no_more_than_their_share() {
    for agents in 1..6 {
        for shards in 0..20 {
            let near = |number: usize| if number.is_multiple_of(3) { vec![number % agents] } else { vec![] };
            let seats: Vec<Seat> =
                names(shards).iter().enumerate().map(|(number, name)| free(name, &near(number))).collect();
            let divisions = all(agents, &seats, 0);
            let mut taken: Vec<usize> = divisions.iter().flat_map(|division| division.take.clone()).collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..shards).collect::<Vec<_>>());
            for division in divisions {
                assert!(division.take.len() <= shards.div_ceil(agents));
                assert!(division.give.is_empty());
            }
        }
    }
}

#[test]
fn a_shard_is_left_for_whom_it_is_near_then_to_anybody() {
    let seats = [free("a", &[1]), free("b", &[1]), free("c", &[])];
    let early = all(3, &seats, PATIENCE_MS - 1);
    assert_eq!((&early[0].take, &early[1].take, &early[2].take), (&vec![1], &vec![0], &vec![2]));
    // The one that it is near has its share already: the next best takes the other.
    let late = all(3, &seats[..1], PATIENCE_MS);
    assert!(late.iter().all(|division| division.take == [0]), "whoever is first: {late:?}");
}

#[test]
fn nobody_takes_more_than_its_share_unless_nobody_else_does() {
    let seats = [held("a", 0, &[]), held("b", 0, &[]), free("c", &[]), free("d", &[])];
    let at = |now_ms| all(2, &seats, now_ms)[0].take.clone();
    assert_eq!(at(PATIENCE_MS), Vec::<usize>::new());
    assert_eq!(at(2 * PATIENCE_MS), [2, 3]);
    assert_eq!(all(2, &seats, 0)[1].take, [2, 3]);
}

#[test]
fn who_is_started_again_gets_its_shards_back() {
    let mut seats: Vec<Seat> = names(4).iter().map(|name| held(name, 0, &[])).collect();
    for seat in &mut seats[..2] {
        seat.state = SeatState::Free { since_ms: 0, left_by: Some(1) };
    }
    let divisions = all(3, &seats, 0);
    assert_eq!(divisions[1].take, [0, 1]);
    assert!(divisions[2].take.is_empty());
}

#[test]
fn what_is_too_much_is_given_up_the_farthest_and_least_begun_first() {
    let mut seats: Vec<Seat> = names(6).iter().map(|name| held(name, 0, &[])).collect();
    seats[1].near = vec![0];
    seats[2].near = vec![1];
    seats[4].state = SeatState::Held { by: 0, ties: Ties::None };
    seats[5].state = SeatState::Held { by: 0, ties: Ties::Base };
    let division = divide(2, 0, &seats, 0, PATIENCE_MS);
    assert_eq!(division.give, [4, 2, 3]);
    assert!(divide(2, 1, &seats, 0, PATIENCE_MS).give.is_empty());
    // A base that is being taken is not given up.
    seats.truncate(2);
    for seat in &mut seats {
        seat.state = SeatState::Held { by: 0, ties: Ties::Base };
    }
    assert!(divide(2, 0, &seats, 0, PATIENCE_MS).give.is_empty());
}

#[test]
fn small_differences_are_left_as_they_are() {
    let holders = |counts: &[usize]| -> Vec<Seat> {
        let by = counts.iter().enumerate().flat_map(|(by, count)| std::iter::repeat_n(by, *count));
        by.enumerate().map(|(number, by)| held(&format!("{number:03}"), by, &[])).collect()
    };
    let gives = |counts: &[usize]| -> Vec<usize> {
        all(counts.len(), &holders(counts), 0).iter().map(|division| division.give.len()).collect()
    };
    assert_eq!(gives(&[2, 1]), [0, 0]);
    assert_eq!(gives(&[3, 1]), [1, 0]);
    assert_eq!(gives(&[3, 2, 1]), [1, 0, 0]);
    assert_eq!(gives(&[12, 0, 0, 0]), [9, 0, 0, 0]);
    assert_eq!(gives(&[100, 92]), [0, 0], "within an eighth of its share");
    assert_eq!(gives(&[110, 82]), [14, 0], "once it is worth it, all of it");
}
