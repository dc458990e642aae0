//! `CLUSTER SHARDS` (Redis 7.0+, Valkey).

use slotkeep_model::{NodeId, Role, Slot, SlotRange, SlotSet};

use super::error::TopologyError;
use crate::resp::Value;

/// What the cluster makes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It lives.
    Online,
    /// It does not answer.
    Failed,
    /// A replica whose offset is not known yet.
    Loading,
    /// A word that no version known here uses.
    Unknown,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRow {
    /// The shard's id (Valkey 9.1+).
    pub id: Option<String>,
    /// Its slots; none for a shard without.
    pub slots: SlotSet,
    /// Its nodes, in the server's order.
    pub nodes: Vec<ShardNode>,
}

/// One node of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardNode {
    /// The node's id.
    pub id: NodeId,
    /// The plain TCP port, if the node listens on one.
    pub port: Option<u16>,
    /// The TLS port, if the node listens on one.
    pub tls_port: Option<u16>,
    /// The IP address; empty if it is not known.
    pub ip: String,
    /// What clients are told to dial, by `cluster-preferred-endpoint-type`.
    pub endpoint: Option<String>,
    /// The announced host name.
    pub hostname: Option<String>,
    /// Primary or replica.
    pub role: Role,
    /// The replication offset: current for the answering node, seconds old for all others.
    pub replication_offset: u64,
    /// What the cluster makes of it.
    pub health: Health,
}

const COMMAND: &str = "CLUSTER SHARDS";

fn bad(expected: &'static str) -> TopologyError {
    TopologyError::BadReply { command: COMMAND, expected }
}

/// Reads the reply to `CLUSTER SHARDS`, with RESP2's flat arrays or RESP3's maps.
pub fn parse_shards(reply: &Value) -> Result<Vec<ShardRow>, TopologyError> {
    reply.as_array().ok_or_else(|| bad("list of shards"))?.iter().map(shard).collect()
}

fn shard(value: &Value) -> Result<ShardRow, TopologyError> {
    let bounds = value.get("slots").and_then(Value::as_array).ok_or_else(|| bad("`slots`"))?;
    let nodes = value.get("nodes").and_then(Value::as_array).ok_or_else(|| bad("`nodes`"))?;
    if !bounds.len().is_multiple_of(2) {
        return Err(bad("last slot of a range"));
    }
    let range = |pair: &[Value]| match pair {
        [first, last] => SlotRange::new(slot(first)?, slot(last)?),
        _ => None,
    };
    let slots =
        bounds.chunks_exact(2).map(range).collect::<Option<_>>().ok_or_else(|| bad("range of slots"))?;
    Ok(ShardRow { id: text(value, "id"), slots, nodes: nodes.iter().map(node).collect::<Result<_, _>>()? })
}

fn node(value: &Value) -> Result<ShardNode, TopologyError> {
    let id = value.get("id").and_then(Value::as_text).and_then(|id| id.parse().ok());
    let port = |name| value.get(name).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let role = match value.get("role").and_then(Value::as_text) {
        Some("master" | "primary") => Role::Primary,
        Some("slave" | "replica") => Role::Replica,
        _ => return Err(bad("node's `role`")),
    };
    let health = match value.get("health").and_then(Value::as_text) {
        Some("online") => Health::Online,
        Some("fail" | "failed") => Health::Failed,
        Some("loading") => Health::Loading,
        _ => Health::Unknown,
    };
    Ok(ShardNode {
        id: id.ok_or_else(|| bad("node's `id`"))?,
        port: port("port"),
        tls_port: port("tls-port"),
        ip: text(value, "ip").unwrap_or_default(),
        endpoint: text(value, "endpoint"),
        hostname: text(value, "hostname").filter(|name| !name.is_empty()),
        role,
        replication_offset: value.get("replication-offset").and_then(Value::as_u64).unwrap_or(0),
        health,
    })
}

fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_text).map(str::to_owned)
}

pub(super) fn slot(value: &Value) -> Option<Slot> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).and_then(Slot::new)
}
