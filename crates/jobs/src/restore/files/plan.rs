//! What is going to be written where. Nothing is touched yet; every refusal that can be made beforehand is made here.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{NodeRecord, RoleRecord, SettingsRecord, ShardRecord};
use slotkeep_model::{NodeAddr, NodeId, ServerVersion, SlotSet};
use slotkeep_wire::nodes_conf::{ConfNode, ConfRole, NodesConf};
use slotkeep_wire::replica::Credentials;

use super::assign::ShardAddrs;
use super::conf::{self, Place, Recorded, TlsFiles, USERS_FILE};
use super::dataset::{DatasetPlan, Primary, moves};
use super::join::{Followed, Joining};
use super::led::LedPrimary;
use super::place::{bus_port, free_folder, place_nodes, resolve};
use super::users::{Users, UsersPolicy, users};
use crate::log::point::{Point, ShardPoint};
use crate::ports::{Rng, random_hex};
use crate::restore::{check_applies, check_complete, check_loads};
use crate::{Context, Error, ErrorKind, Result};

/// What to restore, and how.
#[derive(Clone, Default)]
pub struct FilesOptions {
    /// Where the nodes' folders go; it must not exist, or be empty.
    pub folder: PathBuf,
    /// The addresses of the new nodes.
    pub nodes: Vec<NodeAddr>,
    /// Leave the replicas out: as many addresses as primaries.
    pub no_replicas: bool,
    /// Which server is going to load the files; the newest one recorded if not given.
    pub target: Option<ServerVersion>,
    /// Whether slots may stay uncovered.
    pub allow_partial: bool,
    /// Users and passwords.
    pub users: UsersPolicy,
    /// Where each shard's primary is to follow us, in the order of the backup's shards; without any, they find their datasets in
    /// their folders. For clusters only.
    pub links: Vec<SocketAddr>,
    /// The cluster that the new nodes are going to join; none if they are a cluster by themselves.
    pub joining: Option<Joining>,
    /// Files by which the nodes speak TLS, as the recorded ones did; in plain text without.
    pub tls: Option<TlsFiles>,
}

/// Everything that is going to be written.
#[derive(Serialize)]
pub struct FilesPlan {
    /// The backup's id.
    pub backup: String,
    /// The name under which the repository keeps the cluster.
    pub cluster: String,
    /// Where the nodes' folders go: an absolute path.
    pub folder: PathBuf,
    /// The server that the files are for.
    #[serde(serialize_with = "as_text")]
    pub target: ServerVersion,
    /// Whether the nodes run in cluster mode.
    pub cluster_mode: bool,
    /// Slots that no node will cover.
    #[serde(serialize_with = "as_text")]
    pub missing_slots: SlotSet,
    /// The nodes: each shard's primary, then its replicas.
    pub nodes: Vec<NodePlan>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// How to log in where a password is needed; absent if none is known.
    #[serde(skip)]
    pub(super) credentials: Option<Credentials>,
    /// Whether nobody gets into the nodes without a password.
    #[serde(skip)]
    pub(super) needs_password: bool,
    /// What each primary follows at first, in the order of the shards; empty if they find their datasets in their folders.
    #[serde(skip)]
    pub(super) led: Vec<LedPrimary>,
    /// Whether the nodes are a part of a cluster that lives: then it is not theirs to say whether that is whole.
    #[serde(skip)]
    pub(super) joins: bool,
    /// Files by which the nodes speak TLS; in plain text without.
    #[serde(skip)]
    pub(super) tls: Option<TlsFiles>,
}

impl NodePlan {
    /// Its cluster bus port; none outside cluster mode.
    pub fn bus_port(&self) -> Option<u16> {
        self.id.as_ref().and_then(|_| bus_port(&self.addr))
    }
}

/// One node to be.
#[derive(Serialize)]
pub struct NodePlan {
    /// Its address.
    #[serde(serialize_with = "as_text")]
    pub addr: NodeAddr,
    /// The address it binds to and announces.
    pub ip: IpAddr,
    /// Its new node id; none outside cluster mode.
    #[serde(serialize_with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    pub id: Option<NodeId>,
    /// Whether it takes writes.
    pub role: RoleRecord,
    /// The primary that a replica follows.
    #[serde(serialize_with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    pub follows: Option<NodeAddr>,
    /// The slots of its shard.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// The node of the old cluster whose place it takes.
    #[serde(serialize_with = "as_text")]
    pub replaces: NodeAddr,
    /// Its folder.
    pub folder: PathBuf,
    /// Its configuration file.
    pub config_file: PathBuf,
    /// The dataset it starts with; replicas start empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetPlan>,
    /// The other files of its folder.
    pub files: Vec<FilePlan>,
}

/// A small file.
#[derive(Serialize)]
pub struct FilePlan {
    /// Where it goes, relative to the node's folder.
    pub path: PathBuf,
    /// What it holds: maybe passwords, so it is never shown.
    #[serde(skip)]
    pub(super) text: String,
}

/// Plans the restore of a backup, or of a moment, to data directories.
pub async fn plan(context: &Context, point: &Point, options: &FilesOptions) -> Result<FilesPlan> {
    let manifest = &point.manifest;
    let target = target(point, options)?;
    check_complete(manifest, options.allow_partial)?;
    check_loads(manifest, target)?;
    check_applies(point, target)?;
    let followed = options.joining.as_ref().map(Joining::followed).transpose()?.flatten();
    let placed = if followed.is_some() { vec![] } else { place_nodes(manifest, options)? };
    let ips = resolve(manifest.cluster_mode, &options.nodes).await?;
    let folder = free_folder(&options.folder)?;
    let mut planner = Planner {
        point,
        manifest,
        options,
        target,
        folder,
        ips,
        rng: &*context.rng,
        warnings: vec![],
        led: vec![],
    };
    let sketches = match &followed {
        Some(primary) => planner.sketch_replicas(primary)?,
        None => planner.sketch(&placed)?,
    };
    planner.led = planner.led(&sketches)?;
    let nodes = planner.render(&sketches)?;
    planner.warn(&sketches);
    let needs_password = sketches.iter().any(|sketch| sketch.users.needs_password());
    let credentials =
        sketches.iter().find_map(|sketch| credentials(&sketch.users)).filter(|_| needs_password);
    Ok(FilesPlan {
        backup: manifest.id.clone(),
        cluster: manifest.cluster.clone(),
        folder: planner.folder,
        target,
        cluster_mode: manifest.cluster_mode,
        missing_slots: manifest.missing_slots.clone(),
        nodes,
        warnings: planner.warnings,
        credentials,
        needs_password,
        led: planner.led,
        joins: options.joining.is_some(),
        tls: options.tls.clone(),
    })
}

fn credentials(users: &Users) -> Option<Credentials> {
    if let Some(password) = &users.password {
        return Some(Credentials { user: None, password: password.clone() });
    }
    users.replication.clone().map(|(user, password)| Credentials { user, password })
}

fn target(point: &Point, options: &FilesOptions) -> Result<ServerVersion> {
    let recorded = || point.shards.iter().filter_map(|shard| shard.server).max();
    options.target.or_else(recorded).ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            format!("backup {} does not say which server it was taken from", point.manifest.id),
        )
        .hint("say which server is to load the files with --for-server")
    })
}

/// A node, before its files are written out.
pub(super) struct Sketch<'a> {
    pub(super) addr: NodeAddr,
    pub(super) ip: IpAddr,
    pub(super) id: Option<NodeId>,
    pub(super) shard: &'a ShardRecord,
    /// Where the shard is to be brought back to.
    state: &'a ShardPoint,
    /// Whether it has an append-only file for the sake of the restore, and had none before.
    keeps_log_for_now: bool,
    /// The primary's address and id; none for a primary.
    pub(super) follows: Option<Followed>,
    replaces: &'a NodeRecord,
    config_epoch: u64,
    settings: Option<&'a SettingsRecord>,
    recorded: Recorded,
    pub(super) users: Users,
}

pub(super) struct Planner<'a> {
    pub(super) point: &'a Point,
    pub(super) manifest: &'a Manifest,
    pub(super) options: &'a FilesOptions,
    target: ServerVersion,
    folder: PathBuf,
    ips: Vec<(NodeAddr, IpAddr)>,
    rng: &'a dyn Rng,
    warnings: Vec<String>,
    pub(super) led: Vec<LedPrimary>,
}

impl<'a> Planner<'a> {
    /// Gives every node its place, its id and its settings.
    fn sketch(&self, placed: &[ShardAddrs]) -> Result<Vec<Sketch<'a>>> {
        let mut sketches = Vec::new();
        let shards = self.manifest.shards.iter().zip(&self.point.shards);
        // Claims of slots count by their epochs: those of new nodes go above all that a living cluster has seen.
        let taken = self.options.joining.as_ref().map_or(0, |joining| joining.current_epoch);
        for (epoch, ((shard, state), addrs)) in (taken.saturating_add(1)..).zip(shards.zip(placed)) {
            let primary = self.sketch_node((shard, state), &shard.primary, &addrs.primary, epoch, None)?;
            let follows = (primary.addr.clone(), primary.ip, primary.id.clone());
            sketches.push(primary);
            for (replaces, addr) in shard.replicas.iter().zip(&addrs.replicas) {
                let follows = Some(follows.clone());
                sketches.push(self.sketch_node((shard, state), replaces, addr, epoch, follows)?);
            }
        }
        Ok(sketches)
    }

    /// Gives a node its settings and a new id.
    pub(super) fn sketch_node(
        &self,
        (shard, state): (&'a ShardRecord, &'a ShardPoint),
        replaces: &'a NodeRecord,
        addr: &NodeAddr,
        config_epoch: u64,
        follows: Option<Followed>,
    ) -> Result<Sketch<'a>> {
        let settings = settings_of(self.manifest, &[&replaces.addr, &shard.primary.addr, &shard.source]);
        let source = shard.server.version();
        let same_line = source.is_some_and(|source| {
            (source.product, source.major, source.minor)
                == (self.target.product, self.target.major, self.target.minor)
        });
        let mut recorded = settings
            .map(|settings| {
                conf::sort(&settings.config, self.target, (same_line, self.options.tls.is_some()))
            })
            .unwrap_or_default();
        if self.options.tls.is_some() {
            conf::speak_tls(&mut recorded, settings.is_some())?;
        }
        let kept_log = recorded.kept.get("appendonly").is_some_and(|value| value == "yes");
        let applies_log = follows.is_none() && state.log_bytes > 0 && self.options.links.is_empty();
        if applies_log {
            // A server applies a log from its append-only file and from nowhere else.
            recorded.kept.insert("appendonly".to_owned(), "yes".to_owned());
        }
        let ip = self.ips.iter().find(|(known, _)| known == addr).map(|(_, ip)| *ip);
        Ok(Sketch {
            addr: addr.clone(),
            ip: ip.ok_or_else(|| Error::new(ErrorKind::Failed, format!("{addr} has no IP address")))?,
            id: if self.manifest.cluster_mode { Some(self.new_id()?) } else { None },
            shard,
            state,
            keeps_log_for_now: applies_log && !kept_log,
            follows,
            replaces,
            config_epoch,
            settings,
            recorded,
            users: users(settings, &self.options.users)?,
        })
    }

    pub(super) fn new_id(&self) -> Result<NodeId> {
        let id = random_hex(self.rng, 40)?;
        id.parse().map_err(|error| Error::new(ErrorKind::Failed, format!("can't make a node id: {error}")))
    }

    /// Writes out the files of every node.
    fn render(&self, sketches: &[Sketch<'_>]) -> Result<Vec<NodePlan>> {
        let nodes_conf = self.nodes_conf(sketches);
        let led_conf = self.led_conf(sketches);
        let conf_of = |sketch: &Sketch<'_>| match &led_conf {
            // Replicas are started when their primaries are.
            Some(led_conf) if sketch.follows.is_none() => led_conf,
            _ => &nodes_conf,
        };
        sketches.iter().map(|sketch| self.render_node(sketch, conf_of(sketch))).collect()
    }

    fn render_node(&self, sketch: &Sketch<'_>, nodes_conf: &NodesConf) -> Result<NodePlan> {
        let name = format!("{}-{}", sketch.addr.host().replace(':', "_"), sketch.addr.port());
        let folder = self.folder.join(name);
        let mut files = Vec::new();
        let mut file = |path: &str, text: String| files.push(FilePlan { path: path.into(), text });
        let config_file = conf::file_name(self.target.product);
        file(config_file, self.config(sketch, &folder));
        if let Some(id) = &sketch.id {
            let text = nodes_conf.render(id).map_err(|error| {
                Error::new(ErrorKind::Corrupt, format!("the recorded topology makes no cluster: {error}"))
            })?;
            file("nodes.conf", text);
        }
        if !sketch.users.lines.is_empty() {
            file(USERS_FILE, sketch.users.lines.join("\n") + "\n");
        }
        let mut dataset = None;
        if sketch.follows.is_none() && self.led.is_empty() {
            let appendonly = sketch.recorded.kept.get("appendonly").is_some_and(|value| value == "yes");
            let (plan, aof_manifest) =
                DatasetPlan::of(&sketch.shard.base, (sketch.state, self.point.at), appendonly, self.target);
            if let Some(text) = aof_manifest {
                file("appendonlydir/appendonly.aof.manifest", text.to_owned());
            }
            dataset = Some(plan);
        }
        Ok(NodePlan {
            addr: sketch.addr.clone(),
            ip: sketch.ip,
            id: sketch.id.clone(),
            role: if sketch.follows.is_none() { RoleRecord::Primary } else { RoleRecord::Replica },
            follows: sketch.follows.as_ref().map(|(addr, ..)| addr.clone()),
            slots: sketch.shard.slots.clone(),
            replaces: sketch.replaces.addr.clone(),
            config_file: folder.join(config_file),
            folder,
            dataset,
            files,
        })
    }

    fn config(&self, sketch: &Sketch<'_>, folder: &Path) -> String {
        let heading = format!(
            "{} of backup {} of {}{}, restored by Slotkeep for {}.\nTo move this folder, change `dir`; for another address, `bind`{}.",
            if sketch.follows.is_some() { "Replica" } else { "Primary" },
            self.manifest.id,
            self.manifest.cluster,
            self.point.at.map(|at| format!(" with its log up to {at}")).unwrap_or_default(),
            self.target,
            if self.manifest.cluster_mode { ", `cluster-announce-ip` and every nodes.conf" } else { "" },
        );
        let none = std::collections::BTreeMap::new();
        let place = Place {
            folder,
            ip: sketch.ip,
            port: sketch.addr.port(),
            tls: self.options.tls.as_ref(),
            cluster_mode: self.manifest.cluster_mode,
            partial: self.leaves_slots_uncovered(),
            follows: sketch
                .follows
                .as_ref()
                .filter(|_| !self.manifest.cluster_mode)
                .map(|(addr, ip, _)| (*ip, addr.port())),
            replication: sketch.users.replication.as_ref(),
            users: !sketch.users.lines.is_empty(),
            modules: sketch.settings.map_or(&none, |settings| &settings.modules),
        };
        conf::render(&heading, &place, &sketch.recorded)
    }

    fn nodes_conf(&self, sketches: &[Sketch<'_>]) -> NodesConf {
        let nodes = sketches.iter().filter_map(|sketch| {
            let role = match &sketch.follows {
                Some((_, _, primary)) => ConfRole::Replica { primary: primary.clone()? },
                None => {
                    ConfRole::Primary { config_epoch: sketch.config_epoch, slots: sketch.shard.slots.clone() }
                }
            };
            Some(ConfNode {
                id: sketch.id.clone()?,
                ip: sketch.ip.to_string(),
                port: sketch.addr.port(),
                bus_port: bus_port(&sketch.addr)?,
                role,
            })
        });
        let joining = self.options.joining.as_ref();
        let mut moving = moves(&primaries(sketches));
        moving.extend(joining.iter().flat_map(|joining| joining.moves(sketches)));
        NodesConf {
            nodes: nodes.chain(joining.iter().flat_map(|joining| joining.others.clone())).collect(),
            moves: moving,
            current_epoch: joining.map_or(self.manifest.current_epoch, |joining| joining.current_epoch),
        }
    }

    /// Whether nobody serves the slots that the backup lacks.
    const fn leaves_slots_uncovered(&self) -> bool {
        self.manifest.partial && self.options.joining.is_none()
    }

    /// Collects what the user should know, each thing once.
    fn warn(&mut self, sketches: &[Sketch<'_>]) {
        let mut said = BTreeSet::new();
        for sketch in sketches {
            for warning in warnings_of(sketch, self.target) {
                if said.insert(warning.clone()) {
                    self.warnings.push(warning);
                }
            }
        }
        if self.leaves_slots_uncovered() {
            self.warnings.push(format!(
                "the slots {} ({} of 16384) stay uncovered; cluster-require-full-coverage is set to no, so that the others are served",
                self.manifest.missing_slots,
                self.manifest.missing_slots.len()
            ));
        }
        let for_now: Vec<String> = sketches
            .iter()
            .filter(|sketch| sketch.keeps_log_for_now)
            .map(|sketch| sketch.addr.to_string())
            .collect();
        if !for_now.is_empty() {
            self.warnings.push(format!(
                "these nodes load the log from an append-only file, so their configuration says `appendonly yes`, where `no` was recorded: {}. \
                 To go back: BGSAVE, and when it is done, CONFIG SET appendonly no and CONFIG REWRITE",
                for_now.join(", ")
            ));
        }
        if matches!(self.options.users, UsersPolicy::None) {
            self.warnings.push(
                "users and passwords are left out: whoever reaches the nodes may do everything, and nodes in protected mode \
                 take no replicas from other hosts"
                    .to_owned(),
            );
        }
    }
}

/// The primaries by their ids; none outside cluster mode.
fn primaries<'s>(sketches: &'s [Sketch<'_>]) -> Vec<Primary<'s>> {
    let primaries = sketches.iter().filter(|sketch| sketch.follows.is_none());
    primaries.filter_map(|sketch| Some(Primary { id: sketch.id.as_ref()?, state: sketch.state })).collect()
}

fn warnings_of(sketch: &Sketch<'_>, target: ServerVersion) -> Vec<String> {
    let mut warnings = Vec::new();
    let Recorded { unknown, tls, .. } = &sketch.recorded;
    if !tls.is_empty() {
        warnings.push(format!(
            "the nodes will speak plain text: TLS needs certificates, which a backup does not hold (left out: {})",
            tls.join(", ")
        ));
    }
    if !unknown.is_empty() {
        warnings.push(format!("{target} does not know these settings, left out: {}", unknown.join(", ")));
    }
    if !sketch.users.locked_out.is_empty() {
        warnings.push(format!(
            "these users can't log in until they get a password (ACL SETUSER), for none is stored: {}",
            sketch.users.locked_out.join(", ")
        ));
    }
    match sketch.settings {
        None => warnings.push("the backup holds no settings: the nodes get the server's defaults".to_owned()),
        Some(settings) => {
            let incomplete = settings
                .unreadable
                .iter()
                .map(|what| format!("the recorded settings are incomplete: {what}"));
            warnings.extend(incomplete);
            if !settings.modules.is_empty() {
                let modules = settings.modules.iter().map(|(name, version)| format!("{name} {version}"));
                warnings.push(format!(
                    "modules were loaded: {}; give their paths in the configuration files before the nodes start",
                    modules.collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }
    if let Some((primary, ..)) = &sketch.follows
        && primary.host() == sketch.addr.host()
        && !primary.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    {
        warnings.push(format!("replica {} is on the same host as its primary {primary}", sketch.addr));
    }
    warnings
}

/// The settings of the first of these nodes that were read whole, else those of any node that were, else any.
fn settings_of<'a>(manifest: &'a Manifest, nodes: &[&NodeAddr]) -> Option<&'a SettingsRecord> {
    let of = |node: &NodeAddr| {
        let name = node.to_string();
        manifest.settings.iter().find(|settings| settings.nodes.contains(&name))
    };
    let preferred = || nodes.iter().filter_map(|node| of(node)).chain(&manifest.settings);
    preferred().find(|settings| settings.unreadable.is_empty()).or_else(|| preferred().next())
}

fn as_text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn as_optional_text<T: std::fmt::Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
