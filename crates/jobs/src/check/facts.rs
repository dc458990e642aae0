//! What a node says that the checks judge, gathered over one connection.
//!
//! The connection sends nothing that changes anything on the server.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_model::{Node, NodeAddr, ServerVersion};
use slotkeep_wire::info::{Info, Memory, Persistence, Replication};
use slotkeep_wire::resp::Command;
use slotkeep_wire::topology::{ClusterInfo, from_nodes};

use super::permissions::{self, Permissions};
use crate::discover::{keys_of, read_info, version_of};
use crate::net::{Connection, LinkError, LinkProblem};
use crate::{Context, Error, Result};

/// The settings that the checks judge. `CONFIG GET` with a pattern would also bring passwords.
const SETTINGS: [&str; 6] = [
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "repl-backlog-size",
    "repl-diskless-sync",
    "repl-ping-replica-period",
    "repl-timeout",
];

/// One node, and what it said.
pub(super) struct NodeFacts {
    pub(super) addr: NodeAddr,
    /// Whether the cluster takes it for alive.
    pub(super) online: bool,
    pub(super) answers: Result<Answers>,
}

/// What a node said.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) server: ServerVersion,
    pub(super) replication: Replication,
    pub(super) persistence: Persistence,
    pub(super) memory: Memory,
    pub(super) keys: u64,
    pub(super) settings: Settings,
    pub(super) permissions: Permissions,
    /// How far the node's clock is ahead of ours, in ms; unknown if it may not be asked.
    pub(super) clock_ahead_ms: Option<i64>,
    /// Bytes of the replication stream a second, while it was watched.
    pub(super) written_bytes_per_s: u64,
    /// The node's judgement of the cluster; nothing for a standalone server.
    pub(super) cluster: Option<ClusterInfo>,
    /// How many slots the node gives away or takes over.
    pub(super) slots_moving: usize,
}

/// Settings that could be read, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings(BTreeMap<String, String>);

/// The limits of the output buffer of a class of clients, in bytes; 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BufferLimit {
    pub(super) hard_bytes: u64,
    pub(super) soft_bytes: u64,
    pub(super) soft_seconds: u64,
}

impl Settings {
    #[cfg(test)]
    pub(super) fn of(settings: &[(&str, &str)]) -> Self {
        Self(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// The limit of clients that are replicas: `slave` until the word was changed, `replica` then.
    pub(super) fn replica_buffer(&self) -> Option<BufferLimit> {
        let words: Vec<&str> = self.get("client-output-buffer-limit")?.split_ascii_whitespace().collect();
        words.chunks_exact(4).find_map(|class| match class {
            ["slave" | "replica", hard, soft, seconds] => Some(BufferLimit {
                hard_bytes: hard.parse().ok()?,
                soft_bytes: soft.parse().ok()?,
                soft_seconds: seconds.parse().ok()?,
            }),
            _ => None,
        })
    }
}

/// Asks a node, and watches its writes for that time.
pub(super) async fn gather(context: &Context, node: &Node, cluster_mode: bool, watch: Duration) -> NodeFacts {
    let answers = ask(context, &node.addr, cluster_mode, watch).await;
    NodeFacts { addr: node.addr.clone(), online: node.online, answers }
}

async fn ask(context: &Context, addr: &NodeAddr, cluster_mode: bool, watch: Duration) -> Result<Answers> {
    let mut connection = context.connector.connect(addr).await?;
    let odd = |error: &dyn std::fmt::Display| -> Error {
        LinkError { node: addr.clone(), problem: LinkProblem::Protocol(error.to_string()) }.into()
    };
    let info = read_info(&mut connection).await?;
    let server = version_of(&info, addr)?;
    let login = context.connector.credentials().and_then(|credentials| credentials.user.clone());
    let permissions = permissions::ask(&mut connection, login.as_deref()).await?;
    let settings = read_settings(&mut connection).await?;
    let clock_ahead_ms = read_clock(context, &mut connection).await?;
    let (cluster, slots_moving) =
        if cluster_mode { read_cluster(context, &mut connection).await? } else { (None, 0) };
    let (first, began) =
        (offset(&read_info(&mut connection).await?).map_err(|e| odd(&e))?, context.clock.elapsed());
    context.clock.sleep(watch).await;
    let last: Info = read_info(&mut connection).await?;
    let took = context.clock.elapsed().saturating_sub(began);
    Ok(Answers {
        server,
        written_bytes_per_s: rate(offset(&last).map_err(|e| odd(&e))?.saturating_sub(first), took),
        replication: last.replication().map_err(|e| odd(&e))?,
        persistence: last.persistence().map_err(|e| odd(&e))?,
        memory: last.memory().map_err(|e| odd(&e))?,
        keys: keys_of(&last).map_err(|e| odd(&e))?,
        settings,
        permissions,
        clock_ahead_ms,
        cluster,
        slots_moving,
    })
}

fn offset(info: &Info) -> std::result::Result<u64, slotkeep_wire::info::InfoError> {
    Ok(info.replication()?.offset.0)
}

fn rate(bytes: u64, took: Duration) -> u64 {
    let per_s = u128::from(bytes).saturating_mul(1000).checked_div(took.as_millis()).unwrap_or(0);
    u64::try_from(per_s).unwrap_or(u64::MAX)
}

/// The settings, as far as the user may read them. An error reply is no failure: the check goes without.
async fn read_settings(connection: &mut Connection) -> Result<Settings> {
    let mut settings = Settings::default();
    for name in SETTINGS {
        let reply = connection.exchange(&Command::new("CONFIG").args(["GET", name])).await?;
        if let Some(value) = reply.get(name).and_then(slotkeep_wire::resp::Value::as_text) {
            settings.0.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(settings)
}

/// The node's clock against ours at the middle of the question.
async fn read_clock(context: &Context, connection: &mut Connection) -> Result<Option<i64>> {
    let before = context.clock.now();
    let reply = connection.exchange(&Command::new("TIME")).await?;
    let after = context.clock.now();
    let Some([seconds, microseconds]) = reply.as_array() else { return Ok(None) };
    let Some((seconds, microseconds)) = seconds.as_i64().zip(microseconds.as_i64()) else { return Ok(None) };
    let theirs_ms = seconds.saturating_mul(1000).saturating_add(microseconds / 1000);
    let ours_ms = midpoint_ms(before, after);
    Ok(Some(theirs_ms.saturating_sub(ours_ms)))
}

fn midpoint_ms(before: Timestamp, after: Timestamp) -> i64 {
    let (before, after) = (before.as_millisecond(), after.as_millisecond());
    before.saturating_add(after.saturating_sub(before) / 2)
}

/// The node's judgement of the cluster, and how many slots it gives away or takes over: each node tells only its own.
async fn read_cluster(
    context: &Context,
    connection: &mut Connection,
) -> Result<(Option<ClusterInfo>, usize)> {
    let info = connection.exchange(&Command::new("CLUSTER").arg("INFO")).await?;
    let info = info.as_text().and_then(|text| ClusterInfo::parse(text).ok());
    let nodes = connection.exchange(&Command::new("CLUSTER").arg("NODES")).await?;
    let view =
        nodes.as_text().and_then(|text| from_nodes(text, connection.node(), context.connector.is_tls()).ok());
    let moving = view.map_or(0, |view| view.migrating.len().saturating_add(view.importing.len()));
    Ok((info, moving))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replica_class_is_found_under_both_names() {
        let limit = |text| Settings::of(&[("client-output-buffer-limit", text)]).replica_buffer();
        let expected = BufferLimit { hard_bytes: 268_435_456, soft_bytes: 67_108_864, soft_seconds: 60 };
        assert_eq!(limit("normal 0 0 0 slave 268435456 67108864 60 pubsub 1 2 3"), Some(expected));
        assert_eq!(limit("normal 0 0 0 replica 268435456 67108864 60"), Some(expected));
        assert_eq!(limit("normal 0 0 0"), None);
        assert_eq!(limit("replica x y z"), None);
    }

    #[test]
    fn a_rate_needs_time() {
        assert_eq!(rate(1000, Duration::from_millis(500)), 2000);
        assert_eq!(rate(1000, Duration::ZERO), 0);
    }
}
