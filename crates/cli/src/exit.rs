//! The exit codes. They are documented in `docs/exit-codes.md` and never change their meaning.

use slotkeep_jobs::ErrorKind;

/// Everything is as it should be.
pub(crate) const OK: u8 = 0;
/// `diff` found differences.
pub(crate) const DIFFERENT: u8 = 40;
/// `check` found something that stands in the way of a backup.
pub(crate) const NOT_READY: u8 = 41;
/// `verify` found that something can't be restored.
pub(crate) const UNSOUND: u8 = 42;
/// `verify` found nothing worse than warnings.
pub(crate) const DOUBTFUL: u8 = 43;
/// `fence` leaves nodes that may take writes, or with `--undo`: nodes that still refuse them.
pub(crate) const NOT_FENCED: u8 = 44;
/// `prune`: the store refused to delete something; it stays marked.
pub(crate) const NOT_DELETED: u8 = 48;
/// `repair`: something is lost.
pub(crate) const LOST: u8 = 49;
/// `recover` found something to do, and did nothing: only the plan was asked for.
pub(crate) const DAMAGED: u8 = 45;
/// `recover` leaves something to a person: a decision, or what is missing.
pub(crate) const UNDECIDED: u8 = 46;
/// `recover` stopped at a step that failed or was not as expected any more.
pub(crate) const STOPPED: u8 = 47;

/// The exit code of a failure.
pub(crate) const fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Failed => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Unreachable => 10,
        ErrorKind::Authentication => 11,
        ErrorKind::Permission => 12,
        ErrorKind::Tls => 13,
        ErrorKind::NotACluster => 14,
        ErrorKind::Repository => 20,
        ErrorKind::Full => 21,
        ErrorKind::NotFound => 22,
        ErrorKind::Corrupt => 23,
        ErrorKind::Gap => 24,
        ErrorKind::Key => 25,
        ErrorKind::Untrusted => 26,
        ErrorKind::TargetNotEmpty => 30,
        ErrorKind::Conflict => 31,
        ErrorKind::Unsupported => 32,
        ErrorKind::NotFenced => 35,
        ErrorKind::Contended => 50,
        ErrorKind::ClockOff => 51,
        ErrorKind::PartlyStored => 52,
        ErrorKind::Interrupted => 130,
    }
}

/// The name of a kind of failure in JSON.
pub(crate) const fn name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Failed => "failed",
        ErrorKind::Usage => "usage",
        ErrorKind::Unreachable => "unreachable",
        ErrorKind::Authentication => "authentication",
        ErrorKind::Permission => "permission",
        ErrorKind::Tls => "tls",
        ErrorKind::NotACluster => "not_a_cluster",
        ErrorKind::Repository => "repository",
        ErrorKind::Full => "full",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Gap => "gap",
        ErrorKind::Key => "key",
        ErrorKind::Untrusted => "untrusted",
        ErrorKind::TargetNotEmpty => "target_not_empty",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::NotFenced => "not_fenced",
        ErrorKind::Contended => "contended",
        ErrorKind::ClockOff => "clock_off",
        ErrorKind::PartlyStored => "partly_stored",
        ErrorKind::Interrupted => "interrupted",
    }
}
