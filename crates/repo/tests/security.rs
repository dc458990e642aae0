//! What encryption and signatures promise (`docs/security.md`), each promise tried to be broken.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use jiff::Timestamp;
use slotkeep_format::FrameWriter;
use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::manifest::{
    BackupKind, FORMAT_VERSION, Manifest, ObjectRecord, ProductRecord, ServerRecord, SettingsRecord,
};
use slotkeep_format::verify::{VERIFY_VERSION, VerifyTotals};
use slotkeep_format::{Depth, SegmentRecord, Severity, Timeline, VerifyFinding, VerifyRecord};
use slotkeep_model::{ReplId, SlotSet};
use slotkeep_repo::{
    BackupSelector, Location, OpenOptions, Problem, Recipients, RepoError, Repository, SegmentMeta,
    SigningKey, StateFolder, fingerprint,
};

const SECRET: &str = "hunter2-is-no-password";

/// A repository, a folder for each machine that uses it, and somebody who can read.
struct World {
    folder: tempfile::TempDir,
    reader: Identity,
}

impl World {
    async fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap(), reader: Identity::generate() };
        world.init("host", &[&world.reader]).await;
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn location(&self) -> Location {
        Location::Folder(self.path())
    }

    fn machine(&self, name: &str) -> OpenOptions {
        let state = StateFolder::new(self.folder.path().join("machines").join(name));
        OpenOptions { state: Some(state), ..OpenOptions::default() }
    }

    async fn init(&self, machine: &str, readers: &[&Identity]) -> Repository {
        let mut options = self.machine(machine);
        for reader in readers {
            options.recipients.add_key(&reader.to_public().to_string()).unwrap();
        }
        let id = "00112233445566778899aabbccddeeff".to_owned();
        Repository::init_with(&self.location(), id, Timestamp::UNIX_EPOCH, &options).await.unwrap()
    }

    async fn open(&self, options: &OpenOptions) -> Result<Repository, RepoError> {
        Repository::open_with(&self.location(), options).await
    }

    /// The host that backs up: it has no identity.
    async fn host(&self) -> Repository {
        self.open(&self.machine("host")).await.unwrap()
    }

    async fn read_as(&self, machine: &str, identity: &Identity) -> Result<Repository, RepoError> {
        let mut options = self.machine(machine);
        options.unlock.add_identity_file(identity.to_string().expose_secret()).unwrap();
        self.open(&options).await
    }
}

fn manifest(id: &str) -> Manifest {
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
        settings: vec![SettingsRecord {
            nodes: vec!["127.0.0.1:7000".to_owned()],
            config: [("requirepass".to_owned(), SECRET.to_owned())].into(),
            acl: vec![],
            secrets: true,
            modules: std::collections::BTreeMap::new(),
            unreadable: vec![],
        }],
        cut: None,
        digest: None,
    }
}

/// Two frames and a bit that hold the secret all over.
fn raw() -> Vec<u8> {
    SECRET.bytes().cycle().take(2 * FRAME_RAW_BYTES + 99).collect()
}

async fn store_framed(repository: &Repository, path: &str, raw: &[u8]) -> ObjectRecord {
    let mut frames = FrameWriter::new().unwrap();
    let mut writer = repository.create_object(path.to_owned()).await.unwrap();
    for piece in raw.chunks(FRAME_RAW_BYTES) {
        writer.write(frames.frame(piece).unwrap().into()).await.unwrap();
    }
    writer.write(frames.finish().unwrap().into()).await.unwrap();
    writer.finish(raw.len() as u64).await.unwrap()
}

fn history() -> ReplId {
    "0123456789abcdef0123456789abcdef01234567".parse().unwrap()
}

async fn store_segment(repository: &Repository, start: u64, raw: &[u8]) -> Result<SegmentRecord, RepoError> {
    let range = start..start + raw.len() as u64;
    let mut writer = repository.create_segment("main", &history(), range).await?;
    writer.write(raw).await?;
    let meta = SegmentMeta {
        database: None,
        commands: 1,
        source: "127.0.0.1:7000".parse().unwrap(),
        server: ServerRecord { product: ProductRecord::Redis, version: "8.2.0".to_owned() },
        times: Timeline::default(),
    };
    writer.finish(meta).await
}

async fn read_segment(repository: &Repository) -> Result<Vec<u8>, RepoError> {
    let entry = repository.segments("main", &history()).await?.remove(0);
    let mut reader = repository.read_segment(&entry).await?;
    let mut raw = Vec::new();
    while let Some(piece) = reader.next().await? {
        raw.extend(piece);
    }
    Ok(raw)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn problem<T>(outcome: Result<T, RepoError>) -> Problem {
    outcome.map(drop).unwrap_err().problem
}

#[tokio::test]
async fn a_host_without_an_identity_writes_lists_and_verifies_and_reads_nothing() {
    let world = World::new().await;
    let host = world.host().await;
    let record = store_framed(&host, "main/rdb.zst", &raw()).await;
    store_segment(&host, 1, SECRET.as_bytes()).await.unwrap();
    host.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();

    assert!(host.is_encrypted() && !host.is_readable());
    let listed = host.find("main", &"latest".parse().unwrap()).await.unwrap();
    assert!(listed.settings.is_empty());
    host.verify(&record, |_| ()).await.unwrap();
    assert_eq!(host.segments("main", &history()).await.unwrap().len(), 1);
    assert!(matches!(problem(host.stream(&record).await), Problem::Locked));
    assert!(matches!(problem(host.framed(&record).await), Problem::Locked));
    assert!(matches!(problem(read_segment(&host).await), Problem::Locked));
    assert!(matches!(problem(host.export_keys()), Problem::Locked));

    // Nothing in the repository or on the host gives the data away.
    for file in files(world.folder.path()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!found(SECRET.as_bytes()) && !found(b"AGE-SECRET-KEY"), "{}", file.display());
    }

    let reader = world.read_as("laptop", &world.reader).await.unwrap();
    let read = reader.find("main", &"latest".parse().unwrap()).await.unwrap();
    assert_eq!(read, manifest("20260101T000000.000Z-aaaa"));
    let mut object = reader.framed(&record).await.unwrap();
    assert_eq!(object.frame(2).await.unwrap(), raw()[2 * FRAME_RAW_BYTES..]);
    assert_eq!(read_segment(&reader).await.unwrap(), SECRET.as_bytes());
}

#[tokio::test]
async fn wrong_identities_and_passphrases_are_told_from_damage() {
    let world = World::new().await;
    let other = Identity::generate();
    assert!(matches!(problem(world.read_as("laptop", &other).await), Problem::WrongKey(_)));
    let mut options = OpenOptions::default();
    assert!(matches!(options.unlock.add_identity_file("nonsense"), Err(Problem::WrongKey(_))));
    assert!(matches!(options.unlock.add_identity_file("# nothing\n"), Err(Problem::WrongKey(_))));
    assert!(matches!(Recipients::default().add_key("ssh-ed25519 AAAA"), Err(Problem::WrongKey(_))));
    options.unlock.add_passphrase("guess".to_owned());
    assert!(matches!(problem(world.open(&options).await), Problem::WrongKey(_)));
    // The signing key of some other repository.
    let stranger = World::new().await;
    let text = stranger.host().await.export_signing_key().unwrap();
    let options = OpenOptions {
        signing_keys: vec![std::sync::Arc::new(SigningKey::parse(&text).unwrap())],
        ..OpenOptions::default()
    };
    assert!(matches!(problem(world.open(&options).await), Problem::WrongKey(_)));
}

#[tokio::test]
async fn a_passphrase_opens_and_a_new_key_file_shuts_others_out_without_touching_objects() {
    let world = World::new().await;
    let host = world.host().await;
    let record = store_framed(&host, "main/rdb.zst", &raw()).await;
    let before = std::fs::read(world.path().join("main/rdb.zst")).unwrap();
    let (alice, bob) = (Identity::generate(), Identity::generate());
    let mut recipients = Recipients::default();
    recipients.add_key(&alice.to_public().to_string()).unwrap();
    recipients.add_key(&bob.to_public().to_string()).unwrap();
    recipients.set_passphrase("correct horse".to_owned());
    assert!(matches!(problem(host.rekey(&recipients).await), Problem::Locked));
    world.read_as("laptop", &world.reader).await.unwrap().rekey(&recipients).await.unwrap();

    assert!(matches!(problem(world.read_as("laptop", &world.reader).await), Problem::WrongKey(_)));
    for identity in [&alice, &bob] {
        let reader = world.read_as("laptop", identity).await.unwrap();
        reader.framed(&record).await.unwrap().frame(0).await.unwrap();
    }
    let mut options = OpenOptions::default();
    options.unlock.add_passphrase("correct horse".to_owned());
    world.open(&options).await.unwrap().framed(&record).await.unwrap().frame(0).await.unwrap();
    assert_eq!(std::fs::read(world.path().join("main/rdb.zst")).unwrap(), before);
    // The host goes on as before.
    world.host().await.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
}

#[tokio::test]
async fn nothing_is_written_unsigned() {
    let world = World::new().await;
    let other = world.open(&world.machine("other")).await.unwrap();
    let before = files(&world.path());
    let commit = other.commit(&manifest("20260101T000000.000Z-aaaa")).await;
    assert!(matches!(problem(commit), Problem::NoSigningKey));
    assert!(matches!(problem(store_segment(&other, 1, b"abc").await), Problem::NoSigningKey));
    assert_eq!(files(&world.path()), before);
    // With the key, which the first host can give, it may.
    let key = SigningKey::parse(&world.host().await.export_signing_key().unwrap()).unwrap();
    let options = OpenOptions { signing_keys: vec![std::sync::Arc::new(key)], ..world.machine("other") };
    let other = world.open(&options).await.unwrap();
    other.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    assert_eq!(world.host().await.backups("main").await.unwrap().backups.len(), 1);
}

#[tokio::test]
async fn forged_and_moved_manifests_are_refused() {
    let world = World::new().await;
    let host = world.host().await;
    host.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    let folder = world.path().join("main/backups");
    let file = folder.join("20260101T000000.000Z-aaaa.json");
    let genuine = std::fs::read_to_string(&file).unwrap();
    let refused = async || {
        // Who has seen it knows that it was the newest; to all others it is one that can't be read.
        let listing = host.backups("main").await.unwrap();
        assert!(listing.newest_spoiled.is_some() && listing.unreadable.len() == 1);
        let listing = world.open(&world.machine("new")).await.unwrap().backups("main").await.unwrap();
        assert_eq!(listing.backups.len(), 0);
        assert!(matches!(listing.unreadable[0].error.problem, Problem::Untrusted(_)));
    };
    std::fs::write(&file, genuine.replace("\"current_epoch\": 0", "\"current_epoch\": 1")).unwrap();
    refused().await;
    std::fs::write(&file, manifest("20260101T000000.000Z-aaaa").render().unwrap()).unwrap();
    refused().await;
    // Signed by somebody, for the same place.
    let stranger = World::new().await;
    stranger.host().await.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    let theirs = stranger.path().join("main/backups/20260101T000000.000Z-aaaa.json");
    std::fs::copy(theirs, &file).unwrap();
    refused().await;
    // Genuine, at the place of a newer one.
    std::fs::write(&file, &genuine).unwrap();
    host.manifest("main", "20260101T000000.000Z-aaaa").await.unwrap();
    std::fs::write(folder.join("20270101T000000.000Z-aaaa.json"), &genuine).unwrap();
    let moved = host.manifest("main", "20270101T000000.000Z-aaaa").await;
    assert!(matches!(problem(moved), Problem::Untrusted(_)));
}

#[tokio::test]
async fn an_object_that_another_encrypted_to_the_same_key_is_found_even_in_part() {
    let world = World::new().await;
    let record = store_framed(&world.host().await, "main/rdb.zst", &raw()).await;
    // Whoever can write to the bucket knows the public key, and can encrypt whatever they like to it, of the same length.
    let mut other = raw();
    other[5] ^= 1;
    let forged = store_framed(&world.host().await, "main/forged.zst", &other).await;
    std::fs::rename(world.path().join("main/forged.zst"), world.path().join("main/rdb.zst")).unwrap();
    let reader = world.read_as("laptop", &world.reader).await.unwrap();
    // Headers differ in length by chance: all else would give the forger away even without its hash.
    let same_length = ObjectRecord { stored_bytes: forged.stored_bytes, ..record.clone() };
    for record in [&record, &same_length] {
        assert!(matches!(problem(reader.framed(record).await), Problem::Damaged(_)));
    }
    assert!(reader.verify(&record, |_| ()).await.is_err());
}

#[tokio::test]
async fn a_forged_segment_is_refused() {
    let world = World::new().await;
    let key = world.host().await.export_signing_key().unwrap();
    store_segment(&world.host().await, 1, SECRET.as_bytes()).await.unwrap();
    let reader = world.read_as("laptop", &world.reader).await.unwrap();
    assert_eq!(read_segment(&reader).await.unwrap(), SECRET.as_bytes());
    // A repository that says it has the same id and recipient, with a signing key of the forger's.
    let json = std::fs::read_to_string(world.path().join("slotkeep.json")).unwrap();
    let forger = World::new().await;
    let forgers_key = SigningKey::parse(&forger.host().await.export_signing_key().unwrap()).unwrap();
    let ours = SigningKey::parse(&key).unwrap().public();
    // A seal is against accidents: a forger leaves it out.
    let unsealed = format!("{}\n}}\n", json.split(",\n  \"seal\"").next().unwrap());
    let swapped = unsealed.replace(&ours, &forgers_key.public());
    std::fs::write(forger.path().join("slotkeep.json"), swapped).unwrap();
    let options =
        OpenOptions { signing_keys: vec![std::sync::Arc::new(forgers_key)], ..OpenOptions::default() };
    let mut other = SECRET.to_owned().into_bytes();
    other[0] ^= 1;
    store_segment(&forger.open(&options).await.unwrap(), 1, &other).await.unwrap();
    let entry = reader.segments("main", &history()).await.unwrap().remove(0);
    std::fs::copy(forger.path().join(entry.path()), world.path().join(entry.path())).unwrap();
    assert!(matches!(problem(read_segment(&reader).await), Problem::Untrusted(_)));
}

#[tokio::test]
async fn a_repository_that_is_swapped_or_put_back_is_noticed() {
    let world = World::new().await;
    let trusted = fingerprint(world.host().await.file()).unwrap();
    world.host().await.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    let reader = world.read_as("laptop", &world.reader).await.unwrap();
    reader.find("main", &"latest".parse().unwrap()).await.unwrap();
    world.host().await.commit(&manifest("20260102T000000.000Z-bbbb")).await.unwrap();
    reader.find("main", &"latest".parse().unwrap()).await.unwrap();

    // The newest backup is taken away: an older one must not pass for the latest, neither here nor in a later run.
    let newest = world.path().join("main/backups/20260102T000000.000Z-bbbb.json");
    let genuine = std::fs::read(&newest).unwrap();
    std::fs::remove_file(&newest).unwrap();
    for repository in [reader, world.read_as("laptop", &world.reader).await.unwrap(), world.host().await] {
        let found = repository.find("main", &"latest".parse().unwrap()).await;
        assert!(matches!(problem(found), Problem::Untrusted(_)));
    }
    std::fs::write(&newest, genuine).unwrap();
    world.host().await.backups("main").await.unwrap();

    // Another repository in its place, with keys of the forger's, who knows our public key: not to be written to, not to be read.
    std::fs::rename(world.path(), world.folder.path().join("aside")).unwrap();
    world.init("forger", &[&world.reader]).await;
    assert!(matches!(problem(world.open(&world.machine("host")).await), Problem::Untrusted(_)));
    assert!(matches!(problem(world.read_as("laptop", &world.reader).await), Problem::Untrusted(_)));
    // A machine that never saw it is told by the fingerprint.
    let options = OpenOptions { trust: vec![trusted.clone()], ..world.machine("new") };
    assert!(matches!(problem(world.open(&options).await), Problem::Untrusted(_)));
    // One without keys.
    std::fs::remove_dir_all(world.path()).unwrap();
    world.init("forger", &[]).await;
    for options in [world.machine("host"), options] {
        assert!(matches!(problem(world.open(&options).await), Problem::Untrusted(_)));
    }
    // The genuine one again.
    std::fs::remove_dir_all(world.path()).unwrap();
    std::fs::rename(world.folder.path().join("aside"), world.path()).unwrap();
    let options = OpenOptions { trust: vec![trusted], ..world.machine("new") };
    world.open(&options).await.unwrap();
}

#[tokio::test]
async fn where_a_known_repository_is_away_none_is_made_unasked() {
    let world = World::new().await;
    let trusted = fingerprint(world.host().await.file()).unwrap();
    let aside = world.folder.path().join("aside");
    std::fs::rename(world.path(), &aside).unwrap();
    let make = async |options: &OpenOptions| {
        let id = "ffeeddccbbaa99887766554433221100".to_owned();
        Repository::open_or_create_with(&world.location(), id, Timestamp::UNIX_EPOCH, options).await
    };
    let plain = Location::Folder(world.folder.path().join("plain"));
    let plain = Repository::init(&plain, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap();
    let told = OpenOptions { trust: vec![trusted], ..OpenOptions::default() };
    // As where nothing is mounted: the folder is gone, or empty.
    for is_there in [false, true] {
        if is_there {
            std::fs::create_dir(world.path()).unwrap();
        }
        for options in [&world.machine("host"), &told] {
            let refused = make(options).await.map(drop).unwrap_err();
            assert!(refused.to_string().contains("mounted"), "{refused}");
            assert!(matches!(refused.problem, Problem::Missed(_)));
            let refused = Repository::check_may_be_made(&world.location(), options).await;
            assert!(matches!(problem(refused), Problem::Missed(_)));
            let refused = problem(plain.open_target(&world.location(), options).await);
            assert!(matches!(refused, Problem::Missed(_) | Problem::Untrusted(_)));
        }
        assert_eq!(world.path().exists(), is_there);
    }
    assert_eq!(files(&world.path()), Vec::<PathBuf>::new());
    // A mirror has the fingerprint of what it mirrors; but one that was here before is missed.
    std::fs::rename(&aside, world.path()).unwrap();
    let secret = world.open(&told).await.unwrap();
    let mirror = Location::Folder(world.folder.path().join("mirror"));
    let options = OpenOptions { trust: told.trust.clone(), ..world.machine("copier") };
    assert!(secret.open_target(&mirror, &options).await.unwrap().is_none());
    secret.make_mirror(&mirror, "nonce", &options).await.unwrap();
    std::fs::remove_dir_all(world.folder.path().join("mirror")).unwrap();
    let refused = secret.open_target(&mirror, &options).await;
    assert!(matches!(problem(refused), Problem::Missed(_)));
    // Elsewhere one is made, and here where it is asked for.
    std::fs::remove_dir_all(world.path()).unwrap();
    assert!(!make(&world.machine("new")).await.unwrap().is_encrypted());
    std::fs::remove_dir_all(world.path()).unwrap();
    world.init("host", &[]).await;
}

#[tokio::test]
async fn a_file_that_nobody_signed_hides_no_older_state() {
    let world = World::new().await;
    let ids = ["20260101T000000.000Z-aaaa", "20260102T000000.000Z-bbbb"];
    for id in ids {
        world.host().await.commit(&manifest(id)).await.unwrap();
    }
    let path = |id: &str| world.path().join(format!("main/backups/{id}.json"));
    let [older, genuine] = ids.map(|id| std::fs::read(path(id)).unwrap());
    let refused = async || {
        let host = world.host().await;
        let first = BackupSelector::Id(ids[0].to_owned());
        let outcomes = [
            host.backups("main").await.map(drop),
            host.backup_ids("main").await.map(drop),
            host.find("main", &BackupSelector::Latest).await.map(drop),
            host.find("main", &first).await.map(drop),
        ];
        outcomes.map(|outcome| {
            let error = outcome.unwrap_err();
            assert!(matches!(error.problem, Problem::Untrusted(_)), "{error}");
            assert!(error.to_string().contains(ids[1]), "{error}");
            error.to_string()
        })
    };
    // The newest is taken away, and something of a later name put beside the older one: no name proves anything.
    std::fs::remove_file(path(ids[1])).unwrap();
    for (name, bytes) in [("z", b"{}".as_slice()), ("20260103T000000.000Z-cccc", &older)] {
        std::fs::write(path(name), bytes).unwrap();
        for said in refused().await {
            assert!(said.contains("not any more") && said.contains(name), "{said}");
        }
        std::fs::remove_file(path(name)).unwrap();
    }
    // It is there by name alone.
    for bytes in [b"{}".as_slice(), &older] {
        std::fs::write(path(ids[1]), bytes).unwrap();
        // Backups go on, and whoever wants the newest state is told.
        let host = world.host().await;
        assert!(host.check_newest("main").await.unwrap().unwrap().contains(ids[1]));
        let listing = host.backups("main").await.unwrap();
        assert!(listing.newest_spoiled.unwrap().contains(ids[1]));
        assert_eq!(listing.backups.len(), 1);
        assert!(matches!(
            problem(host.find("main", &BackupSelector::Latest).await),
            Problem::Untrusted(_) | Problem::Damaged(_)
        ));
    }
    // Beside the genuine ones it is named, and nothing else; a newer genuine one may have taken their place.
    std::fs::write(path(ids[1]), genuine).unwrap();
    std::fs::write(path("z"), "{}").unwrap();
    let listing = world.host().await.backups("main").await.unwrap();
    assert_eq!(listing.backups.iter().map(|backup| backup.id.as_str()).collect::<Vec<_>>(), ids);
    assert_eq!(listing.unreadable.iter().map(|backup| backup.id.as_str()).collect::<Vec<_>>(), ["z"]);
    let host = world.host().await;
    world.host().await.commit(&manifest("20260104T000000.000Z-dddd")).await.unwrap();
    std::fs::remove_file(path(ids[1])).unwrap();
    assert_eq!(host.backups("main").await.unwrap().backups.len(), 2);
    assert_eq!(host.backup_ids("main").await.unwrap(), [ids[0], "20260104T000000.000Z-dddd", "z"]);
}

#[tokio::test]
async fn a_cluster_that_is_gone_is_missed() {
    let world = World::new().await;
    world.host().await.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    assert_eq!(world.host().await.clusters().await.unwrap(), ["main"]);
    std::fs::remove_dir_all(world.path().join("main")).unwrap();
    let missed = world.host().await.clusters().await.unwrap_err();
    assert!(missed.to_string().contains("main"), "{missed}");
    assert!(matches!(missed.problem, Problem::Untrusted(_)));
    let stranger = world.open(&world.machine("new")).await.unwrap();
    assert!(stranger.clusters().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_verification_found_is_shown_to_readers_alone() {
    let world = World::new().await;
    let finding = VerifyFinding {
        severity: Severity::Problem,
        depth: Depth::Drill,
        check: "check".to_owned(),
        object: "20260101T000000.000Z-aaaa".to_owned(),
        offset: Some(7),
        what: format!("line 1: GET user:ada gives `{SECRET}`, not `other`"),
        advice: Some(format!("look at {SECRET}")),
    };
    let record = VerifyRecord {
        format_version: VERIFY_VERSION,
        id: "20260102T000000.000Z-bbbb".to_owned(),
        cluster: "main".to_owned(),
        depth: Depth::Drill,
        complete: true,
        only: true,
        again: false,
        sample_percent: None,
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        slotkeep_version: "0".to_owned(),
        totals: VerifyTotals::default(),
        oldest_proof_at: None,
        backups: vec![],
        drill: None,
        live: None,
        findings: vec![finding],
    };
    let reader = world.read_as("laptop", &world.reader).await.unwrap();
    reader.put_verification(&record).await.unwrap();
    for file in files(&world.path()) {
        let stored = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        for secret in [SECRET, "user:ada", "line 1", "other"] {
            assert!(!stored.contains(secret), "{secret} stands in {}", file.display());
        }
    }
    assert_eq!(reader.verification("main", &record.id).await.unwrap(), record);
    // Who can't read sees that something was found, and where.
    let shown = world.host().await.verification("main", &record.id).await.unwrap();
    assert_eq!((shown.worst(), shown.findings[0].offset), (Severity::Problem, Some(7)));
    assert!(shown.findings[0].what.contains("encrypted"), "{}", shown.findings[0].what);
    assert_eq!(shown.findings[0].advice, None);
    // Records that were written in plain, as earlier versions did, are read.
    let old = VerifyRecord { id: "20260101T000000.000Z-cccc".to_owned(), ..record.clone() };
    assert_eq!(VerifyRecord::sealed_findings(&old.render().unwrap()).unwrap(), None);
    assert_eq!(VerifyRecord::parse(&old.render().unwrap()).unwrap(), old);
}

#[tokio::test]
async fn what_could_not_be_made_whole_is_made_the_next_time() {
    let world = World::new().await;
    std::fs::remove_dir_all(world.path()).unwrap();
    // The folder in which the signing key is to be kept can't be made.
    let in_the_way = world.folder.path().join("machines/other");
    std::fs::write(&in_the_way, "").unwrap();
    let mut options = world.machine("other");
    options.recipients.add_key(&world.reader.to_public().to_string()).unwrap();
    let id = "00112233445566778899aabbccddeeff".to_owned();
    let made = Repository::init_with(&world.location(), id, Timestamp::UNIX_EPOCH, &options).await;
    assert!(made.unwrap_err().on.contains("other"));
    assert_eq!(files(&world.path()), Vec::<PathBuf>::new());
    std::fs::remove_file(&in_the_way).unwrap();
    world.init("other", &[&world.reader]).await;
}

#[tokio::test]
async fn a_half_key_file_keeps_nobody_out_whom_another_lets_in() {
    let world = World::new().await;
    let good = world.path().join("slotkeep-key-0001-recipients.age");
    let whole = std::fs::read(&good).unwrap();
    // What a store leaves that keeps half of a write; the second is no age file any more.
    for (number, bytes) in [(2, &whole[..whole.len() - 9]), (3, &whole[..40]), (4, b"")] {
        std::fs::write(world.path().join(format!("slotkeep-key-{number:04}-recipients.age")), bytes).unwrap();
    }
    let reader = world.read_as("laptop", &world.reader).await.unwrap();
    reader.check_reads().unwrap();
    let stranger = world.read_as("laptop", &Identity::generate()).await;
    assert!(matches!(problem(stranger), Problem::DamagedKey(_)), "it may have been the stranger's");
    std::fs::remove_file(&good).unwrap();
    let error = world.read_as("laptop", &world.reader).await.unwrap_err();
    assert!(matches!(error.problem, Problem::DamagedKey(_)) && error.on.contains("key-0004"), "{error}");
    // Changing the readers clears it up.
    let mut recipients = Recipients::default();
    recipients.add_key(&world.reader.to_public().to_string()).unwrap();
    assert_eq!(reader.rekey(&recipients).await.unwrap(), Vec::<String>::new());
    world.read_as("laptop", &world.reader).await.unwrap();
    let names = files(&world.path()).into_iter().map(|path| path.display().to_string());
    assert_eq!(names.filter(|name| name.contains("slotkeep-key-")).count(), 1);
}

#[tokio::test]
async fn a_key_file_with_other_keys_is_refused() {
    let world = World::new().await;
    let forger = World { reader: world.reader.clone(), ..World::new().await };
    std::fs::remove_dir_all(forger.path()).unwrap();
    forger.init("forger", &[&world.reader]).await;
    let name = "slotkeep-key-0001-recipients.age";
    std::fs::copy(forger.path().join(name), world.path().join(name)).unwrap();
    let opened = world.read_as("laptop", &world.reader).await;
    assert!(matches!(problem(opened), Problem::Untrusted(_)));
}

#[tokio::test]
async fn stock_age_and_zstd_get_the_data_out() {
    let world = World::new().await;
    let record = store_framed(&world.host().await, "main/rdb.zst", &raw()).await;
    world.host().await.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    let aside = world.folder.path().join("aside");
    std::fs::create_dir(&aside).unwrap();
    let reader = aside.join("reader.txt");
    std::fs::write(&reader, world.reader.to_string().expose_secret()).unwrap();
    let age = |identity: &Path, file: &Path| {
        let output = Command::new("age").arg("-d").arg("-i").arg(identity).arg(file).output();
        let output = output.expect("`age` is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    // The key file gives the repository's key, the key gives the object.
    let keys = aside.join("keys.txt");
    std::fs::write(&keys, age(&reader, &world.path().join("slotkeep-key-0001-recipients.age"))).unwrap();
    let compressed = age(&keys, &world.path().join(&record.path));
    let file = aside.join("rdb.zst");
    std::fs::write(&file, compressed).unwrap();
    let output = Command::new("zstd").arg("-dc").arg(&file).stderr(Stdio::inherit()).output().unwrap();
    assert_eq!(output.stdout, raw());
    // What `export_keys` gives is the same.
    let exported = world.read_as("laptop", &world.reader).await.unwrap().export_keys().unwrap();
    assert_eq!(exported, std::fs::read_to_string(&keys).unwrap());
    // And the settings.
    let json = std::fs::read(world.path().join("main/backups/20260101T000000.000Z-aaaa.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let sealed = aside.join("settings.age");
    std::fs::write(&sealed, json["sealed_settings"].as_str().unwrap()).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&age(&keys, &sealed)).unwrap();
    assert_eq!(settings[0]["config"]["requirepass"], SECRET);
}

/// Nothing but what `docs/repository-format.md` and `docs/security.md` say of a signed JSON file.
#[tokio::test]
async fn a_signed_file_is_read_by_what_the_documents_say() {
    let world = World::new().await;
    let host = world.host().await;
    host.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    let file = std::fs::read(world.path().join("slotkeep.json")).unwrap();
    let repository: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let id = repository["repository_id"].as_str().unwrap();
    let public = hex_bytes(repository["signing_key"].as_str().unwrap());
    // Of `slotkeep.json` itself, which is not signed.
    assert_eq!(seal_of(&file), blake3_with_zeros(&file));

    let path = "main/backups/20260101T000000.000Z-aaaa.json";
    let signed = std::fs::read(world.path().join(path)).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&signed).unwrap();
    let signature = json["signature"].as_str().unwrap();
    assert_eq!(signature.len(), 128);
    let before = signed.strip_suffix(format!("{signature}\"}}\n").as_bytes()).unwrap();
    let message = [format!("slotkeep signature 1\n{id}\n{path}\n").as_bytes(), before].concat();
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, &public);
    key.verify(&message, &hex_bytes(signature)).unwrap();
    // The seal is that of the file before it was signed.
    let sealed = [before.strip_suffix(b",\n\"signature\": \"").unwrap(), b"\n}\n"].concat();
    assert_eq!(json["seal"].as_str().unwrap(), blake3_with_zeros(&sealed));
    assert_eq!(seal_of(&sealed), blake3_with_zeros(&sealed));

    // A segment's record, whose signature is for the object's path and over the record alone.
    store_segment(&host, 1, b"PING").await.unwrap();
    let path = format!("main/history/{}/log/{:020}-{:020}.zst", history(), 1, 5);
    let keys = world.read_as("laptop", &world.reader).await.unwrap().export_keys().unwrap();
    let own: Identity =
        keys.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap().parse().unwrap();
    let object = age::decrypt(&own, &std::fs::read(world.path().join(&path)).unwrap()).unwrap();
    let (rest, mark) = object.split_last_chunk::<8>().unwrap();
    assert_eq!(mark, b"SLOTKSEG");
    let (rest, length) = rest.split_last_chunk::<4>().unwrap();
    let (rest, hash) = rest.split_last_chunk::<32>().unwrap();
    let (rest, record) = rest.split_at(rest.len() - u32::from_le_bytes(*length) as usize);
    assert_eq!(blake3::hash(record).as_bytes(), hash);
    let (bytes, frame) = rest.split_last_chunk::<8>().unwrap();
    assert_eq!(frame[..4], 0x184D_2A5D_u32.to_le_bytes());
    let json: serde_json::Value = serde_json::from_slice(record).unwrap();
    assert_eq!((&json["start"], &json["end"]), (&1.into(), &5.into()));
    assert_eq!(json["blake3"].as_str().unwrap(), blake3::hash(bytes).to_hex().as_str());
    let signature = json["signature"].as_str().unwrap();
    let before = record.strip_suffix(format!("{signature}\"}}\n").as_bytes()).unwrap();
    assert!(before.ends_with(b",\n\"signature\": \""));
    let message = [format!("slotkeep signature 1\n{id}\n{path}\n").as_bytes(), before].concat();
    key.verify(&message, &hex_bytes(signature)).unwrap();

    let named = format!(
        "slotkeep signature 1\n{id}\n{}\n{}\n",
        repository["recipients"][0].as_str().unwrap(),
        repository["signing_key"].as_str().unwrap()
    );
    let wanted = blake3::hash(named.as_bytes()).to_hex().get(..40).unwrap().to_owned();
    assert_eq!(fingerprint(host.file()), Some(wanted));
}

fn hex_bytes(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2).unwrap(), 16).unwrap())
        .collect()
}

/// The digits of the seal on the line before the last.
fn seal_of(file: &[u8]) -> String {
    let text = std::str::from_utf8(file).unwrap().strip_suffix("\"\n}\n").unwrap();
    let (before, digits) = text.split_at(text.len() - 64);
    assert!(before.ends_with("\n  \"seal\": \""));
    digits.to_owned()
}

fn blake3_with_zeros(file: &[u8]) -> String {
    let digits = seal_of(file);
    let text = std::str::from_utf8(file).unwrap().replace(&digits, &"0".repeat(64));
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
