//! A store that fails as stores do: refuses, loses its answer, breaks off a download, ignores conditions, lists late.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::Barrier;

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeds,
    /// Nothing is done.
    Fails,
    /// It is done, and the answer is an error.
    LosesAnswer,
    /// It never ends.
    Hangs,
}

/// What goes wrong, and when. Operations are counted from 0: every request, each part of an upload, and its completion.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    count: AtomicUsize,
    /// The operation of that number, and how many after it, meet this fate.
    pub(crate) plan: Mutex<Option<(usize, usize, FateOnce)>>,
    /// Creates overwrite.
    pub(crate) ignores_conditions: AtomicBool,
    /// Every download breaks after so many bytes, 0 for never.
    pub(crate) download_bytes: AtomicUsize,
    /// Listings show nothing written after now.
    pub(crate) frozen: Mutex<Option<Vec<ObjectMeta>>>,
    /// Connections break before a manifest that is put has arrived; it does so when [`Faulty::deliver`] is called.
    pub(crate) manifests_arrive_late: AtomicBool,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
    /// What somebody else puts just when a manifest has been put.
    pub(crate) meanwhile: Mutex<Option<(Path, Vec<u8>)>>,
    /// Each of the next listings of a folder answers when so many at once can: one of these for each.
    pub(crate) listings_meet: Mutex<Vec<Arc<Barrier>>>,
}

/// A fate other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FateOnce {
    Fails,
    LosesAnswer,
    Hangs,
    /// The first one loses its answer, and those after it fail.
    GoesAway,
}

impl Faults {
    /// `length` operations from number `first` on, counted from now, meet that fate.
    pub(crate) fn set(&self, first: usize, length: usize, fate: FateOnce) {
        self.count.store(0, Ordering::SeqCst);
        *self.plan.lock().unwrap() = Some((first, length, fate));
    }

    pub(crate) fn clear(&self) -> usize {
        *self.plan.lock().unwrap() = None;
        self.count.swap(0, Ordering::SeqCst)
    }

    fn next(&self) -> Fate {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        match *self.plan.lock().unwrap() {
            Some((first, length, fate)) if number >= first && number - first < length => match fate {
                FateOnce::Fails => Fate::Fails,
                FateOnce::LosesAnswer => Fate::LosesAnswer,
                FateOnce::Hangs => Fate::Hangs,
                FateOnce::GoesAway if number == first => Fate::LosesAnswer,
                FateOnce::GoesAway => Fate::Fails,
            },
            _ => Fate::Succeeds,
        }
    }
}

pub(crate) fn fault() -> Error {
    Error::Generic { store: "faulty", source: "the connection broke".into() }
}

/// The store.
#[derive(Clone, Debug)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) faults: Arc<Faults>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, faults: Arc::default() }
    }

    async fn meet<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<T> {
        meet(&self.faults, doing).await
    }

    /// From now on listings show only what there is now.
    pub(crate) async fn freeze_listings(&self) {
        let all: Vec<_> = self.inner.list(None).map(Result::unwrap).collect().await;
        *self.faults.frozen.lock().unwrap() = Some(all);
    }

    /// What was late arrives.
    pub(crate) async fn deliver(&self) {
        let late = std::mem::take(&mut *self.faults.late.lock().unwrap());
        for (path, payload, options) in late {
            // The second of the same is refused, as the client said.
            let _ = self.inner.put_opts(&path, payload, options).await;
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.as_ref().contains("/backups/")
}

async fn meet<T>(faults: &Faults, doing: impl Future<Output = Result<T>>) -> Result<T> {
    match faults.next() {
        Fate::Succeeds => doing.await,
        Fate::Fails => Err(fault()),
        Fate::Hangs => std::future::pending().await,
        Fate::LosesAnswer => match doing.await {
            Ok(_) => Err(fault()),
            failed => failed,
        },
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        if self.faults.ignores_conditions.load(Ordering::SeqCst) {
            opts.mode = PutMode::Overwrite;
        }
        if self.faults.manifests_arrive_late.load(Ordering::SeqCst) && is_manifest(location) {
            self.faults.late.lock().unwrap().push((location.clone(), payload, opts));
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            let broken = HttpError::new(HttpErrorKind::Interrupted, broken);
            return Err(Error::Generic { store: "faulty", source: Box::new(broken) });
        }
        let put = async {
            let put = self.inner.put_opts(location, payload, opts).await?;
            let meanwhile = self.faults.meanwhile.lock().unwrap().take_if(|_| is_manifest(location));
            if let Some((path, bytes)) = meanwhile {
                self.inner.put_opts(&path, bytes.into(), PutOptions::default()).await?;
            }
            Ok(put)
        };
        self.meet(put).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.meet(self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(FaultyUpload { inner, faults: Arc::clone(&self.faults) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let mut found = self.meet(self.inner.get_opts(location, options)).await?;
        let most = self.faults.download_bytes.load(Ordering::SeqCst);
        if head || most == 0 {
            return Ok(found);
        }
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let whole: Bytes = found.bytes().await?;
        let mut pieces: Vec<Result<Bytes>> = vec![Ok(whole.slice(..most.min(whole.len())))];
        if whole.len() > most {
            pieces.push(Err(fault()));
        }
        found = GetResult {
            payload: GetResultPayload::Stream(futures::stream::iter(pieces).boxed()),
            meta,
            range,
            attributes: object_store::Attributes::default(),
            extensions: object_store::Extensions::default(),
        };
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.faults.next() {
            Fate::Fails => futures::stream::once(async { Err(fault()) }).boxed(),
            Fate::LosesAnswer => {
                self.inner.delete_stream(locations).map(|deleted| deleted.and_then(|_| Err(fault()))).boxed()
            }
            Fate::Succeeds | Fate::Hangs => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.faults.next() == Fate::Fails {
            return futures::stream::once(async { Err(fault()) }).boxed();
        }
        if let Some(all) = &*self.faults.frozen.lock().unwrap() {
            let prefix = prefix.cloned().unwrap_or_default();
            let all: Vec<_> =
                all.iter().filter(|meta| meta.location.prefix_matches(&prefix)).cloned().map(Ok).collect();
            return futures::stream::iter(all).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let listed = self.meet(self.inner.list_with_delimiter(prefix)).await;
        let others = self.faults.listings_meet.lock().unwrap().pop();
        if let Some(others) = others {
            others.wait().await;
        }
        listed
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.meet(self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Arc<Faults>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, faults) = (self.inner.put_part(data), Arc::clone(&self.faults));
        Box::pin(async move { meet(&faults, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let faults = Arc::clone(&self.faults);
        meet(&faults, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
