//! `--source files`: the file of a `BGSAVE`, where it is exact, where it names no offset, and what is refused.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::data::{Mix, Writer};
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder, servers};

use super::common::{Run, server};
use super::harness::{client, free_addrs};
use super::{Place, StartedIn, USER, addr};

const LIMIT: Duration = Duration::from_secs(30);
/// All that is needed, and nothing that replicates.
const RULES: &str =
    "on >secret -@all +ping +info +time +cluster|nodes +config|get +bgsave +module|list +acl|list";

fn cluster(name: &str, primaries: usize, replicas: usize) -> Cluster {
    ClusterBuilder::new(server(name))
        .primaries(primaries)
        .replicas_per_primary(replicas)
        // A writer without rest fills the megabyte that Redis 7.0 keeps within a second or two, and a slow machine saves for longer.
        .config("repl-backlog-size", "64mb")
        .acl_user(USER, RULES)
        .start()
        .unwrap()
}

fn engine(name: &str) -> String {
    servers::require(name).unwrap().program().to_str().unwrap().to_owned()
}

/// Every shard's record: anchored or not, and read from a snapshot.
fn anchored(manifest: &Value) -> Vec<bool> {
    assert!(manifest["cut"].is_null());
    let shards = manifest["shards"].as_array().unwrap();
    let read = shards.iter().map(|shard| &shard["read"]);
    read.map(|read| {
        assert_eq!(read["source"], "snapshot");
        read["anchored"].as_bool().unwrap()
    })
    .collect()
}

/// Files that were saved while clients wrote, by primaries or replicas: the log goes on from exactly the offset that they name, which the fold of
/// base and log proves against the next base.
fn the_log_goes_on(name: &str, replicas: usize) {
    let cluster = cluster(name, 2, replicas);
    Mix::every_type().load(&cluster).unwrap();
    let place = Place::new();
    let seed = addr(&cluster);
    // Primaries without replicas keep no backlog until somebody has replicated.
    place.run(&["backup", "--cluster", &seed, "--jobs-per-host", "9"]).expect_code(0);
    let writer = Writer::start(&cluster, 500).unwrap();
    writer.wait_for_more(100).unwrap();
    let before = writer.acknowledged();
    let manifest = place.backup(&cluster, &["--source", "files"]).expect_code(0).json();
    assert!(writer.acknowledged() > before, "it wrote meanwhile");
    assert_eq!(anchored(&manifest), [true, true]);
    let role = if replicas > 0 { "replica" } else { "primary" };
    for shard in manifest["shards"].as_array().unwrap() {
        assert_eq!(shard["source_role"], role);
        assert!(shard["offset"].as_u64().unwrap() > 0);
        assert_eq!(shard["base"]["crc64"], "verified");
    }
    let incremental = place
        .run(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed])
        .expect_code(0)
        .json();
    assert_eq!(incremental["shards"][0]["base"]["rdb"]["path"], manifest["shards"][0]["base"]["rdb"]["path"]);
    writer.wait_for_more(100).unwrap();
    place.run(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed]).expect_code(0);
    writer.stop();
    place.run(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed]).expect_code(0);
    place.run(&["backup", "--cluster", &seed, "--jobs-per-host", "9"]).expect_code(0);
    let proved = place.run(&["verify", "--depth", "chain", "--engine", &engine(name)]).expect_code(0).json();
    assert_eq!(proved["findings"].as_array().unwrap().len(), 0, "{proved}");
    assert!(proved["totals"]["links_proved"].as_u64().unwrap() >= 2, "{proved}");
    place.same_as(&seed);
}

#[test]
fn the_log_goes_on_from_a_primarys_file() {
    the_log_goes_on("redis-7.0", 0);
}

#[test]
fn the_log_goes_on_from_a_replicas_file() {
    the_log_goes_on("valkey-9.1", 1);
}

/// The server does not say again which database it had selected; the file does.
#[test]
fn the_database_that_was_selected_is_known() {
    let cluster =
        ClusterBuilder::new(server("redis-7.0")).cluster_mode(false).acl_user(USER, RULES).start().unwrap();
    let mut writer = cluster.nodes()[0].client().unwrap();
    writer.command(&["SET", "zero", "0"]).unwrap();
    let place = Place::new();
    // Without a backlog the file names no offset.
    let manifest = place.backup(&cluster, &["--source", "files"]).expect_code(0).json();
    assert_eq!(anchored(&manifest), [false]);
    let seed = addr(&cluster);
    place.same_as(&seed);
    let refused =
        place.run(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed]).expect_code(24);
    assert!(refused.stderr.contains("BGSAVE"), "{}", refused.stderr);

    place.run(&["backup", "--cluster", &seed]).expect_code(0);
    writer.command(&["SELECT", "3"]).unwrap();
    writer.command(&["SET", "three", "3"]).unwrap();
    let manifest = place.backup(&cluster, &["--source", "files"]).expect_code(0).json();
    assert_eq!(anchored(&manifest), [true]);
    assert_eq!(manifest["shards"][0]["read"]["database"], 3);
    writer.command(&["SET", "three", "4"]).unwrap();
    place.run(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed]).expect_code(0);

    let node = free_addrs(1)[0];
    let (target, program) = (place.path("new"), engine("redis-7.0"));
    let _servers = StartedIn(place.folder.path().to_owned());
    let nodes = node.to_string();
    place
        .run(&[
            "restore",
            "--to-dir",
            &target,
            "--nodes",
            &nodes,
            "--start",
            "--beside-old",
            "--server",
            &program,
        ])
        .expect_code(0);
    let mut restored = client(node, None, None);
    assert!(restored.command(&["GET", "three"]).unwrap().bytes().is_none());
    restored.command(&["SELECT", "3"]).unwrap();
    assert_eq!(restored.command(&["GET", "three"]).unwrap().text().unwrap(), "4");
}

/// Whether bytes of an RDB are stored below that folder, where files come and go.
fn begun(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        let is_rdb = path.to_string_lossy().contains("rdb.zst");
        if path.is_dir() { begun(&path) } else { is_rdb && path.metadata().is_ok_and(|meta| meta.len() > 0) }
    })
}

/// Another save puts another file in the place of the one that is being read.
#[test]
fn a_later_save_does_not_tear_the_file() {
    let cluster = cluster("valkey-9.1", 1, 0);
    let keys = Mix::bulk(20_000_000).load(&cluster).unwrap().keys();
    let place = Place::new();
    let mut backup = place.backup_command(&cluster, &["--source", "files", "--limit-rate", "6MiB"]);
    let child = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(LIMIT, "the file to be read", || {
        if begun(place.folder.path()) { Ok(()) } else { Err(NotYet::because("nothing is stored yet")) }
    })
    .unwrap();
    let mut client = cluster.nodes()[0].client().unwrap();
    client.command(&["FLUSHALL"]).unwrap();
    client.command(&["SAVE"]).unwrap();
    let manifest = Run::of(&child.wait_with_output().unwrap()).expect_code(0).json();
    assert_eq!(manifest["digest"]["keys"].as_u64(), Some(keys));
}

#[test]
fn what_is_not_that_servers_file_is_refused() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(2)
        .acl_user(USER, RULES)
        .acl_user("blind", "on >secret -@all +ping +info +time +cluster|nodes +bgsave")
        .acl_user("idle", "on >secret -@all +ping +info +time +cluster|nodes +config|get")
        .start()
        .unwrap();
    let nodes = cluster.nodes();
    let place = Place::new();
    let dir = |node: usize, of: usize| format!("{}={}", nodes[node].addr(), nodes[of].dir().display());
    nodes[0].client().unwrap().command(&["SAVE"]).unwrap();
    // A save of the same second could not be told apart by its time alone.
    wait_for(LIMIT, "the next second", || {
        let mut client = nodes[0].client()?;
        let (saved, now) =
            (client.command(&["LASTSAVE"])?.int()?, client.command(&["TIME"])?.array()?[0].text()?);
        if now.parse::<i64>().unwrap() > saved { Ok(()) } else { Err(NotYet::because("the same second")) }
    })
    .unwrap();
    let wrong = place
        .backup(
            &cluster,
            &["--source", "files", "--jobs", "1", "--data-dir", &dir(1, 0), "--data-dir", &dir(0, 1)],
        )
        .expect_code(1);
    assert!(
        wrong.stderr.contains("can't read") || wrong.stderr.contains("has just saved"),
        "{}",
        wrong.stderr
    );
    let stranger = format!("127.0.0.1:1={}", nodes[0].dir().display());
    let run = place.backup(&cluster, &["--source", "files", "--data-dir", &stranger]).expect_code(2);
    assert!(run.stderr.contains("no node of the cluster"), "{}", run.stderr);
    place.backup(&cluster, &["--data-dir", &dir(0, 0)]).expect_code(2);

    let as_user = |user: &str, more: &[&str]| {
        let mut backup = place.command(&["backup", "--source", "files", "--cluster", &addr(&cluster)]);
        backup.args(["--user", user]).args(more).env("SLOTKEEP_PASSWORD", super::PASSWORD);
        Run::of(&backup.output().unwrap())
    };
    let refused = as_user("idle", &[]).expect_code(12);
    assert!(refused.stderr.contains("+bgsave"), "{}", refused.stderr);
    // Who may not ask for the folder has to be told.
    let untold = as_user("blind", &["--data-dir", &dir(0, 0)]).expect_code(2);
    assert!(untold.stderr.contains("--data-dir"), "{}", untold.stderr);
    let list = place.run(&["list"]).expect_code(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 0);
    let partial = as_user("blind", &["--data-dir", &dir(0, 0), "--allow-partial"]).expect_code(0).json();
    assert_eq!(partial["partial"], true);
    assert_eq!(partial["shards"].as_array().unwrap().len(), 1);
    let whole = as_user("blind", &["--data-dir", &dir(0, 0), "--data-dir", &dir(1, 1)]).expect_code(0).json();
    assert_eq!(whole["partial"], false);
}
