//! A folder as a store that refuses to delete some objects, tells of what was written, and lets things happen around a listing.

use std::fmt;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use slotkeep_repo::{Location, OpenOptions, Repository};

use crate::harness::{Bench, RUNTIME};

type Lock = Arc<dyn Fn(&Path) -> bool + Send + Sync>;
type Written = Arc<dyn Fn(&Path) + Send + Sync>;
pub(crate) type Happens = Box<dyn FnOnce() + Send>;

/// What happens just before, and just after, a folder is listed for the first time.
struct Around {
    folder: &'static str,
    before: Happens,
    after: Happens,
}

/// The folder of a bench.
pub(crate) struct Hooked {
    inner: LocalFileSystem,
    /// Whether an object is not to be deleted.
    is_locked: Lock,
    /// Whether the store fails though it deletes the object.
    fails: Lock,
    /// Whether the store can't tell of an object whether it is there.
    hides: Lock,
    /// Called when an object has been written, before that is told.
    written: Written,
    around: Mutex<Option<Around>>,
}

impl Hooked {
    pub(crate) fn of(bench: &Bench) -> Self {
        let inner = LocalFileSystem::new_with_prefix(bench.repo()).unwrap();
        let never: Lock = Arc::new(|_| false);
        Self {
            inner,
            is_locked: Arc::clone(&never),
            fails: Arc::clone(&never),
            hides: never,
            written: Arc::new(|_| {}),
            around: Mutex::default(),
        }
    }

    pub(crate) fn locking(self, is_locked: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Self {
        Self { is_locked: Arc::new(is_locked), ..self }
    }

    pub(crate) fn failing(self, fails: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Self {
        Self { fails: Arc::new(fails), ..self }
    }

    pub(crate) fn hiding(self, hides: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Self {
        Self { hides: Arc::new(hides), ..self }
    }

    pub(crate) fn telling(self, written: impl Fn(&Path) + Send + Sync + 'static) -> Self {
        Self { written: Arc::new(written), ..self }
    }

    pub(crate) fn around_listing(self, folder: &'static str, before: Happens, after: Happens) -> Self {
        Self { around: Mutex::new(Some(Around { folder, before, after })), ..self }
    }

    pub(crate) fn open(self, bench: &Bench) -> Repository {
        let location = Location::Folder(bench.repo());
        let options = OpenOptions::default();
        RUNTIME.block_on(Repository::open_in(Arc::new(self), &location, &options)).unwrap()
    }
}

fn broken() -> Error {
    Error::Generic { store: "hooked", source: "the connection broke".into() }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Display for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Hooked {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let put = self.inner.put_opts(location, payload, opts).await?;
        (self.written)(location);
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head && (self.hides)(location) {
            return Err(broken());
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let is_locked = Arc::clone(&self.is_locked);
        let allowed = locations.map(move |location| {
            let location = location?;
            if is_locked(&location) {
                let source = "object lock".into();
                return Err(Error::PermissionDenied { path: location.to_string(), source });
            }
            Ok(location)
        });
        let fails = Arc::clone(&self.fails);
        let deleted = self.inner.delete_stream(allowed.boxed());
        let told = deleted.map(move |deleted| match deleted {
            Ok(path) if fails(&path) => Err(broken()),
            deleted => deleted,
        });
        told.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let is_meant =
            |around: &mut Around| prefix.is_some_and(|prefix| prefix.as_ref().ends_with(around.folder));
        let Some(around) = self.around.lock().unwrap().take_if(is_meant) else {
            return self.inner.list(prefix);
        };
        (around.before)();
        let listing = self.inner.list(prefix);
        let listed = async move {
            let all: Vec<_> = listing.collect().await;
            (around.after)();
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
