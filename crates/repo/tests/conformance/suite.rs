//! What every store must do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use bytes::Bytes;
use jiff::Timestamp;
use object_store::ObjectStore;
use slotkeep_format::FrameWriter;
use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::lease::{Holder, LeaseNote, LeaseTable, Tenure};
use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::manifest::{
    BackupKind, BaseRecord, CrcRecord, FORMAT_VERSION, Manifest, NodeRecord, ObjectRecord, ProductRecord,
    RoleRecord, ServerRecord, SettingsRecord, ShardRecord,
};
use slotkeep_format::{HistoryRecord, TimeSample, Timeline};
use slotkeep_model::{Product, RdbVersion, ReplId, SlotDigest, SlotSet};
use slotkeep_repo::{
    Location, OpenOptions, Problem, RepoError, Repository, SegmentEntry, SegmentMeta, Standing,
};

/// How a repository is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    None,
    /// Encrypted and signed.
    Encrypted,
}

impl Protection {
    pub(crate) const ALL: [Self; 2] = [Self::None, Self::Encrypted];
}

/// Where a repository is made.
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) protection: Protection,
    pub(crate) location: Location,
    pub(crate) identity: age::x25519::Identity,
}

impl Place {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, protection: Protection) -> Self {
        let location = Location::Folder(PathBuf::from("conformance"));
        Self { store, protection, location, identity: age::x25519::Identity::generate() }
    }

    pub(crate) fn in_bucket(store: Arc<dyn ObjectStore>, protection: Protection) -> Self {
        // Buckets want larger parts than folders.
        Self { location: "s3://conformance/place".parse().unwrap(), ..Self::new(store, protection) }
    }

    pub(crate) async fn init(&self) -> Result<Repository, RepoError> {
        let mut options = OpenOptions::default();
        if self.protection == Protection::Encrypted {
            options.recipients.add_key(&self.identity.to_public().to_string()).unwrap();
        }
        let store = Arc::clone(&self.store);
        let id = "0123456789abcdef".to_owned();
        Repository::init_in(store, &self.location, id, Timestamp::UNIX_EPOCH, &options).await?;
        self.open().await
    }

    pub(crate) fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::default();
        if self.protection == Protection::Encrypted {
            options.unlock.add_identity_file(self.identity.to_string().expose_secret()).unwrap();
        }
        options
    }

    pub(crate) async fn open(&self) -> Result<Repository, RepoError> {
        Repository::open_in(Arc::clone(&self.store), &self.location, &self.options()).await
    }
}

pub(crate) fn history() -> ReplId {
    "0123456789abcdef0123456789abcdef01234567".parse().unwrap()
}

pub(crate) fn manifest(id: &str) -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        id: id.to_owned(),
        cluster: "main".to_owned(),
        kind: BackupKind::Full,
        partial: true,
        missing_slots: SlotSet::full(),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        slotkeep_version: "0".to_owned(),
        cluster_mode: true,
        current_epoch: 0,
        shards: vec![],
        settings: vec![],
        cut: None,
        digest: Some(SlotDigest::default()),
    }
}

/// A backup of one shard, with that object as its base.
pub(crate) fn manifest_naming(id: &str, rdb: &ObjectRecord) -> Manifest {
    let addr = "127.0.0.1:7000".parse().unwrap();
    let base = BaseRecord {
        rdb: rdb.clone(),
        rdb_version: RdbVersion { product: Product::Redis, number: 11 },
        crc64: CrcRecord::Verified,
        index: None,
        digest: None,
        keys: None,
        functions: None,
        not_interpreted: Some("it is noise".to_owned()),
    };
    let shard = ShardRecord {
        slots: SlotSet::full(),
        config_epoch: 0,
        primary: NodeRecord { id: None, addr, online: true },
        replicas: vec![],
        source: "127.0.0.1:7000".parse().unwrap(),
        source_role: RoleRecord::Primary,
        server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
        history: history(),
        offset: 1,
        server_time: None,
        base,
        cut: None,
        read: None,
    };
    let missing_slots = SlotSet::default();
    Manifest { partial: false, missing_slots, shards: vec![shard], digest: None, ..manifest(id) }
}

pub(crate) fn settings() -> SettingsRecord {
    SettingsRecord {
        nodes: vec!["127.0.0.1:7000".to_owned()],
        config: [("requirepass".to_owned(), "hunter2-secret".to_owned())].into(),
        acl: vec![],
        secrets: true,
        modules: BTreeMap::default(),
        unreadable: vec![],
    }
}

/// Bytes that hardly compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    })
    .take(length)
    .collect()
}

pub(crate) async fn store_framed(
    repository: &Repository,
    path: &str,
    raw: &[u8],
) -> Result<ObjectRecord, RepoError> {
    let mut frames = FrameWriter::new().unwrap();
    let mut writer = repository.create_object(path.to_owned()).await?;
    for piece in raw.chunks(FRAME_RAW_BYTES) {
        writer.write(frames.frame(piece).unwrap().into()).await?;
    }
    writer.write(frames.finish().unwrap().into()).await?;
    writer.finish(raw.len() as u64).await
}

pub(crate) async fn read_framed(
    repository: &Repository,
    record: &ObjectRecord,
) -> Result<Vec<u8>, RepoError> {
    let mut object = repository.framed(record).await?;
    let mut whole = Vec::new();
    while let Some(frame) = object.next().await? {
        whole.extend(frame);
    }
    Ok(whole)
}

pub(crate) fn meta(offset: u64) -> SegmentMeta {
    let mut times = Timeline::default();
    assert!(times.push(TimeSample { from_ms: 5, until_ms: 6, offset }));
    SegmentMeta {
        database: Some(0),
        commands: 3,
        source: "127.0.0.1:7000".parse().unwrap(),
        server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
        times,
    }
}

pub(crate) async fn write_segment(repository: &Repository, start: u64, raw: &[u8]) -> Result<(), RepoError> {
    let range = start..start + raw.len() as u64;
    let mut writer = repository.create_segment("main", &history(), range).await?;
    for piece in raw.chunks(300_007) {
        writer.write(piece).await?;
    }
    writer.finish(meta(start)).await.map(drop)
}

pub(crate) async fn read_segment(
    repository: &Repository,
    entry: &SegmentEntry,
) -> Result<Vec<u8>, RepoError> {
    let mut reader = repository.read_segment(entry).await?;
    let mut raw = Vec::new();
    while let Some(piece) = reader.next().await? {
        raw.extend(piece);
    }
    Ok(raw)
}

/// Everything that a repository is used for.
pub(crate) async fn run(place: &Place) -> Repository {
    let made = place.init().await.unwrap();
    assert!(matches!(place.init().await.unwrap_err().problem, Problem::AlreadyRepository));
    let repository = place.open().await.unwrap();
    assert_eq!(repository.file(), made.file());
    objects(&repository).await;
    manifests(&repository).await;
    segments(&repository).await;
    leases(&repository).await;
    repository
}

async fn objects(repository: &Repository) {
    // Larger than a part of an upload, with a frame that is not full at the end.
    let raw = noise(9 * FRAME_RAW_BYTES + 4321);
    let record = store_framed(repository, "main/framed", &raw).await.unwrap();
    assert_eq!(record.raw_bytes, raw.len() as u64);
    repository.verify(&record, |_| ()).await.unwrap();
    assert_eq!(read_framed(repository, &record).await.unwrap(), raw);
    let mut object = repository.framed(&record).await.unwrap();
    for (number, piece) in raw.chunks(FRAME_RAW_BYTES).enumerate().rev() {
        assert_eq!(object.frame(number).await.unwrap(), piece, "frame {number}");
    }
    assert!(object.frame(10).await.is_err());

    let mut writer = repository.create_object("main/small".to_owned()).await.unwrap();
    writer.write(Bytes::from_static(b"digest")).await.unwrap();
    let record = writer.finish(6).await.unwrap();
    assert_eq!(repository.read(&record, 100).await.unwrap(), b"digest");
    assert!(matches!(repository.read(&record, 5).await.unwrap_err().problem, Problem::Damaged(_)));
    repository.discard("main/small").await.unwrap();
    assert!(matches!(repository.read(&record, 100).await.unwrap_err().problem, Problem::Missing));

    let mut writer = repository.create_object("main/empty".to_owned()).await.unwrap();
    let record = writer.finish(0).await.unwrap();
    assert_eq!(repository.read(&record, 100).await.unwrap(), b"");
    let mut writer = repository.create_object("main/aborted".to_owned()).await.unwrap();
    writer.write(noise(100).into()).await.unwrap();
    writer.abort().await.unwrap();
    assert_eq!(repository.clusters().await.unwrap(), ["main"]);
}

async fn manifests(repository: &Repository) {
    repository.put_new("main/x.json", b"1".to_vec()).await.unwrap();
    repository.put_new("main/x.json", b"1".to_vec()).await.unwrap();
    let other = repository.put_new("main/x.json", b"2".to_vec()).await.unwrap_err();
    assert!(matches!(other.problem, Problem::Exists), "{other}");
    let first = manifest("20260101T000000.000Z-aaaa");
    repository.commit(&first).await.unwrap();
    let other = Manifest { current_epoch: 7, ..first.clone() };
    assert!(matches!(repository.commit(&other).await.unwrap_err().problem, Problem::Exists));
    let second = manifest("20260102T000000.000Z-bbbb");
    repository.commit(&second).await.unwrap();
    assert_eq!(repository.find("main", &"latest".parse().unwrap()).await.unwrap(), second);
    let third = Manifest { settings: vec![settings()], ..manifest("20260103T000000.000Z-cccc") };
    repository.commit(&third).await.unwrap();
    assert_eq!(repository.find("main", &"latest".parse().unwrap()).await.unwrap(), third);
    let listing = repository.backups("main").await.unwrap();
    assert_eq!(listing.backups, [first, second, third]);
    assert!(listing.unreadable.is_empty());
    let record = HistoryRecord {
        format_version: HISTORY_VERSION,
        history: history(),
        parent: None,
        slots: SlotSet::full(),
        source: "127.0.0.1:1".parse().unwrap(),
        first_seen_at: Timestamp::UNIX_EPOCH,
    };
    repository.put_history("main", &record).await.unwrap();
    assert_eq!(repository.history("main", &history()).await.unwrap(), Some(record));
}

async fn leases(repository: &Repository) {
    Box::pin(presences(repository)).await;
    let holder = |process: &str| Holder { process: process.to_owned(), agent: None, duration_ms: 10_000 };
    let lease = |process: &str| repository.lease("main", "line", holder(process));
    if !repository.refuses_overwrite() {
        assert!(matches!(lease("a").map(drop).unwrap_err().problem, Problem::NoConditions));
        return;
    }
    let (mut first, mut second) = (lease("a").unwrap(), lease("b").unwrap());
    let held = |standing| match standing {
        Standing::Held { epoch, .. } => Some(epoch),
        Standing::Waiting { .. } | Standing::Double => None,
    };
    assert_eq!(held(first.step(&|| 0).await.unwrap()), Some(1));
    assert_eq!(held(second.step(&|| 0).await.unwrap()), None);
    // Renewed in time, under the same epoch; the other one counts anew.
    assert_eq!(held(first.step(&|| 5000).await.unwrap()), Some(1));
    assert_eq!(held(second.step(&|| 11_000).await.unwrap()), None);
    assert!(first.confirm(1).await.unwrap());
    // The first one sleeps, and wakes when the second has taken over.
    assert_eq!(held(second.step(&|| 23_000).await.unwrap()), Some(2));
    assert_eq!(first.epoch(5001), Some(1));
    assert!(!first.confirm(1).await.unwrap());
    assert_eq!(first.epoch(5001), None);
    assert_eq!(held(first.step(&|| 24_000).await.unwrap()), None);
    // Given up, it is free at once.
    second.release().await.unwrap();
    assert_eq!(held(first.step(&|| 24_001).await.unwrap()), Some(3));
}

/// An agent that is started again has its presence at once; the process before finds out. What it held is seen to be free.
async fn presences(repository: &Repository) {
    let agent = |process: &str| Holder {
        process: process.to_owned(),
        agent: Some("a".to_owned()),
        duration_ms: 10_000,
    };
    let (mut before, mut after) =
        (repository.presence("main", "a", agent("1")), repository.presence("main", "a", agent("2")));
    assert!(matches!(before.step(&|| 0).await.unwrap(), Standing::Held { epoch: 1, .. }));
    assert_eq!(before.is_kept_by_the_store(1).await.unwrap(), repository.refuses_overwrite());
    let line = if repository.refuses_overwrite() {
        let take = |process| {
            let holder = agent(process);
            async move {
                repository.take_lease("main", "held", None, &holder, LeaseNote::default()).await.unwrap()
            }
        };
        let mut line = take("1").await.unwrap();
        assert!(take("2").await.is_none());
        assert!(line.confirm().await.unwrap());
        let note = LeaseNote { host: Some("said".to_owned()), ..LeaseNote::default() };
        assert!(line.say(note).await.unwrap() && line.confirm().await.unwrap());
        Some(line)
    } else {
        None
    };
    assert!(matches!(after.step(&|| 1000).await.unwrap(), Standing::Held { epoch: 2, .. }));
    assert_eq!(before.step(&|| 9000).await.unwrap(), Standing::Double);
    let mut table = LeaseTable::default();
    table.look(10_000, 5000);
    for (name, number) in repository.leases("main").await.unwrap() {
        let record = repository.lease_record("main", &name, number).await.unwrap().unwrap();
        table.observe(&name, record, 10_000);
    }
    table.look(15_000, 5000);
    assert_eq!(table.agents().map(|(agent, _)| agent).collect::<Vec<_>>(), ["a"]);
    // Not looked for too long: it gets its time anew.
    table.look(22_000, 5000);
    assert_eq!(table.agents().count(), 1);
    for now_ms in [27_000, 32_000] {
        table.look(now_ms, 5000);
        assert_eq!(table.agents().count(), 1);
    }
    table.look(33_250, 5000);
    assert_eq!(table.agents().count(), 0);
    let Some(mut line) = line else { return };
    assert!(matches!(table.tenure("held"), Tenure::Free { left_by: Some("a"), .. }));
    let newest = table.newest("held").cloned();
    let taken =
        repository.take_lease("main", "held", newest.as_ref(), &agent("2"), LeaseNote::default()).await;
    let mut taken = taken.unwrap().unwrap();
    assert_eq!((taken.record().number, taken.record().epoch), (3, 2));
    assert!(!line.confirm().await.unwrap() && !line.say(LeaseNote::default()).await.unwrap());
    line.release(LeaseNote::default()).await.unwrap();
    assert!(taken.confirm().await.unwrap());
    taken.release(LeaseNote::default()).await.unwrap();
    assert!(!taken.confirm().await.unwrap(), "what was given up is not held");
    repository.remove_presence("main", "a").await.unwrap();
    assert!(!repository.leases("main").await.unwrap().contains_key("agent-a"));
}

async fn segments(repository: &Repository) {
    // One in a single request, one in parts.
    let (small, large) = (noise(70_000), noise(26 << 20));
    write_segment(repository, 1, &small).await.unwrap();
    write_segment(repository, 70_001, &large).await.unwrap();
    let again = write_segment(repository, 1, &small).await.unwrap_err();
    assert!(matches!(again.problem, Problem::Exists), "{again}");
    let entries = repository.segments("main", &history()).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.start).collect::<Vec<_>>(), [1, 70_001]);
    assert_eq!(read_segment(repository, &entries[0]).await.unwrap(), small);
    assert_eq!(read_segment(repository, &entries[1]).await.unwrap(), large);
    let record = repository.segment_record(&entries[1]).await.unwrap();
    assert_eq!((record.start, record.commands), (70_001, 3));
}
