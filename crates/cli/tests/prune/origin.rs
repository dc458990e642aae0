//! The record that says where a history comes from, while it can't be read: it costs what needs it, and every command says which one it is.

use crate::common::{Run, slotkeep};
use crate::harness::Bench;
use crate::lived::{paths, restored};
use crate::repair::flip;

#[track_caller]
fn names(run: &Run, object: &str) {
    assert!(run.stderr.contains(object) && run.stderr.contains("slotkeep repair"), "{}", run.stderr);
}

#[test]
fn a_damaged_record_costs_what_needs_it() {
    let bench = Bench::new();
    let repo = bench.text();
    let on = |words: &[&str]| slotkeep(&[words, &["--repo", &repo]].concat());
    let commands = |run: &Run| -> u64 {
        run.json()["commands"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum()
    };
    let whole = commands(&on(&["log", "--json"]).expect_code(0));
    assert_eq!(
        on(&["list", "--json"]).expect_code(0).json()["unreadable_histories"].as_array().unwrap().len(),
        0
    );
    let object = format!("main/history/{}/history.json", "d".repeat(40));
    flip(&bench.object(&object));

    let list = on(&["list", "--json"]).expect_code(23);
    names(&list, &object);
    let said = list.json();
    assert_eq!(said["backups"].as_array().unwrap().len(), 3);
    let unread = said["unreadable_histories"].as_array().unwrap();
    assert_eq!((unread.len(), unread[0]["object"].as_str()), (1, Some(object.as_str())));
    let shards = said["restorable"][0]["shards"].as_array().unwrap();
    // Of the other two shards nothing is in doubt.
    for shard in shards {
        let is_marked = shard["unread_behind"] == object.as_str();
        assert_eq!(is_marked, shard["slots"] == unread[0]["slots"], "{shard:#}");
    }
    assert!(shards.iter().any(|shard| shard["slots"] == unread[0]["slots"]), "{shards:#?}");
    let text = on(&["list", "--history"]).expect_code(23);
    assert!(text.stdout.contains(" ??") && text.stdout.contains("where it comes from can't be told"));
    assert!(text.stdout.contains("none that can be told"), "{}", text.stdout);

    let ids = bench.backup_ids();
    on(&["show", &ids[2]]).expect_code(0);
    for id in &ids[..2] {
        restored(&bench.repo(), id, 3);
    }
    let to = bench.repo().join("../restored");
    let nodes = "127.0.0.1:17001,127.0.0.1:17002,127.0.0.1:17003";
    let to = ["--no-replicas", "--to-dir", to.to_str().unwrap(), "--nodes", nodes];
    for what in [["--backup", &ids[2]], ["--at", "latest"], ["--at", "2023-11-14T22:13:25Z"]] {
        names(&on(&[&["restore"], &what[..], &to].concat()).expect_code(23), &object);
    }
    let log = on(&["log", "--json"]).expect_code(0);
    names(&log, &object);
    assert_eq!(commands(&log), whole);
    names(&on(&["recover", "--cluster", "127.0.0.1:1"]).expect_code(23), &object);
    let found = on(&["verify", "--json", "--again", "--depth", "structure"]).expect_code(42);
    assert!(found.stdout.contains(&object));
    let before = paths(&bench.repo());
    on(&["compact"]).expect_code(0);
    let after = paths(&bench.repo());
    assert!(after.len() > before.len() && before.iter().all(|path| after.contains(path)), "{after:#?}");

    // The backups that do not need it are copied.
    let other = bench.repo().join("../other");
    let copied = on(&["copy", "--json", "--to", other.to_str().unwrap()]).expect_code(23).json();
    let refused = copied["refused"].as_array().unwrap();
    let of_backup = refused.iter().find(|row| row["path"].as_str().unwrap().contains(&ids[2])).unwrap();
    assert!(of_backup["why"].as_str().unwrap().contains(&object), "{of_backup}");
    let there = slotkeep(&["list", "--json", "--repo", other.to_str().unwrap()]).json();
    assert_eq!(there["backups"].as_array().unwrap().len(), 2);

    on(&["repair", "--yes"]).expect_code(0);
    on(&["list"]).expect_code(0);
}
