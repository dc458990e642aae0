//! `--source scan`: every type, every version, and what such a backup is not.

use serde_json::Value;
use slotkeep_model::{Product, ServerVersion};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Cluster, ClusterBuilder, servers};
use slotkeep_wire::acl::minimal_scan_user;

use super::common::{files, server};
use super::harness::free_addrs;
use super::{Place, StartedIn, USER, addr, rules};

/// A cluster with data of every type, and a user who has nothing but what the documented line gives.
fn cluster(name: &str, version: (Product, &str), replicas: usize) -> (Cluster, u64) {
    let version = ServerVersion::parse(version.0, version.1).unwrap();
    let cluster = ClusterBuilder::new(server(name))
        .primaries(2)
        .replicas_per_primary(replicas)
        .acl_user(USER, &rules(&minimal_scan_user(USER, version)))
        .start()
        .unwrap();
    let keys = Mix::every_type().load(&cluster).unwrap().keys();
    let mut client = cluster.client().unwrap();
    client.command_on(b"bin\0\xff\r\n", &[b"SET".as_slice(), b"bin\0\xff\r\n", b"\0"]).unwrap();
    client.command_on(b"ends", &["SET", "ends", "x", "PX", "100000000"]).unwrap();
    (cluster, keys + 2)
}

/// Backs up without replication, and compares with the running cluster.
fn taken(cluster: &Cluster, keys: u64, place: &Place, role: &str) -> Value {
    let manifest = place.backup(cluster, &["--source", "scan"]).expect_code(0).json();
    assert_eq!(manifest["digest"]["keys"].as_u64().unwrap(), keys);
    assert!(manifest["cut"].is_null());
    for shard in manifest["shards"].as_array().unwrap() {
        assert_eq!(shard["source_role"], role);
        assert_eq!(shard["base"]["crc64"], "verified");
        assert!(shard["base"]["not_interpreted"].is_null());
        let read = &shard["read"];
        assert_eq!((&read["source"], &read["anchored"]), (&"scan".into(), &false.into()));
        assert!(read["from"].as_str().unwrap() < read["until"].as_str().unwrap());
    }
    place.same_as(&addr(cluster));
    manifest
}

#[test]
fn valkey_9_1_comes_back_in_every_way() {
    let (cluster, keys) = cluster("valkey-9.1", (Product::Valkey, "9.1.2"), 1);
    let place = Place::new();
    let refused = place.backup(&cluster, &[]).expect_code(12);
    assert!(refused.stderr.contains("--source scan"), "{}", refused.stderr);
    let manifest = taken(&cluster, keys, &place, "replica");
    assert!(!files(place.folder.path()).iter().any(|(name, _)| name.starts_with("spool/")));

    let list = place.run(&["list"]).expect_code(0).json();
    let row = &list["backups"][0];
    assert_eq!((&row["source"], &row["kind"]), (&"scan".into(), &"full".into()));
    assert!(row["read"]["from"].as_str().unwrap() < row["read"]["until"].as_str().unwrap());
    assert!(list["restorable"].as_array().unwrap().is_empty());
    let show = super::common::slotkeep(&["show", "--repo", &place.path("repo")]).expect_code(0).stdout;
    assert!(show.contains("not one point in time") && show.contains("no log can go on behind it"), "{show}");

    let sound = place.run(&["verify", "--depth", "structure"]).expect_code(0).json();
    assert_eq!(sound["findings"].as_array().unwrap().len(), 0, "{sound}");
    let inspected = place.run(&["inspect", "latest"]).expect_code(0).json();
    assert_eq!(inspected["total"]["keys"].as_u64(), Some(keys));
    assert_eq!(inspected["functions"], 1);
    let got = place.run(&["get", "latest", "ends"]).expect_code(0).json();
    assert_eq!(got["value"], "x");
    assert_eq!(manifest["kind"], "full");

    // As files.
    let nodes = free_addrs(4);
    let listed = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let target = place.path("new");
    let program = servers::require("valkey-9.1").unwrap().program().to_str().unwrap().to_owned();
    let to_dir =
        ["restore", "--to-dir", &target, "--nodes", &listed, "--start", "--beside-old", "--server", &program];
    let _servers = StartedIn(place.folder.path().to_owned());
    place.run(&to_dir).expect_code(0);
    place.same_as(&nodes[0].to_string());
    // Over a link, at an offset that was made up.
    let more = free_addrs(2);
    let (listed, target) = (format!("{},{}", more[0], more[1]), place.path("linked"));
    let linked =
        ["restore", "--to-dir", &target, "--nodes", &listed, "--start", "--beside-old", "--server", &program];
    place.run(&[&linked[..], &["--via", "link", "--no-replicas"]].concat()).expect_code(0);
    place.same_as(&more[0].to_string());
}

#[test]
fn redis_8_2_goes_into_a_running_cluster() {
    let (cluster, keys) = cluster("redis-8.2", (Product::Redis, "8.2.3"), 0);
    let place = Place::new();
    taken(&cluster, keys, &place, "primary");
    let other = ClusterBuilder::new(server("redis-8.2")).primaries(3).start().unwrap();
    place.run(&["restore", "--to", &addr(&other), "--state", &place.path("state")]).expect_code(0);
    place.same_as(&addr(&other));
}

/// Without `PEXPIRETIME` the moment of expiry is found exactly all the same.
#[test]
fn redis_6_2_is_read_to_the_millisecond() {
    let (cluster, keys) = cluster("redis-6.2", (Product::Redis, "6.2.14"), 0);
    let mut client = cluster.client().unwrap();
    for number in 0..500 {
        let key = format!("e:{number}");
        client.command(&["SET", &key, "x", "PX", &(1_000_000_000 + number).to_string()]).unwrap();
    }
    taken(&cluster, keys + 500, &Place::new(), "primary");
}

#[test]
fn databases_and_their_keys_are_kept_apart() {
    let cluster = ClusterBuilder::new(server("redis-7.0"))
        .cluster_mode(false)
        .acl_user(USER, "on >secret ~* +@all -psync -sync -replconf")
        .start()
        .unwrap();
    let mut client = cluster.nodes()[0].client().unwrap();
    for database in ["0", "3", "15"] {
        client.command(&["SELECT", database]).unwrap();
        for number in 0..50 {
            client.command(&["SET", &format!("k{number}"), database]).unwrap();
        }
    }
    let place = Place::new();
    let manifest = place.backup(&cluster, &["--source", "scan"]).expect_code(0).json();
    assert_eq!(manifest["digest"]["keys"], 150);
    place.same_as(&addr(&cluster));
}

/// Nothing takes such a backup for a point that a log could go on from, and each refusal says why.
#[test]
fn no_log_goes_on_behind_it() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .acl_user(USER, "on >secret ~* +@all -psync -sync -replconf")
        .start()
        .unwrap();
    cluster.client().unwrap().command(&["SET", "key", "value"]).unwrap();
    let place = Place::new();
    place.backup(&cluster, &["--source", "scan"]).expect_code(0);
    let seed = addr(&cluster);
    for (arguments, code, why) in [
        (vec!["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed], 24, "SCAN"),
        (
            vec!["backup", "--type", "incremental", "--source", "scan", "--cluster", &seed],
            2,
            "--type incremental",
        ),
        (vec!["backup", "--barrier", "--source", "scan", "--cluster", &seed], 2, "--barrier"),
        (vec!["merge"], 24, "SCAN"),
        (vec!["restore", "--at", "latest", "--to", &seed], 22, "SCAN"),
    ] {
        let run = place.run(&arguments).expect_code(code);
        assert!(run.stderr.contains(why), "{arguments:?}: {}", run.stderr);
    }
    // Beside a log they neither count nor stand in its way.
    place.run(&["backup", "--cluster", &seed]).expect_code(0);
    place.backup(&cluster, &["--source", "scan"]).expect_code(0);
    cluster.client().unwrap().command(&["SET", "key", "later"]).unwrap();
    let manifest = place.run(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seed]);
    assert_eq!(manifest.expect_code(0).json()["kind"], "incremental");
    place.backup(&cluster, &["--source", "scan"]).expect_code(0);
    let list = place.run(&["list", "--history"]).expect_code(0).json();
    assert_eq!(list["restorable"][0]["moments"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["restorable"][0]["history"].as_array().unwrap().len(), 1, "{list}");
    let engine = servers::require("valkey-9.1").unwrap().program().to_str().unwrap().to_owned();
    let merged = place.run(&["merge", "--at", "latest", "--engine", &engine]).expect_code(0).json();
    assert!(merged["shards"][0]["read"].is_null());
    place.same_as(&seed);
}

#[test]
fn check_names_the_way_without_replication() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .acl_user(USER, "on >secret ~* +@all -psync -sync -replconf")
        .start()
        .unwrap();
    let place = Place::new();
    let mut check = place.command(&["check", "--cluster", &addr(&cluster), "--user", USER]);
    let run =
        super::Run::of(&check.env("SLOTKEEP_PASSWORD", super::PASSWORD).output().unwrap()).expect_code(41);
    assert!(run.stdout.contains("--source scan"), "{}", run.stdout);
}
