//! What a record of how the cluster looked costs while it can't be read.

use std::time::{Duration, SystemTime};

use super::*;

const ONE: &str = "0-99";
const TWO: &str = "100-16383";

impl Kept {
    /// A record that nobody can read: by its name of that moment, by the store written at the other one.
    fn spoiled_look(&self, ms: i64, written_ms: i64) -> String {
        let name = at(ms).strftime("main/topology/%Y%m%dT%H%M%S.%3fZ-aaaa.json").to_string();
        let path = self.folder.path().join("repo").join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"{").unwrap();
        let written_ms = u64::try_from(EPOCH_MS + written_ms).unwrap();
        let written = SystemTime::UNIX_EPOCH + Duration::from_millis(written_ms);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        name
    }
}

/// Two shards, of which every command took a second, looked at every ten seconds.
async fn looked_at(looks_ms: &[i64]) -> Kept {
    let mut kept = Kept::new().await;
    kept.history_of(ONE, 'a', None, 0).await;
    kept.history_of(TWO, 'b', None, 0).await;
    for ms in looks_ms {
        kept.look(*ms, &[(ONE, 'a'), (TWO, 'b')]).await;
    }
    kept.backup(&[(ONE, 'a', 0), (TWO, 'b', 0)]).await;
    for letter in ['a', 'b'] {
        let times: Vec<_> = (0..=30).map(|second| (second, i64::try_from(second).unwrap() * 1000)).collect();
        kept.log(letter, 0..30, &times).await;
    }
    kept
}

async fn spans(past: &Past) -> Vec<(i64, i64)> {
    let ms = |at: Timestamp| at.as_millisecond() - EPOCH_MS;
    moments(past).await.iter().map(|span| (ms(span.from), ms(span.to))).collect()
}

async fn resolve_at(past: &Past, ms: i64) -> Result<Point> {
    resolve(past, &Aim::Moment(at(ms))).await
}

#[tokio::test]
async fn only_the_moments_around_it_can_not_be_told() {
    let kept = looked_at(&[-1, 10_000, 20_000]).await;
    let whole = kept.past().await;
    assert_eq!(spans(&whole).await, [(0, 30_000)]);
    let object = kept.spoiled_look(12_000, 12_100);
    let past = kept.past().await;
    assert_eq!(past.backups.len(), 1);
    assert_eq!(spans(&past).await, [(0, 8_000), (22_000, 30_000)]);
    for ms in [1, 5_000, 8_000, 22_000, 29_000] {
        let (point, before) = (resolve_at(&past, ms).await.unwrap(), resolve_at(&whole, ms).await.unwrap());
        assert_eq!(point.manifest, before.manifest, "{ms}");
    }
    for ms in [8_001, 12_000, 15_000, 21_999] {
        let error = resolve_at(&past, ms).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(&object), "{error}");
        let hint = format!("restore to {} or earlier, or to {} or later", at(8_000), at(22_000));
        assert_eq!(error.advice(), Some(hint.as_str()));
    }
    let told: Vec<_> =
        past.unread_topologies().map(|unread| (unread.object, unread.from, unread.to)).collect();
    assert_eq!(told, [(object, Some(at(8_000)), Some(at(22_000)))]);
    past.expect_newest_look().unwrap();
}

/// A record may be written long after the look, and count from when it was written.
#[tokio::test]
async fn one_that_was_written_late_may_have_counted_until_then() {
    let kept = looked_at(&[-1, 10_000, 20_000]).await;
    kept.spoiled_look(5_000, 15_000);
    let past = kept.past().await;
    assert_eq!(spans(&past).await, [(22_000, 30_000)]);
    assert_eq!(resolve_at(&past, 12_000).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn behind_the_newest_one_nothing_can_be_told() {
    let kept = looked_at(&[-1, 10_000]).await;
    kept.spoiled_look(20_000, 20_100);
    let past = kept.past().await;
    assert_eq!(spans(&past).await, [(0, 8_000)]);
    assert_eq!(latest(&past).await.0, 8_000);
    let error = resolve_at(&past, 29_000).await.unwrap_err();
    assert_eq!(error.advice(), Some(format!("restore to {} or earlier", at(8_000)).as_str()));
    assert_eq!(past.expect_newest_look().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn without_another_one_no_moment_can_be_told() {
    let kept = looked_at(&[]).await;
    assert_ne!(spans(&kept.past().await).await, []);
    kept.spoiled_look(10_000, 10_100);
    let past = kept.past().await;
    assert_eq!(spans(&past).await, []);
    assert_eq!(resolve_at(&past, 5_000).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(resolve(&past, &Aim::Latest).await.is_err());
}
