//! What a plan says and what a run came to, as data.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::manifest::BackupKind;
use slotkeep_format::{KeptFor, Unneeded};

use super::PrunePlan;
use crate::ObjectKind;

/// What becomes of an object that is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It is marked now.
    Mark,
    /// It is marked, and its grace is not over.
    Wait,
    /// It is to be deleted.
    Delete,
    /// It was deleted.
    Deleted,
    /// It was to be deleted, and turned out to be needed.
    Needed,
    /// The store refused to delete it; it stays marked.
    Refused,
}

/// A backup, and whether it stays.
#[derive(Clone, Debug, Serialize)]
pub struct BackupRow {
    /// Its id.
    pub id: String,
    /// How it was made.
    pub kind: BackupKind,
    /// When its last object was stored.
    pub finished_at: Timestamp,
    /// Which rules keep it; none: it goes.
    pub kept_for: Vec<KeptFor>,
    /// What becomes of it, if it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
}

/// An object that is not needed.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectRow {
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: ObjectKind,
    /// Its length.
    pub bytes: u64,
    /// Why it is not needed.
    pub why: Unneeded,
    /// What becomes of it.
    pub step: Step,
    /// From when on it may be deleted.
    pub not_before: Timestamp,
}

/// A file that a write has left which was killed.
#[derive(Clone, Debug, Serialize)]
pub struct UnfinishedRow {
    /// Its path.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What becomes of it. It needs no mark: nothing can name it.
    pub step: Step,
}

/// Objects together.
#[derive(Clone, Debug, Serialize)]
pub struct TotalRow {
    /// What they are.
    pub kind: ObjectKind,
    /// Why they are not needed; absent if they stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Unneeded>,
    /// What becomes of them; absent if they stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// How many.
    pub objects: u64,
    /// Their length together.
    pub bytes: u64,
}

/// An object that the store did not delete.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// Its path.
    pub path: String,
    /// What the store said.
    pub error: String,
}

/// What a plan says, or what a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct PruneReport {
    /// The cluster.
    pub cluster: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The grace, in seconds.
    pub grace_s: i64,
    /// The backups, oldest first.
    pub backups: Vec<BackupRow>,
    /// Backups whose manifests can't be read. As long as there are any, nothing but manifests is given up.
    pub unreadable: Vec<String>,
    /// What stays.
    pub stays: Vec<TotalRow>,
    /// Of what stays: bytes that no backup names and that are too young to be given up.
    pub young_bytes: u64,
    /// What goes, together.
    pub goes: Vec<TotalRow>,
    /// What goes, one by one.
    pub objects: Vec<ObjectRow>,
    /// What writes have left that were killed, as old as the grace.
    pub unfinished: Vec<UnfinishedRow>,
    /// How many objects were marked before and are needed now.
    pub released: u64,
    /// Bytes deleted; in a plan: to be deleted.
    pub freed_bytes: u64,
    /// Bytes that stay marked.
    pub marked_bytes: u64,
    /// What the store did not delete.
    pub refused: Vec<Refusal>,
    /// What could not be read.
    pub remarks: Vec<String>,
}

impl PrunePlan {
    /// What would be done.
    pub fn preview(&self) -> PruneReport {
        self.report(true, &BTreeMap::new())
    }

    /// `done`: what became of the objects that were to be deleted, and what the store said of those that it refused.
    pub(super) fn report(
        &self,
        dry_run: bool,
        done: &BTreeMap<String, (Step, Option<String>)>,
    ) -> PruneReport {
        let step = |path: &str| match done.get(path) {
            Some((step, _)) => *step,
            None => self.step(path),
        };
        let objects: Vec<ObjectRow> = self
            .judgement
            .unneeded
            .iter()
            .map(|(path, candidate)| ObjectRow {
                path: path.clone(),
                kind: candidate.kind,
                bytes: candidate.object.bytes,
                why: candidate.why,
                step: step(path),
                not_before: self.not_before(path),
            })
            .collect();
        let unfinished: Vec<UnfinishedRow> = self
            .unfinished
            .iter()
            .map(|file| UnfinishedRow {
                path: file.path.clone(),
                bytes: file.bytes,
                step: done.get(&file.path).map_or(Step::Delete, |(step, _)| *step),
            })
            .collect();
        let bytes_of = |wanted: &[Step]| {
            let objects = objects.iter().map(|object| (object.step, object.bytes));
            let files = unfinished.iter().map(|file| (file.step, file.bytes));
            let fitting = objects.chain(files).filter(|(step, _)| wanted.contains(step));
            fitting.fold(0_u64, |sum, (_, bytes)| sum.saturating_add(bytes))
        };
        let refused = done.iter().filter_map(|(path, (_, said))| {
            said.as_ref().map(|error| Refusal { path: path.clone(), error: error.clone() })
        });
        PruneReport {
            cluster: self.options.cluster.clone(),
            dry_run,
            grace_s: self.options.grace.as_secs(),
            backups: self.backup_rows(&objects),
            unreadable: self.stock.unreadable.clone(),
            stays: self.stays(),
            young_bytes: self.judgement.young.1,
            goes: together(&objects),
            released: self.released(),
            freed_bytes: bytes_of(&[Step::Delete, Step::Deleted]),
            marked_bytes: bytes_of(&[Step::Mark, Step::Wait, Step::Refused]),
            unfinished,
            refused: refused.collect(),
            remarks: self.stock.remarks.clone(),
            objects,
        }
    }

    fn not_before(&self, path: &str) -> Timestamp {
        let marked = self.marked.get(path).copied().unwrap_or(self.now);
        marked.checked_add(self.options.grace).unwrap_or(Timestamp::MAX)
    }

    fn backup_rows(&self, objects: &[ObjectRow]) -> Vec<BackupRow> {
        let steps: BTreeMap<&str, Step> = objects
            .iter()
            .filter(|object| object.kind == ObjectKind::Backup)
            .map(|object| (object.path.as_str(), object.step))
            .collect();
        let row = |manifest: &slotkeep_format::Manifest| {
            let why = self.judgement.keep.get(&manifest.id);
            let path = self.stock.manifest_objects.get(&manifest.id).map(|object| object.path.as_str());
            BackupRow {
                id: manifest.id.clone(),
                kind: manifest.kind,
                finished_at: manifest.finished_at,
                kept_for: why.into_iter().flatten().copied().collect(),
                step: path.and_then(|path| steps.get(path).copied()),
            }
        };
        self.stock.manifests.iter().map(row).collect()
    }

    fn stays(&self) -> Vec<TotalRow> {
        let rows = self.judgement.stays.iter();
        rows.map(|(kind, (objects, bytes))| TotalRow {
            kind: *kind,
            why: None,
            step: None,
            objects: *objects,
            bytes: *bytes,
        })
        .collect()
    }
}

fn together(objects: &[ObjectRow]) -> Vec<TotalRow> {
    let mut sums: BTreeMap<(ObjectKind, Unneeded, Step), (u64, u64)> = BTreeMap::new();
    for object in objects {
        let (count, bytes) = sums.entry((object.kind, object.why, object.step)).or_default();
        *count = count.saturating_add(1);
        *bytes = bytes.saturating_add(object.bytes);
    }
    sums.into_iter()
        .map(|((kind, why, step), (objects, bytes))| TotalRow {
            kind,
            why: Some(why),
            step: Some(step),
            objects,
            bytes,
        })
        .collect()
}
