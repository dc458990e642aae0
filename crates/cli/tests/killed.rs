//! Commands that are killed before every operation by which they would change the store: what is left is whole, what was to be kept can be
//! restored, and a second run completes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that cannot go on fails"
)]

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

use common::{Run, command, slotkeep};
use harness::{RUNTIME, copy};
use jiff::SignedDuration;
use lived::{Lived, age, restored, sound};
use slotkeep_format::MarkRecord;
use slotkeep_repo::{Location, Repository};
use tempfile::TempDir;

const STOP: &str = "SLOTKEEP_STOP_AT_STORE_OPERATION";
/// What a process that calls `abort` dies of.
const ABORTED: i32 = 6;
/// More operations than any command here has.
const MOST: u64 = 200;

static LIVED: LazyLock<Lived> = LazyLock::new(Lived::new);

struct Copy {
    _folder: TempDir,
    repo: PathBuf,
}

impl Copy {
    fn of(master: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        copy(master, &repo);
        Self { _folder: folder, repo }
    }

    fn text(&self) -> &str {
        self.repo.to_str().unwrap()
    }
}

/// The ids that are listed.
fn listed(repo: &Path) -> Vec<String> {
    let list = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    list["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| backup["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Kills what `work` makes of a copy of the repository before its first operation, its second, and so on, until it ends by itself.
/// Each time `check` looks at what is left, the command is run to its end, and `check` looks again. Gives how often it was killed.
fn kill_everywhere(master: &Path, work: impl Fn(&Path) -> Command, check: impl Fn(&Path, &str)) -> u64 {
    for number in 1..MOST {
        let copy = Copy::of(master);
        let output = work(&copy.repo).env(STOP, number.to_string()).output().unwrap();
        if output.status.signal() != Some(ABORTED) {
            Run::of(&output).expect_code(0);
            check(&copy.repo, &format!("not killed at {number}"));
            return number - 1;
        }
        check(&copy.repo, &format!("killed at {number}"));
        Run::of(&work(&copy.repo).output().unwrap()).expect_code(0);
        check(&copy.repo, &format!("completed after {number}"));
    }
    panic!("it has more than {MOST} operations");
}

/// A repository where everything is three days older, and all that `prune --keep-last 1` gives up is marked.
fn marked() -> Copy {
    let copy = Copy::of(&LIVED.repo());
    age(&copy.repo, 4);
    slotkeep(&["prune", "--keep-last", "1", "--yes", "--repo", copy.text()]).expect_code(0);
    RUNTIME.block_on(async {
        let repository = Repository::open(&Location::Folder(copy.repo.clone())).await.unwrap();
        let newest = repository.marks("main").await.unwrap().newest.unwrap();
        let mut older = MarkRecord { id: "20200101T000000.000Z-0000".to_owned(), ..newest.clone() };
        for object in &mut older.objects {
            object.marked_at -= SignedDuration::from_hours(72);
        }
        repository.put_marks(&older).await.unwrap();
        repository.delete_marks("main", &newest.id).await.unwrap();
    });
    copy
}

#[test]
fn prune_may_be_killed_anywhere() {
    let master = marked();
    let newest = LIVED.ids.last().unwrap();
    let kept = restored(&master.repo, newest, 1);
    let killed = kill_everywhere(
        &master.repo,
        |repo| {
            let mut prune = command();
            prune.args(["prune", "--json", "--keep-last", "1", "--yes", "--repo"]).arg(repo);
            prune
        },
        |repo, when| {
            sound(repo);
            for id in listed(repo) {
                assert!(!restored(repo, &id, 1).is_empty(), "{when}");
            }
            assert_eq!(restored(repo, newest, 1), kept, "{when}");
            if !when.starts_with("killed") {
                assert_eq!(listed(repo), std::slice::from_ref(newest), "{when}");
            }
        },
    );
    // Four manifests, the objects of a base, log, and the records of what goes and went.
    assert!(killed > 10, "{killed}");
}

#[test]
fn compact_may_be_killed_anywhere() {
    let kept: Vec<_> = LIVED.ids.iter().map(|id| restored(&LIVED.repo(), id, 1)).collect();
    let killed = kill_everywhere(
        &LIVED.repo(),
        |repo| {
            let mut compact = command();
            compact.args(["compact", "--json", "--repo"]).arg(repo);
            compact
        },
        |repo, when| {
            sound(repo);
            let all: Vec<_> = LIVED.ids.iter().map(|id| restored(repo, id, 1)).collect();
            assert_eq!(all, kept, "{when}");
        },
    );
    assert!(killed >= 1, "{killed}");
}

#[test]
fn backup_may_be_killed_anywhere() {
    let before = restored(&LIVED.repo(), &LIVED.ids[0], 1);
    LIVED.write(11);
    let killed = kill_everywhere(
        &LIVED.repo(),
        |repo| LIVED.backup(repo, "incremental"),
        |repo, when| {
            sound(repo);
            let ids = listed(repo);
            assert!(ids.starts_with(&LIVED.ids), "{when}: {ids:?}");
            assert_eq!(restored(repo, &LIVED.ids[0], 1), before, "{when}");
            assert!(!restored(repo, ids.last().unwrap(), 1).is_empty(), "{when}");
            if !when.starts_with("killed") {
                assert!(ids.len() > LIVED.ids.len(), "{when}");
            }
        },
    );
    assert!(killed >= 2, "{killed}");
}

/// The first backup of a new repository: its base, its log and its manifest.
#[test]
fn the_first_backup_may_be_killed_anywhere() {
    let empty = tempfile::tempdir().unwrap();
    let repo = empty.path().join("repo");
    slotkeep(&["init", "--quiet", "--repo", repo.to_str().unwrap()]).expect_code(0);
    let killed = kill_everywhere(
        &repo,
        |repo| LIVED.backup(repo, "full"),
        |repo, when| {
            let ids = listed(repo);
            if ids.is_empty() {
                assert!(when.starts_with("killed"), "{when}");
                return;
            }
            sound(repo);
            assert!(!restored(repo, ids.last().unwrap(), 1).is_empty(), "{when}");
        },
    );
    assert!(killed >= 8, "{killed}");
}

#[test]
fn repair_may_be_killed_anywhere() {
    let master = Copy::of(&LIVED.repo());
    // The index of the first base, and the manifest of the backup that took the second.
    let index =
        common::files(&master.repo).into_iter().find(|(name, _)| name.ends_with("index.zst")).unwrap().0;
    std::fs::remove_file(master.repo.join(index)).unwrap();
    std::fs::remove_file(master.repo.join(format!("main/backups/{}.json", LIVED.ids[4]))).unwrap();
    std::fs::write(master.repo.join(format!("main/backups/{}.json", LIVED.ids[3])), "{ damaged }").unwrap();
    let kept: Vec<_> = LIVED.ids[..3].iter().map(|id| restored(&LIVED.repo(), id, 1)).collect();
    let killed = kill_everywhere(
        &master.repo,
        |repo| {
            let mut repair = command();
            repair.args(["repair", "--json", "--yes", "--repo"]).arg(repo);
            repair
        },
        |repo, when| {
            if when.starts_with("killed") {
                // Of a backup and its twin, both may be listed.
                let list = command().args(["list", "--json", "--repo"]).arg(repo).output().unwrap();
                let listed = String::from_utf8_lossy(&list.stdout).into_owned();
                assert!(LIVED.ids[..3].iter().all(|id| listed.contains(id)), "{when}: {listed}");
                return;
            }
            sound(repo);
            let twins: Vec<String> = LIVED.ids[..4].iter().map(|id| format!("{id}-r1")).collect();
            assert_eq!(listed(repo), twins, "{when}");
            let all: Vec<_> = twins[..3].iter().map(|id| restored(repo, id, 1)).collect();
            assert_eq!(all, kept, "{when}");
        },
    );
    assert!(killed > 10, "{killed}");
}

#[test]
fn rekey_may_be_killed_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let reader = |name: &str| {
        let output = Command::new("age-keygen").args(["-o", &path(name)]).output();
        assert!(output.unwrap().status.success(), "age-keygen");
        let text = std::fs::read_to_string(path(name)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned()
    };
    let (first, second) = (reader("first"), reader("second"));
    let repo = folder.path().join("repo");
    let on = |repo: &Path, arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).arg("--repo").arg(repo).env("SLOTKEEP_STATE", path("state"));
        command
    };
    Run::of(&on(&repo, &["init", "--recipient", &first]).output().unwrap()).expect_code(0);
    let mut backup = LIVED.backup(&repo, "full");
    Run::of(&backup.env("SLOTKEEP_STATE", path("state")).output().unwrap()).expect_code(0);
    let opens = |repo: &Path, name: &str| {
        let run = on(repo, &["key", "export", "--identity", &path(name)]).output().unwrap();
        run.status.success()
    };
    let mut killed = 0;
    for number in 1..MOST {
        let copy = Copy::of(&repo);
        let rekey = ["key", "rekey", "--identity", &path("first"), "--recipient", &second];
        let output = on(&copy.repo, &rekey).env(STOP, number.to_string()).output().unwrap();
        let readers = [opens(&copy.repo, "first"), opens(&copy.repo, "second")];
        assert!(readers.contains(&true), "killed at {number}: nobody can read it");
        if output.status.signal() != Some(ABORTED) {
            Run::of(&output).expect_code(0);
            assert_eq!(readers, [false, true]);
            break;
        }
        killed += 1;
        let with = if readers[0] { "first" } else { "second" };
        let rekey = ["key", "rekey", "--identity", &path(with), "--recipient", &second];
        Run::of(&on(&copy.repo, &rekey).output().unwrap()).expect_code(0);
        assert_eq!(
            [opens(&copy.repo, "first"), opens(&copy.repo, "second")],
            [false, true],
            "after {number}"
        );
        let verify = ["verify", "--depth", "structure", "--identity", &path("second")];
        Run::of(&on(&copy.repo, &verify).output().unwrap()).expect_code(0);
    }
    assert!(killed >= 2, "{killed}");
}
