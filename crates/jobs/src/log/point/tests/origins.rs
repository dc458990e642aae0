//! What a record that says where a history comes from costs while it can't be read.

use slotkeep_format::manifest::ShardCut;

use super::*;
use crate::log::survey::{SurveyOptions, survey};

const ONE: &str = "0-99";
const TWO: &str = "100-16383";

impl Kept {
    fn record(&self, letter: char) -> std::path::PathBuf {
        self.folder.path().join(format!("repo/main/history/{}/history.json", history(letter)))
    }

    fn damage(&self, letter: char) {
        assert!(self.record(letter).exists());
        std::fs::write(self.record(letter), b"{").unwrap();
    }
}

/// A failover of the first of two shards, with a base before and one after it.
async fn failed_over() -> Kept {
    let mut kept = Kept::new().await;
    kept.history_of(ONE, 'a', None, 0).await;
    kept.history_of(ONE, 'b', Some(('a', 4)), 500).await;
    kept.history_of(TWO, 'c', None, 0).await;
    kept.look(-1, &[(ONE, 'a'), (TWO, 'c')]).await;
    kept.look(450, &[(ONE, 'b'), (TWO, 'c')]).await;
    kept.backup(&[(ONE, 'a', 0), (TWO, 'c', 0)]).await;
    kept.log('a', 0..4, &[(0, 0), (4, 400)]).await;
    // What the failover lost.
    kept.log('a', 4..6, &[(5, 410), (6, 420)]).await;
    kept.log('b', 4..9, &[(4, 500), (6, 3_000), (9, 9_000)]).await;
    kept.log('c', 0..9, &[(0, 0), (9, 9_000)]).await;
    kept.backup(&[(ONE, 'b', 6), (TWO, 'c', 6)]).await;
    kept
}

#[track_caller]
fn names_it(outcome: Result<Point>, letter: char) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let object = format!("main/history/{}/history.json", history(letter));
    assert!(error.to_string().contains(&object), "{error}");
    assert!(error.advice().unwrap().contains("slotkeep repair"), "{:?}", error.advice());
}

#[tokio::test]
async fn only_what_crosses_it_can_not_be_told() {
    let kept = failed_over().await;
    let whole = kept.past().await;
    assert!(moments(&whole).await.first().unwrap().from <= at(300));
    kept.damage('b');
    let past = kept.past().await;
    assert_eq!(past.backups.len(), 2);
    let unread: Vec<_> = past.unread_origins().map(|unread| (unread.history, unread.slots)).collect();
    assert_eq!(unread, [(history('b'), Some(ONE.parse().unwrap()))]);

    // From the base of the history itself on nothing needs the record.
    assert_eq!(moments(&past).await, [span(3_000, 9_000)]);
    let windows = restorable(&past).await.unwrap().shards;
    let marks: Vec<_> = windows
        .iter()
        .map(|window| {
            let marked = (window.unread_before.is_some(), window.unread_behind.is_some());
            (window.history.to_string().chars().next().unwrap(), marked)
        })
        .collect();
    assert_eq!(marks, [('a', (false, true)), ('b', (true, false)), ('c', (false, false))]);
    assert_eq!(latest(&past).await.1, [('b', 9), ('c', 9)]);
    assert_eq!(latest(&whole).await.1, latest(&past).await.1);
    resolve(&past, &Aim::Moment(at(5_000))).await.unwrap();
    for ms in [300, 410, 415, 1_000, 2_999] {
        names_it(resolve(&past, &Aim::Moment(at(ms))).await, 'b');
    }
    let place = |letter, commands| Place { history: history(letter), offset: behind(commands) };
    resolve(&past, &Aim::Places(vec![place('a', 2)])).await.unwrap();
    names_it(resolve(&past, &Aim::Places(vec![place('b', 5), place('c', 7)])).await, 'b');

    let graph = history_graph(&past).await.unwrap();
    let unread: Vec<_> =
        graph.iter().filter(|node| node.unread.is_some()).map(|node| &node.history).collect();
    assert_eq!(unread, [&history('b')]);
}

#[tokio::test]
async fn a_backup_whose_log_crosses_it_is_refused_and_no_other() {
    let kept = failed_over().await;
    let cut = |manifest: &Manifest| {
        let mut manifest = manifest.clone();
        manifest.shards[0].cut = Some(ShardCut { history: history('b'), offset: behind(8) });
        Aim::Backup(Box::new(manifest))
    };
    let [before, behind] = [0, 1];
    let past = kept.past().await;
    for number in [before, behind] {
        resolve(&past, &cut(&past.backups[number])).await.unwrap();
    }
    kept.damage('b');
    let past = kept.past().await;
    names_it(resolve(&past, &cut(&past.backups[before])).await, 'b');
    resolve(&past, &cut(&past.backups[behind])).await.unwrap();
}

#[tokio::test]
async fn an_earlier_moment_is_not_taken_for_the_last_one() {
    let mut kept = Kept::new().await;
    kept.history('a', None, 0).await;
    kept.history('b', Some(('a', 4)), 500).await;
    kept.look(-1, &[("0-16383", 'a')]).await;
    kept.look(450, &[("0-16383", 'b')]).await;
    kept.backup(&[("0-16383", 'a', 0)]).await;
    kept.log('a', 0..4, &[(0, 0), (4, 400)]).await;
    kept.log('b', 4..9, &[(4, 500), (9, 9_000)]).await;
    assert_eq!(latest(&kept.past().await).await.1, [('b', 9)]);
    kept.damage('b');
    let past = kept.past().await;
    assert!(moments(&past).await.is_empty());
    names_it(resolve(&past, &Aim::Latest).await, 'b');
}

/// A replica took over for a moment, and the old primary served on: whatever the short history comes from, the line is the same.
#[tokio::test]
async fn a_line_that_was_left_again_costs_the_one_that_went_on_nothing() {
    let kept = abandoned_takeover().await;
    kept.damage('b');
    // Nobody has seen yet that the old primary serves on.
    names_it(resolve(&kept.past().await, &Aim::Latest).await, 'b');
    kept.look(95_000, &[("0-16383", 'a')]).await;
    let past = kept.past().await;
    assert_eq!(latest(&past).await, (99_000, vec![('a', 9)], vec![]));
    resolve(&past, &Aim::Moment(at(30_000))).await.unwrap();
    names_it(resolve(&past, &Aim::Moment(at(62_000))).await, 'b');
}

#[tokio::test]
async fn every_command_of_the_log_is_shown_all_the_same() {
    let kept = failed_over().await;
    let context = Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let commands = async |past: &Past| {
        let (options, progress) = (SurveyOptions::default(), ShardProgress::new("looking".to_owned()));
        let found = survey(&context, past, &options, &progress, |_| {}, false).await.unwrap();
        found.shards.iter().map(|shard| shard.commands).sum::<u64>()
    };
    let whole = commands(&kept.past().await).await;
    kept.damage('b');
    assert_eq!(commands(&kept.past().await).await, whole);
}
