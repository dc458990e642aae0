//! What a cluster's nodes say about the cluster's shape.
//!
//! `CLUSTER NODES` is the one source of [`ClusterView`], for it says everything on every version since 4.0; `CLUSTER SHARDS`
//! adds health and both ports (7.0+), `CLUSTER SLOTS` the endpoints that clients are told, `CLUSTER INFO` the state and
//! the epoch. Source: `clusterGenNodeDescription`, `clusterReplyMultiBulkSlots`, `addShardReplyForClusterShards` and
//! `genClusterInfoString` in `src/cluster_legacy.c` (`src/cluster.c` before Redis 7.4) of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1.

mod cluster_info;
mod error;
mod row;
mod shards;
mod slots;
mod view;

pub use cluster_info::ClusterInfo;
pub use error::TopologyError;
pub use row::{NodeFlags, NodeRow};
pub use shards::{Health, ShardNode, ShardRow, parse_shards};
pub use slots::{SlotsNode, SlotsRow, parse_slots};
pub use view::{ClusterView, SlotMove, from_nodes};
pub(crate) use view::{check_owners, find_myself, parse_rows};

#[cfg(test)]
mod tests;
