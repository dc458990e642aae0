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
        // The last byte that the line has of the history.
        let mut left_at = u64::MAX;
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
            left_at = left_at.min(parent.fork);
            at = parent.history;
        }
        // A base behind where the line left its history leads nowhere.
        if from > left_at {
            return Ok(false);
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

#[cfg(test)]
mod tests {
    use slotkeep_format::HistoryRecord;
    use slotkeep_format::lineage::HISTORY_VERSION;
    use slotkeep_repo::Location;

    use super::*;

    #[tokio::test]
    async fn a_base_behind_where_the_line_left_its_history_is_not_covered() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Folder(folder.path().join("repo"));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let repository = Repository::init(&location, "0".repeat(32), now).await.unwrap();
        let [old, new] = ["a", "b"].map(|letter| letter.repeat(40).parse::<ReplId>().unwrap());
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: new.clone(),
            parent: Some(Parent { history: old.clone(), fork: 30 }),
            slots: slotkeep_model::SlotSet::full(),
            source: "127.0.0.1:1".parse().unwrap(),
            first_seen_at: now,
        };
        repository.put_history("main", &record).await.unwrap();
        let mut coverage = Coverage::new(&repository, "main");
        let cut = ShardCut { history: new, offset: 30 };
        assert!(coverage.reaches(&old, 30, &cut).await.unwrap());
        assert!(!coverage.reaches(&old, 40, &cut).await.unwrap());
        assert!(!coverage.reaches(&old, 20, &cut).await.unwrap(), "there is no log");
    }
}
