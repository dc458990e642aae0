//! What is wrong, and what can be made of it.

use std::collections::{BTreeMap, BTreeSet};

use slotkeep_format::Manifest;
use slotkeep_format::manifest::BaseRecord;
use slotkeep_model::ReplId;
use slotkeep_repo::{Area, Problem, RepoError, Repository, SegmentEntry, StoredObject, layout};

use super::remake::plain;
use super::{Derived, Loss, Nameless, Orphan, RepairPlan};
use crate::{Context, Result};

/// Objects that nothing names may belong to a backup that runs, for so long.
const RUNNING_MS: i64 = 24 * 3_600_000;

/// Looks at everything.
pub(super) async fn look(context: &Context, repository: &Repository, cluster: &str) -> Result<RepairPlan> {
    let mut there: BTreeMap<String, StoredObject> = BTreeMap::new();
    let (mut nameless, mut lost) = (Vec::new(), Vec::new());
    for history in repository.histories(cluster).await? {
        let objects = repository.stored_objects(cluster, Area::History(&history)).await?;
        let has_log = objects.iter().any(|object| SegmentEntry::of(&history, object).is_some());
        match repository.history(cluster, &history).await {
            Ok(None) if has_log => nameless.push(Nameless { history, damaged: false }),
            Ok(_) => {}
            Err(error) if is_damaged(&error) => nameless.push(Nameless { history, damaged: true }),
            Err(error) if is_refused(&error) => {
                let object = layout::history_file(cluster, &history);
                lost.push(Loss { object, what: error.to_string(), backups: vec![] });
            }
            Err(error) => return Err(error.into()),
        }
        there.extend(objects.into_iter().map(|object| (object.path.clone(), object)));
    }
    for look in repository.looks(cluster).await?.unread {
        let what = format!(
            "{}: which shard served what from the look before it to the one behind it is lost; `slotkeep list` says which moments those are",
            look.error.problem
        );
        lost.push(Loss { object: look.object, what, backups: vec![] });
    }
    let listing = repository.backups(cluster).await?;
    let mut damaged = BTreeSet::new();
    for backup in listing.unreadable {
        // One that a prune has deleted since it was listed is no damage.
        if matches!(backup.error.problem, Problem::Missing) {
            continue;
        }
        if is_damaged(&backup.error) {
            damaged.insert(backup.id);
        } else {
            let object = layout::manifest_file(cluster, &backup.id);
            lost.push(Loss { object, what: backup.error.to_string(), backups: vec![backup.id] });
        }
    }
    let mut plan = RepairPlan {
        cluster: cluster.to_owned(),
        manifests: listing.backups,
        derived: BTreeMap::new(),
        orphans: Vec::new(),
        nameless,
        lost,
    };
    bases(repository, &there, &mut plan).await?;
    orphans(context, repository, &there, &damaged, &mut plan).await?;
    for id in &damaged {
        if plan.orphans.iter().any(|orphan| orphan.id == *id) {
            continue;
        }
        if plan.manifests.iter().any(|manifest| plain(&manifest.id) == plain(id)) {
            // A run that was killed has listed another in its place already.
            plan.orphans.push(Orphan { id: id.clone(), bases: vec![], has_manifest: true });
        } else {
            let what = "its manifest can't be read, and no base bears its id: where it ended is lost. As long as it is there, nothing that it may name is pruned; delete it when all that it named is in other backups";
            let object = layout::manifest_file(cluster, id);
            plan.lost.push(Loss { object, what: what.to_owned(), backups: vec![id.clone()] });
        }
    }
    Ok(plan)
}

const fn is_damaged(error: &RepoError) -> bool {
    matches!(error.problem, Problem::Damaged(_))
}

/// What somebody else wrote, or a newer Slotkeep.
const fn is_refused(error: &RepoError) -> bool {
    matches!(error.problem, Problem::Untrusted(_) | Problem::Newer(_))
}

/// The RDBs that manifests name: what is said of each, and by which backups.
type Named = BTreeMap<String, Vec<(BaseRecord, Vec<String>)>>;

fn named(manifests: &[Manifest]) -> Named {
    let mut named = Named::new();
    for manifest in manifests {
        for shard in &manifest.shards {
            let said = named.entry(shard.base.rdb.path.clone()).or_default();
            match said.iter_mut().find(|(record, _)| *record == shard.base) {
                Some((_, backups)) => backups.push(manifest.id.clone()),
                None => said.push((shard.base.clone(), vec![manifest.id.clone()])),
            }
        }
    }
    named
}

async fn bases(
    repository: &Repository,
    there: &BTreeMap<String, StoredObject>,
    plan: &mut RepairPlan,
) -> Result<()> {
    for (path, said) in named(&plan.manifests) {
        let Some((record, _)) = said.first() else { continue };
        // Objects were listed before manifests: a backup that was written meanwhile names some that came since.
        let found = match there.get(&path) {
            Some(found) => Some(found.bytes),
            None => repository.stored_bytes(&path).await?,
        };
        match found {
            Some(bytes) if bytes == record.rdb.stored_bytes => {}
            found => {
                let what = if found.is_some() { "it has another length" } else { "it is missing" };
                let what = format!("{what}: an RDB can't be made from anything");
                let backups = said.into_iter().flat_map(|(_, backups)| backups).collect();
                plan.lost.push(Loss { object: path, what, backups });
                continue;
            }
        }
        if record.not_interpreted.is_some() {
            continue;
        }
        let (mut damaged, mut sound) = (None, None);
        for (record, _) in said {
            match wrong(repository, &record).await? {
                // A run that was killed has made them again already.
                None => sound = Some(record),
                Some(why) => damaged = Some((record, why)),
            }
        }
        if let Some((record, why)) = damaged {
            plan.derived.insert(path, Derived { record, why, sound });
        }
    }
    Ok(())
}

/// What is wrong with the index and the digest of a base.
async fn wrong(repository: &Repository, record: &BaseRecord) -> Result<Option<String>> {
    let mut why = Vec::new();
    for (name, object) in [("index", &record.index), ("digest", &record.digest)] {
        let Some(object) = object else {
            why.push(format!("it has no {name}"));
            continue;
        };
        match repository.verify(object, |_| ()).await {
            Ok(()) => {}
            Err(RepoError { problem: Problem::Missing, .. }) => why.push(format!("its {name} is missing")),
            Err(error) if is_damaged(&error) => why.push(format!("its {name} is damaged")),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((!why.is_empty()).then(|| why.join(", ")))
}

/// Backups whose manifest is damaged, or is lost and one of whose bases no manifest names, that were not pruned and run no more: with all their
/// bases, whichever of them others name as well.
async fn orphans(
    context: &Context,
    repository: &Repository,
    there: &BTreeMap<String, StoredObject>,
    damaged: &BTreeSet<String>,
    plan: &mut RepairPlan,
) -> Result<()> {
    let named = named(&plan.manifests);
    let pruned = repository.pruned(&plan.cluster).await?;
    let now_ms = context.clock.now().as_millisecond();
    let mut running: BTreeSet<&str> = BTreeSet::new();
    let mut found: BTreeMap<&str, Vec<(ReplId, u64, StoredObject)>> = BTreeMap::new();
    for object in there.values() {
        let Some((folder, offset, id)) = layout::base_of(&object.path) else { continue };
        let Some(history) = folder.rsplit('/').nth(2).and_then(|name| name.parse::<ReplId>().ok()) else {
            continue;
        };
        if now_ms.saturating_sub(object.modified_ms) < RUNNING_MS {
            running.insert(id);
        }
        if object.name() == layout::RDB_FILE {
            found.entry(id).or_default().push((history, offset, object.clone()));
        }
    }
    // Bases bear the id of the backup that took them, and a twin has another.
    let of_damaged: BTreeMap<&str, &String> = damaged.iter().map(|id| (plain(id), id)).collect();
    for (id, mut bases) in found {
        let manifest = of_damaged.get(id).copied();
        let has_manifest = manifest.is_some();
        let is_unnamed = |(_, _, object): &(ReplId, u64, StoredObject)| !named.contains_key(&object.path);
        if plan.manifests.iter().any(|manifest| plain(&manifest.id) == id) {
            // What it or its twin does not name is left over.
            bases.retain(is_unnamed);
        } else if !has_manifest && !bases.iter().any(is_unnamed) {
            continue;
        }
        if bases.is_empty() {
            continue;
        }
        let leave = pruned.gave_up_backup(&plan.cluster, id) || running.contains(id);
        if has_manifest || !leave {
            let id = manifest.cloned().unwrap_or_else(|| id.to_owned());
            plan.orphans.push(Orphan { id, bases, has_manifest });
        }
    }
    Ok(())
}
