//! A drill restores the cluster here, compares it, writes to it and fails it over; nothing of it stays.

use std::fs;

use crate::chain::Archived;
use crate::common::{server, slotkeep};
use crate::harness::Bench;

#[test]
fn a_moment_of_an_archive_is_restored_in_a_drill() {
    let archived = Archived::make("valkey-9.1");
    let program = archived.engine.to_str().unwrap().to_owned();
    let record = archived.verify_at("drill", &["--server", &program]).expect_code(0).json();
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

/// No folder of a drill, and no server that runs in one.
fn nothing_stays(spool: &std::path::Path) {
    let left: Vec<String> = fs::read_dir(spool)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("slotkeep-"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    let spool = spool.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc").unwrap() {
        let command = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        assert!(!(command.contains("slotkeep-drill-") && command.contains(&spool)), "{command}");
    }
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
