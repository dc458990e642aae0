//! What holders say with their records: which shard a line follows, where a cut is to be, what is near an agent.

use serde::{Deserialize, Serialize};
use slotkeep_model::{Node, NodeAddr, Role, Shard, SlotDigest, SlotSet};

use crate::manifest::{NodeRecord, ShardCut, ShardRecord, optional_digest};

/// A mark holds at the most so many ids: those that sort first, which two agents that see one cluster choose alike.
const MARK_IDS: usize = 64;
/// So many characters of each id are kept.
const MARK_ID_CHARACTERS: usize = 16;

/// What a holder says. Which part is there depends on the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseNote {
    /// With an agent's presence: the name of its machine, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// With an agent's presence: the lines of shards that are near it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<String>,
    /// With an agent's presence: the cluster that it is about, as it sees it now. Absent with agents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterMark>,
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

/// By what agents tell whether they are about the same cluster. Bounded, whatever the cluster's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMark {
    /// A primary's address, for people.
    pub at: String,
    /// The beginnings of the ids of nodes, primaries and replicas, or of a standalone server's histories; in order. None if none is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
}

impl ClusterMark {
    /// The mark of a cluster whose nodes, or histories, have these ids.
    pub fn of<'a>(at: &NodeAddr, ids: impl Iterator<Item = &'a str>) -> Self {
        let mut ids: Vec<String> = ids.map(|id| id.chars().take(MARK_ID_CHARACTERS).collect()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(MARK_IDS);
        Self { at: at.to_string(), ids }
    }

    /// Whether both are known, and have nothing in common.
    pub fn is_of_another_than(&self, other: &Self) -> bool {
        let known = !self.ids.is_empty() && !other.ids.is_empty();
        known && self.ids.iter().all(|id| !other.ids.contains(id))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The mark of a cluster of 3000 nodes whose ids are as random as servers choose them.
    fn mark(nodes: std::ops::Range<u32>) -> ClusterMark {
        let ids: Vec<String> = nodes.map(|node| blake3::hash(&node.to_le_bytes()).to_string()).collect();
        ClusterMark::of(&NodeAddr::new("h", 1), ids.iter().map(String::as_str))
    }

    #[test]
    fn a_mark_is_small_and_known_again_while_nodes_are_replaced() {
        let now = mark(0..3000);
        assert_eq!(now.ids.len(), MARK_IDS);
        assert!(serde_json::to_vec(&now).unwrap().len() < 2000);
        // Another agent has not seen yet that half of the nodes were replaced.
        assert!(!now.is_of_another_than(&mark(1500..4500)));
        assert!(now.is_of_another_than(&mark(3000..6000)));
        assert!(mark(0..1).is_of_another_than(&mark(1..2)) && !mark(0..2).is_of_another_than(&mark(1..3)));
    }

    #[test]
    fn of_an_agent_that_does_not_say_nothing_is_known() {
        assert!(!mark(0..3).is_of_another_than(&mark(0..0)) && !mark(0..0).is_of_another_than(&mark(0..3)));
        let older: LeaseNote = serde_json::from_str(r#"{"host":"h"}"#).unwrap();
        assert_eq!(older.cluster, None);
        // As earlier versions read what they don't know.
        let said = LeaseNote { cluster: Some(mark(0..3)), ..LeaseNote::default() };
        let json = serde_json::to_string(&said).unwrap().replace("cluster", "of_a_later_version");
        assert_eq!(serde_json::from_str::<LeaseNote>(&json).unwrap(), LeaseNote::default());
    }
}
