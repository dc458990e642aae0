//! `--source files --files-from aof`: base and commands of append-only files, gone on with where they were left, through rewrites and restarts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::data::{Mix, Writer};
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::ledger::{Account, Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{Cluster, ClusterBuilder, Node, Server, servers};

use super::common::server;
use super::harness::{Bench, cluster_client, free_addrs, seed, stop_nodes};
use super::{Place, USER, addr};

const LIMIT: Duration = Duration::from_secs(30);
const RULES: &str = "on >secret -@all +ping +info +time +cluster|nodes +config|get +module|list +acl|list";
const FROM_AOF: [&str; 4] = ["--source", "files", "--files-from", "aof"];
/// By how much the writers' clock and the servers' may be rounded apart: both are this machine's.
const ROUNDING_MS: i64 = 2;

/// The time of day, in ms since 1970.
#[expect(clippy::disallowed_methods, reason = "a test's own clock, which is also the servers'")]
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn engine(name: &str) -> String {
    servers::require(name).unwrap().program().to_str().unwrap().to_owned()
}

/// The latest backup, its log applied, and the cluster as it runs are the same.
#[track_caller]
fn same_as(place: &Place, cluster: &Cluster, engine: &str) {
    let run = place.run(&["diff", "latest", &addr(cluster), "--engine", engine]);
    let differing = run.expect_code(0).json();
    assert_eq!(differing["differing_slot_count"], 0);
    assert_eq!(differing["functions_differ"], false);
}

/// Has a server make a new base, and waits for it.
fn rewrite_now(node: &Node) {
    let mut client = node.client().unwrap();
    client.command(&["BGREWRITEAOF"]).unwrap();
    wait_for(LIMIT, "the rewrite", || {
        let info = client.info("persistence")?;
        let is = |line: &str| info.lines().any(|own| own.trim() == line);
        if is("aof_rewrite_in_progress:0") && is("aof_rewrite_scheduled:0") {
            Ok(())
        } else {
            Err(NotYet::because("it runs"))
        }
    })
    .unwrap();
}

/// The newest file of commands of a node.
fn newest_increment(node: &Node) -> PathBuf {
    let folder = node.dir().join("appendonlydir");
    let manifest = std::fs::read_to_string(folder.join("appendonly.aof.manifest")).unwrap();
    let last = manifest.lines().rfind(|line| line.ends_with("type i") || line.contains("type i ")).unwrap();
    folder.join(last.split(' ').nth(1).unwrap())
}

/// A file of commands without its annotations, told apart as simply as can be: none of the test's values has such a line in it.
fn without_annotations(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).unwrap();
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| !line.starts_with(b"#TS:")).flatten().copied().collect()
}

/// Everything that the repository holds of a history's log.
fn stored_log(bench: &Bench, shard: &Value) -> Vec<u8> {
    let history = shard["history"].as_str().unwrap();
    super::common::log::line(&bench.repo(), shard, history).bytes
}

fn backup(bench: &Bench, cluster: &Cluster, more: &[&str]) -> Value {
    bench.backup(seed(cluster), &[&FROM_AOF[..], more].concat())
}

fn incremental(bench: &Bench, cluster: &Cluster) -> Value {
    let manifest = backup(bench, cluster, &["--type", "incremental", "--no-fallback"]);
    assert_eq!(manifest["kind"], "incremental");
    manifest
}

/// Restores, and holds what came against the ledger.
fn check(bench: &Bench, server: &Server, account: &Account, name: &str, aim: &[&str], bounds: (i64, i64)) {
    let nodes = free_addrs(2);
    let report = bench.restore_and_start(name, &nodes, server, &[aim, &["--no-replicas"]].concat());
    let shards = report["recovery"]["shards"].as_array();
    let lack = shards.into_iter().flatten().filter_map(|shard| shard["may_lack_ms"].as_i64()).max();
    let bounds = Bounds {
        nothing_after_ms: bounds.1 + ROUNDING_MS,
        nothing_missing_before_ms: bounds.0 - lack.unwrap_or(0) - ROUNDING_MS,
        consistent: false,
    };
    let mut client = cluster_client(&nodes, None);
    account
        .check(bounds, &mut |args| client.command(args))
        .unwrap_or_else(|error| panic!("{name}: {error}\n{report}"));
    stop_nodes(&nodes);
}

fn check_moment(bench: &Bench, server: &Server, account: &Account, name: &str, moment_ms: i64) {
    let at = jiff::Timestamp::from_millisecond(moment_ms).unwrap().to_string();
    check(bench, server, account, name, &["--at", &at], (moment_ms, moment_ms));
}

fn with_annotations(name: &str) -> Cluster {
    ClusterBuilder::new(server(name))
        .primaries(2)
        .config("appendonly", "yes")
        .config("appendfsync", "always")
        .config("appendfsync", "always")
        .config("aof-timestamp-enabled", "yes")
        .start()
        .unwrap()
}

/// Full, incremental, a rewrite in between, and moments of all of it, under writers with a ledger.
fn goes_on(name: &str) {
    let server = server(name);
    let cluster = with_annotations(name);
    Mix::every_type().load(&cluster).unwrap();
    let bench = Bench::new();
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 3, lists: 30, accounts: 6 }).unwrap();
    ledger.wait_for_more(50).unwrap();
    let full = backup(&bench, &cluster, &[]);
    let bases = |manifest: &Value| -> Vec<String> {
        let shards = manifest["shards"].as_array().unwrap().iter();
        shards.map(|shard| shard["base"]["rdb"]["path"].as_str().unwrap().to_owned()).collect()
    };
    ledger.wait_for_more(50).unwrap();
    thread::park_timeout(Duration::from_millis(1500));
    let first_moment = now_ms();
    thread::park_timeout(Duration::from_millis(1200));
    let before = now_ms();
    let second = incremental(&bench, &cluster);
    let after = now_ms();
    assert_eq!(bases(&second), bases(&full), "no base was stored again");
    assert!(second["cut"].is_null(), "files share no cut");
    for (earlier, later) in
        full["shards"].as_array().unwrap().iter().zip(second["shards"].as_array().unwrap())
    {
        assert!(later["cut"]["offset"].as_u64() > earlier["cut"]["offset"].as_u64());
        assert_eq!(later["read"]["anchored"], true);
    }
    ledger.wait_for_more(50).unwrap();
    for node in cluster.nodes() {
        rewrite_now(node);
    }
    ledger.wait_for_more(50).unwrap();
    let refused = bench.slotkeep(
        &[
            &["backup", "--cluster", &seed(&cluster).to_string(), "--type", "incremental", "--no-fallback"],
            &FROM_AOF[..],
        ]
        .concat(),
    );
    refused.failed(24, "has rewritten its append-only file since backup");
    let third = backup(&bench, &cluster, &["--type", "incremental"]);
    assert_eq!(third["kind"], "full");
    assert_ne!(bases(&third), bases(&full));
    thread::park_timeout(Duration::from_millis(1500));
    let second_moment = now_ms();
    thread::park_timeout(Duration::from_millis(1200));
    let account = ledger.stop(&cluster).unwrap();
    let last = incremental(&bench, &cluster);
    // Byte for byte, with the writers stopped.
    for shard in last["shards"].as_array().unwrap() {
        let node = cluster.nodes().iter().find(|node| node.addr().to_string() == shard["source"]).unwrap();
        assert_eq!(stored_log(&bench, shard), without_annotations(&newest_increment(node)));
    }
    // Nothing was written: a moment that only the backup tells of is restored all the same.
    thread::park_timeout(Duration::from_millis(300));
    let idle_moment = now_ms();
    let idle = incremental(&bench, &cluster);
    assert_eq!(idle["shards"][0]["cut"], last["shards"][0]["cut"]);
    let program = engine(name);
    bench.same_data(seed(&cluster), &["--engine", &program]);
    let listed = bench.slotkeep(&["list"]).json();
    // Before the rewrite, and from then on.
    assert_eq!(listed["restorable"][0]["moments"].as_array().unwrap().len(), 2, "{listed}");
    let proved = bench.slotkeep(&["verify", "--depth", "structure"]);
    assert_eq!(proved.code, 0, "{}", proved.stdout);
    drop(cluster);

    check_moment(&bench, &server, &account, "first", first_moment);
    check_moment(&bench, &server, &account, "second", second_moment);
    check_moment(&bench, &server, &account, "idle", idle_moment);
    let id = second["id"].as_str().unwrap();
    check(&bench, &server, &account, "backup", &["--backup", id], (before, after));
    // What was written between the last backup before the rewrite and the rewrite is in no log.
    let gone = jiff::Timestamp::from_millisecond(after + 1).unwrap().to_string();
    bench.restore("gone", &free_addrs(2), &["--at", &gone]).failed(24, "can't be restored");
}

#[test]
fn the_file_of_redis_7_0_is_gone_on_with() {
    goes_on("redis-7.0");
}

#[test]
fn the_file_of_valkey_9_1_is_gone_on_with() {
    goes_on("valkey-9.1");
}

/// A server that dies leaves half a command, or half a transaction, cuts it off when it starts, and goes on in the same file. Another file under
/// the same name is not taken for it, nor is one taken for whole that holds a transaction which never ends.
#[test]
fn a_file_goes_on_after_the_server_died_within_a_command() {
    let cluster = ClusterBuilder::new(server("redis-7.0"))
        .primaries(1)
        .config("appendonly", "yes")
        .config("appendfsync", "always")
        .config("appendfsync", "always")
        .start()
        .unwrap();
    let node = &cluster.nodes()[0];
    let set = |key: &str| node.client().unwrap().command(&["SET", key, "x"]).unwrap();
    let program = engine("redis-7.0");
    set("one");
    let bench = Bench::new();
    let full = backup(&bench, &cluster, &[]);
    let (multi, ghost): (&[u8], &[u8]) =
        (b"*1\r\n$5\r\nMULTI\r\n", b"*3\r\n$3\r\nSET\r\n$5\r\nghost\r\n$1\r\nx\r\n");
    let die_with = |tail: &[u8], then: &str| {
        node.kill().unwrap();
        let file = newest_increment(node);
        std::fs::OpenOptions::new().append(true).open(file).unwrap().write_all(tail).unwrap();
        node.start().unwrap();
        cluster.wait_ok().unwrap();
        set(then);
    };
    for (number, tail) in [ghost[..20].to_vec(), [multi, ghost].concat()].iter().enumerate() {
        die_with(tail, &format!("then:{number}"));
        let next = incremental(&bench, &cluster);
        assert_eq!(next["shards"][0]["base"], full["shards"][0]["base"]);
        assert_eq!(stored_log(&bench, &next["shards"][0]), std::fs::read(newest_increment(node)).unwrap());
        bench.same_data(seed(&cluster), &["--engine", &program]);
    }
    // Of both at once it cuts off the half command alone.
    die_with(&[multi, ghost, &ghost[..20]].concat(), "lost");
    let seed = seed(&cluster).to_string();
    let full_again = [&["backup", "--cluster", &seed][..], &FROM_AOF[..]].concat();
    let again = [&full_again[..], &["--type", "incremental", "--no-fallback"]].concat();
    for refused in [&again, &full_again] {
        bench.slotkeep(refused).failed(23, "a transaction that does not end");
    }
    rewrite_now(node);
    bench.slotkeep(&full_again).json();
    set("three");
    incremental(&bench, &cluster);
    bench.same_data(node.addr(), &["--engine", &program]);

    // What had been read is lost: the file is shorter, and then it is another one of that length.
    let file = newest_increment(node);
    let length = std::fs::metadata(&file).unwrap().len();
    node.kill().unwrap();
    let three = b"*3\r\n$3\r\nSET\r\n$5\r\nthree\r\n$1\r\nx\r\n";
    let opened = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    opened.set_len(length - three.len() as u64).unwrap();
    node.start().unwrap();
    cluster.wait_ok().unwrap();
    bench.slotkeep(&again).failed(24, "its end was lost");
    set("other");
    set("other");
    bench.slotkeep(&again).failed(24, "does not hold what backup");
    // Over replication there is nothing to go on with, and it says what would.
    let replicated = ["backup", "--cluster", &seed, "--type", "incremental", "--no-fallback"];
    bench.slotkeep(&replicated).failed(24, "--files-from aof");
}

/// Append-only files, read while clients write and the server rewrites them: each backup holds what was acknowledged before it began, and nothing
/// that was written after it ended; with nobody writing it is the cluster.
#[test]
fn append_only_files_are_read_while_they_are_rewritten() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .acl_user(
            USER,
            "on >secret -@all +ping +info +time +cluster|nodes +config|get +module|list +acl|list",
        )
        .config("appendonly", "yes")
        .config("appendfsync", "always")
        .config("aof-timestamp-enabled", "yes")
        .start()
        .unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let place = Place::new();
    let program = engine("valkey-9.1");
    let take = |code: i32| {
        let arguments = ["--source", "files", "--files-from", "aof", "--engine", &program];
        place.backup(&cluster, &arguments).expect_code(code)
    };
    let writer = Writer::start(&cluster, 50).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let rewriting = rewrite(&cluster, Arc::clone(&stop));
    for _ in 0..2 {
        writer.wait_for_more(200).unwrap();
        let before = writer.acknowledged();
        let manifest = take(0).json();
        // One more may have been written than was acknowledged.
        let after = writer.acknowledged() + 1;
        let read = &manifest["shards"][0]["read"];
        assert_eq!((&read["source"], &read["anchored"]), (&"aof".into(), &true.into()));
        place.run(&["merge", "--engine", &program]).expect_code(0);
        let newest = (0..50).map(|number| {
            let key = format!("writer:{number}");
            let value = place.run(&["get", "latest", &key]).expect_code(0).json()["value"].clone();
            value.as_str().unwrap().parse::<u64>().unwrap()
        });
        let newest = newest.max().unwrap();
        assert!((before..=after).contains(&newest), "{before} <= {newest} <= {after}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(rewriting.join().unwrap() > 1, "it rewrote meanwhile");
    writer.stop();
    take(0);
    same_as(&place, &cluster, &program);
    let sound = place.run(&["verify", "--depth", "structure"]).expect_code(0).json();
    assert_eq!(sound["findings"].as_array().unwrap().len(), 0, "{sound}");

    // Without a base that is an RDB, and without an append-only file.
    let mut client = cluster.nodes()[0].client().unwrap();
    client.command(&["CONFIG", "SET", "aof-use-rdb-preamble", "no"]).unwrap();
    client.command(&["BGREWRITEAOF"]).unwrap();
    let folded = take(0).json();
    assert_eq!(folded["shards"][0]["read"]["anchored"], false);
    let refused = place.backup(
        &cluster,
        &["--type", "incremental", "--no-fallback", "--source", "files", "--files-from", "aof"],
    );
    assert!(refused.expect_code(24).stderr.contains("aof-use-rdb-preamble"));
    // Commands don't say all of a stream that an RDB does: it is what the server itself loads from its file.
    cluster.nodes()[0].restart().unwrap();
    cluster.wait_ok().unwrap();
    place.same_as(&addr(&cluster));
    let mut client = cluster.nodes()[0].client().unwrap();
    client.command(&["CONFIG", "SET", "appendonly", "no"]).unwrap();
    assert!(take(32).stderr.contains("keeps no append-only file"));
}

/// One that was never rewritten: its base is empty, and Redis does not count it.
#[test]
fn an_append_only_file_that_was_never_rewritten() {
    let cluster = ClusterBuilder::new(server("redis-7.0"))
        .primaries(2)
        .acl_user(USER, RULES)
        .config("appendonly", "yes")
        .config("appendfsync", "always")
        .start()
        .unwrap();
    let mut client = cluster.client().unwrap();
    for number in 0..100 {
        client.command(&["SET", &format!("key:{number}"), "x", "PXAT", "4000000000123"]).unwrap();
    }
    let place = Place::new();
    let program = engine("redis-7.0");
    let from_aof = ["--source", "files", "--files-from", "aof", "--engine", &program];
    place.backup(&cluster, &from_aof).expect_code(0);
    same_as(&place, &cluster, &program);
    // Each shard to its own end, though nothing tells the time but the backup.
    let merged = place.run(&["merge", "--engine", &program]).expect_code(0).json();
    assert_eq!((&merged["kind"], &merged["digest"]["keys"]), (&"merged".into(), &100.into()));
    same_as(&place, &cluster, &program);
    // The folders of each other: the lengths tell.
    client.command(&["SET", "key:1", "longer"]).unwrap();
    let nodes = cluster.nodes();
    let dir = |node: usize, of: usize| format!("{}={}", nodes[node].addr(), nodes[of].dir().display());
    let swapped = [dir(0, 1), dir(1, 0)];
    let run = place
        .backup(&cluster, &[&from_aof[..], &["--data-dir", &swapped[0], "--data-dir", &swapped[1]]].concat());
    assert!(run.expect_code(1).stderr.contains("are not those that"));
}

/// Has the server rewrite its append-only file again and again; gives how often it did.
fn rewrite(cluster: &Cluster, stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let mut client = cluster.nodes()[0].client().unwrap();
    thread::spawn(move || {
        let mut rewritten = 0;
        while !stop.load(Ordering::Relaxed) {
            client.command(&["BGREWRITEAOF"]).ok();
            let done = wait_for(LIMIT, "the rewrite", || {
                let running = client.info_field("persistence", "aof_rewrite_in_progress")?;
                if running.as_deref() == Some("0") { Ok(()) } else { Err(NotYet::because("it runs")) }
            });
            done.unwrap();
            rewritten += 1;
            // Rewrites that follow one another at once would never leave a moment in which the files belong together.
            thread::park_timeout(Duration::from_millis(150));
        }
        rewritten
    })
}
