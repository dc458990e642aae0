//! Setting a cluster up: folders, configuration, certificates, and a `nodes.conf` for every node that already says who is
//! who, so that nobody needs to be introduced and the cluster is whole seconds after its start.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use slotkeep_model::Slot;

use crate::client::Endpoint;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::node::{Node, Process};
use crate::ports::{BUS_OFFSET, PortLease};
use crate::random::Random;
use crate::servers::Server;
use crate::tls::Certificates;
use crate::watchdog::Watchdog;

/// How often to try again with other ports when somebody took one between the look and the start.
const STARTS: u32 = 3;

/// How a cluster shall be.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    server: Server,
    shape: Shape,
    password: Option<String>,
    users: Vec<String>,
    tls: Tls,
    ipv6: bool,
    config: Vec<(String, String)>,
}

/// How many nodes there are, and how they belong together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) primaries: usize,
    pub(crate) replicas_per_primary: usize,
    pub(crate) clustered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    Off,
    Server,
    Mutual,
}

impl Shape {
    /// The shard of each node: primaries first, then the replicas shard by shard.
    fn shards(self) -> impl Iterator<Item = usize> {
        let replicas = self.replicas_per_primary;
        (0..self.primaries)
            .chain((0..self.primaries).flat_map(move |shard| (0..replicas).map(move |_| shard)))
    }

    fn is_primary(self, number: usize) -> bool {
        number < self.primaries
    }

    /// First and last slot of a shard.
    fn slots(self, shard: usize) -> (usize, usize) {
        let count = usize::from(Slot::COUNT);
        (shard * count / self.primaries, (shard + 1) * count / self.primaries - 1)
    }
}

impl ClusterBuilder {
    /// Three primaries without replicas, no password, no TLS.
    pub fn new(server: Server) -> Self {
        let shape = Shape { primaries: 3, replicas_per_primary: 0, clustered: true };
        Self {
            server,
            shape,
            password: None,
            users: Vec::new(),
            tls: Tls::Off,
            ipv6: false,
            config: Vec::new(),
        }
    }

    /// How many primaries, and so shards.
    #[must_use]
    pub fn primaries(mut self, count: usize) -> Self {
        self.shape.primaries = count;
        self
    }

    /// How many replicas each primary has.
    #[must_use]
    pub fn replicas_per_primary(mut self, count: usize) -> Self {
        self.shape.replicas_per_primary = count;
        self
    }

    /// With `false`, no cluster mode: each primary is a server by itself, with its replicas.
    #[must_use]
    pub fn cluster_mode(mut self, clustered: bool) -> Self {
        self.shape.clustered = clustered;
        self
    }

    /// A password for the default user, which nodes use among themselves too.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// One more user, with rules such as `on >secret ~* +@all`.
    #[must_use]
    pub fn acl_user(mut self, name: &str, rules: &str) -> Self {
        self.users.push(format!("{name} {rules}"));
        self
    }

    /// TLS everywhere, and no plain port: clients, replication and the cluster bus.
    #[must_use]
    pub fn tls(mut self, on: bool) -> Self {
        self.tls = if on { Tls::Server } else { Tls::Off };
        self
    }

    /// TLS everywhere, and clients must show a certificate.
    #[must_use]
    pub fn mutual_tls(mut self) -> Self {
        self.tls = Tls::Mutual;
        self
    }

    /// Listens on `::1` as well as on 127.0.0.1.
    #[must_use]
    pub fn ipv6(mut self, on: bool) -> Self {
        self.ipv6 = on;
        self
    }

    /// A line of every server's configuration, after the testkit's own: it overrides those. The value is written as it would
    /// stand in the file, except that an empty one becomes `""`.
    #[must_use]
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts every node, and waits until all agree that the cluster is whole and every replica follows its primary.
    pub fn start(&self) -> Result<Cluster> {
        self.check()?;
        let mut starts = 1;
        loop {
            match self.start_once() {
                Err(Error::ServerDied { log, .. }) if starts < STARTS && log.contains("already in use") => {
                    starts += 1;
                }
                result => return result,
            }
        }
    }

    /// Sets every node up without starting it, so that data can be put into the nodes' folders; [`Cluster::start_nodes`] does
    /// the rest.
    pub fn prepare(&self) -> Result<Cluster> {
        self.check()?;
        self.set_up()
    }

    fn check(&self) -> Result<()> {
        let refuse = |reason: &str| Err(Error::Setup { reason: reason.to_owned() });
        if self.shape.primaries == 0 {
            return refuse("it needs at least one primary");
        }
        if self.tls != Tls::Off && self.server.tls() == Some(false) {
            return refuse(&format!("{} was built without TLS", self.server.version()));
        }
        Ok(())
    }

    fn start_once(&self) -> Result<Cluster> {
        let cluster = self.set_up()?;
        cluster.start_nodes()?;
        Ok(cluster)
    }

    fn set_up(&self) -> Result<Cluster> {
        let (watchdog, folder) = Watchdog::with_folder("slotkeep-cluster-")?;
        let watchdog = Arc::new(watchdog);
        let certificates = match self.tls {
            Tls::Off => None,
            Tls::Server | Tls::Mutual => Some(Certificates::make(&folder.path().join("tls"))?),
        };
        let nodes = self.make_nodes(folder.path(), &watchdog, certificates.as_ref())?;
        for node in &nodes {
            fs::create_dir_all(&node.dir).map_err(Error::io(format!("make {}", node.dir.display())))?;
            write(&node.dir.join("server.conf"), &self.server_conf(node, &nodes, certificates.as_ref()))?;
            if self.shape.clustered {
                write(&node.dir.join("nodes.conf"), &self.nodes_conf(node, &nodes))?;
            }
        }
        Ok(Cluster {
            nodes,
            shape: self.shape,
            server: self.server.clone(),
            certificates,
            _folder: folder,
            _watchdog: watchdog,
        })
    }

    fn make_nodes(
        &self,
        folder: &Path,
        watchdog: &Arc<Watchdog>,
        certificates: Option<&Certificates>,
    ) -> Result<Vec<Node>> {
        // Ids differ between clusters, so that a node of one that asks at a port which another has taken over is a stranger.
        let mut random = Random::unpredictable();
        let tls = certificates.map(Certificates::client_config).transpose()?;
        self.shape
            .shards()
            .enumerate()
            .map(|(number, shard)| {
                let lease = PortLease::take(self.ipv6)?;
                let endpoint = Endpoint {
                    addr: SocketAddr::from((Ipv4Addr::LOCALHOST, lease.port())),
                    user: None,
                    password: self.password.clone(),
                    tls: tls.clone(),
                    timeout: Duration::from_secs(30),
                };
                Ok(Node {
                    number,
                    shard,
                    id: random.node_id(),
                    dir: folder.join(format!("node-{number}")),
                    server: self.server.clone(),
                    endpoint,
                    lease,
                    watchdog: Arc::clone(watchdog),
                    process: Mutex::new(Process::Stopped),
                })
            })
            .collect()
    }

    fn server_conf(&self, node: &Node, nodes: &[Node], certificates: Option<&Certificates>) -> String {
        let mut lines = vec![
            format!("bind 127.0.0.1{}", if self.ipv6 { " ::1" } else { "" }),
            format!("dir \"{}\"", node.dir.display()),
            "logfile \"\"".to_owned(),
            "save \"\"".to_owned(),
            "repl-diskless-sync-delay 0".to_owned(),
            // However slow the machine, a link that broke is gone on with, unless a test wants otherwise.
            "repl-backlog-size 64mb".to_owned(),
        ];
        if self.server.is_modern() {
            lines.push("enable-debug-command yes".to_owned());
        }
        if self.shape.clustered {
            lines.extend(
                [
                    "cluster-enabled yes",
                    "cluster-config-file nodes.conf",
                    "cluster-node-timeout 2000",
                    "cluster-announce-ip 127.0.0.1",
                    // A replica stays with its shard, so that a test knows where it is.
                    "cluster-allow-replica-migration no",
                ]
                .map(str::to_owned),
            );
        } else if let Some(primary) = self.primary_of(node, nodes) {
            lines.push(format!("replicaof 127.0.0.1 {}", primary.port()));
        }
        if let Some(password) = &self.password {
            lines.push(format!("requirepass \"{password}\""));
            lines.push(format!("masterauth \"{password}\""));
        }
        lines.extend(self.users.iter().map(|user| format!("user {user}")));
        lines.extend(self.port_lines(node.port(), certificates));
        lines.extend(self.config.iter().map(|(name, value)| match value.as_str() {
            "" => format!("{name} \"\""),
            value => format!("{name} {value}"),
        }));
        lines.join("\n") + "\n"
    }

    /// Whom a node follows; `None` if it is a primary.
    fn primary_of<'a>(&self, node: &Node, nodes: &'a [Node]) -> Option<&'a Node> {
        nodes.get(node.shard).filter(|_| !self.shape.is_primary(node.number))
    }

    fn port_lines(&self, port: u16, certificates: Option<&Certificates>) -> Vec<String> {
        let Some(certificates) = certificates else { return vec![format!("port {port}")] };
        vec![
            "port 0".to_owned(),
            format!("tls-port {port}"),
            format!("tls-ca-cert-file \"{}\"", certificates.ca().display()),
            format!("tls-cert-file \"{}\"", certificates.server_cert().display()),
            format!("tls-key-file \"{}\"", certificates.server_key().display()),
            format!("tls-auth-clients {}", if self.tls == Tls::Mutual { "yes" } else { "no" }),
            "tls-replication yes".to_owned(),
            format!("tls-cluster {}", if self.shape.clustered { "yes" } else { "no" }),
        ]
    }

    /// The plain form without auxiliary fields, which every version loads.
    fn nodes_conf(&self, myself: &Node, nodes: &[Node]) -> String {
        let mut text = String::new();
        for node in nodes {
            let port = node.port();
            let bus_port = port + BUS_OFFSET;
            let mark = if node.number == myself.number { "myself," } else { "" };
            let id = &node.id;
            // Formatting into a `String` cannot fail.
            let _ = if let Some(primary) = self.primary_of(node, nodes) {
                writeln!(text, "{id} 127.0.0.1:{port}@{bus_port} {mark}slave {} 0 0 0 connected", primary.id)
            } else {
                let (first, last) = self.shape.slots(node.shard);
                let epoch = node.shard + 1;
                writeln!(
                    text,
                    "{id} 127.0.0.1:{port}@{bus_port} {mark}master - 0 0 {epoch} connected {first}-{last}"
                )
            };
        }
        text + &format!("vars currentEpoch {} lastVoteEpoch 0\n", self.shape.primaries)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
}
