//! Somebody looks at a repository beside others who work there: what comes or goes meanwhile is not lost, and what a prune says is seen.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use slotkeep_format::PrunedRecord;
use slotkeep_jobs::repair::{RepairPlan, RepairReport};
use slotkeep_repo::{Location, OpenOptions, Repository};

use crate::harness::{Bench, RUNTIME, context};

type Happens = Box<dyn FnOnce() + Send>;

/// Lets something happen just before, and just after, a folder is listed for the first time.
struct Busy {
    inner: Arc<LocalFileSystem>,
    folder: &'static str,
    before: Mutex<Option<Happens>>,
    after: Mutex<Option<Happens>>,
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

fn happen(what: &Mutex<Option<Happens>>) {
    let what = what.lock().unwrap().take();
    if let Some(what) = what {
        what();
    }
}

#[async_trait::async_trait]
impl ObjectStore for Busy {
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
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if prefix.is_none_or(|prefix| !prefix.as_ref().ends_with(self.folder)) {
            return self.inner.list(prefix);
        }
        happen(&self.before);
        let after = self.after.lock().unwrap().take();
        let listing = self.inner.list(prefix);
        let listed = async move {
            let all: Vec<_> = listing.collect().await;
            if let Some(after) = after {
                after();
            }
            futures::stream::iter(all)
        };
        futures::stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The repository, where these happen just before and just after that folder is listed.
async fn open(bench: &Bench, folder: &'static str, before: Happens, after: Happens) -> Repository {
    let inner = Arc::new(LocalFileSystem::new_with_prefix(bench.repo()).unwrap());
    let store = Busy { inner, folder, before: Mutex::new(Some(before)), after: Mutex::new(Some(after)) };
    let (location, options) = (Location::Folder(bench.repo()), OpenOptions::default());
    Repository::open_in(Arc::new(store), &location, &options).await.unwrap()
}

/// What a repair would do that looks while these happen.
fn looked(bench: &Bench, before: Happens, after: Happens) -> RepairReport {
    RUNTIME.block_on(async {
        let repository = open(bench, "/backups", before, after).await;
        RepairPlan::make(&context(), &repository, "main").await.unwrap().preview()
    })
}

fn nothing() -> Happens {
    Box::new(|| {})
}

#[test]
fn bases_of_a_backup_that_is_listed_meanwhile_are_not_lost() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    // The second backup, and the one that goes on from it.
    let is_later = |path: &String| {
        let is_manifest = |id: &String| path.ends_with(&format!("backups/{id}.json"));
        path.contains(&format!("-{}/", ids[1])) || ids[1..].iter().any(is_manifest)
    };
    let later = crate::lived::paths(&bench.repo()).into_iter().filter(is_later);
    let moves: Vec<(PathBuf, PathBuf)> =
        later.map(|path| (bench.object(&path), bench.path(&path.replace('/', "_")))).collect();
    assert_eq!(moves.len(), 11);
    for (object, aside) in &moves {
        std::fs::rename(object, aside).unwrap();
    }
    let come = move || moves.iter().for_each(|(object, aside)| std::fs::rename(aside, object).unwrap());
    let report = looked(&bench, Box::new(come), nothing());
    assert_eq!(bench.backup_ids(), ids);
    assert!(report.lost.is_empty() && report.repairs.is_empty(), "{report:#?}");
}

#[test]
fn a_backup_that_is_pruned_meanwhile_is_not_lost() {
    let bench = Bench::new();
    let ids = bench.backup_ids();
    let manifest = bench.object(&format!("main/backups/{}.json", ids[0]));
    let goes = move || std::fs::remove_file(manifest).unwrap();
    let report = looked(&bench, nothing(), Box::new(goes));
    assert_eq!(bench.backup_ids(), ids[1..]);
    assert!(report.lost.is_empty(), "{report:#?}");
}

#[test]
fn a_record_that_another_takes_the_place_of_meanwhile_is_not_passed_over() {
    let bench = Bench::new();
    let of = |number: u64, backup: &str| {
        let id = format!("20261126T000000.000Z-{number:04}");
        let mut record = PrunedRecord::new(id, "main".to_owned(), context().clock.now());
        record.backups.insert(backup.to_owned());
        record
    };
    let calm = bench.open();
    RUNTIME.block_on(calm.put_pruned(&of(1, "one"))).unwrap();
    // As a prune does at its end: the new one first.
    let folder = bench.object("main/prune/gone");
    let (aside, new) = (bench.path("aside"), of(2, "one"));
    RUNTIME.block_on(calm.put_pruned(&new)).unwrap();
    std::fs::rename(folder.join(format!("{}.json", new.id)), &aside).unwrap();
    let replaced = move || {
        std::fs::rename(&aside, folder.join(format!("{}.json", new.id))).unwrap();
        std::fs::remove_file(folder.join("20261126T000000.000Z-0001.json")).unwrap();
    };
    let seen = RUNTIME.block_on(async {
        let repository = open(&bench, "/prune/gone", nothing(), Box::new(replaced)).await;
        repository.pruned("main").await.unwrap()
    });
    assert!(seen.gave_up_backup("main", "one"));
}
