//! The checks of the cluster as a whole: what no node tells alone.

use std::collections::BTreeSet;

use slotkeep_model::{NodeAddr, Role, Shard, Topology};

use super::facts::{Answers, NodeFacts};
use super::finding::{Finding, Findings, Subject, size};
use super::node::CLOCK_TOLERANCE_MS;

/// How far a replica may be behind to be as good as its primary, in bytes.
const IN_SYNC_BYTES: u64 = 64 << 20;

/// So many shards are named in one finding.
const NAMED_SHARDS: usize = 3;

/// Every finding about the cluster.
pub(super) fn judge(topology: &Topology, left_out: LeftOut, nodes: &[NodeFacts]) -> Vec<Finding> {
    let mut out = Findings::about(Subject::Cluster);
    let shards: Vec<ShardFacts<'_>> =
        topology.shards.iter().map(|shard| ShardFacts::of(shard, nodes)).collect();
    coverage(topology, &mut out);
    state(nodes, &mut out);
    moving(nodes, &mut out);
    for shard in &shards {
        capturable(shard, &mut out);
        lag(shard, &mut out);
    }
    replicas(topology, &mut out);
    hosts(topology, &mut out);
    outsiders(left_out, &mut out);
    versions(nodes, &mut out);
    clocks(nodes, &mut out);
    out.into_vec()
}

/// Nodes of the cluster that belong to no shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeftOut {
    pub(super) primaries_without_slots: usize,
    pub(super) unattached_replicas: usize,
}

struct ShardFacts<'a> {
    shard: &'a Shard,
    nodes: Vec<&'a NodeFacts>,
}

impl<'a> ShardFacts<'a> {
    fn of(shard: &'a Shard, nodes: &'a [NodeFacts]) -> Self {
        let members: BTreeSet<&NodeAddr> = shard.nodes().map(|node| &node.addr).collect();
        Self { shard, nodes: nodes.iter().filter(|node| members.contains(&node.addr)).collect() }
    }

    fn answers(&self) -> impl Iterator<Item = (&'a NodeFacts, &'a Answers)> {
        answering(self.nodes.iter().copied())
    }
}

fn answering<'a>(
    nodes: impl Iterator<Item = &'a NodeFacts>,
) -> impl Iterator<Item = (&'a NodeFacts, &'a Answers)> {
    nodes.filter_map(|node| Some((node, node.answers.as_ref().ok()?)))
}

fn coverage(topology: &Topology, out: &mut Findings) {
    let missing = topology.covered().complement();
    if missing.is_empty() {
        out.ok("slots", "every slot is served");
    } else {
        out.problem(
            "slots",
            format!("no shard serves the slots {missing} ({} of 16384)", missing.len()),
            "mend the cluster (CLUSTER ADDSLOTSRANGE, `redis-cli --cluster fix`), or take what there is with --allow-partial",
        );
    }
}

fn state(nodes: &[NodeFacts], out: &mut Findings) {
    let judged =
        answering(nodes.iter()).filter_map(|(node, answers)| Some((node, answers.cluster.as_ref()?)));
    let (good, bad): (Vec<_>, Vec<_>) = judged.partition(|(_, cluster)| cluster.ok);
    if !bad.is_empty() {
        let names: Vec<String> = bad.iter().map(|(node, _)| node.addr.to_string()).collect();
        out.warning(
            "state",
            format!("cluster_state is not ok for {}", names.join(", ")),
            "find the nodes that are down or slots without an owner: CLUSTER INFO, CLUSTER NODES",
        );
    } else if !good.is_empty() {
        out.ok("state", "every node that answers calls the cluster ok");
    }
}

fn moving(nodes: &[NodeFacts], out: &mut Findings) {
    let moving: Vec<String> = answering(nodes.iter())
        .filter(|(_, answers)| answers.slots_moving > 0)
        .map(|(node, answers)| format!("{} ({})", node.addr, answers.slots_moving))
        .collect();
    if moving.is_empty() {
        out.ok("moving slots", "no slots are being moved");
    } else {
        out.problem(
            "moving slots",
            format!("slots are being moved: {}", moving.join(", ")),
            "wait for the move to end, or end it: CLUSTER SETSLOT <slot> STABLE, `redis-cli --cluster fix`",
        );
    }
}

/// Whether any node of the shard can be captured, by the rule that `backup` goes by.
fn capturable(shard: &ShardFacts<'_>, out: &mut Findings) {
    let fit = |answers: &Answers| {
        let link = answers.replication.link.as_ref();
        let in_step = answers.replication.role == Role::Primary
            || link.is_some_and(|link| link.up && !link.sync_in_progress);
        !answers.persistence.loading && in_step
    };
    let slots = &shard.shard.slots;
    if shard.answers().any(|(node, answers)| node.online && fit(answers)) {
        out.ok("shards", format!("the shard with slots {slots} can be captured"));
    } else {
        out.problem(
            "shards",
            format!("no node of the shard with slots {slots} can be captured"),
            "bring a node of the shard back, or take the other shards with --allow-partial",
        );
    }
}

fn replicas(topology: &Topology, out: &mut Findings) {
    let alone: Vec<&Shard> = topology.shards.iter().filter(|shard| shard.replicas.is_empty()).collect();
    if !alone.is_empty() {
        out.note(
            "replicas",
            format!("without a replica: {}", named(&alone)),
            "a primary without one forks for a backup itself: run it off-peak, or add a replica",
        );
    }
}

fn hosts(topology: &Topology, out: &mut Findings) {
    let together = |shard: &&Shard| {
        let hosts: Vec<&str> = shard.nodes().map(|node| node.addr.host()).collect();
        hosts.iter().collect::<BTreeSet<_>>().len() < hosts.len()
    };
    let crowded: Vec<&Shard> = topology.shards.iter().filter(together).collect();
    if !crowded.is_empty() {
        out.note(
            "hosts",
            format!("with more than one node on the same host: {}", named(&crowded)),
            "the host's end would take a primary and its replica together: spread them over machines",
        );
    }
}

/// How many shards, and which, but for a long list.
fn named(shards: &[&Shard]) -> String {
    let slots: Vec<String> = shards.iter().take(NAMED_SHARDS).map(|shard| shard.slots.to_string()).collect();
    let more = if shards.len() > NAMED_SHARDS { ", …" } else { "" };
    format!("{} (slots {}{more})", count(shards.len(), "shard"), slots.join("; "))
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn lag(shard: &ShardFacts<'_>, out: &mut Findings) {
    let primary = shard.answers().find(|(_, answers)| answers.replication.role == Role::Primary);
    let Some((_, primary)) = primary else { return };
    for (node, answers) in shard.answers().filter(|(_, answers)| answers.replication.role == Role::Replica) {
        let behind = primary.replication.offset.0.saturating_sub(answers.replication.offset.0);
        if behind > IN_SYNC_BYTES && answers.replication.link.as_ref().is_some_and(|link| link.up) {
            out.warning(
                "lag",
                format!("replica {} is {} behind its primary", node.addr, size(behind)),
                "a backup passes it over and takes another node; find out why it lags",
            );
        }
    }
}

fn outsiders(left_out: LeftOut, out: &mut Findings) {
    let LeftOut { primaries_without_slots: primaries, unattached_replicas: replicas } = left_out;
    if primaries > 0 || replicas > 0 {
        out.note(
            "outsiders",
            format!("{primaries} primaries serve no slots, {replicas} replicas follow none that does"),
            "they hold nothing to back up; remove them (CLUSTER FORGET) or give them slots",
        );
    }
}

fn versions(nodes: &[NodeFacts], out: &mut Findings) {
    let versions: BTreeSet<_> = answering(nodes.iter()).map(|(_, answers)| answers.server).collect();
    if versions.len() > 1 {
        let names: Vec<String> = versions.iter().map(ToString::to_string).collect();
        out.note(
            "versions",
            format!("the nodes run different versions: {}", names.join(", ")),
            "restore to servers of the newest of them: older ones may not load its snapshots",
        );
    } else if !versions.is_empty() {
        out.ok("versions", "all nodes run the same version");
    }
}

fn clocks(nodes: &[NodeFacts], out: &mut Findings) {
    let ahead: Vec<i64> = answering(nodes.iter()).filter_map(|(_, answers)| answers.clock_ahead_ms).collect();
    let Some((first, last)) = ahead.iter().min().zip(ahead.iter().max()) else { return };
    let apart = last.saturating_sub(*first);
    if apart > CLOCK_TOLERANCE_MS {
        out.warning(
            "clocks",
            format!("the nodes' clocks are up to {apart} ms apart"),
            "one moment is not the same on all shards: synchronise the clocks (NTP)",
        );
    } else {
        out.ok("clocks", format!("the nodes' clocks are at most {apart} ms apart"));
    }
}

#[cfg(test)]
mod tests;
