//! Backups, an archive, a copy and a prune on a store that refuses, loses answers, breaks off, is slow, keeps half of a write, and lists late.
//! What happens to which request is decided by seeds. Either a command succeeds, or it says so, and nothing is listed that is not whole.

use std::path::Path;
use std::process::Command;

use object_store::ObjectStoreExt as _;
use serde_json::Value;
use slotkeep_testkit::{Cluster, ClusterBuilder, Fault};

use crate::bucket::{Bucket, text};
use crate::clock::{last, prune};
use crate::common::agent::Agent;
use crate::common::log::{assert_log_is_the_stream, field};
use crate::common::{Run, server, slotkeep};
use crate::harness::RUNTIME;
use crate::lived::{restored, sound};

/// In how many of a hundred requests.
const STORM: [(Fault, u64); 5] = [
    (Fault::Fails, 8),
    (Fault::BreaksRequest, 6),
    (Fault::LosesAnswer, 6),
    (Fault::BreaksAnswer, 6),
    (Fault::IsSlow, 12),
];

struct Scene {
    bucket: Bucket,
    cluster: Cluster,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let cluster = ClusterBuilder::new(server("valkey-9.1"))
            .primaries(1)
            .cluster_mode(false)
            .config("repl-backlog-size", "64mb")
            .config("repl-ping-replica-period", "1")
            .start()
            .unwrap();
        Self { bucket: Bucket::new(seed), cluster }
    }

    /// Gives the offset of the last byte.
    fn write(&self, round: usize) -> u64 {
        let mut client = self.cluster.nodes()[0].client().unwrap();
        for number in 0..50 {
            client.command(&["SET", &format!("key:{number}"), &format!("{number} of {round}")]).unwrap();
            client.command(&["RPUSH", "list", &format!("{round}:{number}")]).unwrap();
        }
        field(&mut client, "master_repl_offset").parse().unwrap()
    }

    fn of_cluster(&self, mut command: Command, what: &[&str]) -> Command {
        let node = self.cluster.nodes()[0].addr().to_string();
        command.args(what).args(["--json", "--cluster", &node, "--repo", self.bucket.repo(), "--spool"]);
        command.arg(self.bucket.path("spool"));
        command
    }

    /// Tries until a backup succeeds; each failure is one of the store, and is named.
    #[track_caller]
    fn backup(&self, kind: &str) -> Value {
        for _ in 0..4 {
            let mut backup = self.of_cluster(self.bucket.command(), &["backup", "--type", kind]);
            let run = Run::of(&backup.output().unwrap());
            if run.code == 0 {
                return run.json();
            }
            assert_eq!(run.code, 20, "{}", run.stderr);
        }
        panic!("no backup in four tries");
    }

    fn archive(&self) -> Agent {
        let what = ["archive", "--status-every", "100ms", "--seal-after", "200ms"];
        Agent::spawn(self.of_cluster(self.bucket.command(), &what))
    }

    /// A copy made in fair weather: nothing is wrong with it, and each of its backups can be restored.
    #[track_caller]
    fn whole(&self, name: &str) -> std::path::PathBuf {
        let copy = self.bucket.fetched(name);
        all_restorable(&copy);
        copy
    }
}

/// Waits until the repository holds everything up to that offset.
#[track_caller]
fn wait_sealed(agent: &Agent, offset: u64) {
    agent.wait_status("everything to be sealed", |status| {
        status["shards"][0]["sealed"].as_u64().is_some_and(|sealed| sealed >= offset)
    });
}

#[track_caller]
fn all_restorable(repo: &Path) -> usize {
    sound(repo);
    let list = slotkeep(&["list", "--json", "--repo", text(repo)]).expect_code(0).json();
    let backups = list["backups"].as_array().unwrap();
    for backup in backups {
        restored(repo, backup["id"].as_str().unwrap(), 1);
    }
    backups.len()
}

#[test]
fn a_storm_delays_and_loses_nothing() {
    let scene = Scene::new(20);
    scene.write(0);
    scene.bucket.store.set("", &STORM);
    scene.backup("full");
    scene.write(1);
    let second = scene.backup("incremental");

    // The archive goes on from there, through all of it.
    let agent = scene.archive();
    agent.wait_following();
    for round in 2..6 {
        wait_sealed(&agent, scene.write(round));
    }
    let (gaps, diverged) = (agent.notices("gap"), agent.notices("diverged"));
    assert_eq!((gaps, diverged), (vec![], vec![]));
    agent.kill();
    let offset = scene.write(6);
    let agent = scene.archive();
    agent.wait_following();
    wait_sealed(&agent, offset);
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    // The last words may be lost to the storm; nothing else is.
    let mut agent = agent;
    assert_eq!(agent.finish().code(), Some(0), "{}", agent.said());

    // Copies, there and back, each brought to its end by as many runs as it takes.
    let (there, back) = ("s3://days/second", scene.bucket.path("back"));
    for (from, to) in [(scene.bucket.repo(), there), (there, text(&back))] {
        let mut codes = Vec::new();
        while codes.last() != Some(&0) {
            let run = scene.bucket.run(&["copy", "--json", "--repo", from, "--to", to]);
            assert!([0, 20].contains(&run.code) && codes.len() < 4, "{codes:?} {}", run.stderr);
            codes.push(run.code);
        }
    }
    // A prune that gives up the first two backups, while it storms.
    scene.write(7);
    let third = scene.backup("full");
    let repository = scene.bucket.open(true);
    prune(&repository, &last(1), 48);
    prune(&repository, &last(1), 73);
    prune(&repository, &last(1), 98);
    let met = scene.bucket.store.met();
    assert!(STORM.iter().all(|(fault, _)| met.get(fault).is_some_and(|count| *count > 2)), "{met:?}");
    scene.bucket.store.clear();

    assert_eq!(scene.bucket.listed(), [third["id"].as_str().unwrap()]);
    scene.whole("after");
    assert_eq!(all_restorable(&back), 2);
    assert_log_is_the_stream(&back, &second["shards"][0], &scene.cluster.nodes()[0]);
}

/// A store that keeps half of a segment under its name must not cost the only whole copy, which is in the spool.
#[test]
fn half_a_segment_is_not_taken_for_sealed() {
    let scene = Scene::new(21);
    scene.write(0);
    let agent = scene.archive();
    agent.wait_ready();
    scene.bucket.store.set("/log/", &[(Fault::KeepsHalf, 100)]);
    scene.write(1);
    let is_damaged = |status: &Value| {
        status["shards"][0]["trouble"].as_str().is_some_and(|trouble| trouble.contains("damaged"))
    };
    agent.wait_status("half a segment to be named", is_damaged);
    assert!(agent.status()["spool_bytes"].as_u64() > Some(0));
    agent.kill();
    scene.bucket.store.clear();

    // The next one finds it too, and keeps what it has.
    let agent = scene.archive();
    agent.wait("half a segment to be named again", |lines| {
        lines.iter().any(|line| {
            line["notice"]["what"]
                .as_str()
                .is_some_and(|what| what.contains("damaged") && what.contains("spool"))
        })
    });
    let said = agent.notices("trouble").join("\n");
    let path = said.split(' ').find(|word| word.contains("/log/")).unwrap().trim_end_matches(':').to_owned();
    RUNTIME.block_on(scene.bucket.objects(false).delete(&path.as_str().into())).unwrap();
    agent.wait_following();
    wait_sealed(&agent, scene.write(2));
    assert_eq!(agent.notices("gap"), Vec::<String>::new());
    assert_eq!(agent.stop()["spool_bytes"], 0);
    // Halves that bear names of pieces are in nobody's way, but for what reads every object; they are not many.
    let halves = text(&scene.bucket.path("halves")).to_owned();
    let halves = scene.bucket.run(&["copy", "--json", "--repo", scene.bucket.repo(), "--to", &halves]);
    let halves = halves.expect_code(23).json()["refused"].as_array().unwrap().clone();
    assert!((1..=5).contains(&halves.len()), "{halves:?}");
    for half in &halves {
        let path = half["path"].as_str().unwrap();
        RUNTIME.block_on(scene.bucket.objects(false).delete(&path.into())).unwrap();
    }
    let copy = scene.whole("after");
    let manifest = slotkeep(&["show", "--json", "--repo", text(&copy)]).expect_code(0).json();
    assert_log_is_the_stream(&copy, &manifest["shards"][0], &scene.cluster.nodes()[0]);
}

#[test]
fn half_a_manifest_or_half_a_base_is_no_backup() {
    let scene = Scene::new(22);
    scene.write(0);
    let first = scene.backup("full");
    let half = |only: &str| {
        scene.bucket.store.set(only, &[(Fault::KeepsHalf, 100)]);
        let mut backup = scene.of_cluster(scene.bucket.command(), &["backup"]);
        let run = Run::of(&backup.output().unwrap());
        scene.bucket.store.clear();
        run
    };
    let run = half("/backups/").expect_code(20);
    assert!(run.stderr.contains("it exists already"), "{}", run.stderr);
    let listed = scene.bucket.calm(&["list", "--repo", scene.bucket.repo()], 23);
    assert!(listed.stdout.contains("UNREADABLE") && listed.stdout.contains(first["id"].as_str().unwrap()));
    // What can't be read is somebody's to look at; the copy names it and takes the rest.
    let target = scene.bucket.path("target");
    let copied = scene.bucket.run(&["copy", "--json", "--repo", scene.bucket.repo(), "--to", text(&target)]);
    assert_eq!(copied.code, 23, "{}", copied.stderr);
    assert_eq!(all_restorable(&target), 1);
    let unreadable: Vec<String> =
        scene.bucket.listed().into_iter().filter(|id| *id != first["id"].as_str().unwrap()).collect();
    let path = format!("main/backups/{}.json", unreadable[0]);
    RUNTIME.block_on(scene.bucket.objects(false).delete(&path.as_str().into())).unwrap();
    // Of a base: it fails, or the store got the rest when it was asked again; what is listed is whole.
    for (number, name) in ["rdb.zst", "index.zst", "digest", "/log/"].into_iter().enumerate() {
        scene.write(number);
        let run = half(name);
        assert!([0, 20, 23].contains(&run.code), "{name}: {}", run.stderr);
        let listed = scene.bucket.listed();
        if run.code == 0 {
            assert!(listed.iter().any(|id| run.json()["id"] == id.as_str()), "{name}: {listed:?}");
        }
        // The copy proves every object, and lists what it has proved.
        let target = scene.bucket.path(name.trim_matches('/'));
        let copied =
            scene.bucket.run(&["copy", "--json", "--repo", scene.bucket.repo(), "--to", text(&target)]);
        assert!([0, 23].contains(&copied.code), "{name}: {}", copied.stderr);
        let list = slotkeep(&["list", "--json", "--repo", text(&target)]).expect_code(0).json();
        assert_eq!(list["backups"].as_array().unwrap().len(), listed.len(), "{name}: {}", copied.stdout);
        for id in &listed {
            restored(&target, id, 1);
        }
    }
}

#[test]
fn listings_that_are_late_show_less_and_do_no_harm() {
    let scene = Scene::new(23);
    scene.write(0);
    scene.backup("full");
    // Every listing has been seen once, as it was then.
    let target = scene.bucket.path("target");
    scene
        .bucket
        .run(&["copy", "--json", "--repo", scene.bucket.repo(), "--to", text(&target)])
        .expect_code(0);
    let late = [(Fault::ListsLate, 70)];
    scene.bucket.store.set("", &late);
    for round in 1..4 {
        scene.write(round);
        scene.backup(if round == 3 { "full" } else { "incremental" });
        // A backup whose log is not listed yet is named and waits for the next copy.
        let run = scene.bucket.run(&["copy", "--json", "--repo", scene.bucket.repo(), "--to", text(&target)]);
        assert!([0, 23].contains(&run.code), "{}", run.stderr);
        all_restorable(&target);
    }
    let repository = scene.bucket.open(true);
    prune(&repository, &last(2), 48);
    prune(&repository, &last(2), 73);
    assert!(scene.bucket.store.met()[&Fault::ListsLate] > 5);
    scene.bucket.store.clear();
    let ids = scene.bucket.listed();
    assert!(ids.len() >= 2, "{ids:?}");
    scene.bucket.calm(&["copy", "--repo", scene.bucket.repo(), "--to", text(&target)], 0);
    let list = slotkeep(&["list", "--json", "--repo", text(&target)]).expect_code(0).json();
    assert!(
        ids.iter().all(|id| list["backups"].as_array().unwrap().iter().any(|one| one["id"] == id.as_str()))
    );
    all_restorable(&target);
    scene.whole("after");
}

/// The store writes the manifest, its answer is lost, and the place of manifests can't be looked at any more: nobody knows whether the backup is
/// listed. It is, as is seen later; so nothing that it names may have been taken back.
#[test]
fn a_backup_of_which_nobody_knows_whether_it_is_listed_keeps_all_that_it_names() {
    let scene = Scene::new(24);
    scene.write(0);
    let engine = server("valkey-9.1").program().to_str().unwrap().to_owned();
    let of_repo = |what: &[&str]| {
        let mut command = scene.bucket.command();
        command.args(what).args(["--json", "--repo", scene.bucket.repo()]);
        command
    };
    let full = || scene.of_cluster(scene.bucket.command(), &["backup"]);
    let incremental = || scene.of_cluster(scene.bucket.command(), &["backup", "--type", "incremental"]);
    let merge = || of_repo(&["merge", "--engine", &engine]);
    let mut listed = Vec::new();
    for (number, make) in [&full as &dyn Fn() -> Command, &incremental, &merge].into_iter().enumerate() {
        scene.write(number);
        scene.bucket.store.lose_answer_and_refuse("/backups/");
        let run = Run::of(&make().output().unwrap()).expect_code(20);
        scene.bucket.store.clear();
        let now = scene.bucket.listed();
        let new: Vec<&String> = now.iter().filter(|id| !listed.contains(*id)).collect();
        assert_eq!(new.len(), 1, "{}", run.stderr);
        for word in ["it is not known whether backup", new[0], scene.bucket.repo(), "`slotkeep list`"] {
            assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        }
        scene.whole(&format!("after-{number}"));
        listed = now;
    }

    // Where another repository has it, the message says so of that one, and of the first what is known.
    let beside = scene.bucket.path("beside");
    slotkeep(&["init", "--repo", text(&beside)]).expect_code(0);
    scene.bucket.store.lose_answer_and_refuse("/backups/");
    let run = Run::of(&full().args(["--repo", text(&beside)]).output().unwrap()).expect_code(52);
    scene.bucket.store.clear();
    for word in ["it is not known whether backup", text(&beside), "whole", scene.bucket.repo()] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    assert!(!run.stderr.contains("no other repository"), "{}", run.stderr);
    assert_eq!(all_restorable(&beside), 1);
    assert_eq!(scene.bucket.listed().len(), listed.len() + 1);
    scene.whole("beside-another");
}

/// An archive says so too, and goes on.
#[test]
fn an_archive_keeps_the_bases_of_a_backup_of_which_nobody_knows_whether_it_is_listed() {
    let scene = Scene::new(25);
    scene.write(0);
    scene.bucket.store.lose_answer_and_refuse("/backups/");
    let agent = scene.archive();
    agent.wait("the backup to be in doubt", |lines| {
        lines.iter().any(|line| {
            line["notice"]["what"]
                .as_str()
                .is_some_and(|what| what.contains("it is not known whether backup"))
        })
    });
    wait_sealed(&agent, scene.write(1));
    agent.stop();
    scene.bucket.store.clear();
    assert_eq!(scene.bucket.listed().len(), 1);
    scene.whole("after");
}
