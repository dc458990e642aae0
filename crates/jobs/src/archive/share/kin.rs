//! Which agents are about this cluster, and which about another under the same name.
//!
//! Each says with its presence by what its cluster can be known again: ids of nodes, or of a standalone server's histories. Those change with time, so it
//! is said anew with every renewal. Invariants: an agent that does not say it is taken for one of this cluster; a stranger that is dead or frozen
//! keeps nobody from beginning, and one that lives is never joined.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use slotkeep_format::lease::{ClusterMark, PRESENCE_PREFIX};
use slotkeep_format::{Holder, LeaseRecord};
use slotkeep_model::{NodeId, Shard};
use slotkeep_repo::Repository;

use crate::discover::Discovery;
use crate::{Context, Error, ErrorKind, Result};

/// How many histories of a standalone server are remembered: another agent may have seen it before it began a new one.
const KEPT_HISTORIES: usize = 16;
/// How often is looked while strangers are waited for, within the time they have.
const LOOKS: u32 = 5;

/// What this agent knows of its cluster, to be known by.
pub(super) struct Kin {
    mark: ClusterMark,
    /// Of a standalone server, the newest last.
    histories: VecDeque<String>,
    /// The strangers that were named.
    named: BTreeSet<String>,
}

impl Kin {
    pub(super) fn of(discovery: &Discovery) -> Self {
        let mark = ClusterMark::of(&discovery.answered, std::iter::empty());
        let mut kin = Self { mark, histories: VecDeque::new(), named: BTreeSet::new() };
        kin.see(discovery);
        kin
    }

    /// Takes note of how the cluster looks now.
    pub(super) fn see(&mut self, discovery: &Discovery) {
        // The current one comes first there.
        for history in discovery.histories().iter().rev() {
            self.histories.retain(|known| known != history.as_str());
            self.histories.push_back(history.as_str().to_owned());
        }
        while self.histories.len() > KEPT_HISTORIES {
            self.histories.pop_front();
        }
        let shards = &discovery.topology().shards;
        let at = shards.first().map_or(&discovery.answered, |shard| &shard.primary.addr);
        let ids = shards.iter().flat_map(Shard::nodes).filter_map(|node| node.id.as_ref());
        let ids = ids.map(NodeId::as_str).chain(self.histories.iter().map(String::as_str));
        self.mark = ClusterMark::of(at, ids);
    }

    pub(super) fn mark(&self) -> ClusterMark {
        self.mark.clone()
    }

    /// Whether a presence is of an agent of another cluster.
    pub(super) fn is_strange(&self, presence: &LeaseRecord) -> bool {
        presence.note.cluster.as_ref().is_some_and(|mark| mark.is_of_another_than(&self.mark))
    }

    /// Waits until whoever works here for another cluster is known to be dead, or turns out to be about this one: its view may be a little old. Gives the
    /// dead, with the numbers of their last records. Fails if one lives.
    pub(super) async fn await_no_stranger(
        &self,
        context: &Context,
        repository: &Repository,
        cluster: &str,
        holder: &Holder,
    ) -> Result<BTreeMap<String, u64>> {
        let first = self.look(repository, cluster, holder).await?;
        let given = first.values().map(|record| record.duration_ms.saturating_add(record.duration_ms / 8));
        let Some(patience) = given.max().map(Duration::from_millis) else { return Ok(BTreeMap::new()) };
        let began_at = context.clock.elapsed();
        loop {
            let left = patience.saturating_sub(context.clock.elapsed().saturating_sub(began_at));
            context.clock.sleep(left.min(patience / LOOKS)).await;
            let now = self.look(repository, cluster, holder).await?;
            if now.is_empty() || context.clock.elapsed().saturating_sub(began_at) >= patience {
                let number = |agent: &String| first.get(agent).map(|record| record.number);
                let lives = |(agent, record): &(&String, &LeaseRecord)| number(agent) != Some(record.number);
                return match now.iter().find(lives) {
                    Some((_, record)) => Err(self.refusal(cluster, record)),
                    None => Ok(now.into_iter().map(|(agent, record)| (agent, record.number)).collect()),
                };
            }
        }
    }

    /// The presences of strangers that have not ended in order, by their agents.
    async fn look(
        &self,
        repository: &Repository,
        cluster: &str,
        holder: &Holder,
    ) -> Result<BTreeMap<String, LeaseRecord>> {
        let mut found = BTreeMap::new();
        for (name, number) in repository.leases(cluster).await? {
            let Some(agent) = name.strip_prefix(PRESENCE_PREFIX) else { continue };
            if holder.agent.as_deref() == Some(agent) {
                continue;
            }
            let record = repository.lease_record(cluster, &name, number).await?;
            if let Some(record) = record.filter(|record| !record.released && self.is_strange(record)) {
                found.insert(agent.to_owned(), record);
            }
        }
        Ok(found)
    }

    /// That a stranger works under this name.
    pub(super) fn refusal(&self, name: &str, stranger: &LeaseRecord) -> Error {
        Error::new(ErrorKind::Conflict, self.words(name, stranger))
            .hint("use one --name per cluster in a repository; if that is this cluster before all its nodes were replaced, stop that agent first")
    }

    /// The same of those that were not named before.
    pub(super) fn name_once(&mut self, name: &str, strangers: &[(String, LeaseRecord)]) -> Vec<String> {
        self.named.retain(|agent| strangers.iter().any(|(other, _)| other == agent));
        let mut words = Vec::new();
        for (agent, record) in strangers {
            if self.named.insert(agent.clone()) {
                words.push(format!("{}: use one --name per cluster", self.words(name, record)));
            }
        }
        words
    }

    fn words(&self, name: &str, stranger: &LeaseRecord) -> String {
        let host = stranger.note.host.as_deref().unwrap_or("another machine");
        let at = stranger.note.cluster.as_ref().map_or("another place", |mark| mark.at.as_str());
        let seconds = Duration::from_millis(stranger.duration_ms).as_secs();
        format!(
            "an agent on {host} archives another cluster under the name `{name}` in this repository, that of {at}, and was alive within the last \
             {seconds} s; this one is that of {}, and no node or history is in both",
            self.mark.at
        )
    }
}
