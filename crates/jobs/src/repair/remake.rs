//! Index and digest from the RDB, and the backups that name them.

use std::collections::{BTreeMap, BTreeSet};

use slotkeep_format::manifest::{BaseRecord, ObjectRecord};
use slotkeep_format::prune::PRUNE_VERSION;
use slotkeep_format::{Manifest, PinRecord, encode_digest};
use slotkeep_model::SlotDigest;
use slotkeep_repo::{Repository, layout};

use crate::backup::base::put_digest;
use crate::backup::pipeline::{Remade, index_again};
use crate::backup::{HASH_VERSION, new_backup_id};
use crate::base::Base;
use crate::{Context, Error, ErrorKind, Result};

/// Makes index and digest of an RDB, and writes them.
pub(super) async fn derive(
    repository: &Repository,
    rdb: &ObjectRecord,
    repair: &str,
    seen: impl FnMut(&[u8]),
) -> Result<(Remade, ObjectRecord)> {
    let (folder, _, _) = layout::base_of(&rdb.path)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{} is in no base's folder", rdb.path)))?;
    let (index, digest) = layout::remade(folder, repair);
    let remade = index_again(repository, rdb, index, seen).await?;
    let digest = put_digest(repository, digest, encode_digest(&remade.digest, HASH_VERSION)).await?;
    Ok((remade, digest))
}

/// The record of a base whose index and digest were made again.
pub(super) async fn base(repository: &Repository, record: &BaseRecord, repair: &str) -> Result<BaseRecord> {
    let (remade, digest) = derive(repository, &record.rdb, repair, |_| ()).await?;
    Ok(BaseRecord {
        index: Some(remade.index),
        digest: Some(digest),
        keys: Some(remade.digest.keys()),
        functions: Some(remade.digest.functions.keys),
        ..record.clone()
    })
}

/// Lists a twin of every backup that names one of these bases, and then deletes the manifest that it replaces. Gives the twins' ids, each with the
/// paths of the RDBs.
pub(super) async fn twins(
    context: &Context,
    repository: &Repository,
    manifests: &[Manifest],
    remade: &BTreeMap<String, BaseRecord>,
) -> Result<Vec<(String, BTreeSet<String>)>> {
    let taken: BTreeSet<&str> = manifests.iter().map(|manifest| manifest.id.as_str()).collect();
    let is_sound = |manifest: &Manifest| {
        let mut bases = manifest.shards.iter().map(|shard| &shard.base);
        bases.all(|base| remade.get(&base.rdb.path).is_none_or(|record| record == base))
    };
    let mut twins = Vec::new();
    for manifest in manifests {
        let mut twin = manifest.clone();
        let mut bases = BTreeSet::new();
        for shard in &mut twin.shards {
            if let Some(record) = remade.get(&shard.base.rdb.path).filter(|record| **record != shard.base) {
                shard.base = record.clone();
                bases.insert(record.rdb.path.clone());
            }
        }
        if bases.is_empty() {
            continue;
        }
        let earlier = manifests.iter().find(|other| {
            other.id > manifest.id && plain(&other.id) == plain(&manifest.id) && is_sound(other)
        });
        match earlier {
            // Listed by a run that was killed.
            Some(earlier) => twin.id.clone_from(&earlier.id),
            None => {
                twin.id = next_id(&manifest.id, &taken);
                twin.digest = total(repository, &twin).await?;
                repository.commit(&twin).await?;
            }
        }
        move_pins(context, repository, &manifest.cluster, (&manifest.id, &twin.id)).await?;
        repository.delete(&layout::manifest_file(&manifest.cluster, &manifest.id)).await?;
        twins.push((twin.id, bases));
    }
    Ok(twins)
}

/// Pins the backup that takes another one's place if that is pinned, and then takes the other's pins away: who unpins it means the new one.
pub(super) async fn move_pins(
    context: &Context,
    repository: &Repository,
    cluster: &str,
    (from, to): (&str, &str),
) -> Result<()> {
    let Some(pins) = repository.pins(cluster).await?.remove(from) else { return Ok(()) };
    let pin = PinRecord {
        format_version: PRUNE_VERSION,
        id: new_backup_id(context)?,
        cluster: cluster.to_owned(),
        backup: to.to_owned(),
        at: context.clock.now(),
    };
    repository.put_pin(&pin).await?;
    for path in &pins {
        repository.delete(path).await?;
    }
    Ok(())
}

/// The id of the backup that this one is the twin of, if it is one.
pub(super) fn plain(id: &str) -> &str {
    match id.rsplit_once("-r") {
        Some((plain, number)) if number.parse::<u32>().is_ok() => plain,
        _ => id,
    }
}

/// The id with `-r1` behind it, or the next number that is free.
pub(super) fn next_id(id: &str, taken: &BTreeSet<&str>) -> String {
    let plain = plain(id);
    let mut number = 1_u32;
    loop {
        let next = format!("{plain}-r{number}");
        if !taken.contains(next.as_str()) || number == u32::MAX {
            return next;
        }
        number = number.saturating_add(1);
    }
}

/// The sum over all bases; nothing if one of them was not interpreted.
pub(super) async fn total(repository: &Repository, manifest: &Manifest) -> Result<Option<SlotDigest>> {
    let mut sum = SlotDigest::default();
    for shard in &manifest.shards {
        let Ok(base) = Base::open(repository, &shard.base) else { return Ok(None) };
        match base.digest().await {
            Ok(digest) => sum.merge(digest.total()),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(sum))
}

#[cfg(test)]
mod tests {
    use super::next_id;

    #[test]
    fn a_twin_sorts_behind_the_backup_and_before_later_ones() {
        let id = "20261125T234538.544Z-4adb";
        let taken = [id].into();
        let first = next_id(id, &taken);
        assert_eq!(first, "20261125T234538.544Z-4adb-r1");
        assert!(first.as_str() > id && first.as_str() < "20261125T234538.545Z-0000");
        let taken = [id, &first].into();
        assert_eq!(next_id(&first, &taken), "20261125T234538.544Z-4adb-r2");
    }
}
