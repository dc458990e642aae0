//! What happened to a cluster over time: which histories descend from which, and how slots were spread.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use slotkeep_model::{NodeAddr, ReplId, SlotSet};

use crate::json::{optional_text, parse_versioned, render, text};
use crate::manifest::{ManifestError, NodeRecord};

/// The newest format of history files that this code writes and reads.
pub const HISTORY_VERSION: u32 = 1;
/// The newest format of topology files that this code writes and reads.
pub const TOPOLOGY_VERSION: u32 = 1;

/// Where a history comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The history before.
    #[serde(with = "text")]
    pub history: ReplId,
    /// The last byte that both histories have in common. What the parent holds behind it is a divergent tail: those writes are
    /// not part of what followed.
    pub fork: u64,
}

/// `history.json`: a replication history, written when it is first followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// [`HISTORY_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The history.
    #[serde(with = "text")]
    pub history: ReplId,
    /// Where it comes from; absent if it is the first one, or if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The slots of its shard when it was first followed.
    #[serde(with = "text")]
    pub slots: SlotSet,
    /// The node that it was first followed on.
    #[serde(with = "text")]
    pub source: NodeAddr,
    /// When it was first followed, by the clock of the machine that followed it.
    pub first_seen_at: Timestamp,
}

impl HistoryRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, HISTORY_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
}

/// How a cluster looked from one moment on, until the next such file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyRecord {
    /// [`TOPOLOGY_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Its id, unique in its repository; ids sort by time.
    pub id: String,
    /// When it was seen, by the clock of the machine that saw it.
    pub seen_at: Timestamp,
    /// Until when it was seen as the record before shows it, by the same clock; absent if nobody looked between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_before_until: Option<Timestamp>,
    /// Whether the servers ran in cluster mode.
    pub cluster_mode: bool,
    /// The cluster's current epoch.
    pub current_epoch: u64,
    /// The shards, in the order of their first slots.
    pub shards: Vec<ShardState>,
}

/// A shard as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// The slots it served.
    #[serde(with = "text")]
    pub slots: SlotSet,
    /// Slots that were being moved to it.
    #[serde(with = "text", default, skip_serializing_if = "SlotSet::is_empty")]
    pub importing: SlotSet,
    /// Slots that were being moved away from it.
    #[serde(with = "text", default, skip_serializing_if = "SlotSet::is_empty")]
    pub migrating: SlotSet,
    /// Those of them that were being moved to a node that served no slot: it is no shard, and its writes are in no log.
    #[serde(with = "text", default, skip_serializing_if = "SlotSet::is_empty")]
    pub unfollowed: SlotSet,
    /// Its primary's config epoch.
    pub config_epoch: u64,
    /// Its primary.
    pub primary: NodeRecord,
    /// Its replicas.
    pub replicas: Vec<NodeRecord>,
    /// Its replication history; absent if its primary could not be asked.
    #[serde(with = "optional_text", default, skip_serializing_if = "Option::is_none")]
    pub history: Option<ReplId>,
    /// The primary's offset when it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl TopologyRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, TOPOLOGY_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }

    /// Whether both show the same cluster: the same slots, nodes and histories. Offsets, epochs alone and the moment don't matter.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        let strip = |record: &Self| -> Vec<ShardState> {
            record.shards.iter().map(|shard| ShardState { offset: None, ..shard.clone() }).collect()
        };
        self.cluster_mode == other.cluster_mode && strip(self) == strip(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> TopologyRecord {
        TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: "20261125T000000.000Z-0000".to_owned(),
            seen_at: Timestamp::UNIX_EPOCH,
            as_before_until: None,
            cluster_mode: true,
            current_epoch: 7,
            shards: vec![ShardState {
                slots: "0-16383".parse().unwrap(),
                importing: SlotSet::default(),
                migrating: "5-6".parse().unwrap(),
                unfollowed: "6".parse().unwrap(),
                config_epoch: 1,
                primary: NodeRecord { id: None, addr: "[::1]:7000".parse().unwrap(), online: true },
                replicas: vec![],
                history: Some("b".repeat(40).parse().unwrap()),
                offset: Some(5),
            }],
        }
    }

    #[test]
    fn files_read_as_they_were_written() {
        assert_eq!(TopologyRecord::parse(&topology().render().unwrap()).unwrap(), topology());
        let history = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: "a".repeat(40).parse().unwrap(),
            parent: Some(Parent { history: "b".repeat(40).parse().unwrap(), fork: u64::MAX }),
            slots: "0-5".parse().unwrap(),
            source: "127.0.0.1:1".parse().unwrap(),
            first_seen_at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(HistoryRecord::parse(&history.render().unwrap()).unwrap(), history);
    }

    #[test]
    fn a_moved_slot_is_a_change_and_an_offset_is_not() {
        let mut later = topology();
        later.shards[0].offset = Some(99);
        later.seen_at = "2026-11-25T00:00:00Z".parse().unwrap();
        assert!(later.shows_the_same(&topology()));
        later.shards[0].migrating = SlotSet::default();
        assert!(!later.shows_the_same(&topology()));
    }
}
