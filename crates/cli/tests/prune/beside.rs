//! Somebody looks at a repository beside others who work there: what comes or goes meanwhile is not lost, and what a prune says is seen.

use std::path::PathBuf;

use std::sync::Arc;

use slotkeep_format::{Depth, PrunedRecord, RetentionPolicy, Severity};
use slotkeep_jobs::ObjectKind;
use slotkeep_jobs::prune::Step;
use slotkeep_jobs::repair::{RepairPlan, RepairReport};
use slotkeep_jobs::verify::{VerifyOptions, VerifyProgress, verify};

use crate::clock::prune;
use crate::compact::compact;
use crate::harness::{Bench, RUNTIME, context, options};
use crate::hooked::{Happens, Hooked};

/// What a repair would do that looks while these happen.
fn looked(bench: &Bench, before: Happens, after: Happens) -> RepairReport {
    let repository = Hooked::of(bench).around_listing("/backups", before, after).open(bench);
    RUNTIME.block_on(RepairPlan::make(&context(), &repository, "main")).unwrap().preview()
}

fn nothing() -> Happens {
    Box::new(|| {})
}

#[test]
fn bases_of_a_backup_that_is_listed_meanwhile_are_not_lost() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    // The second backup, and the one that goes on from it.
    let is_later = |path: &String| {
        let is_manifest = |id: &String| path.ends_with(&format!("backups/{id}.json"));
        path.contains(&format!("-{}/", ids[1])) || ids[1..].iter().any(is_manifest)
    };
    let later = crate::lived::paths(&bench.repo()).into_iter().filter(is_later);
    let moves: Vec<(PathBuf, PathBuf)> =
        later.map(|path| (bench.object(&path), bench.path(&path.replace('/', "_")))).collect();
    assert_eq!(moves.len(), 11);
    for (object, aside) in &moves {
        std::fs::rename(object, aside).unwrap();
    }
    let come = move || moves.iter().for_each(|(object, aside)| std::fs::rename(aside, object).unwrap());
    let report = looked(&bench, Box::new(come), nothing());
    assert_eq!(bench.backup_ids(), ids);
    assert!(report.lost.is_empty() && report.repairs.is_empty(), "{report:#?}");
}

#[test]
fn a_backup_that_is_pruned_meanwhile_is_not_lost() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let manifest = bench.object(&format!("main/backups/{}.json", ids[0]));
    let goes = move || std::fs::remove_file(manifest).unwrap();
    let report = looked(&bench, nothing(), Box::new(goes));
    assert_eq!(bench.backup_ids(), ids[1..]);
    assert!(report.lost.is_empty(), "{report:#?}");
}

#[test]
fn a_record_that_another_takes_the_place_of_meanwhile_is_not_passed_over() {
    let bench = Bench::new();
    let of = |number: u64, backup: &str| {
        let id = format!("20261126T000000.000Z-{number:04}");
        let mut record = PrunedRecord::new(id, "main".to_owned(), context().clock.now());
        record.backups.insert(backup.to_owned());
        record
    };
    let calm = bench.open();
    RUNTIME.block_on(calm.put_pruned(&of(1, "one"))).unwrap();
    // As a prune does at its end: the new one first.
    let folder = bench.object("main/prune/gone");
    let (aside, new) = (bench.path("aside"), of(2, "one"));
    RUNTIME.block_on(calm.put_pruned(&new)).unwrap();
    std::fs::rename(folder.join(format!("{}.json", new.id)), &aside).unwrap();
    let replaced = move || {
        std::fs::rename(&aside, folder.join(format!("{}.json", new.id))).unwrap();
        std::fs::remove_file(folder.join("20261126T000000.000Z-0001.json")).unwrap();
    };
    let busy = Hooked::of(&bench).around_listing("/prune/gone", nothing(), Box::new(replaced));
    let seen = RUNTIME.block_on(busy.open(&bench).pruned("main")).unwrap();
    assert!(seen.gave_up_backup("main", "one"));
}

#[test]
fn what_is_pruned_while_a_verification_runs_is_no_finding() {
    // When manifests are listed and none is read yet, and when all is listed.
    for folder in ["/backups", "/prune/gone"] {
        let bench = Bench::new();
        let calm = bench.open();
        compact(&calm, 1 << 20);
        let policy = RetentionPolicy {
            last: 1,
            window: Some(jiff::SignedDuration::from_hours(1)),
            ..RetentionPolicy::default()
        };
        prune(&calm, &policy, 48);
        let (told, hear) = std::sync::mpsc::channel();
        // A prune has a runtime of its own.
        let goes = move || {
            let swept = std::thread::spawn(move || prune(&calm, &policy, 73)).join().unwrap();
            told.send(swept).unwrap();
        };
        let busy = Hooked::of(&bench).around_listing(folder, nothing(), Box::new(goes)).open(&bench);
        let options = VerifyOptions { again: true, ..options(Depth::Structure) };
        let progress = Arc::new(VerifyProgress::default());
        let record = RUNTIME.block_on(verify(&context(), &busy, &options, &progress)).unwrap();
        let swept = hear.recv().unwrap();
        let deleted = |kind: ObjectKind| {
            swept.objects.iter().filter(|object| object.kind == kind && object.step == Step::Deleted).count()
        };
        assert!(deleted(ObjectKind::Backup) > 0 && deleted(ObjectKind::Base) > 0, "{swept:#?}");
        assert!(deleted(ObjectKind::Log) >= 12, "{swept:#?}");
        let bad: Vec<_> = record.findings.iter().filter(|found| found.severity > Severity::Note).collect();
        assert!(bad.is_empty(), "{folder}: {bad:#?}");
    }
}

#[test]
fn what_is_lost_while_a_verification_runs_is_a_finding() {
    let bench = Bench::new();
    let paths = crate::lived::paths(&bench.repo());
    let of = |part: &str| paths.iter().find(|path| path.contains(part)).unwrap();
    let lost = [of("/log/"), of("/rdb.zst")].map(|path| bench.object(path));
    let goes = move || lost.iter().for_each(|object| std::fs::remove_file(object).unwrap());
    let busy = Hooked::of(&bench).around_listing("/prune/gone", nothing(), Box::new(goes)).open(&bench);
    let options = VerifyOptions { again: true, ..options(Depth::Structure) };
    let progress = Arc::new(VerifyProgress::default());
    let record = RUNTIME.block_on(verify(&context(), &busy, &options, &progress)).unwrap();
    let missing = |part: &str| {
        record.findings.iter().any(|found| found.check == "present" && found.object.contains(part))
    };
    assert!(missing("/log/") && missing("/rdb.zst"), "{:#?}", record.findings);
}
