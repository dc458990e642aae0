//! Whether a cluster is the one that a repository knows under a name.
//!
//! What is known of it is how it looked last: by the newest backup, or the newest record of its shape if that is newer. A restored cluster has new
//! nodes, so what has nothing in common may still be the same one: that is for people to say.

use std::collections::HashSet;

use jiff::Timestamp;
use slotkeep_format::manifest::NodeRecord;
use slotkeep_format::{Manifest, TopologyRecord};
use slotkeep_model::{NodeAddr, Shard};
use slotkeep_repo::{BackupSelector, RepoError, Repository};

use crate::discover::Discovery;

/// What to do where another cluster is found than the one that is known.
pub const ADVICE: &str = "use one --name per cluster in a repository; if this is that cluster restored, with new nodes, it may go on under its name";

/// A cluster as it was written down.
struct Known {
    seen_at: Timestamp,
    shards: usize,
    at: Option<NodeAddr>,
    /// Ids of nodes, their addresses, and ids of histories: none can be taken for another.
    signs: HashSet<String>,
}

impl Known {
    fn of_backup(manifest: &Manifest) -> Self {
        let mut known = Self::new(manifest.data_at(), manifest.shards.len());
        for shard in &manifest.shards {
            known.add(std::iter::once(&shard.primary).chain(&shard.replicas));
            known.signs.extend([shard.history.to_string(), shard.cut().history.to_string()]);
        }
        known
    }

    fn of_look(topology: &TopologyRecord) -> Self {
        let mut known = Self::new(topology.seen_at, topology.shards.len());
        for shard in &topology.shards {
            known.add(std::iter::once(&shard.primary).chain(&shard.replicas));
            known.signs.extend(shard.history.as_ref().map(ToString::to_string));
        }
        known
    }

    fn new(seen_at: Timestamp, shards: usize) -> Self {
        Self { seen_at, shards, at: None, signs: HashSet::new() }
    }

    /// The nodes of a shard, its primary first.
    fn add<'a>(&mut self, nodes: impl Iterator<Item = &'a NodeRecord>) {
        for node in nodes {
            self.at.get_or_insert_with(|| node.addr.clone());
            self.signs.insert(node.addr.to_string());
            self.signs.extend(node.id.as_ref().map(ToString::to_string));
        }
    }

    fn shares_nothing_with(&self, discovery: &Discovery) -> bool {
        let nodes = discovery.topology().shards.iter().flat_map(Shard::nodes);
        let histories = discovery.histories().iter().map(ToString::to_string);
        let mut signs = nodes
            .flat_map(|node| [Some(node.addr.to_string()), node.id.as_ref().map(ToString::to_string)])
            .flatten()
            .chain(histories);
        !self.signs.is_empty() && signs.all(|sign| !self.signs.contains(&sign))
    }
}

/// What to say of a cluster that has nothing in common with the one that the repository knows under that name; nothing if it has, or if none is known
/// there. What can't be read tells nothing.
pub async fn unlike(repository: &Repository, name: &str, discovery: &Discovery) -> Option<String> {
    let newest = repository.find(name, &BackupSelector::Latest).await.ok();
    let looked = repository.newest_topology(name).await;
    judge(name, discovery, newest.as_ref(), looked)
}

/// The same, of the newest backup and the newest record of the cluster's shape.
pub(crate) fn judge(
    name: &str,
    discovery: &Discovery,
    newest: Option<&Manifest>,
    looked: Result<Option<TopologyRecord>, RepoError>,
) -> Option<String> {
    let looked = looked.ok().flatten();
    let known = [newest.map(Known::of_backup), looked.as_ref().map(Known::of_look)];
    let known = known.into_iter().flatten().max_by_key(|known| known.seen_at)?;
    if !known.shares_nothing_with(discovery) {
        return None;
    }
    let (seen_at, shards) = (known.seen_at.strftime("%Y-%m-%dT%H:%M:%SZ"), known.shards);
    let of = if shards == 1 { "1 shard".to_owned() } else { format!("{shards} shards") };
    let at = known.at.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
    let found = discovery.topology().shards.first().map_or(&discovery.answered, |shard| &shard.primary.addr);
    Some(format!(
        "this seems to be another cluster than the repository holds under the name `{name}`: that one had {of}{at} on {seen_at}, and the one at \
         {found} has no node, history or address in common with it"
    ))
}
