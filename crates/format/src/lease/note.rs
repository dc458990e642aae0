//! What holders say with their records: which shard a line follows, where a cut is to be, what is near an agent.

use serde::{Deserialize, Serialize};
use slotkeep_model::{Node, Role, Shard, SlotDigest, SlotSet};

use crate::manifest::{NodeRecord, ShardCut, ShardRecord, optional_digest};

/// What a holder says. Which part is there depends on the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseNote {
    /// With an agent's presence: the name of its machine, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// With an agent's presence: the lines of shards that are near it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<String>,
    /// With the lease of a line: the shard that it follows, by which others know it again. Absent once the shard is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Box<LineShard>>,
    /// With the lease of the cluster: up to where each line is to be sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<LineCut>,
}

impl LeaseNote {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The shard of a line, as its holder saw it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineShard {
    /// Its primary.
    pub primary: NodeRecord,
    /// Its replicas.
    pub replicas: Vec<NodeRecord>,
    /// The base that the line begins with, once there is one: it may be in no backup yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<LineBase>,
}

/// A base, as a backup would list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineBase {
    /// Its row.
    pub record: ShardRecord,
    /// Its keys and their digest, if they are known.
    #[serde(with = "optional_digest", default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<SlotDigest>,
}

/// Up to where a line is to be sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCut {
    /// The line's lease.
    pub line: String,
    /// The last byte.
    #[serde(flatten)]
    pub cut: ShardCut,
}

impl LineShard {
    /// What there is to say of a shard.
    pub fn of(shard: &Shard, base: Option<LineBase>) -> Self {
        let node =
            |node: &Node| NodeRecord { id: node.id.clone(), addr: node.addr.clone(), online: node.online };
        Self { primary: node(&shard.primary), replicas: shard.replicas.iter().map(node).collect(), base }
    }

    /// The shard's nodes; its slots are not said.
    pub fn shard(&self) -> Shard {
        let node = |record: &NodeRecord, role| Node {
            id: record.id.clone(),
            addr: record.addr.clone(),
            role,
            online: record.online,
        };
        Shard {
            slots: SlotSet::default(),
            config_epoch: 0,
            primary: node(&self.primary, Role::Primary),
            replicas: self.replicas.iter().map(|record| node(record, Role::Replica)).collect(),
        }
    }
}
