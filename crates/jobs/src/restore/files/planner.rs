//! Gives every node its place, its id and its files. Nothing is touched yet; every refusal that can be made beforehand is made here.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use slotkeep_format::Manifest;
use slotkeep_format::manifest::{NodeRecord, RoleRecord, SettingsRecord, ShardRecord};
use slotkeep_model::{NodeAddr, NodeId, ServerVersion};
use slotkeep_wire::nodes_conf::{ConfNode, ConfRole, NodesConf};
use slotkeep_wire::replica::Credentials;

use super::assign::ShardAddrs;
use super::conf::{self, Place, Recorded, USERS_FILE};
use super::dataset::{DatasetPlan, Primary, moves};
use super::join::{Followed, Joining};
use super::led::LedPrimary;
use super::place::{bus_port, free_folder, place_nodes, resolve};
use super::plan::{FilePlan, FilesOptions, FilesPlan, NodePlan};
use super::users::{Users, users};
use crate::log::point::{Point, ShardPoint};
use crate::ports::{Rng, random_hex};
use crate::restore::{check_applies, check_complete, check_loads};
use crate::{Context, Error, ErrorKind, Result};

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
    pub(super) keeps_log_for_now: bool,
    /// The primary's address and id; none for a primary.
    pub(super) follows: Option<Followed>,
    replaces: &'a NodeRecord,
    config_epoch: u64,
    pub(super) settings: Option<&'a SettingsRecord>,
    pub(super) recorded: Recorded,
    pub(super) users: Users,
}

pub(super) struct Planner<'a> {
    pub(super) point: &'a Point,
    pub(super) manifest: &'a Manifest,
    pub(super) options: &'a FilesOptions,
    pub(super) target: ServerVersion,
    folder: PathBuf,
    ips: Vec<(NodeAddr, IpAddr)>,
    rng: &'a dyn Rng,
    pub(super) warnings: Vec<String>,
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
    pub(super) const fn leaves_slots_uncovered(&self) -> bool {
        self.manifest.partial && self.options.joining.is_none()
    }
}

/// The primaries by their ids; none outside cluster mode.
fn primaries<'s>(sketches: &'s [Sketch<'_>]) -> Vec<Primary<'s>> {
    let primaries = sketches.iter().filter(|sketch| sketch.follows.is_none());
    primaries.filter_map(|sketch| Some(Primary { id: sketch.id.as_ref()?, state: sketch.state })).collect()
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
