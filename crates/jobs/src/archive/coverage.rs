//! Whether the repository holds everything of a line from a base up to a place, whoever wrote it.

use std::collections::HashMap;

use slotkeep_format::Parent;
use slotkeep_format::manifest::ShardCut;
use slotkeep_model::ReplId;
use slotkeep_repo::Repository;

use super::held::contiguous;
use crate::{Error, Result};

/// Histories in a row are no more than this.
const MOST_GENERATIONS: usize = 10_000;

/// What to do about a line of another agent that leads over a record which can't be read: the agent itself knows where its histories come from, and
/// looks again only when it begins.
const BROKEN_ADVICE: &str = "run `slotkeep repair`, which makes the record again from the log; or restart the agent that follows those slots: \
     it begins anew there with a base";

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
        let record = match self.repository.history(&self.cluster, history).await {
            // Only what runs with it in mind knows the way, and whoever restores does not.
            Err(error) if error.problem.tells_nothing() => {
                let words = error.to_string();
                return Err(Error::new(Error::from(error).kind(), words).hint(BROKEN_ADVICE));
            }
            known => known?,
        };
        let Some(record) = record else { return Ok(None) };
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

    fn id(letter: &str) -> ReplId {
        letter.repeat(40).parse().unwrap()
    }

    /// Where the log of `b` goes on behind offset 30 of `a`.
    async fn failed_over(folder: &std::path::Path) -> (Repository, std::path::PathBuf) {
        let location = Location::Folder(folder.join("repo"));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let repository = Repository::init(&location, "0".repeat(32), now).await.unwrap();
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: id("b"),
            parent: Some(Parent { history: id("a"), fork: 30 }),
            slots: slotkeep_model::SlotSet::full(),
            source: "127.0.0.1:1".parse().unwrap(),
            first_seen_at: now,
        };
        repository.put_history("main", &record).await.unwrap();
        (repository, folder.join(format!("repo/main/history/{}/history.json", id("b"))))
    }

    #[tokio::test]
    async fn a_damaged_record_on_the_way_is_said_and_not_asked_for_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (repository, record) = failed_over(folder.path()).await;
        let whole = std::fs::read(&record).unwrap();
        std::fs::write(&record, b"{").unwrap();
        let mut coverage = Coverage::new(&repository, "main");
        let cut = ShardCut { history: id("b"), offset: 30 };
        let error = coverage.reaches(&id("a"), 30, &cut).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("{}/history.json", id("b"))), "{error}");
        assert!(error.advice().unwrap().contains("slotkeep repair"));
        // A base of the history itself leads there without it.
        assert!(coverage.reaches(&id("b"), 30, &cut).await.unwrap());
        // It is read again when it was repaired.
        std::fs::write(&record, whole).unwrap();
        assert!(coverage.reaches(&id("a"), 30, &cut).await.unwrap());
    }

    #[tokio::test]
    async fn a_base_behind_where_the_line_left_its_history_is_not_covered() {
        let folder = tempfile::tempdir().unwrap();
        let (repository, _) = failed_over(folder.path()).await;
        let [old, new] = ["a", "b"].map(id);
        let mut coverage = Coverage::new(&repository, "main");
        let cut = ShardCut { history: new, offset: 30 };
        assert!(coverage.reaches(&old, 30, &cut).await.unwrap());
        assert!(!coverage.reaches(&old, 40, &cut).await.unwrap());
        assert!(!coverage.reaches(&old, 20, &cut).await.unwrap(), "there is no log");
    }
}
