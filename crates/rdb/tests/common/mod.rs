//! What the tests on real servers and the maker of fixtures share.
#![allow(dead_code, reason = "each user needs a part of it")]

pub mod dataset;
pub mod files;
pub mod reload;
