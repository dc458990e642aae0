//! A backup that builds on what a prune is deleting comes too late, and says so; a pin too.

use slotkeep_format::{PrunedRecord, Unneeded};
use slotkeep_jobs::prune::pin;
use slotkeep_repo::{BackupSelector, Problem};

use crate::clock::{context, last, prune};
use crate::harness::{Bench, RUNTIME};
use crate::hooked::Hooked;

#[test]
fn a_backup_on_a_base_that_is_being_deleted_is_not_listed() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    let mut manifest = bench.latest();
    "20991126T000000.000Z-0004".clone_into(&mut manifest.id);
    let announce = |path: String, why: Unneeded| {
        let id = "20261126T000000.000Z-aaaa".to_owned();
        let mut record = PrunedRecord::new(id, "main".to_owned(), context(0).clock.now());
        record.going.insert(path, why);
        RUNTIME.block_on(repository.put_pruned(&record)).unwrap();
        let committed = RUNTIME.block_on(repository.commit(&manifest));
        let pinned =
            RUNTIME.block_on(pin(&context(0), &repository, "main", &BackupSelector::Id(ids[0].clone())));
        RUNTIME.block_on(repository.delete_pruned("main", &record.id)).unwrap();
        (committed.map_err(|error| error.problem), pinned.map_err(|error| error.to_string()))
    };
    let base = manifest.shards[1].base.rdb.path.clone();
    let (committed, pinned) = announce(base, Unneeded::OfRemoved);
    assert!(matches!(committed, Err(Problem::Pruned(_))), "{committed:?}");
    assert!(pinned.is_ok());
    assert_eq!(bench.backup_ids(), ids);
    let (committed, pinned) = announce(format!("main/backups/{}.json", ids[1]), Unneeded::NotKept);
    assert!(committed.is_ok() && pinned.is_ok());
    RUNTIME.block_on(repository.delete("main/backups/20991126T000000.000Z-0004.json")).unwrap();
    // What was announced by a run that was killed is settled by the next one, an hour later.
    let id = "20261126T000000.000Z-aaaa".to_owned();
    let mut record = PrunedRecord::new(id, "main".to_owned(), context(0).clock.now());
    record.going.insert(manifest.shards[0].base.rdb.path.clone(), Unneeded::OfRemoved);
    record.going.insert("main/backups/20250101T000000.000Z-0000.json".to_owned(), Unneeded::NotKept);
    RUNTIME.block_on(repository.put_pruned(&record)).unwrap();
    prune(&repository, &last(9), 0);
    assert!(RUNTIME.block_on(repository.commit(&manifest)).is_err());
    prune(&repository, &last(9), 2);
    RUNTIME.block_on(repository.commit(&manifest)).unwrap();
    let settled = RUNTIME.block_on(repository.pruned("main")).unwrap();
    assert_eq!(settled.records.len(), 1);
    assert!(settled.gave_up_backup("main", "20250101T000000.000Z-0000"));
    assert!(settled.records[0].going.is_empty());
}

#[test]
fn a_pin_that_comes_too_late_says_so() {
    let bench = Bench::new();
    let repository = bench.open();
    let id = bench.backup_ids()[0].clone();
    let mut record =
        PrunedRecord::new("20261126T000000.000Z-aaaa".to_owned(), "main".to_owned(), context(0).clock.now());
    record.going.insert(format!("main/backups/{id}.json"), Unneeded::NotKept);
    RUNTIME.block_on(repository.put_pruned(&record)).unwrap();
    let pinned = RUNTIME.block_on(pin(&context(0), &repository, "main", &BackupSelector::Id(id)));
    assert!(pinned.unwrap_err().to_string().contains("is being pruned now"));
}

/// While a manifest is being written, a prune can come to its end: what it announced is settled then, and what it deleted is missing.
#[test]
fn a_backup_whose_base_went_while_its_manifest_was_written_is_not_listed() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let mut manifest = bench.latest();
    "20991126T000000.000Z-0004".clone_into(&mut manifest.id);
    let base = bench.object(&manifest.shards[1].base.rdb.path);
    let take_the_base = move |path: &object_store::path::Path| {
        if path.as_ref().contains("20991126") {
            std::fs::remove_file(&base).unwrap();
        }
    };
    let repository = Hooked::of(&bench).telling(take_the_base).open(&bench);
    let committed = RUNTIME.block_on(repository.commit(&manifest)).map_err(|error| error.problem);
    assert!(matches!(committed, Err(Problem::Pruned(_))), "{committed:?}");
    assert_eq!(bench.backup_ids(), ids);
}

#[test]
fn log_that_was_given_up_counts_where_it_is_not_there() {
    let bench = Bench::new();
    let repository = bench.open();
    let mut manifest = bench.latest();
    "20991126T000000.000Z-0004".clone_into(&mut manifest.id);
    let history = manifest.shards[0].history.clone();
    let segment = RUNTIME.block_on(repository.segments("main", &history)).unwrap()[1].clone();
    let record = || {
        let id = "20261126T000000.000Z-aaaa".to_owned();
        PrunedRecord::new(id, "main".to_owned(), context(0).clock.now())
    };
    let commit = |record: &PrunedRecord| {
        RUNTIME.block_on(repository.put_pruned(record)).unwrap();
        let committed = RUNTIME.block_on(repository.commit(&manifest));
        RUNTIME.block_on(repository.delete_pruned("main", &record.id)).unwrap();
        committed.map_err(|error| error.problem)
    };
    let (mut gone, mut going) = (record(), record());
    gone.add_log(&history, std::slice::from_ref(&(segment.start..segment.end)));
    going.going.insert(segment.path().to_owned(), Unneeded::Outside);
    let refused = commit(&going);
    assert!(matches!(refused, Err(Problem::Pruned(_))), "{refused:?}");
    commit(&gone).unwrap();
    RUNTIME.block_on(repository.delete("main/backups/20991126T000000.000Z-0004.json")).unwrap();
    RUNTIME.block_on(repository.delete(segment.path())).unwrap();
    let refused = commit(&gone);
    assert!(matches!(refused, Err(Problem::Pruned(_))), "{refused:?}");
}
