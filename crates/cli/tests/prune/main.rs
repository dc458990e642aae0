//! `slotkeep prune` and `slotkeep compact`: what no rule keeps goes, after a time; whatever is kept can be restored as before.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that cannot go on fails"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../verify/harness.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod harness;

mod archive;
mod beside;
mod clock;
mod command;
mod compact;
mod covered;
mod forks;
mod hooked;
mod late;
mod lived;
mod origin;
mod refusing;
mod repair;
mod steps;
