//! A repository that is copied into another one: whole, again, in part, damaged, encrypted, and killed at every step.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

#[path = "prune/clock.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod clock;
mod common;
#[path = "verify/harness.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod harness;
#[path = "prune/lived.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod lived;

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use clock::{last, prune};
use common::{Run, command, files, slotkeep};
use harness::{RUNTIME, copy as copy_folder};
use lived::{Lived, age, paths, restored, sound};
use serde_json::Value;
use slotkeep_format::PrunedRecord;
use slotkeep_repo::{Location, Repository};
use slotkeep_testkit::stores::S3Server;
use tempfile::TempDir;

/// What a process that calls `abort` dies of.
const ABORTED: i32 = 6;

static LIVED: LazyLock<Lived> = LazyLock::new(Lived::new);

/// A copy of the repository as files, to be changed, and room for targets beside it.
struct Scene {
    folder: TempDir,
    repo: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        copy_folder(&LIVED.repo(), &repo);
        Self { folder, repo }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn copy(&self, target: &Path, more: &[&str]) -> Run {
        Run::of(&copying(&self.repo, target, more).output().unwrap())
    }

    /// Makes an identity in a file of that name; gives its recipient.
    fn reader(&self, name: &str) -> String {
        let output = Command::new("age-keygen").arg("-o").arg(self.path(name)).output();
        assert!(output.unwrap().status.success(), "age-keygen");
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned()
    }
}

fn copying(repo: &Path, target: &Path, more: &[&str]) -> Command {
    let mut copy = command();
    copy.args(["copy", "--json", "--repo"]).arg(repo).arg("--to").arg(target).args(more);
    copy
}

fn listed(repo: &Path) -> Vec<String> {
    let list = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    let ids = list["backups"].as_array().unwrap().iter();
    ids.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// How many objects of that kind were copied.
fn copied(report: &Value, kind: &str) -> u64 {
    let rows = report["kinds"].as_array().unwrap().iter();
    rows.filter(|row| row["kind"] == kind).map(|row| row["objects"].as_u64().unwrap()).sum()
}

fn states(report: &Value) -> Vec<String> {
    let rows = report["backups"].as_array().unwrap().iter();
    rows.map(|row| row["state"].as_str().unwrap().to_owned()).collect()
}

/// The files of the first repository, but the one that says what it is: the time of its making and its store's manners are its own.
fn objects(repo: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = files(repo);
    all.retain(|(name, _)| name != "slotkeep.json" && !name.contains('#'));
    all
}

fn restored_at(repo: &Path, at: &str) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("restored");
    let to = target.to_str().unwrap();
    let fixed = ["restore", "--quiet", "--no-replicas", "--nodes", "127.0.0.1:17001", "--at", at];
    slotkeep(&[&fixed[..], &["--repo", repo.to_str().unwrap(), "--to-dir", to]].concat()).expect_code(0);
    let mut data = files(&target);
    data.retain(|(name, _)| lived::has_extension(name, "rdb") || lived::has_extension(name, "aof"));
    data
}

/// Changes a byte in the middle of a file.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_copy_gives_back_what_the_first_gives_and_is_brought_up_to_date() {
    let scene = Scene::new();
    let newest = LIVED.ids.last().unwrap();
    slotkeep(&["prune", "--pin", newest, "--repo", scene.repo.to_str().unwrap()]).expect_code(0);
    let target = scene.path("copies/second");

    let planned = scene.copy(&target, &["--dry-run"]).expect_code(0).json();
    assert!(!target.exists() && planned["makes_target"] == true, "{planned:#}");
    let report = scene.copy(&target, &[]).expect_code(0).json();
    assert_eq!(report["kinds"], planned["kinds"]);
    assert_eq!(report["bytes"], planned["bytes"]);
    assert_eq!(states(&report), ["copied"; 5]);
    assert_eq!((copied(&report, "base"), copied(&report, "pin")), (6, 1));
    assert!(copied(&report, "log") > 0);
    assert_eq!(objects(&target), objects(&scene.repo));
    sound(&target);
    for id in &LIVED.ids {
        assert_eq!(restored(&target, id, 1), restored(&scene.repo, id, 1), "{id}");
    }
    let show = ["show", LIVED.ids[1].as_str(), "--json", "--repo", scene.repo.to_str().unwrap()];
    let cut = slotkeep(&show).expect_code(0).json()["cut"]["at"].as_str().unwrap().to_owned();
    assert_eq!(restored_at(&target, &cut), restored_at(&scene.repo, &cut));

    // Nothing twice.
    let again = scene.copy(&target, &[]).expect_code(0).json();
    assert_eq!((again["bytes"].as_u64(), states(&again)), (Some(0), vec!["there".to_owned(); 5]));
    // What is new, and no base for it; what went in the target comes back.
    slotkeep(&["prune", "--pin", &LIVED.ids[0], "--repo", scene.repo.to_str().unwrap()]).expect_code(0);
    Run::of(&LIVED.backup(&scene.repo, "incremental").output().unwrap()).expect_code(0);
    let digest = files(&target).into_iter().find(|(name, _)| name.ends_with("digest")).unwrap().0;
    std::fs::remove_file(target.join(&digest)).unwrap();
    let more = scene.copy(&target, &[]).expect_code(0).json();
    assert_eq!((copied(&more, "backup"), copied(&more, "base"), copied(&more, "pin")), (1, 1, 1), "{more:#}");
    assert!(target.join(digest).exists());
    assert_eq!(listed(&target), listed(&scene.repo));
    let newest = listed(&target).pop().unwrap();
    assert_eq!(restored(&target, &newest, 1), restored(&scene.repo, &newest, 1));
}

#[test]
fn one_backup_takes_what_it_needs_and_no_more() {
    let scene = Scene::new();
    let target = scene.path("second");
    let id = &LIVED.ids[1];
    let report = scene.copy(&target, &["--backup", id]).expect_code(0).json();
    assert_eq!((states(&report), copied(&report, "base")), (vec!["copied".to_owned()], 3));
    assert_eq!(listed(&target), std::slice::from_ref(id));
    assert!(paths(&target).len() < paths(&scene.repo).len());
    assert_eq!(restored(&target, id, 1), restored(&scene.repo, id, 1));
    sound(&target);
}

#[test]
fn what_is_damaged_is_named_and_not_copied_and_the_rest_is() {
    let scene = Scene::new();
    let all = files(&scene.repo);
    let base = &all.iter().rfind(|(name, _)| name.ends_with("rdb.zst")).unwrap().0;
    spoil(&scene.repo.join(base));
    let target = scene.path("second");
    let run = scene.copy(&target, &[]).expect_code(23);
    let report = run.json();
    assert_eq!(states(&report), ["copied", "copied", "copied", "refused", "refused"]);
    let refused = report["refused"].as_array().unwrap();
    assert_eq!((refused.len(), refused[0]["path"].as_str()), (1, Some(base.as_str())), "{report:#}");
    assert_eq!(listed(&target), LIVED.ids[..3]);
    assert!(!target.join(base).exists());
    assert_eq!(restored(&target, &LIVED.ids[2], 1), restored(&scene.repo, &LIVED.ids[2], 1));

    // A segment of the log, which only the backups behind it need.
    let scene = Scene::new();
    let segment = all.iter().map(|(name, _)| name).filter(|name| name.contains("/log/")).nth(1).unwrap();
    spoil(&scene.repo.join(segment));
    let target = scene.path("second");
    let report = scene.copy(&target, &[]).expect_code(23).json();
    assert_eq!(report["refused"][0]["path"], segment.as_str(), "{report:#}");
    assert!(!target.join(segment).exists());
    let (there, states) = (listed(&target), states(&report));
    assert!(states.contains(&"refused".to_owned()) && states[0] == "copied", "{states:?}");
    for (id, state) in LIVED.ids.iter().zip(&states) {
        assert_eq!(there.contains(id), state == "copied", "{id}");
    }
    for id in &there {
        assert_eq!(restored(&target, id, 1), restored(&LIVED.repo(), id, 1), "{id}");
    }

    // Another object in its place: it stays, and what needs it is not listed.
    let scene = Scene::new();
    let target = scene.path("second");
    scene.copy(&target, &["--backup", &LIVED.ids[0]]).expect_code(0);
    std::fs::create_dir_all(target.join(base).parent().unwrap()).unwrap();
    std::fs::write(target.join(base), "something else").unwrap();
    let report = scene.copy(&target, &[]).expect_code(31).json();
    assert_eq!(report["refused"][0]["path"], base.as_str());
    assert_eq!(listed(&target), LIVED.ids[..3]);
    assert_eq!(std::fs::read(target.join(base)).unwrap(), b"something else");
}

#[test]
fn copy_may_be_killed_anywhere() {
    let scene = Scene::new();
    let mut killed = 0;
    for number in 1..200 {
        let target = scene.path(&format!("to{number}"));
        let mut copy = copying(&scene.repo, &target, &[]);
        let output = copy.env("SLOTKEEP_STOP_AT_STORE_OPERATION", number.to_string()).output().unwrap();
        if output.status.signal() != Some(ABORTED) {
            Run::of(&output).expect_code(0);
            break;
        }
        killed += 1;
        // Nothing is listed that is not whole; objects of no backup are passed over.
        if target.join("slotkeep.json").exists() {
            let there = listed(&target);
            assert!(LIVED.ids.starts_with(&there), "killed at {number}: {there:?}");
            if !there.is_empty() {
                sound(&target);
            }
        }
        scene.copy(&target, &[]).expect_code(0);
        assert_eq!(listed(&target), LIVED.ids, "completed after {number}");
        assert_eq!(paths(&target), paths(&scene.repo), "completed after {number}");
    }
    assert!(killed > 15, "{killed}");
}

/// Every object of a target but what it says of its own pruning.
fn paths_but_prunes(repo: &Path) -> Vec<String> {
    paths(repo).into_iter().filter(|path| !path.contains("/prune/")).collect()
}

#[test]
fn a_prune_after_a_copy_that_was_killed_keeps_no_backup_out() {
    let scene = Scene::new();
    // So there is log behind the newest backup, as beside an archive.
    std::fs::remove_file(scene.repo.join(format!("main/backups/{}.json", LIVED.ids[4]))).unwrap();
    let ids = &LIVED.ids[..4];
    let mut before_the_first_manifest = None;
    for number in 1..200 {
        let target = scene.path(&format!("to{number}"));
        let mut copy = copying(&scene.repo, &target, &[]);
        let output = copy.env("SLOTKEEP_STOP_AT_STORE_OPERATION", number.to_string()).output().unwrap();
        assert_eq!(output.status.signal(), Some(ABORTED));
        if paths(&target).iter().any(|path| path.contains("/backups/")) {
            break;
        }
        before_the_first_manifest = Some(target);
    }
    let target = before_the_first_manifest.unwrap();
    let log = |repo: &Path| paths(repo).into_iter().filter(|path| path.contains("/log/")).collect::<Vec<_>>();
    assert_eq!(log(&target), log(&scene.repo));
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(target.clone()))).unwrap();
    let prune_twice = || {
        age(&target, 3);
        prune(&repository, &last(1), 0);
        prune(&repository, &last(1), 25);
    };
    prune_twice();
    assert!(log(&target).is_empty(), "nothing needed it");
    let other = scene.path("other");
    copy_folder(&target, &other);

    let report = scene.copy(&target, &[]).expect_code(0).json();
    assert_eq!(states(&report), ["copied"; 4]);
    assert_eq!(paths_but_prunes(&target), paths(&scene.repo));
    sound(&target);
    // One by one as well.
    scene.copy(&other, &["--backup", &ids[0]]).expect_code(0);
    scene.copy(&other, &[]).expect_code(0);
    assert_eq!(listed(&other), ids);
    for id in ids {
        let first = restored(&scene.repo, id, 1);
        assert_eq!(restored(&target, id, 1), first, "{id}");
        assert_eq!(restored(&other, id, 1), first, "{id}");
    }

    // What it gives up now, it does of its own accord.
    prune_twice();
    let left = paths_but_prunes(&target);
    assert!(!log(&target).is_empty() && log(&target).len() < log(&scene.repo).len());
    let report = scene.copy(&target, &[]).expect_code(0).json();
    assert_eq!(states(&report), ["given_up", "given_up", "given_up", "there"]);
    assert_eq!(paths_but_prunes(&target), left);
}

#[test]
fn what_the_target_has_pruned_stays_away() {
    let scene = Scene::new();
    let target = scene.path("second");
    scene.copy(&target, &[]).expect_code(0);
    let id = &LIVED.ids[2];
    RUNTIME.block_on(async {
        let repository = Repository::open(&Location::Folder(target.clone())).await.unwrap();
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut record = PrunedRecord::new("20260101T000000.000Z-0000".to_owned(), "main".to_owned(), at);
        record.backups.insert(id.clone());
        repository.put_pruned(&record).await.unwrap();
        repository.delete(&slotkeep_repo::layout::manifest_file("main", id)).await.unwrap();
    });
    let run = scene.copy(&target, &[]).expect_code(0);
    assert_eq!(states(&run.json()), ["there", "there", "given_up", "there", "there"]);
    assert!(run.stderr.contains("has pruned them"), "{}", run.stderr);
    assert!(!listed(&target).contains(id));
}

#[test]
fn a_bucket_takes_a_copy_and_gives_it_back() {
    let store = S3Server::start().unwrap();
    store.make_bucket("copies").unwrap();
    let scene = Scene::new();
    let bucket = Path::new("s3://copies/redis");
    let to = |repo: &Path, target: &Path| {
        let output = copying(repo, target, &["--limit-rate", "1G"]).envs(store.environment()).output();
        Run::of(&output.unwrap()).expect_code(0).json()
    };
    assert_eq!(states(&to(&scene.repo, bucket)), ["copied"; 5]);
    assert_eq!(to(&scene.repo, bucket)["bytes"], 0);
    let back = scene.path("back");
    to(bucket, &back);
    assert_eq!(objects(&back), objects(&scene.repo));
    sound(&back);
}

#[test]
fn an_encrypted_repository_has_a_mirror_and_nothing_else_takes_its_objects() {
    let scene = Scene::new();
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (public, other) = (scene.reader("reader"), scene.reader("other"));
    let on = |machine: &str, arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).arg("--json").env("SLOTKEEP_STATE", path(machine));
        Run::of(&command.output().unwrap())
    };
    let [secret, mirror, foreign] = ["secret", "mirror", "foreign"].map(path);
    let repo = ["--repo", secret.as_str()];
    let made = on("host", &["init", "--recipient", &public, "--repo", &secret]).expect_code(0).json();
    for kind in ["full", "incremental"] {
        let mut backup = LIVED.backup(Path::new(&secret), kind);
        Run::of(
            &backup
                .env("SLOTKEEP_STATE", path("host"))
                .env("SLOTKEEP_IDENTITY", path("reader"))
                .output()
                .unwrap(),
        )
        .expect_code(0);
    }
    let identity = ["--identity", &path("reader")];
    let copy = |machine: &str, more: &[&str], code| {
        on(machine, &[&["copy"][..], &repo, more].concat()).expect_code(code)
    };

    // It takes an identity to prove the log, and nothing is made without.
    copy("host", &["--to", &mirror], 25);
    copy("host", &["--to", &mirror, "--identity", &path("other")], 25);
    assert!(!Path::new(&mirror).exists());
    let report = copy("laptop", &[&["--to", &mirror][..], &identity].concat(), 0).json();
    assert_eq!(states(&report), ["copied", "copied"]);
    assert_eq!(objects(Path::new(&mirror)), objects(Path::new(&secret)));
    // A machine that knows only the fingerprint of the first trusts the second, reads it, and finds nothing wrong.
    let fingerprint = made["fingerprint"].as_str().unwrap();
    let there = ["--repo", &mirror, "--trust", fingerprint];
    let verify = ["verify", "--depth", "structure"];
    on("third", &[&verify[..], &there, &identity].concat()).expect_code(0);
    let restore = |repo: &[&str], to: &str| {
        let target = path(to);
        let restore = ["restore", "--to-dir", &target, "--nodes", "127.0.0.1:17001"];
        on("third", &[&restore[..], repo, &identity].concat()).expect_code(0);
        let mut data = files(Path::new(&target));
        data.retain(|(name, _)| lived::has_extension(name, "rdb") || lived::has_extension(name, "aof"));
        data
    };
    assert_eq!(restore(&there, "one"), restore(&repo, "other-one"));

    // Another repository, encrypted or not, does not take it; nor does it take another's.
    on("host", &["init", "--recipient", &other, "--repo", &foreign]).expect_code(0);
    let plain = path("repo");
    let before = files(Path::new(&foreign));
    for target in [&foreign, &plain] {
        let refused = copy("laptop", &[&["--to", target.as_str()][..], &identity].concat(), 25);
        assert!(refused.stderr.contains("another repository"), "{}", refused.stderr);
    }
    on("laptop", &["copy", "--repo", &plain, "--to", &foreign]).expect_code(25);
    assert_eq!(files(Path::new(&foreign)), before);

    // A changed manifest is not copied.
    let mut backup = LIVED.backup(Path::new(&secret), "incremental");
    let run = Run::of(
        &backup
            .env("SLOTKEEP_STATE", path("host"))
            .env("SLOTKEEP_IDENTITY", path("reader"))
            .output()
            .unwrap(),
    )
    .expect_code(0)
    .json();
    let manifest = scene.path(&format!("secret/main/backups/{}.json", run["id"].as_str().unwrap()));
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("incremental", "full", 1)).unwrap();
    let report = copy("laptop", &[&["--to", &mirror][..], &identity].concat(), 26).json();
    assert!(report["refused"][0]["why"].as_str().unwrap().contains("signature"), "{report:#}");
    assert_eq!(files(&scene.path("mirror/main/backups")).len(), 2);
}

#[test]
fn a_mirror_whose_making_was_killed_has_the_readers_that_the_source_has_when_it_is_made() {
    let scene = Scene::new();
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (first, second) = (scene.reader("first"), scene.reader("second"));
    let (secret, mirror) = (path("secret"), path("mirror"));
    let on = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).env("SLOTKEEP_STATE", path("host"));
        command
    };
    let run = |arguments: &[&str]| Run::of(&on(arguments).output().unwrap());
    run(&["init", "--recipient", &first, "--repo", &secret]).expect_code(0);
    let copying = ["copy", "--repo", &secret, "--to", &mirror, "--identity"];
    let keys = |repo: &str| {
        let names = files(Path::new(repo)).into_iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with("slotkeep-key-")).collect::<Vec<_>>()
    };
    for number in 1.. {
        let mut copy = on(&[&copying[..], &[&path("first")]].concat());
        let output = copy.env("SLOTKEEP_STOP_AT_STORE_OPERATION", number.to_string()).output().unwrap();
        assert_eq!(output.status.signal(), Some(ABORTED), "killed at {number}");
        if Path::new(&mirror).exists() && keys(&mirror) == keys(&secret) {
            break;
        }
        if Path::new(&mirror).exists() {
            std::fs::remove_dir_all(&mirror).unwrap();
        }
    }
    assert!(!Path::new(&mirror).join("slotkeep.json").exists());
    run(&["key", "rekey", "--repo", &secret, "--identity", &path("first"), "--recipient", &second])
        .expect_code(0);
    run(&[&copying[..], &[&path("second")]].concat()).expect_code(0);
    assert_eq!(keys(&mirror), keys(&secret));
    let export = |identity: &str| run(&["key", "export", "--repo", &mirror, "--identity", &path(identity)]);
    export("second").expect_code(0);
    export("first").expect_code(25);
}

#[test]
fn a_folder_with_other_things_and_the_source_itself_are_refused() {
    let scene = Scene::new();
    let other = scene.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("file"), "mine").unwrap();
    scene.copy(&other, &[]).expect_code(20);
    scene.copy(&scene.repo, &[]).expect_code(2);
    scene.copy(&scene.path("second"), &["--backup", "2020"]).expect_code(22);
    assert_eq!(files(&other).len(), 1);
    assert!(!scene.path("second").exists());
}
