//! Folding logs of real servers: what comes out is what the server itself had at that offset.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what does not hold fails the test"
)]

mod failures;
mod nodes;
mod recorder;
mod workload;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slotkeep_format::decode_digest;
use slotkeep_format::manifest::{BaseRecord, ShardRecord};
use slotkeep_jobs::archive::SealPolicy;
use slotkeep_jobs::backup::{BackupOptions, Prefer, backup, plan};
use slotkeep_jobs::discover::discover;
use slotkeep_jobs::engine::{EngineNeeds, EngineOptions, choose_engine};
use slotkeep_jobs::fold::{FoldDestination, FoldInput, FoldProgress, Folded, fold};
use slotkeep_jobs::link::{Feed, Snapshot, TimeOf};
use slotkeep_jobs::net::{Connector, ConnectorOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng};
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::source::MemorySource;
use slotkeep_jobs::{Context, Error};
use slotkeep_model::{DatasetDigest, NodeAddr, ReplOffset};
use slotkeep_rdb::{Digester, Level, Parser};
use slotkeep_repo::{Location, Repository};
use slotkeep_testkit::{Cluster, ClusterBuilder, Node, Server, servers};
use tempfile::TempDir;

use recorder::{Recorder, Recording};
use workload::Workload;

fn context() -> Context {
    Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
        stop: tokio_util::sync::CancellationToken::new(),
    }
}

struct Place {
    context: Context,
    repository: Repository,
    folder: TempDir,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let context = context();
        let location = Location::Folder(folder.path().join("repo"));
        let repository = Repository::init(&location, "0".repeat(32), context.clock.now()).await.unwrap();
        Self { context, repository, folder }
    }

    /// The objects of the repository, but for the file that makes it one.
    fn objects(&self) -> Vec<PathBuf> {
        let mut waiting = vec![self.folder.path().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = waiting.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else if !path.ends_with("slotkeep.json") {
                    files.push(path);
                }
            }
        }
        files
    }

    /// The server's dataset, taken as a backup does.
    async fn truth(&self, cluster: &Cluster) -> ShardRecord {
        let addr = NodeAddr::new("127.0.0.1", cluster.node(0).unwrap().port());
        let discovery = discover(&self.context, &[addr]).await.unwrap();
        let plan = plan(&self.context, discovery, Prefer::Primary, false).await.unwrap();
        let options = self.bases_only(1);
        let progress = [ShardProgress::new("all".to_owned())];
        let manifest = backup(&self.context, &self.repository, &plan, &options, &progress).await.unwrap();
        manifest.shards.into_iter().next().unwrap()
    }

    /// A backup that ends at its bases.
    fn bases_only(&self, jobs: usize) -> BackupOptions {
        BackupOptions {
            cluster: "c".to_owned(),
            jobs,
            jobs_per_host: jobs,
            prefer: Prefer::Primary,
            include_secrets: false,
            cut: None,
            spool: self.folder.path().join("spool"),
            spool_limit_bytes: u64::MAX,
            seal: SealPolicy::default(),
        }
    }

    async fn digest(&self, base: &BaseRecord) -> DatasetDigest {
        assert_eq!(base.not_interpreted, None);
        let bytes = self.repository.read(base.digest.as_ref().unwrap(), 1 << 20).await.unwrap();
        decode_digest(&bytes).unwrap().0
    }

    /// When each key ends.
    async fn ends(&self, base: &BaseRecord) -> HashMap<String, Option<i64>> {
        let mut object = self.repository.framed(&base.rdb).await.unwrap();
        let (mut parser, mut digester) = (Parser::new(Level::Element), Digester::new());
        let mut ends = HashMap::new();
        while let Some(piece) = object.next().await.unwrap() {
            let mut piece = piece.as_slice();
            while let Some(event) = parser.next(&mut piece).unwrap() {
                if let Some(key) = digester.event(&event) {
                    ends.insert(String::from_utf8(digester.key().to_vec()).unwrap(), key.expiry_ms);
                }
            }
        }
        ends
    }

    async fn fold(
        &self,
        server: &Server,
        source: &ShardRecord,
        recording: &Recording,
        cut: ReplOffset,
        time_of: Option<TimeOf>,
    ) -> Result<Folded, Error> {
        let pieces = |bytes: &[u8]| MemorySource::new(bytes.chunks(70_001).map(Bytes::copy_from_slice));
        let base = Snapshot {
            source: pieces(&recording.rdb),
            len_bytes: recording.rdb.len() as u64,
            history: recording.history.clone(),
            offset: recording.offset,
        };
        let needs = EngineNeeds { rdb: source.base.rdb_version, source: source.server.version() };
        let options =
            EngineOptions { program: Some(server.program().to_owned()), ..EngineOptions::default() };
        let engine = choose_engine(&options, &needs).await?;
        let input = FoldInput { feed: Feed { base, log: pieces(&recording.stream), cut }, needs, time_of };
        let destination =
            FoldDestination { repository: &self.repository, cluster: "c", backup_id: "folded-1" };
        let progress = FoldProgress::new("all".to_owned());
        fold(&self.context, &engine, &options, input, &destination, &progress).await
    }
}

fn start(server: &Server) -> Cluster {
    ClusterBuilder::new(server.clone())
        .primaries(1)
        .cluster_mode(false)
        .config("repl-diskless-sync-delay", "0")
        .config("hz", "100")
        .start()
        .unwrap()
}

/// Waits until what ends soon has ended: before the engine sees it.
async fn until_it_has_expired(node: &Node) {
    tokio::time::timeout(Duration::from_mins(1), async {
        let mut client = node.client().unwrap();
        while client.command(&["EXISTS", "e:text:1"]).unwrap().int().unwrap() == 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// Records a working server, takes its dataset at a moment, and folds the recording up to that moment.
async fn folded_equals_the_server(name: &str, expiry: bool) {
    let server = servers::require(name).unwrap();
    let cluster = start(&server);
    let place = Place::new().await;
    let node = cluster.node(0).unwrap();
    let workload = Workload::start(node.endpoint(), expiry);
    workload.wait_for_rounds(60);
    let recorder = Recorder::start(node.addr());
    workload.wait_for_rounds(40);
    // Not while a snapshot is being made: it would be given up.
    node.client().unwrap().command(&["FLUSHALL", "ASYNC"]).unwrap();
    workload.wait_for_rounds(80);
    let truth = place.truth(&cluster).await;
    let refused = workload.stop();
    let cut = ReplOffset(truth.offset);
    let recording = recorder.stop_at(cut);
    assert_eq!(recording.history, truth.history);
    // A group that is there already, and what older servers do not know.
    let known = ["HEXPIRE", "HGETEX", "HPERSIST", "HPEXPIRE", "HPEXPIREAT", "HSETEX", "XGROUP"];
    let known = if server.is_modern() { &known[..] } else { &["FUNCTION", "LMPOP", "SPUBLISH", "XGROUP"] };
    let unexpected: Vec<_> = refused.iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(unexpected.is_empty(), "{name} refuses {unexpected:?}");
    assert!(recording.stream.len() > 500_000, "{name}: {} bytes of log", recording.stream.len());
    if expiry {
        until_it_has_expired(node).await;
    }
    // Without expiry no time is asked for.
    let no_time: TimeOf = Box::new(|offset| panic!("the time at {offset} is asked for"));
    let time_of = Some(no_time).filter(|_| !server.is_modern());
    let folded = place.fold(&server, &truth, &recording, cut, time_of).await.unwrap();
    assert_eq!((folded.offset, &folded.history), (cut, &truth.history));
    assert!(folded.left_out_commands > 0, "no GETACK and no PUBLISH was in the log");
    let (ours, theirs) = (place.digest(&folded.base).await, place.digest(&truth.base).await);
    let differing: Vec<_> = (0..16384)
        .filter_map(slotkeep_model::Slot::new)
        .filter(|slot| ours.slot(*slot) != theirs.slot(*slot))
        .collect();
    assert!(differing.is_empty(), "{name}: slots {differing:?} differ");
    assert_eq!(ours.functions, theirs.functions);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_is_what_redis_7_0_had() {
    folded_equals_the_server("redis-7.0", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_is_what_redis_8_2_had() {
    folded_equals_the_server("redis-8.2", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_is_what_valkey_8_1_had() {
    folded_equals_the_server("valkey-8.1", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_is_what_valkey_9_1_had() {
    folded_equals_the_server("valkey-9.1", true).await;
}

/// Redis 6.2 passes on how long keys are to live: they live as long after a fold as they would have.
#[tokio::test(flavor = "multi_thread")]
async fn a_fold_is_what_redis_6_2_had() {
    folded_equals_the_server("redis-6.2", false).await;

    let server = servers::require("redis-6.2").unwrap();
    let cluster = start(&server);
    let place = Place::new().await;
    let node = cluster.node(0).unwrap();
    let recorder = Recorder::start(node.addr());
    let mut client = node.client().unwrap();
    client.command(&["SET", "dumped", "value"]).unwrap();
    let dump = client.command(&["DUMP", "dumped"]).unwrap().bytes().unwrap().to_vec();
    let long = b"1000000".as_slice();
    let commands: [&[&[u8]]; 7] = [
        &[b"SET", b"px", b"v", b"PX", long],
        &[b"SETEX", b"setex", b"1000", b"v"],
        &[b"RESTORE", b"restored", long, &dump],
        &[b"RESTORE", b"replaced", long, &dump, b"REPLACE"],
        &[b"RESTORE", b"absolute", b"4102444800000", &dump, b"ABSTTL"],
        &[b"SET", b"later", b"v"],
        &[b"EXPIRE", b"later", b"1000"],
    ];
    let before_ms = u64::try_from(place.context.clock.now().as_millisecond()).unwrap();
    for command in commands {
        client.command(command).unwrap();
    }
    let truth = place.truth(&cluster).await;
    let cut = ReplOffset(truth.offset);
    let recording = recorder.stop_at(cut);
    let refused = place.fold(&server, &truth, &recording, cut, None).await.unwrap_err();
    assert!(refused.to_string().contains("expiry times are relative"), "{refused}");
    let times = recording.times.clone();
    // The first moment at which a byte had been received.
    let time_of = move |offset: ReplOffset| times.iter().find(|(at, _)| *at >= offset.0).unwrap().1;
    let folded = place.fold(&server, &truth, &recording, cut, Some(Box::new(time_of))).await.unwrap();
    let ends = place.ends(&folded.base).await;
    assert_eq!(ends.len(), 7, "{ends:?}");
    assert_eq!(ends["dumped"], None);
    assert_eq!(ends["absolute"], Some(4_102_444_800_000));
    for key in ["px", "setex", "restored", "replaced", "later"] {
        let left_ms = u64::try_from(ends[key].unwrap()).unwrap() - before_ms;
        assert!((1_000_000..1_060_000).contains(&left_ms), "{key}: {left_ms}");
    }
}
