//! What a replica lacked when it was promoted is applied to it.

use slotkeep_testkit::Client;

use crate::scene::{ALL, Scene, role, shard};

/// Cuts the shard's replica off from its primary, writes, and waits until the archive has seen that it has to follow the primary.
fn cut_off(scene: &Scene, number: usize, tag: &str) -> Client {
    let mut at_replica = scene.second(number).client().unwrap();
    // A primary without a password refuses whoever gives one.
    at_replica.command(&["CONFIG", "SET", "masterauth", "none"]).unwrap();
    at_replica.command(&["CLIENT", "KILL", "TYPE", "master"]).unwrap();
    write(scene, number, tag);
    scene.agent.as_ref().unwrap().wait_status("the primary to be followed", |status| {
        let shard = &status["shards"][number];
        shard["phase"] == "following" && shard["source"] == scene.first(number).addr().to_string()
    });
    scene.wait_held(number);
    at_replica
}

/// Commands that come out otherwise if they are left out, given twice, or given in another order.
fn write(scene: &Scene, number: usize, tag: &str) {
    let mut client = scene.first(number).client().unwrap();
    for round in 0..50 {
        client.command(&["MULTI"]).unwrap();
        client.command(&["INCR", &format!("{{{tag}}}:count")]).unwrap();
        client.command(&["RPUSH", &format!("{{{tag}}}:list"), &round.to_string()]).unwrap();
        client.command(&["EXEC"]).unwrap();
    }
    client.command(&["SET", &format!("{{{tag}}}:kept"), "old", "EX", "1000"]).unwrap();
}

fn held(node: &mut Client, tag: &str) -> (String, Vec<String>) {
    let count = node.command(&["GET", &format!("{{{tag}}}:count")]).unwrap().text().unwrap_or_default();
    let list = node.command(&["LRANGE", &format!("{{{tag}}}:list"), "0", "-1"]).unwrap();
    (count, list.array().unwrap().iter().map(|value| value.text().unwrap()).collect())
}

fn whole() -> (String, Vec<String>) {
    ("50".to_owned(), (0..50).map(|round| round.to_string()).collect())
}

#[test]
fn a_tail_is_applied_to_a_promoted_replica() {
    let mut scene = Scene::start("redis-7.0", true, &[]);
    // At once, to a primary that nobody has written to since.
    let tag = scene.tag_of(0, "tail");
    let mut new = cut_off(&scene, 0, &tag);
    scene.ledger().wait_for_more(300).unwrap();
    let account = scene.ledger.take().unwrap().stop(&scene.cluster).unwrap();
    scene.wait_held(0);
    scene.first(0).kill().unwrap();
    scene.wait_sealed(1);
    let run = scene.recover(&[]);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let lost = shard(&plan, 0);
    assert!(lost["tail"]["commands"].as_u64().unwrap() > 150, "{lost}");
    assert!(lost["loss"]["what"].as_str().unwrap().contains("`--apply-tail` applies them"), "{lost}");
    let run = scene.recover(&["--apply-tail"]);
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(plan["steps"].as_array().unwrap().last().unwrap()["step"], "apply_tail", "{plan}");
    assert_eq!(role(scene.second(0).addr()), "slave", "a plan changes nothing");
    scene.recover_whole(&["--apply-tail", "--yes"]);
    assert_eq!(held(&mut new, &tag), whole());
    let mut everywhere = scene.client(&[]);
    // Nothing is lost: not one write of those that only the archive had.
    account.check(ALL, &mut |args| everywhere.command(args)).unwrap();
    assert_eq!(account.lost(), 0);

    // Later, when the new primary has taken writes: only if that is said, and never twice.
    let tag = scene.tag_of(1, "tail");
    let mut new = cut_off(&scene, 1, &tag);
    let kept = format!("{{{tag}}}:kept");
    scene.first(1).kill().unwrap();
    scene.wait_sealed(1);
    scene.recover_whole(&["--yes"]);
    new.command(&["SET", &kept, "new"]).unwrap();
    let run = scene.recover(&["--apply-tail", "--yes"]);
    assert_eq!(run.code, 47, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("has taken 1 commands since it became the primary"), "{}", run.stdout);
    assert_eq!(held(&mut new, &tag), (String::new(), vec![]));
    scene.recover_whole(&["--apply-tail=anyway", "--yes"]);
    assert_eq!(held(&mut new, &tag), whole());
    assert_eq!(new.command(&["GET", &kept]).unwrap().text().unwrap(), "old", "the older command went on top");
    let again = scene.recover_whole(&["--apply-tail=anyway", "--yes"]);
    assert!(again["done"].to_string().contains("has been given them already"), "{again}");
    assert_eq!(held(&mut new, &tag), whole());
}

/// Redis before 7.0 writes into its log for how long keys shall live from then on. That is said while the archive can still be preferred.
#[test]
fn a_tail_is_not_applied_to_redis_6_2() {
    let scene = Scene::start("redis-6.2", true, &[]);
    let tag = scene.tag_of(0, "tail");
    let mut new = cut_off(&scene, 0, &tag);
    scene.first(0).kill().unwrap();
    scene.wait_sealed(1);
    let refused = |nothing_of_it: &str| {
        let run = scene.recover(&["--apply-tail", "--yes"]);
        assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("whose log says for how long keys shall live"), "{}", run.stdout);
        assert!(run.stdout.contains(nothing_of_it), "{}", run.stdout);
    };
    refused("say --prefer archive");
    assert_eq!(role(scene.second(0).addr()), "slave", "nothing was done");
    let plan: serde_json::Value = serde_json::from_str(&scene.recover(&[]).stdout).unwrap();
    assert!(!shard(&plan, 0)["loss"]["what"].as_str().unwrap().contains("--apply-tail"), "{plan}");
    scene.recover_whole(&["--yes"]);
    // Nor afterwards.
    refused("brings single keys back");
    assert_eq!(held(&mut new, &tag), (String::new(), vec![]));
}
