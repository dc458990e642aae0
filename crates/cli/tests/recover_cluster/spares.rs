//! Spares that run already: they take lost shards over, and the places of replicas that are gone.

use std::net::SocketAddr;

use serde_json::Value;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Endpoint, Node, Server, servers};

use crate::harness::{Bench, Run, client, cluster_client, config, free_addrs};
use crate::scene::{ALL, IN_FLIGHT_MS, ROUNDING_MS, Scene, now_ms, role, shard};

/// Servers in cluster mode that run, hold nothing and know nobody.
pub(crate) fn empty_nodes(builder: &ClusterBuilder) -> Cluster {
    let cluster = builder.prepare().unwrap();
    for node in cluster.nodes() {
        std::fs::remove_file(node.dir().join("nodes.conf")).unwrap();
        node.start().unwrap();
    }
    cluster
}

pub(crate) fn empty(server: &Server, count: usize) -> Cluster {
    empty_nodes(&ClusterBuilder::new(server.clone()).primaries(count))
}

pub(crate) fn addrs(nodes: &[Node]) -> Vec<SocketAddr> {
    nodes.iter().map(Node::addr).collect()
}

fn listed(nodes: &[SocketAddr]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Scene {
    /// Arguments for nodes that run.
    pub(crate) fn running(&self, nodes: &[SocketAddr]) -> Vec<String> {
        let program = self.server.program().to_str().unwrap().to_owned();
        vec!["--spare".to_owned(), listed(nodes), "--engine".to_owned(), program]
    }

    pub(crate) fn recover_to(&self, nodes: &[SocketAddr], more: &[&str]) -> Run {
        let words = self.running(nodes);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.recover(&[&words[..], more].concat())
    }
}

/// The epoch, the number of keys and the number of known nodes of a node.
pub(crate) fn state(node: SocketAddr) -> (String, String, String) {
    let mut client = Client::connect(&Endpoint::plain(node)).unwrap();
    let info = client.command(&["CLUSTER", "INFO"]).unwrap().text().unwrap();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(':').nth(1).unwrap().trim().to_owned()
    };
    let keys = format!("{:?}", client.command(&["DBSIZE"]).unwrap());
    (field("cluster_my_epoch"), keys, field("cluster_known_nodes"))
}

fn primary_of(node: SocketAddr) -> u16 {
    client(node, None, None).info_field("replication", "master_port").unwrap().unwrap().parse().unwrap()
}

fn open(plan: &Value) -> String {
    plan["open"].to_string()
}

/// One shard is lost, another has lost its replica: nodes that run take both places, and old nodes that come back do no harm. What can't be
/// used is named, and a node that did not hold the shard is empty afterwards.
#[test]
fn nodes_that_run_take_the_places_of_lost_ones() {
    let mut scene = Scene::start("valkey-9.1", true, &[]);
    let spares = empty(&scene.server, 4);
    let older = empty(&servers::require("redis-6.2").unwrap(), 1);
    let (nodes, old) = (addrs(spares.nodes()), older.nodes()[0].addr());
    // Enough to be missed.
    let (big, mut first) = ("x".repeat(50_000), scene.first(1).client().unwrap());
    let tag = scene.tag_of(1, "big");
    for number in 0..40 {
        first.command(&["SET", &format!("{{{tag}}}:{number}"), &big]).unwrap();
    }
    scene.wait_held(1);
    for node in [scene.first(1), scene.second(1), scene.second(0)] {
        node.kill().unwrap();
    }
    let gone = now_ms();
    scene.wait_sealed(1);

    // Neither one that loads no such base, nor one that holds something; and there is nothing else then.
    let mut busy = client(nodes[3], None, None);
    busy.command(&["CLUSTER", "ADDSLOTS", "7"]).unwrap();
    let run = scene.recover_to(&[old, nodes[3]], &["--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(
        open(&plan).contains(&format!("{old} can't be used for a new node: it runs Redis 6.2")),
        "{plan}"
    );
    let busy_words = format!("{} can't be used for a new node: a node runs there", nodes[3]);
    assert!(open(&plan).contains(&busy_words), "{plan}");
    assert_eq!(plan["steps"].as_array().unwrap().len(), 0, "{plan}");
    // Nor one that may not take as much; what it may take is not all of the dataset's size in memory.
    let mut small = client(nodes[0], None, None);
    small.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let run = scene.recover_to(&nodes[..1], &[]);
    assert!(run.stdout.contains("raise maxmemory there"), "{}", run.stdout);
    let used: u64 = small.info_field("memory", "used_memory").unwrap().unwrap().parse().unwrap();
    small.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).unwrap();
    small.command(&["CONFIG", "SET", "maxmemory", &(used + 1_000_000).to_string()]).unwrap();
    let run = scene.recover_to(&nodes[..1], &["--yes"]);
    assert_eq!(run.code, 47, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("has evicted keys"), "{}", run.stdout);
    assert_eq!(state(nodes[0]), ("0".to_owned(), ":0".to_owned(), "1".to_owned()));
    assert_eq!(config(&mut small, "cluster-require-full-coverage"), "yes");
    small.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();

    let words = scene.running(&nodes[..3]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = scene.recover_to(&nodes[..3], &["--dry-run"]);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    let lost = shard(&plan, 1);
    assert_eq!(lost["remedy"]["nodes"], serde_json::json!([nodes[0].to_string()]), "{lost}");
    assert_eq!(lost["new_replicas"], serde_json::json!([nodes[1].to_string()]), "{lost}");
    assert_eq!(shard(&plan, 0)["new_replicas"], serde_json::json!([nodes[2].to_string()]), "{plan}");
    let kinds: Vec<&str> =
        plan["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["fill", "join", "replicas", "replicas", "settle"]);
    assert_eq!(state(nodes[0]), ("0".to_owned(), ":0".to_owned(), "1".to_owned()));
    let until: jiff::Timestamp = lost["loss"]["until"].as_str().unwrap().parse().unwrap();

    let outcome = scene.recover_whole(&[&words[..], &["--yes"]].concat());
    assert!(outcome["filled"][0]["keys"].as_u64().unwrap() > 0, "{outcome}");
    scene.cluster.wait_ok().unwrap();
    assert_eq!(role(nodes[0]), "master");
    assert_eq!((primary_of(nodes[1]), primary_of(nodes[2])), (nodes[0].port(), scene.first(0).port()));
    assert_eq!(config(&mut small, "cluster-require-full-coverage"), "yes");
    scene.ledger().wait_for_more(200).unwrap();
    scene.recover_whole(&[&words[..], &["--yes"]].concat());

    let account = scene.check(scene.client(&nodes[..3]));
    let mut everywhere = scene.client(&nodes[..3]);
    account.check(ALL, &mut |args| everywhere.command(args)).unwrap();
    let span = account.lost_span_ms();
    let until = until.as_millisecond() - ROUNDING_MS;
    assert!(
        span.is_none_or(|(first, last)| first >= until && last <= gone + IN_FLIGHT_MS),
        "{span:?} {until} {gone}"
    );
    for node in [scene.first(1), scene.second(1)] {
        scene.return_harmlessly(node, nodes[0]);
    }
    scene.cluster.wait_ok().unwrap();
    account.check(ALL, &mut |args| everywhere.command(args)).unwrap();
}

/// A replica that is gone is replaced by one that is started; then nothing lives, and nodes that run become the cluster.
#[test]
fn nodes_that_run_become_a_cluster_of_which_nothing_lives() {
    let mut scene = Scene::start("redis-7.0", true, &[]);
    let mut first = scene.first(0).client().unwrap();
    first
        .command(&[
            "FUNCTION",
            "LOAD",
            "#!lua name=lib\nredis.register_function('f', function() return 7 end)",
        ])
        .unwrap();
    scene.second(2).kill().unwrap();
    let (started, words) = scene.spares(1, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // Nothing has to be done about it; with an address it can be.
    assert_eq!(scene.recover(&[]).code, 0);
    scene.recover_whole(&[&words[..], &["--yes"]].concat());
    assert_eq!(primary_of(started[0]), scene.first(2).port());
    scene.ledger().wait_for_more(200).unwrap();
    scene.wait_held(0);

    let spares = empty(&scene.server, 6);
    let nodes = addrs(spares.nodes());
    client(started[0], None, None).command(&["SHUTDOWN", "NOSAVE"]).unwrap_err();
    for node in scene.cluster.nodes().iter().filter(|node| node.is_running()) {
        node.kill().unwrap();
    }
    let gone = now_ms();
    scene.wait_sealed(3);
    drop(scene.agent.take());
    let run = scene.recover_to(&nodes, &[]);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    let untils = plan["shards"].as_array().unwrap().iter().map(|shard| {
        shard["loss"]["until"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
    });
    let until = untils.min().unwrap() - ROUNDING_MS;
    let words = scene.running(&nodes);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    scene.recover_whole(&[&words[..], &["--yes"]].concat());
    let roles: Vec<String> = nodes.iter().map(|node| role(*node)).collect();
    assert_eq!(roles, ["master", "master", "master", "slave", "slave", "slave"]);
    let reply = client(nodes[0], None, None).command(&["FUNCTION", "LIST"]).unwrap();
    assert!(format!("{reply:?}").contains("lib"), "{reply:?}");

    let account = scene.check(cluster_client(&nodes, None));
    let mut everywhere = cluster_client(&nodes, None);
    account.check(ALL, &mut |args| everywhere.command(args)).unwrap();
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= until && last <= gone + IN_FLIGHT_MS),
        "{span:?} {until} {gone}"
    );
}

/// Two of three shards of a cluster that speaks TLS are lost: one gets into a node that runs, one is started, and each gets a replica of the
/// other kind.
#[test]
fn lost_shards_of_a_cluster_with_tls_come_back() {
    let server = servers::require("redis-7.0").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).replicas_per_primary(1).tls(true).start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let (ca, certificates) = (cluster.ca().unwrap(), cluster.certificates().unwrap());
    let (cert, key) = (certificates.server_cert(), certificates.server_key());
    let [ca, cert, key] = [&ca, &cert, &key].map(|path| path.to_str().unwrap());
    let bench = Bench::new();
    bench.backup(cluster.nodes()[0].addr(), &["--tls-ca", ca]);
    // The second shard's nodes come back empty, as others: their certificates are of the same authority.
    let lost: Vec<&Node> = cluster.members(1).chain(cluster.members(2)).collect();
    for node in &lost {
        node.kill().unwrap();
    }
    for node in cluster.members(1) {
        for name in ["nodes.conf", "dump.rdb"] {
            let _ = std::fs::remove_file(node.dir().join(name));
        }
        node.start().unwrap();
    }
    let running: Vec<SocketAddr> = cluster.members(1).map(Node::addr).collect();
    let free = free_addrs(2);
    let spares = listed(&[running[0], free[0], free[1], running[1]]);
    let (at, folder) = (cluster.nodes()[0].addr().to_string(), bench.path("new"));
    let (program, folder) = (server.program().to_str().unwrap(), folder.to_str().unwrap());
    let words = [
        "recover",
        "--cluster",
        &at,
        "--tls-ca",
        ca,
        "--spare",
        &spares,
        "--to-dir",
        folder,
        "--server",
        program,
    ];
    let run = bench.slotkeep(&words);
    assert!(run.stdout.contains("--spare-tls-cert, --spare-tls-key and --spare-tls-ca"), "{}", run.stdout);
    let files = ["--spare-tls-cert", cert, "--spare-tls-key", key, "--spare-tls-ca", ca];
    let run = bench.slotkeep(&[&words[..], &files, &["--yes"]].concat());
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    let outcome: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(outcome["filled"][0]["addr"], running[0].to_string(), "{outcome}");
    let after = outcome["after"]["shards"].as_array().unwrap();
    let replicas = |number: usize| {
        let rows = after[number]["replicas"].as_array().unwrap();
        let living = rows.iter().filter(|row| row["answers"] == true);
        living.map(|row| row["addr"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(after[1]["primary"], running[0].to_string(), "{outcome}");
    assert_eq!(after[2]["primary"], free[0].to_string(), "{outcome}");
    assert_eq!(
        (replicas(1), replicas(2)),
        (vec![free[1].to_string()], vec![running[1].to_string()]),
        "{outcome}"
    );
    // Started nodes speak TLS and nothing else.
    assert!(
        Client::connect(&Endpoint::plain(free[0])).and_then(|mut client| client.command(&["PING"])).is_err()
    );
    loaded.verify(&mut cluster.client().unwrap()).unwrap();
}
