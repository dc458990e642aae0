//! What Slotkeep does: discover a cluster, capture it, store it, bring it back, compare, check.
//!
//! Thin asynchronous loops around the pure machines of `slotkeep-wire` and `slotkeep-rdb`. Time, randomness and the network come
//! in through [`ports`]. Capture stores bytes; interpretation runs beside it and never fails a backup.

pub mod archive;
pub mod backup;
mod base;
pub mod check;
pub mod compact;
pub mod copy;
pub mod cut;
pub mod dataset;
pub mod diff;
pub mod discover;
pub mod engine;
mod error;
pub mod export;
pub mod fence;
pub mod fold;
pub mod get;
mod guard;
pub mod inspect;
pub mod keys;
pub mod kinship;
pub mod link;
pub mod log;
pub mod merge;
pub mod net;
mod object_kind;
pub mod ports;
mod private;
pub mod progress;
pub mod prune;
mod rdb_head;
pub mod recover;
pub mod repair;
pub mod restore;
pub mod settings;
pub mod source;
pub mod stock_server;
mod value;
mod verifications;
pub mod verify;
mod work_folder;

pub use error::{Error, ErrorKind, Result};
pub use object_kind::ObjectKind;
pub use value::{quoted, unescaped};
pub use work_folder::WorkFolder;

use tokio_util::sync::CancellationToken;

/// What every job needs: the clock, randomness and the way to the nodes.
#[derive(Clone)]
pub struct Context {
    /// The clock.
    pub clock: std::sync::Arc<dyn ports::Clock>,
    /// Randomness.
    pub rng: std::sync::Arc<dyn ports::Rng>,
    /// The way to the nodes.
    pub connector: std::sync::Arc<net::Connector>,
    /// Cancelled when the user wants to stop: jobs then leave everything as whole as it was and return
    /// [`ErrorKind::Interrupted`].
    pub stop: CancellationToken,
}

impl Context {
    /// What `work` gives, or nothing if it takes longer than that; then it is cancelled.
    async fn within<T>(&self, limit: std::time::Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            outcome = work => Some(outcome),
            () = self.clock.sleep(limit) => None,
        }
    }

    /// What `work` gives, or [`ErrorKind::Interrupted`] if the user stops first; then `work` is cancelled.
    pub(crate) fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = Result<T>> {
        unless_stopped(&self.stop, work)
    }
}

/// What `work` gives, or [`ErrorKind::Interrupted`] if `stop` is cancelled first; then `work` is cancelled.
pub async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        outcome = work => outcome,
        () = stop.cancelled() => Err(Error::interrupted()),
    }
}
