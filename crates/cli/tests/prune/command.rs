//! The command: plans, pins, settings, and a real server's log.

use std::sync::LazyLock;

use jiff::SignedDuration;
use slotkeep_format::RetentionPolicy;
use slotkeep_jobs::ObjectKind;
use slotkeep_jobs::prune::Step;
use slotkeep_repo::{Location, Repository};

use crate::clock::prune;
use crate::common::{Run, command, slotkeep};
use crate::harness::{RUNTIME, copy};
use crate::lived::{Lived, paths, restored, sound};

pub(crate) static LIVED: LazyLock<Lived> = LazyLock::new(Lived::new);

/// A copy of it.
pub(crate) fn copied() -> (tempfile::TempDir, std::path::PathBuf, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    copy(&LIVED.repo(), &repo);
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    (folder, repo, repository)
}

#[test]
fn behind_the_window_only_what_leads_to_kept_backups_stays() {
    let (_folder, repo, repository) = copied();
    let ids = &LIVED.ids;
    let text = repo.to_str().unwrap();
    slotkeep(&["prune", "--repo", text, "--pin", &ids[1]]).expect_code(0);
    let kept: Vec<_> = [1, 4].iter().map(|number| restored(&repo, &ids[*number], 1)).collect();
    let before = paths(&repo);
    // With a window that begins now.
    let policy = RetentionPolicy { window: Some(SignedDuration::from_secs(1)), ..RetentionPolicy::default() };
    let marked = prune(&repository, &policy, 48);
    let log = |step: Step| {
        let of_log =
            marked.objects.iter().filter(|object| object.kind == ObjectKind::Log && object.step == step);
        of_log.map(|object| object.path.clone()).collect::<Vec<_>>()
    };
    let outside = log(Step::Mark);
    assert!(!outside.is_empty(), "the third backup has log of its own: {marked:#?}");
    let swept = prune(&repository, &policy, 73);
    assert!(swept.objects.iter().all(|object| object.step == Step::Deleted), "{swept:#?}");
    let after = paths(&repo);
    assert!(outside.iter().all(|path| before.contains(path) && !after.contains(path)));
    let listed = slotkeep(&["list", "--json", "--repo", text]).expect_code(0).json();
    let left: Vec<&str> =
        listed["backups"].as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap()).collect();
    assert_eq!(left, [&ids[1], &ids[4]]);
    let verified = slotkeep(&["verify", "--again", "--repo", text]).expect_code(0);
    assert!(!verified.stdout.contains("missing"), "{}", verified.stdout);
    assert_eq!([restored(&repo, &ids[1], 1), restored(&repo, &ids[4], 1)].to_vec(), kept);
    // It goes on from there, and nothing hinders it.
    LIVED.write(9);
    let next = Run::of(&LIVED.backup(&repo, "incremental").output().unwrap()).expect_code(0).json();
    assert_eq!(next["kind"], "incremental");
    sound(&repo);
}

#[test]
fn the_command_shows_its_plan_and_acts_only_when_told() {
    let (folder, repo, _) = copied();
    let text = repo.to_str().unwrap();
    let before = paths(&repo);
    // Nobody is there to look at a plan.
    let refused = slotkeep(&["prune", "--repo", text, "--keep-last", "1"]).expect_code(2);
    assert!(refused.stderr.contains("--dry-run"), "{}", refused.stderr);
    slotkeep(&["prune", "--repo", text, "--dry-run"]).expect_code(2);
    let plan = slotkeep(&["prune", "--repo", text, "--keep-last", "1", "--dry-run"]).expect_code(0);
    assert!(
        plan.stdout.contains("no rule keeps it") && plan.stdout.contains("Nothing was changed"),
        "{}",
        plan.stdout
    );
    assert_eq!(paths(&repo), before);
    // Rules may stand in the settings.
    let settings = folder.path().join("slotkeep.toml");
    std::fs::write(&settings, "[retention]\nkeep_last = 2\nwindow = \"1h\"\n").unwrap();
    let with_settings = ["prune", "--json", "--repo", text, "--dry-run", "-c", settings.to_str().unwrap()];
    let plan = slotkeep(&with_settings).expect_code(0).json();
    assert!(plan["backups"].as_array().unwrap().iter().all(|backup| backup["kept_for"][0].is_string()));
    std::fs::write(&settings, "[retention]\nkeep_last = 2\nwindow = \"1 hour\"\n").unwrap();
    assert!(slotkeep(&with_settings).expect_code(2).stderr.contains("window"));

    let marked =
        slotkeep(&["prune", "--json", "--repo", text, "--keep-last", "1", "--yes"]).expect_code(0).json();
    assert_eq!(marked["freed_bytes"], 0);
    assert!(marked["marked_bytes"].as_u64().unwrap() > 0);
    let steps: Vec<&str> =
        marked["backups"].as_array().unwrap().iter().filter_map(|row| row["step"].as_str()).collect();
    assert_eq!(steps, ["mark"; 4]);
    sound(&repo);
}

#[test]
fn a_pin_keeps_a_backup_and_a_taken_pin_gives_it_a_new_grace() {
    let (_folder, repo, repository) = copied();
    let text = repo.to_str().unwrap();
    let ids = &LIVED.ids;
    let policy = crate::clock::last(1);
    prune(&repository, &policy, 0);
    let pinned = slotkeep(&["prune", "--json", "--repo", text, "--pin", &ids[0]]).expect_code(0).json();
    assert_eq!((&pinned[0]["pinned"], &pinned[0]["unchanged"]), (&true.into(), &false.into()));
    let again = slotkeep(&["prune", "--json", "--repo", text, "--pin", &ids[0]]).expect_code(0).json();
    assert_eq!(again[0]["unchanged"], true);
    let swept = prune(&repository, &policy, 25);
    assert!(swept.released > 0);
    restored(&repo, &ids[0], 1);
    slotkeep(&["prune", "--repo", text, "--unpin", &ids[0]]).expect_code(0);
    let next = prune(&repository, &policy, 26);
    assert_eq!(next.backups[0].step, Some(Step::Mark));
    restored(&repo, &ids[0], 1);
    slotkeep(&["prune", "--repo", text, "--pin", "nothing"]).expect_code(22);
}

#[test]
fn a_host_that_cannot_read_prunes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let output = std::process::Command::new("age-keygen").args(["-o", &path("reader")]).output();
    assert!(output.unwrap().status.success(), "age-keygen");
    let text = std::fs::read_to_string(path("reader")).unwrap();
    let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    let repo = path("repo");
    let on = |machine: &str, arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(["--json", "--repo", &repo]);
        Run::of(&command.env("SLOTKEEP_STATE", path(machine)).output().unwrap())
    };
    on("host", &["init", "--recipient", &public]).expect_code(0);
    for _ in 0..2 {
        let mut backup = LIVED.backup(std::path::Path::new(&repo), "full");
        Run::of(&backup.env("SLOTKEEP_STATE", path("host")).output().unwrap()).expect_code(0);
    }
    let marked = on("host", &["prune", "--keep-last", "1", "--yes"]).expect_code(0).json();
    assert!(marked["marked_bytes"].as_u64().unwrap() > 0);
    // Marks are signed; who has no key for that looks and does not touch.
    on("other", &["prune", "--keep-last", "1", "--dry-run"]).expect_code(0);
    on("other", &["prune", "--keep-last", "1", "--yes"]).expect_code(25);
    on("host", &["compact"]).expect_code(0);
    // It can't join segments, and knows by the proofs that another host has left that the large one is whole.
    for round in 20..24 {
        LIVED.write(round);
        let mut backup = LIVED.backup(std::path::Path::new(&repo), "incremental");
        Run::of(&backup.env("SLOTKEEP_STATE", path("host")).output().unwrap()).expect_code(0);
    }
    let covered = || {
        let plan = on("host", &["prune", "--keep-last", "9", "--dry-run"]).expect_code(0).json();
        plan["objects"].as_array().unwrap().iter().filter(|object| object["why"] == "covered").count()
    };
    on("host", &["compact"]).expect_code(25);
    assert_eq!(covered(), 0);
    let joined = on("host", &["compact", "--identity", &path("reader")]).expect_code(0).json();
    assert!(joined["segments"].as_u64().unwrap() > 1, "{joined}");
    assert_eq!(covered() as u64, joined["segments"].as_u64().unwrap());
}
