//! An archive that runs while its bases are pruned: its next backup names those that are there.

use slotkeep_format::manifest::BackupKind;
use slotkeep_format::{KeptFor, Manifest};
use slotkeep_repo::{BackupSelector, Location, Repository};
use slotkeep_testkit::ClusterBuilder;

use crate::clock::{last, plan, prune};
use crate::common::agent::Agent;
use crate::common::{server, slotkeep};
use crate::harness::{Bench, RUNTIME};
use crate::lived::{paths, restored, sound};
use crate::repair::flip;

#[test]
fn an_archive_whose_bases_were_pruned_lists_the_newest_ones() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let (text, spool) = (repo.to_str().unwrap(), folder.path().join("spool-of-backup"));
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let addr = cluster.nodes()[1].addr().to_string();
    let full = ["backup", "--json", "--cluster", &addr, "--repo", text, "--spool", spool.to_str().unwrap()];
    let full = slotkeep(&full).expect_code(0).json();
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    prune(&repository, &last(1), 48);
    prune(&repository, &last(1), 73);
    let rdbs = |repo| paths(repo).into_iter().filter(|path| path.ends_with("rdb.zst")).collect::<Vec<_>>();
    let left = rdbs(&repo);
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|path| path.contains(full["id"].as_str().unwrap())), "{left:?}");

    // A server that lost its data begins a new history: there is a base to be listed.
    cluster.nodes()[0].kill().unwrap();
    cluster.nodes()[0].start().unwrap();
    agent.wait("the second backup", |lines| {
        lines.iter().filter(|line| line["notice"]["kind"] == "backup").count() == 2
    });
    agent.stop();
    let ids = RUNTIME.block_on(repository.backup_ids("main")).unwrap();
    assert_eq!(ids.len(), 2);
    let listed = RUNTIME.block_on(repository.manifest("main", &ids[1])).unwrap();
    let names: Vec<&str> = listed.shards.iter().map(|shard| shard.base.rdb.path.as_str()).collect();
    assert!(left.iter().any(|path| names.contains(&path.as_str())), "{names:?}");
    sound(&repo);
    assert!(!restored(&repo, &ids[1], 2).is_empty());
}

#[test]
fn an_older_moment_that_is_merged_takes_no_place_of_a_newer_backup() {
    let stock = server("valkey-9.1");
    let cluster = ClusterBuilder::new(stock.clone()).primaries(2).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let (text, engine) = (repo.to_str().unwrap(), stock.program().to_str().unwrap());
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let mut client = cluster.client().unwrap();
    for number in 0..20 {
        let key = format!("key:{number}");
        client.command_on(key.as_bytes(), &["SET", &key, "archived"]).unwrap();
    }
    let offset = |shard| {
        let mut client = cluster.primary(shard).unwrap().client().unwrap();
        client.info_field("replication", "master_repl_offset").unwrap().unwrap().parse::<u64>().unwrap()
    };
    let written: u64 = (0..cluster.shards()).map(offset).min().unwrap();
    agent.wait_status("the log of both shards", |status| {
        let shards = status["shards"].as_array().unwrap();
        shards.len() == 2 && shards.iter().all(|shard| shard["durable"].as_u64() >= Some(written))
    });
    agent.stop();
    let list = slotkeep(&["list", "--json", "--repo", text]).expect_code(0).json();
    let archived = list["restorable"][0]["moments"].as_array().unwrap().last().unwrap()["to"].clone();
    let archived = archived.as_str().unwrap();

    for number in 0..20 {
        let key = format!("key:{number}");
        client.command_on(key.as_bytes(), &["SET", &key, "newer"]).unwrap();
    }
    let addr = cluster.nodes()[1].addr().to_string();
    let full = ["backup", "--json", "--type", "full", "--cluster", &addr, "--repo", text];
    let full = slotkeep(&full).expect_code(0).json();
    let merge = ["merge", "--json", "--repo", text, "--engine", engine, "--at", archived];
    let merged = slotkeep(&merge).expect_code(0).json();
    assert!(merged["id"].as_str() > full["id"].as_str(), "{merged}");

    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    let latest = RUNTIME.block_on(repository.find("main", &BackupSelector::Latest)).unwrap();
    assert_eq!(full["id"], latest.id);
    let report = plan(&repository, &last(1), 48).preview();
    let kept_as_last = report.backups.iter().filter(|backup| backup.kept_for.contains(&KeptFor::Last));
    assert_eq!(kept_as_last.map(|backup| &backup.id).collect::<Vec<_>>(), [&latest.id]);
}

#[test]
fn a_merge_that_would_pass_over_a_newer_backup_has_to_be_asked_for() {
    let bench = Bench::new();
    let merge = |more: &[&str]| {
        let repo = bench.text();
        let arguments: Vec<&str> = ["merge", "--repo", &repo, "--engine", "/nowhere"].to_vec();
        slotkeep(&[&arguments, more].concat())
    };
    // Nothing is behind the last moment: it is only the engine that is missing.
    let run = merge(&[]);
    assert!(!run.stderr.contains("all shards can be restored to together"), "{}", run.stderr);
    // A full backup behind a gap, and no log of it.
    let mut manifest = bench.latest();
    "20991126T000000.000Z-0004".clone_into(&mut manifest.id);
    (manifest.kind, manifest.cut) = (BackupKind::Full, None);
    for shard in &mut manifest.shards {
        let end = shard.cut();
        (shard.history, shard.offset, shard.cut) = (end.history, end.offset + 100_000, None);
        let other = shard.base.rdb.path.replace("rdb.zst", "other.zst");
        std::fs::copy(bench.repo().join(&shard.base.rdb.path), bench.repo().join(&other)).unwrap();
        shard.base.rdb.path = other;
    }
    RUNTIME.block_on(bench.open().commit(&manifest)).unwrap();
    let run = merge(&[]).expect_code(24);
    assert!(run.stderr.contains("all shards can be restored to together"), "{}", run.stderr);
    assert!(run.stderr.contains("`--at latest` takes that moment all the same"), "{}", run.stderr);
    let run = merge(&["--at", "latest"]);
    assert!(run.code != 24 && run.stderr.contains("/nowhere"), "{}", run.stderr);
}

#[test]
fn an_archive_lists_the_index_that_a_repair_has_made_meanwhile() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    let newest = || {
        let latest = repository.find("main", &BackupSelector::Latest);
        RUNTIME.block_on(latest).unwrap()
    };
    let stays = cluster.nodes()[1].addr().to_string();
    let base = |manifest: &Manifest| {
        let mut shards = manifest.shards.iter();
        shards.find(|shard| shard.primary.addr.to_string() == stays).unwrap().base.clone()
    };
    let first = newest();
    let index = repo.join(&base(&first).index.unwrap().path);
    flip(&index);
    let made = slotkeep(&["repair", "--json", "--yes", "--repo", repo.to_str().unwrap()]).expect_code(0);
    let twin = newest();
    assert_eq!(made.json()["repairs"][0]["gives"][0], twin.id);
    prune(&repository, &last(1), 48);
    prune(&repository, &last(1), 73);
    assert!(!index.exists());

    // The other shard gets a new base, and there is a backup to be listed.
    cluster.nodes()[0].kill().unwrap();
    cluster.nodes()[0].start().unwrap();
    agent.wait("the second backup", |lines| {
        lines.iter().filter(|line| line["notice"]["kind"] == "backup").count() == 2
    });
    agent.stop();
    let second = newest();
    assert_ne!(second.id, twin.id);
    assert_eq!(base(&second), base(&twin));
    sound(&repo);
}

#[test]
fn a_base_that_agents_tell_each_other_of_stays_however_old() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let agent = Agent::start(&cluster, folder.path(), &[]);
    agent.wait_ready();
    agent.stop();
    let repository = RUNTIME.block_on(Repository::open(&Location::Folder(repo.clone()))).unwrap();
    // As though the agent had died before it could list its bases: the next one is to.
    let ids = RUNTIME.block_on(repository.backup_ids("main")).unwrap();
    RUNTIME.block_on(repository.delete(&format!("main/backups/{}.json", ids[0]))).unwrap();
    let before = paths(&repo);
    prune(&repository, &last(1), 48);
    prune(&repository, &last(1), 73);
    let bases =
        |paths: Vec<String>| paths.into_iter().filter(|path| path.contains("/base/")).collect::<Vec<_>>();
    let after = bases(paths(&repo));
    assert_eq!(after.len(), 6);
    assert_eq!(after, bases(before));
}
