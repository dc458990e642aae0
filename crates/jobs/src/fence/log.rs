//! Whether the log in a repository holds everything that fenced primaries have accepted: what has to be so before another cluster is made
//! from it.
//!
//! A fenced primary goes on sending heartbeats, and an archive seals those only once a minute. Bytes that are still missing are therefore
//! looked at, as a replica that continues would see them: where they are heartbeats alone, nothing is missing.

use std::time::Duration;

use serde::Serialize;
use slotkeep_model::{NodeAddr, ReplId, ReplOffset, SlotSet};
use slotkeep_repo::Repository;
use slotkeep_wire::replica::Request;
use slotkeep_wire::stream::{Splitter, StreamError, StreamStart};

use super::{NodeState, as_text};
use crate::archive::link::{Answer, Link};
use crate::discover::replication_at;
use crate::log::Past;
use crate::log::chain::Place;
use crate::{Context, Error, ErrorKind, Result};

/// How often the repository is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A minute of heartbeats is some hundred bytes.
const MOST_HEARTBEAT_BYTES: u64 = 16 << 10;
/// How long the primary may take to show them.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// How far the log is, of one shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardLog {
    /// Its primary.
    #[serde(serialize_with = "as_text")]
    pub primary: NodeAddr,
    /// Its slots.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// The history that it follows.
    #[serde(serialize_with = "as_text")]
    pub history: ReplId,
    /// Its last byte when it was asked, after it was fenced; without heartbeats that the repository does not hold yet.
    pub offset: u64,
    /// The last byte up to which the repository holds everything behind a base, up to `offset`; absent if it holds nothing of it.
    pub kept: Option<u64>,
}

/// How far the log is, of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct LogReach {
    /// The shards, in the order of their slots.
    pub shards: Vec<ShardLog>,
    /// Whether all of it is in the repository.
    pub complete: bool,
    /// What `slotkeep restore --at-offset` takes to bring exactly that back.
    pub at_offset: String,
    /// How long it took to come there, in ms.
    pub waited_ms: u64,
}

impl LogReach {
    /// Shards of which something is missing.
    pub fn behind(&self) -> impl Iterator<Item = &ShardLog> {
        self.shards.iter().filter(|shard| shard.kept != Some(shard.offset))
    }
}

/// Asks each primary that serves slots for its last byte, and waits until the repository can bring all of them back, at most so long.
pub async fn await_log(
    context: &Context,
    (repository, cluster): (&Repository, &str),
    nodes: &[NodeState],
    limit: Duration,
) -> Result<LogReach> {
    context.unless_stopped(wait(context, (repository, cluster), nodes, limit)).await
}

async fn wait(
    context: &Context,
    (repository, cluster): (&Repository, &str),
    nodes: &[NodeState],
    limit: Duration,
) -> Result<LogReach> {
    let began = context.clock.elapsed();
    let mut shards = Vec::new();
    for node in nodes.iter().filter(|node| node.role == Some("primary") && !node.slots.is_empty()) {
        let replication = replication_at(context, &node.addr).await?;
        shards.push(ShardLog {
            primary: node.addr.clone(),
            slots: node.slots.clone(),
            history: replication.replid,
            offset: replication.offset.0,
            kept: None,
        });
    }
    shards.sort_by_key(|shard| shard.slots.ranges().first().map(|range| range.first()));
    loop {
        let past = Past::load(repository, cluster).await?;
        for shard in &mut shards {
            shard.kept = kept(&past, shard);
            if shard.kept.is_none() {
                past.expect_way_to(&past.chain.path(&shard.history)).map_err(|error| {
                    error.context(format!("what is kept of slots {} can't be told", shard.slots))
                })?;
            }
            if let Some(kept) = shard.kept.filter(|kept| *kept < shard.offset)
                && heartbeats_alone(context, shard, kept).await
            {
                shard.offset = kept;
            }
        }
        let complete = !shards.is_empty() && shards.iter().all(|shard| shard.kept == Some(shard.offset));
        let waited = context.clock.elapsed().saturating_sub(began);
        if complete || waited >= limit {
            let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            let places = shards.iter().map(|shard| format!("{}:{}", shard.history, shard.offset));
            let at_offset = places.collect::<Vec<_>>().join(",");
            return Ok(LogReach { shards, complete, at_offset, waited_ms });
        }
        context.clock.sleep(LOOK_EVERY).await;
    }
}

fn kept(past: &Past, shard: &ShardLog) -> Option<u64> {
    let path = past.chain.path(&shard.history);
    let place = Place { history: shard.history.clone(), offset: shard.offset };
    if path.holds(&place) && past.chain.route(&path, shard.offset).is_ok() {
        return Some(shard.offset);
    }
    let windows = past.chain.windows(&path);
    windows.iter().rev().find(|window| window.from <= shard.offset).map(|window| window.to.min(shard.offset))
}

/// Whether everything behind `kept` is heartbeats, as far as the primary can be asked.
async fn heartbeats_alone(context: &Context, shard: &ShardLog, kept: u64) -> bool {
    // More is not worth looking at; and what is not in the backlog would make the server send its whole dataset.
    if shard.offset.saturating_sub(kept) > MOST_HEARTBEAT_BYTES {
        return false;
    }
    let looked = context.within(LOOK_LIMIT, look_behind(context, shard, kept)).await;
    looked.is_some_and(|looked| looked.unwrap_or(false))
}

async fn look_behind(context: &Context, shard: &ShardLog, kept: u64) -> Result<bool> {
    let Some(request) = Request::after(shard.history.clone(), ReplOffset(kept)) else { return Ok(false) };
    let mut link = Link::open(context, &shard.primary).await?;
    match link.begin(request).await? {
        Answer::Stream { history } if history.as_ref().is_none_or(|history| *history == shard.history) => {}
        Answer::Stream { .. } | Answer::Snapshot { .. } => return Ok(false),
    }
    let start = StreamStart { offset: ReplOffset(kept), db: None, in_transaction: false };
    let mut splitter = Splitter::new(start);
    while splitter.safe_cut().0 < shard.offset {
        let bytes = link.read().await?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let mut rest = bytes.as_slice();
        while let Some(command) = splitter.next(&mut rest).map_err(|error| senseless(&error))? {
            if !["PING", "REPLCONF", "SELECT"].iter().any(|name| command.is(name)) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn senseless(error: &StreamError) -> Error {
    Error::new(ErrorKind::Failed, error.to_string())
}
