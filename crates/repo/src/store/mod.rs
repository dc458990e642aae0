//! The stack of adapters between the repository and a store: reading on where a connection broke, and a limit of bytes per second.
//!
//! What the library does by itself over HTTP: a request that fails with 5xx, 429 or at connecting is tried again up to ten times
//! within three minutes, with exponential back-off (100 ms to 15 s) and jitter. What it does not do is here: a download that breaks after
//! those three minutes is read on from where it stood, and a listing that breaks is asked for again ([`resume`]); a create whose answer was
//! lost is looked at instead of being taken for someone else's ([`create`]). A local folder's large objects go to the disk as they are
//! written ([`early`]), and those of other stores in parts that grow ([`parts`]).

pub(crate) mod answer;
pub(crate) mod aws;
mod create;
mod early;
mod parts;
pub(crate) mod pause;
mod rate;
mod resume;
pub(crate) mod settings;
mod stop;

use std::sync::Arc;

use object_store::ObjectStore;

pub(crate) use create::{Creating, NotCreated, create_new};
pub(crate) use early::Early;
pub(crate) use parts::GrowingParts;
pub use rate::RateLimit;
pub(crate) use resume::Changed;
pub use stop::StopPoint;

/// Limits that the library would set for a whole request, upload or download, however large it is: 30 s. A part of an upload has this long; a
/// download is read on when it is over.
pub(crate) const REQUEST_LIMIT: &str = "15 minutes";
/// How long a connection may be silent.
pub(crate) const SILENCE_LIMIT: &str = "60 seconds";
/// How long connecting may take.
pub(crate) const CONNECT_LIMIT: &str = "10 seconds";

/// Puts the adapters around a store.
pub(crate) fn stack(
    store: Arc<dyn ObjectStore>,
    limit: Option<RateLimit>,
    stop: Option<StopPoint>,
) -> Arc<dyn ObjectStore> {
    let store = match stop {
        Some(stop) => Arc::new(stop::Stopping::new(store, stop)),
        None => store,
    };
    let store: Arc<dyn ObjectStore> = Arc::new(resume::Resuming::new(store));
    match limit {
        Some(limit) => Arc::new(rate::Limited::new(store, limit)),
        None => store,
    }
}
