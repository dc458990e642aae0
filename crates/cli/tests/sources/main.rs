//! Backups without replication, from real servers: they hold what the cluster holds, say how they were read, and nothing takes them for
//! a point that a log could go on from.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what does not hold fails the test"
)]

#[path = "../restore_files/harness.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod harness;

#[path = "../common/mod.rs"]
mod common;

mod aof;
mod broken;
mod busy;
mod files;
mod scan;
mod sealed;

use std::process::Command;

use common::{Run, command};
use slotkeep_testkit::Cluster;
use tempfile::TempDir;

/// The user who may not replicate.
const USER: &str = "reader";
const PASSWORD: &str = "secret";

/// A repository, and what lies beside it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A `slotkeep` command on the repository.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.args(arguments).args(["--json", "--repo", &self.path("repo")]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&self.command(arguments).output().unwrap())
    }

    /// A backup of that cluster by the user who may not replicate.
    fn backup_command(&self, cluster: &Cluster, more: &[&str]) -> Command {
        let seed = addr(cluster);
        let mut command =
            self.command(&["backup", "--jobs-per-host", "9", "--cluster", &seed, "--user", USER]);
        command.env("SLOTKEEP_PASSWORD", PASSWORD).args(["--spool", &self.path("spool")]).args(more);
        command
    }

    fn backup(&self, cluster: &Cluster, more: &[&str]) -> Run {
        Run::of(&self.backup_command(cluster, more).output().unwrap())
    }

    /// The latest backup and the cluster as it runs are the same.
    #[track_caller]
    fn same_as(&self, seed: &str) {
        let differing = self.run(&["diff", "latest", seed]).expect_code(0).json();
        assert_eq!(differing["differing_slot_count"], 0);
        assert_eq!(differing["functions_differ"], false);
    }
}

fn addr(cluster: &Cluster) -> String {
    cluster.nodes()[0].addr().to_string()
}

/// The rules of an `ACL SETUSER` line, with the password.
fn rules(line: &str) -> String {
    let (_, rules) = line.split_once(" on ").unwrap();
    format!("on >{PASSWORD} {rules}")
}

/// Ends the servers that a restore has started.
struct StartedIn(std::path::PathBuf);

impl Drop for StartedIn {
    fn drop(&mut self) {
        for (name, pid) in common::files(&self.0).into_iter().filter(|(name, _)| name.ends_with("server.pid"))
        {
            let pid = String::from_utf8(pid).unwrap();
            let killed = Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
            assert!(killed.success(), "{name}");
        }
    }
}
