//! The bodies of the fuzzers, and what they begin with; the tests of `slotkeep-jobs` call them too.

pub mod seeds;
pub mod targets;
