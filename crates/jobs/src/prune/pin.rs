//! Pinning backups.
//!
//! Invariant: a backup is pinned as long as any of its pins exists. So two machines that pin and unpin at the same time leave it pinned or not,
//! and in no state between; no condition is needed.

use serde::Serialize;
use slotkeep_format::PinRecord;
use slotkeep_format::prune::PRUNE_VERSION;
use slotkeep_repo::{BackupSelector, Problem, RepoError, Repository};

use crate::backup::new_backup_id;
use crate::{Context, Result};

/// A backup, and whether it is pinned now.
#[derive(Clone, Debug, Serialize)]
pub struct Pinned {
    /// Its id.
    pub backup: String,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether that was so before.
    pub unchanged: bool,
}

/// Pins a backup.
pub async fn pin(
    context: &Context,
    repository: &Repository,
    cluster: &str,
    backup: &BackupSelector,
) -> Result<Pinned> {
    let backup = repository.find(cluster, backup).await?.id;
    let unchanged = repository.pins(cluster).await?.contains_key(&backup);
    if !unchanged {
        let pin = PinRecord {
            format_version: PRUNE_VERSION,
            id: new_backup_id(context)?,
            cluster: cluster.to_owned(),
            backup: backup.clone(),
            at: context.clock.now(),
        };
        repository.put_pin(&pin).await?;
        // A prune writes down what it gives up before it looks for pins: it has seen this one, or is seen here.
        if repository.pruned(cluster).await?.gave_up_backup(cluster, &backup) {
            let problem = Problem::Pruned(format!("backup {backup}"));
            return Err(RepoError { doing: "pin", on: backup, problem }.into());
        }
    }
    Ok(Pinned { backup, pinned: true, unchanged })
}

/// Takes the pins of a backup away. The backup may be gone already.
pub async fn unpin(repository: &Repository, cluster: &str, backup: &BackupSelector) -> Result<Pinned> {
    let pins = repository.pins(cluster).await?;
    let backup = match backup {
        BackupSelector::Id(id) if pins.contains_key(id) => id.clone(),
        selector => repository.find(cluster, selector).await?.id,
    };
    let own = pins.get(&backup);
    for path in own.into_iter().flatten() {
        repository.delete(path).await?;
    }
    Ok(Pinned { backup, pinned: false, unchanged: own.is_none() })
}
