//! A value as text: JSON for programs, lines for people. Both take elements as they come and write as they go, so a value of any size passes
//! in bounded memory.

mod json;
mod scopes;
mod text;
mod words;

pub(crate) use json::JsonKey;
pub(crate) use text::TextKey;
pub use words::{quoted, unescaped};
