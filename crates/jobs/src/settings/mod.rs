//! What else makes a cluster the same: configuration, users, modules.
//!
//! Invariants: without [`SettingsOptions::include_secrets`] no password and no hash of one leaves this module; nothing that can't
//! be read is an error, all of it is named in the record.

mod defaults;
mod names;

use std::collections::BTreeMap;

use futures::StreamExt;
use slotkeep_format::manifest::SettingsRecord;
use slotkeep_model::{NodeAddr, ServerVersion, Shard, Topology};
use slotkeep_wire::resp::{Command, Value};

pub use defaults::Defaults;
pub use names::{all_names, is_local, is_secret, newer};

use crate::discover::{read_info, version_of};
use crate::net::{Connection, LinkError, LinkProblem};
use crate::{Context, Result};

/// How many nodes are asked at a time.
const QUESTIONS_IN_FLIGHT: usize = 16;

/// What to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct SettingsOptions {
    /// Whether to keep passwords and their hashes.
    pub include_secrets: bool,
}

/// Reads the settings of every node that the cluster takes for alive; nodes that agree share a row. What can't be read is named in
/// the row.
pub async fn read_settings(
    context: &Context,
    topology: &Topology,
    options: &SettingsOptions,
) -> Result<Vec<SettingsRecord>> {
    let nodes: Vec<NodeAddr> = topology
        .shards
        .iter()
        .flat_map(Shard::nodes)
        .filter(|node| node.online)
        .map(|node| node.addr.clone())
        .collect();
    let reads = futures::stream::iter(nodes).map(async |node| {
        let record = read_node(context, &node, options).await;
        (node, record)
    });
    let mut reads = reads.buffered(QUESTIONS_IN_FLIGHT);
    let mut records: Vec<SettingsRecord> = Vec::new();
    while let Some((node, mut record)) = reads.next().await {
        let agrees =
            |other: &&mut SettingsRecord| SettingsRecord { nodes: vec![], ..(**other).clone() } == record;
        match records.iter_mut().find(agrees) {
            Some(same) => same.nodes.push(node.to_string()),
            None => {
                record.nodes.push(node.to_string());
                records.push(record);
            }
        }
    }
    Ok(records)
}

async fn read_node(context: &Context, node: &NodeAddr, options: &SettingsOptions) -> SettingsRecord {
    let mut record = SettingsRecord {
        nodes: vec![],
        config: BTreeMap::new(),
        acl: vec![],
        secrets: options.include_secrets,
        modules: BTreeMap::new(),
        unreadable: vec![],
    };
    let connected = async {
        let mut connection = context.connector.connect(node).await?;
        let info = read_info(&mut connection).await?;
        Ok::<_, crate::Error>((version_of(&info, node)?, connection))
    };
    match connected.await {
        Ok((server, connection)) => {
            Reader { connection, server, include_secrets: options.include_secrets, record: &mut record }
                .read()
                .await;
        }
        Err(error) => record.unreadable.push(error.to_string()),
    }
    record
}

/// Reads one node.
struct Reader<'a> {
    connection: Connection,
    server: ServerVersion,
    include_secrets: bool,
    record: &'a mut SettingsRecord,
}

impl Reader<'_> {
    async fn read(mut self) {
        if let Some(reply) = self.ask("CONFIG", &["GET", "*"]).await {
            self.take_config(&reply);
        }
        if let Some(reply) = self.ask("ACL", &["LIST"]).await {
            self.take_users(&reply);
        }
        if let Some(reply) = self.ask("MODULE", &["LIST"]).await {
            self.take_modules(&reply);
        }
    }

    async fn ask(&mut self, name: &str, arguments: &[&str]) -> Option<Value> {
        let command = arguments.iter().fold(Command::new(name), Command::arg);
        match self.connection.call(&command).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                let whole =
                    std::iter::once(name).chain(arguments.iter().copied()).filter(|word| *word != "*");
                self.missing(&whole.collect::<Vec<_>>().join(" "), &why(&error));
                None
            }
        }
    }

    fn missing(&mut self, what: &str, why: &str) {
        self.record.unreadable.push(format!("{what}: {why}"));
    }

    fn take_config(&mut self, reply: &Value) {
        let Some(pairs) = reply.pairs() else {
            return self.missing("CONFIG GET", "the answer makes no sense");
        };
        let all: BTreeMap<&str, Option<&str>> =
            pairs.into_iter().filter_map(|(name, value)| Some((name.as_text()?, value.as_text()))).collect();
        let defaults = Defaults::of(self.server);
        for (name, value) in &all {
            let is_alias = newer(name) != *name && all.contains_key(newer(name));
            if is_alias || is_local(name) || (is_secret(name) && !self.include_secrets) {
                continue;
            }
            match value {
                Some(value) if defaults.get(name) == Some(value) => {}
                // An unset secret is nothing to keep, known default or not.
                Some("") if is_secret(name) => {}
                Some(value) => drop(self.record.config.insert((*name).to_owned(), (*value).to_owned())),
                None => self.missing(&format!("CONFIG GET {name}"), "its value is not text"),
            }
        }
    }

    fn take_users(&mut self, reply: &Value) {
        let Some(lines) = reply.as_array() else {
            return self.missing("ACL LIST", "the answer makes no sense");
        };
        for line in lines {
            match line.as_text() {
                Some(line) if self.include_secrets => self.record.acl.push(line.to_owned()),
                Some(line) => self.record.acl.push(slotkeep_wire::acl::without_secrets(line)),
                None => self.missing("ACL LIST", "the rules of a user are not text"),
            }
        }
        // Servers list users in the order of their creation in one version and of their names in another.
        self.record.acl.sort();
    }

    fn take_modules(&mut self, reply: &Value) {
        let Some(modules) = reply.as_array() else {
            return self.missing("MODULE LIST", "the answer makes no sense");
        };
        for module in modules.iter().filter(|module| !is_part_of_the_server(module)) {
            match (module.get("name").and_then(Value::as_text), module.get("ver").and_then(Value::as_u64)) {
                (Some(name), Some(version)) => drop(self.record.modules.insert(name.to_owned(), version)),
                _ => self.missing("MODULE LIST", "a module has no name or no version"),
            }
        }
    }
}

/// Whether a module came with the server itself (Valkey 9.1: `lua`, Redis 8: `vectorset`): such a one has no file. Redis 6.2 does
/// not tell files, and has no such modules.
fn is_part_of_the_server(module: &Value) -> bool {
    module.get("path").and_then(Value::as_text).is_some_and(|path| !path.contains('/'))
}

fn why(error: &LinkError) -> String {
    match &error.problem {
        LinkProblem::NoPermission { .. } => "the user may not run it".to_owned(),
        LinkProblem::UnknownCommand { .. } => "the server has it renamed or blocked".to_owned(),
        problem => problem.to_string(),
    }
}
