//! New nodes that follow us through a base and a log, and take their slots over at the cut.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use slotkeep_format::Manifest;
use slotkeep_jobs::backup::{Prefer, backup, plan};
use slotkeep_jobs::discover::discover;
use slotkeep_jobs::link::{Feed, Snapshot};
use slotkeep_jobs::log::point::Point;
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::restore::files::{self, FilesOptions, Links, Source, StartedNode, start_following};
use slotkeep_jobs::source::MemorySource;
use slotkeep_jobs::stock_server::StockServer;
use slotkeep_model::{NodeAddr, ReplOffset};
use slotkeep_testkit::data::{Mix, Writer};
use slotkeep_testkit::{ClusterBuilder, servers};

use super::{Place, Recorder, Recording};

/// Nodes that end with the test.
struct Started(Vec<StartedNode>);

impl Drop for Started {
    fn drop(&mut self) {
        for node in &self.0 {
            Command::new("kill").args(["-9", &node.pid.to_string()]).status().unwrap();
        }
    }
}

/// Addresses whose ports and bus ports are free: apart from those that the testkit gives its nodes and their buses, and each given once.
fn free_addrs(count: usize) -> Vec<NodeAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 700).unwrap();
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let ports = std::iter::repeat_with(|| 22_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 700);
    ports
        .take(700)
        .filter(|port| free(*port) && free(port + 10_000))
        .take(count)
        .map(|port| NodeAddr::new("127.0.0.1", port))
        .collect()
}

async fn full_backup(place: &Place, node: NodeAddr) -> Manifest {
    let discovery = discover(&place.context, &[node]).await.unwrap();
    let plan = plan(&place.context, discovery, Prefer::Primary, false).await.unwrap();
    let options = place.bases_only(3);
    let progress: Vec<_> = plan.shards.iter().map(|_| ShardProgress::new(String::new())).collect();
    backup(&place.context, &place.repository, &plan, &options, &progress).await.unwrap()
}

fn feed(recording: &Recording, cut: u64) -> Feed<MemorySource, MemorySource> {
    let pieces = |bytes: &[u8]| MemorySource::new(bytes.chunks(70_001).map(Bytes::copy_from_slice));
    let base = Snapshot {
        source: pieces(&recording.rdb),
        len_bytes: recording.rdb.len() as u64,
        history: recording.history.clone(),
        offset: recording.offset,
    };
    Feed { base, log: pieces(&recording.stream), cut: ReplOffset(cut) }
}

/// Records three working shards, and brings them back at the moment of a backup, which their recordings go up to.
async fn nodes_follow_to_the_cut(name: &str) {
    let server = servers::require(name).unwrap();
    let cluster =
        ClusterBuilder::new(server.clone()).config("repl-diskless-sync-delay", "0").start().unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let recorders: Vec<_> =
        cluster.nodes().iter().map(|node| (node.port(), Recorder::start(node.addr()))).collect();
    let writer = Writer::start(&cluster, 500).unwrap();
    writer.wait_for_more(2000).unwrap();
    let place = Place::new().await;
    let manifest = full_backup(&place, NodeAddr::new("127.0.0.1", cluster.nodes()[0].port())).await;
    writer.wait_for_more(500).unwrap();
    writer.stop();
    let mut recordings: Vec<_> = recorders
        .into_iter()
        .map(|(port, recorder)| {
            let shard = manifest.shards.iter().find(|shard| shard.source.port() == port).unwrap();
            (port, recorder.stop_at(ReplOffset(shard.offset)))
        })
        .collect();

    let links = Links::bind(Ipv4Addr::LOCALHOST.into(), 3).await.unwrap();
    let options = FilesOptions {
        folder: place.folder.path().join("new"),
        nodes: free_addrs(3),
        links: links.addrs(),
        ..FilesOptions::default()
    };
    let point = Point::of_bases(&manifest).unwrap();
    let plan = files::plan(&place.context, &point, &options).await.unwrap();
    let source = Source { repository: place.repository.clone(), past: None };
    files::apply(&place.context, &source, &plan, &[]).await.unwrap();
    let feeds = manifest.shards.iter().map(|shard| {
        let at = recordings.iter().position(|(port, _)| *port == shard.source.port()).unwrap();
        let (_, recording) = recordings.remove(at);
        assert!(recording.stream.len() > 10_000, "{} bytes of log", recording.stream.len());
        feed(&recording, shard.offset)
    });
    let feeds: Vec<_> = feeds.collect();
    let progress: Vec<_> = feeds.iter().map(|_| ShardProgress::new(String::new())).collect();
    let program = StockServer::at(server.program()).await.unwrap();
    let started =
        start_following(&place.context, &plan, &program, (links, feeds), &progress, async { Ok(()) }, |_| ());
    let started = Started(started.await.unwrap());
    assert_eq!(started.0.len(), 3);
    let after = full_backup(&place, options.nodes[0].clone()).await;
    assert_eq!(after.digest, manifest.digest);
    for shard in &after.shards {
        let before = manifest.shards.iter().find(|before| before.slots == shard.slots).unwrap();
        assert_eq!(before.base.keys, shard.base.keys);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_nodes_of_redis_7_0_follow_to_the_cut() {
    nodes_follow_to_the_cut("redis-7.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_nodes_of_valkey_9_1_follow_to_the_cut() {
    nodes_follow_to_the_cut("valkey-9.1").await;
}
