//! More than one shard at a time, and clusters that do not agree with themselves.

use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::ledger::Bounds;

use crate::common::slotkeep;
use crate::harness::{cluster_client, config};
use crate::scene::{ALL, IN_FLIGHT_MS, ROUNDING_MS, Scene, now_ms, role, shard};

const LIMIT: Duration = Duration::from_secs(30);

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Two of three primaries are gone, one with its replica: no majority votes until the first has been taken over.
#[test]
fn a_cluster_that_has_lost_most_of_its_primaries_comes_back() {
    let mut scene = Scene::start("valkey-9.1", true, &[]);
    let killed = now_ms();
    for node in [scene.first(0), scene.first(1), scene.second(1)] {
        node.kill().unwrap();
    }
    let gone = now_ms();
    scene.wait_sealed(1);
    let (nodes, words) = scene.spares(2, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = scene.recover(&words);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan = json(&run.stdout);
    assert_eq!(shard(&plan, 0)["remedy"]["how"], "takeover", "{plan}");
    assert_eq!(shard(&plan, 1)["remedy"]["do"], "restore", "{plan}");
    assert_eq!(shard(&plan, 2)["condition"], "served", "{plan}");
    let until: jiff::Timestamp = shard(&plan, 1)["loss"]["until"].as_str().unwrap().parse().unwrap();
    let until = until.as_millisecond().min(killed - IN_FLIGHT_MS) - ROUNDING_MS;

    scene.recover_whole(&[&words[..], &["--yes", "--forget"]].concat());
    scene.cluster.wait_ok().unwrap();
    scene.ledger().wait_for_more(200).unwrap();
    let account = scene.check(scene.client(&nodes));
    let mut client = scene.client(&nodes);
    account.check(ALL, &mut |args| client.command(args)).unwrap();
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= until && last <= gone + IN_FLIGHT_MS),
        "{span:?} {until} {gone}"
    );
    // Those that were forgotten introduce themselves, and do no harm either.
    scene.return_harmlessly(scene.first(0), scene.second(0).addr());
    scene.return_harmlessly(scene.first(1), nodes[0]);
    scene.return_harmlessly(scene.second(1), nodes[0]);
    scene.cluster.wait_ok().unwrap();
    account.check(ALL, &mut |args| client.command(args)).unwrap();
}

/// Without a repository: replicas are promoted, the first without a vote, the second with one.
#[test]
fn replicas_are_promoted_without_a_repository() {
    let mut scene = Scene::start("redis-7.0", false, &[]);
    let seeds: Vec<String> = scene.cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
    let seeds = seeds.join(",");
    let recover = |more: &[&str]| slotkeep(&[&["recover", "--json", "--cluster", &seeds], more].concat());
    recover(&[]).expect_code(0);
    // A replica that is chosen takes over from a primary that lives, and nothing is lost.
    let chosen = scene.second(2).addr().to_string();
    let done = recover(&["--choose", &chosen, "--yes"]).expect_code(0).json();
    assert_eq!(done["done"].as_array().unwrap().len(), 2, "{done}");
    assert_eq!(role(scene.second(2).addr()), "master");

    let killed = now_ms();
    scene.first(0).kill().unwrap();
    scene.first(1).kill().unwrap();
    let gone = now_ms();
    let plan = recover(&[]).expect_code(45).json();
    assert_eq!(shard(&plan, 0)["remedy"]["how"], "takeover", "{plan}");
    assert_eq!(shard(&plan, 1)["remedy"]["how"], "force", "{plan}");
    recover(&["--yes"]).expect_code(0);
    scene.cluster.wait_ok().unwrap();
    scene.ledger().wait_for_more(200).unwrap();
    let account = scene.check(scene.client(&[]));
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= killed - IN_FLIGHT_MS && last <= gone + IN_FLIGHT_MS),
        "{span:?} {killed}"
    );
    // Of a shard of which nothing lives it says what is missing.
    scene.second(0).kill().unwrap();
    let run = recover(&["--yes"]).expect_code(46);
    assert!(run.stdout.contains("give the repository with --repo"), "{}", run.stdout);
}

/// Nothing lives: the whole cluster comes from the repository.
#[test]
fn a_cluster_of_which_nothing_lives_is_restored_whole() {
    let mut scene = Scene::start("valkey-9.1", true, &[]);
    for node in scene.cluster.nodes() {
        node.kill().unwrap();
    }
    let gone = now_ms();
    scene.wait_sealed(3);
    drop(scene.agent.take());
    let (nodes, words) = scene.spares(6, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = scene.recover(&words);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan = json(&run.stdout);
    assert_eq!(plan["steps"][0]["step"], "restore_all", "{plan}");
    let untils = plan["shards"].as_array().unwrap().iter().map(|shard| {
        assert_eq!(shard["remedy"]["nodes"].as_array().unwrap().len(), 2, "{shard}");
        shard["loss"]["until"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
    });
    let until = untils.min().unwrap() - ROUNDING_MS;
    let done = scene.recover_whole(&[&words[..], &["--yes"]].concat());
    assert_eq!(done["started"].as_array().unwrap().len(), 6, "{done}");

    let account = scene.check(cluster_client(&nodes, None));
    let mut client = cluster_client(&nodes, None);
    account.check(ALL, &mut |args| client.command(args)).unwrap();
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= until && last <= gone + IN_FLIGHT_MS),
        "{span:?} {until} {gone}"
    );
    // The old nodes are a cluster by themselves: nobody of the new one hears of them.
    scene.cluster.start_nodes().unwrap();
    for node in &nodes {
        let text = crate::harness::topology(*node);
        assert_eq!(text.len(), 6, "{text:?}");
    }
    account.check(ALL, &mut |args| client.command(args)).unwrap();
}

/// A replica that had lost its link long before its primary went: the plan says what it lacks, and the archive can be preferred.
#[test]
fn the_archive_is_preferred_to_a_replica_far_behind() {
    let mut scene = Scene::start("redis-7.0", true, &[]);
    let behind = scene.second(0);
    let mut at_replica = behind.client().unwrap();
    // A primary without a password refuses whoever gives one.
    at_replica.command(&["CONFIG", "SET", "masterauth", "none"]).unwrap();
    at_replica.command(&["CLIENT", "KILL", "TYPE", "master"]).unwrap();
    scene.agent.as_ref().unwrap().wait_status("the primary to be followed", |status| {
        let shard = &status["shards"][0];
        shard["phase"] == "following" && shard["source"] == scene.first(0).addr().to_string()
    });
    scene.ledger().wait_for_more(300).unwrap();
    scene.first(0).kill().unwrap();
    let gone = now_ms();
    scene.wait_sealed(1);

    let (nodes, words) = scene.spares(1, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let plan = json(&scene.recover(&words).stdout);
    let lost = shard(&plan, 0);
    assert_eq!(lost["remedy"]["do"], "promote", "{lost}");
    assert!(lost["loss"]["bytes"].as_u64().unwrap() > 5_000, "{lost}");
    assert!(lost["loss"]["ms"].as_u64().unwrap() > 0, "{lost}");
    assert_eq!(lost["replicas"][0]["lacks"]["writes"], true, "{lost}");

    let words = [&words[..], &["--prefer", "archive"]].concat();
    let plan = json(&scene.recover(&words).stdout);
    let lost = shard(&plan, 0);
    assert_eq!(lost["remedy"]["do"], "restore", "{lost}");
    let until: jiff::Timestamp = lost["loss"]["until"].as_str().unwrap().parse().unwrap();
    at_replica.command(&["CONFIG", "SET", "masterauth", ""]).unwrap();
    let done = scene.recover_whole(&[&words[..], &["--yes"]].concat());
    scene.cluster.wait_ok().unwrap();
    // The replica has become one of the new primary.
    assert_eq!(shard(&done["after"], 0)["replicas"][0]["addr"], scene.second(0).addr().to_string());
    scene.ledger().wait_for_more(100).unwrap();
    let account = scene.check(scene.client(&nodes));
    let mut client = scene.client(&nodes);
    account.check(ALL, &mut |args| client.command(args)).unwrap();
    let until = until.as_millisecond() - ROUNDING_MS;
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= until && last <= gone + IN_FLIGHT_MS),
        "{span:?} {until} {gone}"
    );
}

/// A primary that is cut off goes on taking writes for the node timeout. While the others don't miss it, its replica is not promoted, even
/// if it can't be reached from here. When somebody has promoted the replica all the same, that is a split brain, and nothing is done.
#[test]
fn a_split_brain_is_found_and_left_alone() {
    let mut scene = Scene::start("valkey-9.1", true, &[("cluster-node-timeout", "4000")]);
    let (old, new) = (scene.first(0).addr(), scene.second(0).addr());
    let mut cut_off = scene.first(0).client().unwrap();
    cut_off.command(&["DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-2"]).unwrap();
    let began = now_ms();
    let away = format!("{old}=127.0.0.1:1");
    let run = scene.recover(&["--address-map", &away, "--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert_eq!(shard(&json(&run.stdout), 0)["condition"], "out_of_reach", "{}", run.stdout);
    assert_eq!(role(new), "slave");
    scene.second(0).client().unwrap().command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    wait_for(LIMIT, "the replica to take over", || match role(new).as_str() {
        "master" => Ok(()),
        other => Err(NotYet::because(other)),
    })
    .unwrap();
    assert_eq!((role(old).as_str(), role(new).as_str()), ("master", "master"));
    let key = scene.tag_of(0, "cut off");
    cut_off.command(&["SET", &key, "taken"]).unwrap();

    for more in [&[][..], &["--yes"]] {
        let run = scene.recover(more);
        assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
        let plan = json(&run.stdout);
        let split = shard(&plan, 0);
        assert_eq!(split["condition"], "split_brain", "{plan}");
        assert_eq!(plan["steps"].as_array().unwrap().len(), 0, "{plan}");
        let open = plan["open"].to_string();
        assert!(open.contains(&format!("The cluster will follow {new}")), "{open}");
    }
    assert_eq!((role(old).as_str(), role(new).as_str()), ("master", "master"), "nothing was done");
    // When one is chosen, the other is kept from taking writes.
    let choose = ["--choose", &new.to_string(), "--yes"];
    let run = scene.recover(&choose);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert_eq!(json(&run.stdout)["done"][0]["result"], format!("fenced: {old}"), "{}", run.stdout);
    let reply = cut_off.pipeline(&[vec!["SET", &key, "taken"]]).unwrap().remove(0);
    assert!(matches!(reply, slotkeep_testkit::Value::Error(_)), "{reply:?}");
    let ended = now_ms();

    cut_off.command(&["DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-1"]).unwrap();
    scene.cluster.wait_ok().unwrap();
    assert_eq!((role(old).as_str(), role(new).as_str()), ("slave", "master"));
    assert_eq!(scene.recover(&[]).code, 0);
    let seed = scene.first(1).addr().to_string();
    scene.bench.slotkeep(&["fence", "--undo", "--cluster", &seed]).json();
    assert_eq!(config(&mut cut_off, "min-replicas-to-write"), "0");
    scene.ledger().wait_for_more(100).unwrap();
    let account = scene.check(scene.client(&[]));
    let mut client = scene.client(&[]);
    account.check(Bounds { ..ALL }, &mut |args| client.command(args)).unwrap();
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= began - IN_FLIGHT_MS && last <= ended + IN_FLIGHT_MS),
        "{span:?} {began} {ended}"
    );
}

/// Of a split brain the side with the lower epoch is kept: the other one is shut down, the lower one hears the cluster, and becomes the primary.
#[test]
fn the_older_side_of_a_split_brain_is_kept() {
    let mut scene = Scene::start("valkey-9.1", true, &[("cluster-node-timeout", "2000")]);
    let (old, new) = (scene.first(0).addr(), scene.second(0).addr());
    let mut cut_off = scene.first(0).client().unwrap();
    cut_off.command(&["DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-2"]).unwrap();
    let began = now_ms();
    scene.second(0).client().unwrap().command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    wait_for(LIMIT, "the replica to take over", || match role(new).as_str() {
        "master" => Ok(()),
        other => Err(NotYet::because(other)),
    })
    .unwrap();
    let key = scene.tag_of(0, "cut off");
    cut_off.command(&["SET", &key, "taken"]).unwrap();
    // It is not chosen as long as the others follow the newer one.
    let run = scene.recover(&["--choose", &old.to_string(), "--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    let plan = json(&run.stdout);
    assert_eq!(shard(&plan, 0)["condition"], "split_brain", "{plan}");
    assert!(plan["open"].to_string().contains(&format!("To keep the other one: shut {new} down")), "{plan}");

    scene.second(0).kill().unwrap();
    let run = scene.recover(&["--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert_eq!(shard(&json(&run.stdout), 0)["condition"], "superseded", "{}", run.stdout);
    assert_eq!(role(old), "master", "nothing was done");
    cut_off.command(&["DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-1"]).unwrap();
    wait_for(LIMIT, "the older one to hear of the newer one", || match role(old).as_str() {
        "slave" => Ok(()),
        other => Err(NotYet::because(other)),
    })
    .unwrap();
    wait_for(LIMIT, "the newer one to be missed", || {
        let plan = json(&scene.recover(&[]).stdout);
        let condition = &shard(&plan, 0)["condition"];
        if condition == "primary_gone" { Ok(()) } else { Err(NotYet::because(condition.to_string())) }
    })
    .unwrap();
    scene.recover_whole(&["--yes"]);
    assert_eq!(role(old), "master");
    scene.cluster.wait_ok().unwrap();
    let ended = now_ms();
    scene.ledger().wait_for_more(100).unwrap();
    // The newer one comes back as its replica.
    scene.return_harmlessly(scene.second(0), old);
    assert_eq!(
        cut_off.command(&["GET", &key]).unwrap().text().unwrap(),
        "taken",
        "what only it had is there"
    );
    let account = scene.check(scene.client(&[]));
    let mut client = scene.client(&[]);
    account.check(ALL, &mut |args| client.command(args)).unwrap();
    let span = account.lost_span_ms();
    assert!(
        span.is_none_or(|(first, last)| first >= began - IN_FLIGHT_MS && last <= ended + IN_FLIGHT_MS),
        "{span:?} {began} {ended}"
    );
}

/// What is not the cluster's is neither used nor touched.
#[test]
fn strangers_are_left_alone() {
    let scene = Scene::start("valkey-9.1", true, &[]);
    let other = slotkeep_testkit::ClusterBuilder::new(scene.server.clone()).primaries(1).start().unwrap();
    let other = other.nodes()[0].addr().to_string();
    let run = scene.recover_from(&other, &[]);
    run.failed(31, "belongs to another cluster");
    scene.first(2).kill().unwrap();
    scene.second(2).kill().unwrap();
    scene.wait_sealed(1);
    let folder = scene.bench.path("new");
    let run = scene.recover(&["--spare", &other, "--to-dir", folder.to_str().unwrap(), "--yes"]);
    assert_eq!(run.code, 46, "{}", run.stdout);
    assert!(run.stdout.contains("can't be used for a new node: a node runs there"), "{}", run.stdout);
    assert!(!folder.exists());
    // A folder that holds something is refused before anything is started, and the cluster is as it was.
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("kept"), "x").unwrap();
    let (nodes, words) = scene.spares(1, "new");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = scene.recover(&[&words[..], &["--yes"]].concat());
    assert_eq!(run.code, 47, "{}\n{}", run.stdout, run.stderr);
    let outcome = json(&run.stdout);
    assert!(outcome["stopped"]["why"].as_str().unwrap().contains("is not empty"), "{outcome}");
    assert!(outcome["stopped"]["now"].as_str().unwrap().contains("nothing was changed"), "{outcome}");
    assert!(slotkeep_testkit::Client::connect(&slotkeep_testkit::Endpoint::plain(nodes[0])).is_err());
}
