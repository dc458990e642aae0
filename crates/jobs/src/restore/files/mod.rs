//! A backup as data directories of a new cluster with the same slots and replicas, new addresses and new node ids: each with
//! `nodes.conf`, a configuration file, users, and the dataset in the form that the server loads at its start.
//!
//! First [`plan`], which refuses what can be refused beforehand and touches nothing; then [`apply`]; then, if wanted,
//! [`start`].

mod assign;
mod conf;
mod dataset;
mod follow;
mod join;
mod led;
mod log;
mod place;
mod plan;
mod planner;
mod start;
mod users;
mod warnings;
mod write;

pub use crate::stock_server::StockServer;
pub(crate) use assign::assign_nodes;
pub use conf::TlsFiles;
pub use dataset::{DatasetLog, DatasetPlan};
pub use follow::{Links, start_following};
pub use join::{Joining, JoiningMove};
pub use plan::{FilePlan, FilesOptions, FilesPlan, NodePlan};
pub use planner::plan;
pub(crate) use start::start_guarded;
pub use start::{StartedNode, check_start, start};
pub use users::UsersPolicy;
pub use write::{Source, apply};
