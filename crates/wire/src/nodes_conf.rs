//! `nodes.conf`, the file a cluster node keeps its view of the cluster in.
//!
//! Written in the plain form, without the extra fields of newer versions, which every version from Redis 6.2 and Valkey
//! 7.2 on loads. Source: `clusterLoadConfig` and `clusterSaveConfig` in `src/cluster_legacy.c` (`src/cluster.c` before Redis 7.4).
//!
//! What is written is checked first, for a server that starts with a wrong file deletes the keys of slots that the
//! file gives to others (Redis 8.4+, Valkey 8.0+), and with one it cannot read it does not start.

use core::fmt::Write as _;
use std::collections::BTreeSet;

use slotkeep_model::{NodeId, Role, SlotSet};
use thiserror::Error;

use crate::topology::{TopologyError, check_owners, find_myself, parse_rows};

/// What servers reserve for an address (`NET_IP_STR_LEN`, less its final zero).
const HOST_LIMIT_BYTES: usize = 45;

/// A node's part in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfRole {
    /// Takes writes and owns slots.
    Primary {
        /// The epoch of its claim to its slots: the higher one wins where two nodes claim a slot.
        config_epoch: u64,
        /// Its slots.
        slots: SlotSet,
    },
    /// Follows a primary.
    Replica {
        /// The primary's id.
        primary: NodeId,
    },
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfNode {
    /// The node's id.
    pub id: NodeId,
    /// The IP address, an IPv6 one without brackets; empty only for a node that does not know its own.
    pub ip: String,
    /// The client port; the TLS port if the cluster runs with `tls-cluster yes`.
    pub port: u16,
    /// The cluster bus port.
    pub bus_port: u16,
    /// Its part.
    pub role: ConfRole,
}

/// Slots that are being moved from one primary to another, by `CLUSTER SETSLOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfMove {
    /// The slots, all of them still with the primary that they leave.
    pub slots: SlotSet,
    /// The primary that they leave.
    pub from: NodeId,
    /// The primary that they go to.
    pub to: NodeId,
}

/// The whole file, but for the mark which node it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodesConf {
    /// The nodes.
    pub nodes: Vec<ConfNode>,
    /// Slots that are being moved.
    pub moves: Vec<ConfMove>,
    /// The cluster's epoch; written at least as high as the highest config epoch.
    pub current_epoch: u64,
}

/// A cluster that no `nodes.conf` should describe, or a file that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodesConfError {
    /// The node the file is for is not in it.
    #[error("node {id} is not in the cluster that its nodes.conf describes")]
    UnknownMyself {
        /// Its id.
        id: NodeId,
    },
    /// An address that the file has no room or no syntax for.
    #[error("node {id} has the address `{ip}`: expected an IP address")]
    BadAddress {
        /// The node.
        id: NodeId,
        /// The address.
        ip: String,
    },
    /// A replica of a node that is no primary.
    #[error("node {id} is to follow {primary}, which is no primary of this cluster")]
    NoSuchPrimary {
        /// The replica.
        id: NodeId,
        /// What it is to follow.
        primary: NodeId,
    },
    /// Slots are to move between nodes that are no primaries, or away from one that does not have them.
    #[error(
        "slots {slots} can't move from node {from} to node {to}: both must be primaries, and the first must have them"
    )]
    BadMove {
        /// The slots.
        slots: SlotSet,
        /// What they leave.
        from: NodeId,
        /// What they go to.
        to: NodeId,
    },
    /// Two primaries with slots have the same config epoch: which claim counts would be left to chance.
    #[error("two primaries have the config epoch {epoch}")]
    EpochUsedTwice {
        /// The epoch.
        epoch: u64,
    },
    /// The nodes contradict each other, or a line cannot be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

impl NodesConf {
    /// The file for the node `myself`.
    pub fn render(&self, myself: &NodeId) -> Result<String, NodesConfError> {
        self.check(myself)?;
        let mut text = String::new();
        for node in &self.nodes {
            // Writing to a string cannot fail.
            let moves = if node.id == *myself { Some(self.moves.as_slice()) } else { None };
            let _ = render_node(&mut text, node, moves);
        }
        let epoch = self.nodes.iter().map(ConfNode::config_epoch).fold(self.current_epoch, u64::max);
        let _ = writeln!(text, "vars currentEpoch {epoch} lastVoteEpoch 0");
        Ok(text)
    }

    fn check(&self, myself: &NodeId) -> Result<(), NodesConfError> {
        let mut ids = BTreeSet::new();
        let mut epochs = BTreeSet::new();
        let mut owners = std::collections::BTreeMap::new();
        for node in &self.nodes {
            let id = || node.id.clone();
            if !ids.insert(&node.id) {
                return Err(TopologyError::DuplicateNode { id: id() }.into());
            }
            let known = !node.ip.is_empty() || node.id == *myself;
            if !known
                || node.ip.len() > HOST_LIMIT_BYTES
                || node.ip.contains(|c: char| c.is_whitespace() || "@,[]".contains(c))
            {
                return Err(NodesConfError::BadAddress { id: id(), ip: node.ip.clone() });
            }
            match &node.role {
                ConfRole::Replica { primary } => {
                    if !self.nodes.iter().any(|other| other.id == *primary && other.is_primary()) {
                        return Err(NodesConfError::NoSuchPrimary { id: id(), primary: primary.clone() });
                    }
                }
                ConfRole::Primary { config_epoch, slots } => {
                    if !slots.is_empty() && !epochs.insert(*config_epoch) {
                        return Err(NodesConfError::EpochUsedTwice { epoch: *config_epoch });
                    }
                    for slot in slots.iter() {
                        if let Some(first) = owners.insert(slot, &node.id) {
                            let first = first.clone();
                            return Err(TopologyError::SlotOwnedTwice { slot, first, second: id() }.into());
                        }
                    }
                }
            }
        }
        for moved in &self.moves {
            let owns = |node: &ConfNode| match &node.role {
                ConfRole::Primary { slots, .. } => moved.slots.intersection(slots) == moved.slots,
                ConfRole::Replica { .. } => false,
            };
            let from = self.nodes.iter().any(|node| node.id == moved.from && owns(node));
            let to = self.nodes.iter().any(|node| node.id == moved.to && node.is_primary());
            if !from || !to || moved.from == moved.to {
                let ConfMove { slots, from, to } = moved.clone();
                return Err(NodesConfError::BadMove { slots, from, to });
            }
        }
        if ids.contains(myself) { Ok(()) } else { Err(NodesConfError::UnknownMyself { id: myself.clone() }) }
    }

    /// Reads a file of any version, and whose it is. Nodes in handshake, host names, extra fields, failure flags and moves of
    /// slots are left out.
    pub fn parse(text: &str) -> Result<(Self, NodeId), NodesConfError> {
        // Blank lines are passed over, and line numbers stay right.
        let lines: Vec<&str> =
            text.lines().map(|line| if line.starts_with("vars ") { "" } else { line }).collect();
        let rows = parse_rows(&lines.join("\n"))?;
        let myself = find_myself(&rows)?.clone();
        check_owners(&rows)?;
        let mut nodes = Vec::new();
        for row in rows.into_iter().filter(|row| !row.flags.handshake) {
            let role = match (row.role, row.primary) {
                (Some(Role::Replica), Some(primary)) => ConfRole::Replica { primary },
                _ => ConfRole::Primary { config_epoch: row.config_epoch, slots: row.slots },
            };
            nodes.push(ConfNode { id: row.id, ip: row.ip, port: row.port, bus_port: row.bus_port, role });
        }
        let current_epoch = current_epoch(text)?;
        Ok((Self { nodes, moves: vec![], current_epoch }, myself))
    }
}

impl ConfNode {
    /// Whether it is a primary.
    pub const fn is_primary(&self) -> bool {
        matches!(self.role, ConfRole::Primary { .. })
    }

    const fn config_epoch(&self) -> u64 {
        match self.role {
            ConfRole::Primary { config_epoch, .. } => config_epoch,
            ConfRole::Replica { .. } => 0,
        }
    }
}

/// Writes a node's line; with `moves` it is that of the node itself, the only one on which moves count.
fn render_node(text: &mut String, node: &ConfNode, moves: Option<&[ConfMove]>) -> core::fmt::Result {
    let me = if moves.is_some() { "myself," } else { "" };
    write!(text, "{} {}:{}@{} {me}", node.id, node.ip, node.port, node.bus_port)?;
    match &node.role {
        ConfRole::Replica { primary } => write!(text, "slave {primary} 0 0 0 connected")?,
        ConfRole::Primary { config_epoch, slots } => {
            write!(text, "master - 0 0 {config_epoch} connected")?;
            for range in slots.ranges() {
                write!(text, " {range}")?;
            }
        }
    }
    for moved in moves.unwrap_or_default() {
        for slot in moved.slots.iter() {
            if moved.from == node.id {
                write!(text, " [{slot}->-{}]", moved.to)?;
            } else if moved.to == node.id {
                write!(text, " [{slot}-<-{}]", moved.from)?;
            }
        }
    }
    text.push('\n');
    Ok(())
}

/// The epoch of the `vars` line; 0 in a file without one.
fn current_epoch(text: &str) -> Result<u64, NodesConfError> {
    for (index, line) in text.lines().enumerate() {
        let Some(vars) = line.strip_prefix("vars ") else { continue };
        let words: Vec<&str> = vars.split_ascii_whitespace().collect();
        for pair in words.chunks(2) {
            if let [name, value] = pair
                && *name == "currentEpoch"
            {
                let found = (*value).to_owned();
                return value.parse().map_err(|_| {
                    TopologyError::BadField { line: index.saturating_add(1), found, expected: "an epoch" }
                        .into()
                });
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
