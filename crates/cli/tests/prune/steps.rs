//! Marked, and deleted a day later, unless something needs it then.

use std::sync::{Arc, Mutex};

use slotkeep_format::{Depth, KeptFor, MarkRecord, RetentionPolicy, Severity};
use slotkeep_jobs::prune::{PruneOptions, PrunePlan, PruneReport, Step};
use slotkeep_jobs::{ErrorKind, ObjectKind};
use slotkeep_repo::BackupSelector;

use crate::clock::{context, last, options, plan, prune};
use crate::common::files;
use crate::harness::{Bench, RUNTIME};
use crate::hooked::Hooked;
use crate::lived::{paths, restored};

fn steps(report: &PruneReport, kind: ObjectKind) -> Vec<Step> {
    report.objects.iter().filter(|object| object.kind == kind).map(|object| object.step).collect()
}

#[track_caller]
fn sound(bench: &Bench) {
    let record = bench.again(Depth::Structure);
    let bad: Vec<_> = record.findings.iter().filter(|found| found.severity > Severity::Note).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn what_no_rule_keeps_is_marked_and_goes_after_the_grace() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    let before = paths(&bench.repo());
    let newest = restored(&bench.repo(), &ids[2], 3);

    // A plan changes nothing.
    let preview = plan(&repository, &last(1), 48).preview();
    assert!(preview.dry_run && preview.freed_bytes == 0 && preview.marked_bytes > 0);
    assert_eq!(paths(&bench.repo()), before);

    let marked = prune(&repository, &last(1), 48);
    assert_eq!(steps(&marked, ObjectKind::Backup), [Step::Mark; 2]);
    assert_eq!(steps(&marked, ObjectKind::Base), [Step::Mark; 9]);
    assert_eq!(steps(&marked, ObjectKind::Topology), [Step::Mark]);
    assert_eq!(steps(&marked, ObjectKind::Log).len() + steps(&marked, ObjectKind::History).len(), 0);
    assert_eq!(marked.backups[2].kept_for, [KeptFor::Last, KeptFor::Newest]);
    // Until they are deleted all of them are as good as before.
    for id in &ids {
        restored(&bench.repo(), id, 3);
    }
    sound(&bench);

    // A day is not over yet; nothing is written then.
    let with_marks = paths(&bench.repo());
    let waiting = prune(&repository, &last(1), 71);
    assert_eq!(steps(&waiting, ObjectKind::Backup), [Step::Wait; 2]);
    assert_eq!(paths(&bench.repo()), with_marks);

    let swept = prune(&repository, &last(1), 73);
    assert_eq!(steps(&swept, ObjectKind::Backup), [Step::Deleted; 2]);
    assert_eq!(steps(&swept, ObjectKind::Base), [Step::Deleted; 9]);
    assert_eq!(swept.freed_bytes, marked.marked_bytes);
    assert!(swept.refused.is_empty());
    let after = paths(&bench.repo());
    let gone: Vec<&String> = before.iter().filter(|path| !after.contains(path)).collect();
    // The second full backup goes, its bases do not: the newest one goes on from them.
    let expected = |path: &str| {
        path.contains(&format!("backups/{}", ids[0]))
            || path.contains(&format!("backups/{}", ids[1]))
            || (path.contains("/base/") && path.contains(&ids[0]))
            || path.ends_with("topology/20261125T000000.000Z-0001.json")
    };
    assert_eq!(gone, before.iter().filter(|path| expected(path)).collect::<Vec<_>>());
    assert_eq!(gone.len(), 12);
    assert_eq!(restored(&bench.repo(), &ids[2], 3), newest);
    sound(&bench);
    // What is missing by accident is told from what was pruned.
    let lost = after.iter().find(|path| path.contains("/log/")).unwrap();
    std::fs::remove_file(bench.object(lost)).unwrap();
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Problem);

    let nothing = prune(&repository, &last(1), 200);
    assert!(nothing.objects.is_empty() && nothing.freed_bytes == 0);
}

#[test]
fn a_mark_is_void_as_soon_as_something_needs_the_object() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    assert_eq!(steps(&prune(&repository, &last(1), 0), ObjectKind::Base), [Step::Mark; 9]);
    let late_plan = plan(&repository, &last(1), 25);
    // Somebody goes on from a base that is marked, after the plan was made.
    let mut manifest =
        RUNTIME.block_on(repository.find("main", &BackupSelector::Id(ids[0].clone()))).unwrap();
    let old = restored(&bench.repo(), &ids[0], 3);
    "20991126T000000.000Z-0004".clone_into(&mut manifest.id);
    RUNTIME.block_on(repository.commit(&manifest)).unwrap();
    let swept = crate::clock::act(&repository, &late_plan, 25).unwrap();
    assert_eq!(steps(&swept, ObjectKind::Base), [Step::Needed; 9]);
    assert_eq!(steps(&swept, ObjectKind::Backup), [Step::Deleted; 2]);
    assert_eq!(restored(&bench.repo(), "20991126T000000.000Z-0004", 3), old);
    // It is no longer marked, and what it replaces is marked only now.
    let next = prune(&repository, &last(1), 26);
    assert!(steps(&next, ObjectKind::Base).iter().all(|step| *step == Step::Mark));
    assert_eq!(restored(&bench.repo(), "20991126T000000.000Z-0004", 3), old);
    sound(&bench);
}

#[test]
fn objects_of_no_backup_go_once_they_are_old() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    // A backup that was broken off, or runs.
    let manifest = bench.object(&format!("main/backups/{}.json", ids[0]));
    std::fs::remove_file(manifest).unwrap();
    let everything = last(9);
    let young = prune(&repository, &everything, 0);
    assert!(steps(&young, ObjectKind::Base).is_empty() && young.young_bytes > 0, "{young:#?}");
    let orphans =
        files(&bench.repo()).into_iter().filter(|(name, _)| name.contains(&format!("-{}/", ids[0])));
    let orphans: Vec<String> = orphans.map(|(name, _)| name).collect();
    assert_eq!(orphans.len(), 9);
    // As long as one of its objects is young, the backup may run.
    let fresh = std::time::SystemTime::UNIX_EPOCH
        + std::time::Duration::from_secs(u64::try_from(harness_now().as_second()).unwrap() + 30 * 3600);
    let touch = |path: &str, to| {
        std::fs::File::options().write(true).open(bench.object(path)).unwrap().set_modified(to).unwrap();
    };
    let written = std::fs::metadata(bench.object(&orphans[8])).unwrap().modified().unwrap();
    touch(&orphans[8], fresh);
    let none = prune(&repository, &everything, 40);
    assert!(steps(&none, ObjectKind::Base).is_empty() && none.young_bytes > 0, "{none:#?}");
    touch(&orphans[8], written);
    assert_eq!(steps(&prune(&repository, &everything, 40), ObjectKind::Base), [Step::Mark; 9]);
    assert_eq!(steps(&prune(&repository, &everything, 65), ObjectKind::Base), [Step::Deleted; 9]);
    assert!(!paths(&bench.repo()).iter().any(|path| path.contains(&format!("-{}/", ids[0]))));
    for id in &ids[1..] {
        restored(&bench.repo(), id, 3);
    }
}

#[test]
fn the_base_that_an_archive_goes_on_from_stays_before_it_is_listed() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    for id in &ids[1..] {
        std::fs::remove_file(bench.object(&format!("main/backups/{id}.json"))).unwrap();
    }
    // The log behind the base goes on being written.
    let now = u64::try_from(harness_now().as_second()).unwrap();
    let fresh = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now + 30 * 3600);
    let of_first_lines = |path: &String| {
        path.contains("/log/") && !["/ddd", "/eee", "/fff"].iter().any(|child| path.contains(child))
    };
    for path in paths(&bench.repo()).iter().filter(|path| of_first_lines(path)) {
        let file = std::fs::File::options().write(true).open(bench.object(path)).unwrap();
        file.set_modified(fresh).unwrap();
    }
    let report = prune(&repository, &last(9), 40);
    assert_eq!(steps(&report, ObjectKind::Base), []);
    // Once it is written no more, the base is an orphan.
    assert_eq!(steps(&prune(&repository, &last(9), 80), ObjectKind::Base), [Step::Mark; 9]);
}

fn harness_now() -> jiff::Timestamp {
    crate::harness::context().clock.now()
}

#[test]
fn as_long_as_a_manifest_cannot_be_read_nothing_that_it_may_need_goes() {
    let bench = Bench::new();
    let repository = bench.open();
    let ids = bench.backup_ids();
    let path = bench.object(&format!("main/backups/{}.json", ids[1]));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for hours in [48, 96] {
        let report = prune(&repository, &last(1), hours);
        assert_eq!(report.unreadable, [ids[1].clone()]);
        assert!(report.objects.iter().all(|object| object.kind == ObjectKind::Backup), "{report:#?}");
    }
    let left = paths(&bench.repo());
    assert!(!left.iter().any(|path| path.contains(&format!("backups/{}", ids[0]))));
    assert!(left.iter().any(|path| path.contains(&format!("backups/{}", ids[1]))));
    assert_eq!(left.iter().filter(|path| path.contains("/base/")).count(), 18);
}

#[test]
fn a_rule_is_wanted_and_a_grace_of_an_hour() {
    let bench = Bench::new();
    let repository = bench.open();
    let refused = |policy: &RetentionPolicy, grace: i64| {
        let options = PruneOptions { grace: jiff::SignedDuration::from_mins(grace), ..options(policy) };
        let context = context(0);
        let made = PrunePlan::make(&context, &repository, &options);
        RUNTIME.block_on(made).err().map(|error| error.to_string())
    };
    assert!(refused(&RetentionPolicy::default(), 60).unwrap().contains("no rule"));
    assert!(refused(&last(1), 59).unwrap().contains("shorter than an hour"));
    assert_eq!(refused(&last(1), 60), None);
}

#[test]
fn log_stays_where_a_history_has_lost_its_file_or_it_is_damaged() {
    log_stays(|file| std::fs::remove_file(file).unwrap());
    log_stays(crate::repair::flip);
}

#[track_caller]
fn log_stays(damage: fn(&std::path::Path)) {
    let bench = Bench::new();
    let repository = bench.open();
    let child = "d".repeat(40);
    let log = || -> Vec<String> {
        paths(&bench.repo()).into_iter().filter(|path| path.contains(&format!("/{child}/log/"))).collect()
    };
    let before = log();
    // No backup names the child any more: that it is needed follows from its parent alone.
    std::fs::remove_file(bench.object(&format!("main/backups/{}.json", bench.backup_ids()[2]))).unwrap();
    damage(&bench.object(&format!("main/history/{child}/history.json")));
    let marked = prune(&repository, &last(9), 48);
    assert!(marked.remarks.iter().any(|remark| remark.contains(&child)), "{:?}", marked.remarks);
    prune(&repository, &last(9), 73);
    assert!(!before.is_empty());
    assert_eq!(log(), before);
}

#[test]
fn by_a_clock_that_is_off_no_unfinished_file_is_old() {
    let bench = Bench::new();
    let repository = bench.open();
    // All that is to be marked is: by that alone nothing is written, and no clock is asked.
    prune(&repository, &last(9), 48);
    let file = bench.object("main/history/rdb.zst#1");
    std::fs::write(&file, "half").unwrap();
    let ahead = |tolerance| {
        let options = PruneOptions { clock_tolerance: tolerance, ..options(&last(9)) };
        RUNTIME.block_on(async {
            let plan = PrunePlan::make(&context(48), &repository, &options).await.unwrap();
            plan.run(&context(48), &repository).await
        })
    };
    let before = paths(&bench.repo());
    let refused = ahead(Some(jiff::SignedDuration::from_mins(5)));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ClockOff);
    assert_eq!(paths(&bench.repo()), before);
    ahead(None).unwrap();
    assert!(!file.exists());
}

/// A run may be killed between what it writes and what it finds out about the clock.
#[test]
fn a_clock_that_is_off_marks_nothing_for_a_moment_either() {
    let bench = Bench::new();
    let root = bench.repo();
    let marked: Arc<Mutex<Vec<usize>>> = Arc::default();
    let seen = Arc::clone(&marked);
    let written = move |path: &object_store::path::Path| {
        if path.as_ref().contains("/mark") {
            let record = MarkRecord::parse(&std::fs::read(root.join(path.as_ref())).unwrap()).unwrap();
            seen.lock().unwrap().push(record.objects.len());
        }
    };
    let repository = Hooked::of(&bench).telling(written).open(&bench);
    let options =
        PruneOptions { clock_tolerance: Some(jiff::SignedDuration::from_mins(5)), ..options(&last(1)) };
    let refused = RUNTIME.block_on(async {
        let plan = PrunePlan::make(&context(48), &repository, &options).await.unwrap();
        plan.run(&context(48), &repository).await
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ClockOff);
    assert_eq!(std::mem::take(&mut *marked.lock().unwrap()), [0]);
    prune(&repository, &last(1), 48);
    assert!(marked.lock().unwrap().last().is_some_and(|objects| *objects > 0));
}
