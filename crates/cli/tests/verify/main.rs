//! `slotkeep verify`: every damage is found, at the right depth and by its name; nothing is found where nothing is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that cannot go on fails"
)]

#[path = "../common/mod.rs"]
mod common;

mod chain;
mod command;
mod drill;
mod harness;
mod live;
mod sweep;
mod wrong;
