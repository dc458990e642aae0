//! `CLUSTER INFO`.

use super::error::TopologyError;

/// The answering node's judgement of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Whether the node serves keys (`cluster_state:ok`).
    pub ok: bool,
    /// Slots with an owner.
    pub slots_assigned: u32,
    /// Slots whose owner lives.
    pub slots_ok: u32,
    /// Slots whose owner this node cannot reach.
    pub slots_suspected: u32,
    /// Slots whose owner the majority cannot reach.
    pub slots_failed: u32,
    /// Nodes that the node knows.
    pub known_nodes: u32,
    /// Primaries that own slots.
    pub size: u32,
    /// The highest epoch that the node knows.
    pub current_epoch: u64,
    /// The node's own config epoch, or its primary's.
    pub my_epoch: u64,
}

impl ClusterInfo {
    /// Reads the reply to `CLUSTER INFO`; fields not listed here are passed over.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        let number = |name: &'static str| -> Result<u64, TopologyError> {
            let found = field(text, name);
            found.and_then(|value| value.parse().ok()).ok_or(bad(name))
        };
        let count = |name| number(name).and_then(|count| u32::try_from(count).map_err(|_| bad(name)));
        Ok(Self {
            ok: field(text, "cluster_state").ok_or(bad("cluster_state"))? == "ok",
            slots_assigned: count("cluster_slots_assigned")?,
            slots_ok: count("cluster_slots_ok")?,
            slots_suspected: count("cluster_slots_pfail")?,
            slots_failed: count("cluster_slots_fail")?,
            known_nodes: count("cluster_known_nodes")?,
            size: count("cluster_size")?,
            current_epoch: number("cluster_current_epoch")?,
            my_epoch: number("cluster_my_epoch")?,
        })
    }
}

const fn bad(expected: &'static str) -> TopologyError {
    TopologyError::BadReply { command: "CLUSTER INFO", expected }
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
