//! The cluster behind an address.

use std::time::Duration;

use futures::StreamExt;
use slotkeep_model::{Node, NodeAddr, ReplId, Role, ServerVersion, Shard, SlotSet, Topology};
use slotkeep_wire::info::{Info, InfoError, Replication};
use slotkeep_wire::resp::Command;
use slotkeep_wire::topology::{ClusterView, from_nodes, parse_shards};

use crate::net::{Connection, LinkError, LinkProblem};
use crate::{Context, Error, ErrorKind, Result};

/// A cluster as it was found.
#[derive(Clone, Debug)]
pub struct Discovery {
    topology: Topology,
    view: Option<ClusterView>,
    histories: Vec<ReplId>,
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

    /// Of a standalone server, which has no node id: the history that it is in, and the one before if it can still continue that.
    pub fn histories(&self) -> &[ReplId] {
        &self.histories
    }

    /// Whether the answering node knows of slots that are being moved.
    pub fn slots_are_moving(&self) -> bool {
        self.view.as_ref().is_some_and(|view| !view.migrating.is_empty() || !view.importing.is_empty())
    }
}

/// How often a cluster is asked for that is not there yet.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// How many nodes are asked at a time.
const QUESTIONS_IN_FLIGHT: usize = 16;

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
    /// Where it stands in its replication history.
    pub replication: Replication,
}

/// Finds the cluster as [`discover`] does, and asks again for as long as `patience` while no node answers, what answers is no cluster, or no slot is served
/// yet; a cluster that serves none even then is given as it is. `wait` is told why before the first pause.
pub async fn await_cluster(
    context: &Context,
    seeds: &[NodeAddr],
    patience: Duration,
    wait: impl FnOnce(&str),
) -> Result<Discovery> {
    let began_at = context.clock.elapsed();
    let mut wait = Some(wait);
    loop {
        let found = discover(context, seeds).await;
        let why = match &found {
            Ok(discovery) if discovery.topology().shards.is_empty() => {
                format!("{}: no slot is served yet", discovery.answered)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::NotACluster) => {
                error.to_string()
            }
            _ => return found,
        };
        let left = patience.saturating_sub(context.clock.elapsed().saturating_sub(began_at));
        if left.is_zero() {
            return found;
        }
        if let Some(wait) = wait.take() {
            wait(&why);
        }
        let pause = left.min(ASKED_EVERY);
        tokio::select! {
            () = context.clock.sleep(pause) => {}
            () = context.stop.cancelled() => return Err(Error::interrupted()),
        }
    }
}

/// Finds the cluster behind the first address that answers.
pub async fn discover(context: &Context, seeds: &[NodeAddr]) -> Result<Discovery> {
    let mut first_error: Option<Error> = None;
    for seed in seeds {
        let found = async {
            match discover_from(context, seed).await {
                Ok(discovery) => Ok(discovery),
                Err(error) => Err(explained(context, seed, error).await),
            }
        };
        match context.unless_stopped(found).await {
            Ok(discovery) => return Ok(discovery),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => first_error = Some(first_error.unwrap_or(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| Error::new(ErrorKind::Usage, "no address of the cluster was given")))
}

/// The error, or that the port wants TLS if that is why the connection broke.
async fn explained(context: &Context, seed: &NodeAddr, error: Error) -> Error {
    let may_be_tls = error.kind() == ErrorKind::Unreachable && !context.connector.is_tls();
    if may_be_tls && context.connector.speaks_tls(seed).await {
        return LinkError { node: seed.clone(), problem: LinkProblem::ServerSpeaksTls }.into();
    }
    error
}

async fn discover_from(context: &Context, seed: &NodeAddr) -> Result<Discovery> {
    let mut connection = context.connector.connect(seed).await?;
    let info = read_info(&mut connection).await?;
    let server = version_of(&info, seed)?;
    let answered = seed.clone();
    if cluster_enabled(&info, seed)? {
        let view = read_view(context, &mut connection).await?;
        let topology = view.topology.clone();
        return Ok(Discovery { topology, view: Some(view), histories: Vec::new(), server, answered });
    }
    let replication = info.replication().map_err(|error| protocol(seed, &error.to_string()))?;
    let histories = std::iter::once(replication.replid.clone()).chain(replication.previous_replid.clone());
    let histories = histories.collect();
    let topology = Box::pin(standalone(context, seed, replication)).await?;
    Ok(Discovery { topology, view: None, histories, server, answered })
}

pub(crate) async fn read_view(context: &Context, connection: &mut Connection) -> Result<ClusterView> {
    let seed = connection.node().clone();
    let reply = connection.call(&Command::new("CLUSTER").arg("NODES")).await?;
    let text = reply.as_text().ok_or_else(|| protocol(&seed, "CLUSTER NODES gives no text"))?;
    let mut view = from_nodes(text, &seed, context.connector.is_tls())
        .map_err(|error| protocol(&seed, &error.to_string()))?;
    if context.connector.is_tls() {
        // Servers before 7.0 have no CLUSTER SHARDS; they tell their TLS ports in CLUSTER NODES.
        if let Ok(reply) = connection.call(&Command::new("CLUSTER").arg("SHARDS")).await {
            let shards = parse_shards(&reply).map_err(|error| protocol(&seed, &error.to_string()))?;
            view.amend_ports(&shards);
        }
    }
    Ok(view)
}

/// A standalone server, its primary if it is a replica, and its replicas: a cluster of one shard.
async fn standalone(context: &Context, seed: &NodeAddr, replication: Replication) -> Result<Topology> {
    let primary = replication.link.map_or_else(|| seed.clone(), |link| link.primary);
    let known_replicas = if primary == *seed {
        replication.replicas
    } else {
        match context.connector.connect(&primary).await {
            Ok(mut connection) => replication_of(&mut connection).await?.replicas,
            Err(_) => vec![],
        }
    };
    let node = |addr: NodeAddr, role, online| Node { id: None, addr, role, online };
    let mut replicas: Vec<Node> = known_replicas
        .into_iter()
        // A port of 0 is a replica that did not tell its own: another backup, say.
        .filter(|replica| replica.port != 0)
        .map(|replica| {
            node(NodeAddr::new(replica.ip, replica.port), Role::Replica, replica.state == "online")
        })
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
    let odd = |error: InfoError| protocol(addr, &error.to_string());
    let replication = info.replication().map_err(odd)?;
    let link_up = replication.link.as_ref().is_none_or(|link| link.up && !link.sync_in_progress);
    Ok(NodeReport {
        server: version_of(&info, addr)?,
        role: replication.role,
        loading: info.persistence().map_err(odd)?.loading,
        link_up,
        offset: replication.offset.0,
        keys: keys_of(&info).map_err(odd)?,
        replication,
    })
}

/// The primaries that give slots away or take some over. `CLUSTER NODES` tells only the answering node's own moves, so each is
/// asked; those that do not answer are passed over.
pub async fn nodes_moving_slots(context: &Context, topology: &Topology) -> Vec<NodeAddr> {
    if !topology.cluster_mode {
        return Vec::new();
    }
    let primaries: Vec<NodeAddr> = topology
        .shards
        .iter()
        .filter(|shard| shard.primary.online)
        .map(|shard| shard.primary.addr.clone())
        .collect();
    let asked = futures::stream::iter(primaries).map(|addr| async move {
        let mut connection = context.connector.connect(&addr).await.ok()?;
        let view = read_view(context, &mut connection).await.ok()?;
        (!view.migrating.is_empty() || !view.importing.is_empty()).then_some(addr)
    });
    asked.buffered(QUESTIONS_IN_FLIGHT).filter_map(std::future::ready).collect().await
}

fn cluster_enabled(info: &Info, node: &NodeAddr) -> Result<bool> {
    info.cluster_enabled().map_err(|error| protocol(node, &error.to_string()))
}

/// Where a node stands in its replication history.
pub(crate) async fn replication_at(context: &Context, addr: &NodeAddr) -> Result<Replication> {
    let mut connection = context.connector.connect(addr).await?;
    replication_of(&mut connection).await
}

pub(crate) async fn replication_of(connection: &mut Connection) -> Result<Replication> {
    let info = read_info(connection).await?;
    info.replication().map_err(|error| protocol(connection.node(), &error.to_string()))
}

/// The number of keys in all databases.
pub(crate) fn keys_of(info: &Info) -> std::result::Result<u64, InfoError> {
    Ok(info.keyspace()?.values().fold(0, |keys, database| keys.saturating_add(database.keys)))
}

/// The node's `INFO`.
pub async fn read_info(connection: &mut Connection) -> Result<Info> {
    let reply = connection.call(&Command::new("INFO")).await?;
    match reply.as_text() {
        Some(text) => Ok(Info::parse(text)),
        // A server that echoes sends back an array: the command itself.
        None => {
            let problem = LinkProblem::NotRedis("it answers INFO without a text".to_owned());
            Err(LinkError { node: connection.node().clone(), problem }.into())
        }
    }
}

/// What the node runs.
pub fn version_of(info: &Info, addr: &NodeAddr) -> Result<ServerVersion> {
    info.server_version().ok_or_else(|| protocol(addr, "INFO names no version"))
}

fn protocol(node: &NodeAddr, words: &str) -> Error {
    LinkError { node: node.clone(), problem: LinkProblem::Protocol(words.to_owned()) }.into()
}
