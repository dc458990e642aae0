//! What processes leave that are killed in the middle of a write, and what agents leave that never come back.

use std::time::{Duration, SystemTime};

use slotkeep_jobs::prune::Step;
use slotkeep_repo::{Location, Repository};
use slotkeep_testkit::ClusterBuilder;

use crate::bucket::text;
use crate::clock::{last, prune};
use crate::common::agent::Agent;
use crate::common::{server, slotkeep};
use crate::harness::{RUNTIME, copy};
use crate::lived::{Lived, paths, sound};

#[test]
fn what_killed_writes_left_is_swept_once_it_is_old() {
    let lived = Lived::new();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    copy(&lived.repo(), &repo);
    let history = paths(&repo).into_iter().find(|path| path.ends_with("rdb.zst")).unwrap();
    let files = [format!("{history}#1"), "main/backups/20990101T000000.000Z-0000.json#2".to_owned()];
    let young = format!("{history}#2");
    for file in files.iter().chain([&young]) {
        std::fs::write(repo.join(file), "half of it").unwrap();
    }
    // Not what a write leaves, whatever it is.
    std::fs::write(repo.join("main/letter#one"), "mine").unwrap();
    let days_ago = SystemTime::UNIX_EPOCH
        + Duration::from_secs(
            u64::try_from(crate::harness::context().clock.now().as_second()).unwrap() - 2 * 86_400,
        );
    for file in &files {
        std::fs::File::options().write(true).open(repo.join(file)).unwrap().set_modified(days_ago).unwrap();
    }
    let run = |how: &str| {
        slotkeep(&["prune", "--json", "--keep-last", "9", how, "--repo", text(&repo)]).expect_code(0).json()
    };
    let planned = run("--dry-run");
    let named = |report: &serde_json::Value, step: &str| {
        let rows = report["unfinished"].as_array().unwrap().iter().filter(|row| row["step"] == step);
        let mut names: Vec<String> = rows.map(|row| row["path"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let mut wanted = files.to_vec();
    wanted.sort();
    assert_eq!(named(&planned, "delete"), wanted);
    assert!(files.iter().all(|file| repo.join(file).exists()));
    let shown = slotkeep(&["prune", "--keep-last", "9", "--dry-run", "--repo", text(&repo)]).expect_code(0);
    assert!(
        shown.stdout.contains("killed writes left") && shown.stdout.contains("json#2"),
        "{}",
        shown.stdout
    );
    let done = run("--yes");
    assert_eq!(named(&done, "deleted"), wanted);
    assert_eq!(done["freed_bytes"], 20);
    assert!(files.iter().all(|file| !repo.join(file).exists()));
    assert!(repo.join(&young).exists() && repo.join("main/letter#one").exists());
    sound(&repo);
}

/// The base that only an agent's word names stays while agents may come back, goes when none has for long, and the agent that comes back all the
/// same begins anew.
#[test]
fn what_agents_told_ages_out_and_one_that_comes_back_begins_anew() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(1).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    agent.stop();
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    let ids = RUNTIME.block_on(repository.backup_ids("main")).unwrap();
    RUNTIME.block_on(repository.delete(&format!("main/backups/{}.json", ids[0]))).unwrap();
    let bases = || paths(&repo).into_iter().filter(|path| path.contains("/base/")).count();
    for hours in [48, 6 * 24] {
        prune(&repository, &last(1), hours);
    }
    assert_eq!(bases(), 3);
    prune(&repository, &last(1), 8 * 24);
    let swept = prune(&repository, &last(1), 9 * 24 + 1);
    assert!(swept.objects.iter().any(|object| object.step == Step::Deleted), "{swept:#?}");
    assert_eq!(bases(), 0);

    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    assert_eq!(agent.notices("base").len(), 1);
    agent.stop();
    assert_eq!(bases(), 3);
    sound(&repo);
}
