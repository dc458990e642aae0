//! A backup that goes to several repositories at once: all of them whole, one that is encrypted, one that fails half-way, one that hangs, and
//! a process that is killed at every step.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
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
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use common::{Run, command, files, server, slotkeep};
use lived::{Lived, paths, restored, restored_with, sound};
use serde_json::Value;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::stores::S3Server;
use slotkeep_testkit::{Cluster, ClusterBuilder};
use tempfile::TempDir;

/// What a process that calls `abort` dies of.
const ABORTED: i32 = 6;
/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

static LIVED: LazyLock<Lived> = LazyLock::new(Lived::new);

/// Room for repositories.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A backup of the server to the first repository and others.
    fn backup(&self, kind: &str, first: &str, more: &[&str]) -> Command {
        let mut backup = LIVED.backup(&self.path(first), kind);
        backup.args(more).env("SLOTKEEP_STATE", self.path("state"));
        backup
    }
}

fn run(mut command: Command, code: i32) -> Run {
    Run::of(&command.output().unwrap()).expect_code(code)
}

fn listed(repo: &Path) -> Vec<String> {
    let list = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    let ids = list["backups"].as_array().unwrap().iter();
    ids.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// Whether each repository has the backup, in the order in which they were given.
fn has(backup: &Value) -> Vec<bool> {
    let all = backup["repositories"].as_array().unwrap().iter();
    all.map(|one| one["has_backup"].as_bool().unwrap()).collect()
}

/// The objects, without those that say what a repository is.
fn objects(repo: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = files(repo);
    all.retain(|(name, _)| name.starts_with("main/") && !name.contains('#') && !name.contains("/verify/"));
    all
}

/// A server with some MB, and a backup of it that takes a few seconds.
struct Large {
    cluster: Cluster,
    scene: Scene,
}

impl Large {
    fn new() -> Self {
        let cluster =
            ClusterBuilder::new(server("valkey-9.1")).primaries(1).cluster_mode(false).start().unwrap();
        Mix::bulk(12_000_000).load(&cluster).unwrap();
        Self { cluster, scene: Scene::new() }
    }

    fn backup(&self, more: &[&str]) -> Command {
        let mut backup = command();
        backup.args(["backup", "--json", "--cluster"]);
        backup.arg(self.cluster.nodes()[0].addr().to_string()).args(more);
        backup.arg("--spool").arg(self.scene.path("spool"));
        backup.stdout(Stdio::piped()).stderr(Stdio::piped());
        backup
    }

    /// Runs it, and does something when the repository in that folder has got the first MB.
    fn backup_and_half_way(&self, repo: &str, mut backup: Command, act: impl FnOnce()) -> Run {
        backup.args(["--limit-rate", "2M"]);
        let child = backup.spawn().unwrap();
        let repo = self.scene.path(repo);
        wait_for(LIMIT, "half of a base to be there", || {
            let staged = if repo.exists() { staged_bytes(&repo) } else { 0 };
            if staged >= 1 << 20 { Ok(()) } else { Err(NotYet::because(format!("{staged} bytes"))) }
        })
        .unwrap();
        act();
        Run::of(&child.wait_with_output().unwrap())
    }
}

/// The bytes of RDBs that are being written. Files come and go meanwhile.
fn staged_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |path: &Path| {
        if path.is_dir() {
            return staged_bytes(path);
        }
        let is_staged = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rdb.zst#"));
        if is_staged { std::fs::metadata(path).map_or(0, |found| found.len()) } else { 0 }
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

#[test]
fn two_folders_get_the_same_backup_and_what_was_written_since() {
    let scene = Scene::new();
    let (a, b, c) = (scene.text("a"), scene.text("b"), scene.text("c"));
    LIVED.write(20);
    let full = run(scene.backup("full", "a", &["--repo", &b]), 0).json();
    assert_eq!((&full["kind"], has(&full)), (&Value::from("full"), vec![true, true]));
    LIVED.write(21);
    let more = run(scene.backup("incremental", "a", &["--repo", &b]), 0).json();
    assert_eq!((&more["kind"], has(&more)), (&Value::from("incremental"), vec![true, true]));
    let ids: Vec<_> = [&full, &more].map(|backup| backup["id"].as_str().unwrap().to_owned()).into();
    for repo in [&a, &b].map(Path::new) {
        assert_eq!(listed(repo), ids);
        sound(repo);
    }
    assert_eq!(objects(Path::new(&a)), objects(Path::new(&b)));
    for id in &ids {
        assert_eq!(restored(Path::new(&a), id, 1), restored(Path::new(&b), id, 1), "{id}");
    }

    // One that does not hold the same has nothing to go on from.
    LIVED.write(22);
    run(scene.backup("incremental", "a", &["--repo", &c, "--no-fallback"]), 24);
    assert_eq!((listed(Path::new(&a)), listed(Path::new(&c))), (ids.clone(), vec![]));
    let optional = run(scene.backup("incremental", "a", &["--repo", &b, "--repo-optional", &c]), 0);
    assert_eq!(has(&optional.json()), [true, true, false]);
    assert!(optional.stderr.contains(&format!("{c} does not have this backup")), "{}", optional.stderr);
    let full = run(scene.backup("incremental", "a", &["--repo", &c]), 0);
    assert!(full.stderr.contains("taking a full one"), "{}", full.stderr);
    assert_eq!((&full.json()["kind"], has(&full.json())), (&Value::from("full"), vec![true, true]));
    sound(Path::new(&c));
    // `copy` brings one up to date that missed some.
    slotkeep(&["copy", "--repo", &a, "--to", &b]).expect_code(0);
    assert_eq!(paths(Path::new(&b)), paths(Path::new(&a)));
    let after = run(scene.backup("incremental", "a", &["--repo", &b]), 0).json();
    assert_eq!(after["kind"], "incremental");

    run(scene.backup("full", "a", &["--repo", &a]), 2);
}

#[test]
fn each_is_encrypted_for_its_own_readers_or_not_at_all() {
    let scene = Scene::new();
    let reader = |name: &str| {
        let output = Command::new("age-keygen").args(["-o", &scene.text(name)]).output();
        assert!(output.unwrap().status.success(), "age-keygen");
        let text = std::fs::read_to_string(scene.path(name)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned()
    };
    let [first, second] = ["first-reader", "second-reader"].map(|name| (scene.text(name), reader(name)));
    let (one, two, plain) = (scene.text("one"), scene.text("two"), scene.text("plain"));
    for (repo, (_, public)) in [(&one, &first), (&two, &second)] {
        let mut init = command();
        init.args(["init", "--recipient", public, "--repo", repo]);
        init.env("SLOTKEEP_STATE", scene.path("state"));
        run(init, 0);
    }
    // Whoever writes can read neither of the two.
    let others = ["--repo", &two, "--repo", &plain];
    let full = run(scene.backup("full", "one", &others), 0).json();
    LIVED.write(30);
    // What goes on from there reads digests of bases, in each of them.
    let identities = format!("{},{}", first.0, second.0);
    let readers = [&others[..], &["--identity", &identities]].concat();
    let more = run(scene.backup("incremental", "one", &readers), 0).json();
    assert_eq!((&more["kind"], has(&more)), (&Value::from("incremental"), vec![true; 3]), "{more:#}");
    let at = |repo: &str, identity: &[&str]| {
        let verify = [&["verify", "--json", "--depth", "structure", "--repo", repo][..], identity].concat();
        let found = slotkeep(&verify).expect_code(0).json();
        assert!(found["totals"]["objects"].as_u64().unwrap() > 0, "{found:#}");
        [&full, &more]
            .map(|backup| restored_with(Path::new(repo), backup["id"].as_str().unwrap(), 1, identity))
    };
    let expected = at(&plain, &[]);
    assert_eq!(at(&one, &["--identity", &first.0]), expected);
    assert_eq!(at(&two, &["--identity", &second.0]), expected);
    let [one, two, plain] = [&one, &two, &plain].map(|repo| objects(Path::new(repo)));
    let rdb = |objects: &[(String, Vec<u8>)]| {
        objects.iter().find(|(name, _)| name.ends_with("rdb.zst")).unwrap().clone()
    };
    assert_eq!([rdb(&one).0, rdb(&two).0], [rdb(&plain).0, rdb(&plain).0]);
    assert!(rdb(&one).1 != rdb(&two).1 && rdb(&one).1 != rdb(&plain).1);

    // What must be signed and can't be is not begun.
    let mut stranger = scene.backup("full", "plain", &["--repo", &scene.text("one")]);
    let refused = run_with(&mut stranger, "SLOTKEEP_STATE", &scene.path("stranger"), 25);
    assert!(refused.stderr.contains("one"), "{}", refused.stderr);
    let mut stranger = scene.backup("full", "plain", &["--repo-optional", &scene.text("one")]);
    let stored = run_with(&mut stranger, "SLOTKEEP_STATE", &scene.path("stranger"), 0).json();
    assert_eq!(has(&stored), [true, false]);
}

fn run_with(command: &mut Command, name: &str, value: &Path, code: i32) -> Run {
    Run::of(&command.env(name, value).output().unwrap()).expect_code(code)
}

#[test]
fn one_that_fails_half_way_takes_the_others_with_it_only_if_it_is_required() {
    let large = Large::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| large.scene.text(name));
    let away = |repo: &str| std::fs::rename(repo, format!("{repo}-away")).unwrap();

    let backup = large.backup(&["--repo", &a, "--repo", &b]);
    let failed = large.backup_and_half_way("b", backup, || away(&b)).expect_code(20);
    let message = &failed.stderr;
    assert!(
        message.contains(&b) && message.contains("no repository lists a backup of this run"),
        "{message}"
    );
    assert!(listed(Path::new(&a)).is_empty());
    let left = paths(Path::new(&a));
    assert!(!left.iter().any(|path| path.contains("/base/")), "{left:?}");
    assert!(paths(Path::new(&format!("{b}-away"))).iter().all(|path| !path.contains("/backups/")));

    let backup = large.backup(&["--repo", &a, "--repo-optional", &c]);
    let stored = large.backup_and_half_way("c", backup, || away(&c)).expect_code(0);
    assert_eq!(has(&stored.json()), [true, false]);
    assert!(stored.json()["repositories"][1]["why"].as_str().unwrap().contains(&c), "{}", stored.stdout);
    assert!(stored.stderr.contains(&format!("{c} does not have this backup")), "{}", stored.stderr);
    assert_eq!(listed(Path::new(&a)).len(), 1);
    sound(Path::new(&a));
    // It is there again, with what it got and does not list.
    std::fs::rename(format!("{c}-away"), &c).unwrap();
    assert!(listed(Path::new(&c)).is_empty());
}

#[test]
fn one_place_under_two_names_is_refused() {
    let scene = Scene::new();
    let first = scene.text("first");
    run(scene.backup("full", "first", &[]), 0);
    std::os::unix::fs::symlink(&first, scene.path("link")).unwrap();
    let before = files(&scene.path("first"));
    for other in [first.clone(), format!("{first}/"), scene.text("link"), scene.text("link/../first")] {
        for role in ["--repo", "--repo-optional"] {
            let refused = run(scene.backup("full", "first", &[role, &other]), 2);
            assert!(refused.stderr.contains("name each repository once"), "{}", refused.stderr);
        }
    }
    let new = run(scene.backup("full", "new", &["--repo", &format!("{}/.", scene.text("new"))]), 2);
    assert!(new.stderr.contains("name each repository once"), "{}", new.stderr);
    assert_eq!(files(&scene.path("first")), before);
}

#[test]
fn a_bucket_beside_a_folder_and_one_that_hangs() {
    let large = Large::new();
    let store = S3Server::start().unwrap();
    store.make_bucket("backups").unwrap();
    let folder = large.scene.text("folder");
    let bucket = "s3://backups/redis";
    let on = |mut command: Command| {
        command.envs(store.environment());
        command
    };
    let mut init = on(command());
    init.args(["init", "--repo", bucket]);
    run(init, 0);
    let both = run(on(large.backup(&["--repo", &folder, "--repo", bucket])), 0).json();
    assert_eq!(has(&both), [true, true]);
    let mut diff = on(command());
    diff.args(["diff", "--repo", bucket, "latest", &large.cluster.nodes()[0].addr().to_string()]);
    run(diff, 0);
    sound(Path::new(&folder));

    let options = ["--repo", &folder, "--repo-optional", bucket, "--repo-optional-wait", "2s"];
    let backup = on(large.backup(&options));
    let stored =
        large.backup_and_half_way("folder", backup, || store.freeze().unwrap()).expect_code(0).json();
    assert_eq!(has(&stored), [true, false]);
    let hung = &stored["repositories"][1];
    assert!(hung["why"].as_str().unwrap().contains("too slow"), "{hung:#}");
    let held_up_ms = hung["held_up_ms"].as_u64().unwrap();
    assert!(held_up_ms >= 1_900, "{held_up_ms}");
    assert_eq!(listed(Path::new(&folder)).len(), 2);
    sound(Path::new(&folder));
}

#[test]
fn what_is_listed_in_one_stays_whole_when_the_next_can_t_list_it() {
    let scene = Scene::new();
    let [a, b] = ["a", "b"].map(|name| scene.text(name));
    for repo in [&a, &b] {
        slotkeep(&["init", "--quiet", "--repo", repo]).expect_code(0);
    }
    // Where manifests go no file can be made.
    let block = |repo: &str| {
        std::fs::create_dir_all(Path::new(repo).join("main")).unwrap();
        std::fs::write(Path::new(repo).join("main/backups"), "").unwrap();
    };
    block(&a);
    let failed = run(scene.backup("full", "a", &["--repo", &b]), 52);
    let id = listed(Path::new(&b)).pop().unwrap();
    for part in [&a, &b, &id] {
        assert!(failed.stderr.contains(part.as_str()), "{}", failed.stderr);
    }
    sound(Path::new(&b));
    assert!(!restored(Path::new(&b), &id, 1).is_empty());
    assert!(!paths(Path::new(&a)).iter().any(|path| path.contains("/base/")), "{:?}", paths(Path::new(&a)));

    // The other way about nothing is listed at all.
    std::fs::remove_file(Path::new(&a).join("main/backups")).unwrap();
    std::fs::remove_dir_all(Path::new(&b).join("main")).unwrap();
    block(&b);
    let failed = run(scene.backup("full", "a", &["--repo", &b]), 20);
    assert!(failed.stderr.contains(&b), "{}", failed.stderr);
    assert!(listed(Path::new(&a)).is_empty());
}

#[test]
fn a_backup_to_two_may_be_killed_anywhere() {
    let scene = Scene::new();
    let mut killed = 0;
    for number in 1..200 {
        let [a, b] = ["a", "b"].map(|name| format!("{name}{number}"));
        let others = ["--repo", &scene.text(&b)];
        let mut backup = scene.backup("full", &a, &others);
        let output = backup.env("SLOTKEEP_STOP_AT_STORE_OPERATION", number.to_string()).output().unwrap();
        let ended = output.status.signal() != Some(ABORTED);
        let repos = [&a, &b].map(|name| scene.path(name)).into_iter();
        let repos: Vec<PathBuf> = repos.filter(|repo| repo.join("slotkeep.json").exists()).collect();
        for repo in &repos {
            for id in listed(repo) {
                assert!(!restored(repo, &id, 1).is_empty(), "killed at {number}");
                sound(repo);
            }
        }
        if ended {
            Run::of(&output).expect_code(0);
            assert_eq!(repos.iter().map(|repo| listed(repo).len()).collect::<Vec<_>>(), [1, 1]);
            break;
        }
        killed += 1;
    }
    assert!(killed > 20, "{killed}");
}
