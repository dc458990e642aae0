use super::*;
use crate::manifest::{
    AofMark, AofRecord, BackupKind, BaseRecord, CrcRecord, FORMAT_VERSION, NodeRecord, ProductRecord,
    ReadRecord, ReadSource, RoleRecord, ServerRecord, ShardCut, ShardRecord,
};
use slotkeep_model::SlotSet;

fn history(letter: char) -> ReplId {
    letter.to_string().repeat(40).parse().unwrap()
}

/// A backup of that moment, whose base is `base`, in history `a` at `offset`.
fn backup(finished_at: &str, base: &str, offset: u64) -> Manifest {
    let finished_at: Timestamp = finished_at.parse().unwrap();
    let node = || NodeRecord { id: None, addr: "127.0.0.1:1".parse().unwrap(), online: true };
    let rdb = ObjectRecord {
        path: base.to_owned(),
        stored_bytes: 1,
        raw_bytes: 1,
        blake3: String::new(),
        header: None,
    };
    let shard = ShardRecord {
        slots: SlotSet::full(),
        config_epoch: 1,
        primary: node(),
        replicas: vec![],
        source: node().addr,
        source_role: RoleRecord::Primary,
        server: ServerRecord { product: ProductRecord::Redis, version: "7.0.15".to_owned() },
        history: history('a'),
        offset,
        server_time: None,
        base: BaseRecord {
            rdb,
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
    Manifest {
        format_version: FORMAT_VERSION,
        id: finished_at.strftime("%Y%m%dT%H%M%S.000Z-aaaa").to_string(),
        cluster: "main".to_owned(),
        kind: BackupKind::Full,
        partial: false,
        missing_slots: SlotSet::default(),
        started_at: finished_at,
        finished_at,
        slotkeep_version: "0".to_owned(),
        cluster_mode: true,
        current_epoch: 1,
        shards: vec![shard],
        settings: vec![],
        cut: None,
        digest: None,
    }
}

fn plan(manifests: &[Manifest], policy: &RetentionPolicy) -> RetentionPlan {
    let now = manifests.iter().map(|manifest| manifest.finished_at).max().unwrap();
    plan_retention(held(manifests, &BTreeMap::new()), policy, now)
}

fn held<'a>(manifests: &'a [Manifest], parents: &'a BTreeMap<ReplId, Parent>) -> Holdings<'a> {
    Holdings { manifests, all_readable: true, parents, unlisted: &[] }
}

fn needed(plan: &RetentionPlan, letter: char) -> Vec<(u64, u64)> {
    plan.log.as_ref().unwrap().of(&history(letter)).iter().map(|range| (range.start, range.end)).collect()
}

/// One backup an hour over a hundred days, each with a base of its own.
fn hours() -> Vec<Manifest> {
    let first: Timestamp = "2026-01-01T00:30:00Z".parse().unwrap();
    (0..2400_u64)
        .map(|hour| {
            let at = first + SignedDuration::from_hours(i64::try_from(hour).unwrap());
            backup(&at.to_string(), &format!("base-{hour}"), hour * 10)
        })
        .collect()
}

fn kept_days(plan: &RetentionPlan) -> Vec<&str> {
    plan.keep.keys().filter_map(|id| id.get(..11)).collect()
}

#[test]
fn the_calendar_keeps_the_newest_of_each_period() {
    let policy = RetentionPolicy { hourly: 2, daily: 2, weekly: 2, monthly: 3, ..RetentionPolicy::default() };
    let plan = plan(&hours(), &policy);
    // The hundred days end on Friday, 10 April.
    let expected = ["20260228T23", "20260331T23", "20260405T23", "20260409T23", "20260410T22", "20260410T23"];
    assert_eq!(kept_days(&plan), expected);
    assert_eq!(plan.keep.len() + plan.remove.len(), 2400);
    assert_eq!(plan.objects.len(), 2400 - 6);
    // The log is needed from behind the oldest base that stays: hour 59 * 24 - 1.
    assert_eq!(needed(&plan, 'a'), [((59 * 24 - 1) * 10 + 1, u64::MAX)]);
}

#[test]
fn the_window_keeps_what_it_begins_with_and_pins_stay() {
    let policy = RetentionPolicy {
        window: Some(SignedDuration::from_mins(150)),
        pinned: ["20260102T003000.000Z-aaaa".to_owned()].into(),
        ..RetentionPolicy::default()
    };
    let plan = plan(&hours(), &policy);
    // Two and a half hours back from 23:30 is 21:00; the backup of 20:30 is where that moment is restored from.
    let expected = ["20260102T00", "20260410T20", "20260410T21", "20260410T22", "20260410T23"];
    assert_eq!(kept_days(&plan), expected);
    let first = plan.keep.values().next().unwrap();
    assert_eq!(*first, [KeptFor::Pinned].into());
}

#[test]
fn without_rules_the_newest_whole_one_stays() {
    let mut manifests = hours();
    manifests.last_mut().unwrap().partial = true;
    let plan = plan(&manifests, &RetentionPolicy::default());
    // The newest one of all stays too.
    assert_eq!(kept_days(&plan), ["20260410T22", "20260410T23"]);
    let nothing = held(&[], &NO_PARENTS);
    let plan = plan_retention(nothing, &RetentionPolicy::default(), Timestamp::UNIX_EPOCH);
    assert!(plan.keep.is_empty());
}

static NO_PARENTS: BTreeMap<ReplId, Parent> = BTreeMap::new();

#[test]
fn a_backup_that_no_log_goes_on_behind_begins_no_window() {
    let at = |hour: u32| format!("2026-01-01T{hour:02}:00:00Z");
    let mut manifests: Vec<Manifest> =
        (1..6).map(|hour| backup(&at(hour), &format!("base-{hour}"), u64::from(hour) * 10)).collect();
    for read_key_by_key in [2, 4] {
        let moment = manifests[read_key_by_key].finished_at;
        manifests[read_key_by_key].shards[0].read = Some(ReadRecord {
            source: ReadSource::Scan,
            from: moment,
            until: moment,
            anchored: false,
            database: None,
            without_functions: false,
            aof: None,
        });
    }
    // It begins at half past three, behind the scan of three o'clock: the backup of two is where that moment is restored from.
    let policy =
        RetentionPolicy { window: Some(SignedDuration::from_mins(90)), ..RetentionPolicy::default() };
    assert_eq!(plan(&manifests, &policy).remove, [manifests[0].id.clone(), manifests[2].id.clone()]);
    // The newest one is a scan; the newest that the log goes on behind stays too.
    let plan = plan(&manifests, &RetentionPolicy::default());
    assert_eq!(plan.keep.keys().collect::<Vec<_>>(), [&manifests[3].id, &manifests[4].id]);
}

/// Neither a log of replication nor one of files goes on behind a base of the other kind: the newest of each stays, and each kind has its own
/// beginning of the window.
#[test]
fn a_log_of_files_and_one_of_replication_keep_their_own_bases() {
    let at = |hour: u32| format!("2026-01-01T{hour:02}:00:00Z");
    let mut manifests: Vec<Manifest> =
        (1..7).map(|hour| backup(&at(hour), &format!("base-{hour}"), u64::from(hour) * 10)).collect();
    for of_files in [2, 4, 5] {
        let moment = manifests[of_files].finished_at;
        let mark = AofMark { file: "f".to_owned(), bytes: 1, blake3: "0".repeat(64) };
        manifests[of_files].shards[0].read = Some(ReadRecord {
            source: ReadSource::Aof,
            from: moment,
            until: moment,
            anchored: true,
            database: None,
            without_functions: false,
            aof: Some(AofRecord { base: mark.clone(), end: mark, database: None }),
        });
    }
    let ids = |kept: &[usize]| kept.iter().map(|number| manifests[*number].id.clone()).collect::<Vec<_>>();
    let newest = plan(&manifests, &RetentionPolicy::default());
    assert_eq!(newest.keep.into_keys().collect::<Vec<_>>(), ids(&[3, 5]));
    // It begins at half past four.
    let policy =
        RetentionPolicy { window: Some(SignedDuration::from_mins(90)), ..RetentionPolicy::default() };
    let window = plan(&manifests, &policy);
    assert_eq!(window.keep.into_keys().collect::<Vec<_>>(), ids(&[2, 3, 4, 5]));
}

#[test]
fn what_a_kept_backup_needs_stays() {
    let at = |hour: u32| format!("2026-01-01T{hour:02}:00:00Z");
    let full = backup(&at(1), "base-1", 100);
    // Two that go on from the first one's base: one within its history's child `b`, one in `c`, which forked from `b`.
    let mut second = backup(&at(2), "base-1", 100);
    second.shards[0].cut = Some(ShardCut { history: history('b'), offset: 200 });
    let mut third = backup(&at(3), "base-1", 100);
    third.shards[0].cut = Some(ShardCut { history: history('c'), offset: 300 });
    let mut apart = backup(&at(0), "base-0", 50);
    apart.shards[0].history = history('x');
    let parent = |letter, fork| Parent { history: history(letter), fork };
    let parents = [(history('b'), parent('a', 150)), (history('c'), parent('b', 250))].into();
    let manifests = [apart, full, second, third, backup(&at(4), "base-4", 400)];
    let policy = RetentionPolicy { last: 1, ..RetentionPolicy::default() };
    let now = manifests[3].finished_at;
    let plan = plan_retention(held(&manifests[..4], &parents), &policy, now);
    assert_eq!(kept_days(&plan), ["20260101T03"]);
    // The base is named by manifests that go, and by one that stays; so is the way to its cut.
    assert_eq!(plan.objects, ["base-0".to_owned()].into());
    assert_eq!(needed(&plan, 'a'), [(101, u64::MAX)]);
    assert_eq!(needed(&plan, 'b'), [(0, u64::MAX)]);
    assert_eq!(needed(&plan, 'c'), [(0, u64::MAX)]);
    assert_eq!(needed(&plan, 'x'), []);
    // As long as a manifest can't be read, nothing that it might need is given up.
    let blind = Holdings { all_readable: false, ..held(&manifests[..4], &parents) };
    let plan = plan_retention(blind, &policy, now);
    assert!(plan.objects.is_empty() && plan.log.is_none());
    assert_eq!(plan.remove.len(), 3);
}

/// No restore goes that way; so nobody knows which log would be of use.
#[test]
fn behind_a_base_that_its_cut_does_not_follow_all_log_stays() {
    let mut pinned = backup("2026-01-01T00:00:00Z", "base-1", 40);
    pinned.shards[0].cut = Some(ShardCut { history: history('b'), offset: 60 });
    let newest = backup("2026-01-20T00:00:00Z", "base-20", 900);
    let manifests = [pinned, newest];
    let policy = RetentionPolicy {
        window: Some(SignedDuration::from_hours(24)),
        pinned: [manifests[0].id.clone()].into(),
        ..RetentionPolicy::default()
    };
    let now: Timestamp = "2026-01-23T00:00:00Z".parse().unwrap();
    let needed_with = |fork| {
        let parents = [(history('b'), Parent { history: history('a'), fork })].into();
        let plan = plan_retention(held(&manifests, &parents), &policy, now);
        (needed(&plan, 'a'), needed(&plan, 'b'))
    };
    assert_eq!(needed_with(30), (vec![(41, u64::MAX)], vec![(0, u64::MAX)]));
    assert_eq!(needed_with(40), (vec![(901, u64::MAX)], vec![(41, 61)]));
}

#[test]
fn behind_a_window_only_the_way_to_kept_cuts_stays() {
    let at = |day: u32| format!("2026-01-{day:02}T00:00:00Z");
    let mut pinned = backup(&at(1), "base-1", 100);
    pinned.shards[0].cut = Some(ShardCut { history: history('c'), offset: 300 });
    let parent = |letter, fork| Parent { history: history(letter), fork };
    // `d` left the line before the base.
    let parents =
        [(history('b'), parent('a', 150)), (history('c'), parent('b', 250)), (history('d'), parent('a', 90))]
            .into();
    let mut newest = backup(&at(20), "base-20", 900);
    newest.shards[0].history = history('c');
    let manifests = [pinned, newest];
    let policy = RetentionPolicy {
        window: Some(SignedDuration::from_hours(24)),
        pinned: [manifests[0].id.clone()].into(),
        ..RetentionPolicy::default()
    };
    let now: Timestamp = "2026-01-23T00:00:00Z".parse().unwrap();
    let plan = plan_retention(held(&manifests, &parents), &policy, now);
    assert_eq!(needed(&plan, 'a'), [(101, 151)]);
    assert_eq!(needed(&plan, 'b'), [(151, 251)]);
    assert_eq!(needed(&plan, 'c'), [(251, 301), (901, u64::MAX)]);
    assert_eq!(needed(&plan, 'd'), []);
    let need = plan.log.clone().unwrap();
    assert!(need.needs(&history('c'), &(290..500)) && !need.needs(&history('c'), &(301..901)));
    // Without a promise all of it stays.
    let promised_nothing = RetentionPolicy { window: None, ..policy.clone() };
    let plan = plan_retention(held(&manifests, &parents), &promised_nothing, now);
    assert_eq!(needed(&plan, 'a'), [(101, u64::MAX)]);
    assert_eq!(needed(&plan, 'c'), [(0, u64::MAX)]);
    // Where it is not known what a history comes from, everything behind the base stays.
    let plan = plan_retention(held(&manifests, &NO_PARENTS), &policy, now);
    assert_eq!(needed(&plan, 'a'), [(101, u64::MAX)]);
    assert_eq!(needed(&plan, 'c'), [(0, u64::MAX)]);
    // A base that a running backup is about to name keeps what follows it.
    let running = [(history('a'), 120)];
    let with_unlisted = Holdings { unlisted: &running, ..held(&manifests, &parents) };
    let plan = plan_retention(with_unlisted, &policy, now);
    assert_eq!(needed(&plan, 'a'), [(101, u64::MAX)]);
    assert_eq!(needed(&plan, 'b'), [(0, u64::MAX)]);
}

#[test]
fn everything_within_a_span_stays_and_topologies_since_the_oldest_base() {
    let policy =
        RetentionPolicy { within: Some(SignedDuration::from_mins(150)), ..RetentionPolicy::default() };
    let plan = plan(&hours(), &policy);
    assert_eq!(kept_days(&plan), ["20260410T21", "20260410T22", "20260410T23"]);
    assert_eq!(plan.topologies_from, Some("2026-04-10T21:15:00Z".parse().unwrap()));
    let mut incremental = hours();
    incremental.last_mut().unwrap().kind = BackupKind::Incremental;
    let now = incremental.last().unwrap().finished_at;
    let plan = plan_retention(held(&incremental, &NO_PARENTS), &policy, now);
    assert_eq!(plan.topologies_from, None, "nobody knows how old its base is");
}

#[test]
fn a_span_longer_than_all_time_keeps_everything() {
    let span = Some(SignedDuration::from_hours(24 * 9_999_999));
    for policy in [
        RetentionPolicy { within: span, ..RetentionPolicy::default() },
        RetentionPolicy { window: span, ..RetentionPolicy::default() },
    ] {
        let plan = plan(&hours(), &policy);
        assert_eq!(plan.remove, <[&str; 0]>::default());
        assert_eq!(needed(&plan, 'a'), [(1, u64::MAX)]);
    }
}

#[test]
fn an_old_moment_that_was_merged_today_takes_no_place_of_what_is_new() {
    let mut manifests = hours();
    let last = manifests.last().unwrap().id.clone();
    let mut merged = backup("2026-04-10T23:45:00Z", "merged", 7);
    merged.kind = BackupKind::Merged;
    merged.shards[0].server_time = Some("2026-01-05T00:00:00Z".parse().unwrap());
    manifests.push(merged);
    for policy in [
        RetentionPolicy { last: 1, ..RetentionPolicy::default() },
        RetentionPolicy { hourly: 1, ..RetentionPolicy::default() },
        RetentionPolicy { daily: 1, ..RetentionPolicy::default() },
        RetentionPolicy::default(),
    ] {
        let plan = plan(&manifests, &policy);
        // It was made last, and machines remember it.
        assert_eq!(kept_days(&plan), ["20260410T23", "20260410T23"], "{policy:?}");
        assert!(plan.keep.contains_key(&last), "{policy:?}");
    }
    // It begins no window either, though it was made before that began.
    let later = backup("2026-04-20T00:00:00Z", "later", 30_000);
    let now = later.finished_at;
    manifests.push(later);
    let window = Some(SignedDuration::from_hours(24));
    let policy = RetentionPolicy { window, ..RetentionPolicy::default() };
    let plan = plan_retention(held(&manifests, &NO_PARENTS), &policy, now);
    assert!(plan.keep[&last].contains(&KeptFor::Window));
    assert_eq!(kept_days(&plan), ["20260410T23", "20260420T00"]);
}
