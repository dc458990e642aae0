//! An encrypted repository and its log: a host that only knows public keys archives, lists and prunes; everything that reads takes an
//! identity, says so without one, and writes nothing then.

use std::path::{Path, PathBuf};

use slotkeep_testkit::{Client, Cluster, ClusterBuilder};
use tempfile::TempDir;

use crate::common::agent::Agent;
use crate::common::log::field;
use crate::common::{Run, command, files, server};
use crate::lived::has_extension;

/// What is written behind the base, so that only the log holds it.
const LATER: &str = "written-behind-the-base";

struct Scene {
    folder: TempDir,
    cluster: Cluster,
    public: String,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterBuilder::new(server("valkey-9.1"))
            .primaries(1)
            .cluster_mode(false)
            .config("repl-ping-replica-period", "1")
            .start()
            .unwrap();
        let public = reader(folder.path(), "reader");
        reader(folder.path(), "stranger");
        Self { folder, cluster, public }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    fn client(&self) -> Client {
        self.cluster.nodes()[0].client().unwrap()
    }

    /// Runs a command on a machine that has its own state.
    fn on(&self, machine: &str, arguments: &[&str]) -> Run {
        let mut command = command();
        command.args(arguments).arg("--repo").arg(self.repo()).env("SLOTKEEP_STATE", self.path(machine));
        Run::of(&command.output().unwrap())
    }

    /// An archive on a host that has no identity.
    fn archive(&self) -> Agent {
        let mut archive = command();
        archive.args(["archive", "--json", "--status-every", "100ms", "--seal-after", "100ms", "--cluster"]);
        archive.arg(self.cluster.nodes()[0].addr().to_string()).arg("--repo").arg(self.repo());
        archive.arg("--spool").arg(self.path("spool")).env("SLOTKEEP_STATE", self.path("host"));
        Agent::spawn(archive)
    }
}

/// Makes an identity and gives its public key.
fn reader(folder: &Path, name: &str) -> String {
    let file = folder.join(name);
    let output = std::process::Command::new("age-keygen").arg("-o").arg(&file).output();
    assert!(output.unwrap().status.success(), "age-keygen");
    let text = std::fs::read_to_string(&file).unwrap();
    text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned()
}

#[test]
fn a_host_with_public_keys_archives_and_only_readers_read_the_log() {
    let scene = Scene::new();
    scene.on("host", &["init", "--recipient", &scene.public]).expect_code(0);
    let mut client = scene.client();
    for number in 0..50 {
        client.command(&["SET", &format!("key:{number}"), &format!("value {number}")]).unwrap();
    }
    let agent = scene.archive();
    agent.wait_ready();
    client.command(&["SET", "key:0", LATER]).unwrap();
    client.command(&["HSET", "hash", "field", LATER]).unwrap();
    let sealed = agent.status()["shards"][0]["segments"].as_u64().unwrap();
    agent.wait_status("a segment", |status| status["shards"][0]["segments"].as_u64().unwrap() > sealed);
    agent.kill();
    // Killed and started again, it goes on without being able to read what it wrote.
    let agent = scene.archive();
    agent.wait_following();
    client.command(&["SET", "key:1", LATER]).unwrap();
    // Three heartbeats: the server's clock is known behind the last write.
    let offset: u64 = field(&mut client, "master_repl_offset").parse().unwrap();
    agent.wait_status("heartbeats", |status| {
        status["shards"][0]["received"].as_u64().unwrap() >= offset + 3 * 14
    });
    assert_eq!(agent.stop()["spool_bytes"], 0);
    for (name, bytes) in files(&scene.repo()) {
        let hidden = !bytes.windows(LATER.len()).any(|window| window == LATER.as_bytes());
        assert!(hidden, "{name} holds the data in plain");
    }

    // What the host may do.
    let list = scene.on("host", &["list", "--json"]).expect_code(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    let prune = ["prune", "--json", "--keep-last", "1"];
    scene.on("host", &[&prune[..], &["--dry-run"]].concat()).expect_code(0);
    scene.on("host", &[&prune[..], &["--yes"]].concat()).expect_code(0);

    // What takes an identity, and the right one; nothing is written without.
    let (target, file) = (scene.path("target"), scene.path("out"));
    let engine = server("valkey-9.1").program().to_str().unwrap().to_owned();
    let reading: [&[&str]; 5] = [
        &["inspect"],
        &["get", "latest", "key:0"],
        &["export", "--format", "rdb", "--output", &file],
        &["merge", "--engine", &engine],
        &["restore", "--at", "latest", "--to-dir", &target, "--nodes", "127.0.0.1:17001"],
    ];
    let before = files(&scene.repo());
    for arguments in reading {
        let without = scene.on("host", &[arguments, &["--json"]].concat()).expect_code(25);
        let error: serde_json::Value =
            serde_json::from_str(without.stderr.lines().last().unwrap()).unwrap_or_default();
        assert_eq!(error["error"]["kind"], "key", "{arguments:?}: {}", without.stderr);
        let hint = error["error"]["hint"].as_str().unwrap();
        assert!(hint.contains("--identity"), "{arguments:?}: {hint}");
        scene.on("host", &[arguments, &["--identity", &scene.path("stranger")]].concat()).expect_code(25);
    }
    assert_eq!(files(&scene.repo()), before);
    assert!(!Path::new(&target).exists() && !Path::new(&file).exists());

    let identity = scene.path("reader");
    let read = |machine: &str, arguments: &[&str]| {
        scene.on(machine, &[arguments, &["--identity", &identity]].concat()).expect_code(0)
    };
    // The log up to its end, as files: only the log has it.
    read("laptop", reading[4]);
    let mut data = files(Path::new(&target));
    data.retain(|(name, _)| has_extension(name, "aof"));
    let holds =
        |bytes: &[u8]| bytes.windows(LATER.len()).filter(|window| *window == LATER.as_bytes()).count();
    assert_eq!(data.iter().map(|(_, bytes)| holds(bytes)).sum::<usize>(), 3);
    // Merged on the host, which signs: base and log in one backup, with what was written last.
    let merged = read("host", &[reading[3], &["--json"]].concat()).json();
    assert_eq!((&merged["kind"], &merged["digest"]["keys"]), (&"merged".into(), &51.into()));
    assert!(read("laptop", &["get", "latest", "key:1", "--raw"]).stdout == LATER);
    let inspected = read("laptop", &["inspect", "--json"]).json();
    assert_eq!(inspected["total"]["keys"], 51, "{inspected:#}");
    read("laptop", reading[2]);
    assert!(std::fs::read(&file).unwrap().starts_with(b"VALKEY"));
    read("laptop", &["verify", "--depth", "structure"]);
}
