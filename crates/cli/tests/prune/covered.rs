//! Small segments go for a large one only if that one is proved to be whole; until then they are what is read.

use std::collections::BTreeSet;

use slotkeep_format::{Depth, Severity, Unneeded};
use slotkeep_repo::Repository;

use crate::clock::{last, plan, prune};
use crate::common::files;
use crate::compact::compact;
use crate::harness::{Bench, RUNTIME, options};
use crate::lived::restored;

/// A repository that was compacted.
struct Compacted {
    bench: Bench,
    repository: Repository,
    /// What each backup gives back.
    before: Vec<Vec<(String, Vec<u8>)>>,
    small: Vec<String>,
    large: Vec<String>,
    /// The files in which the compaction says what it read back.
    proofs: Vec<String>,
}

impl Compacted {
    fn new() -> Self {
        let bench = Bench::new();
        let repository = bench.open();
        let before = restored_all(&bench);
        let paths = || files(&bench.repo()).into_iter().map(|(path, _)| path);
        let old: BTreeSet<String> = paths().collect();
        assert_eq!(compact(&repository, 1 << 20).groups.len(), 6);
        let new = || paths().filter(|path| !old.contains(path));
        let large: Vec<String> = new().filter(|path| path.contains("/log/")).collect();
        let proofs: Vec<String> = new().filter(|path| path.contains("/verify/")).collect();
        assert_eq!((large.len(), proofs.len()), (6, 1));
        let small = old.into_iter().filter(|path| path.contains("/log/")).collect();
        Self { bench, repository, before, small, large, proofs }
    }

    /// The large segments are half as long, or have a bit that fell over and nothing that shows it.
    fn spoil(&self, large: &[String], silently: bool) {
        for path in large {
            let file = self.bench.object(path);
            let (mut bytes, modified) =
                (std::fs::read(&file).unwrap(), std::fs::metadata(&file).unwrap().modified().unwrap());
            if silently {
                bytes[20] ^= 4;
                std::fs::write(&file, bytes).unwrap();
                std::fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
            } else {
                bytes.truncate(bytes.len() / 2);
                std::fs::write(&file, bytes).unwrap();
            }
        }
    }

    /// How many small segments a prune would give up for large ones.
    fn covered(&self) -> usize {
        let preview = plan(&self.repository, &last(9), 48).preview();
        preview.objects.iter().filter(|object| object.why == Unneeded::Covered).count()
    }

    /// Prunes twice, a day apart, from that hour on.
    fn prune_twice(&self, hours: i64) {
        prune(&self.repository, &last(9), hours);
        prune(&self.repository, &last(9), hours + 25);
    }

    fn small_left(&self) -> usize {
        self.small.iter().filter(|path| self.bench.object(path).exists()).count()
    }
}

fn restored_all(bench: &Bench) -> Vec<Vec<(String, Vec<u8>)>> {
    bench.backup_ids().iter().map(|id| restored(&bench.repo(), id, 3)).collect()
}

#[test]
fn small_segments_stay_while_the_large_one_is_damaged_and_are_joined_anew() {
    let compacted = Compacted::new();
    let Compacted { bench, repository, before, small, large, .. } = &compacted;
    compacted.spoil(large, false);
    assert_eq!(restored_all(bench), *before, "nobody needs to know it before");
    compacted.prune_twice(48);
    assert_eq!(compacted.small_left(), small.len());
    assert_eq!(restored_all(bench), *before);
    // What is wrong is said, and that it is not the end.
    let record = bench.verify(&options(Depth::Structure)).unwrap();
    assert_eq!(record.worst(), Severity::Problem);
    let advice: Vec<_> = record.findings.iter().filter_map(|found| found.advice.as_deref()).collect();
    assert!(advice.iter().all(|advice| advice.contains("other segments hold the same")), "{advice:?}");
    let report = compact(repository, 1 << 20);
    assert_eq!((report.groups.len(), report.read_again), (6, 0));
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Ok);
    compacted.prune_twice(100);
    assert_eq!(compacted.small_left(), small.len() - 12);
    assert_eq!(restored_all(bench), *before);
}

#[test]
fn what_a_verification_has_found_counts_more_than_an_older_proof() {
    let compacted = Compacted::new();
    compacted.spoil(&compacted.large[..1], true);
    assert_eq!(compacted.covered(), 12, "nobody knows it yet");
    let record = compacted.bench.verify(&options(Depth::Structure)).unwrap();
    assert_eq!(record.findings.len(), 1, "{:#?}", record.findings);
    assert_eq!(compacted.covered(), 10);
    compacted.prune_twice(48);
    assert_eq!(compacted.small_left(), compacted.small.len() - 10);
    assert_eq!(restored_all(&compacted.bench), compacted.before);
}

/// As a compaction leaves it that was killed before it had read back what it wrote, and as earlier versions left it.
#[test]
fn large_segments_without_a_proof_are_read_by_the_next_compaction() {
    let compacted = Compacted::new();
    let Compacted { bench, repository, proofs, large, .. } = &compacted;
    std::fs::remove_file(bench.object(&proofs[0])).unwrap();
    compacted.spoil(&large[..1], true);
    assert_eq!(compacted.covered(), 0);
    compacted.prune_twice(48);
    assert_eq!(compacted.small_left(), compacted.small.len());
    assert_eq!(restored_all(bench), compacted.before);
    let report = compact(repository, 1 << 20);
    assert_eq!((report.groups.len(), report.read_again), (1, 5));
    assert_eq!(compacted.covered(), 12);
    assert_eq!(compact(repository, 1 << 20).read_again, 0);
    compacted.prune_twice(100);
    assert_eq!(compacted.small_left(), compacted.small.len() - 12);
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Ok);
    assert_eq!(restored_all(bench), compacted.before);
}

#[test]
fn a_damaged_large_segment_is_not_deleted_for_small_ones_that_are_damaged_too() {
    let compacted = Compacted::new();
    let Compacted { bench, repository, small, large, .. } = &compacted;
    let log = large[0].rsplit_once('/').unwrap().0;
    let one = small.iter().find(|path| path.starts_with(log)).unwrap().clone();
    compacted.spoil(&large[..1], false);
    compacted.spoil(&[one], false);
    let options =
        slotkeep_jobs::compact::CompactOptions { cluster: "main".to_owned(), target_bytes: 1 << 20 };
    let outcome = RUNTIME.block_on(async {
        let plan = slotkeep_jobs::compact::CompactPlan::make(repository, &options).await.unwrap();
        plan.run(&crate::clock::context(0), repository).await
    });
    assert_eq!(outcome.unwrap_err().kind(), slotkeep_jobs::ErrorKind::Corrupt);
    assert!(large.iter().chain(small).all(|path| bench.object(path).exists()));
    // What it did not hinder stays proved.
    assert_eq!(compacted.covered(), 10);
}
