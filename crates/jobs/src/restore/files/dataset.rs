//! What a primary loads at its start: a base, and the log behind it as an append-only file.

use std::path::PathBuf;

use serde::Serialize;
use slotkeep_format::manifest::{BaseRecord, ObjectRecord};
use slotkeep_model::{NodeId, Product, RdbVersion, ServerVersion};
use slotkeep_wire::nodes_conf::ConfMove;

use crate::log::chain::{Piece, as_text};
use crate::log::point::ShardPoint;

/// The dataset of a node.
#[derive(Clone, Debug, Serialize)]
pub struct DatasetPlan {
    /// The object it comes from.
    pub object: ObjectRecord,
    /// The version that the RDB must have.
    #[serde(serialize_with = "as_text")]
    pub rdb_version: RdbVersion,
    /// Where it goes, relative to the node's folder.
    pub path: PathBuf,
    /// The log that the server applies to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<DatasetLog>,
}

impl DatasetPlan {
    /// How many bytes are going to be written, at most.
    pub fn bytes(&self) -> u64 {
        self.object.raw_bytes.saturating_add(self.log.as_ref().map_or(0, |log| log.bytes))
    }
}

/// The log behind a dataset's base, as an append-only file.
#[derive(Clone, Debug, Serialize)]
pub struct DatasetLog {
    /// Where it goes, relative to the node's folder: the base's own file where base and log are one file.
    pub path: PathBuf,
    /// How many bytes of the log are read.
    pub bytes: u64,
    /// The bytes of the log, in order.
    #[serde(skip)]
    pub(super) pieces: Vec<Piece>,
}

/// Where a dataset's parts go, relative to the node's folder, and what the AOF manifest says.
struct Form {
    base: &'static str,
    log: &'static str,
    manifest: Option<&'static str>,
}

impl DatasetPlan {
    /// The dataset of a primary, and what its AOF manifest says if it has one.
    pub(super) fn of(
        base: &BaseRecord,
        state: &ShardPoint,
        appendonly: bool,
        target: ServerVersion,
    ) -> (Self, Option<&'static str>) {
        let has_log = state.log_bytes > 0;
        let form = Form::of(appendonly, has_log, target);
        let log = has_log.then(|| DatasetLog {
            path: form.log.into(),
            bytes: state.log_bytes,
            pieces: state.log.clone(),
        });
        let plan =
            Self { object: base.rdb.clone(), rdb_version: base.rdb_version, path: form.base.into(), log };
        (plan, form.manifest)
    }
}

impl Form {
    /// A server with `appendonly yes` loads nothing but its AOF.
    fn of(appendonly: bool, has_log: bool, target: ServerVersion) -> Self {
        let multi_part = target.product == Product::Valkey || target.major >= 7;
        match (appendonly, multi_part) {
            (false, _) => Self { base: "dump.rdb", log: "", manifest: None },
            // An RDB is an AOF whose preamble is all there is; commands may follow it.
            (true, false) => Self { base: "appendonly.aof", log: "appendonly.aof", manifest: None },
            (true, true) => Self {
                base: "appendonlydir/appendonly.aof.1.base.rdb",
                log: "appendonlydir/appendonly.aof.1.incr.aof",
                manifest: Some(if has_log {
                    "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n"
                } else {
                    "file appendonly.aof.1.base.rdb seq 1 type b\n"
                }),
            },
        }
    }
}

/// A primary to be.
pub(super) struct Primary<'a> {
    pub(super) id: &'a NodeId,
    pub(super) state: &'a ShardPoint,
}

/// The moves of slots that were under way, between the new nodes.
pub(super) fn moves(primaries: &[Primary<'_>]) -> Vec<ConfMove> {
    let mut moves = Vec::new();
    for to in primaries {
        for from in primaries.iter().filter(|from| from.id != to.id) {
            let leaving = from.state.migrating.intersection(&from.state.slots);
            let slots = to.state.importing.intersection(&leaving);
            if !slots.is_empty() {
                moves.push(ConfMove { slots, from: from.id.clone(), to: to.id.clone() });
            }
        }
    }
    moves
}
