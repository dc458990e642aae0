//! `CLUSTER NODES` as a topology.
//!
//! Invariants: exactly one row is `myself`; ids are unique; no slot has two owners; the nodes of `topology` are rows.

use std::collections::BTreeMap;

use slotkeep_model::{Node, NodeAddr, NodeId, Role, Shard, Slot, Topology};

use super::error::TopologyError;
use super::row::NodeRow;
use super::shards::ShardRow;

/// A slot on its way from one node to another by `CLUSTER SETSLOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// The slot.
    pub slot: Slot,
    /// The node that owns it.
    pub from: NodeId,
    /// The node that it goes to.
    pub to: NodeId,
}

/// The cluster, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The shards. The current epoch is the highest config epoch until [`set_current_epoch`](Self::set_current_epoch).
    pub topology: Topology,
    /// The node that answered.
    pub myself: NodeId,
    /// Every line of the answer, nodes in handshake among them.
    pub rows: Vec<NodeRow>,
    /// Slots that the answering node is giving away.
    pub migrating: Vec<SlotMove>,
    /// Slots that the answering node is taking over.
    pub importing: Vec<SlotMove>,
    /// Primaries that own no slot: they are in no shard, nor are their replicas.
    pub primaries_without_slots: Vec<NodeId>,
    /// Replicas whose primary is not among the shards' primaries.
    pub unattached_replicas: Vec<NodeId>,
    tls: bool,
}

/// Reads the answer to `CLUSTER NODES` that came over a connection to `dialled`, by TLS or not.
pub fn from_nodes(text: &str, dialled: &NodeAddr, tls: bool) -> Result<ClusterView, TopologyError> {
    let rows = parse_rows(text)?;
    let myself = find_myself(&rows)?.clone();
    check_owners(&rows)?;

    let node = |row: &NodeRow, role| Node {
        id: Some(row.id.clone()),
        addr: row.addr(dialled, tls),
        role,
        online: row.is_online(),
    };
    let by_id: BTreeMap<&NodeId, &NodeRow> = rows.iter().map(|row| (&row.id, row)).collect();
    let mut replicas: BTreeMap<&NodeId, Vec<Node>> = BTreeMap::new();
    let mut unattached_replicas = Vec::new();
    for row in members(&rows, Role::Replica) {
        match primary_of(row, &by_id) {
            Some(primary) => replicas.entry(&primary.id).or_default().push(node(row, Role::Replica)),
            None => unattached_replicas.push(row.id.clone()),
        }
    }
    let mut shards = Vec::new();
    let mut primaries_without_slots = Vec::new();
    for row in members(&rows, Role::Primary) {
        let followers = replicas.remove(&row.id).unwrap_or_default();
        if row.slots.is_empty() {
            primaries_without_slots.push(row.id.clone());
            unattached_replicas.extend(followers.into_iter().filter_map(|node| node.id));
            continue;
        }
        shards.push(Shard {
            slots: row.slots.clone(),
            config_epoch: row.config_epoch,
            primary: node(row, Role::Primary),
            replicas: followers,
        });
    }
    for shard in &mut shards {
        shard.replicas.sort_by(|one, other| one.id.cmp(&other.id));
    }
    shards.sort_by_key(|shard| shard.slots.ranges().first().map(|range| range.first()));
    let current_epoch = rows.iter().map(|row| row.config_epoch).max().unwrap_or(0);
    let (migrating, importing) = moves(&rows);
    Ok(ClusterView {
        topology: Topology { cluster_mode: true, current_epoch, shards },
        myself,
        migrating,
        importing,
        primaries_without_slots,
        unattached_replicas,
        tls,
        rows,
    })
}

impl ClusterView {
    /// The answering node's line.
    pub fn my_row(&self) -> Option<&NodeRow> {
        self.rows.iter().find(|row| row.id == self.myself)
    }

    /// Takes the current epoch from `CLUSTER INFO`; it is never below a config epoch.
    pub fn set_current_epoch(&mut self, epoch: u64) {
        self.topology.current_epoch = self.topology.current_epoch.max(epoch);
    }

    /// Takes the ports from `CLUSTER SHARDS`: those of `CLUSTER NODES` are not the TLS ports where a version before 7.2 serves
    /// TLS clients with `tls-cluster no`. Nodes that `shards` does not list, or without a port of the wanted kind, stay as
    /// they are.
    pub fn amend_ports(&mut self, shards: &[ShardRow]) {
        let tls = self.tls;
        let wanted = |node: &super::shards::ShardNode| if tls { node.tls_port } else { node.port };
        let ports: BTreeMap<&NodeId, u16> = shards
            .iter()
            .flat_map(|shard| &shard.nodes)
            .filter_map(|node| Some((&node.id, wanted(node).filter(|port| *port != 0)?)))
            .collect();
        for shard in &mut self.topology.shards {
            for node in core::iter::once(&mut shard.primary).chain(&mut shard.replicas) {
                if let Some(port) = node.id.as_ref().and_then(|id| ports.get(id)) {
                    node.addr = NodeAddr::new(node.addr.host(), *port);
                }
            }
        }
    }
}

/// The lines of `CLUSTER NODES`, blank ones left out; ids are unique.
pub(crate) fn parse_rows(text: &str) -> Result<Vec<NodeRow>, TopologyError> {
    let mut rows = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row = NodeRow::parse(line, index.saturating_add(1))?;
        if !seen.insert(row.id.clone()) {
            return Err(TopologyError::DuplicateNode { id: row.id });
        }
        rows.push(row);
    }
    Ok(rows)
}

pub(crate) fn find_myself(rows: &[NodeRow]) -> Result<&NodeId, TopologyError> {
    let mut marked = rows.iter().filter(|row| row.flags.myself).map(|row| &row.id);
    let first = marked.next().ok_or(TopologyError::NoMyself)?;
    match marked.next() {
        None => Ok(first),
        Some(second) => Err(TopologyError::TwoMyselves { first: first.clone(), second: second.clone() }),
    }
}

pub(crate) fn check_owners(rows: &[NodeRow]) -> Result<(), TopologyError> {
    let mut owners: BTreeMap<Slot, &NodeId> = BTreeMap::new();
    for row in rows {
        for slot in row.slots.iter() {
            if let Some(first) = owners.insert(slot, &row.id) {
                let (first, second) = (first.clone(), row.id.clone());
                return Err(TopologyError::SlotOwnedTwice { slot, first, second });
            }
        }
    }
    Ok(())
}

fn members(rows: &[NodeRow], role: Role) -> impl Iterator<Item = &NodeRow> {
    rows.iter().filter(move |row| row.role == Some(role) && !row.flags.handshake)
}

/// The primary at the end of a replica's chain: right after a failover a node may still be listed as the replica of one that
/// is a replica itself by now.
fn primary_of<'r>(replica: &NodeRow, by_id: &BTreeMap<&NodeId, &'r NodeRow>) -> Option<&'r NodeRow> {
    let mut at = by_id.get(replica.primary.as_ref()?)?;
    // A chain longer than the cluster has nodes goes in a circle.
    for _ in 0..by_id.len() {
        if at.role == Some(Role::Primary) {
            return Some(at);
        }
        at = by_id.get(at.primary.as_ref()?)?;
    }
    None
}

/// The moves in which the answering node gives and takes.
fn moves(rows: &[NodeRow]) -> (Vec<SlotMove>, Vec<SlotMove>) {
    let out = |row: &NodeRow| {
        let id = row.id.clone();
        row.migrating.clone().into_iter().map(move |(slot, to)| SlotMove { slot, from: id.clone(), to })
    };
    let into = |row: &NodeRow| {
        let id = row.id.clone();
        row.importing.clone().into_iter().map(move |(slot, from)| SlotMove { slot, from, to: id.clone() })
    };
    (rows.iter().flat_map(out).collect(), rows.iter().flat_map(into).collect())
}
