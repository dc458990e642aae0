//! The log goes on in the database that was selected when the base was made.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use slotkeep_jobs::log::chain::Place;
use slotkeep_jobs::log::{Past, database_behind};
use slotkeep_model::ReplId;
use slotkeep_repo::{Location, Repository, SegmentMeta};
use slotkeep_testkit::{Client, ClusterBuilder, servers};

use crate::harness::{Bench, client, free_addrs, seed};

/// How many keys each database holds.
fn keyspace(node: SocketAddr) -> Vec<String> {
    let text = client(node, None, None).info("keyspace").unwrap();
    let rows = text.lines().filter(|line| line.starts_with("db"));
    rows.map(|line| line.split(',').next().unwrap().to_owned()).collect()
}

/// Writes to database 3, which the client has selected.
fn write(client: &mut Client, round: usize) {
    for number in 0..3 {
        client.command(&["SET", &format!("key:{round}:{number}"), "value"]).unwrap();
    }
    client.command(&["WAIT", "1", "10000"]).unwrap();
}

/// Makes the log one whose segments do not say which database they begin in, as earlier versions left it.
async fn forget_databases(repository: &Repository) {
    for history in repository.histories("main").await.unwrap() {
        for entry in repository.segments("main", &history).await.unwrap() {
            let mut reader = repository.read_segment(&entry).await.unwrap();
            let record = reader.record().clone();
            let mut bytes = Vec::new();
            while let Some(piece) = reader.next().await.unwrap() {
                bytes.extend(piece);
            }
            repository.delete(entry.path()).await.unwrap();
            let range = entry.start..entry.end;
            let mut writer = repository.create_segment("main", &history, range).await.unwrap();
            writer.write(&bytes).await.unwrap();
            let meta = SegmentMeta {
                database: None,
                commands: record.commands,
                source: record.source,
                server: record.server,
                times: record.times,
            };
            writer.finish(meta).await.unwrap();
        }
    }
}

/// The databases that segments say they begin in.
async fn databases(repository: &Repository) -> Vec<Option<u32>> {
    let mut found = Vec::new();
    for history in repository.histories("main").await.unwrap() {
        for entry in repository.segments("main", &history).await.unwrap() {
            found.push(repository.segment_record(&entry).await.unwrap().database);
        }
    }
    found
}

fn cut(manifest: &Value) -> Place {
    let cut = &manifest["shards"][0]["cut"];
    let history: ReplId = cut["history"].as_str().unwrap().parse().unwrap();
    Place { history, offset: cut["offset"].as_u64().unwrap() }
}

#[test]
fn a_log_that_a_replica_passed_on_goes_on_in_the_database_of_the_base() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = servers::require("redis-7.0").unwrap();
    let cluster = ClusterBuilder::new(server.clone())
        .cluster_mode(false)
        .primaries(1)
        .replicas_per_primary(1)
        .config("repl-backlog-size", "16mb")
        .start()
        .unwrap();
    let mut primary = cluster.nodes()[0].client().unwrap();
    primary.command(&["SELECT", "3"]).unwrap();
    write(&mut primary, 0);
    let bench = Bench::new();
    let full = bench.backup(seed(&cluster), &[]);
    assert_eq!(full["shards"][0]["source"], cluster.nodes()[1].addr().to_string());
    write(&mut primary, 1);
    let newest = bench.backup(seed(&cluster), &["--type", "incremental", "--no-fallback"]);
    let expected = keyspace(cluster.nodes()[0].addr());
    assert_eq!(expected, ["db3:keys=6"]);

    let repository = runtime.block_on(Repository::open(&Location::Folder(bench.repo()))).unwrap();
    let said = runtime.block_on(databases(&repository));
    assert!(!said.is_empty() && said.iter().all(|database| *database == Some(3)), "{said:?}");
    let said = free_addrs(2);
    bench.restore_and_start("said", &said, &server, &[]);
    assert_eq!(keyspace(said[0]), expected);

    runtime.block_on(forget_databases(&repository));
    let past = Arc::new(runtime.block_on(Past::load(&repository, "main")).unwrap());
    for place in [cut(&full), cut(&newest)] {
        assert_eq!(runtime.block_on(database_behind(&past, &place)).unwrap(), Some(3), "{place:?}");
    }
    let told = free_addrs(2);
    bench.restore_and_start("told", &told, &server, &[]);
    assert_eq!(keyspace(told[0]), expected);
}
