//! What may be said of text that the user gave: never a secret, even where something else belongs.

use std::borrow::Cow;

/// How secrets begin, in capitals: identities of age and of its plugins, and signing keys.
const SECRET_MARKS: [&str; 3] = ["AGE-SECRET-KEY-", "AGE-PLUGIN-", "SLOTKEEP-SIGNING-KEY-"];

/// Whether a secret key stands in the text.
pub fn holds_secret(text: &str) -> bool {
    let text = text.to_ascii_uppercase();
    SECRET_MARKS.iter().any(|mark| text.contains(mark))
}

/// The text as it may be shown.
pub fn shown(text: &str) -> Cow<'_, str> {
    if holds_secret(text) { Cow::Borrowed("(a secret key)") } else { Cow::Borrowed(text) }
}
