//! Whether a cluster and a repository are ready for a backup: facts are gathered, then judged.
//!
//! Nothing is changed on the servers, and nothing stays in the repository. `PSYNC` is not tried: it makes a server fork.

mod cluster;
mod facts;
mod finding;
mod node;
mod permissions;
mod repository;

use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use slotkeep_model::{Node, NodeAddr, Shard};
use slotkeep_repo::{Location, OpenOptions};

pub use finding::{Finding, Severity, Subject};

use crate::discover::{Discovery, discover};
use crate::{Context, Error, ErrorKind, Result};
use cluster::LeftOut;
use facts::NodeFacts;
use finding::Findings;

/// How many nodes are asked at a time. Each costs a connection and some waiting.
const NODES_IN_FLIGHT: usize = 64;
/// What a backup takes of the memory that its data takes, at the most, in per cent.
const BACKUP_PERCENT: u64 = 80;

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// How long the writes of each node are watched.
    pub watch: Duration,
    /// The repository, and the cluster's name in it, if it is to be checked too.
    pub repository: Option<(Location, String)>,
    /// How the repository is to be opened.
    pub open: OpenOptions,
}

/// What a check came to.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Whether nothing stands in the way of a backup.
    pub ready: bool,
    /// How many findings are fine.
    pub fine: usize,
    /// Every finding, the worst first; the cluster's before its nodes', the repository's last.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    fn of(mut findings: Vec<Finding>) -> Self {
        // Stable: among equals, the order in which they were looked at.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Self {
            ready: findings.iter().all(|finding| finding.severity < Severity::Problem),
            fine: findings.iter().filter(|finding| finding.severity == Severity::Ok).count(),
            findings,
        }
    }
}

/// Checks the cluster behind one of those addresses, and the repository. Fails only if no cluster is found there; a node that
/// does not answer is a finding.
pub async fn check(context: &Context, seeds: &[NodeAddr], options: &CheckOptions) -> Result<CheckReport> {
    context.unless_stopped(look(context, seeds, options)).await
}

async fn look(context: &Context, seeds: &[NodeAddr], options: &CheckOptions) -> Result<CheckReport> {
    let found = match discover(context, seeds).await {
        // The user may not even look around: that is what was asked.
        Err(error) if error.kind() == ErrorKind::Permission => Err(error),
        found => Ok(found?),
    };
    let (mut findings, needed_bytes) = match &found {
        Ok(discovery) => look_at_cluster(context, discovery, options.watch).await,
        Err(error) => (blind(context, error), 0),
    };
    if let Some((location, cluster)) = &options.repository {
        let facts =
            repository::gather(context, location, cluster, &options.open, found.as_ref().ok()).await?;
        findings.extend(repository::judge(facts, needed_bytes));
    }
    Ok(CheckReport::of(findings))
}

/// The findings about cluster and nodes, and how many bytes a backup is expected to take at the most.
async fn look_at_cluster(context: &Context, discovery: &Discovery, watch: Duration) -> (Vec<Finding>, u64) {
    let topology = discovery.topology();
    let cluster_mode = topology.cluster_mode;
    let members: Vec<Node> = topology.shards.iter().flat_map(Shard::nodes).cloned().collect();
    let asked = futures::stream::iter(members)
        .map(|node| async move { facts::gather(context, &node, cluster_mode, watch).await });
    let nodes: Vec<NodeFacts> = asked.buffered(NODES_IN_FLIGHT).collect().await;
    let left_out = discovery.view().map_or_else(LeftOut::default, |view| LeftOut {
        primaries_without_slots: view.primaries_without_slots.len(),
        unattached_replicas: view.unattached_replicas.len(),
    });
    let mut findings = cluster::judge(topology, left_out, &nodes);
    findings.extend(nodes.iter().flat_map(node::judge));
    (findings, needed_bytes(topology.shards.iter(), &nodes))
}

/// For each shard, what its largest node holds.
fn needed_bytes<'a>(shards: impl Iterator<Item = &'a Shard>, nodes: &[NodeFacts]) -> u64 {
    let used = |addr: &NodeAddr| {
        let facts = nodes.iter().find(|facts| facts.addr == *addr)?;
        Some(facts.answers.as_ref().ok()?.memory.used_bytes)
    };
    let largest = shards.filter_map(|shard| shard.nodes().filter_map(|node| used(&node.addr)).max());
    largest.fold(0, |sum: u64, bytes| sum.saturating_add(bytes / 100 * BACKUP_PERCENT))
}

fn blind(context: &Context, error: &Error) -> Vec<Finding> {
    let user = context.connector.credentials().and_then(|credentials| credentials.user.as_deref());
    let line = permissions::acl_line(user.unwrap_or("default"));
    let mut out = Findings::about(Subject::Cluster);
    out.problem("permissions", error.to_string(), format!("as an administrator, on every node: {line}"));
    out.into_vec()
}
