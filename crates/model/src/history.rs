//! Replication histories and the offsets that are valid under them.

use core::fmt;
use core::str::FromStr;

/// The id of a replication history: forty characters, chosen by the server when the history starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplId(String);

impl ReplId {
    /// How many characters an id has.
    pub const LEN: usize = 40;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is not forty letters or digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdSyntaxError {
    /// What was to be read as an id.
    pub text: String,
}

impl fmt::Display for IdSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not an id of forty letters and digits", self.text)
    }
}

impl core::error::Error for IdSyntaxError {}

/// Forty ASCII letters and digits: what servers use for replication ids, node ids and shard ids.
pub(crate) fn forty_characters(text: &str) -> Result<String, IdSyntaxError> {
    if text.len() == ReplId::LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err(IdSyntaxError { text: text.to_owned() })
    }
}

impl FromStr for ReplId {
    type Err = IdSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        forty_characters(text).map(Self)
    }
}

/// An offset in a replication history: the number of the last byte produced or received, counted from 1.
///
/// `+FULLRESYNC id N` means that the RDB holds the effect of every byte up to and including `N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplOffset(pub u64);

impl ReplOffset {
    /// The offset after `bytes` more bytes; `None` past the end of the number range.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::Display for ReplOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
