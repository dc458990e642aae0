//! Runs that are interrupted, and plans that are overtaken by what happens.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use slotkeep_jobs::Context;
use slotkeep_jobs::net::{Connector, ConnectorOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng};
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::recover::{EndDisplay, Memory, Recovery, Remedy, Step, StepKind, Watch, Wishes};
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Client, Endpoint};

use crate::common::command;
use crate::scene::{ALL, Scene, role};

struct Nobody;

impl Watch for Nobody {
    fn note(&self, _: &str) {}

    fn begin(&self, _: &[(Arc<ShardProgress>, u64)]) -> EndDisplay {
        Box::pin(async {})
    }
}

/// A recovery of the scene's cluster without a repository.
fn recovery(scene: &Scene) -> Recovery {
    let connector = Connector::new(ConnectorOptions::default()).unwrap();
    let context = Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(connector),
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let seeds = scene.cluster.nodes().iter().map(|node| node.addr().to_string().parse().unwrap());
    Recovery {
        context,
        seeds: seeds.collect(),
        spares: vec![],
        past: None,
        wishes: Wishes::default(),
        making: None,
        filling: None,
        memory: Memory::default(),
    }
}

/// What happens between a plan and its steps: something that makes a step needless is passed over, anything else ends the run.
#[test]
fn a_plan_that_is_overtaken_is_not_carried_out() {
    let scene = Scene::start("valkey-9.1", false, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let recovery = recovery(&scene);
    let gone = |shard: usize| scene.first(shard).kill().unwrap();
    gone(0);
    let plan = runtime.block_on(recovery.plan()).unwrap();
    assert!(matches!(plan.shards[0].remedy, Remedy::Promote { .. }), "{plan:?}");

    // Its replica goes too.
    scene.second(0).kill().unwrap();
    let outcome = runtime.block_on(recovery.apply(&plan, &Nobody)).unwrap();
    assert!(outcome.done.is_empty(), "{outcome:?}");
    let stopped = outcome.stopped.unwrap();
    assert!(stopped.why.contains("not as they were when this was planned"), "{stopped:?}");
    assert!(stopped.now.contains("nothing was changed"), "{stopped:?}");

    // The primary comes back before it is replaced.
    scene.first(0).start().unwrap();
    scene.second(0).start().unwrap();
    scene.cluster.wait_ok().unwrap();
    let outcome = runtime.block_on(recovery.apply(&plan, &Nobody)).unwrap();
    assert!(outcome.stopped.is_none(), "{outcome:?}");
    assert!(outcome.done[0].result.contains("not needed any more"), "{outcome:?}");
    assert_eq!(role(scene.first(0).addr()), "master");
    assert_eq!(role(scene.second(0).addr()), "slave");
}

/// Lets a node hear the others as soon as it is waited for.
struct Healer(Mutex<Client>);

impl Watch for Healer {
    fn note(&self, text: &str) {
        if text.contains("sees other slots") {
            self.0.lock().unwrap().command(&["DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-1"]).unwrap();
        }
    }

    fn begin(&self, _: &[(Arc<ShardProgress>, u64)]) -> EndDisplay {
        Box::pin(async {})
    }
}

/// An old primary that hears a moment later of the one that has taken its place is waited for.
#[test]
fn two_owners_for_a_moment_are_no_split_brain() {
    let scene = Scene::start("valkey-9.1", false, &[("cluster-node-timeout", "5000")]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let recovery = recovery(&scene);
    let mut plan = runtime.block_on(recovery.plan()).unwrap();
    let settle = Step { kind: StepKind::Settle, what: String::new(), risk: String::new(), expected_ms: 0 };
    plan.steps = vec![settle];
    let mut old = scene.first(0).client().unwrap();
    old.command(&["DEBUG", "DROP-CLUSTER-PACKET-FILTER", "-2"]).unwrap();
    scene.second(0).client().unwrap().command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).unwrap();
    wait_for(Duration::from_secs(30), "the replica to take over", || match role(scene.second(0).addr()) {
        primary if primary == "master" => Ok(()),
        other => Err(NotYet::because(other)),
    })
    .unwrap();
    assert_eq!(role(scene.first(0).addr()), "master");
    let outcome = runtime.block_on(recovery.apply(&plan, &Healer(Mutex::new(old)))).unwrap();
    assert!(outcome.stopped.is_none(), "{outcome:?}");
    assert!(outcome.done[0].result.contains("16384 of 16384"), "{outcome:?}");
    assert_eq!(role(scene.first(0).addr()), "slave");
}

/// A run is killed when the new node is up; the next one finds it and goes on from there. An old primary of a server that makes no replica of
/// it comes back empty, and is attached.
#[test]
fn a_run_that_was_killed_is_gone_on_with() {
    let mut scene = Scene::start("valkey-9.1", true, &[("cluster-allow-replica-migration", "no")]);
    scene.first(2).kill().unwrap();
    scene.second(2).kill().unwrap();
    scene.wait_sealed(1);
    let (nodes, words) = scene.spares(1, "new");
    let seed = scene.first(0).addr().to_string();
    let repo = scene.bench.repo();
    let mut run = command();
    run.args(["recover", "--yes", "--cluster", &seed, "--repo"]).arg(&repo).args(&words);
    let mut run =
        run.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for(Duration::from_secs(30), "the new node to be up", || {
        let info = Client::connect(&Endpoint::plain(nodes[0]))?.info("persistence")?;
        if info.contains("loading:0") { Ok(()) } else { Err(NotYet::because("it loads")) }
    })
    .unwrap();
    run.kill().unwrap();
    run.wait().unwrap();

    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let words = [&words[..], &["--yes"]].concat();
    let outcome = scene.recover_whole(&words);
    assert!(!outcome["done"].to_string().contains("restore"), "{outcome}");
    scene.cluster.wait_ok().unwrap();
    assert_eq!(role(nodes[0]), "master");
    scene.ledger().wait_for_more(100).unwrap();

    scene.first(2).start().unwrap();
    wait_for(Duration::from_secs(30), "the old primary to hold no slots", || {
        let text = scene.first(2).client()?.command(&["CLUSTER", "NODES"])?.text()?;
        let own = text.lines().find(|line| line.contains("myself")).unwrap_or_default();
        if own.split(' ').count() == 8 { Ok(()) } else { Err(NotYet::because(own)) }
    })
    .unwrap();
    scene.recover_whole(&words);
    assert_eq!(role(scene.first(2).addr()), "slave");
    let account = scene.check(scene.client(&nodes));
    let mut client = scene.client(&nodes);
    account.check(ALL, &mut |args| client.command(args)).unwrap();
}
