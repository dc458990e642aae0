//! A store with object lock: what it does not delete stays marked, and is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slotkeep_format::Depth;
use slotkeep_jobs::prune::Step;
use slotkeep_repo::Repository;

use crate::clock::{last, prune};
use crate::harness::{Bench, RUNTIME};
use crate::hooked::Hooked;
use crate::lived::{paths, restored};

/// The repository in a store that does not delete paths that contain a word, while the lock holds.
fn open(bench: &Bench, word: &str) -> (Repository, Arc<AtomicBool>) {
    let holds = Arc::new(AtomicBool::new(true));
    let (word, lock) = (word.to_owned(), Arc::clone(&holds));
    let is_locked =
        move |path: &object_store::path::Path| lock.load(Ordering::SeqCst) && path.as_ref().contains(&word);
    (Hooked::of(bench).locking(is_locked).open(bench), holds)
}

#[test]
fn what_the_store_does_not_delete_is_tried_again() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let (repository, holds) = open(&bench, "rdb.zst");
    prune(&repository, &last(1), 48);
    let refused = prune(&repository, &last(1), 80);
    assert_eq!(refused.refused.len(), 3);
    assert!(refused.refused[0].error.contains("object lock"), "{:?}", refused.refused);
    let left: Vec<String> =
        paths(&bench.repo()).into_iter().filter(|path| path.contains(&format!("-{}/", ids[0]))).collect();
    assert_eq!(left.len(), 3, "the rest is deleted: {left:?}");
    assert!(refused.freed_bytes > 0 && refused.marked_bytes > 0);
    let findings = bench.again(Depth::Structure).findings;
    assert!(findings.iter().all(|found| found.severity <= slotkeep_format::Severity::Note), "{findings:#?}");
    holds.store(false, Ordering::SeqCst);
    let done = prune(&repository, &last(1), 81);
    assert!(done.objects.iter().all(|object| object.step == Step::Deleted) && done.objects.len() == 3);
    assert!(!paths(&bench.repo()).iter().any(|path| path.contains(&format!("-{}/", ids[0]))));
}

#[test]
fn what_a_manifest_names_stays_as_long_as_the_manifest() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let first = restored(&bench.repo(), &ids[0], 3);
    let (repository, _) = open(&bench, &format!("backups/{}", ids[0]));
    prune(&repository, &last(1), 48);
    let refused = prune(&repository, &last(1), 80);
    assert_eq!(refused.refused.len(), 1);
    assert_eq!(bench.backup_ids(), [ids[0].clone(), ids[2].clone()]);
    assert_eq!(restored(&bench.repo(), &ids[0], 3), first);
}

/// A topology that a prune gives up.
const TOPOLOGY: &str = "20261125T000000.000Z-0001";

fn gave_up(repository: &Repository) -> (bool, bool) {
    let pruned = RUNTIME.block_on(repository.pruned("main")).unwrap();
    let going = pruned.records.iter().any(|record| !record.going.is_empty());
    (pruned.gave_up_topology("main", TOPOLOGY), going)
}

/// Its answer was lost, say.
#[test]
fn what_the_store_deletes_though_it_fails_is_written_down_as_gone() {
    let bench = Bench::new();
    let repository = Hooked::of(&bench).failing(|path| path.as_ref().contains(TOPOLOGY)).open(&bench);
    prune(&repository, &last(1), 48);
    let report = prune(&repository, &last(1), 80);
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    assert!(!paths(&bench.repo()).iter().any(|path| path.contains(TOPOLOGY)));
    assert_eq!(gave_up(&repository), (true, false));
}

#[test]
fn what_may_have_been_deleted_stays_announced_until_that_is_seen() {
    let bench = Bench::new();
    let is_meant = |path: &object_store::path::Path| path.as_ref().contains(TOPOLOGY);
    let repository = Hooked::of(&bench).failing(is_meant).hiding(is_meant).open(&bench);
    prune(&repository, &last(1), 48);
    let report = prune(&repository, &last(1), 80);
    assert_eq!(report.refused.len(), 1, "{:?}", report.refused);
    assert_eq!(gave_up(&repository), (true, true));
    prune(&repository, &last(1), 82);
    assert_eq!(gave_up(&repository), (true, false));
}
