//! How many elements a value has, without hashing it.

use crate::value::{Element, Part};

/// Whether that piece of a value completes one more of what [`crate::KeyDigest::elements`] counts: items, members, fields, entries,
/// or strings and numbers of a module; a string is one.
pub const fn adds_element(element: &Element<'_>) -> bool {
    match element {
        Element::Bytes { part, last, .. } => {
            *last
                && matches!(part, Part::String | Part::Item | Part::Member | Part::Field | Part::ModuleString)
        }
        Element::StreamEntry { .. }
        | Element::ModuleSigned(_)
        | Element::ModuleUnsigned(_)
        | Element::ModuleFloat(_)
        | Element::ModuleDouble(_)
        | Element::ArrayIndex(_) => true,
        _ => false,
    }
}
