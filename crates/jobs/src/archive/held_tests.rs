use std::path::PathBuf;

use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::manifest::{
    CrcRecord, NodeRecord, ObjectRecord, ProductRecord, RoleRecord, ServerRecord,
};
use slotkeep_format::{HistoryRecord, Timeline};
use slotkeep_model::Role;
use slotkeep_repo::{Location, SegmentMeta};
use tempfile::TempDir;

use super::*;

fn id(letter: &str) -> ReplId {
    letter.repeat(40).parse().unwrap()
}

fn following(history: &str) -> Replication {
    Replication {
        role: Role::Primary,
        replid: id(history),
        previous_replid: None,
        previous_valid_to: None,
        offset: ReplOffset(100),
        backlog: None,
        link: None,
        replicas: vec![],
    }
}

#[tokio::test]
async fn a_history_that_cannot_be_read_breaks_the_logs_that_come_from_it_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let at = jiff::Timestamp::UNIX_EPOCH;
    let location = Location::Folder(folder.path().join("repo"));
    let repository = Repository::init(&location, "0".repeat(32), at).await.unwrap();
    for (history, parent) in [("b", Some("a")), ("c", Some("b")), ("d", None)] {
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: id(history),
            parent: parent.map(|parent| Parent { history: id(parent), fork: 10 }),
            slots: "0-16383".parse().unwrap(),
            source: "127.0.0.1:1".parse().unwrap(),
            first_seen_at: at,
        };
        repository.put_history("main", &record).await.unwrap();
    }
    let damaged = folder.path().join(format!("repo/main/history/{}/history.json", id("b")));
    assert!(damaged.exists());
    std::fs::write(&damaged, b"{").unwrap();
    let mut holdings = Holdings::read(&repository, "main").await.unwrap();
    for history in ["b", "c"] {
        let lead = holdings.leading_to(&following(history)).await.unwrap();
        assert!(matches!(&lead, Lead::Broken(why) if why.contains(id("b").as_str())), "{lead:?}");
    }
    for history in ["a", "d"] {
        let lead = holdings.leading_to(&following(history)).await.unwrap();
        assert!(matches!(lead, Lead::Nowhere), "{lead:?}");
    }
}

#[test]
fn a_log_is_held_up_to_its_first_gap() {
    let ranges = [(1, 11), (11, 21), (15, 18), (22, 31)];
    assert_eq!(contiguous(ranges.into_iter(), 0), 20);
    assert_eq!(contiguous(ranges.into_iter(), 12), 20);
    assert_eq!(contiguous(ranges.into_iter(), 21), 30);
    assert_eq!(contiguous(ranges.into_iter(), 40), 40);
    assert_eq!(contiguous(std::iter::empty(), 7), 7);
}

const COMMAND: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";
const LENGTH: u64 = COMMAND.len() as u64;

/// A base behind that offset. Its objects are not there: it is gone by its place alone.
fn base(history: &str, offset: u64) -> Arc<TakenBase> {
    let addr: slotkeep_model::NodeAddr = "127.0.0.1:1".parse().unwrap();
    let record = ShardRecord {
        slots: SlotSet::full(),
        config_epoch: 1,
        primary: NodeRecord { id: None, addr: addr.clone(), online: true },
        replicas: vec![],
        source: addr,
        source_role: RoleRecord::Primary,
        server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
        history: id(history),
        offset,
        server_time: None,
        base: BaseRecord {
            rdb: ObjectRecord {
                path: "main/base.rdb".to_owned(),
                stored_bytes: 1,
                raw_bytes: 1,
                blake3: "0".repeat(64),
                header: None,
            },
            rdb_version: "REDIS0010".parse().unwrap(),
            crc64: CrcRecord::Verified,
            index: None,
            digest: None,
            keys: None,
            functions: None,
            not_interpreted: None,
        },
        cut: None,
        read: None,
    };
    Arc::new(TakenBase::of(&record, "backup"))
}

struct Bench {
    folder: TempDir,
    repository: Repository,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Folder(folder.path().join("repo"));
        let repository =
            Repository::init(&location, "0".repeat(32), jiff::Timestamp::UNIX_EPOCH).await.unwrap();
        Self { folder, repository }
    }

    /// A segment that holds a command, as the `number`th of its history; gives its file.
    async fn segment(&self, history: &str, number: u64) -> PathBuf {
        let range = number * LENGTH + 1..(number + 1) * LENGTH + 1;
        let meta = SegmentMeta {
            database: Some(3),
            commands: 1,
            source: "127.0.0.1:1".parse().unwrap(),
            server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
            times: Timeline::default(),
        };
        let mut segment = self.repository.create_segment("main", &id(history), range.clone()).await.unwrap();
        segment.write(COMMAND).await.unwrap();
        segment.finish(meta).await.unwrap();
        let all = self.repository.segments("main", &id(history)).await.unwrap();
        let entry = all.iter().find(|entry| entry.start == range.start).unwrap();
        self.folder.path().join("repo").join(entry.path())
    }

    async fn history(&self, history: &str, parent: &str, fork: u64) {
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: id(history),
            parent: Some(Parent { history: id(parent), fork }),
            slots: SlotSet::full(),
            source: "127.0.0.1:1".parse().unwrap(),
            first_seen_at: jiff::Timestamp::UNIX_EPOCH,
        };
        self.repository.put_history("main", &record).await.unwrap();
    }

    /// Where the log behind a base at offset 0 leads, and how many segments were passed over.
    async fn lead(&self, server: &Replication) -> (Option<(String, u64, Option<u32>)>, usize) {
        let mut holdings = Holdings::read(&self.repository, "main").await.unwrap();
        holdings.add_base(base("a", 0));
        let lead = holdings.leading_to(server).await.unwrap();
        let spoiled = holdings.newly_spoiled();
        assert!(spoiled.iter().all(|why| why.contains("/log/") && why.contains("it is damaged")));
        assert!(holdings.newly_spoiled().is_empty());
        let at = match lead {
            Lead::Here((at, _)) => {
                Some((at.history.as_str().chars().take(1).collect(), at.offset, at.database))
            }
            Lead::Nowhere => panic!("nothing is said of why"),
            Lead::Broken(why) => {
                assert!(why.contains("it is damaged"), "{why}");
                None
            }
        };
        (at, spoiled.len())
    }
}

fn damage(file: &std::path::Path) {
    let half = std::fs::read(file).unwrap().len() / 2;
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(half as u64).unwrap();
}

fn at(history: &str, commands: u64, database: Option<u32>) -> (String, u64, Option<u32>) {
    (history.to_owned(), commands * LENGTH, database)
}

#[tokio::test]
async fn a_log_that_ends_in_what_cannot_be_read_is_gone_on_with_from_before_it() {
    let bench = Bench::new().await;
    let files = [bench.segment("a", 0).await, bench.segment("a", 1).await, bench.segment("a", 2).await];
    assert_eq!(bench.lead(&following("a")).await, (Some(at("a", 3, Some(3))), 0));
    damage(&files[2]);
    assert_eq!(bench.lead(&following("a")).await, (Some(at("a", 2, Some(3))), 1));
    damage(&files[1]);
    assert_eq!(bench.lead(&following("a")).await, (Some(at("a", 1, Some(3))), 2));
    damage(&files[0]);
    assert_eq!(bench.lead(&following("a")).await, (Some(at("a", 0, None)), 3));
    let mut holdings = Holdings::read(&bench.repository, "main").await.unwrap();
    holdings.add_base(base("a", 3 * LENGTH));
    let lead = holdings.leading_to(&following("a")).await.unwrap();
    assert!(matches!(&lead, Lead::Here((at, _)) if at.offset == 3 * LENGTH), "{lead:?}");
    assert!(holdings.newly_spoiled().is_empty(), "what lies before a base is not needed behind it");
}

#[tokio::test]
async fn a_damaged_end_behind_a_fork_leads_back_to_what_the_server_can_still_go_on_from() {
    let bench = Bench::new().await;
    let before = bench.segment("a", 0).await;
    let last = bench.segment("a", 1).await;
    bench.history("b", "a", 2 * LENGTH).await;
    let promoted = Replication { previous_replid: Some(id("a")), ..following("b") };
    // It had no byte yet: the segment before the fork is what it goes on from.
    assert_eq!(bench.lead(&promoted).await, (Some(at("b", 2, Some(3))), 0));
    let first = bench.segment("b", 2).await;
    assert_eq!(bench.lead(&promoted).await, (Some(at("b", 3, Some(3))), 0));
    damage(&first);
    assert_eq!(bench.lead(&promoted).await, (Some(at("b", 2, Some(3))), 1));
    damage(&last);
    assert_eq!(bench.lead(&promoted).await, (Some(at("a", 1, Some(3))), 2));
    damage(&before);
    assert_eq!(bench.lead(&promoted).await, (Some(at("a", 0, None)), 3));
    // Two failovers later nothing of the parent can be gone on from.
    assert_eq!(bench.lead(&following("b")).await, (None, 2));
}

#[tokio::test]
async fn a_store_that_cannot_be_read_at_all_is_not_read_through() {
    let bench = Bench::new().await;
    for number in 0..=MOST_SPOILED as u64 {
        damage(&bench.segment("a", number).await);
    }
    assert_eq!(bench.lead(&following("a")).await, (None, MOST_SPOILED));
}
