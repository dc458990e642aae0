//! What a run leaves that is killed while it fills a node that runs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::Client;
use slotkeep_testkit::deadline::{NotYet, wait_for};

use crate::common::command;
use crate::harness::{client, config};
use crate::scene::{ALL, Scene, role, shard};
use crate::spares::{addrs, empty};

/// So many keys that a run can be met in the middle of them.
const KEYS: usize = 300;

/// What no compression makes small.
fn noise(number: usize) -> String {
    let mut state = u64::try_from(number).unwrap() * 2 + 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    });
    words.take(6000).collect()
}

fn keys(at: &mut Client) -> i64 {
    at.command(&["DBSIZE"]).unwrap().int().unwrap()
}

fn slots(at: &mut Client) -> String {
    let text = at.command(&["CLUSTER", "NODES"]).unwrap().text().unwrap();
    text.trim().split(' ').skip(8).collect::<Vec<_>>().join(" ")
}

/// Starts a run that fills the node.
fn start(scene: &Scene, node: SocketAddr) -> Child {
    let words = scene.running(&[node]);
    let mut run = command();
    run.args(["recover", "--yes", "--cluster", &scene.first(0).addr().to_string(), "--repo"]);
    run.arg(scene.bench.repo()).args(&words);
    // What it leaves goes with the rest.
    run.arg("--spool").arg(scene.bench.repo().parent().unwrap());
    run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The same; gives it when some keys are there.
fn begin(scene: &Scene, node: SocketAddr) -> Child {
    let run = start(scene, node);
    let mut at = client(node, None, None);
    wait_for(Duration::from_secs(60), "the first keys", || match keys(&mut at) {
        0 => Err(NotYet::because("it is empty")),
        _ => Ok(()),
    })
    .unwrap();
    run
}

/// Kills a run when some keys are there, and not all.
fn kill_half_way(scene: &Scene, node: SocketAddr) -> i64 {
    let mut run = begin(scene, node);
    run.kill().unwrap();
    let ended = run.wait().unwrap();
    assert!(ended.code().is_none(), "{ended}");
    let left = keys(&mut client(node, None, None));
    assert!(left < i64::try_from(KEYS).unwrap(), "it was killed too late: {left}");
    left
}

/// The next run does not touch it unless it is named, and then goes on from an empty node; what a person has made stays in any case.
#[test]
fn a_node_that_a_killed_run_left_half_filled_is_filled_anew() {
    let mut scene = Scene::start("valkey-9.1", true, &[]);
    let (spares, tag) = (empty(&scene.server, 2), scene.tag_of(1, "big"));
    let nodes = addrs(spares.nodes());
    let mut first = scene.first(1).client().unwrap();
    for number in 0..KEYS {
        first.command(&["SET", &format!("{{{tag}}}:{number}"), &noise(number)]).unwrap();
    }
    scene.wait_held(1);
    scene.first(1).kill().unwrap();
    scene.second(1).kill().unwrap();
    scene.wait_sealed(1);
    let left = kill_half_way(&scene, nodes[0]);

    let named = nodes[0].to_string();
    let (mut at, all) = (client(nodes[0], None, None), slots(&mut client(nodes[0], None, None)));
    let run = scene.recover_to(&nodes[..1], &["--yes"]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains(&format!("`--refill {named}` empties it")), "{}", run.stdout);
    assert_eq!((keys(&mut at), slots(&mut at)), (left, all.clone()), "nothing was done");

    // Slots that a person has added come without such an epoch.
    let mut other = client(nodes[1], None, None);
    let (low, high) = all.split_once('-').unwrap();
    other.command(&["CLUSTER", "ADDSLOTSRANGE", low, high]).unwrap();
    let run = scene.recover_to(&nodes[1..], &["--yes", "--refill", &nodes[1].to_string()]);
    assert_eq!(run.code, 46, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("--refill does not empty it: its config epoch (0)"), "{}", run.stdout);
    assert_eq!(slots(&mut other), all);
    scene.recover_to(&nodes[1..], &["--refill", &named]).failed(2, "is not one of the addresses");

    // One that is taken while a run prepares what to fill it with is left alone.
    other.command(&["CLUSTER", "RESET", "HARD"]).unwrap();
    let mut run = start(&scene, nodes[1]);
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("a private server applies the log")));
    let taken = [vec!["CLUSTER", "SET-CONFIG-EPOCH", "99"], vec!["CLUSTER", "ADDSLOTSRANGE", low, high]];
    other.pipeline(&taken).unwrap();
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(run.wait().unwrap().code(), Some(47), "{said:?}");
    assert_eq!(slots(&mut other), all, "{said:?}");

    // A run whose node has been emptied and taken by somebody else leaves it alone, although it fails.
    other.command(&["CLUSTER", "RESET", "HARD"]).unwrap();
    let run = begin(&scene, nodes[1]);
    let taken = [
        vec!["CONFIG", "SET", "maxmemory", "1"],
        vec!["FLUSHALL"],
        vec!["CLUSTER", "RESET", "HARD"],
        vec!["CLUSTER", "ADDSLOTSRANGE", low, high],
        vec!["CLUSTER", "MYID"],
    ];
    let id = other.pipeline(&taken).unwrap().pop().unwrap().text().unwrap();
    let run = run.wait_with_output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(47), "{said}");
    assert!(said.contains("is not the node any more that was to be emptied"), "{said}");
    assert_eq!(other.command(&["CLUSTER", "MYID"]).unwrap().text().unwrap(), id);
    assert_eq!(slots(&mut other), all);

    let run = scene.recover_to(&nodes[..1], &["--refill", &named, "--dry-run"]);
    assert_eq!(run.code, 45, "{}\n{}", run.stdout, run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).unwrap();
    let step = &plan["steps"][0];
    assert_eq!((&step["step"], &step["nodes"][0]["keys"]), (&"empty".into(), &left.into()), "{plan}");
    assert_eq!(shard(&plan, 1)["remedy"]["nodes"], serde_json::json!([named]), "{plan}");
    assert_eq!(keys(&mut at), left, "a plan changes nothing");

    // The run that fills it is not over.
    let over = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = client(nodes[0], None, None);
            for number in (0..).take_while(|_| !over.load(Ordering::Relaxed)) {
                writer.command(&["SET", &format!("{{{tag}}}:more{number}"), ""]).unwrap();
            }
        });
        let run = scene.recover_to(&nodes[..1], &["--refill", &named, "--yes"]);
        over.store(true, Ordering::Relaxed);
        run
    });
    assert_eq!(run.code, 47, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("somebody uses it"), "{}", run.stdout);
    assert!(keys(&mut at) > left);

    let run = scene.recover_to(&nodes[..1], &["--refill", &named, "--yes"]);
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    let outcome: Value = run.json();
    assert!(outcome["done"][0]["result"].to_string().contains("keys deleted"), "{outcome}");
    scene.cluster.wait_ok().unwrap();
    assert_eq!(role(nodes[0]), "master");
    assert_eq!(config(&mut at, "cluster-require-full-coverage"), "yes");
    // Once more: what is done is seen as done.
    assert_eq!(scene.recover_to(&nodes[..1], &["--refill", &named, "--yes"]).code, 0);
    let account = scene.check(scene.client(&nodes[..1]));
    let mut everywhere = scene.client(&nodes[..1]);
    account.check(ALL, &mut |args| everywhere.command(args)).unwrap();
    for number in 0..KEYS {
        let value = at.command(&["GET", &format!("{{{tag}}}:{number}")]).unwrap().text().unwrap();
        assert!(value == noise(number), "{number}");
    }
    let more = at.command(&["EXISTS", &format!("{{{tag}}}:more0")]).unwrap().int().unwrap();
    assert_eq!(more, 0, "what the node held before is gone");
}
