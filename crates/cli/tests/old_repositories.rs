//! Old repositories stay readable: one of each format version is kept as it was written.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use common::slotkeep;

const VERSION_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/repository-v1");
const VERSION_1_DIGEST: &str = "0e203d44f708625d8872dafe00db36fb";

#[test]
fn version_1_is_listed_shown_and_compared() {
    let list = slotkeep(&["list", "--json", "--repo", VERSION_1]).expect_code(0).json();
    assert_eq!(list["backups"][0]["keys"], 8);
    let show = slotkeep(&["show", "--repo", VERSION_1]).expect_code(0).stdout;
    assert!(show.contains(VERSION_1_DIGEST), "{show}");
    let diff = slotkeep(&["diff", "--json", "--repo", VERSION_1, "latest", "latest"]).expect_code(0).json();
    assert_eq!(diff["a"]["digest"], VERSION_1_DIGEST);
}

#[test]
fn version_1_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("restored");
    let arguments =
        ["restore", "--repo", VERSION_1, "--to-dir", target.to_str().unwrap(), "--nodes", "127.0.0.1:7000"];
    slotkeep(&arguments).expect_code(0);
    let rdb = std::fs::read(target.join("127.0.0.1-7000/dump.rdb")).unwrap();
    assert!(rdb.starts_with(b"REDIS0010"));
    assert_eq!(rdb.len(), 443);
}
