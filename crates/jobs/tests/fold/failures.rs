//! What goes wrong with folds: errors that say why, and nothing left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use slotkeep_jobs::engine::{Engine, EngineNeeds, EngineOptions, choose_engine};
use slotkeep_jobs::fold::{FoldDestination, FoldInput, FoldProgress, Folded, fold};
use slotkeep_jobs::link::{Feed, Snapshot};
use slotkeep_jobs::source::{ByteSource, MemorySource};
use slotkeep_jobs::stock_server::StockServer;
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_model::{Product, ReplOffset, ServerVersion};
use slotkeep_testkit::servers;
use slotkeep_wire::replica::Credentials;
use slotkeep_wire::resp::write_command;

use super::Place;

/// An RDB without keys that every server loads: a checksum of zero is none.
const EMPTY_RDB: &[u8] = b"REDIS0009\xff\0\0\0\0\0\0\0\0";
const CHILD: &str = "SLOTKEEP_TEST_ENGINE_FOLDER";

fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_command(&mut bytes, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    bytes
}

/// The processes that were started with something in that folder.
fn processes_of(folder: &Path) -> Vec<i32> {
    let folder = folder.to_str().unwrap();
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(folder)
    })
    .collect()
}

/// A log that does something when its second piece is asked for.
struct Then<F> {
    first: Option<Bytes>,
    then: F,
}

impl<F: FnMut() -> Result<Option<Bytes>> + Send> ByteSource for Then<F> {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => (self.then)(),
        }
    }
}

struct Attempt {
    place: Place,
    folder: tempfile::TempDir,
    server: &'static str,
}

impl Attempt {
    async fn new() -> Self {
        Self::with("valkey-8.1").await
    }

    async fn with(server: &'static str) -> Self {
        Self { place: Place::new().await, folder: tempfile::tempdir().unwrap(), server }
    }

    async fn fold(&self, rdb: &'static [u8], log: impl ByteSource, cut: u64) -> Result<Folded> {
        let base = Snapshot {
            source: MemorySource::new([Bytes::from_static(rdb)]),
            len_bytes: rdb.len() as u64,
            history: "e".repeat(40).parse().unwrap(),
            offset: ReplOffset(100),
        };
        let program = servers::require(self.server).unwrap().program().to_owned();
        let options = EngineOptions {
            program: Some(program),
            folder: Some(self.folder.path().to_owned()),
            ..EngineOptions::default()
        };
        let needs = EngineNeeds { rdb: "REDIS0009".parse().unwrap(), source: None };
        let engine = choose_engine(&options, &needs).await?;
        let feed = Feed { base, log, cut: ReplOffset(cut) };
        let input = FoldInput { feed, needs, time_of: None };
        let destination =
            FoldDestination { repository: &self.place.repository, cluster: "c", backup_id: "folded-1" };
        let progress = FoldProgress::new("all".to_owned());
        fold(&self.place.context, &engine, &options, input, &destination, &progress).await
    }

    async fn fails(&self, rdb: &'static [u8], log: impl ByteSource, cut: u64) -> Error {
        let error = self.fold(rdb, log, cut).await.unwrap_err();
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 0, "the engine's folder stays");
        assert_eq!(processes_of(self.folder.path()), Vec::<i32>::new());
        assert_eq!(self.place.objects(), Vec::<PathBuf>::new());
        error
    }
}

/// Every server can be an engine: it understands its configuration, follows, and counts what fills gaps as it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_is_an_engine() {
    let log = [
        command(&["SELECT", "900"]),
        command(&["SPUBLISH", "channel", &"x".repeat(100_000)]),
        command(&["MULTI"]),
        command(&["SET", "k", "v", "PXAT", "1"]),
        command(&["PUBLISH", "channel", "x"]),
        command(&["APPEND", "k", "v"]),
        command(&["EXEC"]),
        command(&["REPLCONF", "GETACK", "*"]),
    ]
    .concat();
    let cut = 100 + log.len() as u64;
    for name in servers::NAMES {
        let attempt = Attempt::with(name).await;
        let folded = attempt.fold(EMPTY_RDB, MemorySource::default(), 100).await.unwrap();
        assert_eq!((folded.base.keys, folded.offset), (Some(0), ReplOffset(100)), "{name}");
        let attempt = Attempt::with(name).await;
        let log = MemorySource::new([log.clone().into()]);
        let folded = attempt.fold(EMPTY_RDB, log, cut).await.unwrap();
        assert_eq!((folded.base.keys, folded.left_out_commands), (Some(1), 3), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_what_it_should_be_is_refused() {
    let attempt = Attempt::new().await;
    let set = command(&["SET", "k", "v"]);
    let log = || MemorySource::new([Bytes::from(set.clone())]);
    let error = attempt.fails(EMPTY_RDB, log(), 999).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("the log ends at offset 127, expected 999"), "{error}");
    let half = MemorySource::new([Bytes::from(set[..10].to_vec())]);
    let error = attempt.fails(EMPTY_RDB, half, 110).await;
    assert!(error.to_string().contains("inside a command"), "{error}");
    let open = [command(&["MULTI"]), command(&["SET", "k", "v"])].concat();
    let cut = 100 + open.len() as u64;
    let error = attempt.fails(EMPTY_RDB, MemorySource::new([open.into()]), cut).await;
    assert!(error.to_string().contains("inside a transaction"), "{error}");
    let moves = command(&["CLUSTER", "SYNCSLOTS", "FINISH"]);
    let error = attempt.fails(EMPTY_RDB, MemorySource::new([moves.into()]), 999).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let failing = Then { first: None, then: || Err(Error::new(ErrorKind::Corrupt, "no such segment")) };
    assert_eq!(attempt.fails(EMPTY_RDB, failing, 999).await.to_string(), "no such segment");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_load_the_base_says_why() {
    let attempt = Attempt::new().await;
    let error = attempt.fails(b"REDIS0009\x63\x63\x63\x63", MemorySource::default(), 100).await;
    assert!(error.to_string().contains("the log of the engine, Valkey 8.1"), "{error}");
    let attempt = Attempt::new().await;
    let needs = EngineNeeds {
        rdb: "VALKEY080".parse().unwrap(),
        source: ServerVersion::parse(Product::Valkey, "9.1.2"),
    };
    let options = EngineOptions {
        program: Some(servers::require("valkey-8.1").unwrap().program().to_owned()),
        ..EngineOptions::default()
    };
    let error = choose_engine(&options, &needs).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.advice(), Some("name Valkey 9.1.2 or a newer Valkey with --engine PATH"));
    drop(attempt);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_is_told_of() {
    let attempt = Attempt::new().await;
    let folder = attempt.folder.path().to_owned();
    let kill = move || {
        for pid in processes_of(&folder) {
            let line = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if line.trim() != "sh" {
                Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
            }
        }
        Ok(Some(Bytes::from(command(&["SET", "k", "v"]))))
    };
    let log = Then { first: Some(command(&["SET", "k", "v"]).into()), then: kill };
    let error = attempt.fails(EMPTY_RDB, log, u64::MAX).await;
    assert!(error.to_string().contains("ended (signal: 9 (SIGKILL)"), "{error}");
    assert!(error.advice().unwrap().contains("memory"), "{:?}", error.advice());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_a_fold_leaves_nothing() {
    let attempt = Attempt::new().await;
    let stop = attempt.place.context.stop.clone();
    let then = move || {
        stop.cancel();
        Ok(Some(Bytes::from(command(&["SET", "k", "v"]))))
    };
    let log = Then { first: Some(command(&["SET", "k", "v"]).into()), then };
    assert_eq!(attempt.fails(EMPTY_RDB, log, u64::MAX).await.kind(), ErrorKind::Interrupted);
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_with_an_engine() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let server = StockServer::at(servers::require("valkey-8.1").unwrap().program()).await.unwrap();
    let options = EngineOptions { folder: Some(folder.into()), ..EngineOptions::default() };
    let credentials = Credentials { user: None, password: "x".to_owned() };
    let engine =
        Engine::start(&server, &options, "127.0.0.1:1".parse().unwrap(), &credentials).await.unwrap();
    std::future::pending::<()>().await;
    drop(engine);
}

#[test]
fn an_engine_does_not_outlive_a_killed_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "failures::child_with_an_engine"])
        .env(CHILD, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let wait = |what: &str, condition: &dyn Fn() -> bool| {
        slotkeep_testkit::deadline::wait_for(Duration::from_secs(20), what, || {
            if condition() {
                Ok(())
            } else {
                Err(slotkeep_testkit::deadline::NotYet::Because("not yet".to_owned()))
            }
        })
        .unwrap();
    };
    let socket = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries.flatten().any(|entry| entry.path().join("engine.sock").exists())
    };
    wait("the engine to listen", &socket);
    // The engine and its guard.
    assert!(processes_of(folder.path()).len() >= 2);
    child.kill().unwrap();
    child.wait().unwrap();
    wait("the engine's end", &|| processes_of(folder.path()).is_empty());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
