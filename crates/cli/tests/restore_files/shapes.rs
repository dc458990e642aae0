//! Clusters of other shapes: with append-only files, standalone, partial.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{ClusterBuilder, servers};

use crate::harness::{Bench, client, cluster_client, config, free_addrs, seed};

fn keys(nodes: &[SocketAddr]) -> i64 {
    nodes.iter().map(|node| client(*node, None, None).command(&["DBSIZE"]).unwrap().int().unwrap()).sum()
}

/// A server with `appendonly yes` loads nothing but its AOF: an RDB alone would come back as an empty cluster.
fn append_only(name: &str, file: &str) {
    let server = servers::require(name).unwrap();
    let cluster = ClusterBuilder::new(server.clone()).config("appendonly", "yes").start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    // Nobody asks for it, and nobody looks for what has expired: it is still there when the snapshot is made.
    for node in cluster.nodes() {
        node.client().unwrap().command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).unwrap();
    }
    cluster.client().unwrap().command(&["SET", "gone", "value", "PX", "1"]).unwrap();
    let bench = Bench::new();
    let manifest = bench.backup(seed(&cluster), &[]);
    let there = i64::try_from(loaded.keys()).unwrap();
    assert_eq!(manifest["digest"]["keys"], there + 1);

    let nodes = free_addrs(3);
    let report = bench.restore_and_start("new", &nodes, &server, &[]);
    assert_eq!(report["nodes"][0]["dataset"]["path"], file);
    assert_eq!(config(&mut client(nodes[0], None, None), "appendonly"), "yes");
    wait_for(Duration::from_secs(30), "the expired key to be dropped", || match keys(&nodes) {
        found if found == there => Ok(()),
        found => Err(NotYet::because(format!("there are {found} keys, not {there}"))),
    })
    .unwrap();
    loaded.verify(&mut cluster_client(&nodes, None)).unwrap();
    bench.same_data(nodes[0], &[]);
}

#[test]
fn append_only_files_of_several_parts_come_back() {
    append_only("valkey-9.1", "appendonlydir/appendonly.aof.1.base.rdb");
}

#[test]
fn the_one_append_only_file_of_redis_6_2_comes_back() {
    append_only("redis-6.2", "appendonly.aof");
}

#[test]
fn an_expired_key_of_an_rdb_does_not_come_back() {
    let server = servers::require("redis-7.0").unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .cluster_mode(false)
        .primaries(1)
        .config("databases", "20")
        .start()
        .unwrap();
    let mut primary = cluster.nodes()[0].client().unwrap();
    for command in [
        &["DEBUG", "SET-ACTIVE-EXPIRE", "0"][..],
        &["SET", "gone", "value", "PX", "1"],
        &["SET", "kept", "value", "PX", "100000000"],
        &["SELECT", "19"],
        &["SET", "elsewhere", "value"],
    ] {
        primary.command(command).unwrap();
    }
    let bench = Bench::new();
    let manifest = bench.backup(seed(&cluster), &[]);
    assert_eq!(manifest["digest"]["keys"], 3);
    let nodes = free_addrs(1);
    bench.restore_and_start("new", &nodes, &server, &[]);
    let mut restored = client(nodes[0], None, None);
    let keyspace = restored.info("keyspace").unwrap();
    assert!(keyspace.contains("db0:keys=1,expires=1") && keyspace.contains("db19:keys=1,"), "{keyspace}");
    let times: Vec<i64> = [&mut primary, &mut restored]
        .map(|client| {
            client.command(&["SELECT", "0"]).unwrap();
            client.command(&["PEXPIRETIME", "kept"]).unwrap().int().unwrap()
        })
        .into();
    assert_eq!(times[0], times[1]);
    bench.same_data(nodes[0], &[]);
}

#[test]
fn a_partial_backup_is_restored_only_on_request_and_then_serves_what_it_has() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster =
        ClusterBuilder::new(server.clone()).config("cluster-require-full-coverage", "yes").start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    cluster.node(2).unwrap().kill().unwrap();
    let bench = Bench::new();
    let manifest = wait_for(Duration::from_secs(30), "a partial backup", || {
        let run = bench.slotkeep(&["backup", "--allow-partial", "--cluster", &seed(&cluster).to_string()]);
        if run.code == 0 { Ok(run.json()) } else { Err(NotYet::because(run.stderr)) }
    })
    .unwrap();
    assert_eq!(manifest["missing_slots"], "10922-16383");
    let nodes = free_addrs(2);
    bench.restore("new", &nodes, &[]).failed(2, "--allow-partial");
    assert!(bench.restored().is_empty());
    let report = bench.restore_and_start("new", &nodes, &server, &["--allow-partial"]);
    assert!(report["warnings"].to_string().contains("stay uncovered"), "{report}");
    let found = u64::try_from(keys(&nodes)).unwrap();
    assert_eq!(manifest["digest"]["keys"], found);
    assert!(found > 0 && found < loaded.keys());
}

#[test]
fn ipv6_addresses_and_names_will_do() {
    let server = servers::require("redis-7.0").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).primaries(1).replicas_per_primary(1).start().unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let bench = Bench::new();
    bench.backup(seed(&cluster), &[]);
    let nodes: Vec<SocketAddr> =
        free_addrs(2).iter().map(|addr| SocketAddr::from((Ipv6Addr::LOCALHOST, addr.port()))).collect();
    bench.restore_and_start("new", &nodes, &server, &[]);
    bench.same_data(nodes[1], &[]);

    let folder = bench.path("named");
    let named = ["restore", "--to-dir", folder.to_str().unwrap(), "--nodes", "localhost:7000,localhost:7001"];
    let report = bench.slotkeep(&named).json();
    assert_eq!(report["nodes"][0]["ip"], "127.0.0.1");
    assert!(folder.join("localhost-7001").is_dir());
    let named = ["restore", "--to-dir", "other", "--nodes", "localhost:7000,name.invalid:7001"];
    bench.slotkeep(&named).failed(2, "its name can't be resolved here");
}

#[test]
fn a_cluster_with_tls_comes_back_in_plain_text_and_says_so() {
    let server = servers::require("redis-7.0").unwrap();
    let cluster =
        ClusterBuilder::new(server.clone()).primaries(1).replicas_per_primary(1).tls(true).start().unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let bench = Bench::new();
    let ca = cluster.ca().unwrap();
    let manifest = bench.backup(seed(&cluster), &["--tls-ca", ca.to_str().unwrap()]);
    assert_eq!(manifest["settings"][0]["config"]["tls-cluster"], "yes");
    assert!(!manifest.to_string().contains("server.key"), "{manifest}");
    let nodes = free_addrs(2);
    let report = bench.restore_and_start("new", &nodes, &server, &[]);
    let warning = "the nodes will speak plain text: TLS needs certificates, which a backup does not hold";
    assert!(report["warnings"][0].as_str().unwrap().starts_with(warning), "{report}");
    bench.same_data(nodes[0], &[]);
}

#[test]
fn what_can_not_come_back_is_named() {
    let cluster = ClusterBuilder::new(servers::require("redis-7.0").unwrap()).primaries(1).start().unwrap();
    let bench = Bench::new();
    let mut manifest = bench.backup(seed(&cluster), &[]);
    let settings = &mut manifest["settings"][0];
    settings["modules"] = serde_json::json!({"bf": 20612});
    settings["config"]["bf-error-rate"] = "0.1".into();
    settings["unreadable"] = serde_json::json!(["CONFIG GET x: its value is not text"]);
    let path = bench.object(&format!("{}.json", manifest["id"].as_str().unwrap()));
    std::fs::write(path, manifest.to_string()).unwrap();
    let nodes = free_addrs(1);
    let report = bench.restore("new", &nodes, &[]).json();
    assert_eq!(
        report["warnings"],
        serde_json::json!([
            "Redis 7.0.15 does not know these settings, left out: bf-error-rate",
            "the recorded settings are incomplete: CONFIG GET x: its value is not text",
            "modules were loaded: bf 20612; give their paths in the configuration files before the nodes start",
        ])
    );
    let config = std::fs::read_to_string(report["nodes"][0]["config_file"].as_str().unwrap()).unwrap();
    assert!(
        config.contains("# Module bf, version 20612, was loaded: give its path here.\n# loadmodule "),
        "{config}"
    );
    assert!(!config.contains("bf-error-rate"), "{config}");
}
