//! A repository with everything in it: two full backups of a real cluster, a log behind the second with a failover in it, topologies, and
//! an incremental backup that ends inside the log. The log's bytes are made here; nothing of them but their form matters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use slotkeep_format::lineage::{HISTORY_VERSION, TOPOLOGY_VERSION};
use slotkeep_format::manifest::{
    BackupKind, ClusterCut, CutMethod, Manifest, ProductRecord, ServerRecord, ShardCut,
};
use slotkeep_format::{
    Depth, HistoryRecord, Parent, ShardState, TimeSample, Timeline, TopologyRecord, VerifyRecord,
};
use slotkeep_jobs::Context;
use slotkeep_jobs::engine::EngineOptions;
use slotkeep_jobs::net::{Connector, ConnectorOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng};
use slotkeep_jobs::verify::{DrillOptions, VerifyOptions, VerifyProgress, verify};
use slotkeep_model::ReplId;
use slotkeep_repo::{BackupSelector, Location, Repository, SegmentMeta};
use slotkeep_testkit::ClusterBuilder;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common::{server, slotkeep};

pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// The repository as it was made, and proved once; tests work on copies.
static MASTER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    make(&folder.path().join("repo"));
    folder
});

/// A copy of the repository.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&MASTER.path().join("repo"), &folder.path().join("repo"));
        Self { folder }
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    pub(crate) fn text(&self) -> String {
        self.repo().to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file of an object.
    pub(crate) fn object(&self, path: &str) -> PathBuf {
        self.repo().join(path)
    }

    pub(crate) fn open(&self) -> Repository {
        RUNTIME.block_on(self.open_async())
    }

    pub(crate) async fn open_async(&self) -> Repository {
        Repository::open(&Location::Folder(self.repo())).await.unwrap()
    }

    /// The ids of all backups, oldest first.
    pub(crate) fn backup_ids(&self) -> Vec<String> {
        let repository = self.open();
        RUNTIME.block_on(repository.backup_ids("main")).unwrap()
    }

    pub(crate) fn latest(&self) -> Manifest {
        let repository = self.open();
        RUNTIME.block_on(repository.find("main", &BackupSelector::Latest)).unwrap()
    }

    /// Verifies; the words of the error if the repository can't even be opened.
    pub(crate) fn verify(&self, options: &VerifyOptions) -> Result<VerifyRecord, String> {
        verify_at(&self.repo(), options)
    }

    /// Verifies with everything proved again.
    #[track_caller]
    pub(crate) fn again(&self, depth: Depth) -> VerifyRecord {
        self.verify(&VerifyOptions { again: true, ..options(depth) }).unwrap()
    }
}

/// Verifies the repository in that folder.
pub(crate) fn verify_at(repo: &Path, options: &VerifyOptions) -> Result<VerifyRecord, String> {
    let run = async {
        let repository =
            Repository::open(&Location::Folder(repo.to_owned())).await.map_err(|error| error.to_string())?;
        let progress = Arc::new(VerifyProgress::default());
        verify(&context(), &repository, options, &progress).await.map_err(|error| error.to_string())
    };
    RUNTIME.block_on(run)
}

pub(crate) fn options(depth: Depth) -> VerifyOptions {
    VerifyOptions {
        cluster: "main".to_owned(),
        depth,
        only: false,
        again: false,
        sample_percent: None,
        jobs: 2,
        captures: 2,
        engine: EngineOptions::default(),
        spool: std::env::temp_dir(),
        drill: DrillOptions { point: None, server: None, checks: None },
        live: None,
    }
}

pub(crate) fn context() -> Context {
    Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
        stop: tokio_util::sync::CancellationToken::new(),
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            let modified = entry.metadata().unwrap().modified().unwrap();
            std::fs::copy(entry.path(), &target).unwrap();
            // Otherwise every object would be a new one.
            std::fs::File::options().write(true).open(&target).unwrap().set_modified(modified).unwrap();
        }
    }
}

fn make(repo: &Path) {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(3).start().unwrap();
    let mut client = cluster.client().unwrap();
    let fill = |client: &mut slotkeep_testkit::ClusterClient, round: usize| {
        for number in 0..60 {
            let key = format!("key:{number}");
            client.command_on(key.as_bytes(), &["SET", &key, &format!("value {round} of {number}")]).unwrap();
            let hash = format!("hash:{number}");
            client.command_on(hash.as_bytes(), &["HSET", &hash, "field", &round.to_string()]).unwrap();
        }
        client.command_on(b"brief", &["SET", "brief", "x", "PXAT", "4000000000000"]).unwrap();
    };
    let address = cluster.nodes()[0].addr().to_string();
    for round in 0..2 {
        fill(&mut client, round);
        slotkeep(&["backup", "--quiet", "--repo", repo.to_str().unwrap(), "--cluster", &address])
            .expect_code(0);
    }
    leave_bases_alone(repo);
    RUNTIME.block_on(add_log(repo));
    slotkeep(&["verify", "--quiet", "--repo", repo.to_str().unwrap()]).expect_code(0);
}

/// Takes away what the backups have kept of the real stream: the log that comes in its place is short and known to the byte.
fn leave_bases_alone(repo: &Path) {
    for (path, bytes) in crate::common::files(repo) {
        let file = repo.join(&path);
        if path.contains("/log/") || path.contains("/topology/") || path.ends_with("history.json") {
            std::fs::remove_file(file).unwrap();
        } else if path.contains("/backups/") {
            let mut manifest = Manifest::parse(&bytes).unwrap();
            manifest.cut = None;
            manifest.shards.iter_mut().for_each(|shard| shard.cut = None);
            std::fs::write(file, manifest.render().unwrap()).unwrap();
        }
    }
}

/// A command as a stream carries it.
pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}

/// The bytes of one segment: a few writes and a transaction.
pub(crate) fn piece(number: u64) -> Vec<u8> {
    let mut bytes = if number == 0 { command(&["SELECT", "0"]) } else { Vec::new() };
    for write in 0..20 {
        bytes.extend(command(&["SET", &format!("key:{write}"), &format!("{number}")]));
    }
    for words in [&["MULTI"][..], &["INCR", "a"], &["INCR", "b"], &["EXEC"]] {
        bytes.extend(command(words));
    }
    bytes
}

pub(crate) fn commands_of(number: u64) -> u64 {
    24 + u64::from(number == 0)
}

/// What the record of a segment says, for a segment of that number that holds those bytes.
pub(crate) fn meta(number: u64, start: u64, bytes: u64) -> SegmentMeta {
    let mut times = Timeline::default();
    let at = 1_700_000_000_000 + i64::try_from(number).unwrap() * 1000;
    assert!(times.push(TimeSample { from_ms: at, until_ms: at + 1, offset: start }));
    assert!(times.push(TimeSample { from_ms: at + 500, until_ms: at + 501, offset: start + bytes - 1 }));
    SegmentMeta {
        database: (number > 0).then_some(0),
        commands: commands_of(number),
        source: "127.0.0.1:7000".parse().unwrap(),
        server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
        times,
    }
}

/// Writes a segment and gives the offset behind it.
pub(crate) async fn write_segment(repository: &Repository, history: &ReplId, start: u64, number: u64) -> u64 {
    let bytes = piece(number);
    let end = start + bytes.len() as u64;
    let mut writer = repository.create_segment("main", history, start..end).await.unwrap();
    writer.write(&bytes).await.unwrap();
    writer.finish(meta(number, start, bytes.len() as u64)).await.unwrap();
    end
}

async fn add_log(repo: &Path) {
    let repository = Repository::open(&Location::Folder(repo.to_owned())).await.unwrap();
    let mut manifest = repository.find("main", &BackupSelector::Latest).await.unwrap();
    let now = jiff::Timestamp::UNIX_EPOCH;
    let record = |history: &ReplId, parent, shard: &slotkeep_format::manifest::ShardRecord| HistoryRecord {
        format_version: HISTORY_VERSION,
        history: history.clone(),
        parent,
        slots: shard.slots.clone(),
        source: shard.source.clone(),
        first_seen_at: now,
    };
    let letters = ["d", "e", "f"];
    let mut states = Vec::new();
    for (shard, letter) in manifest.shards.iter_mut().zip(letters) {
        let history = shard.history.clone();
        repository.put_history("main", &record(&history, None, shard)).await.unwrap();
        let mut at = shard.offset + 1;
        for number in 0..3 {
            at = write_segment(&repository, &history, at, number).await;
        }
        let child: ReplId = letter.repeat(40).parse().unwrap();
        let parent = Some(Parent { history, fork: at - 1 });
        repository.put_history("main", &record(&child, parent, shard)).await.unwrap();
        for number in 3..6 {
            at = write_segment(&repository, &child, at, number).await;
        }
        // The backup ends inside the last segment.
        let left = piece(5).len() as u64 - (command(&["SET", "key:0", "5"]).len() as u64);
        shard.cut = Some(ShardCut { history: child.clone(), offset: at - 1 - left });
        states.push(ShardState {
            slots: shard.slots.clone(),
            importing: slotkeep_model::SlotSet::default(),
            migrating: slotkeep_model::SlotSet::default(),
            unfollowed: slotkeep_model::SlotSet::default(),
            config_epoch: shard.config_epoch,
            primary: shard.primary.clone(),
            replicas: vec![],
            history: Some(child),
            offset: Some(at),
        });
    }
    for id in ["20261125T000000.000Z-0001", "20261125T000001.000Z-0002"] {
        let topology = TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: id.to_owned(),
            seen_at: now,
            as_before_until: None,
            cluster_mode: true,
            current_epoch: 3,
            shards: states.clone(),
        };
        repository.put_topology("main", &topology).await.unwrap();
    }
    "20991125T000000.000Z-0003".clone_into(&mut manifest.id);
    manifest.kind = BackupKind::Incremental;
    manifest.cut = Some(ClusterCut {
        method: CutMethod::Instant,
        at: now,
        error_ms: 1,
        paused_ms: None,
        fell_back: None,
    });
    repository.commit(&manifest).await.unwrap();
}

/// Every object but the records of verifications, with its bytes.
pub(crate) fn objects(repo: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = crate::common::files(repo).into_iter();
    all.filter(|(name, _)| !name.contains("/verify/")).collect()
}
