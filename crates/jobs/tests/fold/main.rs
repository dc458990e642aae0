//! Folding logs of real servers: what comes out is what the server itself had at that offset.

mod recorder;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slotkeep_format::decode_digest;
use slotkeep_format::manifest::{BaseRecord, ShardRecord};
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
use slotkeep_repo::{Location, Repository};
use slotkeep_testkit::{Cluster, ClusterBuilder, Server, servers};
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
    _folder: TempDir,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let context = context();
        let location = Location::Folder(folder.path().join("repo"));
        let repository = Repository::init(&location, "0".repeat(32), context.clock.now()).await.unwrap();
        Self { context, repository, _folder: folder }
    }

    /// The server's dataset, taken as a backup does.
    async fn truth(&self, cluster: &Cluster) -> ShardRecord {
        let addr = NodeAddr::new("127.0.0.1", cluster.node(0).unwrap().port());
        let discovery = discover(&self.context, &[addr]).await.unwrap();
        let plan = plan(&self.context, discovery, Prefer::Primary, false).await.unwrap();
        let options =
            BackupOptions { cluster: "c".to_owned(), jobs: 1, jobs_per_host: 1, include_secrets: false };
        let progress = [ShardProgress::new("all".to_owned())];
        let manifest = backup(&self.context, &self.repository, &plan, &options, &progress).await.unwrap();
        manifest.shards.into_iter().next().unwrap()
    }

    async fn digest(&self, base: &BaseRecord) -> DatasetDigest {
        assert_eq!(base.not_interpreted, None);
        let bytes = self.repository.read(base.digest.as_ref().unwrap(), 1 << 20).await.unwrap();
        decode_digest(&bytes).unwrap().0
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

/// Records a working server, takes its dataset at a moment, and folds the recording up to that moment.
async fn folded_equals_the_server(name: &str, expiry: bool) {
    let server = servers::require(name).unwrap();
    let cluster = start(&server);
    let place = Place::new().await;
    let node = cluster.node(0).unwrap();
    let workload = Workload::start(node.endpoint(), expiry);
    workload.wait_for_rounds(60);
    let recorder = Recorder::start(node.addr());
    workload.wait_for_rounds(120);
    let truth = place.truth(&cluster).await;
    let refused = workload.stop();
    let cut = ReplOffset(truth.offset);
    let recording = recorder.stop_at(cut);
    assert_eq!(recording.history, truth.history);
    assert!(recording.stream.len() > 500_000, "{name}: {} bytes of log", recording.stream.len());
    // What ends soon has ended before the engine sees it.
    tokio::time::timeout(Duration::from_secs(10), async {
        let mut client = node.client().unwrap();
        while client.command(&["EXISTS", "e:text:1"]).unwrap().int().unwrap() == 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let folded = place.fold(&server, &truth, &recording, cut, None).await.unwrap();
    println!("{name}: refused {refused:?}, left out {}", folded.left_out_commands);
    assert_eq!((folded.offset, &folded.history), (cut, &truth.history));
    assert!(folded.left_out_commands > 0, "no GETACK and no PUBLISH was in the log");
    let (ours, theirs) = (place.digest(&folded.base).await, place.digest(&truth.base).await);
    let differing: Vec<_> = (0..16384)
        .filter_map(slotkeep_model::Slot::new)
        .filter(|slot| ours.slot(*slot) != theirs.slot(*slot))
        .collect();
    assert!(differing.is_empty(), "{name}: slots {differing:?} differ");
    assert_eq!(ours.functions, theirs.functions);
    assert!(folded.base.keys.unwrap() > 300);
    assert_eq!(folded.base.rdb_version, truth.base.rdb_version);
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
