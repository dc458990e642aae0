//! Bringing a backup back: as data directories of a new cluster ([`files`]), or into a running one. What both share stands here.

pub mod files;

pub mod live;

use slotkeep_format::Manifest;
use slotkeep_model::{Product, ServerVersion};

use crate::log::point::Point;
use crate::{Error, ErrorKind, Result};

/// Refuses a target that does not load what the backup holds.
pub fn check_loads(manifest: &Manifest, target: ServerVersion) -> Result<()> {
    let refused = manifest.shards.iter().find(|shard| !target.loads(shard.base.rdb_version));
    let Some(shard) = refused else { return Ok(()) };
    let source = shard
        .server
        .version()
        .map_or_else(|| "the server it came from".to_owned(), |server| server.to_string());
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "{target} does not load the snapshot of slots {}, which is in the format {} of {source}",
            shard.slots, shard.base.rdb_version
        ),
    )
    .hint(format!("restore to {source} or a newer version of the same product")))
}

/// Refuses a target that may not know every command of the log: to a server that loads an append-only file, an unknown one is fatal.
pub fn check_applies(point: &Point, target: ServerVersion) -> Result<()> {
    let line = |server: ServerVersion| (server.major, server.minor);
    for shard in point.shards.iter().filter(|shard| shard.log_bytes > 0) {
        let Some(source) = shard.server else { continue };
        let knows = match (source.product, target.product) {
            // Valkey began as Redis 7.2.
            (Product::Redis, Product::Valkey) => line(source) <= (7, 2),
            (source_product, target_product) => {
                source_product == target_product && line(source) <= line(target)
            }
        };
        if !knows {
            let what = format!(
                "{target} may not know every command in the log of slots {}, which {source} wrote",
                shard.slots
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint(format!("restore to {source} or a newer version of the same product")));
        }
    }
    Ok(())
}

/// Refuses a backup that lacks slots, unless that is wanted.
pub fn check_complete(manifest: &Manifest, allow_partial: bool) -> Result<()> {
    if !manifest.partial || allow_partial {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "backup {} is partial: it lacks {} slots ({})",
            manifest.id,
            manifest.missing_slots.len(),
            manifest.missing_slots
        ),
    )
    .hint("choose another backup, or restore what there is with --allow-partial"))
}
