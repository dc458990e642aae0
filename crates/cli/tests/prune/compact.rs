//! Few large segments for many small ones: the same bytes, commands and times.

use std::collections::BTreeMap;
use std::ops::Range;

use slotkeep_format::{Depth, RetentionPolicy, Severity, TimeSample, Timeline, Unneeded};
use slotkeep_jobs::ObjectKind;
use slotkeep_jobs::compact::{CompactOptions, CompactPlan, CompactReport};
use slotkeep_model::ReplId;
use slotkeep_repo::{Repository, SegmentEntry, SegmentMeta};

use crate::clock::{context, last, prune};
use crate::common::slotkeep;
use crate::harness::{Bench, RUNTIME, meta, piece, write_segment};
use crate::lived::{paths, restored};

pub(crate) fn compact(repository: &Repository, target_bytes: u64) -> CompactReport {
    let options = CompactOptions { cluster: "main".to_owned(), target_bytes };
    RUNTIME.block_on(async {
        let plan = CompactPlan::make(repository, &options).await.unwrap();
        plan.run(&context(0), repository).await.unwrap()
    })
}

fn segments(repository: &Repository, history: &ReplId) -> Vec<SegmentEntry> {
    RUNTIME.block_on(repository.segments("main", history)).unwrap()
}

/// All bytes, the number of commands and all samples that segments hold.
fn contents(repository: &Repository, entries: &[SegmentEntry]) -> (Vec<u8>, u64, Vec<TimeSample>) {
    let (mut bytes, mut commands, mut samples) = (Vec::new(), 0, Vec::new());
    RUNTIME.block_on(async {
        for entry in entries {
            let mut reader = repository.read_segment(entry).await.unwrap();
            commands += reader.record().commands;
            samples.extend(reader.record().times.samples().iter().copied());
            while let Some(piece) = reader.next().await.unwrap() {
                bytes.extend(piece);
            }
        }
    });
    (bytes, commands, samples)
}

#[test]
fn a_large_segment_says_all_that_the_small_ones_said_and_takes_their_place() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    let before: Vec<_> = ids.iter().map(|id| restored(&bench.repo(), id, 3)).collect();
    let histories = RUNTIME.block_on(repository.histories("main")).unwrap();
    let small: BTreeMap<ReplId, Vec<SegmentEntry>> =
        histories.iter().map(|history| (history.clone(), segments(&repository, history))).collect();

    let report = compact(&repository, 1 << 20);
    assert_eq!((report.groups.len(), report.segments), (6, 12), "the newest of each history stays");
    assert!(report.seams.is_empty(), "{report:#?}");
    for (history, small) in &small {
        let all = segments(&repository, history);
        assert_eq!(all.len(), 4);
        // Of those that begin at the same place the longest is the first.
        assert_eq!((all[0].start, all[0].end), (small[0].start, small[1].end));
        assert_eq!(contents(&repository, &all[..1]), contents(&repository, &small[..2]));
        let record = RUNTIME.block_on(repository.segment_record(&all[0])).unwrap();
        let first = RUNTIME.block_on(repository.segment_record(&small[0])).unwrap();
        assert_eq!(
            (record.database, record.source, record.server),
            (first.database, first.source, first.server)
        );
    }
    // Overlapping, all is read as before; a second run has nothing to do.
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Ok);
    assert_eq!(ids.iter().map(|id| restored(&bench.repo(), id, 3)).collect::<Vec<_>>(), before);
    assert!(compact(&repository, 1 << 20).groups.is_empty());

    // The small ones go in the two steps of everything else.
    let marked = prune(&repository, &last(9), 48);
    let covered: Vec<_> = marked.objects.iter().filter(|object| object.kind == ObjectKind::Log).collect();
    assert_eq!(covered.len(), 12);
    assert!(covered.iter().all(|object| object.why == Unneeded::Covered));
    prune(&repository, &last(9), 73);
    for (history, small) in &small {
        let ranges: Vec<Range<u64>> =
            segments(&repository, history).iter().map(|segment| segment.start..segment.end).collect();
        assert_eq!(ranges, [small[0].start..small[1].end, small[2].start..small[2].end]);
    }
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Ok);
    assert_eq!(ids.iter().map(|id| restored(&bench.repo(), id, 3)).collect::<Vec<_>>(), before);
    // The large one is all that there is: its loss is no prune.
    let history = &histories[0];
    let large = segments(&repository, history)[0].path().to_owned();
    std::fs::remove_file(bench.object(&large)).unwrap();
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Problem);
}

#[test]
fn what_does_not_fit_together_is_not_joined() {
    let bench = Bench::new();
    let repository = bench.open();
    let history: ReplId = "9".repeat(40).parse().unwrap();
    RUNTIME.block_on(async {
        // The third has times before those of the second.
        let mut at = 1;
        for number in [1, 5, 2, 3, 4] {
            at = write_segment(&repository, &history, at, number).await;
        }
    });
    let report = compact(&repository, 1 << 20);
    let own: Vec<_> = report.groups.iter().filter(|group| group.history == history).collect();
    let lengths: Vec<u64> = [1, 5, 2, 3, 4].iter().map(|number| piece(*number).len() as u64).collect();
    let third = 1 + lengths[0] + lengths[1];
    let spans: Vec<_> = own.iter().map(|group| (group.start, group.end)).collect();
    assert_eq!(spans, [(1, third), (third, third + lengths[2] + lengths[3])]);
    assert_eq!(report.seams.len(), 1);
    assert!(report.seams[0].why.contains("clock"), "{:?}", report.seams);
    assert!(report.seams[0].segment.contains(&format!("/{third:020}-")), "{:?}", report.seams);
}

#[test]
fn a_segment_with_more_times_than_a_joined_one_may_have_stays_as_it_is() {
    const TIMES: i64 = 50_001;
    let bench = Bench::new();
    let repository = bench.open();
    let history: ReplId = "9".repeat(40).parse().unwrap();
    let mut at = 1;
    RUNTIME.block_on(async {
        for number in 0..2 {
            let bytes = piece(number);
            let end = at + bytes.len() as u64;
            let mut times = Timeline::default();
            for time in 0..TIMES {
                let from_ms = 1_600_000_000_000 + i64::try_from(number).unwrap() * TIMES + time;
                assert!(times.push(TimeSample { from_ms, until_ms: from_ms, offset: at }));
            }
            let mut writer = repository.create_segment("main", &history, at..end).await.unwrap();
            writer.write(&bytes).await.unwrap();
            writer.finish(SegmentMeta { times, ..meta(number, at, end - at) }).await.unwrap();
            at = end;
        }
    });
    let behind = at;
    RUNTIME.block_on(async {
        for number in 2..5 {
            at = write_segment(&repository, &history, at, number).await;
        }
    });
    let report = compact(&repository, 1 << 20);
    let own: Vec<_> = report.groups.iter().filter(|group| group.history == history).collect();
    assert_eq!(own.iter().map(|group| (group.start, group.segments)).collect::<Vec<_>>(), [(behind, 2)]);
    assert_eq!(report.seams.len(), 2, "{:?}", report.seams);
    assert!(report.seams[0].why.contains("too many"), "{:?}", report.seams);
}

#[test]
fn damaged_segments_stop_it_before_anything_is_written() {
    let bench = Bench::new();
    let repository = bench.open();
    let before = paths(&bench.repo());
    let path = before.iter().find(|path| path.contains("/log/")).unwrap();
    let mut bytes = std::fs::read(bench.object(path)).unwrap();
    bytes[20] ^= 4;
    std::fs::write(bench.object(path), bytes).unwrap();
    let options = CompactOptions { cluster: "main".to_owned(), target_bytes: 1 << 20 };
    let outcome = RUNTIME.block_on(async {
        let plan = CompactPlan::make(&repository, &options).await.unwrap();
        plan.run(&context(0), &repository).await
    });
    assert_eq!(outcome.unwrap_err().kind(), slotkeep_jobs::ErrorKind::Corrupt);
    let folder = path.rsplit_once('/').unwrap().0;
    let in_folder = |paths: &[String]| paths.iter().filter(|path| path.starts_with(folder)).count();
    assert_eq!(in_folder(&paths(&bench.repo())), in_folder(&before));
}

#[test]
fn one_damaged_segment_keeps_nothing_else_from_being_joined_and_nothing_from_being_pruned() {
    let bench = Bench::new();
    let logs =
        || paths(&bench.repo()).into_iter().filter(|path| path.contains("/log/")).collect::<Vec<String>>();
    let before = logs();
    let mut bytes = std::fs::read(bench.object(&before[0])).unwrap();
    bytes[20] ^= 4;
    std::fs::write(bench.object(&before[0]), bytes).unwrap();
    let text = bench.text();
    let prune = ["prune", "--json", "--repo", &text, "--keep-last", "1", "--compact", "--yes"];
    let pruned = slotkeep(&prune).expect_code(23);
    assert!(pruned.json()["marked_bytes"].as_u64().unwrap() > 0, "{}", pruned.stdout);
    assert!(pruned.stderr.contains("\"exit_code\":23"), "{}", pruned.stderr);
    assert_eq!(logs().len(), before.len() + 5);
}

#[test]
fn a_window_keeps_large_segments_that_it_needs_a_part_of() {
    let bench = Bench::new();
    let repository = bench.open();
    compact(&repository, 1 << 20);
    let policy =
        RetentionPolicy { window: Some(jiff::SignedDuration::from_hours(1)), ..RetentionPolicy::default() };
    prune(&repository, &policy, 48);
    let swept = prune(&repository, &policy, 73);
    assert!(swept.refused.is_empty());
    let ids = bench.backup_ids();
    restored(&bench.repo(), ids.last().unwrap(), 3);
    assert!(bench.again(Depth::Structure).worst() <= Severity::Note);
}
