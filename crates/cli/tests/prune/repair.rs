//! `slotkeep repair`: what is derived is made again, what is whole is adopted, what is lost is named.

use std::path::Path;

use serde_json::Value;
use slotkeep_format::{Depth, HistoryRecord, Manifest, Parent, Severity, TopologyRecord};
use slotkeep_jobs::ErrorKind;
use slotkeep_jobs::repair::RepairPlan;
use slotkeep_model::ReplId;
use slotkeep_repo::{Location, Repository};

use crate::clock::{last, prune};
use crate::command::{LIVED, copied};
use crate::common::{Run, command, files, slotkeep};
use crate::harness::{Bench, RUNTIME, meta, piece};
use crate::lived::{age, has_extension, paths, restored, restored_with, sound};

#[track_caller]
fn repair(repo: &Path, code: i32) -> Value {
    let text = repo.to_str().unwrap();
    let before = paths(repo);
    slotkeep(&["repair", "--repo", text]).expect_code(2);
    let plan = slotkeep(&["repair", "--json", "--dry-run", "--repo", text]).expect_code(code).json();
    assert_eq!(paths(repo), before, "a plan changes nothing");
    let done = slotkeep(&["repair", "--json", "--yes", "--repo", text]).expect_code(code).json();
    assert_eq!(done["repairs"].as_array().unwrap().len(), plan["repairs"].as_array().unwrap().len());
    assert!(
        done["repairs"].as_array().unwrap().iter().all(|row| !row["gives"].as_array().unwrap().is_empty())
    );
    done
}

pub(crate) fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn indexes_and_digests_are_made_again_under_other_names() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let before: Vec<_> = ids.iter().map(|id| restored(&bench.repo(), id, 3)).collect();
    let digest = bench.latest().digest;
    let bases = bench.latest().shards;
    flip(&bench.object(&bases[0].base.index.as_ref().unwrap().path));
    flip(&bench.object(&bases[1].base.digest.as_ref().unwrap().path));
    std::fs::remove_file(bench.object(&bases[2].base.index.as_ref().unwrap().path)).unwrap();
    assert_eq!(bench.again(Depth::Structure).worst(), Severity::Problem);
    slotkeep(&["prune", "--repo", &bench.text(), "--pin", &ids[1]]).expect_code(0);

    let done = repair(&bench.repo(), 0);
    assert_eq!(done["repairs"].as_array().unwrap().len(), 3);
    // Both backups on these bases have a twin, which is found by the old id.
    let expected = [ids[0].clone(), format!("{}-r1", ids[1]), format!("{}-r1", ids[2])];
    assert_eq!(bench.backup_ids(), expected);
    assert_eq!(bench.latest().digest, digest);
    assert!(bench.again(Depth::Structure).worst() <= Severity::Note);
    assert_eq!(ids.iter().map(|id| restored(&bench.repo(), id, 3)).collect::<Vec<_>>(), before);
    let repository = bench.open();
    assert!(
        RUNTIME.block_on(repository.pins("main")).unwrap().contains_key(&expected[1]),
        "the pin goes along"
    );
    assert!(repair(&bench.repo(), 0)["repairs"].as_array().unwrap().is_empty());
    // What was replaced is an orphan.
    let swept = prune(&repository, &last(9), 48);
    let orphans = swept.objects.iter().filter(|object| object.path.contains("/base/")).count();
    assert_eq!(orphans, 5, "an index and a digest of each, one of which was missing");
}

#[test]
fn a_backup_without_a_manifest_is_adopted() {
    let (_folder, repo, _) = copied();
    let ids = &LIVED.ids;
    let full = restored(&repo, &ids[3], 1);
    let manifest = |number: usize| repo.join(format!("main/backups/{}.json", ids[number]));
    let said: Value = serde_json::from_slice(&std::fs::read(manifest(3)).unwrap()).unwrap();
    for number in [3, 4] {
        std::fs::remove_file(manifest(number)).unwrap();
    }
    // It might run still.
    assert!(repair(&repo, 0)["repairs"].as_array().unwrap().is_empty());
    age(&repo, 3);
    let done = repair(&repo, 0);
    let id = format!("{}-r1", ids[3]);
    assert_eq!(done["repairs"][0]["gives"][0], id);
    let adopted: Value =
        serde_json::from_slice(&std::fs::read(repo.join(format!("main/backups/{id}.json"))).unwrap())
            .unwrap();
    let (old, new) = (&said["shards"][0], &adopted["shards"][0]);
    for field in ["slots", "history", "offset", "server", "primary"] {
        assert_eq!(old[field], new[field], "{field}");
    }
    for field in ["rdb", "rdb_version", "crc64", "keys"] {
        assert_eq!(old["base"][field], new["base"][field], "{field}");
    }
    assert_eq!(said["digest"], adopted["digest"]);
    assert!(adopted["settings"][0]["unreadable"][0].as_str().unwrap().contains("adopted"));
    sound(&repo);
    // Who may log in was in the manifest, and is not made up.
    let text = repo.to_str().unwrap();
    let to = repo.join("../restored");
    let restore = [
        "restore",
        "--backup",
        &id,
        "--repo",
        text,
        "--to-dir",
        to.to_str().unwrap(),
        "--nodes",
        "127.0.0.1:17001",
    ];
    slotkeep(&restore).expect_code(2);
    assert!(!restored_with(&repo, &id, 1, &["--no-acl"]).is_empty());
    let rdb = |data: &[(String, Vec<u8>)]| {
        data.iter().find(|(name, _)| has_extension(name, "rdb")).map(|(_, bytes)| bytes.clone())
    };
    assert_eq!(rdb(&full), rdb(&restored_with(&repo, &id, 1, &["--no-acl"])));
}

#[test]
fn a_manifest_that_cannot_be_read_is_replaced_and_kept() {
    let (_folder, repo, repository) = copied();
    let ids = &LIVED.ids;
    let manifest = |number: usize| repo.join(format!("main/backups/{}.json", ids[number]));
    std::fs::remove_file(manifest(4)).unwrap();
    flip(&manifest(3));
    let damaged = std::fs::read(manifest(3)).unwrap();
    repair(&repo, 0);
    let kept = std::fs::read(repo.join(format!("main/lost/{}.json", ids[3]))).unwrap();
    assert_eq!(kept, damaged);
    let listed = RUNTIME.block_on(repository.backup_ids("main")).unwrap();
    assert_eq!(listed, [ids[0].clone(), ids[1].clone(), ids[2].clone(), format!("{}-r1", ids[3])]);
    sound(&repo);
    // One that took no base of its own is lost.
    flip(&manifest(2));
    let lost = repair(&repo, 49);
    assert!(lost["lost"][0]["what"].as_str().unwrap().contains("where it ended is lost"), "{lost:#}");
}

/// How the cluster looked then can't be made again: it is named, and costs no more than the moments around it.
#[test]
fn a_look_that_cannot_be_read_is_named_and_costs_no_backup() {
    let (_folder, repo, _) = copied();
    let text = repo.to_str().unwrap();
    let looks: Vec<String> = paths(&repo).into_iter().filter(|path| path.contains("/topology/")).collect();
    let newest = looks.last().unwrap();
    let whole = slotkeep(&["list", "--json", "--repo", text]).expect_code(0).json();
    flip(&repo.join(newest));
    let list = slotkeep(&["list", "--json", "--repo", text]).expect_code(23);
    assert!(list.stderr.contains(newest) && !list.stderr.contains("use another one"), "{}", list.stderr);
    let list = list.json();
    assert_eq!(list["backups"], whole["backups"]);
    let unreadable = &list["unreadable_topologies"];
    assert_eq!((unreadable.as_array().unwrap().len(), &unreadable[0]["to"]), (1, &Value::Null));
    assert_eq!(unreadable[0]["object"], *newest);
    let log = slotkeep(&["log", "--repo", text]).expect_code(0);
    assert!(log.stderr.contains(newest), "{}", log.stderr);
    assert_eq!(repair(&repo, 49)["lost"][0]["object"], *newest);
    slotkeep(&["prune", "--repo", text, "--keep-last", "1", "--dry-run"]).expect_code(0);
    restored(&repo, &LIVED.ids[4], 1);
}

/// It goes when one behind it is older than everything that stays.
#[test]
fn a_look_that_cannot_be_read_goes_in_its_turn() {
    let bench = Bench::new();
    let repository = bench.open();
    let mut seen = RUNTIME.block_on(repository.topologies("main")).unwrap().remove(0);
    let damaged = bench.object("main/topology/20200101T000000.000Z-0000.json");
    std::fs::write(&damaged, b"{").unwrap();
    let set_written = |file: &Path, at: &str| {
        let at: jiff::Timestamp = at.parse().unwrap();
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.set_modified(at.into()).unwrap();
    };
    set_written(&damaged, "2020-01-01T00:00:00Z");
    prune(&repository, &last(1), 48);
    prune(&repository, &last(1), 80);
    assert!(damaged.exists(), "nothing else tells that nobody knows how the cluster looked since");
    "20210101T000000.000Z-0000".clone_into(&mut seen.id);
    seen.seen_at = "2021-01-01T00:00:00Z".parse().unwrap();
    RUNTIME.block_on(repository.put_topology("main", &seen)).unwrap();
    set_written(&bench.object(&format!("main/topology/{}.json", seen.id)), "2021-01-01T00:00:00Z");
    prune(&repository, &last(1), 100);
    prune(&repository, &last(1), 140);
    assert!(!damaged.exists());
}

/// Writes down how the cluster looked when its bases were taken.
fn show_bases(bench: &Bench) {
    let repository = bench.open();
    let seen = RUNTIME.block_on(repository.topologies("main")).unwrap();
    let mut seen: TopologyRecord = seen[0].clone();
    "20261124T000000.000Z-0000".clone_into(&mut seen.id);
    for (state, shard) in seen.shards.iter_mut().zip(bench.latest().shards) {
        state.history = Some(shard.history);
    }
    RUNTIME.block_on(repository.put_topology("main", &seen)).unwrap();
}

/// The manifest of a backup is damaged: it is adopted with all of its bases, as the one of that id.
#[track_caller]
fn is_adopted_whole(bench: &Bench, id: &str, adopted: &str) {
    let repository = bench.open();
    let read = |id: &str| RUNTIME.block_on(repository.manifest("main", id)).unwrap();
    let said = read(id);
    slotkeep(&["prune", "--repo", &bench.text(), "--pin", id]).expect_code(0);
    flip(&bench.object(&format!("main/backups/{id}.json")));
    let done = repair(&bench.repo(), 0);
    let adopted = read(adopted);
    assert_eq!(done["repairs"][0]["gives"], serde_json::json!([adopted.id]));
    let rdbs = |manifest: &Manifest| {
        manifest.shards.iter().map(|shard| shard.base.rdb.path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(rdbs(&adopted), rdbs(&said));
    assert!(!adopted.partial && adopted.digest == said.digest);
    let pins = RUNTIME.block_on(repository.pins("main")).unwrap();
    assert_eq!(pins.keys().collect::<Vec<_>>(), [&adopted.id], "the pin goes along");
    assert!(repair(&bench.repo(), 0)["repairs"].as_array().unwrap().is_empty());
}

#[test]
fn a_backup_is_adopted_with_bases_that_all_are_in_others() {
    let bench = Bench::new();
    show_bases(&bench);
    let id = bench.backup_ids()[1].clone();
    is_adopted_whole(&bench, &id, &format!("{id}-r1"));
    assert!(bench.again(Depth::Structure).worst() <= Severity::Note);
}

#[test]
fn a_backup_is_adopted_with_bases_some_of_which_are_in_others() {
    let bench = Bench::new();
    show_bases(&bench);
    let (ids, repository) = (bench.backup_ids(), bench.open());
    // As of an archive that went on from two of its bases and took another for the third shard.
    let mut later = bench.latest();
    let first = RUNTIME.block_on(repository.manifest("main", &ids[0])).unwrap();
    "20991126T000000.000Z-0004".clone_into(&mut later.id);
    later.shards[2] = first.shards[2].clone();
    RUNTIME.block_on(repository.commit(&later)).unwrap();
    RUNTIME.block_on(repository.delete(&format!("main/backups/{}.json", ids[2]))).unwrap();
    is_adopted_whole(&bench, &ids[1], &format!("{}-r1", ids[1]));
}

#[test]
fn a_twin_is_adopted_as_the_next_one() {
    let bench = Bench::new();
    show_bases(&bench);
    let id = bench.backup_ids()[1].clone();
    flip(&bench.object(&bench.latest().shards[0].base.index.as_ref().unwrap().path));
    repair(&bench.repo(), 0);
    is_adopted_whole(&bench, &format!("{id}-r1"), &format!("{id}-r2"));
}

#[test]
fn the_pin_of_a_twin_is_taken_away_by_the_old_id() {
    let bench = Bench::new();
    let id = bench.backup_ids()[1].clone();
    slotkeep(&["prune", "--repo", &bench.text(), "--pin", &id]).expect_code(0);
    flip(&bench.object(&bench.latest().shards[0].base.index.as_ref().unwrap().path));
    repair(&bench.repo(), 0);
    let pins = || {
        let repository = bench.open();
        let pins = RUNTIME.block_on(repository.pins("main")).unwrap();
        pins.into_keys().collect::<Vec<_>>()
    };
    let twin = format!("{id}-r1");
    assert_eq!(pins(), std::slice::from_ref(&twin));
    let unpinned = slotkeep(&["prune", "--json", "--repo", &bench.text(), "--unpin", &id]).expect_code(0);
    assert_eq!(unpinned.json()[0]["backup"], twin);
    assert!(pins().is_empty());
}

#[test]
fn the_file_of_a_history_is_made_again_with_its_parent() {
    let bench = Bench::new();
    let repository = bench.open();
    let child: ReplId = "d".repeat(40).parse().unwrap();
    let said = RUNTIME.block_on(repository.history("main", &child)).unwrap().unwrap();
    let parent = said.parent.clone().unwrap();
    // How the cluster looked before the failover.
    let seen = RUNTIME.block_on(repository.topologies("main")).unwrap();
    let mut earlier: TopologyRecord = seen[0].clone();
    "20261124T000000.000Z-0000".clone_into(&mut earlier.id);
    earlier.shards[0].history = Some(parent.history.clone());
    RUNTIME.block_on(repository.put_topology("main", &earlier)).unwrap();
    let file = bench.object(&format!("main/history/{child}/history.json"));
    for damage in [|file: &Path| std::fs::remove_file(file).unwrap(), flip] {
        damage(&file);
        assert_eq!(bench.again(Depth::Structure).worst(), Severity::Problem);
        repair(&bench.repo(), 0);
        let made: HistoryRecord = RUNTIME.block_on(repository.history("main", &child)).unwrap().unwrap();
        assert_eq!(made.parent, Some(parent.clone()));
        assert_eq!(made.slots, said.slots);
        assert!(bench.again(Depth::Structure).worst() <= Severity::Note);
    }
}

/// Writes bytes of the log of that history, as one segment of several pieces.
fn write_pieces(bench: &Bench, history: &ReplId, start: u64, numbers: &[u64]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| piece(*number)).collect();
    let length = bytes.len() as u64;
    let repository = bench.open();
    RUNTIME.block_on(async {
        let range = start..start + length;
        let mut writer = repository.create_segment("main", history, range).await.unwrap();
        writer.write(&bytes).await.unwrap();
        writer.finish(meta(numbers[0], start, length)).await.unwrap();
    });
}

/// How the cluster looked before the failover, when its first shard's history had come to that offset.
fn show_parent(bench: &Bench, parent: &Parent, offset: u64) {
    let repository = bench.open();
    let seen = RUNTIME.block_on(repository.topologies("main")).unwrap();
    let mut earlier: TopologyRecord = seen.last().unwrap().clone();
    earlier.id = format!("20261124T000000.000Z-{offset:04x}");
    earlier.shards[0].history = Some(parent.history.clone());
    earlier.shards[0].offset = Some(offset);
    RUNTIME.block_on(repository.put_topology("main", &earlier)).unwrap();
}

#[test]
fn no_fork_is_made_up_inside_a_divergent_tail() {
    let bench = Bench::new();
    let repository = bench.open();
    let child: ReplId = "d".repeat(40).parse().unwrap();
    let said = RUNTIME.block_on(repository.history("main", &child)).unwrap().unwrap();
    let parent = said.parent.unwrap();
    show_parent(&bench, &parent, parent.fork);
    // Longer than the child's first segment.
    write_pieces(&bench, &parent.history, parent.fork + 1, &[6, 7, 8]);
    let file = bench.object(&format!("main/history/{child}/history.json"));
    let made = || RUNTIME.block_on(repository.history("main", &child)).unwrap().unwrap();

    // A segment of the parent ends at the fork, and the parent was seen nowhere behind it.
    std::fs::remove_file(&file).unwrap();
    repair(&bench.repo(), 0);
    assert_eq!(made().parent, Some(parent.clone()));

    // With its first segment the place of the fork is lost, although the parent holds the byte before what is left.
    let first = RUNTIME.block_on(repository.segments("main", &child)).unwrap().remove(0);
    std::fs::remove_file(bench.object(first.path())).unwrap();
    let run = || slotkeep(&["repair", "--json", "--yes", "--repo", &bench.text()]);
    std::fs::remove_file(&file).unwrap();
    let report = run().expect_code(49).json();
    assert!(report["lost"][0]["what"].as_str().unwrap().contains("is not known"), "{report:#}");
    assert_eq!(report["repairs"][0]["repair"], "history");
    assert_eq!(made().parent, None);

    // A cut of the parent at that very place proves nothing where the parent was seen behind it.
    write_pieces(&bench, &parent.history, first.start, &[3]);
    assert_eq!(piece(3).len() as u64, first.end - first.start);
    show_parent(&bench, &parent, first.end);
    std::fs::remove_file(&file).unwrap();
    run().expect_code(49);
    assert_eq!(made().parent, None);
}

#[test]
fn what_a_backup_may_still_take_is_not_adopted_by_a_clock_that_is_off() {
    let (_folder, repo, repository) = copied();
    let id = &LIVED.ids[3];
    for id in &LIVED.ids[3..] {
        std::fs::remove_file(repo.join(format!("main/backups/{id}.json"))).unwrap();
    }
    let before = paths(&repo);
    let ahead = crate::clock::context(48);
    let plan = RUNTIME.block_on(RepairPlan::make(&ahead, &repository, "main")).unwrap();
    assert_eq!(plan.preview().repairs.len(), 1);
    let refused = RUNTIME.block_on(plan.run(&ahead, &repository)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ClockOff, "{refused}");
    assert_eq!(paths(&repo), before);

    // A backup that gives up deletes nothing that another names meanwhile.
    age(&repo, 3);
    repair(&repo, 0);
    let adopted = RUNTIME.block_on(repository.manifest("main", &format!("{id}-r1"))).unwrap();
    let rdb = adopted.shards[0].base.rdb.path.clone();
    let index = rdb.replace("rdb.zst", "index.zst");
    assert!(adopted.objects().all(|object| object.path != index) && repo.join(&index).exists());
    for path in [&rdb, &index] {
        RUNTIME.block_on(repository.discard(path)).unwrap();
    }
    assert!(repo.join(&rdb).exists() && !repo.join(&index).exists());
    std::fs::remove_file(repo.join(format!("main/backups/{id}-r1.json"))).unwrap();
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    RUNTIME.block_on(repository.discard(&rdb)).unwrap();
    assert!(!repo.join(&rdb).exists());
}

#[test]
fn what_is_lost_is_named() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let rdb = bench.latest().shards[1].base.rdb.path.clone();
    std::fs::remove_file(bench.object(&rdb)).unwrap();
    let report = repair(&bench.repo(), 49);
    assert_eq!(report["lost"][0]["object"], rdb);
    assert_eq!(report["lost"][0]["backups"], serde_json::json!([ids[1], ids[2]]));
}

#[test]
fn an_encrypted_repository_is_repaired_by_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let output = std::process::Command::new("age-keygen").args(["-o", &path("reader")]).output();
    assert!(output.unwrap().status.success(), "age-keygen");
    let text = std::fs::read_to_string(path("reader")).unwrap();
    let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    let repo = path("repo");
    let on = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(["--json", "--repo", &repo]);
        Run::of(&command.env("SLOTKEEP_STATE", path("host")).output().unwrap())
    };
    on(&["init", "--recipient", &public]).expect_code(0);
    let mut backup = LIVED.backup(Path::new(&repo), "full");
    Run::of(&backup.env("SLOTKEEP_STATE", path("host")).output().unwrap()).expect_code(0);
    let index = files(Path::new(&repo)).into_iter().find(|(name, _)| name.ends_with("index.zst")).unwrap().0;
    flip(&Path::new(&repo).join(index));
    on(&["repair", "--yes"]).expect_code(25);
    let identity = path("reader");
    let done = on(&["repair", "--yes", "--identity", &identity]).expect_code(0).json();
    assert_eq!(done["repairs"][0]["repair"], "derived");
    on(&["verify", "--again", "--identity", &identity]).expect_code(0);
}
