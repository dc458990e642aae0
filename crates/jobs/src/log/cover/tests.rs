use proptest::prelude::*;
use slotkeep_format::Proofs;
use slotkeep_format::verify::VERIFY_VERSION;
use slotkeep_format::{Depth, Proof};
use slotkeep_model::ReplId;

use super::*;

fn entry(start: u64, end: u64) -> SegmentEntry {
    let history: ReplId = "a".repeat(40).parse().unwrap();
    let path = format!("main/history/{history}/log/{start:020}-{end:020}.zst");
    SegmentEntry::of(&history, &StoredObject { path, bytes: end - start, modified_ms: 1000 }).unwrap()
}

fn overlaps(segments: &[SegmentEntry]) -> Overlaps {
    let mut overlaps = Overlaps::default();
    overlaps.add(&segments.iter().map(named).collect::<Vec<_>>());
    overlaps
}

fn proof(entry: &SegmentEntry, modified_ms: i64) -> Word {
    let proof = Proof {
        object: entry.path().to_owned(),
        stored_bytes: entry.object_bytes,
        modified_ms,
        blake3: String::new(),
        depth: Depth::Objects,
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    Word::Proofs(Proofs { format_version: VERIFY_VERSION, proofs: vec![proof] })
}

fn ranges(segments: &[SegmentEntry]) -> Vec<(u64, u64)> {
    segments.iter().map(|segment| (segment.start, segment.end)).collect()
}

/// Two that cover others, one inside the other, and some that cover none.
fn nested() -> Vec<SegmentEntry> {
    [(1, 41), (1, 21), (1, 11), (11, 21), (21, 41), (41, 51), (45, 61)].map(|(a, b)| entry(a, b)).to_vec()
}

#[test]
fn what_holds_all_bytes_of_another_covers_it() {
    let segments = nested();
    let found = overlaps(&segments);
    let covers: Vec<&str> =
        found.open.iter().filter(|(_, open)| open.covers).map(|(path, _)| path.as_str()).collect();
    assert_eq!(covers, [segments[1].path(), segments[0].path()]);
    // What overlaps in part is no matter of this.
    assert_eq!(found.open.len(), 5);
}

#[test]
fn a_proof_counts_for_the_object_that_it_speaks_of() {
    let segments = nested();
    let mut words = Words::default();
    let mut found = overlaps(&segments);
    found.hear(2000, proof(&segments[0], 999), &mut words);
    assert!(!words.is_proved(segments[0].path()));
    found.hear(2000, proof(&segments[0], 1000), &mut words);
    assert!(words.is_proved(segments[0].path()));
}

#[test]
fn what_others_cover_that_are_whole_is_not_to_be_proved() {
    let segments = nested();
    let covers: BTreeSet<String> = segments[..2].iter().map(|one| one.path().to_owned()).collect();
    let mut words = Words { covers, ..Words::default() };
    assert_eq!(ranges(&words.to_be_proved(&segments)), [(1, 41), (1, 21)]);
    words.proved.insert(segments[0].path().to_owned());
    assert!(words.to_be_proved(&segments).is_empty());
}

#[test]
fn doubtful_segments_are_left_out_where_others_hold_the_same() {
    let segments = nested();
    let of = |numbers: &[usize]| -> BTreeSet<String> {
        numbers.iter().map(|number| segments[*number].path().to_owned()).collect()
    };
    let left = |spoiled: &[usize], unproved: &[usize]| {
        let words = Words { spoiled: of(spoiled), unproved: of(unproved), ..Words::default() };
        ranges(&words.without_doubtful(segments.clone()))
    };
    let small = [(1, 11), (11, 21), (21, 41), (41, 51), (45, 61)];
    assert_eq!(left(&[], &[0, 1]), small);
    assert_eq!(left(&[0, 1], &[]), small);
    // A small one is damaged, so the one that may be whole is needed.
    assert_eq!(left(&[2], &[0]), [(1, 41), (1, 21), (11, 21), (21, 41), (41, 51), (45, 61)][1..]);
    assert_eq!(left(&[2], &[1]).first(), Some(&(1, 41)));
    assert_eq!(left(&[2, 1], &[0]).first(), Some(&(1, 41)));
    // What no other holds stays, whatever it is.
    assert!(left(&[5, 6], &[]).contains(&(41, 51)));
}

/// Whether ranges, given in the order of their starts, hold all of these bytes together.
fn hold(ranges: &[Range<u64>], wanted: Range<u64>) -> bool {
    let mut at = wanted.start;
    for range in ranges.iter().take_while(|range| range.start < wanted.end) {
        if range.start > at {
            return false;
        }
        at = at.max(range.end);
        if at >= wanted.end {
            return true;
        }
    }
    at >= wanted.end
}

/// One after the other, each against all that are left.
fn plainly(words: &Words, mut segments: Vec<SegmentEntry>) -> Vec<SegmentEntry> {
    for doubtful in [&words.spoiled, &words.unproved] {
        for path in segments.iter().map(|one| one.path().to_owned()).collect::<Vec<_>>() {
            let others = segments
                .iter()
                .filter(|other| other.path() != path && !words.spoiled.contains(other.path()))
                .map(|other| other.start..other.end)
                .collect::<Vec<_>>();
            segments.retain(|one| {
                one.path() != path || !doubtful.contains(&path) || !hold(&others, one.start..one.end)
            });
        }
    }
    segments
}

proptest! {
    #[test]
    fn the_same_is_left_out_as_by_looking_at_all(
        segments in prop::collection::btree_map((0_u64..24, 1_u64..12), 0_u8..4, 0..24)
    ) {
        let mut known: Vec<(SegmentEntry, u8)> = segments
            .into_iter()
            .map(|((start, bytes), known)| (entry(start, start + bytes), known))
            .collect();
        known.sort_by_key(|(one, _)| (one.start, Reverse(one.end)));
        let of = |wanted: u8| -> BTreeSet<String> {
            known.iter().filter(|(_, known)| *known == wanted).map(|(one, _)| one.path().to_owned()).collect()
        };
        let words = Words { spoiled: of(0), unproved: of(1), ..Words::default() };
        let segments: Vec<SegmentEntry> = known.iter().map(|(one, _)| one.clone()).collect();
        prop_assert_eq!(ranges(&words.without_doubtful(segments.clone())), ranges(&plainly(&words, segments)));
    }
}
