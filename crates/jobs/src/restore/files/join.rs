//! New nodes that take the place of lost ones in a cluster that lives.
//!
//! Their `nodes.conf` lists the living nodes with their slots, and gives their own claims higher epochs than anybody has seen: a server
//! that starts with keys of a slot that it takes for unowned would claim that slot too (`verifyClusterConfigWithData` in
//! `src/cluster_legacy.c`). The living nodes answer such a node, and take nothing it says until they are told to meet it.

use std::net::IpAddr;

use slotkeep_model::{NodeAddr, NodeId, Slot};
use slotkeep_wire::nodes_conf::{ConfMove, ConfNode};

use super::planner::{Planner, Sketch};
use crate::{Error, ErrorKind, Result};

/// The cluster that new nodes are going to join.
#[derive(Clone, Debug, Default)]
pub struct Joining {
    /// Its living primaries, with their slots, and their replicas.
    pub others: Vec<ConfNode>,
    /// The highest epoch that any of its nodes has seen.
    pub current_epoch: u64,
    /// Slots that were on their way between a lost shard and a living one.
    pub moves: Vec<JoiningMove>,
    /// The living primary of which all new nodes become replicas; none if shards are restored.
    pub followed: Option<NodeId>,
}

/// A primary that a replica follows.
pub(super) type Followed = (NodeAddr, IpAddr, Option<NodeId>);

/// A slot on its way. Without the mark, a server that starts with keys of a slot that is another's deletes them, or keeps them out of reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoiningMove {
    /// The slot.
    pub slot: Slot,
    /// The living primary.
    pub other: NodeId,
    /// A slot of the shard that takes the lost one's place.
    pub shard: Slot,
    /// Whether it was on its way from the lost shard to the living one, and not the other way round.
    pub leaving: bool,
}

impl Joining {
    /// The living primary that all new nodes follow, if it is so.
    pub(super) fn followed(&self) -> Result<Option<Followed>> {
        let Some(id) = &self.followed else { return Ok(None) };
        let node = self.others.iter().find(|node| node.id == *id);
        let found =
            node.and_then(|node| Some((NodeAddr::new(node.ip.clone(), node.port), node.ip.parse().ok()?)));
        let (addr, ip) = found.ok_or_else(|| {
            Error::new(
                ErrorKind::Failed,
                format!("no node knows the address of primary {id}, which new replicas need"),
            )
        })?;
        Ok(Some((addr, ip, Some(id.clone()))))
    }

    /// The moves, with the new primaries that take part in them.
    pub(super) fn moves(&self, sketches: &[Sketch<'_>]) -> Vec<ConfMove> {
        let with = |of: &JoiningMove| {
            let mut primaries = sketches.iter().filter(|sketch| sketch.follows.is_none());
            let new = primaries.find(|sketch| sketch.shard.slots.contains(of.shard))?.id.clone()?;
            let slots = std::iter::once(of.slot).collect();
            let other = of.other.clone();
            let (from, to) = if of.leaving { (new, other) } else { (other, new) };
            Some(ConfMove { slots, from, to })
        };
        self.moves.iter().filter_map(with).collect()
    }
}

impl<'a> Planner<'a> {
    /// Gives nodes their settings that are all to be replicas of a primary that lives.
    pub(super) fn sketch_replicas(&self, primary: &Followed) -> Result<Vec<Sketch<'a>>> {
        let shards = self.manifest.shards.iter().zip(&self.point.shards);
        let nodes = shards.flat_map(|shard| self.options.nodes.iter().map(move |addr| (shard, addr)));
        nodes
            .map(|(shard, addr)| self.sketch_node(shard, &shard.0.primary, addr, 0, Some(primary.clone())))
            .collect()
    }
}
