//! The cluster that a backup was taken from, looked at before another one opens in its place.
//!
//! Invariants: a node that answers counts as one of the old cluster unless it is shown to belong to another; a node of it that can't be
//! asked whether it takes writes counts as one that does; nothing is changed on any node.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::{Manifest, TopologyRecord};
use slotkeep_model::{NodeAddr, NodeId, Role, SlotSet};

use super::node::{Asked, Writes};
use super::{Member, NODES_IN_FLIGHT, NodeState};
use crate::discover::read_view;
use crate::{Context, Error, ErrorKind, Result};

/// How long a node may take to answer: one that was destroyed with its machine never does.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What is known of the nodes of a cluster from what was kept of it.
#[derive(Clone, Debug, Default)]
pub struct OldNodes {
    ids: BTreeSet<NodeId>,
    addrs: BTreeSet<NodeAddr>,
    cluster_mode: bool,
}

/// How they are now.
#[derive(Clone, Debug, Default)]
pub struct OldCluster {
    /// Nodes that take writes, or would if they were promoted, or answer without telling.
    pub open: Vec<NodeState>,
    /// Nodes that refuse writes.
    pub fenced: Vec<NodeAddr>,
    /// Nodes that don't answer.
    pub silent: Vec<NodeAddr>,
    /// Addresses at which a node of another cluster answers, or something else.
    pub others: Vec<NodeAddr>,
}

impl OldNodes {
    /// The nodes that the backup knows of, and those of how the cluster was seen last.
    pub fn of(manifest: &Manifest, newest: Option<&TopologyRecord>) -> Self {
        let mut old = Self { cluster_mode: manifest.cluster_mode, ..Self::default() };
        let of_backup =
            manifest.shards.iter().flat_map(|shard| std::iter::once(&shard.primary).chain(&shard.replicas));
        let seen = newest.iter().flat_map(|topology| &topology.shards);
        let of_topology = seen.flat_map(|shard| std::iter::once(&shard.primary).chain(&shard.replicas));
        for node in of_backup.chain(of_topology) {
            old.addrs.insert(node.addr.clone());
            old.ids.extend(node.id.clone());
        }
        old
    }

    /// Asks every node, and those that they name, how it is.
    pub async fn look(&self, context: &Context) -> Result<OldCluster> {
        context.unless_stopped(self.ask_all(context)).await
    }

    async fn ask_all(&self, context: &Context) -> Result<OldCluster> {
        let mut found = OldCluster::default();
        let mut asked = BTreeSet::new();
        let mut waiting = self.addrs.clone();
        while !waiting.is_empty() {
            asked.extend(waiting.iter().cloned());
            let answers = futures::stream::iter(std::mem::take(&mut waiting))
                .map(async |addr| (self.ask(context, &addr).await, addr));
            let answers: Vec<(Answer, NodeAddr)> = answers.buffered(NODES_IN_FLIGHT).collect().await;
            for (answer, addr) in answers {
                match answer {
                    Answer::Silent => found.silent.push(addr),
                    Answer::Other => found.others.push(addr),
                    Answer::Node { state, knows } => {
                        waiting.extend(knows.into_iter().filter(|addr| !asked.contains(addr)));
                        if state.writes.are_possible() {
                            found.open.push(state);
                        } else {
                            found.fenced.push(addr);
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    async fn ask(&self, context: &Context, addr: &NodeAddr) -> Answer {
        match context.within(ANSWER_LIMIT, self.look_at(context, addr)).await {
            None => Answer::Silent,
            Some(Ok(answer)) => answer,
            Some(Err(error)) => match error.kind() {
                ErrorKind::Unreachable => Answer::Silent,
                ErrorKind::NotACluster => Answer::Other,
                _ => Answer::Node { state: unknown(addr, &error), knows: BTreeSet::new() },
            },
        }
    }

    async fn look_at(&self, context: &Context, addr: &NodeAddr) -> Result<Answer> {
        let mut knows = BTreeSet::new();
        let mut connection = context.connector.connect(addr).await?;
        if self.cluster_mode {
            match read_view(context, &mut connection).await {
                Ok(view) => {
                    if !view.rows.iter().any(|row| self.ids.contains(&row.id)) {
                        return Ok(Answer::Other);
                    }
                    knows.extend(view.rows.iter().map(|row| row.addr(addr, context.connector.is_tls())));
                }
                // A server without cluster mode is none of its nodes.
                Err(error) if error.to_string().contains("cluster support disabled") => {
                    return Ok(Answer::Other);
                }
                Err(error) => return Err(error),
            }
        }
        let member = Member { addr: addr.clone(), id: None, slots: SlotSet::default() };
        let asked = Asked::ask(context, &member).await?;
        let role = if asked.role == Role::Primary { "primary" } else { "replica" };
        let state = NodeState {
            addr: addr.clone(),
            role: Some(role),
            slots: SlotSet::default(),
            writes: asked.writes(),
            changed: false,
            remark: None,
        };
        Ok(Answer::Node { state, knows })
    }
}

enum Answer {
    Silent,
    Other,
    Node { state: NodeState, knows: BTreeSet<NodeAddr> },
}

fn unknown(addr: &NodeAddr, error: &Error) -> NodeState {
    NodeState {
        addr: addr.clone(),
        role: None,
        slots: SlotSet::default(),
        writes: Writes::Unknown,
        changed: false,
        remark: Some(error.to_string()),
    }
}

impl OldCluster {
    /// Refuses to open another cluster in its place while any node may take writes.
    pub fn check_closed(&self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let nodes: Vec<String> = self.open.iter().map(in_words).collect();
        let seed = self.open.first().map(|node| node.addr.to_string()).unwrap_or_default();
        Err(Error::new(
            ErrorKind::NotFenced,
            format!(
                "the cluster that this was taken from still takes writes: {}; once another one is open, they would be lost, or answered \
                 differently by the two",
                nodes.join(", ")
            ),
        )
        .hint(format!(
            "fence it first: `slotkeep fence --cluster {seed} --repo …`; to try a restore out beside it, add --beside-old"
        )))
    }

    /// Refuses addresses of new nodes that are known to an old cluster of which any node runs: it would go on talking to them.
    pub fn check_addresses<'n>(&self, new: impl Iterator<Item = &'n NodeAddr>) -> Result<()> {
        let mut running = self.open.iter().map(|node| &node.addr).chain(&self.fenced);
        let Some(alive) = running.next() else { return Ok(()) };
        let open = self.open.iter().map(|node| &node.addr);
        let known: BTreeSet<&NodeAddr> = open.chain(&self.fenced).chain(&self.silent).collect();
        for addr in new {
            if known.contains(addr) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{addr} is the address of a node of the old cluster, which still runs ({alive} answers) and would talk to the new node"),
                )
                .hint("use other addresses, or end the old cluster first: `slotkeep fence --shutdown --yes`"));
            }
        }
        Ok(())
    }
}

fn in_words(node: &NodeState) -> String {
    match (node.writes, node.role) {
        (Writes::Unknown, _) => {
            let why = node.remark.as_deref().unwrap_or_default();
            format!("{} (it answers and can't be asked: {why})", node.addr)
        }
        (Writes::IfPromoted, _) => format!("{} (replica, if it is promoted)", node.addr),
        (_, role) => format!("{} ({})", node.addr, role.unwrap_or("?")),
    }
}
