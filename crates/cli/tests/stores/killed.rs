//! An archive that is killed before every operation by which it would change the store: the next one goes on without a gap, and what the
//! servers acknowledged is in a recovery.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;
use slotkeep_testkit::data::Writer;
use slotkeep_testkit::ledger::{Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{Cluster, ClusterBuilder};

use crate::bench::{Bench, cluster_client, free_addrs};
use crate::common::agent::Agent;
use crate::common::log::assert_log_is_the_stream;
use crate::common::{command, files, server, slotkeep};
use crate::lived::sound;

const STOP: &str = "SLOTKEEP_STOP_AT_STORE_OPERATION";
/// What a process that calls `abort` dies of.
const ABORTED: i32 = 6;
/// More operations than a short life has.
const MOST: u64 = 200;
/// Lives at a time: they wait more than they work.
const AT_ONCE: usize = 5;

fn cluster() -> Cluster {
    ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .config("repl-backlog-size", "256mb")
        .config("repl-ping-replica-period", "1")
        .start()
        .unwrap()
}

/// An archive into `folder`, to be killed before that operation.
fn archive(cluster: &Cluster, folder: &Path, stop: Option<u64>) -> Agent {
    let mut archive = command();
    archive.args(["archive", "--json", "--status-every", "100ms", "--seal-after", "100ms", "--cluster"]);
    archive.arg(cluster.nodes()[0].addr().to_string());
    archive.arg("--repo").arg(folder.join("repo")).arg("--spool").arg(folder.join("spool"));
    archive.envs(stop.map(|number| (STOP, number.to_string())));
    Agent::spawn(archive)
}

fn has_backup(folder: &Path) -> bool {
    let manifests = std::fs::read_dir(folder.join("repo/main/backups"));
    manifests.is_ok_and(|mut found| {
        found.any(|entry| entry.unwrap().path().extension().is_some_and(|extension| extension == "json"))
    })
}

/// Lets an archive live until there is a backup and it has sealed three segments, and end in order. Whether it was killed.
#[track_caller]
fn live(agent: &mut Agent, folder: &Path) -> bool {
    let lived = agent.wait_while_it_lives("a backup and three segments", |lines| {
        let status = lines.iter().rev().find_map(|line| line.get("status"));
        let sealed = status.is_some_and(|status| status["shards"][0]["segments"].as_u64() >= Some(3));
        sealed && has_backup(folder)
    });
    let ended = agent.finish();
    if ended.signal() == Some(ABORTED) {
        return true;
    }
    assert!(lived && ended.code() == Some(0), "{ended:?}: {}\n{:#?}", agent.said(), agent.all());
    false
}

/// Everything that the server has sent since the first base is in the repository, nothing waits, and nothing is wrong.
#[track_caller]
fn caught_up(last: &Agent, folder: &Path, cluster: &Cluster, when: &str) {
    assert_eq!(last.status()["spool_bytes"], 0, "{when}");
    let left: Vec<String> = files(&folder.join("spool"))
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "spool"))
        .collect();
    assert!(left.is_empty(), "{when}: {left:?}");
    assert_eq!(last.notices("gap"), Vec::<String>::new(), "{when}");
    let repo = folder.join("repo");
    sound(&repo);
    let manifest = slotkeep(&["show", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    assert_log_is_the_stream(&repo, &manifest["shards"][0], cluster.primary(0).unwrap());
}

/// From the making of the repository on, the base included: a new repository each time.
#[test]
fn an_archive_may_be_killed_anywhere_in_its_first_life() {
    let cluster = cluster();
    let writer = Writer::start(&cluster, 50).unwrap();
    let (next, killed, done) = (AtomicU64::new(1), AtomicU64::new(0), AtomicBool::new(false));
    let lives = || {
        while !done.load(Ordering::SeqCst) {
            let number = next.fetch_add(1, Ordering::SeqCst);
            assert!(number < MOST, "it has more than {MOST} operations");
            let folder = tempfile::tempdir().unwrap();
            let mut agent = archive(&cluster, folder.path(), Some(number));
            if !live(&mut agent, folder.path()) {
                done.store(true, Ordering::SeqCst);
                caught_up(&agent, folder.path(), &cluster, &format!("not killed at {number}"));
                return;
            }
            killed.fetch_add(1, Ordering::SeqCst);
            let mut agent = archive(&cluster, folder.path(), None);
            assert!(!live(&mut agent, folder.path()));
            caught_up(&agent, folder.path(), &cluster, &format!("after it was killed at {number}"));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(lives);
        }
    });
    writer.stop();
    // The repository, three leases, a base of three objects, its history, a backup, three segments, and the words at the end.
    let killed = killed.into_inner();
    assert!(killed > 25, "{killed}");
}

/// One repository, one spool, one line: each life goes on where the last one was killed, while writers keep a ledger.
#[test]
fn an_archive_that_is_killed_in_every_life_loses_nothing_that_was_acknowledged() {
    let cluster = cluster();
    let bench = Bench::new();
    let folder = bench.repo().parent().unwrap().to_owned();
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 11, lists: 20, accounts: 6 }).unwrap();
    let mut first = archive(&cluster, &folder, None);
    assert!(!live(&mut first, &folder));
    let mut killed = 0;
    for number in 1..MOST {
        let mut agent = archive(&cluster, &folder, Some(number));
        let was_killed = live(&mut agent, &folder);
        let quiet: [Vec<String>; 3] = ["gap", "diverged", "base"].map(|kind| agent.notices(kind));
        assert!(quiet.iter().all(Vec::is_empty), "in life {number}: {quiet:?}");
        if !was_killed {
            break;
        }
        killed += 1;
    }
    // Three leases, three segments and more, the words at the end.
    assert!(killed > 8, "{killed}");
    let account = ledger.stop(&cluster).unwrap();
    let mut last = archive(&cluster, &folder, None);
    // Heartbeats are sealed within a minute; what is acknowledged is sealed at the end.
    last.wait_following();
    let produced: u64 = {
        let mut client = cluster.primary(0).unwrap().client().unwrap();
        crate::common::log::field(&mut client, "master_repl_offset").parse().unwrap()
    };
    last.wait_status("everything to be received", |status: &Value| {
        status["shards"][0]["durable"].as_u64().unwrap() >= produced
    });
    assert_eq!(last.finish().code(), Some(0));
    caught_up(&last, &folder, &cluster, "in the end");
    let listing = bench.slotkeep(&["list"]).json();
    assert_eq!(listing["backups"].as_array().unwrap().len(), 1, "{listing}");

    let nodes = free_addrs(1);
    bench.restore_and_start("restored", &nodes, &server("valkey-9.1"), &["--at", "latest"]);
    let mut client = cluster_client(&nodes, None);
    let bounds = Bounds { nothing_after_ms: i64::MAX, nothing_missing_before_ms: i64::MAX, consistent: true };
    account.check(bounds, &mut |args| client.command(args)).unwrap();
}
