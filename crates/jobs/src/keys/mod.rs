//! Keys as they pass by: what is known of each, and which are wanted.

mod facts;
mod filter;
mod glob;

pub use facts::{Key, KeyText, time_text};
pub(crate) use facts::{KeyFacts, KeyWatch, encoding};
pub use filter::{Expires, Filter, type_named};

pub use glob::matches;
pub use slotkeep_rdb::LogicalType;
