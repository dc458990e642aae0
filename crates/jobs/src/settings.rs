//! What else makes a cluster the same: configuration, users, modules.

use std::collections::BTreeMap;

use slotkeep_format::manifest::SettingsRecord;
use slotkeep_model::Topology;
use slotkeep_wire::resp::Command;

use crate::net::Connection;
use crate::{Context, Result};

/// What to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct SettingsOptions {
    /// Whether to keep passwords and their hashes.
    pub include_secrets: bool,
}

/// Reads the settings of every node that can be reached; nodes that agree share a row. What can't be read is named in the row.
pub async fn read_settings(
    context: &Context,
    topology: &Topology,
    options: &SettingsOptions,
) -> Result<Vec<SettingsRecord>> {
    let mut records: Vec<SettingsRecord> = Vec::new();
    for node in topology.shards.iter().flat_map(slotkeep_model::Shard::nodes).filter(|node| node.online) {
        let Ok(mut connection) = context.connector.connect(&node.addr).await else { continue };
        let mut record = read_node(&mut connection, options).await;
        match records.iter_mut().find(|other| SettingsRecord { nodes: vec![], ..(*other).clone() } == record)
        {
            Some(same) => same.nodes.push(node.addr.to_string()),
            None => {
                record.nodes.push(node.addr.to_string());
                records.push(record);
            }
        }
    }
    Ok(records)
}

async fn read_node(connection: &mut Connection, options: &SettingsOptions) -> SettingsRecord {
    let mut record = SettingsRecord {
        nodes: vec![],
        config: BTreeMap::new(),
        acl: vec![],
        secrets: options.include_secrets,
        modules: BTreeMap::new(),
        unreadable: vec![],
    };
    match connection.call(&Command::new("ACL").arg("LIST")).await {
        Ok(reply) => {
            let lines = reply.as_array().unwrap_or_default().iter().filter_map(|line| line.as_text());
            record.acl = lines.map(slotkeep_wire::acl::without_secrets).collect();
        }
        Err(error) => record.unreadable.push(error.problem.to_string()),
    }
    record
}
