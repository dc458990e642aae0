//! New nodes that take the place of lost ones in a cluster that lives.
//!
//! Their `nodes.conf` lists the living nodes with their slots, and gives their own claims higher epochs than anybody has seen: a server
//! that starts with keys of a slot that it takes for unowned would claim that slot too (`verifyClusterConfigWithData` in
//! `src/cluster_legacy.c`). The living nodes answer such a node, and take nothing it says until they are told to meet it.

use slotkeep_wire::nodes_conf::ConfNode;

/// The cluster that new nodes are going to join.
#[derive(Clone, Debug, Default)]
pub struct Joining {
    /// Its living primaries, with their slots, and their replicas.
    pub others: Vec<ConfNode>,
    /// The highest epoch that any of its nodes has seen.
    pub current_epoch: u64,
}
