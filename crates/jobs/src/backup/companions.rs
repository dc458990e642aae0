//! What an incremental backup goes on from, where it goes to several repositories.
//!
//! Invariant: a repository gets an incremental backup only if it holds the same bases and the same log up to where that begins.

use slotkeep_repo::{Companion, Repository};

use super::{BackupOptions, BackupPlan, find_held};
use crate::archive::held::Held;
use crate::{Context, Error, ErrorKind, Result};

/// Where the log that every repository holds ends. Fails with [`ErrorKind::Gap`] if there is no such place in one that must have the backup;
/// any other is given up.
pub(super) async fn find_held_by_all(
    context: &Context,
    repository: &Repository,
    plan: &BackupPlan,
    options: &BackupOptions,
) -> Result<Vec<Option<Held>>> {
    let held = find_held(context, repository, plan, options).await?;
    let (required, optional): (Vec<_>, Vec<_>) =
        repository.companions().iter().partition(|companion| companion.is_required());
    // Those first that can make the whole fail: a full backup instead goes to all of them again.
    for companion in required {
        look(context, companion, plan, options, &held).await?;
    }
    for companion in optional.into_iter().filter(|companion| companion.failure().is_none()) {
        let looked = look(context, companion, plan, options, &held);
        let looked = match companion.patience() {
            Some(patience) => context.within(patience, looked).await,
            None => Some(looked.await),
        };
        match looked {
            Some(Ok(())) => {}
            Some(Err(error)) => companion.give_up(error),
            None => companion.give_up(format!("{} does not answer", companion.repository().location())),
        }
    }
    Ok(held)
}

/// Tells a companion what it builds on, if it holds the same.
async fn look(
    context: &Context,
    companion: &Companion,
    plan: &BackupPlan,
    options: &BackupOptions,
    held: &[Option<Held>],
) -> Result<()> {
    let location = companion.repository().location();
    let there = find_held(context, companion.repository(), plan, options).await;
    let there = there.map_err(|error| error.context(location))?;
    for (shard, (here, there)) in plan.shards.iter().zip(held.iter().zip(&there)) {
        let (Some((position, base)), Some((position_there, base_there))) = (here, there) else { continue };
        let same = base.base.rdb.path == base_there.base.rdb.path
            && (&position.history, position.offset) == (&position_there.history, position_there.offset);
        if !same {
            let what = format!(
                "{location} does not hold the same as the first repository: of the shard with slots {} its log ends at offset {} of {}, behind {}; \
                 there it ends at offset {} of {}, behind {}",
                shard.shard.slots,
                position_there.offset,
                position_there.history,
                base_there.base.rdb.path,
                position.offset,
                position.history,
                base.base.rdb.path,
            );
            return Err(Error::new(ErrorKind::Gap, what).hint(
                "take a full backup to all of them, or bring the other one up to date with `slotkeep copy`",
            ));
        }
        companion.know_base(&base_there.base);
    }
    Ok(())
}
