//! Which segments to join. Pure.
//!
//! Invariants: the segments of a group follow each other without a gap or an overlap; no group holds the segment that ends last; a group is at
//! least half as large again as its largest segment, so that a byte is written again only when its segment grows by that.

use slotkeep_repo::SegmentEntry;

/// Groups of segments of one history, given in the order of their starts, the longest first.
pub(super) fn groups(segments: Vec<SegmentEntry>, target_bytes: u64) -> Vec<Vec<SegmentEntry>> {
    let newest_end = segments.iter().map(|segment| segment.end).max();
    let mut covered_to = 0;
    let mut groups: Vec<Vec<SegmentEntry>> = Vec::new();
    let mut group: Vec<SegmentEntry> = Vec::new();
    let mut bytes = 0_u64;
    for segment in segments {
        if segment.end <= covered_to {
            // A larger one holds the same.
            continue;
        }
        covered_to = segment.end;
        if Some(segment.end) == newest_end {
            break;
        }
        let follows = group.last().is_none_or(|last| last.end == segment.start);
        let fits = bytes.saturating_add(segment.object_bytes) <= target_bytes;
        if !follows || !fits {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes = bytes.saturating_add(segment.object_bytes);
        group.push(segment);
    }
    groups.push(group);
    groups.retain(|group| {
        let sizes = || group.iter().map(|segment| segment.object_bytes);
        let largest = sizes().max().unwrap_or(0);
        let together = sizes().fold(0_u64, u64::saturating_add);
        group.len() > 1 && together.saturating_mul(2) >= largest.saturating_mul(3)
    });
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotkeep_model::ReplId;
    use slotkeep_repo::StoredObject;

    fn segment(start: u64, end: u64, bytes: u64) -> SegmentEntry {
        let history: ReplId = "a".repeat(40).parse().unwrap();
        let path = format!("main/history/{history}/log/{start:020}-{end:020}.zst");
        SegmentEntry::of(&history, &StoredObject { path, bytes, modified_ms: 0 }).unwrap()
    }

    fn grouped(segments: &[(u64, u64, u64)], target: u64) -> Vec<Vec<(u64, u64)>> {
        let segments = segments.iter().map(|(start, end, bytes)| segment(*start, *end, *bytes)).collect();
        let groups = groups(segments, target).into_iter();
        groups.map(|group| group.iter().map(|segment| (segment.start, segment.end)).collect()).collect()
    }

    #[test]
    fn what_follows_without_a_gap_is_joined_up_to_the_size() {
        let ten: Vec<_> = (0..10).map(|n| (1 + n * 10, 11 + n * 10, 5)).collect();
        assert_eq!(
            grouped(&ten, 20),
            [vec![(1, 11), (11, 21), (21, 31), (31, 41)], vec![(41, 51), (51, 61), (61, 71), (71, 81)],]
        );
        // Of the rest the newest stays, and one is no group.
        assert_eq!(grouped(&ten, 1000), [(0..9).map(|n| (1 + n * 10, 11 + n * 10)).collect::<Vec<_>>()]);
        assert!(grouped(&ten[..2], 1000).is_empty());
        assert!(grouped(&[], 1000).is_empty());
    }

    #[test]
    fn gaps_overlaps_and_what_is_covered_are_left_out() {
        let gap = [(1, 11, 5), (11, 21, 5), (25, 31, 5), (31, 41, 5), (41, 51, 5)];
        assert_eq!(grouped(&gap, 100), [[(1, 11), (11, 21)], [(25, 31), (31, 41)]]);
        let overlap = [(1, 21, 5), (11, 31, 5), (31, 41, 5), (41, 51, 5)];
        assert_eq!(grouped(&overlap, 100), [[(11, 31), (31, 41)]]);
        let covered = [(1, 31, 11), (1, 11, 5), (11, 21, 5), (21, 31, 5), (31, 41, 5), (41, 51, 5)];
        assert!(grouped(&covered, 100).is_empty(), "a large segment is not written again for a small one");
    }
}
