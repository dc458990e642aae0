//! A writer keeps account of what it wrote and when; what comes back is compared with that.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use slotkeep_testkit::{Cluster, ClusterBuilder, ClusterClient, servers};

use crate::harness::{Bench, cluster_client, free_addrs, seed};
use crate::recorder::{Recorder, manifest_of, now, pause};

const KEYS: usize = 40;

/// A write: the number, when it was sent and when it was acknowledged, in ms since 1970.
#[derive(Clone, Copy)]
struct Write {
    number: u64,
    sent_ms: i64,
    acknowledged_ms: i64,
}

/// Every write to each key, in order.
type Account = Vec<Vec<Write>>;

struct Accountant {
    stop: Sender<()>,
    thread: JoinHandle<Account>,
}

fn key(number: usize) -> String {
    format!("account:{number}")
}

impl Accountant {
    fn start(cluster: &Cluster) -> Self {
        let mut client = cluster.client().unwrap();
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut account = vec![Vec::new(); KEYS];
            let mut number = 0_u64;
            while !matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
                number += 1;
                let row = usize::try_from(number).unwrap() % KEYS;
                let sent_ms = now().as_millisecond();
                client.command(&["SET", &key(row), &number.to_string()]).unwrap();
                account[row].push(Write { number, sent_ms, acknowledged_ms: now().as_millisecond() });
            }
            account
        });
        Self { stop, thread }
    }

    fn stop(self) -> Account {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// Nothing was written after the moment; what is missing was acknowledged no longer before it than was said.
fn compare(account: &Account, client: &mut ClusterClient, moment_ms: i64, may_lack_ms: i64) {
    let mut found_some = 0;
    for (row, writes) in account.iter().enumerate() {
        let found =
            client.command(&["GET", &key(row)]).unwrap().text().ok().map(|text| text.parse::<u64>().unwrap());
        let write = found.map(|number| writes.iter().find(|write| write.number == number).unwrap());
        if let Some(write) = write {
            found_some += 1;
            assert!(
                write.sent_ms <= moment_ms,
                "{}: {} was written after the moment",
                key(row),
                write.number
            );
        }
        let due = writes.iter().rev().find(|write| write.acknowledged_ms < moment_ms - may_lack_ms);
        let due = due.map(|write| write.number);
        assert!(found >= due, "{}: {found:?} came back, {due:?} was due", key(row));
    }
    assert!(found_some > KEYS / 2, "{found_some}");
}

fn recover(name: &str) {
    let server = servers::require(name).unwrap();
    let cluster = ClusterBuilder::new(server.clone()).config("repl-backlog-size", "64mb").start().unwrap();
    let bench = Bench::new();
    let before = Accountant::start(&cluster);
    let manifest = manifest_of(&bench.backup(seed(&cluster), &["--prefer", "primary"]));
    let recorder = Recorder::start(&cluster, &manifest);
    let mut earlier = before.stop();
    let accountant = Accountant::start(&cluster);
    pause(600);
    let first_moment = now();
    pause(600);
    let account = accountant.stop();
    let end_ms = now().as_millisecond();
    recorder.catch_up();
    for shard in 0..3 {
        let flushed = cluster.primary(shard).unwrap().client().unwrap().command(&["FLUSHALL"]);
        flushed.unwrap();
    }
    let after_accident = Accountant::start(&cluster);
    pause(100);
    after_accident.stop();
    recorder.finish(&bench.repo(), 40_000);
    drop(cluster);
    // The writer before began its numbers anew: only what came later is compared.
    earlier.clear();

    let nodes = free_addrs(3);
    let program = server.program().to_str().unwrap();
    let at = first_moment.to_string();
    let start = ["--start", "--server", program];
    let report = bench.restore("moment", &nodes, &[&["--at", &at], &start[..]].concat()).json();
    let shards = report["recovery"]["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 3);
    let lack = shards.iter().map(|shard| shard["may_lack_ms"].as_i64().unwrap()).max().unwrap();
    assert!(lack < 20_000, "{report}");
    compare(&account, &mut cluster_client(&nodes, None), first_moment.as_millisecond(), lack);

    let nodes = free_addrs(3);
    let report =
        bench.restore("undone", &nodes, &[&["--before-command", "FLUSHALL"], &start[..]].concat()).json();
    assert_eq!(report["recovery"]["undone"]["matches"].as_array().unwrap().len(), 3, "{report}");
    compare(&account, &mut cluster_client(&nodes, None), end_ms, 0);

    // Where nothing is said the newest backup is meant, and that there is more is said.
    for (aim, is_told) in [(&[][..], true), (&["--backup", "latest"][..], false)] {
        let run = bench.restore("plan", &nodes, &[aim, &["--dry-run"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(run.stderr.contains("the log goes on to 20"), is_told, "{}", run.stderr);
    }

    let too_late = bench.restore("late", &nodes, &["--at", "2100-01-01T00:00:00Z"]);
    too_late.failed(24, "their log ends at");
    let too_early = bench.restore("early", &nodes, &["--at", "2001-01-01T00:00:00Z"]);
    too_early.failed(24, "their log begins at");
    assert!(!bench.path("late").exists() && !bench.path("early").exists());
}

#[test]
fn moments_of_redis_7_0_come_back_and_flushall_is_undone() {
    recover("redis-7.0");
}

#[test]
fn moments_of_valkey_9_1_come_back_and_flushall_is_undone() {
    recover("valkey-9.1");
}

#[test]
fn moments_of_redis_6_2_come_back_and_flushall_is_undone() {
    recover("redis-6.2");
}
