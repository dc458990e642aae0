//! What was found: each node's own word, and what nodes say of others.

use std::collections::BTreeMap;

use slotkeep_format::ShardState;
use slotkeep_model::{NodeAddr, NodeId, ReplId, Role, ServerVersion, SlotSet};
use slotkeep_wire::topology::NodeRow;

use crate::log::chain::Place;

/// A node of the cluster, or what is known of it.
#[derive(Clone, Debug)]
pub struct SeenNode {
    /// Its address.
    pub addr: NodeAddr,
    /// Its id.
    pub id: NodeId,
    /// What it answers.
    pub answer: Answer,
}

/// What came of asking a node.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Its own word.
    Word(Box<Word>),
    /// Its process lives and can't tell yet: it reads its dataset.
    Busy(String),
    /// Nothing that could be used, and why.
    Silent(String),
}

/// What a node says of itself and of the cluster.
#[derive(Clone, Debug)]
pub struct Word {
    /// Its id.
    pub id: NodeId,
    /// What it is.
    pub role: Role,
    /// What it runs.
    pub server: ServerVersion,
    /// Whether it is in the middle of taking a snapshot from its primary: what it holds is not whole.
    pub syncing: bool,
    /// Its history.
    pub history: ReplId,
    /// The last byte that it holds.
    pub offset: u64,
    /// Where it took over from another history, if it did: that history, and the last byte that it had of it.
    pub former: Option<Place>,
    /// How many keys it holds.
    pub keys: u64,
    /// Every node that it knows, itself among them.
    pub rows: Vec<NodeRow>,
    /// The highest epoch that it has seen.
    pub current_epoch: u64,
    /// Whether it calls the cluster whole.
    pub cluster_ok: bool,
}

impl Word {
    /// Its own line.
    pub fn own_row(&self) -> Option<&NodeRow> {
        self.rows.iter().find(|row| row.id == self.id)
    }

    /// The slots that it calls its own.
    pub fn own_slots(&self) -> SlotSet {
        match (self.role, self.own_row()) {
            (Role::Primary, Some(row)) => row.slots.clone(),
            _ => SlotSet::default(),
        }
    }

    /// The primary that it follows: the one at the end of the chain that it knows.
    pub fn follows(&self) -> Option<&NodeId> {
        let by_id: BTreeMap<&NodeId, &NodeRow> = self.rows.iter().map(|row| (&row.id, row)).collect();
        let mut at = self.own_row()?.primary.as_ref()?;
        for _ in 0..self.rows.len() {
            match by_id.get(at).and_then(|row| row.primary.as_ref()) {
                Some(next) => at = next,
                None => break,
            }
        }
        Some(at)
    }

    /// Whether it knows that node as a member of its cluster.
    pub fn knows(&self, id: &NodeId) -> bool {
        self.rows.iter().any(|row| row.id == *id && !row.flags.handshake)
    }
}

/// A server that runs, on whatever machine, and can become a node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptyNode {
    /// Its id.
    pub id: NodeId,
    /// What it runs.
    pub server: ServerVersion,
    /// How many bytes it may take up to its `maxmemory`; absent if it has none.
    pub free_bytes: Option<u64>,
}

/// A server that knows nobody and is not empty, in one of the ways in which a run leaves it that was broken off while it filled it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftNode {
    /// What it can become once it is emptied, with the id that it has until then.
    pub node: EmptyNode,
    /// The slots that it calls its own.
    pub slots: SlotSet,
    /// Its config epoch.
    pub epoch: u64,
    /// How many keys it holds.
    pub keys: u64,
}

/// What stands at an address that was given for a new node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpareState {
    /// Nothing: a node can be started there.
    Free,
    /// A server in cluster mode that holds nothing and knows nobody.
    Empty(EmptyNode),
    /// A server in cluster mode that knows nobody and calls slots its own, or has a config epoch: somebody has begun to fill it.
    Left(LeftNode),
    /// A node of this cluster already, as after an earlier run.
    Member(NodeId),
    /// Something that must be left alone, and why.
    Taken(String),
}

/// What the repository says of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The shards as it saw them last.
    pub shards: Vec<ShardState>,
    /// The slots of the shard that each node was in when it was seen last.
    pub nodes: BTreeMap<NodeId, SlotSet>,
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The cluster's nodes: those that answer, and those that others or the repository know.
    pub nodes: Vec<SeenNode>,
    /// Addresses of nodes that answer and belong to others, with the reason for thinking so.
    pub strangers: Vec<(NodeAddr, String)>,
    /// What the repository says.
    pub recorded: Recorded,
    /// The addresses given for new nodes, in their order.
    pub spares: Vec<(NodeAddr, SpareState)>,
}

impl Survey {
    /// The nodes that answer.
    pub fn words(&self) -> impl Iterator<Item = (&SeenNode, &Word)> {
        self.nodes.iter().filter_map(|node| match &node.answer {
            Answer::Word(word) => Some((node, &**word)),
            Answer::Busy(_) | Answer::Silent(_) => None,
        })
    }

    /// A node.
    pub fn node(&self, id: &NodeId) -> Option<&SeenNode> {
        self.nodes.iter().find(|node| node.id == *id)
    }

    /// The word of a node.
    pub fn word(&self, id: &NodeId) -> Option<&Word> {
        self.words().find(|(node, _)| node.id == *id).map(|(_, word)| word)
    }

    /// Whether a node's process lives and can't tell yet.
    pub fn is_busy(&self, id: &NodeId) -> bool {
        self.node(id).is_some_and(|node| matches!(node.answer, Answer::Busy(_)))
    }

    /// Whether the others reach a node that does not answer here: every one that knows it has a link to it, and none suspects it.
    pub fn is_reached_by_others(&self, id: &NodeId) -> bool {
        let rows = self.words().filter_map(|(_, word)| word.rows.iter().find(|row| row.id == *id));
        let mut well = rows.map(|row| row.link_up && row.is_online());
        self.word(id).is_none() && well.next().is_some_and(|first| first && well.all(|next| next))
    }

    /// Where a node is, or its id where nobody knows.
    pub fn name(&self, id: &NodeId) -> String {
        self.node(id).map_or_else(|| id.to_string(), |node| node.addr.to_string())
    }

    /// The highest epoch that anybody has seen.
    pub fn highest_epoch(&self) -> u64 {
        let rows = self.words().flat_map(|(_, word)| word.rows.iter().map(|row| row.config_epoch));
        let current = self.words().map(|(_, word)| word.current_epoch);
        let recorded = self.recorded.shards.iter().map(|shard| shard.config_epoch);
        rows.chain(current).chain(recorded).max().unwrap_or(0)
    }
}
