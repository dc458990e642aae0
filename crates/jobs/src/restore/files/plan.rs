//! What is going to be written where, as data.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use slotkeep_format::manifest::RoleRecord;
use slotkeep_model::{NodeAddr, NodeId, ServerVersion, SlotSet};
use slotkeep_wire::replica::Credentials;

use super::conf::TlsFiles;
use super::dataset::DatasetPlan;
use super::join::Joining;
use super::led::LedPrimary;
use super::place::bus_port;
use super::users::UsersPolicy;

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
