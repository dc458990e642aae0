//! Restoring to data directories, with real servers on both sides.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "what does not hold fails the test")]

mod databases;
#[allow(dead_code, reason = "each test crate uses its part")]
mod harness;
mod link;
mod refusals;
mod shapes;
mod users;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use harness::{Bench, client, cluster_client, config, free_addrs, seed, topology};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{ClusterBuilder, servers};

/// Backs up three shards with a replica each, restores them elsewhere, and compares everything.
fn there_and_back(from: &str, to: &str) {
    let cluster = ClusterBuilder::new(servers::require(from).unwrap())
        .replicas_per_primary(1)
        .acl_user("app", "on nopass ~* &* +@all")
        .acl_user("locked", "on >secret ~* &* +@all")
        .config("maxmemory-policy", "allkeys-lfu")
        .config("client-output-buffer-limit", "replica 0 0 0")
        .config("slowlog-max-len", "77")
        .start()
        .unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    assert!(loaded.functions);
    let bench = Bench::new();
    let manifest = bench.backup(seed(&cluster), &[]);
    assert!(!manifest["digest"].is_null(), "{manifest}");

    let nodes = free_addrs(6);
    let report = bench.restore_and_start("new", &nodes, &servers::require(to).unwrap(), &[]);
    assert_eq!(report["started"].as_array().unwrap().len(), 6);
    assert!(
        report["warnings"]
            .to_string()
            .contains("can't log in until they get a password (ACL SETUSER), for none is stored: locked")
    );

    let mut everywhere = cluster_client(&nodes, None);
    if from == to {
        loaded.verify(&mut everywhere).unwrap();
    }
    let echo = everywhere.command_on(b"any", &["FCALL", "slotkeep_echo", "0", "here"]).unwrap();
    assert_eq!(echo.text().unwrap(), "here");
    bench.same_data(nodes[0], &[]);

    let (old, new) = (topology(seed(&cluster)), topology(nodes[0]));
    let slots = |nodes: &[(String, String, String)]| {
        let mut rows: Vec<_> = nodes.iter().map(|(_, role, slots)| (role.clone(), slots.clone())).collect();
        rows.sort();
        rows
    };
    assert_eq!(slots(&old), slots(&new));
    let ids =
        |nodes: &[(String, String, String)]| nodes.iter().map(|(id, ..)| id.clone()).collect::<BTreeSet<_>>();
    assert!(ids(&old).is_disjoint(&ids(&new)));

    for node in &nodes {
        let mut app = client(*node, Some("app"), Some("any"));
        assert_eq!(app.command(&["ACL", "WHOAMI"]).unwrap().text().unwrap(), "app");
        assert_eq!(config(&mut app, "maxmemory-policy"), "allkeys-lfu");
        assert_eq!(config(&mut app, "slowlog-max-len"), "77");
        assert_eq!(config(&mut app, "save"), "");
        assert!(config(&mut app, "client-output-buffer-limit").contains("slave 0 0 0"));
        let locked =
            slotkeep_testkit::Client::connect(&harness::endpoint(*node, Some("locked"), Some("secret")));
        assert!(locked.is_err());
    }
}

#[test]
fn redis_7_0_comes_back() {
    there_and_back("redis-7.0", "redis-7.0");
}

#[test]
fn valkey_9_1_comes_back() {
    there_and_back("valkey-9.1", "valkey-9.1");
}

#[test]
fn redis_7_0_comes_back_as_valkey_9_1() {
    there_and_back("redis-7.0", "valkey-9.1");
}

/// A server reads the configuration, the `nodes.conf` and the users that are written for it.
fn settings_come_back(name: &str) {
    let server = servers::require(name).unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .primaries(1)
        .replicas_per_primary(1)
        .acl_user("app", "on nopass ~app:* &* +@read")
        .config("notify-keyspace-events", "KEA")
        .config("hash-max-ziplist-entries", "99")
        .config("maxmemory", "1gb")
        .config("save", "7200 3")
        .config("save", "100 9")
        .config("client-output-buffer-limit", "pubsub 64mb 16mb 90")
        .config("repl-backlog-size", "3mb")
        .start()
        .unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let bench = Bench::new();
    bench.backup(seed(&cluster), &[]);
    let nodes = free_addrs(2);
    let report = bench.restore_and_start("new", &nodes, &server, &[]);
    assert_eq!(report["warnings"], serde_json::json!([]), "{name}");
    loaded.verify(&mut cluster_client(&nodes, None)).unwrap();
    bench.same_data(nodes[0], &[]);
    let settings = |node: SocketAddr| {
        let manifest = bench.backup(node, &["--name", "again"]);
        let rows = manifest["settings"].as_array().unwrap();
        assert_eq!(rows.len(), 1, "{name}: {rows:?}");
        assert_eq!(rows[0]["config"]["save"], "7200 3 100 9", "{name}");
        // Redis 6.2 names this rule of the default user only where the user was read from a file.
        let users = rows[0]["acl"].to_string().replace(" sanitize-payload", "");
        (rows[0]["config"].clone(), users)
    };
    assert_eq!(settings(nodes[0]), settings(seed(&cluster)), "{name}");
}

#[test]
fn settings_come_back_on_every_valkey() {
    servers::NAMES.into_iter().filter(|name| name.starts_with("valkey")).for_each(settings_come_back);
}

#[test]
fn settings_come_back_on_every_redis() {
    servers::NAMES.into_iter().filter(|name| name.starts_with("redis")).for_each(settings_come_back);
}
