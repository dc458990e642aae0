use proptest::prelude::*;
use slotkeep_model::{ReplOffset, Role};

use super::*;

const VALKEY: &str = include_str!("../../fixtures/valkey-9.1.2/info.txt");
const VALKEY_REPLICA: &str = include_str!("../../fixtures/valkey-9.1.2/info-replica.txt");
const REDIS: &str = include_str!("../../fixtures/redis-7.0.15/info.txt");
const REDIS_REPLICA: &str = include_str!("../../fixtures/redis-7.0.15/info-replica.txt");

#[test]
fn versions_are_those_of_the_product() {
    assert_eq!(Info::parse(VALKEY).server_version().unwrap().to_string(), "Valkey 9.1.2");
    assert_eq!(Info::parse(REDIS).server_version().unwrap().to_string(), "Redis 7.0.15");
    assert_eq!(Info::parse("# Server\r\nuptime_in_days:3\r\n").server_version(), None);
}

#[test]
fn a_primary_and_its_replica_are_at_the_same_place() {
    for (primary, replica, port) in [(VALKEY, VALKEY_REPLICA, 17400), (REDIS, REDIS_REPLICA, 17500)] {
        let [primary, replica] = [primary, replica].map(|text| Info::parse(text).replication().unwrap());
        assert_eq!((primary.role, replica.role), (Role::Primary, Role::Replica));
        assert_eq!((&primary.replid, &primary.previous_replid), (&replica.replid, &None));
        assert_eq!((primary.link, primary.previous_valid_to), (None, None));
        let link = replica.link.unwrap();
        assert_eq!((link.primary.port(), link.up, link.sync_in_progress), (port, true, false));
        let attached = primary.replicas.first().unwrap();
        assert_eq!((attached.port, attached.state.as_str()), (port + 3, "online"));
        assert!(attached.offset <= primary.offset);
        let backlog = primary.backlog.unwrap();
        assert_eq!(backlog.first_offset, ReplOffset(1));
        assert!(backlog.continues_from(primary.offset.checked_add(1).unwrap()));
        assert!(!backlog.continues_from(primary.offset.checked_add(2).unwrap()));
        assert!(!backlog.continues_from(ReplOffset(0)));
    }
}

#[test]
fn a_promoted_replica_names_the_history_before() {
    let text = VALKEY_REPLICA
        .replace("master_replid2:0000000000", "master_replid2:0123456789")
        .replace("second_repl_offset:-1", "second_repl_offset:608");
    let replication = Info::parse(&text).replication().unwrap();
    assert!(replication.previous_replid.unwrap().as_str().starts_with("0123456789"));
    assert_eq!(replication.previous_valid_to, Some(ReplOffset(608)));
}

#[test]
fn the_other_sections_are_typed() {
    for text in [VALKEY, REDIS] {
        let info = Info::parse(text);
        assert_eq!(info.cluster_enabled(), Ok(true));
        assert_eq!(info.keyspace().unwrap(), BTreeMap::from([(0, Database { keys: 6, expires: 6 })]));
        let persistence = info.persistence().unwrap();
        assert!(!persistence.loading && !persistence.bgsave_in_progress && persistence.last_bgsave_ok);
        assert!(!persistence.aof_enabled && !persistence.aof_rewrite_in_progress);
        let memory = info.memory().unwrap();
        assert!(memory.used_bytes > 0 && memory.resident_bytes > 0 && memory.limit_bytes == 0);
        assert!(memory.system_bytes.is_some());
        assert_eq!(info.section("keyspace").map(|section| section.fields.len()), Some(1));
    }
}

#[test]
fn missing_and_malformed_fields_are_named() {
    let error = Info::parse("").replication().unwrap_err();
    assert_eq!(error.to_string(), "INFO's field role is missing, expected master or slave");
    let error = Info::parse("loading:x").persistence().unwrap_err();
    assert_eq!(error.to_string(), "INFO's field loading is `x`, expected 0 or 1");
    let error = Info::parse("# Keyspace\r\ndb0:keys=1").keyspace().unwrap_err();
    assert_eq!(error.to_string(), "INFO's field db0 is `keys=1`, expected keys=N,expires=N");
    let text = VALKEY.replace("state=online", "status=online");
    assert_eq!(Info::parse(&text).replication().unwrap_err().field, "slave0");
}

proptest! {
    #[test]
    fn hostile_text_is_an_error_at_worst(at in 0usize..8000, text in "[-0-9a-z:=,#\\r\\n]{0,60}") {
        for whole in [VALKEY, REDIS_REPLICA] {
            let cut = whole.get(..at).unwrap_or(whole);
            let info = Info::parse(&format!("{cut}{text}{}", whole.get(at..).unwrap_or_default()));
            let _ = (info.replication(), info.keyspace(), info.persistence(), info.memory(), info.server_version());
        }
    }
}
