//! The cluster behind an address.

use slotkeep_model::{Node, NodeAddr, Role, ServerVersion, Shard, SlotSet, Topology};
use slotkeep_wire::info::Info;
use slotkeep_wire::resp::Command;
use slotkeep_wire::topology::ClusterView;

use crate::backup::keys_of;
use crate::net::{Connection, LinkError, LinkProblem};
use crate::{Context, Error, ErrorKind, Result};

/// A cluster as it was found.
#[derive(Clone, Debug)]
pub struct Discovery {
    topology: Topology,
    view: Option<ClusterView>,
    /// What the node that answered runs.
    pub server: ServerVersion,
    /// The node that answered.
    pub answered: NodeAddr,
}

impl Discovery {
    /// The cluster's shape.
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// What `CLUSTER NODES` told; nothing for a standalone server.
    pub const fn view(&self) -> Option<&ClusterView> {
        self.view.as_ref()
    }

    /// Whether the answering node knows of slots that are being moved.
    pub fn slots_are_moving(&self) -> bool {
        self.view.as_ref().is_some_and(|view| !view.migrating.is_empty() || !view.importing.is_empty())
    }
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// What it runs.
    pub server: ServerVersion,
    /// What it is.
    pub role: Role,
    /// Whether it loads its dataset.
    pub loading: bool,
    /// Whether a replica's link is up; true for a primary.
    pub link_up: bool,
    /// Its replication offset.
    pub offset: u64,
    /// How many keys it holds, in all databases.
    pub keys: u64,
}

/// Finds the cluster behind the first address that answers.
pub async fn discover(context: &Context, seeds: &[NodeAddr]) -> Result<Discovery> {
    let mut first_error: Option<Error> = None;
    for seed in seeds {
        match discover_from(context, seed).await {
            Ok(discovery) => return Ok(discovery),
            Err(error) => first_error = Some(first_error.unwrap_or(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| Error::new(ErrorKind::Usage, "no address of the cluster was given")))
}

async fn discover_from(context: &Context, seed: &NodeAddr) -> Result<Discovery> {
    let mut connection = context.connector.connect(seed).await?;
    let info = read_info(&mut connection).await?;
    let server = version_of(&info, seed)?;
    let (topology, view) = if info.cluster_enabled() {
        let view = read_view(context, &mut connection).await?;
        (view.topology.clone(), Some(view))
    } else {
        (standalone(context, seed, &info).await?, None)
    };
    Ok(Discovery { topology, view, server, answered: seed.clone() })
}

async fn read_view(context: &Context, connection: &mut Connection) -> Result<ClusterView> {
    let seed = connection.node().clone();
    let reply = connection.call(&Command::new("CLUSTER").arg("NODES")).await?;
    let text = reply.as_text().ok_or_else(|| protocol(&seed, "CLUSTER NODES gives no text"))?;
    let mut view = slotkeep_wire::topology::from_nodes(text, &seed, context.connector.is_tls())
        .map_err(|error| protocol(&seed, &error.to_string()))?;
    if context.connector.is_tls() {
        // Servers before 7.0 have no CLUSTER SHARDS; they tell their TLS ports in CLUSTER NODES.
        if let Ok(shards) = connection.call(&Command::new("CLUSTER").arg("SHARDS")).await {
            view.amend_ports(&shards, true);
        }
    }
    Ok(view)
}

/// A standalone server, its primary if it is a replica, and its replicas: a cluster of one shard.
async fn standalone(context: &Context, seed: &NodeAddr, info: &Info) -> Result<Topology> {
    let replication = info.replication();
    let primary = match (replication.role, &replication.primary) {
        (Role::Replica, Some(primary)) => primary.clone(),
        _ => seed.clone(),
    };
    let known_replicas = if primary == *seed {
        replication.replicas
    } else {
        match context.connector.connect(&primary).await {
            Ok(mut connection) => read_info(&mut connection).await?.replication().replicas,
            Err(_) => vec![],
        }
    };
    let node = |addr: NodeAddr, role, online| Node { id: None, addr, role, online };
    let mut replicas: Vec<Node> = known_replicas
        .into_iter()
        // A port of 0 is a replica that did not tell its own: another backup, say.
        .filter(|replica| replica.addr.port() != 0)
        .map(|replica| node(replica.addr, Role::Replica, replica.online))
        .collect();
    if primary != *seed && !replicas.iter().any(|replica| replica.addr == *seed) {
        replicas.push(node(seed.clone(), Role::Replica, true));
    }
    let shard = Shard {
        slots: SlotSet::full(),
        config_epoch: 0,
        primary: node(primary, Role::Primary, true),
        replicas,
    };
    Ok(Topology { cluster_mode: false, current_epoch: 0, shards: vec![shard] })
}

/// What a node says of itself.
pub async fn node_report(context: &Context, addr: &NodeAddr) -> Result<NodeReport> {
    let mut connection = context.connector.connect(addr).await?;
    let info = read_info(&mut connection).await?;
    let replication = info.replication();
    Ok(NodeReport {
        server: version_of(&info, addr)?,
        role: replication.role,
        loading: info.persistence().loading,
        link_up: replication.role == Role::Primary || (replication.link_up && !replication.sync_in_progress),
        offset: replication.offset.0,
        keys: keys_of(&info),
    })
}

/// The node's `INFO`.
pub async fn read_info(connection: &mut Connection) -> Result<Info> {
    let reply = connection.call(&Command::new("INFO")).await?;
    match reply.as_text() {
        Some(text) => Ok(Info::parse(text)),
        None => Err(protocol(connection.node(), "INFO gives no text")),
    }
}

/// What the node runs.
pub fn version_of(info: &Info, addr: &NodeAddr) -> Result<ServerVersion> {
    info.server_version().ok_or_else(|| protocol(addr, "INFO names no version"))
}

fn protocol(node: &NodeAddr, words: &str) -> Error {
    LinkError { node: node.clone(), problem: LinkProblem::Protocol(words.to_owned()) }.into()
}
