//! Which nodes were kept from taking writes, and what has to be put back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use slotkeep_model::{NodeAddr, NodeId};

use crate::json::{optional_text, parse_versioned, render, text};
use crate::manifest::ManifestError;

/// The newest format of fence records that this code writes and reads.
pub const FENCE_VERSION: u32 = 1;

/// What a node had set before it was fenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedNode {
    /// Its address.
    #[serde(with = "text")]
    pub addr: NodeAddr,
    /// Its id; a standalone server has none.
    #[serde(with = "optional_text", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NodeId>,
    /// `min-replicas-to-write`, as it was.
    pub min_replicas_to_write: String,
    /// `min-replicas-max-lag`, as it was.
    pub min_replicas_max_lag: String,
    /// Whether the fence was written to its configuration file too.
    pub persisted: bool,
}

/// A fence: written before anything is set, so that it can always be undone exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    /// [`FENCE_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Its id; ids sort by time.
    pub id: String,
    /// When it was written, by the clock of the machine that wrote it.
    pub at: Timestamp,
    /// What has to be put back. Empty once everything has been.
    pub nodes: Vec<FencedNode>,
    /// Nodes that could not be reached, or refused: they may take writes when they are back.
    pub open: Vec<String>,
}

impl FenceRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, FENCE_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }

    /// What that node had set, by its id if it has one, else by its address.
    pub fn node(&self, id: Option<&NodeId>, addr: &NodeAddr) -> Option<&FencedNode> {
        self.nodes.iter().find(|node| if id.is_some() { node.id.as_ref() == id } else { node.addr == *addr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_it_was_written_and_finds_nodes_by_id() {
        let id: NodeId = "a".repeat(40).parse().unwrap();
        let node = FencedNode {
            addr: "127.0.0.1:7000".parse().unwrap(),
            id: Some(id.clone()),
            min_replicas_to_write: "1".to_owned(),
            min_replicas_max_lag: "10".to_owned(),
            persisted: false,
        };
        let record = FenceRecord {
            format_version: FENCE_VERSION,
            id: "x".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            nodes: vec![node],
            open: vec!["127.0.0.1:7001".to_owned()],
        };
        assert_eq!(FenceRecord::parse(&record.render().unwrap()).unwrap(), record);
        assert!(record.node(Some(&id), &"10.0.0.9:1".parse().unwrap()).is_some());
        assert!(record.node(None, &"127.0.0.1:7000".parse().unwrap()).is_some());
        assert!(record.node(None, &"127.0.0.1:7001".parse().unwrap()).is_none());
    }
}
