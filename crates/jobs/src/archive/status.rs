//! What an archive is doing, for those who watch it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use slotkeep_model::{NodeAddr, SlotSet};

/// Notices that are kept for a watcher; when there are more, the oldest are forgotten.
const MOST_NOTICES: usize = 1000;

/// What is being done for one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinePhase {
    /// It looks for a node to follow.
    #[default]
    Connecting,
    /// It waits for its turn to have a snapshot made.
    Queued,
    /// A snapshot is being taken.
    Base,
    /// The stream is being followed.
    Following,
    /// The spool is full: nothing is received until the repository has taken some of it.
    SpoolFull,
    /// It has ended.
    Ended,
}

/// How one shard's line stands. Offsets count the bytes of the shard's stream.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ShardStatus {
    /// The shard's slots.
    pub slots: String,
    /// What is being done.
    pub phase: LinePhase,
    /// The node that is followed.
    pub source: Option<String>,
    /// The history that is followed.
    pub history: Option<String>,
    /// The last byte received.
    pub received: u64,
    /// The last safe cut that is durable on the local disk or in the repository.
    pub durable: u64,
    /// The last byte that the repository holds.
    pub sealed: u64,
    /// The primary's last byte, when it was asked last.
    pub primary: u64,
    /// How many bytes the line is behind the primary.
    pub lag_bytes: u64,
    /// How many bytes are received and not yet sealed.
    pub unsealed_bytes: u64,
    /// How long ago the last segment was sealed, in ms.
    pub sealed_ms_ago: Option<u64>,
    /// Segments sealed so far.
    pub segments: u64,
    /// Bases taken so far.
    pub bases: u64,
    /// Times that the stream could not be continued.
    pub gaps: u64,
    /// What stands in the way now, if something does.
    pub trouble: Option<String>,
}

/// How an archive stands.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ArchiveStatus {
    /// Bytes on the local disk that are not yet sealed, with what the spool adds to them.
    pub spool_bytes: u64,
    /// The backup that was written last by this run.
    pub backup: Option<String>,
    /// How many agents share the work, this one included.
    pub agents: usize,
    /// Whether this agent writes the backups and topologies.
    pub leads: bool,
    /// How many shards other agents follow.
    pub elsewhere: usize,
    /// How many shards nobody follows, as far as this agent can see.
    pub unfollowed: usize,
    /// Why this agent can't see what the others do, if it can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Why the backup that is due can't be written, if this agent writes the backups and it can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_backup: Option<String>,
    /// This agent's shards, in the order of their slots.
    pub shards: Vec<ShardStatus>,
}

/// Something that happened and that an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// What sort of event it is.
    pub kind: NoticeKind,
    /// The slots of the shard that it is about; none if it is about the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotSetText>,
    /// What happened.
    pub what: String,
}

/// Slots, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SlotSetText(String);

impl From<&SlotSet> for SlotSetText {
    fn from(slots: &SlotSet) -> Self {
        Self(slots.to_string())
    }
}

impl std::fmt::Display for SlotSetText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sorts of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// A node is followed.
    Following,
    /// The stream goes on in another history: there was a failover or a restart.
    Fork,
    /// The stream could not be continued: what was written between is in no segment.
    Gap,
    /// Bytes were received that the servers have lost: a divergent tail.
    Diverged,
    /// A base was taken.
    Base,
    /// A backup was written.
    Backup,
    /// The cluster looks different.
    Topology,
    /// A shard is another agent's from now on.
    Left,
    /// Something failed and is tried again.
    Trouble,
}

/// Where events are pinned up until a watcher takes them.
#[derive(Debug, Default)]
pub struct Board {
    notices: Mutex<VecDeque<Notice>>,
}

impl Board {
    /// Takes the events since the last call.
    pub fn take(&self) -> Vec<Notice> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    pub(crate) fn pin(&self, kind: NoticeKind, slots: Option<&SlotSet>, what: impl Into<String>) {
        let notice = Notice { kind, slots: slots.map(SlotSetText::from), what: what.into() };
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if notices.len() == MOST_NOTICES {
            notices.pop_front();
        }
        notices.push_back(notice);
    }
}

/// A time that has passed, in whole ms.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The address as text.
pub(crate) fn text(addr: Option<&NodeAddr>) -> Option<String> {
    addr.map(ToString::to_string)
}
