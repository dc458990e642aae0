//! A repository in an S3 bucket serves as one in a folder does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use common::{Run, command, server};
use slotkeep_testkit::ClusterBuilder;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::stores::S3Server;

#[test]
fn a_bucket_is_made_a_repository_and_holds_a_backup() {
    let store = S3Server::start().unwrap();
    store.make_bucket("backups").unwrap();
    let slotkeep = |arguments: &[&str], code| {
        Run::of(&command().args(arguments).envs(store.environment()).output().unwrap()).expect_code(code)
    };
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    let repo = ["--repo", "s3://backups/redis"];

    let before = slotkeep(&["backup", repo[0], repo[1], "--cluster", &addr], 20);
    assert!(before.stderr.contains("slotkeep init"), "{}", before.stderr);
    slotkeep(&["init", repo[0], repo[1]], 0);
    slotkeep(&["init", repo[0], repo[1]], 20);
    let manifest = slotkeep(&["backup", "--json", repo[0], repo[1], "--cluster", &addr], 0).json();
    assert_eq!(manifest["digest"]["keys"].as_u64().unwrap(), loaded.keys());
    let list = slotkeep(&["list", "--json", repo[0], repo[1]], 0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    slotkeep(&["diff", repo[0], repo[1], "latest", &addr], 0);
    slotkeep(&["list", "--repo", "s3://no-such-bucket/"], 20);
}
