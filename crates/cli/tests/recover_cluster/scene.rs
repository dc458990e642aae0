//! A cluster with an archive and writers, and what is done to it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::ledger::{Account, Bounds, Ledger, LedgerOptions};
use slotkeep_testkit::{Cluster, ClusterBuilder, ClusterClient, Node, Server, servers};

use crate::common::agent::Agent;
use crate::harness::{Bench, Run, client, endpoint, free_addrs};

const LIMIT: Duration = Duration::from_secs(90);
/// What is acknowledged so shortly before a kill may not have reached anybody else.
pub(crate) const IN_FLIGHT_MS: i64 = 300;
/// By how much the writers' clock and the servers' may be rounded apart: both are this machine's.
pub(crate) const ROUNDING_MS: i64 = 2;

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) bench: Bench,
    pub(crate) server: Server,
    pub(crate) agent: Option<Agent>,
    pub(crate) ledger: Option<Ledger>,
}

impl Scene {
    /// Three shards with a replica each that no server promotes by itself, under writers; with an archive if that is wanted.
    pub(crate) fn start(name: &str, archive: bool, more: &[(&str, &str)]) -> Self {
        let server = servers::require(name).unwrap();
        let mut builder = ClusterBuilder::new(server.clone())
            .replicas_per_primary(1)
            .config("cluster-replica-no-failover", "yes")
            .config("repl-backlog-size", "32mb")
            // As servers have it by themselves.
            .config("cluster-allow-replica-migration", "yes");
        for (name, value) in more {
            builder = builder.config(name, value);
        }
        let cluster = builder.start().unwrap();
        let bench = Bench::new();
        let agent = archive.then(|| {
            let agent = Agent::start(&cluster, bench.repo().parent().unwrap(), &[]);
            agent.wait_ready();
            agent
        });
        let ledger = Ledger::start(&cluster, LedgerOptions { seed: 7, lists: 40, accounts: 8 }).unwrap();
        ledger.wait_for_more(200).unwrap();
        Self { cluster, bench, server, agent, ledger: Some(ledger) }
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().unwrap()
    }

    /// The primary that a shard had in the beginning.
    pub(crate) fn first(&self, shard: usize) -> &Node {
        self.cluster.node(shard).unwrap()
    }

    /// The replica that a shard had in the beginning.
    pub(crate) fn second(&self, shard: usize) -> &Node {
        self.cluster.node(self.cluster.shards() + shard).unwrap()
    }

    /// Waits until the agent has lost so many shards, and all that it has received of them is in the repository.
    pub(crate) fn wait_sealed(&self, shards: usize) {
        self.agent.as_ref().unwrap().wait_status("everything to be sealed", |status| {
            let lost = status["shards"].as_array().unwrap().iter().filter(|shard| shard["source"].is_null());
            let sealed = lost.filter(|shard| shard["unsealed_bytes"] == 0 && shard["phase"] == "connecting");
            sealed.count() == shards
        });
    }

    /// Waits until the agent has received all that the primary of a shard has produced by now.
    pub(crate) fn wait_held(&self, shard: usize) {
        let mut client = self.first(shard).client().unwrap();
        let offset = client.info_field("replication", "master_repl_offset").unwrap().unwrap();
        let offset: u64 = offset.parse().unwrap();
        self.agent.as_ref().unwrap().wait_status("everything to be received", |status| {
            status["shards"][shard]["received"].as_u64().is_some_and(|received| received >= offset)
        });
    }

    /// Runs `slotkeep recover` with the addresses of the first nodes and these arguments.
    pub(crate) fn recover(&self, arguments: &[&str]) -> Run {
        let seeds: Vec<String> = self.cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
        self.recover_from(&seeds.join(","), arguments)
    }

    /// The same, and it must leave nothing to do.
    pub(crate) fn recover_whole(&self, arguments: &[&str]) -> Value {
        let run = self.recover(arguments);
        assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
        let outcome = run.json();
        let plan = outcome.get("after").unwrap_or(&outcome);
        assert_eq!(plan["verdict"], "whole", "{outcome}");
        outcome
    }

    pub(crate) fn recover_from(&self, seeds: &str, arguments: &[&str]) -> Run {
        let fixed = ["recover", "--timeout", "5", "--cluster", seeds];
        self.bench.slotkeep(&[&fixed[..], arguments].concat())
    }

    /// Arguments for so many new nodes, which they are started at.
    pub(crate) fn spares(&self, count: usize, folder: &str) -> (Vec<SocketAddr>, Vec<String>) {
        let nodes = free_addrs(count);
        let listed = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let folder = self.bench.path(folder).to_str().unwrap().to_owned();
        let program = self.server.program().to_str().unwrap().to_owned();
        let words = ["--spare", &listed, "--to-dir", &folder, "--server", &program];
        (nodes, words.map(str::to_owned).to_vec())
    }

    /// Ends the writers, and holds the cluster against what they say. Gives the account.
    pub(crate) fn check(&mut self, client: ClusterClient) -> Account {
        let account = self.ledger.take().unwrap().stop_at(client).unwrap();
        assert!(account.acknowledged() > 200);
        account
    }

    /// A client of the cluster by these nodes.
    pub(crate) fn client(&self, more: &[SocketAddr]) -> ClusterClient {
        let nodes = self.cluster.nodes().iter().map(Node::addr).chain(more.iter().copied());
        ClusterClient::connect(nodes.map(|node| endpoint(node, None, None)).collect()).unwrap()
    }

    /// Starts an old node again and writes to it without rest until it is a replica of `primary`, or of another old node that is (servers
    /// before Redis 7.2 leave such a chain as it is): it must take no write.
    pub(crate) fn return_harmlessly(&self, node: &Node, primary: SocketAddr) {
        let old = self.cluster.members(node.shard()).map(Node::port).filter(|port| *port != node.port());
        let ports: Vec<String> =
            old.chain([primary.port()]).map(|port| format!("master_port:{port}\r\n")).collect();
        node.start().unwrap();
        let key = self.tag_of(node.shard(), "late");
        wait_for(LIMIT, "the old node to become a replica", || {
            let mut client = node.client()?;
            let reply = client.pipeline(&[vec!["SET", &key, "late"]])?.remove(0);
            assert!(
                !matches!(reply, slotkeep_testkit::Value::Simple(_)),
                "the old node took a write: {reply:?}"
            );
            let info = client.info("replication")?;
            let follows = info.contains("role:slave")
                && ports.iter().any(|port| info.contains(port))
                && info.contains("master_link_status:up");
            if follows { Ok(()) } else { Err(NotYet::because(info)) }
        })
        .unwrap();
    }

    /// A hash tag that begins so, whose slot is one of the shard's.
    pub(crate) fn tag_of(&self, shard: usize, beginning: &str) -> String {
        let (count, shards) = (usize::from(slotkeep_model::Slot::COUNT), self.cluster.shards());
        let own = shard * count / shards..(shard + 1) * count / shards;
        let tags = (0..1000_u32).map(|number| format!("{beginning}{number}"));
        tags.into_iter().find(|tag| own.contains(&slotkeep_model::key_slot(tag.as_bytes()).index())).unwrap()
    }
}

/// What a dataset that lacks nothing but what the cluster lost must hold.
pub(crate) const ALL: Bounds =
    Bounds { nothing_after_ms: i64::MAX, nothing_missing_before_ms: i64::MAX, consistent: false };

/// The plan's shard with the most slots in that of the first cluster.
pub(crate) fn shard(plan: &Value, number: usize) -> &Value {
    &plan["shards"].as_array().unwrap()[number]
}

pub(crate) fn role(node: SocketAddr) -> String {
    client(node, None, None).info_field("replication", "role").unwrap().unwrap()
}

pub(crate) fn now_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since.as_millis()).unwrap()
}
