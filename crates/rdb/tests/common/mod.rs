//! What the tests on real servers and the maker of fixtures share.
#![allow(dead_code, reason = "each user needs a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests end at the first surprise")]

pub mod dataset;
pub mod files;
pub mod reload;
