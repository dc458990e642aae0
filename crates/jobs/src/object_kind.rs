//! What sort of object something of a repository is, as reports name it.

use serde::Serialize;

/// What sort of object it is. In the order in which reports list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// A backup's manifest.
    Backup,
    /// An object of a base.
    Base,
    /// A segment of the log.
    Log,
    /// The file of a history.
    History,
    /// How the cluster looked.
    Topology,
    /// What a verification came to.
    Verification,
    /// Which nodes were kept from taking writes.
    Fence,
    /// A pin.
    Pin,
}
