//! Primaries to be that first follow us: what their `nodes.conf` says.

use slotkeep_model::{NodeAddr, NodeId};
use slotkeep_wire::nodes_conf::{ConfNode, ConfRole, NodesConf};
use slotkeep_wire::replica::Credentials;

use super::place::bus_port;
use super::planner::{Planner, Sketch};
use crate::{Error, ErrorKind, Result};

/// The bus port of a node that has none: nothing listens there, so nobody waits for an answer.
const NO_BUS_PORT: u16 = 1;

/// A primary to be, that first follows us.
#[derive(Clone)]
pub(super) struct LedPrimary {
    /// Where it takes clients.
    pub(super) addr: NodeAddr,
    /// The id under which it takes us for its primary.
    pub(super) leader: NodeId,
    /// How it authenticates, if it does.
    pub(super) credentials: Option<Credentials>,
}

impl Planner<'_> {
    /// What each primary follows at first.
    pub(super) fn led(&self, sketches: &[Sketch<'_>]) -> Result<Vec<LedPrimary>> {
        let links = &self.options.links;
        if links.is_empty() {
            return Ok(Vec::new());
        }
        if !self.manifest.cluster_mode {
            return Err(Error::new(
                ErrorKind::Usage,
                "only the nodes of a cluster can follow Slotkeep; this backup is of a server outside cluster mode",
            )
            .hint("restore it as files: leave --via out"));
        }
        let primaries = sketches.iter().filter(|sketch| sketch.follows.is_none());
        let led = primaries.map(|sketch| {
            let replication = sketch.users.replication.clone();
            Ok(LedPrimary {
                addr: NodeAddr::new(sketch.ip.to_string(), sketch.addr.port()),
                leader: self.new_id()?,
                credentials: replication.map(|(user, password)| Credentials { user, password }),
            })
        });
        let led: Vec<LedPrimary> = led.collect::<Result<_>>()?;
        if led.len() == links.len() {
            return Ok(led);
        }
        Err(Error::new(ErrorKind::Failed, format!("{} links for {} primaries", links.len(), led.len())))
    }

    /// The cluster as its primaries see it at first: each shard's slots belong to us, and all nodes follow. None if they do not.
    pub(super) fn led_conf(&self, sketches: &[Sketch<'_>]) -> Option<NodesConf> {
        let leaders = self.led.iter().zip(&self.options.links).zip(&self.manifest.shards).zip(1..);
        let mut nodes: Vec<ConfNode> = leaders
            .map(|(((led, link), shard), config_epoch)| ConfNode {
                id: led.leader.clone(),
                ip: link.ip().to_string(),
                port: link.port(),
                bus_port: NO_BUS_PORT,
                role: ConfRole::Primary { config_epoch, slots: shard.slots.clone() },
            })
            .collect();
        let mut leader = self.led.iter();
        let mut current = None;
        for sketch in sketches {
            if sketch.follows.is_none() {
                current = leader.next();
            }
            nodes.push(ConfNode {
                id: sketch.id.clone()?,
                ip: sketch.ip.to_string(),
                port: sketch.addr.port(),
                bus_port: bus_port(&sketch.addr)?,
                role: ConfRole::Replica { primary: current?.leader.clone() },
            });
        }
        Some(NodesConf { nodes, moves: vec![], current_epoch: self.manifest.current_epoch })
    }
}
