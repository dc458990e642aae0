mod origins;
mod unread_looks;

use std::sync::Arc;

use proptest::prelude::*;
use slotkeep_format::lineage::{HISTORY_VERSION, TOPOLOGY_VERSION};
use slotkeep_format::manifest::{
    BackupKind, BaseRecord, CrcRecord, FORMAT_VERSION, NodeRecord, ProductRecord, RoleRecord, ServerRecord,
    ShardRecord,
};
use slotkeep_format::timeline::Timeline;
use slotkeep_format::{
    HistoryRecord, Holder, LeaseNote, LineBase, LineShard, Parent, TimeSample, TopologyRecord,
};
use slotkeep_model::{ReplId, ReplOffset};
use slotkeep_repo::layout::BaseLayout;
use slotkeep_repo::{Location, Repository, SegmentMeta};
use tempfile::TempDir;

use super::moment::{End, cut_by};
use super::*;
use crate::Context;
use crate::log::pattern::Pattern;
use crate::log::search::find;
use crate::log::windows::{Moments, history_graph, restorable};
use crate::net::{Connector, ConnectorOptions};
use crate::ports::{SystemClock, SystemRng};
use crate::progress::ShardProgress;

const COMMAND: &[u8] = b"*3\r\n$3\r\nDEL\r\n$1\r\nk\r\n$1\r\nv\r\n";
/// One as long that writes to a key of slot 7629.
const WRITE: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";
/// Everything happens shortly behind this, in ms since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// The last byte of so many commands.
fn behind(commands: u64) -> u64 {
    commands * COMMAND.len() as u64
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(EPOCH_MS + ms).unwrap()
}

fn span(from: i64, to: i64) -> Moments {
    Moments { from: at(from), to: at(to) }
}

fn history(letter: char) -> ReplId {
    letter.to_string().repeat(40).parse().unwrap()
}

fn node() -> NodeRecord {
    NodeRecord { id: None, addr: "127.0.0.1:1".parse().unwrap(), online: true }
}

fn server() -> ServerRecord {
    ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() }
}

fn context() -> Context {
    Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
        stop: tokio_util::sync::CancellationToken::new(),
    }
}

/// A repository with the past of a made-up cluster.
struct Kept {
    folder: TempDir,
    repository: Repository,
    backups: usize,
}

impl Kept {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Folder(folder.path().join("repo"));
        let repository = Repository::init(&location, "0".repeat(32), at(0)).await.unwrap();
        Self { folder, repository, backups: 0 }
    }

    async fn history(&self, letter: char, parent: Option<(char, u64)>, first_seen_ms: i64) {
        self.history_of("0-16383", letter, parent, first_seen_ms).await;
    }

    async fn history_of(&self, slots: &str, letter: char, parent: Option<(char, u64)>, first_seen_ms: i64) {
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: history(letter),
            parent: parent.map(|(letter, fork)| Parent { history: history(letter), fork: behind(fork) }),
            slots: slots.parse().unwrap(),
            source: node().addr,
            first_seen_at: at(first_seen_ms),
        };
        self.repository.put_history("main", &record).await.unwrap();
    }

    /// The commands of a history from one up to before another, and by when so many of them had been written.
    async fn log(&self, letter: char, commands: std::ops::Range<u64>, times: &[(u64, i64)]) {
        self.log_with(letter, commands, times, None).await;
    }

    /// The same with a write behind so many of them.
    async fn log_with(
        &self,
        letter: char,
        commands: std::ops::Range<u64>,
        times: &[(u64, i64)],
        written: Option<u64>,
    ) {
        let mut timeline = Timeline::default();
        for (count, ms) in times {
            let (from_ms, until_ms) = (EPOCH_MS + ms, EPOCH_MS + ms);
            assert!(timeline.push(TimeSample { from_ms, until_ms, offset: behind(*count) }));
        }
        let meta = SegmentMeta {
            database: Some(0),
            commands: commands.end - commands.start,
            source: node().addr,
            server: server(),
            times: timeline,
        };
        let range = behind(commands.start) + 1..behind(commands.end) + 1;
        let mut writer = self.repository.create_segment("main", &history(letter), range).await.unwrap();
        for number in commands {
            writer.write(if written == Some(number) { WRITE } else { COMMAND }).await.unwrap();
        }
        writer.finish(meta).await.unwrap();
    }

    /// How the cluster looked from then on.
    async fn look(&self, ms: i64, shards: &[(&str, char)]) {
        let shards: Vec<_> = shards.iter().map(|(slots, letter)| (*slots, *letter, "", None)).collect();
        self.look_at(ms, &shards, true).await;
    }

    /// The same, with the slots that come to each shard, and behind how many commands it stood.
    async fn look_at(&self, ms: i64, shards: &[(&str, char, &str, Option<u64>)], cluster_mode: bool) {
        let state = |(slots, letter, importing, commands): &(&str, char, &str, Option<u64>)| ShardState {
            slots: slots.parse().unwrap(),
            importing: importing.parse().unwrap(),
            migrating: SlotSet::default(),
            unfollowed: SlotSet::default(),
            config_epoch: 1,
            primary: node(),
            replicas: vec![],
            history: Some(history(*letter)),
            offset: commands.map(behind),
        };
        let record = TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: format!("{:013}-t", ms + 1_000_000),
            seen_at: at(ms),
            as_before_until: Some(at(ms - 1)),
            cluster_mode,
            current_epoch: 1,
            shards: shards.iter().map(state).collect(),
        };
        self.repository.put_topology("main", &record).await.unwrap();
    }

    /// A base behind so many commands.
    async fn base(&self, id: &str, slots: &str, letter: char, commands: u64) -> ShardRecord {
        let layout = BaseLayout::new("main", &history(letter), ReplOffset(behind(commands)), id);
        let mut writer = self.repository.create_object(layout.rdb()).await.unwrap();
        writer.write(vec![0; 8].into()).await.unwrap();
        ShardRecord {
            slots: slots.parse().unwrap(),
            config_epoch: 1,
            primary: node(),
            replicas: vec![],
            source: node().addr,
            source_role: RoleRecord::Primary,
            server: server(),
            history: history(letter),
            offset: behind(commands),
            server_time: None,
            base: BaseRecord {
                rdb: writer.finish(8).await.unwrap(),
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
        }
    }

    async fn backup(&mut self, shards: &[(&str, char, u64)]) -> String {
        let id = format!("20231114T22132{}.000Z-aaaa", self.backups);
        self.backups += 1;
        let mut records = Vec::new();
        for (slots, letter, commands) in shards {
            records.push(self.base(&id, slots, *letter, *commands).await);
        }
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            id: id.clone(),
            cluster: "main".to_owned(),
            kind: BackupKind::Full,
            partial: false,
            missing_slots: SlotSet::default(),
            started_at: at(0),
            finished_at: at(0),
            slotkeep_version: "0".to_owned(),
            cluster_mode: true,
            current_epoch: 1,
            shards: records,
            settings: vec![],
            cut: None,
            digest: None,
        };
        self.repository.commit(&manifest).await.unwrap();
        id
    }

    /// An agent's word that a line begins with that base.
    async fn tell(&self, line: &str, record: ShardRecord) {
        let holder = Holder { process: "one".to_owned(), agent: None, duration_ms: 1000 };
        let base = Some(LineBase { record, digest: None });
        let shard = LineShard { primary: node(), replicas: vec![], base };
        let note = LeaseNote { shard: Some(Box::new(shard)), ..LeaseNote::default() };
        let taken = self.repository.take_lease("main", line, None, &holder, note).await.unwrap();
        assert!(taken.is_some());
    }

    async fn past(&self) -> Past {
        Past::load(&self.repository, "main").await.unwrap()
    }
}

async fn moments(past: &Past) -> Vec<Moments> {
    restorable(past).await.unwrap().moments
}

/// The last byte of each shard at the last moment, as commands.
async fn latest(past: &Past) -> (i64, Vec<(char, u64)>, Vec<PassedOver>) {
    let point = resolve(past, &Aim::Latest).await.unwrap();
    let cut = |shard: &ShardPoint| {
        let letter = shard.cut.history.to_string().chars().next().unwrap();
        (letter, shard.cut.offset / COMMAND.len() as u64)
    };
    let cuts = point.shards.iter().map(cut).collect();
    (point.at.unwrap().as_millisecond() - EPOCH_MS, cuts, point.passed_over)
}

/// One shard's log: pieces, each of so many commands, whether it is kept, and for how many ms each of its commands took; and behind how many
/// commands there are bases.
#[derive(Clone, Debug)]
struct Line {
    pieces: Vec<(bool, Vec<i64>)>,
    bases: Vec<u64>,
}

fn lines() -> impl Strategy<Value = Line> {
    let piece = (prop::bool::weighted(0.75), prop::collection::vec(0_i64..3, 1..4));
    (prop::collection::vec(piece, 1..6), prop::collection::vec(0_u64..12, 1..4))
        .prop_map(|(pieces, bases)| Line { pieces, bases })
}

async fn keep(kept: &Kept, letter: char, line: &Line) {
    kept.history(letter, None, 0).await;
    let (mut commands, mut ms) = (0, 0);
    for (is_kept, steps) in &line.pieces {
        let first = commands;
        let mut times = vec![(commands, ms)];
        for step in steps {
            commands += 1;
            ms += step;
            times.push((commands, ms));
        }
        if *is_kept {
            kept.log(letter, first..commands, &times).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// What `list` offers can be restored, up to its very ends; and so can the end of each shard's own windows.
    #[test]
    fn every_moment_that_is_offered_can_be_reached(one in lines(), two in lines()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut kept = Kept::new().await;
            let slots = ["0-99", "100-16383"];
            for (letter, line) in [('a', &one), ('b', &two)] {
                keep(&kept, letter, line).await;
            }
            kept.look(-1_000_000, &[(slots[0], 'a'), (slots[1], 'b')]).await;
            for number in 0..one.bases.len().max(two.bases.len()) {
                let of = |line: &Line| line.bases[number % line.bases.len()];
                kept.backup(&[(slots[0], 'a', of(&one)), (slots[1], 'b', of(&two))]).await;
            }
            let past = kept.past().await;
            let offered = restorable(&past).await.unwrap();
            for window in &offered.shards {
                let path = past.chain.path(&window.history);
                for moment in window.moments.iter().flat_map(|moments| [moments.from, moments.to]) {
                    for end in [End::Known, End::MayBeEarlier] {
                        let cut = cut_by(&past, &path, (moment.as_millisecond(), end), &window.slots).await;
                        let cut = cut.unwrap();
                        assert!(window.from.offset <= cut.offset, "{window:?}");
                    }
                }
                let last = window.moments.map(|moments| moments.to.as_millisecond());
                if let Some(last) = last {
                    let cut = cut_by(&past, &path, (last, End::Known), &window.slots).await.unwrap();
                    assert_eq!(cut.may_lack_ms, Some(0));
                }
            }
            for moment in offered.moments.iter().flat_map(|span| [span.from, span.to]) {
                resolve(&past, &Aim::Moment(moment)).await.unwrap();
            }
            if past.has_log() {
                let latest = resolve(&past, &Aim::Latest).await;
                let last = offered.moments.last().map(|span| span.to);
                assert_eq!(latest.as_ref().ok().and_then(|point| point.at), last, "{:?}", latest.err());
            }
        });
    }
}

#[tokio::test]
async fn a_refusal_names_the_end_of_the_log_before_a_gap() {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.log('a', 0..2, &[(0, 0), (2, 100)]).await;
    kept.log('a', 5..9, &[(5, 500), (9, 900)]).await;
    kept.look(-1, &[("0-16383", 'a')]).await;
    kept.backup(&[("0-16383", 'a', 0)]).await;
    let past = kept.past().await;
    assert_eq!(moments(&past).await, [span(0, 100)]);
    resolve(&past, &Aim::Moment(at(100))).await.unwrap();
    let refused = resolve(&past, &Aim::Moment(at(101))).await.unwrap_err();
    assert!(refused.to_string().contains("their log ends at 2023-11-14T22:13:20.1Z"), "{refused}");
    // What is to be undone lies in the gap: there were writes before it.
    let before = Aim::Before { places: vec![], moment_ms: EPOCH_MS + 300 };
    assert_eq!(resolve(&past, &before).await.unwrap_err().kind(), ErrorKind::Gap);
    kept.backup(&[("0-16383", 'a', 6)]).await;
    let past = kept.past().await;
    assert_eq!(moments(&past).await, [span(0, 100), span(900, 900)]);
    let refused = resolve(&past, &Aim::Moment(at(101))).await.unwrap_err();
    let words = "a gap from 2023-11-14T22:13:20.1Z to 2023-11-14T22:13:20.9Z";
    assert!(refused.to_string().contains(words), "{refused}");
}

/// A replica took over and was followed for a moment; then it went, and the old primary served on.
async fn abandoned_takeover() -> Kept {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.history('b', Some(('a', 4)), 60_000).await;
    kept.backup(&[("0-16383", 'a', 0)]).await;
    kept.log('a', 0..4, &[(0, 0), (4, 59_000)]).await;
    kept.log('b', 4..6, &[(4, 60_000), (6, 62_000)]).await;
    kept.log('a', 4..9, &[(4, 90_000), (9, 99_000)]).await;
    kept.look(-1, &[("0-16383", 'a')]).await;
    kept.look(60_500, &[("0-16383", 'b')]).await;
    kept
}

#[tokio::test]
async fn the_line_that_the_cluster_follows_is_the_main_one() {
    let kept = abandoned_takeover().await;
    // Nobody has seen yet that the old primary serves on.
    let past = kept.past().await;
    assert_eq!(latest(&past).await.1, [('b', 6)]);
    let tail = |past: Past| async move {
        let graph = history_graph(&past).await.unwrap();
        let node = graph.into_iter().find(|node| node.history == history('a')).unwrap();
        node.divergent.map(|log| (log.first, log.last))
    };
    assert_eq!(tail(past).await, Some((behind(4) + 1, behind(9))));

    kept.look(95_000, &[("0-16383", 'a')]).await;
    let past = kept.past().await;
    assert_eq!(latest(&past).await, (99_000, vec![('a', 9)], vec![]));
    assert_eq!(moments(&past).await.last().unwrap().to, at(99_000));
    let point = resolve(&past, &Aim::Moment(at(62_000))).await.unwrap();
    assert_eq!(point.shards[0].cut.history, history('b'));
    assert_eq!(tail(past).await, None);

    // The next takeover goes on from there.
    kept.history('c', Some(('a', 9)), 100_000).await;
    kept.log('c', 9..12, &[(9, 100_000), (12, 110_000)]).await;
    assert_eq!(latest(&kept.past().await).await.1, [('c', 12)]);
}

#[tokio::test]
async fn an_accident_on_a_line_that_was_left_is_found() {
    let kept = abandoned_takeover().await;
    let past = kept.past().await;
    let context = context();
    let progress = ShardProgress::new("searching".to_owned());
    let search = async |after: i64| {
        let pattern = Pattern::parse("DEL").unwrap();
        let found = find(&context, &past, &pattern, Some(at(after)), &progress).await.unwrap();
        let places = found.matches.iter().map(|found| (found.history.clone(), found.offset));
        (found.moment_ms - EPOCH_MS, places.collect::<Vec<_>>())
    };
    // Of two lines of one shard that were hit, the one that went on counts.
    assert_eq!(search(59_000).await, (62_000, vec![(history('b'), behind(4) + 1)]));
    assert_eq!(search(63_000).await, (99_000, vec![(history('a'), behind(4) + 1)]));
    let options = crate::log::survey::SurveyOptions::default();
    let seen = crate::log::survey::survey(&context, &past, &options, &progress, |_| {}, false).await.unwrap();
    // Each command once, although both lines begin with the same ones.
    let commands: Vec<u64> = seen.shards.iter().map(|shard| shard.commands).collect();
    assert_eq!(commands, [6, 5]);
}

/// As where an archive ended right behind the command.
#[tokio::test]
async fn a_command_in_a_segment_without_samples_is_dated_by_those_before() {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.look(0, &[("0-16383", 'a')]).await;
    kept.backup(&[("0-16383", 'a', 0)]).await;
    let search = async |kept: &Kept| {
        let (past, pattern) = (kept.past().await, Pattern::parse("DEL").unwrap());
        let found =
            find(&context(), &past, &pattern, None, &ShardProgress::new("searching".to_owned())).await?;
        let places = found.matches.iter().map(|found| found.before.clone()).collect();
        let point = resolve(&past, &Aim::Before { places, moment_ms: found.moment_ms }).await?;
        Ok::<_, Error>((found, point.shards[0].cut.offset))
    };
    kept.log('a', 0..1, &[]).await;
    assert!(search(&kept).await.unwrap_err().to_string().contains("no time samples"));
    kept.log('a', 1..4, &[(1, 90_000), (4, 190_000)]).await;
    kept.log('a', 4..6, &[]).await;
    let (found, cut) = search(&kept).await.unwrap();
    assert_eq!((found.moment_ms - EPOCH_MS, cut), (190_000, behind(1)));
    assert_eq!(found.matches.len(), 1);
}

/// As where a command came between the last sample of its segment and the cut.
#[tokio::test]
async fn a_command_behind_the_last_sample_of_its_segment_is_dated_by_the_next_one() {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.look(0, &[("0-16383", 'a')]).await;
    kept.backup(&[("0-16383", 'a', 0)]).await;
    kept.log('a', 0..3, &[(0, 0), (2, 20_000)]).await;
    kept.log('a', 3..6, &[(3, 30_000), (5, 50_000)]).await;
    kept.log('a', 6..9, &[(6, 160_000), (9, 190_000)]).await;
    let past = kept.past().await;
    let pattern = Pattern::parse("DEL").unwrap();
    let search = async |after| {
        let progress = ShardProgress::new("searching".to_owned());
        let found = find(&context(), &past, &pattern, Some(at(after)), &progress).await.unwrap();
        (found.moment_ms - EPOCH_MS, found.matches[0].before.offset)
    };
    // The third command was written between the samples of 20 s and of 30 s.
    assert_eq!(search(20_000).await, (30_000, behind(2)));
    assert_eq!(search(25_000).await, (30_000, behind(2)));
    assert_eq!(search(30_000).await, (50_000, behind(3)));
    // The sixth one only after 50 s.
    assert_eq!(search(50_000).await, (160_000, behind(5)));
    assert_eq!(search(159_000).await, (160_000, behind(5)));
}

#[tokio::test]
async fn a_cluster_without_slots_has_no_moments() {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.look(-500, &[]).await;
    kept.look(50, &[("0-16383", 'a')]).await;
    kept.backup(&[("0-16383", 'a', 0)]).await;
    kept.log('a', 0..4, &[(0, 100), (4, 9_000)]).await;
    // Who served what was seen at 50, by a clock that may be two seconds off.
    assert_eq!(moments(&kept.past().await).await, [span(2_050, 9_000)]);
}

#[tokio::test]
async fn the_last_moment_is_the_last_one_that_is_offered_and_says_what_it_passes_over() {
    let mut kept = Kept::new().await;
    let [one, two] = ["0-99", "100-16383"];
    for letter in ['a', 'b'] {
        kept.history(letter, None, 0).await;
    }
    kept.look(-1, &[(one, 'a'), (two, 'b')]).await;
    kept.backup(&[(one, 'a', 0), (two, 'b', 0)]).await;
    kept.log('a', 0..4, &[(0, 0), (4, 400)]).await;
    kept.log('a', 6..9, &[(6, 600), (9, 900)]).await;
    kept.log('b', 0..5, &[(0, 0), (4, 400), (5, 500)]).await;
    // A base of each behind a gap, one of them without log.
    kept.backup(&[(one, 'a', 6), (two, 'b', 8)]).await;
    let past = kept.past().await;
    assert_eq!(moments(&past).await, [span(0, 400)]);
    let (ms, cuts, passed) = latest(&past).await;
    assert_eq!((ms, cuts), (400, vec![('a', 4), ('b', 4)]));
    let said: Vec<_> = passed
        .iter()
        .map(|passed| (passed.slots.to_string(), passed.from.as_ref().unwrap().offset, passed.since))
        .collect();
    assert_eq!(said, [(one.to_owned(), behind(6), Some(at(600))), (two.to_owned(), behind(8), None)]);
}

#[tokio::test]
async fn the_last_moment_says_whose_log_ends_first_and_what_others_have_behind_it() {
    let [one, two] = ["0-99", "100-16383"];
    let kept = async |end_ms: i64| {
        let mut kept = Kept::new().await;
        for letter in ['a', 'b'] {
            kept.history(letter, None, 0).await;
        }
        kept.look(-1, &[(one, 'a'), (two, 'b')]).await;
        kept.backup(&[(one, 'a', 0), (two, 'b', 0)]).await;
        kept.log('a', 0..4, &[(0, 0), (4, 400)]).await;
        kept.log('a', 4..9, &[(4, 500), (9, end_ms)]).await;
        kept.log('b', 0..4, &[(0, 0), (4, 400)]).await;
        kept
    };
    // It may only have been sealed earlier.
    let (ms, _, passed) = latest(&kept(120_400).await.past().await).await;
    assert_eq!((ms, passed), (400, vec![]));
    // It may not: the rest of it is lost, or nobody follows it any more.
    let (ms, _, passed) = latest(&kept(120_401).await.past().await).await;
    assert_eq!((ms, passed.len()), (400, 1));
    assert_eq!((passed[0].slots.to_string(), passed[0].until), (one.to_owned(), Some(at(120_401))));
    assert_eq!(passed[0].held_back_by, Some(two.parse().unwrap()));
    assert!(passed[0].goes_on_from(at(400)));
}

#[tokio::test]
async fn a_base_that_an_agent_tells_of_counts_like_one_of_a_backup() {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.look(-1, &[("0-16383", 'a')]).await;
    let id = kept.backup(&[("0-16383", 'a', 0)]).await;
    kept.log('a', 0..9, &[(0, 0), (1, 9_000), (9, 90_000)]).await;
    // A slot was given to a new shard, and others are on their way: there is no backup since.
    kept.history('b', None, 11_000).await;
    kept.look(10_000, &[("1-16383", 'a'), ("0", 'b')]).await;
    let told = kept.base("20231114T221331.000Z-bbbb", "0", 'b', 2).await;
    kept.tell("line-b", told.clone()).await;
    kept.log('b', 2..7, &[(2, 20_000), (7, 80_000)]).await;
    let past = kept.past().await;
    assert_eq!(moments(&past).await, [span(0, 7_999), span(20_000, 80_000)]);
    let point = resolve(&past, &Aim::Latest).await.unwrap();
    assert_eq!((point.at, point.passed_over.len()), (Some(at(80_000)), 0));
    // The backup that the point is said to be of is one that is there.
    assert_eq!(point.manifest.id, id);
    let graph = history_graph(&past).await.unwrap();
    let listed =
        |letter| graph.iter().find(|node| node.history == history(letter)).unwrap().bases[0].backup.clone();
    assert_eq!((listed('a'), listed('b')), (Some(id), None));
    // One that a prune has deleted since is none.
    kept.repository.discard(&told.base.rdb.path).await.unwrap();
    let past = kept.past().await;
    assert_eq!(moments(&past).await, [span(0, 7_999)]);
    let (ms, _, passed) = latest(&past).await;
    assert_eq!(ms, 7_999);
    assert_eq!(passed.iter().map(|passed| passed.slots.to_string()).collect::<Vec<_>>(), ["0"]);
}

/// Two shards of which the first was written to, outside of its slots, behind so many commands. The cluster was looked at behind the first four.
async fn written_outside(
    written: u64,
    importing: &str,
    offset: Option<u64>,
    cluster_mode: bool,
) -> (Kept, Past) {
    let mut kept = Kept::new().await;
    let [one, two] = ["0-99", "100-16383"];
    for letter in ['a', 'b'] {
        kept.history(letter, None, 0).await;
    }
    kept.backup(&[(one, 'a', 0), (two, 'b', 0)]).await;
    kept.look_at(4_000, &[(one, 'a', importing, offset), (two, 'b', "", Some(4))], cluster_mode).await;
    let times = [(0, 0), (4, 4_000), (6, 60_000), (8, 80_000), (10, 100_000)];
    kept.log_with('a', 0..10, &times, Some(written)).await;
    kept.log('b', 0..10, &times).await;
    let past = kept.past().await;
    (kept, past)
}

#[tokio::test]
async fn a_moment_behind_a_move_that_nobody_saw_is_refused() {
    let moment = async |past: &Past, ms: i64| resolve(past, &Aim::Moment(at(ms))).await;
    for offset in [Some(4), None] {
        let (_kept, past) = written_outside(8, "", offset, true).await;
        for refused in [resolve(&past, &Aim::Latest).await, moment(&past, 100_000).await] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Gap);
            assert!(
                refused.to_string().starts_with("slots 7629 changed hands, or began to, after"),
                "{refused}"
            );
            // Clocks may be two seconds apart.
            let hint = "restore to 2023-11-14T22:14:38Z or earlier (--at 2023-11-14T22:14:38Z)";
            assert_eq!(refused.advice(), Some(hint));
        }
        for ms in [78_000, 80_000] {
            assert_eq!(moment(&past, ms).await.unwrap().at, Some(at(ms)));
        }
    }
}

#[tokio::test]
async fn writes_that_show_no_move_are_none() {
    let latest = async |(_kept, past): (Kept, Past)| resolve(&past, &Aim::Latest).await.unwrap().at;
    let last = Some(at(100_000));
    // Before the look the slot may have been the shard's own; it may be on its way; a server alone serves all.
    assert_eq!(latest(written_outside(3, "", Some(4), true).await).await, last);
    assert_eq!(latest(written_outside(3, "", None, true).await).await, last);
    assert_eq!(latest(written_outside(8, "7629", Some(4), true).await).await, last);
    assert_eq!(latest(written_outside(8, "", Some(4), false).await).await, last);
}
