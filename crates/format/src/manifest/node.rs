//! The nodes of a cluster, as a manifest names them.

use serde::{Deserialize, Serialize};
use slotkeep_model::{NodeAddr, NodeId, Product, Role, ServerVersion};

use crate::json::{optional_text, text};

/// A node as the cluster knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id; a standalone server has none.
    #[serde(with = "optional_text", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NodeId>,
    /// Its address.
    #[serde(with = "text")]
    pub addr: NodeAddr,
    /// Whether the cluster took it for alive.
    pub online: bool,
}

/// Primary or replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleRecord {
    /// It took writes.
    Primary,
    /// It followed a primary.
    Replica,
}

impl From<Role> for RoleRecord {
    fn from(role: Role) -> Self {
        match role {
            Role::Primary => Self::Primary,
            Role::Replica => Self::Replica,
        }
    }
}

/// A server's product and version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// `redis` or `valkey`.
    pub product: ProductRecord,
    /// Three numbers.
    pub version: String,
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductRecord {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

impl From<ServerVersion> for ServerRecord {
    fn from(server: ServerVersion) -> Self {
        let product = match server.product {
            Product::Redis => ProductRecord::Redis,
            Product::Valkey => ProductRecord::Valkey,
        };
        Self { product, version: format!("{}.{}.{}", server.major, server.minor, server.patch) }
    }
}

impl ServerRecord {
    /// The version as a number; `None` if its text is not one.
    pub fn version(&self) -> Option<ServerVersion> {
        let product = match self.product {
            ProductRecord::Redis => Product::Redis,
            ProductRecord::Valkey => Product::Valkey,
        };
        ServerVersion::parse(product, &self.version)
    }
}
