//! Which node each shard is taken from.

use std::time::Duration;

use futures::StreamExt;
use slotkeep_model::{Node, NodeAddr, Role, ServerVersion, Shard, SlotSet};
use slotkeep_wire::info::Replication;

use crate::discover::{Discovery, NodeReport, discover, node_report, nodes_moving_slots};
use crate::{Context, Error, ErrorKind, Result};

/// How many nodes are asked at a time.
const QUESTIONS_IN_FLIGHT: usize = 16;
/// How far a replica may be behind its primary to be taken for in sync, in bytes: about a second of a busy stream.
const IN_SYNC_BYTES: u64 = 64 << 20;

/// Which role to take a base from, where there is a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// A replica in sync, else the primary: the fork and its memory burden the node that takes no writes.
    #[default]
    Replica,
    /// The primary, else a replica in sync.
    Primary,
}

/// What is going to be captured.
#[derive(Debug)]
pub struct BackupPlan {
    /// The cluster as it was found.
    pub discovery: Discovery,
    /// The shards that can be captured, in the order of their slots.
    pub shards: Vec<ShardPlan>,
    /// Slots that no shard of the plan covers; the plan is refused with any, unless a partial backup was asked for.
    pub missing_slots: SlotSet,
}

/// One shard's part of the plan.
#[derive(Clone, Debug)]
pub struct ShardPlan {
    /// The shard.
    pub shard: Shard,
    /// The nodes to capture it from, the best first, at least one.
    pub candidates: Vec<Candidate>,
    /// The primary's offset when it was asked. A replica is captured only once it has come so far, so that a backup holds
    /// every write that was acknowledged before it began. Unknown if the primary did not answer.
    pub written_to: Option<u64>,
    /// Nodes that were passed over, and why.
    pub passed_over: Vec<(NodeAddr, String)>,
}

/// A node that a shard can be captured from.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where it is.
    pub addr: NodeAddr,
    /// What it is.
    pub role: Role,
    /// What it runs.
    pub server: ServerVersion,
    /// How many keys it holds.
    pub keys: u64,
    /// Its replication offset.
    pub offset: u64,
    /// Where it stands in its replication history.
    pub replication: Replication,
}

/// Looks at every node and chooses.
pub async fn plan(
    context: &Context,
    discovery: Discovery,
    prefer: Prefer,
    allow_partial: bool,
) -> Result<BackupPlan> {
    context.unless_stopped(look_and_choose(context, discovery, prefer, allow_partial)).await
}

async fn look_and_choose(
    context: &Context,
    discovery: Discovery,
    prefer: Prefer,
    allow_partial: bool,
) -> Result<BackupPlan> {
    let shards = discovery.topology().shards.clone();
    if discovery.slots_are_moving() || !nodes_moving_slots(context, discovery.topology()).await.is_empty() {
        return Err(Error::new(
            ErrorKind::NotACluster,
            "slots are being moved between shards: a key that moves meanwhile could be missed or taken twice",
        )
        .hint("wait for the move to end (CLUSTER SETSLOT … STABLE, or `redis-cli --cluster fix`), then run it again"));
    }
    let uncovered = discovery.topology().covered().complement();
    if !uncovered.is_empty() && !allow_partial {
        return Err(Error::new(
            ErrorKind::NotACluster,
            format!("no shard serves the slots {uncovered} ({} of 16384)", uncovered.len()),
        )
        .hint("mend the cluster first, or take what there is with --allow-partial"));
    }
    let plans = futures::stream::iter(shards)
        .map(|shard| plan_shard(context, shard, prefer, context.connector.timeout()));
    let plans: Vec<ShardPlan> = plans.buffered(QUESTIONS_IN_FLIGHT).collect().await;
    let (ready, stuck): (Vec<_>, Vec<_>) = plans.into_iter().partition(|plan| !plan.candidates.is_empty());
    if let Some(plan) = stuck.first().filter(|_| !allow_partial || ready.is_empty()) {
        let reasons: Vec<String> =
            plan.passed_over.iter().map(|(addr, reason)| format!("{addr}: {reason}")).collect();
        return Err(Error::new(
            ErrorKind::Unreachable,
            format!(
                "no node of the shard with slots {} can be captured: {}",
                plan.shard.slots,
                reasons.join("; ")
            ),
        )
        .hint("bring a node of the shard back, or take the other shards with --allow-partial"));
    }
    let covered: SlotSet = ready.iter().flat_map(|plan| plan.shard.slots.ranges().iter().copied()).collect();
    Ok(BackupPlan { discovery, shards: ready, missing_slots: covered.complement() })
}

/// Looks at every node of a shard and puts those that can be captured or followed in order. Nodes that do not answer within
/// `limit` are passed over.
pub(crate) async fn plan_shard(
    context: &Context,
    shard: Shard,
    prefer: Prefer,
    limit: Duration,
) -> ShardPlan {
    let asked = futures::future::join_all(shard.nodes().map(|node| ask(context, node, limit))).await;
    let primary_offset = asked
        .iter()
        .filter_map(|(_, report)| report.as_ref().ok())
        .filter(|report| report.role == Role::Primary)
        .map(|report| report.offset)
        .max();
    let mut candidates = Vec::new();
    let mut passed_over = Vec::new();
    for (addr, report) in asked {
        match report.and_then(|report| fit(&report, primary_offset).map(|()| report)) {
            Ok(report) => candidates.push(Candidate {
                addr,
                role: report.role,
                server: report.server,
                keys: report.keys,
                offset: report.offset,
                replication: report.replication,
            }),
            Err(reason) => passed_over.push((addr, reason)),
        }
    }
    let preferred = match prefer {
        Prefer::Replica => Role::Replica,
        Prefer::Primary => Role::Primary,
    };
    candidates.sort_by_key(|candidate| (candidate.role != preferred, std::cmp::Reverse(candidate.offset)));
    ShardPlan { shard, candidates, written_to: primary_offset, passed_over }
}

async fn ask(
    context: &Context,
    node: &Node,
    limit: Duration,
) -> (NodeAddr, std::result::Result<NodeReport, String>) {
    if !node.online {
        return (node.addr.clone(), Err("the cluster takes it for dead".to_owned()));
    }
    let report = match context.within(limit, node_report(context, &node.addr)).await {
        Some(report) => report.map_err(|error| error.to_string()),
        None => Err(format!("it does not answer within {} s", limit.as_secs())),
    };
    (node.addr.clone(), report)
}

/// Whether a node can be captured; the reason if not.
fn fit(report: &NodeReport, primary_offset: Option<u64>) -> std::result::Result<(), String> {
    if report.loading {
        return Err("it is loading its dataset".to_owned());
    }
    if report.role == Role::Replica {
        if !report.link_up {
            return Err("its link to the primary is down".to_owned());
        }
        let behind = primary_offset.map_or(0, |primary| primary.saturating_sub(report.offset));
        if behind > IN_SYNC_BYTES {
            return Err(format!("it is {behind} bytes behind its primary"));
        }
    }
    Ok(())
}

/// The cluster as it is now. Fails if slots have changed hands since the plan was made: a key that moved could have been missed
/// or taken twice.
pub(crate) async fn look_again(context: &Context, plan: &BackupPlan) -> Result<Discovery> {
    let nodes = plan.shards.iter().flat_map(|shard| &shard.candidates);
    let seeds: Vec<NodeAddr> = std::iter::once(plan.discovery.answered.clone())
        .chain(nodes.map(|candidate| candidate.addr.clone()))
        .collect();
    let now =
        discover(context, &seeds).await.map_err(|error| error.context("looking at the cluster once more"))?;
    let owners = |discovery: &Discovery| {
        let shards = &discovery.topology().shards;
        let mut slots: Vec<String> = shards.iter().map(|shard| shard.slots.to_string()).collect();
        slots.sort();
        slots
    };
    let moved = owners(&now) != owners(&plan.discovery);
    if moved || now.slots_are_moving() || !nodes_moving_slots(context, now.topology()).await.is_empty() {
        return Err(Error::new(
            ErrorKind::NotACluster,
            "slots moved between shards during the backup: a key could have been missed or taken twice",
        )
        .hint("no backup was made; run it again when no slots are being moved"));
    }
    Ok(now)
}
