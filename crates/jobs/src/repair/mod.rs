//! Making again what can be made from the data, and adopting data that nothing names.
//!
//! Objects are never overwritten. An index or digest that is damaged is made again under another name; a backup that names it gets a twin that
//! names the new one, under its own id with `-r1` behind it (which sorts behind the old one and before every later backup, and is found by the
//! old id, its beginning), and only when the twin is listed the old manifest is deleted.
//!
//! Invariants: nothing of the cluster's data is changed or deleted; a backup that is listed before is listed afterwards, or its twin is;
//! what can't be repaired is named.

mod adopt;
mod look;
mod remake;

use std::collections::BTreeMap;

use serde::Serialize;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::BaseRecord;
use slotkeep_model::ReplId;
use slotkeep_repo::{Repository, StoredObject};

use crate::backup::new_backup_id;
use crate::ports::random_hex;
use crate::prune::{CLOCK_TOLERANCE, compare_clocks};
use crate::{Context, Error, Result};
use look::look;

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// The index and the digest of a base, from its RDB.
    Derived,
    /// A backup whose bases are there and whose manifest is not.
    Adopt,
    /// The file of a history, from its log and how the cluster looked.
    History,
}

/// A repair, planned or done.
#[derive(Clone, Debug, Serialize)]
pub struct RepairRow {
    /// What is repaired.
    pub repair: Repair,
    /// The object or the folder.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
    /// What came of it: the ids of backups, or a path; empty in a plan.
    pub gives: Vec<String>,
}

/// What can't be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The object.
    pub object: String,
    /// What is lost.
    pub what: String,
    /// The backups that need it.
    pub backups: Vec<String>,
}

/// What a plan says, or what a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct RepairReport {
    /// The cluster.
    pub cluster: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// What is repaired.
    pub repairs: Vec<RepairRow>,
    /// What can't be.
    pub lost: Vec<Loss>,
}

/// A base whose index or digest is damaged or missing.
struct Derived {
    record: BaseRecord,
    why: String,
    /// The same base with an index and a digest that are whole, if another manifest names them.
    sound: Option<BaseRecord>,
}

/// Bases of one backup that no manifest of its own names.
struct Orphan {
    id: String,
    /// The history, the last byte that the base holds, and its RDB.
    bases: Vec<(ReplId, u64, StoredObject)>,
    /// Whether a manifest of that id is there and can't be read.
    has_manifest: bool,
}

/// A history whose file is missing or damaged.
struct Nameless {
    history: ReplId,
    /// The file is there and can't be read.
    damaged: bool,
}

/// What would be done.
pub struct RepairPlan {
    cluster: String,
    manifests: Vec<Manifest>,
    /// By the path of the RDB.
    derived: BTreeMap<String, Derived>,
    orphans: Vec<Orphan>,
    nameless: Vec<Nameless>,
    lost: Vec<Loss>,
}

impl RepairPlan {
    /// Looks at everything but the RDBs and the log themselves, which `verify` reads; changes nothing.
    pub async fn make(context: &Context, repository: &Repository, cluster: &str) -> Result<Self> {
        look(context, repository, cluster).await
    }

    /// What would be done.
    pub fn preview(&self) -> RepairReport {
        let derived =
            self.derived.iter().map(|(path, derived)| (Repair::Derived, path.clone(), derived.why.clone()));
        let orphans = self.orphans.iter().map(|orphan| {
            let why = if orphan.has_manifest {
                "its manifest can't be read"
            } else {
                "no manifest names its bases"
            };
            (Repair::Adopt, orphan.id.clone(), why.to_owned())
        });
        let nameless = self.nameless.iter().map(|nameless| {
            let why = if nameless.damaged { "it can't be read" } else { "it is missing" };
            (
                Repair::History,
                slotkeep_repo::layout::history_file(&self.cluster, &nameless.history),
                why.to_owned(),
            )
        });
        let rows = derived.chain(orphans).chain(nameless);
        let repairs =
            rows.map(|(repair, object, why)| RepairRow { repair, object, why, gives: vec![] }).collect();
        RepairReport { cluster: self.cluster.clone(), dry_run: true, repairs, lost: self.lost.clone() }
    }

    /// Does it. Needs what opens an encrypted repository.
    pub async fn run(&self, context: &Context, repository: &Repository) -> Result<RepairReport> {
        let mut report = RepairReport { dry_run: false, ..self.preview() };
        if report.repairs.is_empty() {
            return Ok(report);
        }
        repository.check_signs()?;
        repository.check_reads()?;
        // Bases that a backup still takes are told from those of one that ended by their age.
        if self.orphans.iter().any(|orphan| !orphan.has_manifest) {
            let told = repository.store_time(&random_hex(&*context.rng, 8)?).await?;
            compare_clocks(context, told, Some(CLOCK_TOLERANCE), "nothing is repaired")?;
        }
        let id = new_backup_id(context)?;
        let mut rows = Vec::new();
        let mut note = |row: RepairRow, done: Result<Vec<String>>| match done {
            Ok(gives) => {
                rows.push(RepairRow { gives, ..row });
                Ok(None)
            }
            Err(error) if error.kind() == crate::ErrorKind::Corrupt => {
                Ok(Some(Loss { object: row.object, what: error.to_string(), backups: vec![] }))
            }
            Err(error) => Err(error),
        };
        let stopped = || if context.stop.is_cancelled() { Err(Error::interrupted()) } else { Ok(()) };
        let mut planned = std::mem::take(&mut report.repairs).into_iter();
        // Histories first: whoever adopts a base looks where it belongs.
        let (later, histories): (Vec<_>, Vec<_>) =
            planned.by_ref().partition(|row| row.repair != Repair::History);
        for (row, nameless) in histories.into_iter().zip(&self.nameless) {
            stopped()?;
            let done = adopt::history(repository, &self.cluster, nameless).await;
            let (done, unknown) = match done {
                Ok((path, unknown)) => (Ok(vec![path]), unknown),
                Err(error) => (Err(error), None),
            };
            let unknown = unknown.map(|what| Loss { object: row.object.clone(), what, backups: vec![] });
            report.lost.extend(note(row, done)?.into_iter().chain(unknown));
        }
        let mut remade: BTreeMap<String, BaseRecord> = BTreeMap::new();
        let (derived, orphans): (Vec<_>, Vec<_>) =
            later.into_iter().partition(|row| row.repair == Repair::Derived);
        let mut written = Vec::new();
        for (row, (path, derived)) in derived.into_iter().zip(&self.derived) {
            stopped()?;
            let made = match &derived.sound {
                Some(sound) => Ok(sound.clone()),
                None => remake::base(repository, &derived.record, &id).await,
            };
            match made {
                Ok(record) => {
                    remade.insert(path.clone(), record);
                    written.push(row);
                }
                Err(error) => report.lost.extend(note(row, Err(error))?),
            }
        }
        let twins = remake::twins(context, repository, &self.manifests, &remade).await?;
        for row in written {
            let gives =
                twins.iter().filter(|(_, bases)| bases.contains(&row.object)).map(|(id, _)| id.clone());
            let gives = gives.collect();
            note(row, Ok(gives))?;
        }
        for (row, orphan) in orphans.into_iter().zip(&self.orphans) {
            stopped()?;
            let done =
                adopt::backup(context, repository, &self.manifests, (&self.cluster, orphan), &id).await;
            report.lost.extend(note(row, done)?);
        }
        report.repairs = rows;
        Ok(report)
    }
}
