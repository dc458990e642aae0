//! What is written to several repositories at once, while the store of one of them fails or hangs.

use std::sync::Arc;
use std::time::Duration;

use slotkeep_repo::{Companion, Problem, RepoError, Repository};

use crate::faults::{FateOnce, Faulty};
use crate::folder;
use crate::suite::{
    Place, Protection, history, manifest_naming, noise, read_framed, read_segment, store_framed,
    write_segment,
};

const ID: &str = "20260101T000000.000Z-aaaa";

struct Pair {
    _folders: [tempfile::TempDir; 2],
    first: Repository,
    second: Repository,
    faulty: Faulty,
}

impl Pair {
    async fn new(protection: Protection) -> Self {
        let ((folder, store), (other_folder, other_store)) = (folder(), folder());
        let faulty = Faulty::new(other_store);
        let first = Place::new(store, Protection::None).init().await.unwrap();
        let second = Place::new(Arc::new(faulty.clone()), protection);
        let second = Place { location: "/second".parse().unwrap(), ..second }.init().await.unwrap();
        Self { _folders: [folder, other_folder], first, second, faulty }
    }

    /// Writes log, an object, and a manifest that names it; as a job would do it.
    async fn work(&self, companion: Companion, raw: &[u8]) -> (Arc<Companion>, Result<(), RepoError>) {
        let repository = self.first.clone().with_companions(vec![companion]);
        let work = async {
            write_segment(&repository, 1, raw).await?;
            let stored = match store_framed(&repository, "main/framed", raw).await {
                Ok(rdb) => repository.commit(&manifest_naming(ID, &rdb)).await,
                Err(error) => Err(error),
            };
            if stored.is_err() {
                let _ = repository.discard("main/framed").await;
            }
            stored
        };
        let outcome = work.await;
        (Arc::clone(&repository.companions()[0]), outcome)
    }
}

async fn ids(repository: &Repository) -> Vec<String> {
    repository.backup_ids("main").await.unwrap()
}

/// The log and the object are there, whole.
async fn holds(repository: &Repository, raw: &[u8]) -> bool {
    let segments = repository.segments("main", &history()).await.unwrap();
    let Some(segment) = segments.first() else { return false };
    assert_eq!(read_segment(repository, segment).await.unwrap(), raw);
    let objects = repository.objects_of("main").await.unwrap();
    let Some(object) = objects.iter().find(|object| object.path == "main/framed") else { return false };
    let record = repository.describe("main/framed", object.bytes).await.unwrap();
    assert_eq!(read_framed(repository, &record).await.unwrap(), raw);
    true
}

#[tokio::test]
async fn all_get_the_same_each_sealed_in_its_own_way() {
    for protection in Protection::ALL {
        let pair = Pair::new(protection).await;
        let raw = noise(2 << 20);
        let (companion, outcome) = pair.work(Companion::required(pair.second.clone()), &raw).await;
        outcome.unwrap();
        assert!(companion.lists() && companion.failure().is_none());
        for repository in [&pair.first, &pair.second] {
            assert_eq!(ids(repository).await, [ID]);
            let segments = repository.segments("main", &history()).await.unwrap();
            assert_eq!(read_segment(repository, &segments[0]).await.unwrap(), raw);
        }
        // Again: what is there is there, and nothing is written twice.
        let both = pair.first.clone().with_companions(vec![Companion::required(pair.second.clone())]);
        assert!(matches!(write_segment(&both, 1, &raw).await.unwrap_err().problem, Problem::Exists));
    }
}

#[tokio::test]
async fn a_segment_that_one_has_already_is_written_to_the_other() {
    let pair = Pair::new(Protection::Encrypted).await;
    write_segment(&pair.first, 1, b"abc").await.unwrap();
    let both = pair.first.clone().with_companions(vec![Companion::required(pair.second.clone())]);
    assert!(matches!(write_segment(&both, 1, b"abc").await.unwrap_err().problem, Problem::Exists));
    let segments = pair.second.segments("main", &history()).await.unwrap();
    assert_eq!(read_segment(&pair.second, &segments[0]).await.unwrap(), b"abc");
}

#[tokio::test]
async fn a_required_one_that_fails_at_any_moment_fails_for_all() {
    let raw = noise(2 << 20);
    for fate in [FateOnce::Fails, FateOnce::LosesAnswer] {
        for number in 0.. {
            let pair = Pair::new(Protection::None).await;
            pair.faulty.faults.set(number, 1000, fate);
            let (companion, outcome) = pair.work(Companion::required(pair.second.clone()), &raw).await;
            let operations = pair.faulty.faults.clear();
            if number >= operations {
                outcome.unwrap();
                assert!(number > 8, "only {number} operations");
                break;
            }
            let Err(error) = outcome else {
                // An answer was lost, and what was written was found.
                assert!(
                    fate == FateOnce::LosesAnswer && companion.lists() && holds(&pair.second, &raw).await
                );
                continue;
            };
            assert!(error.on.contains(&pair.second.location().to_string()), "operation {number}: {error}");
            assert!(
                ids(&pair.first).await.is_empty() && !companion.lists(),
                "{fate:?} at operation {number}"
            );
            // Its manifest may have been written although no answer came.
            let there = ids(&pair.second).await;
            assert!(there.is_empty() || holds(&pair.second, &raw).await, "{fate:?} at operation {number}");
        }
    }
}

#[tokio::test]
async fn an_optional_one_that_fails_or_hangs_at_any_moment_harms_nothing() {
    let raw = noise(2 << 20);
    for fate in [FateOnce::Fails, FateOnce::LosesAnswer, FateOnce::Hangs] {
        // Of one that hangs the patience is spent each time. Of one that does not there must be enough on a slow machine.
        let (patience, step) = match fate {
            FateOnce::Hangs => (Duration::from_secs(1), 2),
            FateOnce::Fails | FateOnce::LosesAnswer | FateOnce::GoesAway => (Duration::from_secs(60), 1),
        };
        for number in (0..).step_by(step) {
            let pair = Pair::new(Protection::None).await;
            pair.faulty.faults.set(number, 1000, fate);
            let optional = Companion::optional(pair.second.clone(), patience);
            let (companion, outcome) = pair.work(optional, &raw).await;
            let operations = pair.faulty.faults.clear();
            outcome.unwrap_or_else(|error| panic!("{fate:?} at operation {number}: {error}"));
            assert_eq!(ids(&pair.first).await, [ID], "{fate:?} at operation {number}");
            assert!(holds(&pair.first, &raw).await);
            let there = ids(&pair.second).await;
            if number >= operations {
                assert!(companion.lists() && companion.failure().is_none());
                assert_eq!(there, [ID]);
                assert!(number > 8, "only {number} operations");
                break;
            }
            // The very last operations only look whether all is well.
            if companion.lists() {
                assert_eq!(there, [ID]);
                assert!(holds(&pair.second, &raw).await);
            } else {
                assert!(companion.failure().is_some(), "{fate:?} at operation {number}");
                assert!(
                    there.is_empty() || holds(&pair.second, &raw).await,
                    "{fate:?} at operation {number}"
                );
            }
            if fate == FateOnce::Hangs {
                let held_up = companion.held_up();
                assert!(held_up < Duration::from_mins(1), "{number}: {held_up:?}");
            }
        }
    }
}
