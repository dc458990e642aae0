//! What breaks in the middle of a backup harms nobody else: the server loses its replica at once, the repository lists nothing that is
//! not whole and keeps nothing of what was begun.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Run, command, files, server, slotkeep};
use rustix::process::{Pid, Signal, kill_process};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder, Node, Proxy};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);
/// What each shard here holds: more than the sockets' buffers between it and a slow reader, so that a throttled snapshot is surely
/// under way.
const SHARD_BYTES: u64 = 20_000_000;
/// A throttled link: a shard's snapshot would take minutes.
const SLOW_BYTES_PER_S: u64 = 100_000;
/// So many bytes on a link mean that the snapshot itself is flowing: all that is asked before is shorter.
const MID_SNAPSHOT_BYTES: u64 = 120_000;

/// A cluster whose nodes are reached through proxies, by `--address-map`.
struct Fixture {
    cluster: Cluster,
    proxies: Vec<Proxy>,
    folder: TempDir,
}

impl Fixture {
    fn start(primaries: usize, replicas: usize) -> Self {
        let cluster = ClusterBuilder::new(server("valkey-9.1"))
            .primaries(primaries)
            .replicas_per_primary(replicas)
            .config("cluster-require-full-coverage", "no")
            .start()
            .unwrap();
        Mix::bulk(SHARD_BYTES * primaries as u64).load(&cluster).unwrap();
        cluster.wait_ok().unwrap();
        let proxies = cluster.nodes().iter().map(|node| node.proxy().unwrap()).collect();
        Self { cluster, proxies, folder: tempfile::tempdir().unwrap() }
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    fn map(&self) -> String {
        let nodes = self.cluster.nodes().iter().zip(&self.proxies);
        let rules: Vec<String> =
            nodes.map(|(node, proxy)| format!("{}={}", node.addr(), proxy.addr())).collect();
        rules.join(",")
    }

    fn backup_command(&self) -> Command {
        let mut backup = command();
        backup.args(["backup", "--json", "--jobs-per-host", "9", "--cluster"]);
        backup.arg(self.cluster.nodes()[0].addr().to_string()).args(["--address-map", &self.map()]);
        backup.arg("--repo").arg(self.repo()).stdout(Stdio::piped()).stderr(Stdio::piped());
        backup
    }

    /// Begins a backup and waits until the snapshots of these nodes are flowing, through links that will not be done soon.
    fn backup_in_the_middle(&self, nodes: &[usize]) -> Child {
        for number in nodes {
            self.proxies[*number].throttle(SLOW_BYTES_PER_S);
        }
        let child = self.backup_command().spawn().unwrap();
        wait_for(LIMIT, "the snapshots to flow", || {
            let all = nodes.iter().all(|number| self.proxies[*number].passed_bytes() > MID_SNAPSHOT_BYTES);
            if all { Ok(()) } else { Err(NotYet::because("too few bytes")) }
        })
        .unwrap();
        child
    }

    /// The cluster goes on as before: no reader is attached, and every node that runs answers.
    fn unharmed(&self, replicas_each: usize) {
        for node in self.cluster.nodes().iter().filter(|node| node.is_running()) {
            replicas_become(node, replicas_each);
        }
    }

    /// What the repository holds without the log: segments are whole, and no backup names them.
    fn holds(&self) -> Vec<String> {
        let of_the_log =
            |name: &str| ["/log/", "/history.json", "/topology/"].iter().any(|part| name.contains(part));
        files(&self.repo()).into_iter().map(|(name, _)| name).filter(|name| !of_the_log(name)).collect()
    }

    /// The repository holds nothing but its own file, and segments perhaps.
    fn holds_nothing(&self) {
        let left = self.holds();
        assert_eq!(left, ["slotkeep.json"]);
        let listed =
            slotkeep(&["list", "--json", "--repo", self.repo().to_str().unwrap()]).expect_code(0).json();
        assert_eq!(listed["backups"].as_array().unwrap().len(), 0);
    }

    /// A backup over mended links succeeds, and equals the cluster.
    fn next_backup_succeeds(&self) {
        for proxy in &self.proxies {
            proxy.mend();
        }
        Run::of(&self.backup_command().output().unwrap()).expect_code(0);
        let addr = self.cluster.nodes()[0].addr().to_string();
        slotkeep(&["diff", "--repo", self.repo().to_str().unwrap(), "latest", &addr]).expect_code(0);
    }
}

/// Waits until a primary has that many replicas.
fn replicas_become(node: &Node, wanted: usize) {
    wait_for(LIMIT, "the reader to be gone", || {
        let mut client = node.client()?;
        if client.info_field("replication", "role")?.as_deref() != Some("master") {
            return Ok(());
        }
        let found = client.info_field("replication", "connected_slaves")?.unwrap_or_default();
        if found == wanted.to_string() { Ok(()) } else { Err(NotYet::because(format!("{found} replicas"))) }
    })
    .unwrap();
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

fn ended(child: Child) -> Run {
    Run::of(&child.wait_with_output().unwrap())
}

#[test]
fn ctrl_c_leaves_neither_a_reader_nor_an_object() {
    let fixture = Fixture::start(2, 0);
    let child = fixture.backup_in_the_middle(&[0, 1]);
    for node in fixture.cluster.nodes() {
        replicas_become(node, 1);
    }
    interrupt(&child);
    let run = ended(child).expect_code(130);
    assert!(run.stderr.contains("\"kind\":\"interrupted\""), "{}", run.stderr);
    assert!(run.stdout.is_empty());
    fixture.unharmed(0);
    fixture.holds_nothing();
    fixture.next_backup_succeeds();
}

#[test]
fn ctrl_c_does_not_wait_for_what_a_limited_rate_lets_pass() {
    let fixture = Fixture::start(1, 0);
    let spool = fixture.folder.path().join("spool");
    let mut backup = fixture.backup_command();
    // A part of a megabyte would take some minutes.
    backup.args(["--limit-rate", "5K", "--spool"]).arg(&spool);
    let child = backup.spawn().unwrap();
    wait_for(LIMIT, "a base to be begun", || {
        let begun = fixture.repo().exists()
            && files(&fixture.repo()).iter().any(|(name, _)| name.contains("rdb.zst#"));
        if begun { Ok(()) } else { Err(NotYet::because("no file")) }
    })
    .unwrap();
    interrupt(&child);
    let mut child = child;
    wait_for(LIMIT, "it to end", || match child.try_wait().unwrap() {
        Some(_) => Ok(()),
        None => Err(NotYet::because("it runs")),
    })
    .unwrap();
    ended(child).expect_code(130);
    fixture.unharmed(0);
    fixture.holds_nothing();
    assert!(!spool.exists(), "{:?}", files(&spool));
}

#[test]
fn a_second_ctrl_c_ends_at_once_and_still_lists_nothing() {
    let fixture = Fixture::start(1, 0);
    let mut child = fixture.backup_in_the_middle(&[0]);
    interrupt(&child);
    // Two that come at once are one signal for the process.
    wait_for(LIMIT, "it to end", || {
        if child.try_wait().unwrap().is_some() {
            return Ok(());
        }
        interrupt(&child);
        Err(NotYet::because("it runs"))
    })
    .unwrap();
    ended(child).expect_code(130);
    fixture.unharmed(0);
    let repo = fixture.repo();
    let listed = slotkeep(&["list", "--json", "--repo", repo.to_str().unwrap()]).expect_code(0).json();
    assert_eq!(listed["backups"].as_array().unwrap().len(), 0);
    fixture.next_backup_succeeds();
}

#[test]
fn ctrl_c_is_heard_while_a_node_does_not_answer() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(1).start().unwrap();
    let node = &cluster.nodes()[0];
    node.pause().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["backup", "check"] {
        let mut asking = command();
        asking
            .args([name, "-vv", "--cluster", &node.addr().to_string(), "--repo"])
            .arg(folder.path().join("repo"));
        let child = asking.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let status = format!("/proc/{}/net/tcp", child.id());
        let port = format!(":{:04X} 01 ", node.addr().port());
        wait_for(LIMIT, "the question to be asked", || {
            let table = std::fs::read_to_string(&status).unwrap_or_default();
            if table.contains(&port) { Ok(()) } else { Err(NotYet::because("no connection")) }
        })
        .unwrap();
        interrupt(&child);
        // A node that does not answer is waited for much longer: that would end with another code.
        ended(child).expect_code(130);
    }
    node.resume().unwrap();
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_replica_that_dies_is_replaced_by_another_node() {
    let fixture = Fixture::start(2, 1);
    // Nodes 2 and 3 are the replicas; a backup prefers them.
    let child = fixture.backup_in_the_middle(&[2]);
    fixture.cluster.nodes()[2].kill().unwrap();
    let run = ended(child).expect_code(0);
    let manifest = run.json();
    assert_eq!(manifest["shards"][0]["source"], fixture.cluster.nodes()[0].addr().to_string());
    assert_eq!(manifest["shards"][0]["source_role"], "primary");
    assert!(run.stderr.contains("could not be captured"), "{}", run.stderr);
    // What the first attempt stored is gone: six objects, the manifest, the repository's file.
    assert_eq!(fixture.holds().len(), 8);
    let addr = fixture.cluster.nodes()[0].addr().to_string();
    slotkeep(&["diff", "--repo", fixture.repo().to_str().unwrap(), "latest", &addr]).expect_code(0);
}

#[test]
fn a_shard_that_dies_ends_the_backup_and_nothing_else() {
    let fixture = Fixture::start(3, 0);
    let child = fixture.backup_in_the_middle(&[0, 1]);
    fixture.cluster.nodes()[1].kill().unwrap();
    let run = ended(child).expect_code(10);
    assert!(run.stderr.contains("shard with slots 5461-10921"), "{}", run.stderr);
    fixture.unharmed(0);
    fixture.holds_nothing();
    fixture.cluster.nodes()[1].start().unwrap();
    fixture.cluster.wait_ok().unwrap();
}

#[test]
fn a_link_that_is_cut_in_the_middle() {
    let fixture = Fixture::start(2, 0);
    fixture.proxies[1].cut_after(MID_SNAPSHOT_BYTES);
    let run = Run::of(&fixture.backup_command().output().unwrap()).expect_code(10);
    assert!(run.stderr.contains("the server closed the connection"), "{}", run.stderr);
    fixture.unharmed(0);
    fixture.holds_nothing();
    fixture.next_backup_succeeds();
}

#[test]
fn a_link_that_loses_bytes_or_falls_silent() {
    let fixture = Fixture::start(1, 0);
    let child = fixture.backup_in_the_middle(&[0]);
    fixture.proxies[0].lose(1000);
    fixture.proxies[0].throttle(u64::MAX / 2);
    let run = ended(child);
    assert!([10, 23].contains(&run.code), "{} {}", run.code, run.stderr);
    fixture.unharmed(0);
    fixture.holds_nothing();

    fixture.proxies[0].mend();
    fixture.proxies[0].throttle(SLOW_BYTES_PER_S);
    let before = fixture.proxies[0].passed_bytes();
    let child = fixture.backup_command().args(["--timeout", "5"]).spawn().unwrap();
    wait_for(LIMIT, "the snapshot to flow", || {
        let more = fixture.proxies[0].passed_bytes() - before > MID_SNAPSHOT_BYTES;
        if more { Ok(()) } else { Err(NotYet::because("too few bytes")) }
    })
    .unwrap();
    fixture.proxies[0].lose(u64::MAX);
    let run = ended(child).expect_code(10);
    assert!(run.stderr.contains("no answer for 5 s"), "{}", run.stderr);
    fixture.unharmed(0);
    fixture.holds_nothing();
    fixture.next_backup_succeeds();
}

/// What a shard stored completely is taken back when another one fails.
#[test]
fn a_shard_that_was_done_is_taken_back() {
    let fixture = Fixture::start(2, 0);
    let child = fixture.backup_in_the_middle(&[1]);
    let repo = fixture.repo();
    wait_for(LIMIT, "the other shard to be stored", || {
        let whole = files(&repo).iter().any(|(name, _)| name.ends_with("/digest"));
        if whole { Ok(()) } else { Err(NotYet::because("no digest yet")) }
    })
    .unwrap();
    fixture.proxies[1].cut();
    ended(child).expect_code(10);
    fixture.unharmed(0);
    fixture.holds_nothing();
}

/// A disk of 2 MiB, in a mount namespace of its own, fills up while both shards are stored.
#[test]
fn a_store_that_fails_in_the_middle() {
    let fixture = Fixture::start(2, 0);
    let place = fixture.folder.path().join("disk");
    std::fs::create_dir(&place).unwrap();
    let script = "mount -t tmpfs -o size=2m none \"$0\" && cd \"$0\" && \"$@\"; code=$?; \
                  find . -type f -printf 'left %P\\n' >&2; exit $code";
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-c", script]).arg(&place).arg(env!("CARGO_BIN_EXE_slotkeep"));
    shell.args(["backup", "--json", "--repo", "repo", "--jobs-per-host", "9", "--cluster"]);
    let run =
        Run::of(&shell.arg(fixture.cluster.nodes()[0].addr().to_string()).output().unwrap()).expect_code(21);
    assert!(run.stderr.contains("no space left"), "{}", run.stderr);
    let left: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("left ")).collect();
    assert_eq!(left, ["left repo/slotkeep.json"]);
    fixture.unharmed(0);
}

/// Backs up in the given way and proves it against the cluster itself.
fn backed_up_and_proved(access: &[&str], environment: &[(&str, &str)], seed: &str) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(access).arg("--repo").arg(folder.path().join("repo"));
        Run::of(&command.envs(environment.iter().copied()).output().unwrap())
    };
    let manifest = run(&["backup", "--json", "--cluster", seed]).expect_code(0).json();
    run(&["diff", "latest", seed]).expect_code(0);
    run(&["check", "--cluster", seed]).expect_code(0);
    manifest
}

#[test]
fn nodes_that_announce_ports_that_nobody_can_reach() {
    let cluster =
        ClusterBuilder::new(server("valkey-9.1")).primaries(3).replicas_per_primary(1).start().unwrap();
    Mix::bulk(300_000).load(&cluster).unwrap();
    // Each announces a client port where nobody listens; the bus stays where it is.
    let announced = |node: &Node| (node.number() + 1).to_string();
    for node in cluster.nodes() {
        let mut client = node.client().unwrap();
        client.command(&["CONFIG", "SET", "cluster-announce-port", &announced(node)]).unwrap();
    }
    wait_for(LIMIT, "the new ports to be known", || {
        let nodes = cluster.nodes()[0].client()?.command(&["CLUSTER", "NODES"])?.text()?;
        let known = |node: &Node| nodes.contains(&format!("127.0.0.1:{}@", announced(node)));
        if cluster.nodes().iter().all(known) { Ok(()) } else { Err(NotYet::because(nodes)) }
    })
    .unwrap();
    let seed = cluster.nodes()[0].addr().to_string();
    let unmapped = slotkeep(&["diff", &seed, &seed]).expect_code(10);
    assert!(unmapped.stderr.contains("can't connect"), "{}", unmapped.stderr);
    let rules: Vec<String> =
        cluster.nodes().iter().map(|node| format!("127.0.0.1:{}={}", announced(node), node.addr())).collect();
    let manifest = backed_up_and_proved(&["--address-map", &rules.join(",")], &[], &seed);
    assert_eq!(manifest["shards"].as_array().unwrap().len(), 3);
}

#[test]
fn a_node_that_announces_an_address_that_nobody_can_reach() {
    let cluster = ClusterBuilder::new(server("redis-7.0"))
        .primaries(1)
        .config("cluster-announce-ip", "10.255.255.1")
        .start()
        .unwrap();
    let mut client = cluster.nodes()[0].client().unwrap();
    for number in 0..500 {
        client.command(&["SET", &format!("key:{number}"), "value"]).unwrap();
    }
    let seed = cluster.nodes()[0].addr().to_string();
    let manifest = backed_up_and_proved(&["--address-map", "10.255.255.1=127.0.0.1"], &[], &seed);
    assert!(manifest["shards"][0]["source"].as_str().unwrap().starts_with("10.255.255.1:"), "{manifest:#}");
}

#[test]
fn a_cluster_on_ipv6() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(3)
        .ipv6(true)
        .config("cluster-announce-ip", "::1")
        .start()
        .unwrap();
    let mut client = cluster.nodes()[0].client().unwrap();
    wait_for(LIMIT, "the addresses to be known", || {
        let nodes = client.command(&["CLUSTER", "NODES"])?.text()?;
        if nodes.matches("::1:").count() == 3 { Ok(()) } else { Err(NotYet::because(nodes)) }
    })
    .unwrap();
    let seed = format!("[::1]:{}", cluster.nodes()[0].addr().port());
    let manifest = backed_up_and_proved(&[], &[], &seed);
    for shard in manifest["shards"].as_array().unwrap() {
        assert!(shard["source"].as_str().unwrap().starts_with("[::1]:"), "{shard:#}");
    }
}

#[test]
fn tls_with_client_certificates_a_user_and_a_password() {
    let cluster = ClusterBuilder::new(server("redis-7.0"))
        .primaries(2)
        .replicas_per_primary(1)
        .mutual_tls()
        .password("for everybody")
        .acl_user("keeper", "on >own ~* +@all")
        .start()
        .unwrap();
    Mix::bulk(300_000).load(&cluster).unwrap();
    let certificates = cluster.certificates().unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (ca, cert, key) =
        (text(certificates.ca()), text(certificates.client_cert()), text(certificates.client_key()));
    let tls = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let seed = cluster.nodes()[0].addr().to_string();
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "own\nsecond line\n").unwrap();
    let by_file = ["--user", "keeper", "--password-file", password_file.to_str().unwrap()];
    backed_up_and_proved(&[&tls[..], &by_file].concat(), &[], &seed);
    backed_up_and_proved(&tls, &[("SLOTKEEP_PASSWORD", "for everybody")], &seed);
    let settings = folder.path().join("slotkeep.toml");
    let toml = format!(
        "user = \"keeper\"\npassword_file = {password_file:?}\ntls = true\ntls_ca = {ca:?}\ntls_cert = {cert:?}\n\
         tls_key = {key:?}\n"
    );
    std::fs::write(&settings, toml).unwrap();
    backed_up_and_proved(&["-c", settings.to_str().unwrap()], &[], &seed);
}

#[test]
fn a_standalone_server_is_taken_from_its_replica() {
    let pair = ClusterBuilder::new(server("redis-7.0"))
        .primaries(1)
        .replicas_per_primary(1)
        .cluster_mode(false)
        .start()
        .unwrap();
    let mut client = pair.nodes()[0].client().unwrap();
    for number in 0..1000 {
        client.command(&["SET", &format!("key:{number}"), "value"]).unwrap();
    }
    for node in pair.nodes() {
        let manifest = backed_up_and_proved(&[], &[], &node.addr().to_string());
        assert_eq!(manifest["cluster_mode"], false);
        // All that was acknowledged before, although the replica may not have had it yet.
        assert_eq!(manifest["digest"]["keys"], 1000);
        assert_eq!(manifest["shards"][0]["source"], pair.nodes()[1].addr().to_string());
    }
}
