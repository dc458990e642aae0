//! Servers do not outlive the process that started them, however that one ends.
//!
//! The test runs its own program again and kills it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Client, ClusterBuilder, Endpoint, servers};

/// Tells the program that it is the one to be killed.
const VICTIM: &str = "SLOTKEEP_TESTKIT_VICTIM";

/// What the victim prints before it waits for its end.
const READY: &str = "cluster is up:";

#[test]
fn the_victim_starts_a_cluster_and_waits() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server).primaries(2).replicas_per_primary(1).start().unwrap();
    // One that is stopped in its tracks could not react to anything but a kill.
    cluster.node(3).unwrap().pause().unwrap();
    let addrs: Vec<String> = cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
    let folder = cluster.node(0).unwrap().dir().parent().unwrap();
    #[expect(clippy::disallowed_macros, reason = "this output is how the victim reports to the test")]
    {
        println!("\n{READY} {} {}", folder.display(), addrs.join(" "));
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_process_leaves_no_server_and_no_folder() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_victim_starts_a_cluster_and_waits", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(victim.stdout.take().unwrap());
    let report = output.lines().map_while(Result::ok).find(|line| line.starts_with(READY)).unwrap();
    let mut words = report.strip_prefix(READY).unwrap().split_whitespace();
    let folder = Path::new(words.next().unwrap());
    let addrs: Vec<SocketAddr> = words.map(|addr| addr.parse().unwrap()).collect();
    assert_eq!(addrs.len(), 4);
    assert!(folder.exists());
    Client::connect(&Endpoint::plain(addrs[0])).unwrap().command(&["PING"]).unwrap();

    victim.kill().unwrap();
    victim.wait().unwrap();

    wait_for(Duration::from_mins(1), "servers and folder to go", || {
        if folder.exists() {
            return Err(NotYet::because("the folder is there"));
        }
        match addrs.iter().find(|addr| Client::connect(&Endpoint::plain(**addr)).is_ok()) {
            Some(addr) => Err(NotYet::because(format!("{addr} is served"))),
            None => Ok(()),
        }
    })
    .unwrap();
}
