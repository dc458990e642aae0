//! A new cluster takes the place of an old one under load, by the script of the runbook: every write that was acknowledged is there, and
//! nothing else. And what keeps two clusters from taking writes at a time.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::ledger::{Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{Cluster, ClusterBuilder, Server, servers};

use crate::common::agent::Agent;
use crate::harness::{Bench, Run, cluster_client, free_addrs, seed};

fn list(nodes: &[SocketAddr]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Runs the script of the runbook.
fn take_over(bench: &Bench, cluster: &Cluster, nodes: &[SocketAddr], folder: &str, server: &str) -> Run {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/takeover.sh");
    let mut command = Command::new("bash");
    command.arg(script).env("OLD", seed(cluster).to_string()).env("REPO", bench.repo());
    command.env("NEW", list(nodes)).env("DIR", bench.path(folder)).env("SERVER", server).env("WAIT", "20s");
    command.env("SLOTKEEP", env!("CARGO_BIN_EXE_slotkeep"));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_new_cluster_takes_the_place_of_an_old_one_at_the_last_acknowledged_write() {
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server.clone()).replicas_per_primary(1).start().unwrap();
    let bench = Bench::new();
    let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
    agent.wait_ready();
    let ledger = Ledger::start(&cluster, LedgerOptions { seed: 11, lists: 30, accounts: 8 }).unwrap();
    ledger.wait_for_more(300).unwrap();
    // What does not come to its end leaves the old cluster as it was.
    let nodes = free_addrs(6);
    let failed = take_over(&bench, &cluster, &nodes, "failed", "/bin/true");
    failed.failed(2, "the old one takes writes again");
    ledger.wait_for_more(300).unwrap();

    let program = server.program().to_str().unwrap();
    let run = take_over(&bench, &cluster, &nodes, "new", program);
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("Nobody could write for "), "{}", run.stdout);
    let account = ledger.stop(&cluster).unwrap();
    assert_eq!(account.lost(), 0);
    assert!(account.acknowledged() > 600);
    let mut client = cluster_client(&nodes, None);
    let all = Bounds { nothing_after_ms: i64::MAX, nothing_missing_before_ms: i64::MAX, consistent: true };
    account.check(all, &mut |args| client.command(args)).unwrap();
    // Not a key more, and the old one, which answers still, takes no write.
    let same = bench.slotkeep(&["diff", &seed(&cluster).to_string(), &nodes[0].to_string()]);
    assert_eq!(same.code, 0, "{}\n{}", same.stdout, same.stderr);
    assert!(cluster.client().unwrap().command_once_on(b"k", &["SET", "k", "late"]).is_err());
    client.command(&["SET", "k", "goes on"]).unwrap();
    agent.stop();
}

struct Old {
    bench: Bench,
    cluster: Cluster,
    server: Server,
}

impl Old {
    fn start(builder: &ClusterBuilder, bench: Bench, server: Server) -> Self {
        let cluster = builder.start().unwrap();
        cluster.client().unwrap().command(&["SET", "k", "v"]).unwrap();
        bench.backup(seed(&cluster), &[]);
        Self { bench, cluster, server }
    }

    /// Restores as somebody would who means it.
    fn restore(&self, name: &str, nodes: &[SocketAddr], more: &[&str]) -> Run {
        let program = self.server.program().to_str().unwrap();
        self.restore_by(name, nodes, &[&["--server", program], more].concat())
    }

    fn restore_by(&self, name: &str, nodes: &[SocketAddr], more: &[&str]) -> Run {
        let folder = self.bench.path(name);
        let fixed = ["restore", "--to-dir", folder.to_str().unwrap(), "--nodes", &list(nodes), "--start"];
        let run = self.bench.slotkeep(&[&fixed[..], more].concat());
        if run.code != 0 {
            assert_eq!(self.bench.restored(), Vec::<String>::new(), "nothing is written");
        }
        run
    }

    fn fence(&self, more: &[&str]) -> Run {
        let old = self.cluster.nodes().iter().map(slotkeep_testkit::Node::addr).collect::<Vec<_>>();
        self.bench.slotkeep(&[&["fence", "--cluster", &list(&old)], more].concat())
    }
}

#[test]
fn two_clusters_never_take_writes_by_mistake() {
    let server = servers::require("redis-7.0").unwrap();
    let builder = ClusterBuilder::new(server.clone()).primaries(2).replicas_per_primary(1);
    // Offsets stay where they are while nobody writes.
    let old = Old::start(&builder.config("repl-ping-replica-period", "3600"), Bench::new(), server);
    let nodes = free_addrs(4);
    let run = old.restore("open", &nodes, &[]);
    run.failed(35, "still takes writes");
    for node in old.cluster.nodes() {
        assert!(run.stderr.contains(&node.addr().to_string()), "{}", run.stderr);
    }
    run.failed(35, "replica, if it is promoted");
    run.failed(35, "--beside-old");
    old.restore("open", &nodes, &["--via", "link"]).failed(35, "still takes writes");

    // Nothing keeps the log: what was written since is missing, until somebody fetches it.
    old.cluster.client().unwrap().command(&["SET", "k", "newer"]).unwrap();
    old.fence(&["--await-log", "0s"]).failed(24, "does not hold every write that was accepted: slots");
    let seeds = old.cluster.nodes()[0].addr().to_string();
    old.bench.slotkeep(&["backup", "--type", "incremental", "--no-fallback", "--cluster", &seeds]).json();
    // What comes behind it are heartbeats: nobody waits for an archive to seal those.
    for node in old.cluster.nodes() {
        node.client().unwrap().command(&["CONFIG", "SET", "repl-ping-replica-period", "1"]).unwrap();
    }
    let offset = || -> u64 {
        let mut primary = old.cluster.primary(0).unwrap().client().unwrap();
        primary.info_field("replication", "master_repl_offset").unwrap().unwrap().parse().unwrap()
    };
    let before = offset();
    wait_for(Duration::from_secs(20), "a heartbeat", || match offset() {
        now if now > before => Ok(()),
        now => Err(NotYet::because(format!("still at {now}"))),
    })
    .unwrap();
    let fenced = old.fence(&["--status", "--await-log", "0s"]).json();
    assert_eq!(fenced["log"]["complete"], true, "{fenced}");

    // A replica that somebody forgot.
    let forgotten = old.cluster.replicas(1).unwrap()[0];
    forgotten.client().unwrap().command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).unwrap();
    let run = old.restore("open", &nodes, &[]);
    run.failed(35, &format!("still takes writes: {} (replica, if it is promoted);", forgotten.addr()));
    old.fence(&[]).json();
    // Somebody lifts the fence while the new nodes get their data: none of them takes a slot over.
    let (lifted, program) = (old.cluster.primary(0).unwrap(), old.server.program().display());
    let script = format!(
        "#!/bin/bash\nif [[ $1 != -* ]]; then\n  exec 3<>/dev/tcp/127.0.0.1/{}\n  printf 'CONFIG SET min-replicas-to-write 0\\r\\n' >&3\n  \
         read -r _ <&3\n  exec 3>&-\nfi\nexec {program} \"$@\"\n",
        lifted.port()
    );
    let wrapper = tempfile::tempdir().unwrap();
    let wrapper = wrapper.path().join("server");
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let via_link = ["--via", "link", "--server", wrapper.to_str().unwrap()];
    let run = old.restore_by("open", &nodes, &via_link);
    run.failed(35, "the new cluster was not opened");
    run.failed(35, &format!("still takes writes: {} (primary);", lifted.addr()));
    for node in &nodes {
        assert!(std::net::TcpStream::connect(node).is_err(), "{node} runs");
    }
    old.fence(&[]).json();
    // The address of a node that is down, while the others would go on talking to it.
    let down = old.cluster.replicas(1).unwrap()[0].addr();
    old.cluster.replicas(1).unwrap()[0].kill().unwrap();
    let taken = [nodes[0], nodes[1], nodes[2], down];
    old.restore("open", &taken, &[]).failed(31, "would talk to the new node");
    old.restore("open", &taken, &["--beside-old"]).failed(31, "would talk to the new node");

    let run = old.restore("new", &nodes, &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains(&format!("do not answer: {down}")), "{}", run.stderr);
    // The two can't meet: neither knows an address or an id of the other.
    for node in &nodes {
        let place = old.bench.path("new").join(format!("127.0.0.1-{}", node.port()));
        let conf = std::fs::read_to_string(place.join("nodes.conf")).unwrap();
        for other in old.cluster.nodes() {
            assert!(!conf.contains(&other.addr().to_string()) && !conf.contains(other.id()), "{conf}");
        }
    }
}

#[test]
fn a_node_that_can_not_be_asked_counts_and_one_of_another_cluster_does_not() {
    let server = servers::require("valkey-9.1").unwrap();
    let builder = ClusterBuilder::new(server.clone()).primaries(1).password("secret");
    let mut old = Old::start(&builder, Bench::new().with_password("secret"), server);
    old.bench = old.bench.with_password("wrong");
    old.restore("open", &free_addrs(1), &["--no-acl"]).failed(35, "it answers and can't be asked");
    // Another cluster at that address.
    let addr = old.cluster.nodes()[0].addr();
    old.cluster.nodes()[0].kill().unwrap();
    let conf = old.cluster.nodes()[0].dir().join("nodes.conf");
    std::fs::remove_file(conf).unwrap();
    old.cluster.nodes()[0].start().unwrap();
    old.bench = old.bench.with_password("secret");
    let run = old.restore("new", &free_addrs(1), &["--no-acl"]);
    assert_eq!(run.code, 0, "{addr}: {}", run.stderr);
}
