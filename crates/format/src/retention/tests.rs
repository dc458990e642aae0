use super::*;
use crate::manifest::{
    BackupKind, BaseRecord, CrcRecord, FORMAT_VERSION, NodeRecord, ProductRecord, RoleRecord, ServerRecord,
    ShardCut, ShardRecord,
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
    plan_retention(manifests, true, &BTreeMap::new(), policy, now)
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
    assert_eq!(plan.log_from[&history('a')], Some((59 * 24 - 1) * 10 + 1));
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
    assert_eq!(kept_days(&plan), ["20260410T22"]);
    assert!(
        plan_retention(&[], true, &BTreeMap::new(), &RetentionPolicy::default(), Timestamp::UNIX_EPOCH)
            .keep
            .is_empty()
    );
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
    let parents = [(history('b'), history('a')), (history('c'), history('b'))].into();
    let manifests = [apart, full, second, third];
    let policy = RetentionPolicy { last: 1, ..RetentionPolicy::default() };
    let now = manifests[3].finished_at;
    let plan = plan_retention(&manifests, true, &parents, &policy, now);
    assert_eq!(kept_days(&plan), ["20260101T03"]);
    // The base is named by manifests that go, and by one that stays; so is the way to its cut.
    assert_eq!(plan.objects, ["base-0".to_owned()].into());
    assert_eq!(plan.log_from[&history('a')], Some(101));
    assert_eq!(plan.log_from[&history('b')], Some(0));
    assert_eq!(plan.log_from[&history('c')], Some(0));
    assert_eq!(plan.log_from[&history('x')], None);
    // As long as a manifest can't be read, nothing that it might need is given up.
    let blind = plan_retention(&manifests, false, &parents, &policy, now);
    assert!(blind.objects.is_empty() && blind.log_from.is_empty());
    assert_eq!(blind.remove.len(), 3);
}
