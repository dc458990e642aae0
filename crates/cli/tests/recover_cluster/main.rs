//! `slotkeep recover` on real clusters that take writes while they lose nodes; what comes back is held against the writers' own account.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what does not hold fails the test"
)]

#[path = "../restore_files/harness.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod harness;

#[path = "../common/mod.rs"]
mod common;

mod again;
mod disasters;
mod moves;
mod refill;
mod scene;
mod shards;
mod spares;
mod tail;
