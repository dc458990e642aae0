//! The words for sorts of objects.

use slotkeep_jobs::ObjectKind;

/// In a table's column.
pub(crate) const fn short(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Base => "base",
        ObjectKind::Log => "log",
        kind => one(kind),
    }
}

/// One object of that sort.
pub(crate) const fn one(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Backup => "backup",
        ObjectKind::Base => "object of a base",
        ObjectKind::Log => "segment of log",
        ObjectKind::History => "history",
        ObjectKind::Topology => "topology",
        ObjectKind::Verification => "verification",
        ObjectKind::Fence => "fence",
        ObjectKind::Pin => "pin",
    }
}

/// Several.
pub(crate) const fn many(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Backup => "backups",
        ObjectKind::Base => "objects of bases",
        ObjectKind::Log => "segments of log",
        ObjectKind::History => "histories",
        ObjectKind::Topology => "topologies",
        ObjectKind::Verification => "verifications",
        ObjectKind::Fence => "fences",
        ObjectKind::Pin => "pins",
    }
}
