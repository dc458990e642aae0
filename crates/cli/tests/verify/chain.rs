//! The chain: what `archive` keeps leads from each base to the next, across failovers; one changed value in the log is named.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use slotkeep_format::Depth;
use slotkeep_jobs::verify::VerifyOptions;
use slotkeep_repo::{BackupSelector, Location, Repository, SegmentMeta};
use slotkeep_testkit::data::{Mix, Writer};
use slotkeep_testkit::{Cluster, ClusterBuilder};
use tempfile::TempDir;

use crate::common::agent::Agent;
use crate::common::{Run, command, server, slotkeep};
use crate::harness::{RUNTIME, options, verify_at};

pub(crate) struct Archived {
    folder: TempDir,
    pub(crate) engine: PathBuf,
}

impl Archived {
    /// Archives a cluster through two more backups, with writes and a failover between them.
    pub(crate) fn make(server_name: &str) -> Self {
        let stock = server(server_name);
        let cluster = ClusterBuilder::new(stock.clone())
            .primaries(2)
            .replicas_per_primary(1)
            .config("repl-ping-replica-period", "1")
            .start()
            .unwrap();
        Mix::every_type().load(&cluster).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::start(&cluster, folder.path(), &[]);
        agent.wait_ready();
        let writer = Writer::start(&cluster, 100).unwrap();
        writer.wait_for_more(300).unwrap();
        backup(&cluster, &folder);
        cluster.failover(0).unwrap();
        writer.wait_for_more(300).unwrap();
        cluster.client().unwrap().command(&["SET", "marked", "original"]).unwrap();
        backup(&cluster, &folder);
        writer.stop();
        agent.wait_following();
        let target = offsets(&cluster);
        agent.wait_status("everything to be kept", |status| {
            let shards = status["shards"].as_array().unwrap();
            shards.len() == target.len()
                && shards
                    .iter()
                    .zip(&target)
                    .all(|(shard, wanted)| shard["durable"].as_u64().unwrap() >= *wanted)
        });
        agent.stop();
        Self { folder, engine: stock.program().to_owned() }
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    pub(crate) fn spool(&self) -> &Path {
        self.folder.path()
    }

    fn verify(&self, more: &[&str]) -> Run {
        self.verify_at("chain", more)
    }

    pub(crate) fn verify_at(&self, depth: &str, more: &[&str]) -> Run {
        self.verify_with(&self.engine, depth, more)
    }

    /// A program that brings a file back to its place, if that has not been done, and then is the engine.
    fn engine_that_brings_back(&self, away: &Path, place: &Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let program = self.spool().join(self.engine.file_name().unwrap());
        let (away, place) = (away.display(), place.display());
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] || [ -e '{place}' ] || /bin/mv '{away}' '{place}' || exit 1\nexec '{}' \"$@\"\n",
            self.engine.display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    fn verify_with(&self, engine: &Path, depth: &str, more: &[&str]) -> Run {
        let repo = self.repo();
        let (spool, engine) = (self.spool().to_str().unwrap(), engine.to_str().unwrap());
        let mut arguments = vec!["verify", "--json", "--depth", depth, "--spool", spool, "--engine", engine];
        arguments.extend(["--repo", repo.to_str().unwrap()]);
        arguments.extend(more);
        // The server that is named is enough.
        Run::of(&command().args(arguments).env("PATH", "/nowhere").output().unwrap())
    }
}

fn offsets(cluster: &Cluster) -> Vec<u64> {
    let offset = |shard| {
        let mut client = cluster.primary(shard).unwrap().client().unwrap();
        client.info_field("replication", "master_repl_offset").unwrap().unwrap().parse().unwrap()
    };
    (0..cluster.shards()).map(offset).collect()
}

fn backup(cluster: &Cluster, folder: &TempDir) {
    let seeds: Vec<String> = cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
    let repo = folder.path().join("repo");
    slotkeep(&["backup", "--quiet", "--repo", repo.to_str().unwrap(), "--cluster", &seeds.join(",")])
        .expect_code(0);
}

/// Writes the segment that holds those bytes again, with others in their place: whole by all its checksums.
pub(crate) async fn forge(repo: &Path, from: &[u8], to: &[u8]) {
    let repository = Repository::open(&Location::Folder(repo.to_owned())).await.unwrap();
    for history in repository.histories("main").await.unwrap() {
        for segment in repository.segments("main", &history).await.unwrap() {
            let mut reader = repository.read_segment(&segment).await.unwrap();
            let record = reader.record().clone();
            let mut bytes = Vec::new();
            while let Some(piece) = reader.next().await.unwrap() {
                bytes.extend(piece);
            }
            let Some(at) = bytes.windows(from.len()).position(|window| window == from) else { continue };
            bytes[at..at + from.len()].copy_from_slice(to);
            std::fs::remove_file(repo.join(segment.path())).unwrap();
            let mut writer =
                repository.create_segment("main", &history, segment.start..segment.end).await.unwrap();
            writer.write(&bytes).await.unwrap();
            let meta = SegmentMeta {
                database: record.database,
                commands: record.commands,
                source: record.source,
                server: record.server,
                times: record.times,
            };
            writer.finish(meta).await.unwrap();
            return;
        }
    }
    panic!("no segment holds it");
}

fn the_log_leads_from_base_to_base(server_name: &str) {
    let archived = Archived::make(server_name);
    let record = archived.verify(&[]).expect_code(0).json();
    assert_eq!(record["findings"], Json::Array(vec![]), "{record}");
    // Three bases a shard.
    assert_eq!(
        (&record["totals"]["links"], &record["totals"]["links_proved"]),
        (&4.into(), &4.into()),
        "{record}"
    );
    let again = archived.verify(&[]).expect_code(0).json();
    assert_eq!(again["totals"]["links_proved_before"], 4, "{again}");

    RUNTIME.block_on(forge(&archived.repo(), b"original", b"tampered"));
    // By its structure all is well.
    let shallow = VerifyOptions { again: true, ..options(Depth::Structure) };
    assert_eq!(verify_at(&archived.repo(), &shallow).unwrap().findings, []);
    let record = archived.verify(&["--again"]).expect_code(42).json();
    let findings = record["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{record}");
    let (what, object) = (findings[0]["what"].as_str().unwrap(), findings[0]["object"].as_str().unwrap());
    assert!(what.contains("keys: \"marked\"") && what.contains(": 1 slots differ"), "{what}");
    let latest = RUNTIME.block_on(async {
        let repository = Repository::open(&Location::Folder(archived.repo())).await.unwrap();
        repository.find("main", &BackupSelector::Latest).await.unwrap()
    });
    assert!(latest.shards.iter().any(|shard| shard.base.rdb.path == object), "{object}");
    assert_eq!((&findings[0]["depth"], &findings[0]["check"]), (&"chain".into(), &"fold".into()));

    // So it is although another backup is listed between the two before the fold has ended.
    let backups = archived.repo().join("main/backups");
    let mut ids: Vec<_> = std::fs::read_dir(&backups).unwrap().map(|entry| entry.unwrap().path()).collect();
    ids.sort();
    assert_eq!(ids.len(), 3);
    let (between, away) = (&ids[ids.len() - 2], archived.spool().join("away.json"));
    std::fs::rename(between, &away).unwrap();
    let engine = archived.engine_that_brings_back(&away, between);
    let record = archived.verify_with(&engine, "chain", &["--only", "--again"]).expect_code(42).json();
    let what = record["findings"][0]["what"].as_str().unwrap();
    assert!(what.contains("keys: \"marked\""), "{record}");
    assert!(between.exists());
}

#[test]
fn the_log_leads_from_base_to_base_on_valkey_9_1() {
    the_log_leads_from_base_to_base("valkey-9.1");
}

#[test]
fn the_log_leads_from_base_to_base_on_redis_6_2() {
    the_log_leads_from_base_to_base("redis-6.2");
}
