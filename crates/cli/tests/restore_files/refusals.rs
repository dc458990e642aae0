//! What can't be restored: each refusal has its exit code, and leaves nothing behind.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use slotkeep_jobs::log::Past;
use slotkeep_jobs::log::point::{Aim, resolve};
use slotkeep_jobs::net::{Connector, ConnectorOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng};
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::restore::files::{FilesOptions, Source, apply, plan};
use slotkeep_jobs::{Context, ErrorKind};
use slotkeep_repo::{BackupSelector, Location, Repository};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Endpoint, servers};

use crate::harness::{Bench, free_addrs, seed};

fn two_shards() -> (Cluster, Bench) {
    let cluster = ClusterBuilder::new(servers::require("redis-7.0").unwrap()).primaries(2).start().unwrap();
    Mix::bulk(3 << 20).load(&cluster).unwrap();
    let bench = Bench::new();
    bench.backup(seed(&cluster), &[]);
    (cluster, bench)
}

#[test]
fn wrong_inputs_are_refused_before_anything_is_written() {
    let (cluster, bench) = two_shards();
    let nodes = free_addrs(2);
    let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
    let refuse = |nodes: &[SocketAddr], options: &[&str], code: i32, words: &str| {
        bench.restore("new", nodes, options).failed(code, words);
        assert!(bench.restored().is_empty(), "{options:?}");
    };
    refuse(&nodes[..1], &[], 2, "needs 2 nodes (2 primaries, 0 replicas), but 1 addresses were given");
    refuse(&free_addrs(3), &[], 2, "needs 2 nodes");
    refuse(&[nodes[0], nodes[0]], &[], 2, "would be used twice");
    refuse(&[nodes[0], addr("127.0.0.1:60000")], &[], 2, "bus port");
    refuse(&[addr("127.0.0.1:7000"), addr("127.0.0.1:17000")], &[], 2, "port 17000 would be used twice");
    refuse(&[nodes[0], addr("0.0.0.0:7000")], &[], 2, "other nodes can't reach it");
    refuse(&nodes, &["--backup", "20000101T000000Z-0000"], 22, "there is no such backup");
    refuse(&nodes, &["--for-server", "redis-6.2.14"], 32, "does not load the snapshot");
    refuse(&nodes, &["--for-server", "memcached-1.6"], 2, "expected redis or valkey");
    refuse(&nodes, &["--start", "--server", "/bin/true"], 2, "no Redis or Valkey server");
    let old = servers::require("redis-6.2").unwrap();
    refuse(
        &nodes,
        &["--start", "--server", old.program().to_str().unwrap()],
        32,
        "Redis 6.2.14 does not load",
    );
    let program = cluster.server().program().to_str().unwrap();
    let taken: Vec<SocketAddr> = cluster.nodes().iter().map(slotkeep_testkit::Node::addr).collect();
    refuse(&taken, &["--start", "--server", program], 31, "is the address of a node of the old cluster");
    let busy = std::net::TcpListener::bind(nodes[1]).unwrap();
    refuse(&nodes, &["--start", "--server", program], 2, "can't be started here");
    drop(busy);

    let report = bench.restore("new", &nodes, &["--dry-run"]).json();
    assert_eq!(report["dry_run"], true);
    assert_eq!(report["nodes"].as_array().unwrap().len(), 2);
    assert!(bench.restored().is_empty());
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let (_cluster, bench) = two_shards();
    let nodes = free_addrs(2);
    fs::create_dir(bench.path("new")).unwrap();
    fs::write(bench.path("new").join("mine"), "mine").unwrap();
    bench.restore("new", &nodes, &[]).failed(30, "is not empty");
    assert_eq!(fs::read_to_string(bench.path("new").join("mine")).unwrap(), "mine");
    fs::write(bench.path("file"), "mine").unwrap();
    bench.restore("file", &nodes, &[]).failed(30, "is not a folder");
    fs::create_dir(bench.path("empty")).unwrap();
    bench.restore("empty", &nodes, &[]).json();
    let folder = bench.path("empty").join(format!("127.0.0.1-{}", nodes[0].port()));
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["dump.rdb", "nodes.conf", "redis.conf", "users.acl"]);
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("users.acl"), mode("redis.conf")), (0o600, 0o600));
}

#[test]
fn damaged_objects_are_found_and_nothing_is_left_behind() {
    let (_cluster, bench) = two_shards();
    let nodes = free_addrs(2);
    let object = bench.object("rdb.zst");
    let whole = fs::read(&object).unwrap();
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    let refuse = |bytes: &[u8]| {
        fs::write(&object, bytes).unwrap();
        bench.restore("new", &nodes, &[]).failed(23, "damaged");
        assert!(bench.restored().is_empty());
    };
    for place in [10, whole.len() / 2, whole.len() - 3] {
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        refuse(&flipped);
    }
    refuse(&whole[..whole.len() - 1]);
    refuse(&whole[..whole.len() / 2]);
    refuse(&[]);
    fs::remove_file(&object).unwrap();
    bench.restore("new", &nodes, &[]).failed(23, "does not exist");
    assert!(bench.restored().is_empty());
    fs::write(&object, &whole).unwrap();
    bench.restore("new", &nodes, &[]).json();
}

#[test]
fn when_a_server_dies_at_its_start_the_others_are_stopped() {
    let (cluster, bench) = two_shards();
    let nodes = free_addrs(2);
    let script = bench.path("server");
    let text = format!(
        "#!/bin/sh\ncase $1 in *-{}/*) echo this machine is too small; exit 3;; esac\nexec {} \"$@\"\n",
        nodes[1].port(),
        cluster.server().program().display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let run = bench.restore("new", &nodes, &["--start", "--server", script.to_str().unwrap()]);
    run.failed(1, "this machine is too small");
    run.failed(1, bench.path("new").to_str().unwrap());
    run.failed(1, "exit status: 3");
    assert!(Client::connect(&Endpoint::plain(nodes[0])).is_err());
}

#[tokio::test]
async fn a_restore_that_is_stopped_leaves_nothing_behind() {
    let (_cluster, bench) = tokio::task::spawn_blocking(two_shards).await.unwrap();
    let location: Location = bench.repo().to_str().unwrap().parse().unwrap();
    let repository = Repository::open(&location).await.unwrap();
    let manifest = repository.find("main", &BackupSelector::Latest).await.unwrap();
    let context = Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let options = FilesOptions {
        folder: bench.path("new"),
        nodes: free_addrs(2).iter().map(|addr| addr.to_string().parse().unwrap()).collect(),
        ..FilesOptions::default()
    };
    let past = Arc::new(Past::load(&repository, "main").await.unwrap());
    let point = resolve(&past, &Aim::Backup(Box::new(manifest))).await.unwrap();
    let plan = plan(&context, &point, &options).await.unwrap();
    context.stop.cancel();
    let progress = [ShardProgress::new("a".to_owned()), ShardProgress::new("b".to_owned())];
    let source = Source { repository, past: Some(past) };
    let stopped = apply(&context, &source, &plan, &progress).await.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Interrupted);
    assert!(bench.restored().is_empty());
    assert!(!Path::new(&bench.path("new")).exists());
}
