//! The end of the process at a chosen operation, for tests: what a kill in just that moment leaves must be whole.
//!
//! Invariant: an operation that changes the store is counted before it begins, so that stopping at every number in turn passes every state
//! that the store can be left in between two operations.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Where the process is to end, as though it were killed.
#[derive(Clone, Debug)]
pub struct StopPoint {
    operation: u64,
    begun: Arc<AtomicU64>,
}

impl StopPoint {
    /// Right before that operation which would change the store, counted from 1: an object put, copied or deleted, an upload begun, a part of
    /// it, its completion or its end.
    pub fn before(operation: u64) -> Self {
        Self { operation, begun: Arc::default() }
    }

    fn step(&self) {
        if self.begun.fetch_add(1, Ordering::SeqCst).saturating_add(1) == self.operation {
            std::process::abort();
        }
    }
}

#[derive(Debug)]
pub(super) struct Stopping {
    inner: Arc<dyn ObjectStore>,
    stop: StopPoint,
}

impl Stopping {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, stop: StopPoint) -> Self {
        Self { inner, stop }
    }
}

impl fmt::Display for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Stopping {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.stop.step();
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.stop.step();
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(StoppingUpload { inner, stop: self.stop.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let stop = self.stop.clone();
        self.inner.delete_stream(locations.inspect(move |_| stop.step()).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.stop.step();
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct StoppingUpload {
    inner: Box<dyn MultipartUpload>,
    stop: StopPoint,
}

#[async_trait]
impl MultipartUpload for StoppingUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.stop.step();
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.stop.step();
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.stop.step();
        self.inner.abort().await
    }
}
