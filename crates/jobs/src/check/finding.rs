//! What a check has found, as data; rendering is the command's matter.

use std::fmt;

use serde::{Serialize, Serializer};
pub use slotkeep_format::Severity;
use slotkeep_model::NodeAddr;

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    /// One node.
    Node(NodeAddr),
    /// The repository.
    Repository,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Node(addr) => addr.fmt(f),
            Self::Repository => f.write_str("repository"),
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `cluster`, `repository`, or a node's address.
    pub subject: Subject,
    /// Which check found it: a fixed word for programs.
    pub check: &'static str,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// The findings of one check on one subject.
pub(super) struct Findings {
    subject: Subject,
    found: Vec<Finding>,
}

impl Findings {
    pub(super) fn about(subject: Subject) -> Self {
        Self { subject, found: Vec::new() }
    }

    pub(super) fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.push(Severity::Ok, check, what.into(), None);
    }

    pub(super) fn note(&mut self, check: &'static str, what: impl Into<String>, advice: impl Into<String>) {
        self.push(Severity::Note, check, what.into(), Some(advice.into()));
    }

    pub(super) fn warning(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.push(Severity::Warning, check, what.into(), Some(advice.into()));
    }

    pub(super) fn problem(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.push(Severity::Problem, check, what.into(), Some(advice.into()));
    }

    fn push(&mut self, severity: Severity, check: &'static str, what: String, advice: Option<String>) {
        self.found.push(Finding { severity, subject: self.subject.clone(), check, what, advice });
    }

    pub(super) fn into_vec(self) -> Vec<Finding> {
        self.found
    }
}

/// A number of bytes for people, in binary units.
pub(super) fn size(bytes: u64) -> String {
    let (divisor, unit) = match bytes {
        0..=0x3ff => return format!("{bytes} B"),
        0x400..=0xf_ffff => (1_u64 << 10, "KiB"),
        0x10_0000..=0x3fff_ffff => (1 << 20, "MiB"),
        0x4000_0000..=0xff_ffff_ffff => (1 << 30, "GiB"),
        _ => (1 << 40, "TiB"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A span of time for people.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        let read = [0, 1023, 1024, 1536, 10 << 20, 3 << 30, u64::MAX].map(size);
        assert_eq!(read, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 MiB", "3.0 GiB", "16777215.9 TiB"]);
        assert_eq!([59, 180, 7200, 400_000].map(span), ["59 s", "3 min", "2 h", "4 days"]);
    }

    #[test]
    fn severities_are_ordered() {
        assert!(Severity::Ok < Severity::Note && Severity::Warning < Severity::Problem);
    }
}
