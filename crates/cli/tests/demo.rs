//! `slotkeep demo` runs to its end on stock servers, and leaves nothing behind, however it ends.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Run, command, server};
use serde_json::Value;
use slotkeep_testkit::deadline::{NotYet, wait_for};

/// A demo whose temporary files all go to `folder`.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut demo = command();
    demo.arg("demo").args(arguments).env("TMPDIR", folder).stdin(Stdio::null());
    demo
}

/// The processes that work in the folder, as servers do, or name it in their command line, as their watchdogs do.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        // A process may end while it is looked at; its folder may be gone, which the kernel notes behind its name.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let place = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let process = format!("{} in {}", String::from_utf8_lossy(&line).replace('\0', " "), place.display());
        if process.contains(folder) {
            found.push(process);
        }
    }
    found
}

/// What the demo left in its folder.
fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

#[track_caller]
fn nothing_is_left(folder: &Path) {
    assert_eq!(processes(folder), [""; 0]);
    assert_eq!(files(folder), [""; 0]);
}

fn tells_the_story_on(name: &str) {
    server(name);
    let folder = tempfile::tempdir().unwrap();
    // What the user has set for their own cluster is not for the demo's.
    let run = demo(folder.path(), &["--server", name])
        .env("SLOTKEEP_CLUSTER", "127.0.0.1:1")
        .env("SLOTKEEP_USER", "somebody")
        .env("SLOTKEEP_PASSWORD", "secret")
        .env("SLOTKEEP_NAME", "theirs")
        .output()
        .unwrap();
    let run = Run::of(&run).expect_code(0);
    for words in [
        "$ slotkeep backup --cluster 127.0.0.1:",
        " FLUSHALL\n",
        "$ kill -9 ",
        "$ slotkeep restore --repo $D/repo --to 127.0.0.1:",
    ] {
        assert!(run.stdout.contains(words), "`{words}` is missing:\n{}", run.stdout);
    }
    let proof = run.stdout.split_once("Prove it: ").unwrap().1;
    let proof = proof.split_once("Prove that the proof can fail").unwrap();
    assert!(proof.0.contains("No difference: the digests of all 16384 slots"), "{}", run.stdout);
    let named: Vec<&str> = proof.1.lines().map(str::trim).filter(|line| line.starts_with('"')).collect();
    assert_eq!(named.len(), 1, "{}", run.stdout);
    assert!(named[0].starts_with("\"account:42\"") && named[0].ends_with("value"), "{}", named[0]);
    assert!(proof.1.contains("Different: 1 slot, 1 key."), "{}", run.stdout);
    assert!(proof.1.contains("Proven in "), "{}", run.stdout);
    nothing_is_left(folder.path());
}

#[test]
fn tells_the_story_on_valkey_9_1() {
    tells_the_story_on("valkey-9.1");
}

#[test]
fn tells_the_story_on_redis_7_0() {
    tells_the_story_on("redis-7.0");
}

#[test]
fn reports_its_steps_as_json() {
    server("valkey-9.1");
    let folder = tempfile::tempdir().unwrap();
    let run = demo(folder.path(), &["--json", "--server", "valkey-9.1"]).output().unwrap();
    let report = Run::of(&run).expect_code(0).json();
    assert_eq!(report["proof"]["differing_slots"], 0);
    assert_eq!(report["proof"]["changed_key_named"], "\"account:42\"");
    let commands: Vec<&Value> = report["steps"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|step| step["commands"].as_array().unwrap())
        .collect();
    let codes: Vec<(&str, u64)> = commands
        .iter()
        .map(|ran| {
            let name = ran["command"].as_str().unwrap().split(' ').nth(1).unwrap();
            (name, ran["exit_code"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(codes, [("backup", 0), ("restore", 0), ("diff", 0), ("diff", 40)]);
    assert_eq!(commands[0]["result"]["id"], report["backup"]);
    assert_eq!(commands[2]["result"]["b"]["keys"], report["keys"]);
    let seconds: f64 =
        report["steps"].as_array().unwrap().iter().map(|step| step["seconds"].as_f64().unwrap()).sum();
    assert!(seconds <= report["seconds"].as_f64().unwrap() + 0.1, "{report:#}");
    nothing_is_left(folder.path());
}

/// Starts a demo and waits until it says those words.
fn demo_that_says(folder: &Path, arguments: &[&str], words: &str) -> (Child, impl Iterator<Item = String>) {
    let mut child = demo(folder, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(words)), "`{words}` was not said");
    (child, lines)
}

fn interrupt(child: &Child) {
    let killed = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// Interrupts the demo when it has said those words.
fn interrupted_at(words: &str) {
    server("valkey-9.1");
    let folder = tempfile::tempdir().unwrap();
    let (child, rest) = demo_that_says(folder.path(), &["--server", "valkey-9.1"], words);
    interrupt(&child);
    let rest: Vec<String> = rest.collect();
    let run = Run::of(&child.wait_with_output().unwrap());
    assert_eq!(run.code, 130, "{}\n{}", rest.join("\n"), run.stderr);
    assert!(run.stderr.contains("error: interrupted"), "{}", run.stderr);
    nothing_is_left(folder.path());
}

#[test]
fn interrupted_while_a_cluster_starts() {
    interrupted_at("1. Start a cluster");
}

#[test]
fn interrupted_while_the_backup_runs() {
    interrupted_at("$ slotkeep backup");
}

#[test]
fn interrupted_while_the_restore_runs() {
    interrupted_at("$ slotkeep restore");
}

#[test]
fn keeps_everything_until_it_is_interrupted() {
    server("valkey-9.1");
    let folder = tempfile::tempdir().unwrap();
    let (child, rest) = demo_that_says(folder.path(), &["--keep", "--server", "valkey-9.1"], "Proven in ");
    assert!(processes(folder.path()).len() >= 7);
    interrupt(&child);
    rest.for_each(drop);
    Run::of(&child.wait_with_output().unwrap()).expect_code(0);
    nothing_is_left(folder.path());
}

#[test]
fn killed_half_way_it_leaves_nothing_either() {
    server("valkey-9.1");
    let folder = tempfile::tempdir().unwrap();
    let (mut child, _rest) =
        demo_that_says(folder.path(), &["--server", "valkey-9.1"], "Start a new cluster");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(Duration::from_secs(30), "servers and files to go", || {
        let left = [processes(folder.path()), files(folder.path())].concat();
        if left.is_empty() { Ok(()) } else { Err(NotYet::because(left.join("\n"))) }
    })
    .unwrap();
}

#[test]
fn a_server_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["/bin/true", "no-such-server", "redis-1.0"] {
        let run = Run::of(&demo(folder.path(), &["--server", program]).output().unwrap()).expect_code(2);
        assert!(run.stderr.contains(program) && run.stderr.contains("hint: "), "{}", run.stderr);
    }
    nothing_is_left(folder.path());
}
