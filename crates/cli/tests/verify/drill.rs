//! A drill restores the cluster here, compares it, writes to it and fails it over; nothing of it stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use slotkeep_testkit::deadline::{NotYet, wait_for};

use crate::chain::Archived;
use crate::common::{command, server, slotkeep};
use crate::harness::Bench;

#[test]
fn a_moment_of_an_archive_is_restored_in_a_drill() {
    let archived = Archived::make("valkey-9.1");
    let program = archived.engine.to_str().unwrap().to_owned();
    let foreign = foreign(archived.spool());
    let record = archived.verify_at("drill", &["--server", &program]).expect_code(0).json();
    assert_eq!(fs::read_to_string(foreign).unwrap(), "not yours");
    assert_eq!(record["findings"], serde_json::json!([]), "{record}");
    let drill = &record["drill"];
    assert_eq!(drill["nodes"], 4, "{record}");
    assert!(drill["keys"].as_u64().unwrap() > 0 && drill["rto_ms"].as_u64().unwrap() > 0, "{drill}");
    assert!(drill["rpo_ms"].is_u64() && drill["at"].is_string(), "{drill}");
    let steps: Vec<&str> =
        drill["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(
        steps,
        ["plan", "write the files", "start and load", "compare", "functions", "write", "failover"]
    );
    nothing_stays(archived.spool());
    let repo = archived.repo();
    let list = slotkeep(&["list", "--repo", repo.to_str().unwrap()]).expect_code(0).stdout;
    let deep = list.lines().filter(|line| line.contains("drill, ") && line.contains("RTO ")).count();
    assert_eq!((deep, list.matches("chain, ").count()), (1, 2), "one backup was restored: {list}");
}

#[test]
fn the_users_own_checks_are_run() {
    let bench = Bench::new();
    let stock = server("valkey-9.1");
    let (program, id) = (stock.program().to_str().unwrap(), bench.backup_ids().remove(1));
    let checks = bench.path("checks");
    fs::write(
        &checks,
        "# one that holds and one that does not\nGET key:7 => value 1 of 7\nHGET hash:7 field => 9\n",
    )
    .unwrap();
    let scripts = bench.path("scripts");
    fs::create_dir(&scripts).unwrap();
    let script = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(scripts.join(name), text).unwrap();
        fs::set_permissions(scripts.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("1-good", "#!/bin/sh\ntest -n \"$SLOTKEEP_DRILL_NODES\"\n");
    script("2-bad", "#!/bin/sh\necho the balance is wrong >&2\nexit 3\n");
    for (checks, words) in
        [(&checks, "line 3: HGET hash:7 field gives `1`, not `9`"), (&scripts, "the balance is wrong")]
    {
        let (repo, spool) = (bench.text(), bench.path(""));
        let run = slotkeep(&[
            "verify",
            "--depth",
            "drill",
            "--backup",
            &id,
            "--repo",
            &repo,
            "--server",
            program,
            "--json",
            "--spool",
            spool.to_str().unwrap(),
            "--checks",
            checks.to_str().unwrap(),
        ])
        .expect_code(42)
        .json();
        let findings = run["findings"].as_array().unwrap();
        assert_eq!(findings.len(), 1, "{run}");
        assert!(findings[0]["what"].as_str().unwrap().contains(words), "{run}");
        nothing_stays(&spool);
    }
}

/// Folders that Slotkeep made in one that belongs to it, and what runs there or was started from there.
fn left(spool: &Path) -> Vec<String> {
    let folders = fs::read_dir(spool).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut left: Vec<String> =
        names.filter(|name| name.starts_with("slotkeep-") && name != FOREIGN).collect();
    let spool = spool.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc").unwrap() {
        // A server's title has its addresses alone.
        let place = entry.unwrap().path();
        let folder = fs::read_link(place.join("cwd")).unwrap_or_default().to_string_lossy().into_owned();
        let command = fs::read(place.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.contains(&spool) || folder.contains(&spool) {
            left.push(command);
        }
    }
    left
}

/// What somebody else put where drills are made.
const FOREIGN: &str = "slotkeep-drill-foreign";

/// Puts a file of somebody else's there; gives the file.
fn foreign(spool: &Path) -> PathBuf {
    fs::create_dir(spool.join(FOREIGN)).unwrap();
    let file = spool.join(FOREIGN).join("dump.rdb");
    fs::write(&file, "not yours").unwrap();
    file
}

fn nothing_stays(spool: &Path) {
    assert_eq!(left(spool), Vec::<String>::new());
}

#[test]
fn what_does_not_restore_is_a_finding() {
    let bench = Bench::new();
    let other = server("redis-6.2");
    let folder = tempfile::tempdir().unwrap();
    let id = bench.backup_ids().remove(0);
    // A server that does not load what the backup holds.
    let run = slotkeep(&[
        "verify",
        "--depth",
        "drill",
        "--backup",
        &id,
        "--repo",
        &bench.text(),
        "--server",
        other.program().to_str().unwrap(),
        "--spool",
        folder.path().to_str().unwrap(),
    ])
    .expect_code(42);
    assert!(
        run.stdout.contains("the step `plan` failed") && run.stdout.contains("does not load"),
        "{}",
        run.stdout
    );
    nothing_stays(folder.path());
}

/// A drill in the midst of the user's own checks.
struct Underway {
    bench: Bench,
    drill: Child,
}

fn wait(what: &str, holds: &dyn Fn() -> bool) {
    wait_for(Duration::from_secs(30), what, || if holds() { Ok(()) } else { Err(NotYet::because("no")) })
        .unwrap();
}

impl Underway {
    fn start() -> Self {
        let (bench, stock) = (Bench::new(), server("valkey-9.1"));
        let scripts = bench.path("scripts");
        fs::create_dir(&scripts).unwrap();
        let (reached, script) = (bench.path("reached"), scripts.join("wait"));
        // It never ends, nor does what it has started.
        let text = format!(
            "#!/bin/sh\n(while :; do sleep 0.2; done) &\ntouch '{}'\nwhile :; do sleep 0.2; done\n",
            reached.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        foreign(&bench.path(""));
        let mut command = command();
        command.args(["verify", "--depth", "drill", "--only", "--quiet", "--repo", &bench.text()]);
        command.arg("--server").arg(stock.program()).arg("--checks").arg(&scripts);
        command.args(["--backup", &bench.backup_ids()[1], "--spool"]).arg(bench.path(""));
        command.stderr(Stdio::null());
        let drill = command.spawn().unwrap();
        wait("the drill's own checks", &|| reached.exists());
        let found = left(&bench.path(""));
        assert!(found.iter().any(|found| found.contains("valkey-server")), "servers run: {found:?}");
        assert!(found.iter().filter(|found| found.contains("scripts/wait")).count() > 1, "{found:?}");
        Self { bench, drill }
    }

    fn leaves_nothing_behind(self) {
        wait("all that runs, and the folder, to go", &|| left(&self.bench.path("")).is_empty());
        let foreign = self.bench.path(FOREIGN).join("dump.rdb");
        assert_eq!(fs::read_to_string(foreign).unwrap(), "not yours");
    }
}

#[test]
fn a_drill_that_is_killed_leaves_nothing_behind() {
    let mut underway = Underway::start();
    underway.drill.kill().unwrap();
    underway.drill.wait().unwrap();
    underway.leaves_nothing_behind();
}

#[test]
fn a_drill_that_is_stopped_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut underway = Underway::start();
        kill_process(Pid::from_child(&underway.drill), signal).unwrap();
        assert_eq!(underway.drill.wait().unwrap().code(), Some(130));
        underway.leaves_nothing_behind();
    }
}
