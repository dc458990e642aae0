//! One shard at a time: its primary gone, or all of it.

use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{ClusterBuilder, servers};

use crate::common::log::field;
use crate::harness::{Bench, cluster_client, free_addrs, seed};
use crate::scene::{ALL, IN_FLIGHT_MS, ROUNDING_MS, Scene, now_ms, role, shard};
use crate::spares::empty_nodes;

/// A primary is lost: its replica takes over by vote, and the old one comes back as its replica.
fn a_lost_primary_is_replaced(name: &str) {
    let mut scene = Scene::start(name, true, &[]);
    let whole = scene.recover(&["--dry-run"]);
    assert_eq!(whole.code, 0, "{}", whole.stdout);
    let killed = now_ms();
    scene.first(0).kill().unwrap();
    let gone = now_ms();

    let run = scene.recover(&[]);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let lost = shard(&plan, 0);
    assert_eq!(lost["condition"], "primary_gone");
    assert_eq!(lost["remedy"]["addr"], scene.second(0).addr().to_string());
    assert_eq!(lost["remedy"]["how"], "force");
    assert!(lost["loss"]["bytes"].is_u64(), "{lost}");
    assert_eq!(role(scene.second(0).addr()), "slave", "a plan changes nothing");

    scene.recover_whole(&["--yes"]);
    assert_eq!(role(scene.second(0).addr()), "master");
    scene.cluster.wait_ok().unwrap();
    scene.ledger().wait_for_more(200).unwrap();
    // Once more: there is nothing left to do.
    scene.recover_whole(&["--yes"]);

    scene.return_harmlessly(scene.first(0), scene.second(0).addr());
    scene.cluster.wait_ok().unwrap();
    let account = scene.check(scene.client(&[]));
    account.check(ALL, &mut |args| scene.client(&[]).command(args)).unwrap();
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= killed - IN_FLIGHT_MS && last <= gone + IN_FLIGHT_MS),
        "{span:?} {killed}"
    );
}

#[test]
fn a_lost_primary_of_valkey_9_1_is_replaced() {
    a_lost_primary_is_replaced("valkey-9.1");
}

#[test]
fn a_lost_primary_of_redis_7_0_is_replaced() {
    a_lost_primary_is_replaced("redis-7.0");
}

/// A primary and its replica are lost: the shard comes from the repository, to new nodes that join the others.
fn a_lost_shard_is_restored(name: &str) {
    let mut scene = Scene::start(name, true, &[]);
    scene.first(1).kill().unwrap();
    scene.second(1).kill().unwrap();
    let gone = now_ms();
    scene.wait_sealed(1);

    // Without nodes to restore to, it says what it needs.
    let run = scene.recover(&["--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("--to-dir DIR and --spare with 1 free addresses"), "{}", run.stdout);

    let (nodes, words) = scene.spares(2, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = scene.recover(&words);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let lost = shard(&plan, 1);
    assert_eq!(lost["condition"], "lost");
    assert_eq!(lost["remedy"]["nodes"].as_array().unwrap().len(), 2);
    assert!(!scene.bench.path("new").exists(), "a plan changes nothing");
    let until: jiff::Timestamp = lost["loss"]["until"].as_str().unwrap().parse().unwrap();

    scene.recover_whole(&[&words[..], &["--yes"]].concat());
    scene.cluster.wait_ok().unwrap();
    assert_eq!((role(nodes[0]).as_str(), role(nodes[1]).as_str()), ("master", "slave"));
    scene.ledger().wait_for_more(200).unwrap();
    scene.recover_whole(&["--yes"]);

    // What was acknowledged before the last byte of the archive is there.
    let account = scene.check(scene.client(&nodes));
    let mut client = scene.client(&nodes);
    account.check(ALL, &mut |args| client.command(args)).unwrap();
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
    account.check(ALL, &mut |args| client.command(args)).unwrap();
    let link = field(&mut scene.first(1).client().unwrap(), "master_link_status");
    assert_eq!(link, "up");
}

#[test]
fn a_lost_shard_of_valkey_9_1_is_restored() {
    a_lost_shard_is_restored("valkey-9.1");
}

#[test]
fn a_lost_shard_of_redis_7_0_is_restored() {
    a_lost_shard_is_restored("redis-7.0");
}

#[test]
fn a_lost_shard_of_redis_6_2_is_restored() {
    a_lost_shard_is_restored("redis-6.2");
}

#[test]
fn a_lost_shard_of_redis_8_2_is_restored() {
    a_lost_shard_is_restored("redis-8.2");
}

#[test]
fn a_lost_shard_of_valkey_8_0_is_restored() {
    a_lost_shard_is_restored("valkey-8.0");
}

/// From a backup alone, into a cluster that wants a password, which the backup does not hold.
#[test]
fn a_shard_comes_back_from_a_backup_with_the_password_of_its_cluster() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .replicas_per_primary(1)
        .password("pass word")
        .config("cluster-replica-no-failover", "yes")
        .start()
        .unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let bench = Bench::new().with_password("pass word");
    bench.backup(seed(&cluster), &[]);
    cluster.node(1).unwrap().kill().unwrap();
    cluster.node(4).unwrap().kill().unwrap();
    let nodes = free_addrs(2);
    let spares = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (folder, at) = (bench.path("new"), seed(&cluster).to_string());
    let program = server.program().to_str().unwrap();
    let words = [
        "recover",
        "--cluster",
        &at,
        "--spare",
        &spares,
        "--to-dir",
        folder.to_str().unwrap(),
        "--server",
        program,
    ];
    // A node that runs has to let us in, and to get in with the others.
    let runs = empty_nodes(&ClusterBuilder::new(server.clone()).primaries(1));
    let locked = empty_nodes(&ClusterBuilder::new(server.clone()).primaries(1).password("pass word"));
    locked.nodes()[0].client().unwrap().command(&["CONFIG", "SET", "masterauth", ""]).unwrap();
    let [open_addr, locked_addr] = [&runs, &locked].map(|cluster| cluster.nodes()[0].addr().to_string());
    let run = bench.slotkeep(&[
        "recover",
        "--cluster",
        &at,
        "--spare",
        &format!("{open_addr},{locked_addr}"),
        "--yes",
    ]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains(&format!("{open_addr} can't be used for a new node")), "{}", run.stdout);
    let no_password =
        format!("{locked_addr} can't be used for a new node: an empty node runs there that has no password");
    assert!(run.stdout.contains(&no_password), "{}", run.stdout);

    let run = bench.slotkeep(&[&words[..], &["--yes"]].concat());
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    cluster.wait_ok().unwrap();
    loaded.verify(&mut cluster_client(&[seed(&cluster)], Some("pass word"))).unwrap();
    let open = slotkeep_testkit::Client::connect(&slotkeep_testkit::Endpoint::plain(nodes[0]))
        .unwrap()
        .command(&["DBSIZE"]);
    assert!(open.unwrap_err().to_string().contains("NOAUTH"));
    cluster.start_nodes().unwrap();
    loaded.verify(&mut cluster_client(&[seed(&cluster)], Some("pass word"))).unwrap();
}
