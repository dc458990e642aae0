//! `CLUSTER SLOTS`.

use slotkeep_model::{NodeId, SlotRange};

use super::error::TopologyError;
use super::shards::slot;
use crate::resp::Value;

/// One range of slots and who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsRow {
    /// The range.
    pub range: SlotRange,
    /// The primary, then its replicas.
    pub nodes: Vec<SlotsNode>,
}

/// One node of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsNode {
    /// What clients are told to dial; `None` means the host that was dialled (`unknown-endpoint`), or a host name that was
    /// never announced (`?`).
    pub endpoint: Option<String>,
    /// The port that matches the connection.
    pub port: u16,
    /// The node's id (4.0+).
    pub id: Option<NodeId>,
    /// The IP address, where the endpoint is something else (7.0+).
    pub ip: Option<String>,
    /// The host name, where the endpoint is something else (7.0+).
    pub hostname: Option<String>,
}

fn bad(expected: &'static str) -> TopologyError {
    TopologyError::BadReply { command: "CLUSTER SLOTS", expected }
}

/// Reads the reply to `CLUSTER SLOTS`. Slots without an owner are in none of its rows.
pub fn parse_slots(reply: &Value) -> Result<Vec<SlotsRow>, TopologyError> {
    reply.as_array().ok_or_else(|| bad("list of ranges"))?.iter().map(row).collect()
}

fn row(value: &Value) -> Result<SlotsRow, TopologyError> {
    let Some([first, last, nodes @ ..]) = value.as_array() else { return Err(bad("range of slots")) };
    let range = slot(first).zip(slot(last)).and_then(|(first, last)| SlotRange::new(first, last));
    Ok(SlotsRow {
        range: range.ok_or_else(|| bad("range of slots"))?,
        nodes: nodes.iter().map(node).collect::<Result<_, _>>()?,
    })
}

fn node(value: &Value) -> Result<SlotsNode, TopologyError> {
    let Some([endpoint, port, more @ ..]) = value.as_array() else { return Err(bad("node")) };
    let id = match more.first() {
        None => None,
        Some(id) => Some(id.as_text().and_then(|id| id.parse().ok()).ok_or_else(|| bad("node's id"))?),
    };
    let metadata = |name| {
        let text = more.get(1)?.get(name)?.as_text()?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    let known = |text: &&str| !text.is_empty() && *text != "?";
    Ok(SlotsNode {
        endpoint: endpoint.as_text().filter(known).map(str::to_owned),
        port: port.as_u64().and_then(|port| u16::try_from(port).ok()).ok_or_else(|| bad("node's port"))?,
        id,
        ip: metadata("ip"),
        hostname: metadata("hostname"),
    })
}
