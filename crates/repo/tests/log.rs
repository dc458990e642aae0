//! Segments, histories and topologies in a local folder.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use slotkeep_format::manifest::{ProductRecord, ServerRecord};
use slotkeep_format::{TimeSample, Timeline};
use slotkeep_model::ReplId;
use slotkeep_repo::{Location, Problem, Repository, SegmentEntry, SegmentMeta};

const HISTORY: &str = "0123456789abcdef0123456789abcdef01234567";

fn history() -> ReplId {
    HISTORY.parse().unwrap()
}

async fn repository(folder: &std::path::Path) -> Repository {
    let location = Location::Folder(folder.to_owned());
    Repository::init(&location, "id".to_owned(), jiff::Timestamp::UNIX_EPOCH).await.unwrap()
}

fn meta(offset: u64) -> SegmentMeta {
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

/// Bytes that hardly compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    })
    .take(length)
    .collect()
}

async fn write(repository: &Repository, start: u64, raw: &[u8]) -> Result<(), Problem> {
    let range = start..start + raw.len() as u64;
    let mut writer =
        repository.create_segment("main", &history(), range).await.map_err(|error| error.problem)?;
    for piece in raw.chunks(300_007) {
        writer.write(piece).await.unwrap();
    }
    writer.finish(meta(start)).await.map(drop).map_err(|error| error.problem)
}

async fn read(repository: &Repository, entry: &SegmentEntry) -> Result<Vec<u8>, Problem> {
    let mut reader = repository.read_segment(entry).await.map_err(|error| error.problem)?;
    let mut raw = Vec::new();
    while let Some(piece) = reader.next().await.map_err(|error| error.problem)? {
        raw.extend(piece);
    }
    Ok(raw)
}

#[tokio::test]
async fn segments_of_any_size_are_listed_in_order_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    let (large, small) = (noise(9 << 20), noise(77));
    let middle = 78 + large.len() as u64;
    write(&repository, middle, b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    write(&repository, 78, &large).await.unwrap();
    write(&repository, 1, &small).await.unwrap();
    let segments = repository.segments("main", &history()).await.unwrap();
    let ranges: Vec<_> = segments.iter().map(|segment| (segment.start, segment.end)).collect();
    assert_eq!(ranges, [(1, 78), (78, middle), (middle, middle + 14)]);
    assert_eq!(read(&repository, &segments[0]).await.unwrap(), small);
    assert_eq!(read(&repository, &segments[1]).await.unwrap(), large);
    let record = repository.segment_record(&segments[2]).await.unwrap();
    assert_eq!((record.start, record.raw_bytes(), record.commands), (middle, 14, 3));
    assert_eq!(repository.histories("main").await.unwrap(), [history()]);
}

#[tokio::test]
async fn a_segment_is_never_overwritten_and_never_half_there() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    write(&repository, 1, b"first").await.unwrap();
    assert!(matches!(write(&repository, 1, b"other").await, Err(Problem::Exists)));
    let mut cut_short = repository.create_segment("main", &history(), 6..20).await.unwrap();
    cut_short.write(b"abc").await.unwrap();
    assert!(cut_short.finish(meta(6)).await.is_err());
    let mut dropped = repository.create_segment("main", &history(), 6..5_000_000).await.unwrap();
    dropped.write(&noise(4_900_000)).await.unwrap();
    drop(dropped);
    let segments = repository.segments("main", &history()).await.unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(read(&repository, &segments[0]).await.unwrap(), b"first");
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_segment_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    write(&repository, 1, b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n").await.unwrap();
    let entry = repository.segments("main", &history()).await.unwrap().remove(0);
    let file = folder.path().join(entry.path());
    let whole = std::fs::read(&file).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, damaged).unwrap();
        assert!(matches!(read(&repository, &entry).await, Err(Problem::Damaged(_))), "bit {bit}");
    }
    for length in [whole.len() - 1, 5, 0] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let entry = repository.segments("main", &history()).await.unwrap().remove(0);
        assert!(matches!(read(&repository, &entry).await, Err(Problem::Damaged(_))), "{length} bytes");
    }
}

#[tokio::test]
async fn a_folder_that_went_away_is_not_made_anew() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("mounted");
    let repository = repository(&folder).await;
    std::fs::rename(&folder, place.path().join("away")).unwrap();
    assert!(matches!(write(&repository, 1, b"lost").await, Err(Problem::NoRepository)));
    assert!(repository.create_object("main/x".to_owned()).await.is_err());
    assert!(!folder.exists());
    std::fs::rename(place.path().join("away"), &folder).unwrap();
    write(&repository, 1, b"kept").await.unwrap();
}
