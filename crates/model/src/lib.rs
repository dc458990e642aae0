//! The nouns of Slotkeep, in `DESIGN`'s words: slots, nodes, shards, histories, offsets, times, digests, versions.
//!
//! This crate has no dependencies, does no I/O and knows no clock. Arithmetic on offsets and lengths is checked.

pub mod address;
pub mod digest;
pub mod history;
pub mod slot;
pub mod topology;
pub mod version;

pub use address::{NodeAddr, NodeId};
pub use digest::{DatasetDigest, SlotDigest};
pub use history::{ReplId, ReplOffset};
pub use slot::{Slot, SlotRange, SlotSet, hashed_part, key_slot};
pub use topology::{Node, Role, Shard, Topology};
pub use version::{Product, RdbVersion, ServerVersion};

/// Milliseconds since the Unix epoch, as servers count them (`EXPIRETIME_MS`, `TIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimestampMs(pub i64);
