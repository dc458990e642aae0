//! Objects that are copied into another repository, small ones in one request and large ones in parts, plain and encrypted.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use std::path::Path;

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use jiff::Timestamp;
use slotkeep_format::Timeline;
use slotkeep_format::manifest::{ObjectRecord, ProductRecord, ServerRecord};
use slotkeep_model::ReplId;
use slotkeep_repo::{CopyError, Location, OpenOptions, Problem, Repository, SegmentEntry, SegmentMeta};

/// More than is written in one request.
const LARGE_BYTES: usize = 9 << 20;
const OBJECT: &str = "main/object";

struct Pair {
    folder: tempfile::TempDir,
    source: Repository,
    target: Repository,
    record: ObjectRecord,
    segment: SegmentEntry,
}

/// Bytes that don't compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut hash = blake3::Hasher::new().finalize_xof();
    let mut noise = vec![0; bytes];
    hash.fill(&mut noise);
    noise
}

impl Pair {
    async fn new(encrypted: bool, bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| Location::Folder(folder.path().join(name));
        let mut options = OpenOptions::default();
        let reader = Identity::generate();
        if encrypted {
            options.recipients.add_key(&reader.to_public().to_string()).unwrap();
        }
        let id = "00112233445566778899aabbccddeeff".to_owned();
        let source =
            Repository::init_with(&place("source"), id, Timestamp::UNIX_EPOCH, &options).await.unwrap();
        let raw = noise(bytes);
        let mut writer = source.create_object(OBJECT.to_owned()).await.unwrap();
        for piece in raw.chunks(1 << 20) {
            writer.write(piece.to_vec().into()).await.unwrap();
        }
        let record = writer.finish(bytes as u64).await.unwrap();
        let history: ReplId = "a".repeat(40).parse().unwrap();
        let mut writer = source.create_segment("main", &history, 1..bytes as u64 + 1).await.unwrap();
        writer.write(&raw).await.unwrap();
        let meta = SegmentMeta {
            database: None,
            commands: 1,
            source: "127.0.0.1:7000".parse().unwrap(),
            server: ServerRecord { product: ProductRecord::Redis, version: "8.2.0".to_owned() },
            times: Timeline::default(),
        };
        writer.finish(meta).await.unwrap();
        let mut opens = OpenOptions::default();
        if encrypted {
            opens.unlock.add_identity_file(reader.to_string().expose_secret()).unwrap();
        }
        let source = Repository::open_with(&place("source"), &opens).await.unwrap();
        let target = place("target");
        assert!(source.open_target(&target, &OpenOptions::default()).await.unwrap().is_none());
        let target = source.make_mirror(&target, "nonce", &OpenOptions::default()).await.unwrap();
        assert!(source.mirrors(&target));
        let segment = source.segments("main", &history).await.unwrap().remove(0);
        Self { folder, source, target, record, segment }
    }

    fn file(&self, repository: &str, path: &str) -> std::path::PathBuf {
        self.folder.path().join(repository).join(path)
    }

    fn same(&self, path: &str) -> bool {
        std::fs::read(self.file("source", path)).unwrap() == std::fs::read(self.file("target", path)).unwrap()
    }
}

fn spoil(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn is_damage(outcome: Result<(), CopyError>) -> bool {
    matches!(outcome, Err(CopyError::Source(error)) if matches!(error.problem, Problem::Damaged(_)))
}

#[tokio::test]
async fn what_is_copied_is_the_same_to_the_byte_and_what_is_damaged_is_not_copied() {
    for (encrypted, bytes) in
        [(false, 5000), (false, LARGE_BYTES), (true, 5000), (true, LARGE_BYTES), (false, 8 << 20)]
    {
        let pair = Pair::new(encrypted, bytes).await;
        let mut seen = 0;
        pair.source.copy_object(&pair.target, &pair.record, |bytes| seen += bytes).await.unwrap();
        assert_eq!(seen, pair.record.stored_bytes);
        let mut seen = 0;
        pair.source.copy_segment(&pair.target, &pair.segment, |bytes| seen += bytes).await.unwrap();
        assert_eq!(seen, pair.segment.object_bytes);
        let segment = pair.segment.path();
        assert!(pair.same(OBJECT) && pair.same(segment), "{encrypted} {bytes}");

        for path in [OBJECT, segment] {
            std::fs::remove_file(pair.file("target", path)).unwrap();
        }
        spoil(&pair.file("source", OBJECT), bytes / 2);
        let outcome = pair.source.copy_object(&pair.target, &pair.record, |_| ()).await;
        assert!(is_damage(outcome), "{encrypted} {bytes}");
        // In the middle, at the beginning, and in its record.
        let stored = usize::try_from(pair.segment.object_bytes).unwrap();
        for at in [stored / 2, 6, stored - 30] {
            spoil(&pair.file("source", segment), at);
            let outcome = pair.source.copy_segment(&pair.target, &pair.segment, |_| ()).await;
            assert!(is_damage(outcome), "{encrypted} {bytes} {at}");
            spoil(&pair.file("source", segment), at);
        }
        assert!(!pair.file("target", OBJECT).exists() && !pair.file("target", segment).exists());
        pair.source.copy_segment(&pair.target, &pair.segment, |_| ()).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_overwritten() {
    for bytes in [5000, LARGE_BYTES] {
        let pair = Pair::new(false, bytes).await;
        let there = pair.file("target", pair.segment.path());
        std::fs::create_dir_all(there.parent().unwrap()).unwrap();
        for path in [there.clone(), pair.file("target", OBJECT)] {
            std::fs::write(path, "other").unwrap();
        }
        let exists = |outcome: Result<(), CopyError>| match outcome {
            Err(CopyError::Target(error)) => matches!(error.problem, Problem::Exists),
            _ => false,
        };
        assert!(exists(pair.source.copy_object(&pair.target, &pair.record, |_| ()).await));
        assert!(exists(pair.source.copy_segment(&pair.target, &pair.segment, |_| ()).await));
        assert_eq!(std::fs::read(there).unwrap(), b"other");
    }
}
