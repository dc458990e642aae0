//! The shape of a cluster, as it was seen at one moment.

use crate::address::{NodeAddr, NodeId};
use crate::slot::SlotSet;

/// What a node is in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes writes and owns slots.
    Primary,
    /// Follows a primary.
    Replica,
}

/// One server process of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's id; a standalone server has none.
    pub id: Option<NodeId>,
    /// Where clients reach it, by the port that matches the connection (TLS or not).
    pub addr: NodeAddr,
    /// Primary or replica.
    pub role: Role,
    /// Whether the cluster takes the node for alive: neither `fail`, `fail?`, `noaddr` nor `handshake`.
    pub online: bool,
}

/// One primary, its replicas and the slots they serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The slots the shard serves; all of them for a standalone server.
    pub slots: SlotSet,
    /// The primary's config epoch; 0 for a standalone server.
    pub config_epoch: u64,
    /// The primary. It may be offline.
    pub primary: Node,
    /// The primary's replicas.
    pub replicas: Vec<Node>,
}

impl Shard {
    /// The primary and the replicas, the primary first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        core::iter::once(&self.primary).chain(&self.replicas)
    }
}

/// A cluster: its shards in the order of their first slots. Primaries without slots are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Whether the servers run in cluster mode; a standalone server is a cluster of one shard that serves every slot.
    pub cluster_mode: bool,
    /// The highest epoch the answering node knows.
    pub current_epoch: u64,
    /// The shards.
    pub shards: Vec<Shard>,
}

impl Topology {
    /// The slots that a shard serves.
    pub fn covered(&self) -> SlotSet {
        self.shards.iter().flat_map(|shard| shard.slots.ranges().iter().copied()).collect()
    }
}
