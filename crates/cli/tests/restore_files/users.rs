//! Users, passwords, and who may know them.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use slotkeep_testkit::{Client, ClusterBuilder, servers};

use crate::harness::{Bench, client, config, endpoint, free_addrs, seed};

const PASSWORD: &str = "correct horse \"battery\" staple";

fn hash(password: &str) -> String {
    Sha256::digest(password.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// A standalone server with a replica, both with a password.
fn locked() -> ClusterBuilder {
    ClusterBuilder::new(servers::require("redis-7.0").unwrap())
        .cluster_mode(false)
        .primaries(1)
        .replicas_per_primary(1)
        .password("plain")
        .acl_user("other", "on >topsecret ~* &* +@all")
}

#[test]
fn no_secret_reaches_a_manifest_unless_it_is_asked_for() {
    let cluster = locked().config("tls-key-file-pass", "keypass").start().unwrap();
    let bench = Bench::new().with_password("plain");
    let secrets =
        ["plain", "topsecret"].map(hash).into_iter().chain(["keypass".to_owned(), "\"plain\"".to_owned()]);
    let secrets: Vec<String> = secrets.collect();
    let without = bench.backup(seed(&cluster), &[]);
    let text = bench.manifest_text(&without);
    for secret in &secrets {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    let with = bench.backup(seed(&cluster), &["--include-secrets"]);
    let text = bench.manifest_text(&with);
    for secret in &secrets {
        assert!(text.contains(secret), "{secret} is not in {text}");
    }
    assert_eq!(without["settings"][0]["secrets"], false);
    assert_eq!(with["settings"][0]["secrets"], true);
}

#[test]
fn what_may_not_be_read_is_named_once_and_fails_nothing() {
    let rules = "on >plain -@all +psync +replconf +ping +info +cluster";
    let cluster = locked().acl_user("backup", rules).start().unwrap();
    let bench = Bench::new().with_password("plain");
    let manifest = bench.backup(seed(&cluster), &["--user", "backup"]);
    let rows = manifest["settings"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["nodes"].as_array().unwrap().len(), 2);
    let unreadable = rows[0]["unreadable"].as_array().unwrap();
    let expected = ["CONFIG GET", "ACL LIST", "MODULE LIST"]
        .map(|command| format!("{command}: the user may not run it"));
    assert_eq!(unreadable, &expected);

    // Whether a password is needed is not known: nothing is opened by mistake.
    bench
        .restore("new", &free_addrs(2), &[])
        .failed(2, "does not say whether the default user needs a password");
    assert!(bench.restored().is_empty());
}

#[test]
fn a_password_that_is_not_stored_must_be_given_anew() {
    let cluster = locked().start().unwrap();
    cluster.client().unwrap().command(&["SET", "key", "value"]).unwrap();
    let bench = Bench::new().with_password("plain");
    bench.backup(seed(&cluster), &[]);
    let nodes = free_addrs(2);
    bench.restore("new", &nodes, &[]).failed(2, "--new-password-file");
    assert!(bench.restored().is_empty());

    let file = bench.path("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let options = ["--new-password-file", file.to_str().unwrap()];
    let report = bench.restore_and_start("new", &nodes, cluster.server(), &options);
    assert_eq!(report["cluster_mode"], false);
    assert!(report["warnings"].to_string().contains("for none is stored: other"), "{report}");
    assert!(!report.to_string().contains("battery"), "{report}");
    for node in &nodes {
        assert!(Client::connect(&endpoint(*node, None, Some("plain"))).is_err());
        let mut client = client(*node, None, Some(PASSWORD));
        assert_eq!(client.command(&["GET", "key"]).unwrap().text().unwrap(), "value");
    }
    let info = client(nodes[1], None, Some(PASSWORD)).info("replication").unwrap();
    assert!(info.contains("role:slave") && info.contains("master_link_status:up"), "{info}");
}

#[test]
fn stored_secrets_come_back() {
    let cluster = locked().start().unwrap();
    let bench = Bench::new().with_password("plain");
    bench.backup(seed(&cluster), &["--include-secrets"]);
    let nodes = free_addrs(2);
    bench.restore_and_start("new", &nodes, cluster.server(), &[]);
    for node in &nodes {
        assert!(Client::connect(&endpoint(*node, None, None)).unwrap().command(&["PING"]).is_err());
        client(*node, Some("other"), Some("topsecret")).command(&["PING"]).unwrap();
    }
    assert_eq!(config(&mut client(nodes[1], None, Some("plain")), "masterauth"), "plain");
    bench.same_data(nodes[0], &[]);
}

#[test]
fn users_can_be_left_out_on_purpose() {
    let cluster = locked().start().unwrap();
    let bench = Bench::new().with_password("plain");
    bench.backup(seed(&cluster), &[]);
    let nodes = free_addrs(1);
    let report = bench.restore_and_start("new", &nodes, cluster.server(), &["--no-acl", "--no-replicas"]);
    assert!(report["warnings"].to_string().contains("whoever reaches the nodes may do everything"));
    assert_eq!(client(nodes[0], None, None).command(&["ACL", "USERS"]).unwrap().array().unwrap().len(), 1);
}
