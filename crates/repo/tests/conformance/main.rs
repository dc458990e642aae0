//! One suite for every store: a local folder, two S3 servers, a store that ignores conditions, stores that fail, and any store that the environment
//! names.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod companions;
mod faults;
mod faulty;
mod suite;
mod unknown;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, parse_url_opts};
use slotkeep_testkit::stores::S3Server;

use faults::Faulty;
use suite::{Place, Protection};

fn folder() -> (tempfile::TempDir, Arc<dyn ObjectStore>) {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    (folder, Arc::new(store))
}

#[tokio::test]
async fn a_local_folder() {
    for protection in Protection::ALL {
        let (_folder, store) = folder();
        suite::run(&Place::new(store, protection)).await;
    }
}

/// Starts a server with a bucket, and runs the suite in it.
async fn in_a_bucket(start: impl FnOnce() -> S3Server + Send + 'static) {
    let server = tokio::task::spawn_blocking(|| {
        let server = start();
        server.make_bucket("conformance").unwrap();
        server
    });
    let server = server.await.unwrap();
    for (number, protection) in Protection::ALL.into_iter().enumerate() {
        let mut builder = AmazonS3Builder::new().with_bucket_name("conformance");
        for (name, value) in server.environment() {
            builder = builder.with_config(name.to_ascii_lowercase().parse().unwrap(), value);
        }
        let store = PrefixStore::new(builder.build().unwrap(), format!("place/{number}"));
        suite::run(&Place::in_bucket(Arc::new(store), protection)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_of_moto() {
    in_a_bucket(|| S3Server::start().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_of_s3s_fs() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().to_owned();
    in_a_bucket(move || S3Server::start_s3s_fs(&path).unwrap()).await;
}

/// Where `SLOTKEEP_CONFORMANCE` holds an address such as `az://container`, with the store's own variables beside it; what is written below it stays.
/// `scripts/azurite.sh` runs it on the emulator of Azure.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_that_the_environment_names() {
    let Ok(address) = std::env::var("SLOTKEEP_CONFORMANCE") else { return };
    let address = address.parse().unwrap();
    let variables: Vec<_> =
        std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    for protection in Protection::ALL {
        let (store, prefix) = parse_url_opts(&address, variables.clone()).unwrap();
        // The identity is random: nobody else has been there.
        let mut place = Place::in_bucket(Arc::from(store), protection);
        let unique = place.identity.to_public().to_string();
        place.store = Arc::new(PrefixStore::new(place.store, prefix.join(unique)));
        suite::run(&place).await;
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_known_and_still_not_overwritten() {
    for protection in Protection::ALL {
        let (_folder, store) = folder();
        let faulty = Faulty::new(store);
        faulty.faults.ignores_conditions.store(true, Ordering::SeqCst);
        let repository = suite::run(&Place::new(Arc::new(faulty), protection)).await;
        assert!(!repository.refuses_overwrite());
        assert_eq!(repository.file().conditional_create, Some(false));
    }
}
