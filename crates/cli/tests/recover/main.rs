//! Recovery to moments, offsets and the state before an accident, with real servers on both sides.

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

mod account;
mod archived;
mod barrier;
mod chaos;
mod exact;
mod failover;
mod moments;
mod moves;
mod recorder;
mod shards;
mod takeover;
