//! Places that may only be read, clocks that are off, a bucket that is somebody else's: each is named, has its exit code, and nothing is touched.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use object_store::ObjectStoreExt as _;
use slotkeep_jobs::ports::{Clock, SystemClock};
use slotkeep_jobs::prune::{CLOCK_TOLERANCE, PruneOptions, PrunePlan};
use slotkeep_jobs::{Context, ErrorKind};
use slotkeep_repo::{Location, Repository};

use crate::bucket::{Bucket, text};
use crate::clock::{last, options};
use crate::common::{Run, files, slotkeep};
use crate::harness::{RUNTIME, context, copy};
use crate::lived::{Lived, age};

static LIVED: std::sync::LazyLock<Lived> = std::sync::LazyLock::new(Lived::new);

/// The error of a failed run: its kind, its words and its hint.
#[track_caller]
fn error_of(run: &Run) -> (String, String, String) {
    let line = run.stderr.lines().rev().find(|line| line.starts_with('{'));
    let value: serde_json::Value = serde_json::from_str(line.unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {}{}", run.stdout, run.stderr));
    let field = |name: &str| value["error"][name].as_str().unwrap_or_default().to_owned();
    (field("kind"), field("message"), field("hint"))
}

/// Runs `slotkeep` where `place` is mounted read-only, in a mount namespace that ends with it: that holds for root too.
fn read_only(place: &Path, arguments: &[&str]) -> Run {
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-c", script]).arg(place).arg(env!("CARGO_BIN_EXE_slotkeep")).args(arguments);
    shell.env("SLOTKEEP_STATE", place.parent().unwrap().join("state"));
    let run = Run::of(&shell.output().unwrap());
    assert!(!run.stderr.contains("unshare") && !run.stderr.contains("mount:"), "{}", run.stderr);
    run
}

#[test]
fn a_folder_that_may_only_be_read_is_read_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    copy(&LIVED.repo(), &repo);
    age(&repo, 4);
    let (source, empty) = (folder.path().join("source"), folder.path().join("empty"));
    copy(&LIVED.repo(), &source);
    slotkeep(&["init", "--quiet", "--repo", text(&empty)]).expect_code(0);
    let addr = LIVED.addr();
    let before = files(&repo);
    let at = ["--json", "--repo", text(&repo)];
    let spool = folder.path().join("spool");
    let writing: [&[&str]; 6] = [
        &["backup", "--cluster", &addr, "--spool", text(&spool)],
        &["backup", "--type", "incremental", "--cluster", &addr, "--spool", text(&spool)],
        &["archive", "--cluster", &addr, "--spool", text(&spool)],
        &["prune", "--keep-last", "1", "--yes"],
        &["prune", "--pin", "latest"],
        &["compact"],
    ];
    for arguments in writing {
        let run = read_only(&repo, &[arguments, &at].concat());
        assert_eq!(run.code, 20, "{arguments:?}: {}{}", run.stdout, run.stderr);
        let (kind, words, hint) = error_of(&run);
        assert!(kind == "repository" && words.contains("access denied"), "{arguments:?}: {words}");
        assert!(hint.contains("permissions"), "{arguments:?}: {hint}");
    }
    let run = read_only(&repo, &["copy", "--json", "--repo", text(&source), "--to", text(&repo)]);
    // There is nothing to be copied, so nothing is refused.
    assert_eq!(run.code, 0, "{}", run.stderr);
    let run = read_only(&empty, &["copy", "--json", "--repo", text(&source), "--to", text(&empty)]);
    assert_eq!((run.code, error_of(&run).0.as_str()), (20, "repository"), "{}", run.stderr);
    assert_eq!(files(&empty).len(), 1);
    // What only reads works as ever.
    let target = folder.path().join("target");
    let reading: [&[&str]; 4] = [
        &["list"],
        &["show"],
        &["prune", "--keep-last", "1", "--dry-run"],
        &["restore", "--to-dir", text(&target), "--nodes", "127.0.0.1:17001"],
    ];
    for arguments in reading {
        let run = read_only(&repo, &[arguments, &at].concat());
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.stderr);
    }
    assert_eq!(files(&repo), before);
}

#[test]
fn a_bucket_that_may_only_be_read_is_read_and_not_written() {
    let bucket = Bucket::new(5);
    bucket.calm(&["copy", "--repo", text(&LIVED.repo()), "--to", bucket.repo()], 0);
    let addr = LIVED.addr();
    let before = bucket.fetched("before");
    bucket.store.set_read_only(true);
    let (at, spool) = (["--json", "--repo", bucket.repo()], bucket.path("spool"));
    let writing: [&[&str]; 4] = [
        &["backup", "--cluster", &addr, "--spool", text(&spool)],
        &["archive", "--cluster", &addr, "--spool", text(&spool)],
        &["prune", "--pin", "latest"],
        &["compact"],
    ];
    for arguments in writing {
        let run = bucket.run(&[arguments, &at].concat());
        assert_eq!(run.code, 20, "{arguments:?}: {}{}", run.stdout, run.stderr);
        let (kind, words, hint) = error_of(&run);
        assert!(kind == "repository" && words.contains("access denied"), "{arguments:?}: {words}");
        assert!(hint.contains("credentials"), "{arguments:?}: {hint}");
    }
    for arguments in [&["list"][..], &["show"], &["prune", "--keep-last", "1", "--dry-run"]] {
        bucket.run(&[arguments, &at].concat()).expect_code(0);
    }
    let after = bucket.fetched("after");
    let objects = |repo: &Path| {
        let mut all = files(repo);
        all.retain(|(name, _)| name != "slotkeep.json");
        all
    };
    assert_eq!(objects(&before), objects(&after));
}

/// A bucket in which other things lie.
#[test]
fn a_bucket_of_somebody_else_is_not_touched() {
    let bucket = Bucket::new(6);
    let objects = bucket.objects(false);
    RUNTIME.block_on(async {
        let path = object_store::path::Path::from("slotkeep.json");
        objects.delete(&path).await.unwrap();
        objects.put(&"letters/one.txt".into(), "mine".into()).await.unwrap();
    });
    let addr = LIVED.addr();
    let at = ["--json", "--repo", bucket.repo()];
    let refused: [(&[&str], &str); 5] = [
        (&["init"], "it is not empty"),
        (&["backup", "--cluster", &addr], "there is no repository here"),
        (&["archive", "--cluster", &addr], "there is no repository here"),
        (&["list"], "there is no repository here"),
        (&["prune", "--keep-last", "1", "--yes"], "there is no repository here"),
    ];
    for (arguments, wanted) in refused {
        let run = bucket.run(&[arguments, &at].concat());
        let (kind, words, _) = error_of(&run);
        assert_eq!((run.code, kind.as_str()), (20, "repository"), "{arguments:?}: {words}");
        assert!(words.contains(wanted), "{arguments:?}: {words}");
    }
    let run = bucket.run(&["copy", "--json", "--repo", text(&LIVED.repo()), "--to", bucket.repo()]);
    assert!(run.code == 20 && error_of(&run).1.contains("it is not empty"), "{}", run.stderr);
    let left = RUNTIME.block_on(async {
        use futures::TryStreamExt as _;
        let all: Vec<_> = objects.list(None).try_collect().await.unwrap();
        all.iter().map(|object| object.location.to_string()).collect::<Vec<_>>()
    });
    assert_eq!(left, ["letters/one.txt"]);
}

/// This machine's clock, some minutes off.
struct Off(SystemClock, SignedDuration);

impl Clock for Off {
    fn now(&self) -> Timestamp {
        self.0.now() + self.1
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

fn off(minutes: i64) -> Context {
    let clock = Off(SystemClock::new(), SignedDuration::from_mins(minutes));
    Context { clock: Arc::new(clock), ..context() }
}

/// The backup is taken all the same: a wrong clock is no reason to have none.
#[test]
fn a_backup_that_a_clock_puts_before_another_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    copy(&LIVED.repo(), &repo);
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    let backup = || Run::of(&LIVED.backup(&repo, "full").output().unwrap()).expect_code(0);
    let right = backup();
    assert!(!right.stderr.contains("bears a later time"), "{}", right.stderr);
    // As though a machine had made one whose clock is an hour ahead.
    let id = right.json()["id"].as_str().unwrap().to_owned();
    let mut ahead = RUNTIME.block_on(repository.manifest("main", &id)).unwrap();
    let hour = context().clock.now() + SignedDuration::from_hours(1);
    ahead.id = format!("{}-0000", hour.strftime("%Y%m%dT%H%M%S.%3fZ"));
    RUNTIME.block_on(repository.commit(&ahead)).unwrap();
    let run = backup();
    assert!(run.stderr.contains(&format!("backup {} bears a later time", ahead.id)), "{}", run.stderr);
    assert!(run.json()["id"].as_str().unwrap() < ahead.id.as_str());
}

/// With a grace of an hour, a clock that is an hour ahead would delete what a backup that runs has just stored.
#[test]
fn nothing_is_pruned_by_a_clock_that_is_an_hour_off() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    copy(&LIVED.repo(), &repo);
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    let policy = last(1);
    let options = PruneOptions {
        grace: SignedDuration::from_hours(1),
        clock_tolerance: Some(CLOCK_TOLERANCE),
        ..options(&policy)
    };
    let run = |minutes: i64| {
        let context = off(minutes);
        RUNTIME.block_on(async {
            PrunePlan::make(&context, &repository, &options).await?.run(&context, &repository).await
        })
    };
    let before = files(&repo);
    for minutes in [61, -61] {
        let error = run(minutes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClockOff, "{error}");
        let side = if minutes > 0 { "ahead of" } else { "behind" };
        assert!(error.to_string().contains(side) && error.advice().unwrap().contains("NTP"), "{error}");
        assert_eq!(files(&repo), before);
    }
    // Marked by a right clock, a wrong one must not take the mark for an hour old.
    let marked = run(1).unwrap();
    assert!(marked.marked_bytes > 0 && marked.freed_bytes == 0);
    let before = files(&repo);
    assert_eq!(run(62).unwrap_err().kind(), ErrorKind::ClockOff);
    assert_eq!(files(&repo), before);
}
