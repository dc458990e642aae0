//! A store with object lock: what it does not delete stays marked, and is tried again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use slotkeep_format::Depth;
use slotkeep_jobs::prune::Step;
use slotkeep_repo::{Location, OpenOptions, Repository};

use crate::clock::{last, prune};
use crate::harness::{Bench, RUNTIME};
use crate::lived::{paths, restored};

/// Refuses to delete paths that contain a word, while the lock holds.
#[derive(Debug)]
struct Locked {
    inner: LocalFileSystem,
    word: String,
    holds: Arc<AtomicBool>,
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Locked {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (word, holds) = (self.word.clone(), Arc::clone(&self.holds));
        let allowed = locations.map(move |location| {
            let location = location?;
            if holds.load(Ordering::SeqCst) && location.as_ref().contains(&word) {
                let source = "object lock".into();
                return Err(Error::PermissionDenied { path: location.to_string(), source });
            }
            Ok(location)
        });
        self.inner.delete_stream(allowed.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn open(bench: &Bench, word: &str) -> (Repository, Arc<AtomicBool>) {
    let holds = Arc::new(AtomicBool::new(true));
    let inner = LocalFileSystem::new_with_prefix(bench.repo()).unwrap();
    let store = Locked { inner, word: word.to_owned(), holds: Arc::clone(&holds) };
    let location = Location::Folder(bench.repo());
    let options = OpenOptions::default();
    let opened = Repository::open_in(Arc::new(store), &location, &options);
    (RUNTIME.block_on(opened).unwrap(), holds)
}

#[test]
fn what_the_store_does_not_delete_is_tried_again() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let (repository, holds) = open(&bench, "rdb.zst");
    prune(&repository, &last(1), 48);
    let refused = prune(&repository, &last(1), 80);
    assert_eq!(refused.refused.len(), 3);
    assert!(refused.refused[0].error.contains("object lock"), "{:?}", refused.refused);
    let left: Vec<String> =
        paths(&bench.repo()).into_iter().filter(|path| path.contains(&format!("-{}/", ids[0]))).collect();
    assert_eq!(left.len(), 3, "the rest is deleted: {left:?}");
    assert!(refused.freed_bytes > 0 && refused.marked_bytes > 0);
    let findings = bench.again(Depth::Structure).findings;
    assert!(findings.iter().all(|found| found.severity <= slotkeep_format::Severity::Note), "{findings:#?}");
    holds.store(false, Ordering::SeqCst);
    let done = prune(&repository, &last(1), 81);
    assert!(done.objects.iter().all(|object| object.step == Step::Deleted) && done.objects.len() == 3);
    assert!(!paths(&bench.repo()).iter().any(|path| path.contains(&format!("-{}/", ids[0]))));
}

#[test]
fn what_a_manifest_names_stays_as_long_as_the_manifest() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let first = restored(&bench.repo(), &ids[0], 3);
    let (repository, _) = open(&bench, &format!("backups/{}", ids[0]));
    prune(&repository, &last(1), 48);
    let refused = prune(&repository, &last(1), 80);
    assert_eq!(refused.refused.len(), 1);
    assert_eq!(bench.backup_ids(), [ids[0].clone(), ids[2].clone()]);
    assert_eq!(restored(&bench.repo(), &ids[0], 3), first);
}
