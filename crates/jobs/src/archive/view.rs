//! How the cluster looks, with the histories of its shards and the slots that are on their way.

use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::lineage::TOPOLOGY_VERSION;
use slotkeep_format::manifest::NodeRecord;
use slotkeep_format::{ShardState, TopologyRecord};
use slotkeep_model::{Node, Shard, SlotSet, Topology};
use slotkeep_wire::info::Replication;
use slotkeep_wire::topology::SlotMove;

use super::line::ANSWER_LIMIT;
use super::looks::LOOK_LIMIT;
use crate::backup::new_backup_id;
use crate::discover::{Discovery, read_view, replication_of};
use crate::{Context, Result};

/// How many nodes are asked at a time: many, as each that is silent keeps a place for as long as an answer may take.
const QUESTIONS_IN_FLIGHT: usize = 128;
/// How long all of them may take, so that what the first said is not too old with the last: who was not asked by then counts as silent.
const ALL_ANSWERS_LIMIT: Duration = ANSWER_LIMIT.saturating_mul(2);
// The cluster is found before, by one node's answer.
const _: () = assert!(ANSWER_LIMIT.as_secs() + ALL_ANSWERS_LIMIT.as_secs() < LOOK_LIMIT.as_secs());

/// A shard, with what its primary says of itself.
#[derive(Clone, Debug)]
pub(crate) struct SeenShard {
    pub(crate) shard: Shard,
    /// Nothing if it did not answer.
    pub(crate) replication: Option<Replication>,
    importing: SlotSet,
    migrating: SlotSet,
    unfollowed: SlotSet,
}

impl SeenShard {
    fn unanswered(shard: Shard) -> Self {
        Self {
            shard,
            replication: None,
            importing: SlotSet::default(),
            migrating: SlotSet::default(),
            unfollowed: SlotSet::default(),
        }
    }

    /// Whether slots are on their way to or from it.
    pub(crate) fn is_moving_slots(&self) -> bool {
        !self.importing.is_empty() || !self.migrating.is_empty()
    }
}

/// Asks every primary.
pub(crate) async fn look_at_shards(context: &Context, topology: &Topology) -> Vec<SeenShard> {
    let cluster_mode = topology.cluster_mode;
    let until = context.clock.elapsed().saturating_add(ALL_ANSWERS_LIMIT);
    let asked = futures::stream::iter(topology.shards.clone()).map(|shard| async move {
        let silent = SeenShard::unanswered(shard.clone());
        let limit = until.saturating_sub(context.clock.elapsed()).min(ANSWER_LIMIT);
        let seen = context.within(limit, look_at(context, shard, cluster_mode)).await;
        seen.unwrap_or(silent)
    });
    asked.buffered(QUESTIONS_IN_FLIGHT).collect().await
}

async fn look_at(context: &Context, shard: Shard, cluster_mode: bool) -> SeenShard {
    let mut seen = SeenShard::unanswered(shard);
    if !seen.shard.primary.online {
        return seen;
    }
    let Ok(mut connection) = context.connector.connect(&seen.shard.primary.addr).await else { return seen };
    seen.replication = replication_of(&mut connection).await.ok();
    if cluster_mode && let Ok(view) = read_view(context, &mut connection).await {
        seen.importing = view.importing.iter().map(|taken| taken.slot).collect();
        seen.migrating = view.migrating.iter().map(|given| given.slot).collect();
        let serves_none = |given: &&SlotMove| view.primaries_without_slots.contains(&given.to);
        seen.unfollowed = view.migrating.iter().filter(serves_none).map(|given| given.slot).collect();
    }
    seen
}

/// The record of what was seen.
pub(crate) fn record(
    context: &Context,
    discovery: &Discovery,
    shards: &[SeenShard],
) -> Result<TopologyRecord> {
    let node = |node: &Node| NodeRecord { id: node.id.clone(), addr: node.addr.clone(), online: node.online };
    let state = |seen: &SeenShard| ShardState {
        slots: seen.shard.slots.clone(),
        importing: seen.importing.clone(),
        migrating: seen.migrating.clone(),
        unfollowed: seen.unfollowed.clone(),
        config_epoch: seen.shard.config_epoch,
        primary: node(&seen.shard.primary),
        replicas: seen.shard.replicas.iter().map(node).collect(),
        history: seen.replication.as_ref().map(|replication| replication.replid.clone()),
        offset: seen.replication.as_ref().map(|replication| replication.offset.0),
    };
    Ok(TopologyRecord {
        format_version: TOPOLOGY_VERSION,
        id: new_backup_id(context)?,
        seen_at: context.clock.now(),
        as_before_until: None,
        cluster_mode: discovery.topology().cluster_mode,
        current_epoch: discovery.topology().current_epoch,
        shards: shards.iter().map(state).collect(),
    })
}
