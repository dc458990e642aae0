//! A limit on the bytes per second that go to and come from a store, both directions together.
//!
//! Invariant: bytes wait before they are handed on, so that a slow reader or writer is what slows the other end down; nothing
//! is queued here.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// A budget of bytes per second, shared by everything that it is given to. What was not used within a second is lost.
#[derive(Clone)]
pub struct RateLimit {
    most_at_once: NonZeroU32,
    limiter: Arc<RateLimiter<NotKeyed, InMemoryState, DefaultClock>>,
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("bytes_per_s", &self.most_at_once).finish_non_exhaustive()
    }
}

impl RateLimit {
    /// A limit of that many bytes per second, or none for 0; more than 4 GiB/s counts as 4 GiB/s.
    pub fn new(bytes_per_s: u64) -> Option<Self> {
        let rate = super::per_second(bytes_per_s)?;
        // A tenth of a second at once: a longer burst would fill the line that was to be spared.
        let most_at_once = NonZeroU32::new(rate.get() / 10).unwrap_or(NonZeroU32::MIN);
        let limiter = RateLimiter::direct(Quota::per_second(rate).allow_burst(most_at_once));
        Some(Self { most_at_once, limiter: Arc::new(limiter) })
    }

    /// Waits until that many bytes may pass.
    async fn pass(&self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let now = u32::try_from(left).unwrap_or(u32::MAX).min(self.most_at_once.get());
            if let Some(now) = NonZeroU32::new(now) {
                // It fails only for more than the burst.
                let _ = self.limiter.until_n_ready(now).await;
            }
            left = left.saturating_sub(now as usize);
        }
    }
}

#[derive(Debug)]
pub(super) struct Limited {
    inner: Arc<dyn ObjectStore>,
    limit: RateLimit,
}

impl Limited {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, limit: RateLimit) -> Self {
        Self { inner, limit }
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Limited {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.limit.pass(payload.content_length()).await;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(LimitedUpload { inner, limit: self.limit.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let mut found = self.inner.get_opts(location, options).await?;
        if head {
            return Ok(found);
        }
        let (meta, range, attributes, extensions) =
            (found.meta.clone(), found.range.clone(), found.attributes.clone(), found.extensions.clone());
        let limit = self.limit.clone();
        let stream = found.into_stream().then(move |piece| {
            let limit = limit.clone();
            async move {
                if let Ok(bytes) = &piece {
                    limit.pass(bytes.len()).await;
                }
                piece
            }
        });
        found = GetResult {
            payload: GetResultPayload::Stream(stream.boxed()),
            meta,
            range,
            attributes,
            extensions,
        };
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
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

#[derive(Debug)]
struct LimitedUpload {
    inner: Box<dyn MultipartUpload>,
    limit: RateLimit,
}

#[async_trait]
impl MultipartUpload for LimitedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (limit, bytes) = (self.limit.clone(), data.content_length());
        let part = self.inner.put_part(data);
        Box::pin(async move {
            limit.pass(bytes).await;
            part.await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
