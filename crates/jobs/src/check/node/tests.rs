use slotkeep_model::{Product, ReplOffset, ServerVersion};
use slotkeep_wire::info::{Info, Memory, Persistence};

use super::super::facts::Settings;
use super::super::finding::Severity;
use super::super::permissions::Permissions;
use super::*;
use crate::{Error, ErrorKind};

/// A primary with nothing to find fault with.
pub(in super::super) fn healthy() -> Answers {
    let info = Info::parse(
        "# Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_replid:0123456789012345678901234567890123456789\r\n\
         master_repl_offset:100\r\nsecond_repl_offset:-1\r\nrepl_backlog_active:0\r\nrepl_backlog_size:1048576\r\n\
         repl_backlog_first_byte_offset:0\r\nrepl_backlog_histlen:0\r\n",
    );
    Answers {
        server: ServerVersion { product: Product::Valkey, major: 9, minor: 1, patch: 2 },
        replication: info.replication().unwrap(),
        persistence: Persistence {
            loading: false,
            bgsave_in_progress: false,
            last_bgsave_ok: true,
            aof_enabled: false,
            aof_rewrite_in_progress: false,
        },
        memory: Memory {
            used_bytes: 1 << 30,
            resident_bytes: 1 << 30,
            limit_bytes: 0,
            system_bytes: Some(8 << 30),
        },
        keys: 5,
        settings: Settings::of(&[
            ("client-output-buffer-limit", "slave 268435456 67108864 60"),
            ("repl-backlog-size", "10485760"),
            ("repl-timeout", "60"),
            ("repl-ping-replica-period", "10"),
            ("repl-diskless-sync", "yes"),
            ("min-replicas-to-write", "0"),
        ]),
        permissions: Permissions { user: "default".to_owned(), verdicts: vec![] },
        clock_ahead_ms: Some(3),
        written_bytes_per_s: 1000,
        cluster: None,
        slots_moving: 0,
    }
}

pub(in super::super) fn facts(addr: &str, answers: crate::Result<Answers>) -> NodeFacts {
    NodeFacts { addr: addr.parse().unwrap(), online: true, answers }
}

/// What is found, but for what is fine.
#[track_caller]
fn faults(change: impl FnOnce(&mut Answers)) -> Vec<(Severity, &'static str)> {
    let mut answers = healthy();
    change(&mut answers);
    let found = judge(&facts("a:1", Ok(answers)));
    assert!(found.iter().all(|one| (one.severity == Severity::Ok) == one.advice.is_none()));
    let bad = found.iter().filter(|one| one.severity > Severity::Ok);
    bad.map(|one| (one.severity, one.check)).collect()
}

#[test]
fn a_healthy_node_is_fine() {
    assert_eq!(faults(|_| {}), []);
}

#[test]
fn each_fault_is_found_by_its_check() {
    use Severity::{Note, Problem, Warning};
    assert_eq!(faults(|it| it.persistence.loading = true), [(Problem, "snapshot")]);
    assert_eq!(faults(|it| it.persistence.last_bgsave_ok = false), [(Warning, "snapshot")]);
    assert_eq!(faults(|it| it.persistence.bgsave_in_progress = true), [(Note, "snapshot")]);
    assert_eq!(faults(|it| it.memory.resident_bytes = 5 << 30), [(Warning, "memory")]);
    assert_eq!(faults(|it| it.memory.system_bytes = None), [(Note, "memory")]);
    assert_eq!(faults(|it| it.settings = Settings::default()), [(Note, "limits")]);
    assert_eq!(faults(|it| it.clock_ahead_ms = Some(-1001)), [(Warning, "clock")]);
    assert_eq!(faults(|it| it.clock_ahead_ms = None), []);
    assert_eq!(faults(|it| it.written_bytes_per_s = 200_000), [(Warning, "backlog")]);
    let newer = ServerVersion { product: Product::Redis, major: 9, minor: 0, patch: 0 };
    assert_eq!(faults(|it| it.server = newer), [(Warning, "version")]);
}

#[test]
fn settings_are_judged() {
    let with =
        |name, value| faults(|it| it.settings = Settings::of(&[("repl-timeout", "60"), (name, value)]));
    assert_eq!(with("repl-timeout", "5"), [(Severity::Warning, "timeouts")]);
    assert_eq!(with("repl-ping-replica-period", "60"), [(Severity::Warning, "timeouts")]);
    assert_eq!(with("repl-diskless-sync", "no"), [(Severity::Note, "diskless")]);
    assert_eq!(with("min-replicas-to-write", "1"), [(Severity::Note, "replicas to write")]);
}

#[test]
fn what_would_overflow_the_output_buffer_is_said() {
    // 0.8 GiB travel for 17 s: 20 MiB/s let 340 MiB collect.
    let found = judge(&facts("a:1", Ok(Answers { written_bytes_per_s: 20 << 20, ..healthy() })));
    let hit = found.iter().find(|one| one.check == "output buffer").unwrap();
    assert_eq!(hit.severity, Severity::Warning);
    assert!(hit.what.contains("the hard limit 256.0 MiB"), "{}", hit.what);
    assert!(hit.advice.as_ref().unwrap().contains("CONFIG SET client-output-buffer-limit \"replica "));

    // 80 GiB travel for 27 min: 150 KiB/s stay under the hard limit, but over the soft one for longer than 60 s.
    let mut slow = healthy();
    slow.memory.used_bytes = 100 << 30;
    slow.memory.system_bytes = Some(400 << 30);
    slow.written_bytes_per_s = 150 << 10;
    let found = judge(&facts("a:1", Ok(slow.clone())));
    let hit = found.iter().find(|one| one.check == "output buffer").unwrap();
    assert!(hit.what.contains("the soft limit 64.0 MiB"), "{}", hit.what);

    slow.settings = Settings::of(&[("client-output-buffer-limit", "slave 0 0 0")]);
    assert!(
        judge(&facts("a:1", Ok(slow)))
            .iter()
            .all(|one| one.severity < Severity::Warning || one.check != "output buffer")
    );
}

#[test]
fn a_replica_without_its_primary_is_named() {
    let mut answers = healthy();
    answers.replication.role = Role::Replica;
    answers.replication.offset = ReplOffset(9);
    answers.replication.link = Some(slotkeep_wire::info::PrimaryLink {
        primary: "b:1".parse().unwrap(),
        up: false,
        sync_in_progress: false,
        idle_seconds: None,
    });
    let found = judge(&facts("a:1", Ok(answers)));
    assert!(found.iter().any(|one| one.check == "replica" && one.severity == Severity::Warning));
}

#[test]
fn a_node_that_does_not_answer_is_a_finding() {
    let gone = Error::new(ErrorKind::Unreachable, "a:1: can't connect").hint("look");
    let found = judge(&facts("a:1", Err(gone)));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].severity, found[0].advice.as_deref()), (Severity::Warning, Some("look")));
}
