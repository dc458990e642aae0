//! The write side of the log: following every shard as a replica, and keeping its stream.
//!
//! ```text
//! link ─► intake ─► spool (local disk, fsynced) ─► sealer ─► segments
//!           ▲          └─► acknowledgement
//!   sampler ┘ (the primary's clock and offset)
//! ```
//!
//! A *line* is one shard's way through this: from node to node, from base to base. [`archive`] keeps a line for every shard as the
//! cluster changes; a backup on demand keeps one for as long as it needs.

mod backups;
mod beginning;
mod coverage;
mod decide;
pub(crate) mod fleet;
pub(crate) mod gates;
pub(crate) mod held;
mod intake;
mod leftovers;
pub(crate) mod line;
mod lineage;
pub(crate) mod link;
mod looks;
mod orphans;
mod pace;
mod pack;
pub(crate) mod rebase;
mod roster;
pub(crate) mod sampler;
mod scan;
pub(crate) mod sealer;
mod session;
pub(crate) mod share;
mod silence;
pub(crate) mod spool;
mod status;
mod supervise;
pub(crate) mod view;

pub use intake::SealPolicy;
pub use line::{Ack, default_spool};
pub use share::{NearRule, NearSyntaxError, ShareOptions};
pub use status::{ArchiveStatus, Board, LinePhase, Notice, NoticeKind, ShardStatus, SlotSetText};
pub use supervise::{ArchiveOptions, Watch, archive};
