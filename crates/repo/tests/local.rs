//! A repository in a local folder: what is written can be read, and what is damaged or missing is said to be so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use jiff::Timestamp;
use slotkeep_format::FrameWriter;
use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::manifest::{BackupKind, ClusterCut, CutMethod, FORMAT_VERSION, Manifest, ObjectRecord};
use slotkeep_model::{SlotDigest, SlotSet};
use slotkeep_repo::{BackupSelector, Location, Problem, Repository};

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
        settings: vec![],
        cut: None,
        digest: Some(SlotDigest::default()),
    }
}

async fn repository(folder: &std::path::Path) -> Repository {
    Repository::init(&Location::Folder(folder.to_owned()), "id".to_owned(), Timestamp::UNIX_EPOCH)
        .await
        .unwrap()
}

/// Three frames and a bit of bytes that compress, but not to nothing.
fn raw() -> Vec<u8> {
    (0..u32::try_from(FRAME_RAW_BYTES).unwrap() * 7 / 8)
        .flat_map(|n| (n.wrapping_mul(77) >> 3).to_le_bytes())
        .collect()
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

async fn read_framed(
    repository: &Repository,
    record: &ObjectRecord,
) -> Result<Vec<u8>, slotkeep_repo::RepoError> {
    let mut object = repository.framed(record).await?;
    let mut whole = Vec::new();
    while let Some(frame) = object.next().await? {
        whole.extend(frame);
    }
    Ok(whole)
}

#[tokio::test]
async fn a_framed_object_reads_as_it_was_written_and_by_frame() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    let raw = raw();
    let record = store_framed(&repository, "main/x", &raw).await;
    assert_eq!(read_framed(&repository, &record).await.unwrap(), raw);
    let mut object = repository.framed(&record).await.unwrap();
    assert_eq!(object.frame(1).await.unwrap(), raw[FRAME_RAW_BYTES..2 * FRAME_RAW_BYTES]);
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_an_object_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    let raw: Vec<u8> = raw().into_iter().take(5000).collect();
    let record = store_framed(&repository, "main/x", &raw).await;
    let file = folder.path().join("main/x");
    let whole = std::fs::read(&file).unwrap();
    for byte in (0..whole.len()).step_by(37).chain([whole.len() - 1]) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x10;
        std::fs::write(&file, damaged).unwrap();
        let error = read_framed(&repository, &record).await.unwrap_err();
        assert!(matches!(error.problem, Problem::Damaged(_)), "byte {byte}: {error}");
        assert!(repository.verify(&record, |_| ()).await.is_err(), "byte {byte}");
    }
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(read_framed(&repository, &record).await.unwrap_err().problem, Problem::Damaged(_)));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(read_framed(&repository, &record).await.unwrap_err().problem, Problem::Missing));
}

#[tokio::test]
async fn nothing_is_listed_or_left_before_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    let mut writer = repository.create_object("main/history/a/rdb.zst".to_owned()).await.unwrap();
    writer.write(Bytes::from(vec![0; 3 << 20])).await.unwrap();
    assert!(!folder.path().join("main/history/a/rdb.zst").exists());
    writer.abort().await.unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path().join("main/history/a")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(repository.backups("main").await.unwrap().backups.is_empty());
}

#[tokio::test]
async fn backups_are_found_by_id_by_prefix_and_as_the_latest() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    let find = async |text: &str| repository.find("main", &text.parse().unwrap()).await;
    assert!(matches!(find("latest").await.unwrap_err().problem, Problem::NoBackups));
    for id in ["20260101T000000Z-aaaa", "20260102T000000Z-bbbb", "20260102T000000Z-cccc"] {
        repository.commit(&manifest(id)).await.unwrap();
    }
    assert_eq!(find("latest").await.unwrap().id, "20260102T000000Z-cccc");
    assert_eq!(find("20260101").await.unwrap().id, "20260101T000000Z-aaaa");
    assert!(matches!(find("20260102").await.unwrap_err().problem, Problem::Ambiguous(_)));
    assert!(matches!(find("nope").await.unwrap_err().problem, Problem::NoSuchBackup(ids) if ids.len() == 3));
    assert!(matches!(find("").await.unwrap_err().problem, Problem::NoSuchBackup(_)));
    assert_eq!(repository.clusters().await.unwrap(), ["main"]);
    let _: BackupSelector = "latest".parse().unwrap();
}

#[tokio::test]
async fn a_manifest_is_never_overwritten_and_a_damaged_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    repository.commit(&manifest("a")).await.unwrap();
    let other = Manifest { current_epoch: 1, ..manifest("a") };
    assert!(matches!(repository.commit(&other).await.unwrap_err().problem, Problem::Exists));
    repository.commit(&manifest("b")).await.unwrap();
    std::fs::write(folder.path().join("main/backups/b.json"), b"{\"format_version\": 1").unwrap();
    let listing = repository.backups("main").await.unwrap();
    assert_eq!(listing.backups.len(), 1);
    assert_eq!(listing.unreadable[0].id, "b");
    assert!(matches!(listing.unreadable[0].error.problem, Problem::Damaged(_)));
}

#[tokio::test]
async fn what_is_no_repository_is_not_taken_for_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Folder(folder.path().join("new"));
    assert!(matches!(Repository::open(&location).await.unwrap_err().problem, Problem::NoRepository));
    Repository::open_or_create(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap();
    Repository::open(&location).await.unwrap();
    let again = Repository::init(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap_err();
    assert!(matches!(again.problem, Problem::AlreadyRepository));

    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("precious"), b"x").unwrap();
    let location = Location::Folder(other);
    let error =
        Repository::open_or_create(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap_err();
    assert!(matches!(error.problem, Problem::NoRepository));
    let error = Repository::init(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap_err();
    assert!(matches!(error.problem, Problem::NotEmpty));
}

#[tokio::test]
async fn a_newer_repository_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("slotkeep.json"), br#"{"format_version": 99}"#).unwrap();
    let error = Repository::open(&Location::Folder(folder.path().to_owned())).await.unwrap_err();
    assert!(matches!(error.problem, Problem::Newer(_)), "{error}");
}

#[tokio::test]
async fn a_probe_leaves_nothing_and_finds_what_is_not_writable() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| Location::Folder(folder.path().join(name));
    let found = inside("not/yet").probe("00").await.unwrap();
    assert!(found.refuses_overwrite);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(inside("not/yet").free_bytes().await.unwrap().unwrap() > 0);
    std::fs::write(folder.path().join("file"), b"x").unwrap();
    assert!(inside("file/below").probe("00").await.is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_latest_backup_is_that_with_the_newest_data() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Folder(folder.path().join("repo"));
    let repository = Repository::init(&location, "id".to_owned(), Timestamp::UNIX_EPOCH).await.unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let commit = async |kind: BackupKind, made: &str, of: Option<&str>| {
        let id = at(made).strftime("%Y%m%dT%H%M%S.000Z-aaaa").to_string();
        let cut = of.map(|of| ClusterCut {
            method: CutMethod::Instant,
            at: at(of),
            error_ms: 0,
            paused_ms: None,
            fell_back: None,
        });
        let made = at(made);
        let manifest = Manifest { kind, started_at: made, finished_at: made, cut, ..manifest(&id) };
        repository.commit(&manifest).await.unwrap();
        id
    };
    let latest = async || repository.find("main", &BackupSelector::Latest).await.unwrap().id;
    let full = commit(BackupKind::Full, "2026-01-10T00:00:00Z", None).await;
    commit(BackupKind::Merged, "2026-01-10T12:00:00Z", Some("2026-01-01T00:00:00Z")).await;
    commit(BackupKind::Merged, "2026-01-10T13:00:00Z", Some("2026-01-02T00:00:00Z")).await;
    assert_eq!(latest().await, full);
    // Folded from the full one, whose end is known in whole seconds only.
    let merged = commit(BackupKind::Merged, "2026-01-10T14:00:00Z", Some("2026-01-09T23:59:59Z")).await;
    assert_eq!(latest().await, merged);
    let merged = commit(BackupKind::Merged, "2026-01-10T15:00:00Z", Some("2026-01-10T14:59:00Z")).await;
    assert_eq!(latest().await, merged);
}

#[tokio::test]
async fn a_file_with_a_name_that_no_object_has_is_named() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    for name in [&b"a\nb.json"[..], b"caf\xe9.json"] {
        let folder = tempfile::tempdir().unwrap();
        let repository = repository(folder.path()).await;
        repository.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
        let foreign = folder.path().join("main/backups").join(OsStr::from_bytes(name));
        std::fs::write(foreign, "mine").unwrap();
        let error = repository.backups("main").await.unwrap_err();
        assert!(matches!(error.problem, Problem::ForeignName(_)), "{error:?}");
        assert!(error.to_string().contains("main/backups/"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}
