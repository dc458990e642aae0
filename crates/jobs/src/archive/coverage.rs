//! Whether the repository holds everything of a line from a base up to a place, whoever wrote it.

use std::collections::HashMap;

use slotkeep_format::Parent;
use slotkeep_format::manifest::ShardCut;
use slotkeep_model::ReplId;
use slotkeep_repo::Repository;

use super::held::contiguous;
use crate::Result;

/// Histories in a row are no more than this.
const MOST_GENERATIONS: usize = 10_000;

/// Answers, and remembers where histories come from, which never changes once it is known.
pub(crate) struct Coverage {
    repository: Repository,
    cluster: String,
    parents: HashMap<ReplId, Option<Parent>>,
}

impl Coverage {
    pub(crate) fn new(repository: &Repository, cluster: &str) -> Self {
        Self { repository: repository.clone(), cluster: cluster.to_owned(), parents: HashMap::new() }
    }

    /// Whether the log leads from behind `from` of `history` to `cut`.
    pub(crate) async fn reaches(&mut self, history: &ReplId, from: u64, cut: &ShardCut) -> Result<bool> {
        // From the cut back to the base: each history, and the last byte that is wanted of it.
        let (mut at, mut until) = (cut.history.clone(), cut.offset);
        let mut way = Vec::new();
        while at != *history {
            let Some(parent) = self.parent(&at).await? else { return Ok(false) };
            if way.len() == MOST_GENERATIONS {
                return Ok(false);
            }
            if until > parent.fork {
                way.push((at, parent.fork, until));
            }
            until = until.min(parent.fork);
            at = parent.history;
        }
        way.push((at, from, until));
        for (history, from, until) in way {
            let segments = self.repository.segments(&self.cluster, &history).await?;
            if contiguous(segments.iter().map(|segment| (segment.start, segment.end)), from) < until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn parent(&mut self, history: &ReplId) -> Result<Option<Parent>> {
        if let Some(known) = self.parents.get(history) {
            return Ok(known.clone());
        }
        let Some(record) = self.repository.history(&self.cluster, history).await? else { return Ok(None) };
        self.parents.insert(history.clone(), record.parent.clone());
        Ok(record.parent)
    }
}
