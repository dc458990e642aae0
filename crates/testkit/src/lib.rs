//! Real clusters for tests and for the demo: fetches stock servers, starts them on free ports of this machine, makes what
//! happens to clusters happen to them, and fills them with data.
//!
//! Everything blocks: tests call it from plain functions, and asynchronous callers from `spawn_blocking`. Nothing prints.
//!
//! Whatever a [`Cluster`] started dies with it, and with this process, however it ends: a watchdog beside it sees to
//! that.

pub mod client;
pub mod cluster;
pub mod cluster_client;
pub mod data;
pub mod deadline;
pub mod error;
pub mod faulty_store;
pub mod ledger;
pub mod node;
pub mod proxy;
pub mod resp;
pub mod servers;
pub mod setup;
pub mod stores;
pub mod tls;

mod ports;
mod random;
mod watchdog;

pub use client::{Client, Endpoint};
pub use cluster::{Cluster, FailoverMode};
pub use cluster_client::{ClusterClient, KeyedCommand};
pub use error::{Error, Result};
pub use faulty_store::{Fault, FaultyStore};
pub use node::Node;
pub use proxy::Proxy;
pub use random::Random;
pub use resp::Value;
pub use servers::Server;
pub use setup::ClusterBuilder;
