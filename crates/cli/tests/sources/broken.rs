//! What breaks in the middle leaves nothing behind.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder};

use super::common::{Run, files, server};
use super::{Place, USER};

const LIMIT: Duration = Duration::from_secs(30);

/// A cluster of two shards that are being read so slowly that it would take minutes.
fn in_the_middle(place: &Place) -> (Cluster, Child) {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(2)
        .acl_user(USER, "on >secret ~* +@all -psync -sync -replconf")
        .config("cluster-require-full-coverage", "no")
        .start()
        .unwrap();
    let mut client = cluster.client().unwrap();
    for number in 0..2000 {
        client.command(&["SET", &format!("key:{number}"), "value"]).unwrap();
    }
    let mut backup = place.backup_command(&cluster, &["--source", "scan", "--scan-rate", "40"]);
    let child = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for node in cluster.nodes() {
        wait_for(LIMIT, "keys to be read", || {
            let stats = node.client()?.info("commandstats")?;
            let dumps = stats.lines().find(|line| line.starts_with("cmdstat_dump:calls="));
            dumps.map(|_| ()).ok_or_else(|| NotYet::because("no DUMP yet"))
        })
        .unwrap();
    }
    (cluster, child)
}

fn nothing_is_left(place: &Place) {
    let list = place.run(&["list"]).expect_code(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 0);
    let left: Vec<String> = files(place.folder.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["repo/slotkeep.json"]);
}

#[test]
fn ctrl_c_leaves_nothing() {
    let place = Place::new();
    let (cluster, child) = in_the_middle(&place);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let run = Run::of(&child.wait_with_output().unwrap()).expect_code(130);
    assert!(run.stdout.is_empty());
    nothing_is_left(&place);
    place.backup(&cluster, &["--source", "scan"]).expect_code(0);
}

#[test]
fn a_server_that_dies_ends_the_backup() {
    let place = Place::new();
    let (cluster, child) = in_the_middle(&place);
    cluster.nodes()[1].kill().unwrap();
    let run = Run::of(&child.wait_with_output().unwrap()).expect_code(10);
    assert!(run.stderr.contains("shard with slots 8192-16383"), "{}", run.stderr);
    nothing_is_left(&place);
}

/// A user who may not read every key gets no backup that looks whole.
#[test]
fn a_key_that_may_not_be_read_fails_the_backup() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .acl_user(USER, "on >secret ~app:* +@all -psync -sync -replconf")
        .start()
        .unwrap();
    let mut client = cluster.client().unwrap();
    client.command(&["SET", "app:1", "x"]).unwrap();
    let place = Place::new();
    place.backup(&cluster, &["--source", "scan"]).expect_code(0);
    client.command(&["SET", "other", "x"]).unwrap();
    let run = place.backup(&cluster, &["--source", "scan"]).expect_code(12);
    assert!(run.stderr.contains("other"), "{}", run.stderr);
    let list = place.run(&["list"]).expect_code(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
}
