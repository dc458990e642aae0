//! Commits of which nobody knows what became of them: what the manifest names is not taken back, and the error says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slotkeep_format::manifest::ObjectRecord;
use slotkeep_format::{PrunedRecord, Unneeded};
use slotkeep_repo::{Companion, OpenOptions, Problem, RepoError, Repository, StateFolder};

use crate::faults::{FateOnce, Faulty};
use crate::folder;
use crate::suite::{Place, Protection, manifest_naming, noise, read_framed, store_framed};

const ID: &str = "20260101T000000.000Z-aaaa";
const BASE: &str = "main/framed";
const FATES: [FateOnce; 3] = [FateOnce::Fails, FateOnce::LosesAnswer, FateOnce::GoesAway];

/// A repository with a base that no backup names yet.
struct Scene {
    _folder: tempfile::TempDir,
    faulty: Faulty,
    place: Place,
    repository: Repository,
    base: ObjectRecord,
}

/// What became of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
    Listed,
    /// It is not, and nothing is left of it.
    TakenBack,
    /// Whoever made it does not know. Whether it is listed.
    Unknown(bool),
}

impl Scene {
    async fn new(protection: Protection) -> Self {
        let (folder, store) = folder();
        let faulty = Faulty::new(store);
        let place = Place::new(Arc::new(faulty.clone()), protection);
        let repository = place.init().await.unwrap();
        let base = store_framed(&repository, BASE, &noise(2000)).await.unwrap();
        Self { _folder: folder, faulty, place, repository, base }
    }

    /// Commits, and takes the base back if that fails, as a job does; the store answers again by then. Gives what the commit said, and
    /// the number of its requests.
    async fn work(&self, repository: &Repository) -> (Result<(), RepoError>, usize) {
        let outcome = repository.commit(&manifest_naming(ID, &self.base)).await;
        let requests = self.faulty.faults.clear();
        if outcome.is_err() {
            let _ = repository.discard(BASE).await;
        }
        (outcome, requests)
    }

    /// What became of it, which must be what was said; where it is listed, it is whole.
    async fn became(&self, outcome: Result<(), RepoError>) -> Became {
        let repository = self.place.open().await.unwrap();
        let is_listed = repository.backup_ids("main").await.unwrap() == [ID];
        let is_whole = match read_framed(&repository, &self.base).await {
            Ok(raw) => raw == noise(2000),
            Err(error) => {
                assert!(matches!(error.problem, Problem::Missing), "{error}");
                false
            }
        };
        assert!(!is_listed || is_whole, "it is listed, and its base is gone; said was {outcome:?}");
        if is_listed {
            let manifest = repository.manifest("main", ID).await.unwrap();
            assert_eq!(manifest, manifest_naming(ID, &self.base));
            for object in manifest.objects() {
                repository.verify(object, |_| ()).await.unwrap();
            }
        }
        let Err(error) = outcome else {
            assert!(is_listed);
            return Became::Listed;
        };
        if !matches!(error.problem, Problem::MayBeListed { .. }) {
            assert!(!is_listed && !is_whole, "{error}");
            return Became::TakenBack;
        }
        let said = error.to_string();
        for word in ["it is not known whether", ID, &self.place.location.to_string()] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(is_whole, "{error}");
        Became::Unknown(is_listed)
    }
}

#[tokio::test]
async fn an_unknown_outcome_takes_nothing_back() {
    for protection in Protection::ALL {
        let mut seen = Vec::new();
        for fate in FATES {
            for number in 0.. {
                let scene = Scene::new(protection).await;
                scene.faulty.faults.set(number, usize::MAX, fate);
                let (outcome, requests) = scene.work(&scene.repository).await;
                let became = scene.became(outcome).await;
                seen.push(became);
                if number >= requests {
                    assert_eq!(became, Became::Listed);
                    break;
                }
            }
        }
        for became in [Became::Listed, Became::TakenBack, Became::Unknown(true), Became::Unknown(false)] {
            assert!(seen.contains(&became), "never {became:?}: {seen:?}");
        }
    }
}

/// A prune announces that it deletes the base just when the manifest has been written: then that is taken back, unless the store goes away.
#[tokio::test]
async fn a_manifest_that_is_taken_back_and_may_stay_keeps_what_it_names() {
    let announced = |scene: &Scene| {
        let mut record = PrunedRecord::new(
            "20260101T000001.000Z-bbbb".to_owned(),
            "main".to_owned(),
            Timestamp::UNIX_EPOCH,
        );
        record.going.insert(scene.base.path.clone(), Unneeded::Outside);
        (Path::from("main/prune/gone/20260101T000001.000Z-bbbb.json"), record.render().unwrap())
    };
    let mut seen = Vec::new();
    for fate in FATES {
        for length in [1, usize::MAX] {
            for number in 0.. {
                let scene = Scene::new(Protection::None).await;
                *scene.faulty.faults.meanwhile.lock().unwrap() = Some(announced(&scene));
                scene.faulty.faults.set(number, length, fate);
                let (outcome, requests) = scene.work(&scene.repository).await;
                let was_refused =
                    outcome.as_ref().is_err_and(|error| matches!(error.problem, Problem::Pruned(_)));
                let became = scene.became(outcome).await;
                assert_ne!(became, Became::Listed, "{fate:?} of request {number}");
                seen.push(became);
                if number >= requests {
                    assert!(was_refused && became == Became::TakenBack);
                    break;
                }
            }
        }
    }
    assert!(seen.contains(&Became::Unknown(true)) && seen.contains(&Became::Unknown(false)), "{seen:?}");
}

/// The store answers when it is looked at, and the manifest is not there: it is still on its way.
#[tokio::test]
async fn a_manifest_that_arrives_late_finds_what_it_names() {
    let scene = Scene::new(Protection::None).await;
    scene.faulty.faults.manifests_arrive_late.store(true, Ordering::SeqCst);
    let (outcome, _) = scene.work(&scene.repository).await;
    scene.faulty.deliver().await;
    assert_eq!(scene.became(outcome).await, Became::Unknown(true));
}

/// Refused, it is certainly not listed: here because another has its name.
#[tokio::test]
async fn what_another_has_the_name_of_is_taken_back() {
    let scene = Scene::new(Protection::None).await;
    let path = Path::from(format!("main/backups/{ID}.json"));
    scene.faulty.inner.put(&path, b"theirs".to_vec().into()).await.unwrap();
    let (outcome, _) = scene.work(&scene.repository).await;
    assert!(matches!(outcome.unwrap_err().problem, Problem::Exists));
    let gone = scene.repository.verify(&scene.base, |_| ()).await.unwrap_err();
    assert!(matches!(gone.problem, Problem::Missing));
}

/// Of a backup that one repository lists, and another may list, nothing is taken back in either.
#[tokio::test]
async fn nothing_is_taken_back_of_what_a_companion_lists() {
    for fate in FATES {
        for number in 0.. {
            let (_folder, store) = folder();
            let other = Place { location: "/other".parse().unwrap(), ..Place::new(store, Protection::None) };
            let companion = other.init().await.unwrap();
            let scene = Scene::new(Protection::None).await;
            let both = scene.repository.clone().with_companions(vec![Companion::required(companion)]);
            scene.repository.delete(BASE).await.unwrap();
            assert_eq!(store_framed(&both, BASE, &noise(2000)).await.unwrap(), scene.base);
            scene.faulty.faults.set(number, usize::MAX, fate);
            let (outcome, requests) = scene.work(&both).await;
            scene.became(outcome).await;
            let there = other.open().await.unwrap();
            assert_eq!(there.backup_ids("main").await.unwrap(), [ID], "{fate:?} of request {number}");
            assert_eq!(read_framed(&there, &scene.base).await.unwrap(), noise(2000));
            if number >= requests {
                break;
            }
        }
    }
}

/// A machine that can't remember a backup has listed it all the same.
#[tokio::test]
async fn what_is_listed_stays_although_it_is_not_remembered() {
    let (_folder, store) = folder();
    let place = Place::new(store, Protection::Encrypted);
    let state = tempfile::tempdir().unwrap();
    let mut options =
        OpenOptions { state: Some(StateFolder::new(state.path().to_owned())), ..place.options() };
    options.recipients.add_key(&place.identity.to_public().to_string()).unwrap();
    let id = "0123456789abcdef".to_owned();
    let made =
        Repository::init_in(Arc::clone(&place.store), &place.location, id, Timestamp::UNIX_EPOCH, &options);
    let repository = made.await.unwrap();
    let base = store_framed(&repository, BASE, &noise(2000)).await.unwrap();
    std::fs::remove_dir_all(state.path().join("known")).unwrap();
    std::fs::write(state.path().join("known"), "no folder").unwrap();
    let error = repository.commit(&manifest_naming(ID, &base)).await.unwrap_err().to_string();
    assert!(error.contains(ID) && error.contains("listed and whole"), "{error}");
    repository.discard(BASE).await.unwrap();
    let repository = place.open().await.unwrap();
    assert_eq!(repository.backup_ids("main").await.unwrap(), [ID]);
    assert_eq!(read_framed(&repository, &base).await.unwrap(), noise(2000));
}
