//! What a restore into a running cluster is asked to do, and what it came to.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What to do with keys that exist on the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// Refuse a target that holds keys before anything is written; stop at a key that turns up meanwhile.
    #[default]
    Fail,
    /// Leave keys that exist as they are.
    Skip,
    /// Put the backup's value in place of what the key holds.
    Replace,
}

impl std::fmt::Display for OnConflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fail => "fail",
            Self::Skip => "skip",
            Self::Replace => "replace",
        })
    }
}

/// How many of the slots a target must serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coverage {
    /// All.
    #[default]
    Whole,
    /// Those of which the backup holds keys.
    Part,
}

/// How to restore into a running cluster.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// What to do with keys that exist.
    pub on_conflict: OnConflict,
    /// With [`OnConflict::Fail`]: accept a target that holds keys, as long as none is in a slot of which the backup holds keys.
    pub allow_other_data: bool,
    /// Restore what there is of a backup that lacks slots.
    pub allow_partial: bool,
    /// At most so many shards of the backup at a time.
    pub jobs: usize,
    /// The longest payload of one `RESTORE`, in bytes; longer values go as commands of their elements.
    pub max_restore_bytes: usize,
    /// How long a key may be refused for passing reasons before the restore gives up.
    pub patience: Duration,
    /// The file that remembers how far the restore has come.
    pub state: PathBuf,
    /// Whether to begin anew although that file tells of a restore that was interrupted.
    pub restart: bool,
    /// How many of the slots the target must serve.
    pub coverage: Coverage,
}

/// What a restore did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LiveReport {
    /// The backup.
    pub backup: String,
    /// Keys written.
    pub restored: u64,
    /// Keys that were left as they were because they existed.
    pub skipped_existing: u64,
    /// Keys left out because they had expired by the target's clock.
    pub skipped_expired: u64,
    /// Keys found already written by this restore, before it was interrupted or redirected.
    pub already_restored: u64,
    /// Of the keys written, those that went as commands of their elements.
    pub element_wise: u64,
    /// Keys whose module metadata (Redis 8.6) could not be carried over.
    pub without_metadata: u64,
    /// Pending entries of consumer groups that were left out: their stream entries are deleted, and their streams were too long for one
    /// `RESTORE`; servers from 7.0 on claim no such entry.
    pub pending_left_out: u64,
    /// Function libraries loaded.
    pub functions: u64,
    /// Bytes of the RDBs that were read.
    pub rdb_bytes: u64,
    /// Bytes of commands that were acknowledged.
    pub sent_bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Where it went on, in percent of the RDBs, if it was begun before.
    pub resumed_at_percent: Option<u8>,
    /// Commands that were sent on to another node (`MOVED`, `ASK`).
    pub redirected: u64,
    /// Commands that were sent again, after a passing refusal or a broken connection.
    pub sent_again: u64,
    /// Slots that were gone through once more, for their primary had been replaced or restarted.
    pub repaired_slots: usize,
    /// What each node took.
    pub nodes: Vec<NodeReport>,
    /// What needs attention.
    pub warnings: Vec<String>,
}

/// What one node of the target took.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    /// The node.
    pub node: String,
    /// Keys written there.
    pub restored: u64,
}
