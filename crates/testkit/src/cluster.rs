//! A running cluster, and what can happen to it as a whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use slotkeep_model::Slot;
use tempfile::TempDir;

use crate::client::{Client, field_of};
use crate::cluster_client::ClusterClient;
use crate::deadline::{NotYet, wait_for};
use crate::error::{Error, Result};
use crate::node::{LOOK_TIMEOUT, Node};
use crate::servers::Server;
use crate::setup::Shape;
use crate::tls::Certificates;
use crate::watchdog::Watchdog;

/// How long a cluster may take to agree: an election needs several node timeouts, and this machine may be busy.
const AGREE_LIMIT: Duration = Duration::from_mins(1);

/// How long slots may take to move.
const MOVE_LIMIT: Duration = Duration::from_mins(1);

/// How long to wait for one attempt at a failover: a server gives up after five seconds (`CLUSTER_MF_TIMEOUT`).
const FAILOVER_ATTEMPT: Duration = Duration::from_secs(8);
const FAILOVER_ATTEMPTS: u32 = 4;

/// How a replica takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverMode {
    /// `CLUSTER FAILOVER`: with the primary's help, no write is lost. The primary must be alive.
    Graceful,
    /// `CLUSTER FAILOVER FORCE`: without the primary, by a vote.
    Force,
    /// `CLUSTER FAILOVER TAKEOVER`: without anybody.
    Takeover,
}

/// A running cluster. When it is dropped, its servers are killed and its folder is removed.
#[derive(Debug)]
pub struct Cluster {
    // Order matters: the folder goes when no server writes to it any more, and the watchdog last.
    pub(crate) nodes: Vec<Node>,
    pub(crate) shape: Shape,
    pub(crate) server: Server,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) _folder: TempDir,
    pub(crate) _watchdog: Arc<Watchdog>,
}

impl Cluster {
    /// Every node: the primaries at the start, then the replicas of the first shard, and so on.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that number.
    pub fn node(&self, number: usize) -> Result<&Node> {
        self.nodes.get(number).ok_or_else(|| Error::Setup { reason: format!("there is no node {number}") })
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shape.primaries
    }

    /// The server that every node runs.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whether it is a cluster, not servers by themselves.
    pub fn is_clustered(&self) -> bool {
        self.shape.clustered
    }

    /// The certificates, if it speaks TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The certificate of the authority that signed its servers', if it speaks TLS.
    pub fn ca(&self) -> Option<PathBuf> {
        self.certificates.as_ref().map(Certificates::ca)
    }

    /// A client that follows keys to their nodes, as the default user.
    pub fn client(&self) -> Result<ClusterClient> {
        ClusterClient::connect(self.nodes.iter().map(|node| node.endpoint().clone()).collect())
    }

    /// The nodes of a shard, whatever their roles are.
    pub fn members(&self, shard: usize) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.shard == shard)
    }

    /// The shard's primary: of the running nodes that call themselves one, the one with the newest configuration.
    pub fn primary(&self, shard: usize) -> Result<&Node> {
        let mut newest = None;
        for node in self.members(shard).filter(|node| node.is_running()) {
            let epoch = self.epoch_as_primary(node)?;
            if epoch > newest.map(|(epoch, _)| epoch) {
                newest = epoch.map(|epoch| (epoch, node));
            }
        }
        newest
            .map(|(_, node)| node)
            .ok_or_else(|| Error::Setup { reason: format!("shard {shard} has no primary that runs") })
    }

    /// The shard's replicas that run.
    pub fn replicas(&self, shard: usize) -> Result<Vec<&Node>> {
        let mut replicas = Vec::new();
        for node in self.members(shard).filter(|node| node.is_running()) {
            if field_of(&look_at(node)?.info("replication")?, "role").as_deref() == Some("slave") {
                replicas.push(node);
            }
        }
        Ok(replicas)
    }

    /// Starts every node that is stopped, and waits as [`Self::wait_ok`] does.
    pub fn start_nodes(&self) -> Result<()> {
        let stopped: Vec<&Node> = self.nodes.iter().filter(|node| node.pid().is_none()).collect();
        for node in &stopped {
            node.spawn()?;
        }
        for node in &stopped {
            node.wait_ready()?;
        }
        self.wait_ok()
    }

    /// Waits until every running node says that the cluster is whole, all agree who serves which slot, and every running
    /// replica follows its primary. Nodes that are stopped or paused are not asked.
    pub fn wait_ok(&self) -> Result<()> {
        wait_for(AGREE_LIMIT, "the cluster to be whole", || {
            // A replica calls its link up a moment before its primary does, so primaries are looked at when all replicas say so: one
            // that was looked at earlier may not have known of a replica at all.
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                node.check_alive()?;
                check_link(node, &mut look_at(node)?)?;
            }
            let mut first_view: Option<Vec<String>> = None;
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                let mut client = look_at(node)?;
                check_replicas(node, &mut client)?;
                if !self.shape.clustered {
                    continue;
                }
                check_state(node, &mut client)?;
                let view = owners(&mut client)?;
                if *first_view.get_or_insert_with(|| view.clone()) != view {
                    return Err(NotYet::because(format!("node {} sees other owners of slots", node.number)));
                }
            }
            Ok(())
        })
    }

    /// Makes a replica of the shard its primary, gracefully if the old one runs, else by a takeover. Returns the new primary
    /// when all agree.
    pub fn failover(&self, shard: usize) -> Result<&Node> {
        let mode = match self.primary(shard) {
            Ok(_) => FailoverMode::Graceful,
            Err(_) => FailoverMode::Takeover,
        };
        self.failover_by(shard, mode)
    }

    /// [`Self::failover`] of that kind.
    pub fn failover_by(&self, shard: usize, mode: FailoverMode) -> Result<&Node> {
        let node = self
            .replicas(shard)?
            .into_iter()
            .next()
            .ok_or_else(|| Error::Setup { reason: format!("shard {shard} has no replica that runs") })?;
        let command: &[&str] = match mode {
            FailoverMode::Graceful => &["CLUSTER", "FAILOVER"],
            FailoverMode::Force => &["CLUSTER", "FAILOVER", "FORCE"],
            FailoverMode::Takeover => &["CLUSTER", "FAILOVER", "TAKEOVER"],
        };
        let mut attempt = 1;
        loop {
            // Voters may refuse for a while after an earlier election, and the server then says nothing: try again.
            let refused = look_at(node)?.command(command).err();
            let taken = wait_for(FAILOVER_ATTEMPT, &format!("node {} to take over", node.number), || {
                match self.epoch_as_primary(node)? {
                    Some(_) => Ok(()),
                    None => Err(NotYet::because("it is a replica")),
                }
            });
            match taken {
                Ok(()) => break,
                Err(error) if attempt >= FAILOVER_ATTEMPTS => return Err(refused.unwrap_or(error)),
                Err(_) => attempt += 1,
            }
        }
        self.wait_ok()?;
        Ok(node)
    }

    /// Moves a slot with its keys from one shard to another, key by key (`MIGRATE`), as every version can.
    pub fn move_slot(&self, slot: Slot, from: usize, to: usize) -> Result<()> {
        let (source, target) = (self.primary(from)?, self.primary(to)?);
        let number = slot.to_string();
        let (mut at_source, mut at_target) = (source.client()?, target.client()?);
        at_target.command(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &source.id])?;
        at_source.command(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &target.id])?;
        loop {
            let keys = at_source.command(&["CLUSTER", "GETKEYSINSLOT", &number, "100"])?;
            if keys.array()?.is_empty() {
                break;
            }
            let port = target.port().to_string();
            let mut migrate: Vec<&[u8]> =
                vec![b"MIGRATE", b"127.0.0.1", port.as_bytes(), b"", b"0", b"30000"];
            if let Some(password) = &target.endpoint.password {
                migrate.extend([&b"AUTH"[..], password.as_bytes()]);
            }
            migrate.push(b"KEYS");
            migrate.extend(keys.array()?.iter().filter_map(|key| key.bytes()));
            at_source.command(&migrate)?;
        }
        // The target first: were the source to go first and the target to fail, the slot would have no owner.
        at_target.command(&["CLUSTER", "SETSLOT", &number, "NODE", &target.id])?;
        at_source.command(&["CLUSTER", "SETSLOT", &number, "NODE", &target.id])?;
        for shard in (0..self.shards()).filter(|shard| ![from, to].contains(shard)) {
            self.primary(shard)?.client()?.command(&["CLUSTER", "SETSLOT", &number, "NODE", &target.id])?;
        }
        self.wait_ok()
    }

    /// Moves a range of slots with their keys at once (`CLUSTER MIGRATESLOTS`), as Valkey 9.0 and later can, while clients write.
    pub fn move_slots_at_once(&self, first: u16, last: u16, from: usize, to: usize) -> Result<()> {
        let (source, target) = (self.primary(from)?, self.primary(to)?);
        let (low, high) = (first.to_string(), last.to_string());
        let mut at_source = source.client()?;
        at_source.command(&["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &low, &high, "NODE", &target.id])?;
        let moved = |client: &mut Client| -> Result<bool> {
            let nodes = client.command(&["CLUSTER", "NODES"])?.text()?;
            let ranges = nodes.lines().filter(|line| line.starts_with(&target.id));
            let number = |text: &str| text.parse::<u16>().ok();
            Ok(ranges.flat_map(|line| line.split(' ').skip(8)).any(|range| {
                let (low, high) = range.split_once('-').unwrap_or((range, range));
                number(low).is_some_and(|low| low <= first) && number(high).is_some_and(|high| high >= last)
            }))
        };
        wait_for(MOVE_LIMIT, "slots to move", || match moved(&mut at_source) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotYet::because("the target does not own them")),
            Err(error) => Err(NotYet::Never(error)),
        })?;
        self.wait_ok()
    }

    /// The node's configuration epoch (0 outside a cluster) if it is a primary.
    fn epoch_as_primary(&self, node: &Node) -> Result<Option<u64>> {
        let mut client = look_at(node)?;
        if field_of(&client.info("replication")?, "role").as_deref() != Some("master") {
            return Ok(None);
        }
        if !self.shape.clustered {
            return Ok(Some(0));
        }
        let info = client.command(&["CLUSTER", "INFO"])?.text()?;
        Ok(field_of(&info, "cluster_my_epoch").and_then(|epoch| epoch.parse().ok()))
    }
}

impl Drop for Cluster {
    /// Kills all servers first and reaps them then, so that none sees the others go one by one. The watchdog takes care of
    /// one that could not be killed.
    fn drop(&mut self) {
        for node in &self.nodes {
            let _ = node.signal_group();
        }
        for node in &self.nodes {
            let _ = node.reap();
        }
    }
}

fn look_at(node: &Node) -> Result<Client> {
    Client::connect(&node.endpoint.with_timeout(LOOK_TIMEOUT))
}

/// Whether a replica follows its primary; a primary follows nobody.
fn check_link(node: &Node, client: &mut Client) -> Result<(), NotYet> {
    let info = client.info("replication")?;
    if field_of(&info, "master_link_status").is_none_or(|status| status == "up") {
        return Ok(());
    }
    Err(NotYet::because(format!("replica {} does not follow its primary", node.number)))
}

/// Whether a node calls all its replicas online. Readers that announce no port are not the cluster's replicas.
fn check_replicas(node: &Node, client: &mut Client) -> Result<(), NotYet> {
    let info = client.info("replication")?;
    let attaching = |line: &str| {
        line.starts_with("slave")
            && line.contains(",state=")
            && !line.contains(",state=online,")
            && !line.contains(",port=0,")
    };
    if info.lines().any(attaching) {
        return Err(NotYet::because(format!("primary {} does not feed all its replicas yet", node.number)));
    }
    Ok(())
}

fn check_state(node: &Node, client: &mut Client) -> Result<(), NotYet> {
    let info = client.command(&["CLUSTER", "INFO"])?.text()?;
    let is = |field: &str, wanted: &str| field_of(&info, field).as_deref() == Some(wanted);
    if is("cluster_state", "ok") && is("cluster_slots_ok", &Slot::COUNT.to_string()) {
        Ok(())
    } else {
        Err(NotYet::because(format!("node {} does not call the cluster ok", node.number)))
    }
}

/// Who serves what, as a node sees it: a line for each node that owns slots, in order of ids.
fn owners(client: &mut Client) -> Result<Vec<String>> {
    let text = client.command(&["CLUSTER", "NODES"])?.text()?;
    let mut owners: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let id = fields.next()?;
            let slots: Vec<&str> = fields.skip(7).filter(|slots| !slots.starts_with('[')).collect();
            (!slots.is_empty()).then(|| format!("{id} {}", slots.join(" ")))
        })
        .collect();
    owners.sort_unstable();
    Ok(owners)
}
