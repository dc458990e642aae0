//! Reading the log: which moments of the past can be reached, what leads there, and what stands in it.
//!
//! [`chain`] is the pure part: histories, segments and bases as a graph. [`Past`] is what a repository holds of a cluster, with the
//! times of offsets. [`point`] turns what the user means into one place for each shard; [`LogReader`] gives the bytes that lead there.

pub mod apply;
pub mod chain;
mod commands;
pub(crate) mod cover;
mod database;
mod files;
pub mod origins;
mod past;
pub mod pattern;
pub mod point;
mod read;
pub mod search;
pub mod survey;
pub mod tail;
mod times;
pub mod unread_looks;
pub mod windows;

pub use database::database_behind;
pub use past::Past;
pub use read::LogReader;
