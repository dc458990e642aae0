//! What stores and those who use them do on bad days: processes that are killed at any write, requests that fail, places that may only be read,
//! clocks that are off, keys that are missing, a prune beside a copy.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

#[path = "../restore_files/harness.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod bench;
#[path = "../prune/clock.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod clock;
#[path = "../common/mod.rs"]
mod common;
#[path = "../verify/harness.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod harness;
#[path = "../prune/lived.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod lived;

mod archived;
mod bucket;
mod encrypted;
mod killed;
mod pruned_meanwhile;
mod refused;
mod swept;
mod weather;
