//! The cluster that a backup was taken from must not take writes any more when another opens in its place.

use slotkeep_jobs::fence::{OldCluster, OldNodes};
use slotkeep_jobs::{Context, Error, Result};
use slotkeep_model::NodeAddr;
use slotkeep_repo::{Looks, Repository};

use super::aim::Wanted;
use crate::output::Output;

/// What must hold before the new nodes are opened.
pub(super) struct Opening<'a> {
    context: &'a Context,
    old: OldNodes,
    /// Whether the two may live side by side.
    beside_old: bool,
}

impl<'a> Opening<'a> {
    pub(super) async fn new(
        context: &'a Context,
        output: &Output,
        repository: &Repository,
        cluster: &str,
        wanted: &Wanted,
        beside_old: bool,
    ) -> Result<Self> {
        let Looks { records: mut topologies, unread } = repository.looks(cluster).await?;
        for look in unread {
            let error = look.error;
            output.warn(&format!("{error}: nodes that nothing else names are not looked for"));
        }
        topologies.sort_by(|one, other| (one.seen_at, &one.id).cmp(&(other.seen_at, &other.id)));
        let old = OldNodes::of(&wanted.point.manifest, topologies.last());
        Ok(Self { context, old, beside_old })
    }

    /// Before anything is written.
    pub(super) async fn check(&self, output: &Output, new: &[NodeAddr]) -> Result<()> {
        let found = self.old.look(self.context).await?;
        found.check_addresses(new.iter())?;
        if self.beside_old {
            return Ok(());
        }
        found.check_closed()?;
        warn_of_silence(output, &found);
        Ok(())
    }

    /// When everything is written, and before clients are let in: writing may have taken hours.
    pub(super) async fn check_again(&self) -> Result<()> {
        if self.beside_old {
            return Ok(());
        }
        let found = self.old.look(self.context).await?;
        found.check_closed().map_err(|error| {
            Error::new(error.kind(), format!("the new cluster was not opened: {error}"))
                .hint(error.advice().unwrap_or_default())
        })
    }
}

fn warn_of_silence(output: &Output, found: &OldCluster) {
    if found.silent.is_empty() {
        return;
    }
    let nodes: Vec<String> = found.silent.iter().map(ToString::to_string).collect();
    output.warn(&format!(
        "these nodes of the old cluster do not answer: {}; see to it that they are gone, and not only cut off together with clients",
        nodes.join(", ")
    ));
}
