//! The formats of a Slotkeep repository: bytes in, bytes out.
//!
//! `docs/repository-format.md` describes them byte by byte. This crate does no I/O, knows no clock and no runtime; what it
//! reads may have been damaged or forged, so nothing here trusts a length.

pub mod digest_file;
pub mod fence;
pub mod frames;
pub mod index;
mod json;
pub mod lease;
pub mod lineage;
pub mod manifest;
pub mod prune;
pub mod repository_file;
pub mod retention;
pub mod segment;
pub mod spool;
pub mod timeline;
mod varint;
pub mod verify;

pub use digest_file::{DigestFileError, decode_digest, encode_digest};
pub use fence::{FenceRecord, FencedNode};
pub use frames::{Effort, FrameError, FrameWriter, SeekTable};
pub use index::{IndexEntry, IndexError, IndexReader, IndexWriter};
pub use json::{Seal, check_seal};
pub use lease::{
    Holder, LeaseClaim, LeaseNote, LeaseRecord, LeaseStep, LeaseTable, LineBase, LineCut, LineShard, Tenure,
};
pub use lineage::{HistoryRecord, Parent, ShardState, TopologyRecord};
pub use manifest::{Manifest, ManifestError};
pub use prune::{MarkRecord, MarkedObject, PinRecord, PrunedLog, PrunedRecord, Unneeded};
pub use repository_file::RepositoryFile;
pub use retention::{Holdings, KeptFor, LogNeed, RetentionPlan, RetentionPolicy, plan_retention};
pub use segment::{SegmentError, SegmentRecord};
pub use spool::{SpoolError, SpoolHeader, SpoolReader, SpoolRecord};
pub use timeline::{TimeSample, Timeline};
pub use verify::{Depth, Proof, Proofs, Severity, VerifyFinding, VerifyRecord};
