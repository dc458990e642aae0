use std::sync::Arc;

use slotkeep_format::manifest::{ProductRecord, ServerRecord};
use slotkeep_format::spool::{SPOOL_VERSION, encode_bytes, encode_header};
use slotkeep_format::{Holder, LeaseNote, LeaseRecord, SegmentRecord, TimeSample};
use slotkeep_repo::Location;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::archive::pack::PieceEnd;
use crate::archive::share::PresenceTime;
use crate::archive::spool::SpoolWriter;
use crate::net::{Connector, ConnectorOptions};
use crate::ports::{Clock, SystemClock, SystemRng};

const COMMAND: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";

struct Bench {
    folder: TempDir,
    context: Context,
    repository: Repository,
    spool: Arc<SpoolFolder>,
    time: PresenceTime,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SystemClock::new());
        let location = Location::Folder(folder.path().join("repo"));
        let repository = Repository::init(&location, "0".repeat(32), clock.now()).await.unwrap();
        let spool =
            SpoolFolder::open(&folder.path().join("spool"), &"0".repeat(32), "main", 1 << 20).unwrap();
        let context = Context {
            clock: Arc::<SystemClock>::clone(&clock),
            rng: Arc::new(SystemRng),
            connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
            stop: CancellationToken::new(),
        };
        Self { folder, context, repository, spool, time: PresenceTime::new(clock) }
    }

    async fn take(&self, process: &str, before: Option<&LeaseRecord>) -> slotkeep_repo::Hold {
        let holder = Holder { process: process.to_owned(), agent: None, duration_ms: 1000 };
        let taken = self.repository.take_lease("main", "line-a", before, &holder, LeaseNote::default()).await;
        taken.unwrap().unwrap()
    }

    /// A file that holds one command behind the bytes before `start`.
    fn file(&self, start: u64) -> PathBuf {
        self.file_of(start, 1)
    }

    /// The same, with so many commands.
    fn file_of(&self, start: u64, commands: usize) -> PathBuf {
        let mut bytes = Vec::new();
        encode_header(&header(start), &mut bytes).unwrap();
        encode_bytes(&COMMAND.repeat(commands), &mut bytes);
        let path = self.folder.path().join(format!("{start}-{commands}.spool"));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Deals with a file as with one that no line will seal.
    async fn settle(&self, file: &Path, wanted: bool) -> Result<bool> {
        let known = WholeSegments::default();
        settle_file((&self.repository, &self.spool), file, wanted, &known).await
    }

    async fn segments(&self) -> Vec<u64> {
        let segments = self.repository.segments("main", &history()).await.unwrap();
        segments.iter().map(|segment| segment.start).collect()
    }
}

fn header(start: u64) -> SpoolHeader {
    SpoolHeader {
        format_version: SPOOL_VERSION,
        cluster: "main".to_owned(),
        history: history(),
        parent: None,
        start,
        database: None,
        slots: "0-16383".parse().unwrap(),
        source: "127.0.0.1:1".parse().unwrap(),
        server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
        begun_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn history() -> ReplId {
    "a".repeat(40).parse().unwrap()
}

#[tokio::test]
async fn a_seal_counts_only_if_the_lease_is_confirmed_behind_it() {
    let bench = Bench::new().await;
    let hold = bench.take("one", None).await;
    let record = hold.record().clone();
    let lease = TakenLease::new("line-a".to_owned(), hold, bench.time.clone(), Arc::<Notify>::default());
    let (abandoned_sender, mut abandoned) = mpsc::unbounded_channel();
    let start = || {
        Sealer {
            context: bench.context.clone(),
            repository: bench.repository.clone(),
            folder: Arc::clone(&bench.spool),
            patience: Patience::Persistent,
            halt: CancellationToken::new(),
            line: None,
            lease: Some(Arc::clone(&lease)),
            abandoned: Some(abandoned_sender.clone()),
        }
        .start()
    };
    let seal = async |start_offset: u64| {
        let sealer = start();
        let path = bench.file(start_offset);
        sealer.files().send(ClosedFile { path: path.clone(), packed: None, effort: Effort::Usual }).unwrap();
        let state = sealer.state.clone();
        sealer.finish().await.unwrap();
        let last = state.borrow().last.clone();
        (path, last)
    };
    let length = COMMAND.len() as u64;
    bench.time.holds_until(u64::MAX);
    let (first, last) = seal(1).await;
    assert_eq!(last, Some((history(), length)));
    assert!(!first.exists());

    // Another takes over without a sign: what was written meanwhile does not count, and its file stays.
    let mut other = bench.take("two", Some(&record)).await;
    let (second, last) = seal(1 + length).await;
    assert_eq!(last, None);
    assert!(second.exists() && lease.is_lost());
    assert_eq!(abandoned.try_recv().unwrap(), second);
    // From then on nothing is written at all.
    let (third, last) = seal(1 + 2 * length).await;
    assert_eq!(last, None);
    assert_eq!(abandoned.try_recv().unwrap(), third);
    assert_eq!(bench.segments().await, [1, 1 + length]);
    assert!(other.confirm().await.unwrap());

    // What the repository has is deleted, what it has not is kept until that is wanted.
    assert!(bench.settle(&second, false).await.unwrap());
    assert!(!bench.settle(&third, false).await.unwrap());
    assert!(!second.exists() && third.exists());
    assert!(bench.settle(&third, true).await.unwrap());
    assert!(!third.exists());
    assert_eq!(bench.segments().await, [1, 1 + length, 1 + 2 * length]);
}

/// As after a store that kept half of a write, where another agent has asked the server for the same bytes since.
#[tokio::test]
async fn what_whole_segments_hold_is_held_whatever_lies_damaged_beside_them() {
    let bench = Bench::new().await;
    let settle = async |start: u64, commands: usize, wanted: bool| {
        bench.settle(&bench.file_of(start, commands), wanted).await
    };
    assert!(settle(1, 1, true).await.unwrap());
    let segments = bench.repository.segments("main", &history()).await.unwrap();
    let damaged = bench.folder.path().join("repo").join(segments[0].path());
    let half = std::fs::read(&damaged).unwrap().len() / 2;
    std::fs::OpenOptions::new().write(true).open(&damaged).unwrap().set_len(half as u64).unwrap();
    assert!(!settle(1, 1, false).await.unwrap());
    let error = settle(1, 1, true).await.unwrap_err();
    assert!(error.to_string().contains("delete that object by hand"), "{error}");
    // Its name is another: it holds more.
    assert!(settle(1, 2, true).await.unwrap());
    assert!(settle(1, 1, false).await.unwrap());
    assert!(settle(1, 2, false).await.unwrap());
}

/// The same where nobody else has the bytes: they do not wait until somebody deletes what is in the way.
#[tokio::test]
async fn what_lies_damaged_under_a_name_is_sealed_under_others() {
    let bench = Bench::new().await;
    let length = COMMAND.len() as u64;
    let repo = bench.folder.path().join("repo");
    let damage = async |range: Range<u64>| {
        let segments = bench.repository.segments("main", &history()).await.unwrap();
        let entry = segments.iter().find(|one| (one.start, one.end) == (range.start, range.end)).unwrap();
        std::fs::OpenOptions::new().write(true).open(repo.join(entry.path())).unwrap().set_len(20).unwrap();
    };
    let whole = 1..4 * length + 1;
    let file = bench.file_of(1, 4);
    assert!(bench.settle(&file, true).await.unwrap());
    damage(whole.clone()).await;
    // A line's own file, which is packed already.
    let (closed_sender, mut closed) = mpsc::unbounded_channel();
    let clock = Arc::new(SystemClock::new());
    let writer = SpoolWriter::start(Arc::clone(&bench.spool), history(), 0, closed_sender, clock);
    writer.begin(header(1), None).await.unwrap();
    writer.bytes(COMMAND.repeat(4), 4 * length).await.unwrap();
    for number in 0..=4 {
        writer.time(TimeSample { from_ms: 5, until_ms: 6, offset: number * length }).await.unwrap();
    }
    let end = PieceEnd { end: 4 * length, commands: 4, full: false };
    writer.begin(header(4 * length + 1), Some(end)).await.unwrap();
    let file = closed.recv().await.unwrap();
    assert!(file.packed.is_some());
    let path = file.path.clone();
    let (record, raw) = sealed(&bench, file, 2 * length + 1).await;
    assert_eq!((record.commands, record.times.samples().len()), (2, 3));
    assert_eq!(raw, COMMAND.repeat(2));
    assert!(!path.exists());
    assert_eq!(bench.segments().await, [1, 1, 2 * length + 1]);
    // Half of it is damaged as well, and what one command takes alone can't be cut.
    damage(1..2 * length + 1).await;
    let file = bench.file_of(1, 4);
    assert!(bench.settle(&file, true).await.unwrap());
    assert_eq!(bench.segments().await, [1, 1, 1, length + 1, 2 * length + 1]);
    for start in [0, length] {
        damage(start + 1..start + length + 1).await;
    }
    let file = bench.file_of(1, 4);
    let error = bench.settle(&file, true).await.unwrap_err();
    assert!(error.to_string().contains("delete that object by hand") && file.exists(), "{error}");
}

/// A file that can't be sealed is tried again and again.
#[tokio::test]
async fn a_segment_is_read_once_to_know_whether_it_is_whole() {
    let bench = Bench::new().await;
    bench.settle(&bench.file(1), true).await.unwrap();
    let segments = bench.repository.segments("main", &history()).await.unwrap();
    let path = bench.folder.path().join("repo").join(segments[0].path());
    let bytes = std::fs::read(&path).unwrap();
    let written_at = path.metadata().unwrap().modified().unwrap();
    // Behind the store's back: it shows the same as before.
    let put = |bytes: &[u8], at: std::time::SystemTime| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_modified(at).unwrap();
    };
    let spoiled = vec![0; bytes.len()];
    let held = async |known: &WholeSegments| {
        is_held(&bench.repository, &header(1), COMMAND.len() as u64, known).await.unwrap()
    };
    let known = WholeSegments::default();
    assert!(held(&known).await);
    put(&spoiled, written_at);
    assert!(held(&known).await, "it was read again");
    let other = WholeSegments::default();
    assert!(!held(&other).await);
    put(&bytes, written_at);
    assert!(!held(&other).await, "it was read again");
    // It was written anew.
    put(&bytes, written_at + Duration::from_secs(5));
    assert!(held(&other).await && held(&known).await);
}

/// Who has slept longer than its lease asks before it writes.
#[tokio::test]
async fn nothing_is_written_after_a_sleep_before_the_lease_is_confirmed() {
    let bench = Bench::new().await;
    let hold = bench.take("one", None).await;
    let record = hold.record().clone();
    let lease = TakenLease::new("line-a".to_owned(), hold, bench.time.clone(), Arc::<Notify>::default());
    bench.time.holds_until(0);
    assert!(lease.may_write().await.unwrap(), "nobody has taken it");
    bench.take("two", Some(&record)).await;
    assert!(!lease.may_write().await.unwrap());
    bench.time.holds_until(u64::MAX);
    assert!(!lease.may_write().await.unwrap(), "lost once is lost for ever");
}

/// Seals a file, and gives the record and the bytes of the segment that holds `start`.
async fn sealed(bench: &Bench, file: ClosedFile, start: u64) -> (SegmentRecord, Vec<u8>) {
    let sealer = Sealer {
        context: bench.context.clone(),
        repository: bench.repository.clone(),
        folder: Arc::clone(&bench.spool),
        patience: Patience::None,
        halt: CancellationToken::new(),
        line: None,
        lease: None,
        abandoned: None,
    }
    .start();
    sealer.files().send(file).unwrap();
    sealer.finish().await.unwrap();
    let segments = bench.repository.segments("main", &history()).await.unwrap();
    let entry = segments.into_iter().find(|segment| segment.start == start).unwrap();
    let mut reader = bench.repository.read_segment(&entry).await.unwrap();
    let record = reader.record().clone();
    let mut raw = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        raw.extend(bytes);
    }
    (record, raw)
}

#[tokio::test]
async fn a_file_is_sealed_alike_with_its_pack_and_without() {
    let (packed_bench, plain_bench) = (Bench::new().await, Bench::new().await);
    let (closed_sender, mut closed) = mpsc::unbounded_channel();
    let clock = Arc::new(SystemClock::new());
    let writer = SpoolWriter::start(Arc::clone(&packed_bench.spool), history(), 0, closed_sender, clock);
    let length = COMMAND.len();
    // More than one frame, each time, in pieces that cut commands.
    let stream = COMMAND.repeat(60_000);
    let sample = |offset| TimeSample { from_ms: 5, until_ms: 6, offset };
    let mut start = 1;
    writer.begin(header(start), None).await.unwrap();
    for (full, effort) in [(true, Effort::Usual), (false, Effort::Light)] {
        writer.time(sample(start - 1)).await.unwrap();
        let mut given = 0;
        for piece in stream.chunks(99_999) {
            given += piece.len();
            let safe_cut = start - 1 + (given - given % length) as u64;
            writer.bytes(piece.to_vec(), safe_cut).await.unwrap();
        }
        start += given as u64;
        writer.time(sample(start - 1)).await.unwrap();
        let end = PieceEnd { end: start - 1, commands: 60_000, full };
        writer.begin(header(start), Some(end)).await.unwrap();
        let file = closed.recv().await.unwrap();
        let begun = start - given as u64;
        assert!(file.packed.is_some() && file.effort == effort);
        let copy = plain_bench.folder.path().join(format!("{begun}.spool"));
        std::fs::copy(&file.path, &copy).unwrap();
        let plain = ClosedFile { path: copy, packed: None, effort: file.effort };
        let (with, without) =
            (sealed(&packed_bench, file, begun).await, sealed(&plain_bench, plain, begun).await);
        assert_eq!(with.0, without.0);
        assert_eq!((with.0.commands, with.0.times.samples().len()), (60_000, 2));
        assert!(with.1 == stream && without.1 == stream);
    }
    // What no cut has ended may hold half a command: only its file tells.
    writer.bytes(stream[..length + 5].to_vec(), start - 1 + length as u64).await.unwrap();
    let state = writer.end().await;
    assert_eq!(state.durable, start - 1 + length as u64);
    let file = closed.recv().await.unwrap();
    assert!(file.packed.is_none());
    let (record, raw) = sealed(&packed_bench, file, start).await;
    assert_eq!((record.commands, raw.as_slice()), (1, COMMAND));
}

/// Two failovers without a byte between them: no file is the second history's, and without its record the third one leads nowhere.
#[tokio::test]
async fn a_history_that_ended_before_its_first_byte_is_written_down_with_the_next_one() {
    let bench = Bench::new().await;
    let [second, third] = ["b", "c"].map(|letter| letter.repeat(40).parse::<ReplId>().unwrap());
    let fork = COMMAND.len() as u64;
    let parent_of_second = Parent { history: history(), fork };
    let parent_of_third = Parent { history: second.clone(), fork };
    let mut state = LineState::default();
    state.lineage.add(&second, &parent_of_second);
    state.lineage.add(&third, &parent_of_third);
    let (_state, line) = watch::channel(state);
    let mut bytes = Vec::new();
    let header =
        SpoolHeader { history: third.clone(), parent: Some(parent_of_third.clone()), ..header(fork + 1) };
    encode_header(&header, &mut bytes).unwrap();
    encode_bytes(COMMAND, &mut bytes);
    let path = bench.folder.path().join("third.spool");
    std::fs::write(&path, bytes).unwrap();
    let sealer = Sealer {
        context: bench.context.clone(),
        repository: bench.repository.clone(),
        folder: Arc::clone(&bench.spool),
        patience: Patience::None,
        halt: CancellationToken::new(),
        line: Some(line),
        lease: None,
        abandoned: None,
    }
    .start();
    sealer.files().send(ClosedFile { path, packed: None, effort: Effort::Usual }).unwrap();
    sealer.finish().await.unwrap();
    for (history, parent) in [(second, parent_of_second), (third, parent_of_third)] {
        let record = bench.repository.history("main", &history).await.unwrap();
        assert_eq!(record.and_then(|record| record.parent), Some(parent), "{history}");
    }
}
