//! What must hold when the store fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use object_store::ObjectStoreExt;
use slotkeep_format::lease::Holder;
use slotkeep_repo::{OpenOptions, Problem, RateLimit, Recipients, RepoError, Repository, Standing};
use tokio::sync::Barrier;

use crate::faults::{FateOnce, Faulty};
use crate::folder;
use crate::suite::{
    Place, Protection, history, manifest, noise, read_framed, read_segment, store_framed, write_segment,
};

/// A backup of one object, then its manifest, then a segment; as a job would do it.
async fn work(repository: &Repository, raw: &[u8]) -> Result<(), RepoError> {
    store_framed(repository, "main/framed", raw).await?;
    repository.commit(&manifest("20260101T000000.000Z-aaaa")).await?;
    write_segment(repository, 1, raw).await
}

#[tokio::test]
async fn an_answer_that_is_lost_changes_nothing() {
    for protection in Protection::ALL {
        let raw = noise(3 << 20);
        for number in 0.. {
            let (_folder, store) = folder();
            let faulty = Faulty::new(store);
            let repository = Place::new(Arc::new(faulty.clone()), protection).init().await.unwrap();
            faulty.faults.set(number, 1, FateOnce::LosesAnswer);
            let outcome = work(&repository, &raw).await;
            let operations = faulty.faults.clear();
            // Beginning an upload, its parts and looking whether a segment exists are tried again by the store's own client; here they fail.
            // What must never be: "exists" for what we wrote ourselves.
            if let Err(error) = outcome {
                assert!(matches!(error.problem, Problem::Store(_)), "operation {number}: {error}");
            }
            if number >= operations {
                assert!(number > 5, "only {number} operations");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_has_succeeded() {
    for protection in Protection::ALL {
        let (_folder, store) = folder();
        let faulty = Faulty::new(store);
        let repository = Place::new(Arc::new(faulty.clone()), protection).init().await.unwrap();
        for lost in 1..=3 {
            faulty.faults.set(0, lost, FateOnce::LosesAnswer);
            let id = format!("2026010{lost}T000000.000Z-aaaa");
            repository.commit(&manifest(&id)).await.unwrap();
            faulty.faults.clear();
            assert_eq!(repository.manifest("main", &id).await.unwrap(), manifest(&id));
        }
        // The segment's create comes after the look whether it exists.
        faulty.faults.set(1, 1, FateOnce::LosesAnswer);
        write_segment(&repository, 1, b"abc").await.unwrap();
        faulty.faults.clear();
        let entries = repository.segments("main", &history()).await.unwrap();
        assert_eq!(read_segment(&repository, &entries[0]).await.unwrap(), b"abc");
        // The completion of an upload in parts: begun, one part, completed.
        faulty.faults.set(2, 1, FateOnce::LosesAnswer);
        let record = store_framed(&repository, "main/parts", &noise(5000)).await.unwrap();
        faulty.faults.clear();
        assert_eq!(read_framed(&repository, &record).await.unwrap(), noise(5000));
    }
}

#[tokio::test]
async fn a_store_that_goes_away_leaves_nothing_half() {
    for protection in Protection::ALL {
        let raw = noise(2 << 20);
        for number in 0.. {
            let (_folder, store) = folder();
            let faulty = Faulty::new(store);
            let place = Place::new(Arc::new(faulty.clone()), protection);
            let repository = place.init().await.unwrap();
            faulty.faults.set(number, usize::MAX, FateOnce::Fails);
            let outcome = work(&repository, &raw).await;
            faulty.faults.clear();
            let repository = place.open().await.unwrap();
            let listing = repository.backups("main").await.unwrap();
            assert!(listing.unreadable.is_empty());
            for entry in repository.segments("main", &history()).await.unwrap() {
                assert_eq!(read_segment(&repository, &entry).await.unwrap(), raw);
            }
            match outcome {
                Ok(()) => break,
                Err(error) => assert!(
                    matches!(error.problem, Problem::Store(_) | Problem::MayBeListed { .. }),
                    "{number}: {error}"
                ),
            }
            // The same work succeeds once the store is back, whatever the failure left.
            if listing.backups.is_empty() {
                work(&repository, &raw).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_lease_whose_answer_is_lost_is_held_by_one_all_the_same() {
    for fate in [FateOnce::LosesAnswer, FateOnce::Fails] {
        for number in 0..8 {
            let (_folder, store) = folder();
            let faulty = Faulty::new(store);
            let repository = Place::new(Arc::new(faulty.clone()), Protection::None).init().await.unwrap();
            let lease = |holder: &str| {
                let holder = Holder { process: holder.to_owned(), agent: None, duration_ms: 10_000 };
                repository.lease("main", "line", holder).unwrap()
            };
            let (mut first, mut second) = (lease("a"), lease("b"));
            faulty.faults.set(number, 1, fate);
            // What the first one believes after a fault, whatever it is, must leave no room for the second.
            let _ = first.step(&|| 0).await;
            faulty.faults.clear();
            let other = second.step(&|| 1).await.unwrap();
            let believes = [first.epoch(1).is_some(), matches!(other, Standing::Held { .. })];
            assert!(!(believes[0] && believes[1]), "{fate:?} of request {number}");
            if let Standing::Waiting { .. } = other {
                // It can be had in the end, by one.
                assert!(matches!(first.step(&|| 2).await.unwrap(), Standing::Held { .. }));
            }
        }
    }
}

#[tokio::test]
async fn a_download_that_breaks_is_read_on() {
    for protection in Protection::ALL {
        let (_folder, store) = folder();
        let faulty = Faulty::new(store);
        let repository = Place::new(Arc::new(faulty.clone()), protection).init().await.unwrap();
        let raw = noise((2 << 20) + 17);
        let record = store_framed(&repository, "main/framed", &raw).await.unwrap();
        write_segment(&repository, 1, &raw).await.unwrap();
        // Breaks after so many bytes, eight times over the object; each time some bytes more have come.
        faulty.faults.download_bytes.store(300_000, Ordering::SeqCst);
        assert_eq!(read_framed(&repository, &record).await.unwrap(), raw);
        let entries = repository.segments("main", &history()).await.unwrap();
        assert_eq!(read_segment(&repository, &entries[0]).await.unwrap(), raw);
    }
}

#[tokio::test]
async fn a_listing_that_breaks_is_asked_for_again() {
    let (_folder, store) = folder();
    let faulty = Faulty::new(store);
    let repository = Place::new(Arc::new(faulty.clone()), Protection::None).init().await.unwrap();
    repository.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    faulty.faults.set(0, 2, FateOnce::Fails);
    assert_eq!(repository.backup_ids("main").await.unwrap(), ["20260101T000000.000Z-aaaa"]);
    faulty.faults.set(0, 100, FateOnce::Fails);
    assert!(repository.backup_ids("main").await.is_err());
}

#[tokio::test]
async fn a_listing_that_lags_shows_less_and_nothing_wrong() {
    let (_folder, store) = folder();
    let faulty = Faulty::new(store);
    let repository = Place::new(Arc::new(faulty.clone()), Protection::None).init().await.unwrap();
    repository.commit(&manifest("20260101T000000.000Z-aaaa")).await.unwrap();
    write_segment(&repository, 1, b"abc").await.unwrap();
    faulty.freeze_listings().await;
    repository.commit(&manifest("20260102T000000.000Z-aaaa")).await.unwrap();
    assert_eq!(repository.backups("main").await.unwrap().backups.len(), 1);
    // A segment that the listing does not show yet is found by its name all the same.
    write_segment(&repository, 4, b"def").await.unwrap();
    let again = write_segment(&repository, 4, b"def").await.unwrap_err();
    assert!(matches!(again.problem, Problem::Exists));
}

/// What `slotkeep.json` says was found out where the repository was made; it may have been brought to another store.
#[tokio::test]
async fn a_store_that_does_not_do_what_the_file_says_is_found_out() {
    for protection in Protection::ALL {
        let (_folder, store) = folder();
        let faulty = Faulty::new(store);
        let turned = Arc::clone(&faulty.faults);
        let repository = Place::new(Arc::new(faulty), protection).init().await.unwrap();
        assert!(repository.refuses_overwrite());
        let holder = Holder { process: "1".to_owned(), agent: Some("a".to_owned()), duration_ms: 10_000 };
        let mut presence = repository.presence("main", "a", holder);
        presence.step(&|| 0).await.unwrap();
        assert!(presence.is_kept_by_the_store(1).await.unwrap());
        turned.ignores_conditions.store(true, Ordering::SeqCst);
        assert!(!presence.is_kept_by_the_store(1).await.unwrap());
        // The record is what it was.
        assert!(presence.confirm(1).await.unwrap());
    }
}

#[tokio::test]
async fn another_writers_object_is_not_taken_for_ours() {
    for ignores in [false, true] {
        let (_folder, store) = folder();
        let faulty = Faulty::new(Arc::clone(&store));
        faulty.faults.ignores_conditions.store(ignores, Ordering::SeqCst);
        let repository = Place::new(Arc::new(faulty), Protection::None).init().await.unwrap();
        let path = object_store::path::Path::from("main/x.json");
        store.put(&path, b"theirs".to_vec().into()).await.unwrap();
        let error = repository.put_new("main/x.json", b"ours".to_vec()).await.unwrap_err();
        assert!(matches!(error.problem, Problem::Exists), "{error}");
        let kept = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(&kept[..], b"theirs");
    }
}

#[tokio::test]
async fn two_who_change_the_readers_at_once_are_told_of_each_other() {
    let (_folder, store) = folder();
    let faulty = Faulty::new(Arc::clone(&store));
    let place = Place::new(Arc::new(faulty.clone()), Protection::Encrypted);
    let (one, two) = (place.init().await.unwrap(), place.open().await.unwrap());
    let (mut by_key, mut by_passphrase) = (Recipients::default(), Recipients::default());
    by_key.add_key(&place.identity.to_public().to_string()).unwrap();
    by_passphrase.set_passphrase("correct horse".to_owned());
    // Both have looked for older files before either writes.
    let looks = Arc::new(Barrier::new(2));
    *faulty.faults.listings_meet.lock().unwrap() = vec![Arc::clone(&looks), looks];
    let (one, two) = futures::join!(one.rekey(&by_key), two.rekey(&by_passphrase));
    assert!(faulty.faults.listings_meet.lock().unwrap().is_empty());
    let mut told = [one.unwrap(), two.unwrap()].concat();
    told.sort();
    told.dedup();
    let files = store.list_with_delimiter(None).await.unwrap().objects;
    let left = files.into_iter().map(|file| file.location.to_string());
    let mut left: Vec<String> = left.filter(|name| name.starts_with("slotkeep-key-")).collect();
    left.sort();
    assert_eq!(left, ["slotkeep-key-0002-passphrase.age", "slotkeep-key-0002-recipients.age"]);
    assert!(!told.is_empty() && told.iter().all(|name| left.contains(name)), "{told:?}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the time that passes is what is tested")]
async fn a_limit_holds_in_both_directions() {
    let (_folder, store) = folder();
    let place = Place::new(store, Protection::None);
    place.init().await.unwrap();
    let options = OpenOptions { limit: RateLimit::new(4 << 20), ..place.options() };
    let repository = Repository::open_in(Arc::clone(&place.store), &place.location, &options).await.unwrap();
    let raw = noise(2 << 20);
    let began = std::time::Instant::now();
    let record = store_framed(&repository, "main/framed", &raw).await.unwrap();
    let written = began.elapsed();
    assert_eq!(read_framed(&repository, &record).await.unwrap(), raw);
    let read = began.elapsed().saturating_sub(written);
    for took in [written, read] {
        // Half a second at that rate, less what may pass at once. A loaded machine takes longer, never less.
        assert!(took.as_millis() >= 380, "{took:?}");
    }
    let path = object_store::path::Path::from("main/framed");
    assert_eq!(place.store.head(&path).await.unwrap().size, record.stored_bytes);
}
