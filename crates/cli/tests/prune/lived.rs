//! A repository in which a server's life is: a full backup, two that go on from it, another full one, and one that goes on from that.

use std::path::{Path, PathBuf};

use slotkeep_testkit::ClusterBuilder;
use tempfile::TempDir;

use crate::common::{Run, command, files, server, slotkeep};

pub(crate) struct Lived {
    folder: TempDir,
    /// The backups, oldest first.
    pub(crate) ids: Vec<String>,
    cluster: slotkeep_testkit::Cluster,
}

impl Lived {
    pub(crate) fn new() -> Self {
        let cluster =
            ClusterBuilder::new(server("valkey-9.1")).primaries(1).cluster_mode(false).start().unwrap();
        let mut lived = Self { folder: tempfile::tempdir().unwrap(), ids: vec![], cluster };
        for (round, kind) in ["full", "incremental", "incremental", "full", "incremental"].iter().enumerate()
        {
            lived.write(round);
            let run = Run::of(&lived.backup(&lived.repo(), kind).output().unwrap()).expect_code(0).json();
            assert_eq!(run["kind"], *kind);
            lived.ids.push(run["id"].as_str().unwrap().to_owned());
        }
        lived
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    /// Writes something that only this round has.
    pub(crate) fn write(&self, round: usize) {
        let mut client = self.cluster.nodes()[0].client().unwrap();
        for number in 0..50 {
            client
                .command(&["SET", &format!("key:{number}"), &format!("value {number} of {round}")])
                .unwrap();
            client.command(&["RPUSH", "list", &format!("{round}:{number}")]).unwrap();
        }
    }

    /// The address of the server.
    pub(crate) fn addr(&self) -> String {
        self.cluster.nodes()[0].addr().to_string()
    }

    /// A backup of the server into a repository.
    pub(crate) fn backup(&self, repo: &Path, kind: &str) -> std::process::Command {
        let mut backup = command();
        backup.args(["backup", "--json", "--type", kind, "--cluster"]);
        backup.arg(self.addr()).arg("--repo").arg(repo);
        backup.arg("--spool").arg(self.folder.path().join("spool"));
        backup
    }
}

/// The data that a backup gives back: every RDB and append-only file.
#[track_caller]
pub(crate) fn restored(repo: &Path, id: &str, nodes: usize) -> Vec<(String, Vec<u8>)> {
    restored_with(repo, id, nodes, &[])
}

/// The same with more options of `restore`.
#[track_caller]
pub(crate) fn restored_with(repo: &Path, id: &str, nodes: usize, more: &[&str]) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("restored");
    let nodes: Vec<String> = (0..nodes).map(|node| format!("127.0.0.1:{}", 17_001 + node)).collect();
    let (repo, to, nodes) = (repo.to_str().unwrap(), target.to_str().unwrap(), nodes.join(","));
    let fixed = [
        "restore",
        "--quiet",
        "--no-replicas",
        "--backup",
        id,
        "--repo",
        repo,
        "--to-dir",
        to,
        "--nodes",
        &nodes,
    ];
    slotkeep(&[&fixed, more].concat()).expect_code(0);
    let mut data = files(&target);
    data.retain(|(name, _)| has_extension(name, "rdb") || has_extension(name, "aof"));
    assert!(!data.is_empty());
    data
}

/// Nothing is wrong with the repository, but that a full backup begins a new line.
#[track_caller]
pub(crate) fn sound(repo: &Path) {
    let run =
        slotkeep(&["verify", "--json", "--again", "--depth", "structure", "--repo", repo.to_str().unwrap()]);
    assert!([0, 43].contains(&run.code), "{}{}", run.stdout, run.stderr);
    let record = run.json();
    for finding in record["findings"].as_array().unwrap() {
        let new_line =
            finding["advice"].as_str().is_some_and(|advice| advice.starts_with("a base begins a new line"));
        assert!(finding["severity"] == "note" || new_line, "{finding:#}");
    }
}

/// The paths of all objects but the records of verifications.
pub(crate) fn paths(repo: &Path) -> Vec<String> {
    let all = files(repo).into_iter().map(|(name, _)| name);
    all.filter(|name| !name.contains("/verify/") && !name.contains('#')).collect()
}

pub(crate) fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

/// Makes every object some days old.
pub(crate) fn age(repo: &Path, days: u64) {
    let now = u64::try_from(crate::harness::context().clock.now().as_second()).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(now - days * 86_400);
    for (name, _) in files(repo) {
        std::fs::File::options().write(true).open(repo.join(name)).unwrap().set_modified(old).unwrap();
    }
}
