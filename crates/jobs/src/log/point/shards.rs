//! Shards by themselves: what the repository holds of each, and the way to it, when others live and are not to be brought back.
//!
//! Invariant: without a moment, a shard comes back to the last place that its log leads to, whatever the other shards' logs say.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::ShardState;
use slotkeep_model::{NodeId, RdbVersion, ReplId, SlotSet};

use super::idle::is_idle;
use super::moment::{Cut, End, Planned, cut_by, order_moves};
use super::{Path, Piece, Place, Point, Span, Times, View, shard_point};
use crate::log::Past;
use crate::{Error, ErrorKind, Result};

/// The last place of a shard that the repository leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// The last byte.
    pub end: Place,
    /// When it was written, as far as the server's clock was asked.
    pub written: Option<Span>,
    /// The backup whose base leads there.
    pub backup: String,
    /// The base's format.
    #[serde(skip)]
    pub rdb_version: RdbVersion,
    /// How many bytes the base has.
    pub rdb_bytes: u64,
    /// How many bytes of the log go on it.
    pub log_bytes: u64,
}

/// What a node does not have and the repository does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// Bytes of the log.
    pub bytes: u64,
    /// From when the first of them was written until the last was, in ms, as far as the server's clock was asked.
    pub ms: Option<u64>,
    /// Whether there are writes among them, and not only what keeps a link alive.
    pub writes: bool,
}

/// Which shard of the cluster as it was seen last these slots belong to: the one with most of them.
pub fn recorded_shard<'a>(shards: &'a [ShardState], slots: &SlotSet) -> Option<&'a ShardState> {
    let common = |shard: &&ShardState| shard.slots.intersection(slots).len();
    shards.iter().filter(|shard| common(shard) > 0).max_by_key(common)
}

/// The shards of the cluster as it was seen last, by an archive or a backup; none if nothing was.
pub fn newest_shards(past: &Past) -> Vec<ShardState> {
    View::newest(past).map(|view| view.shards).unwrap_or_default()
}

/// The slots of the shard that each node was in when it was seen last.
pub fn former_nodes(past: &Past) -> BTreeMap<NodeId, SlotSet> {
    let of_backups = past.backups.iter().flat_map(|backup| &backup.shards);
    let of_backups = of_backups.map(|shard| (&shard.slots, &shard.primary, &shard.replicas));
    let of_topologies = past.topologies.iter().flat_map(|topology| &topology.shards);
    let of_topologies = of_topologies.map(|shard| (&shard.slots, &shard.primary, &shard.replicas));
    let mut nodes = BTreeMap::new();
    for (slots, primary, replicas) in of_backups.chain(of_topologies).filter(|(slots, ..)| !slots.is_empty())
    {
        let ids = std::iter::once(primary).chain(replicas).filter_map(|node| node.id.clone());
        nodes.extend(ids.map(|id| (id, slots.clone())));
    }
    nodes
}

/// The last place that the log of a shard leads to.
pub async fn reach(past: &Past, state: &ShardState) -> Result<Reach> {
    let path = path_of(past, state)?;
    let end = end_of(past, &path, state)?;
    let (point, number) = shard_point(past, &state.slots, &path, &end).await?;
    let (_, record) = past.base(number).ok_or_else(|| nothing_kept(&state.slots))?;
    Ok(Reach {
        end: point.cut,
        written: point.written.or_else(|| record.server_time.map(|at| Span { from: None, until: Some(at) })),
        backup: point.backup,
        rdb_version: record.base.rdb_version,
        rdb_bytes: record.base.rdb.raw_bytes,
        log_bytes: point.log_bytes,
    })
}

/// What a node of a shard lacks that stands at that offset of that history; nothing if the repository does not know the place.
pub async fn lack(
    past: &Past,
    state: &ShardState,
    (history, offset): (&ReplId, u64),
) -> Result<Option<Lack>> {
    let path = path_of(past, state)?;
    let end = end_of(past, &path, state)?.offset;
    if !path.holds(&Place { history: history.clone(), offset }) {
        return Ok(None);
    }
    let missing: Vec<Piece> = path.pieces(offset, end);
    let bytes = missing.iter().map(Piece::bytes).sum();
    if bytes == 0 {
        return Ok(Some(Lack { bytes, ms: Some(0), writes: false }));
    }
    let times = Times::on(past, &path);
    let (first, last) = (times.written(offset.saturating_add(1)).await?, times.written(end).await?);
    let span = first.from_ms.zip(last.until_ms.or(last.from_ms));
    let ms = span.and_then(|(from, until)| u64::try_from(until.saturating_sub(from)).ok());
    Ok(Some(Lack { bytes, ms, writes: !is_idle(past, &missing).await? }))
}

/// The way to these shards, each as it was seen last but for its slots: to a moment, or to the last place that each log leads to.
pub async fn resolve_shards(past: &Past, wanted: &[ShardState], at: Option<Timestamp>) -> Result<Point> {
    let view = View::of_shards(past, wanted.to_vec())?;
    let mut planned = Vec::new();
    for state in wanted {
        let path = path_of(past, state)?;
        let cut = match at {
            Some(at) => cut_by(past, &path, (at.as_millisecond(), End::Known), &state.slots).await?,
            None => end_of(past, &path, state)?,
        };
        planned.push(Planned { state, path, cut, fixed: at.is_none() });
    }
    if let Some(at) = at {
        order_moves(past, &mut planned, (at.as_millisecond(), End::Known)).await?;
    }
    let mut shards = Vec::new();
    for shard in &planned {
        shards.push(shard_point(past, &shard.state.slots, &shard.path, &shard.cut).await?);
    }
    let manifest = view.manifest(past, at.unwrap_or(Timestamp::MAX), &shards)?;
    let shards = shards.into_iter().map(|(point, _)| point).collect();
    Ok(Point { manifest, at, shards, passed_over: vec![] })
}

fn path_of(past: &Past, state: &ShardState) -> Result<Path> {
    let history = View::history_of(past, state)?;
    Ok(past.chain.path(&past.chain.main_tip(&history)))
}

fn end_of(past: &Past, path: &Path, state: &ShardState) -> Result<Cut> {
    let last = past.chain.windows(path).pop().ok_or_else(|| nothing_kept(&state.slots))?;
    Ok(Cut { offset: last.to, may_lack_ms: None, from_ms: None })
}

fn nothing_kept(slots: &SlotSet) -> Error {
    Error::new(ErrorKind::Gap, format!("the repository holds no base of slots {slots}"))
        .hint("`slotkeep list` shows what there is")
}
