//! A limit on the bytes per second that go to and come from a store, both directions together.
//!
//! Invariant: bytes wait before they are handed on, so that a slow reader or writer is what slows the other end down; nothing
//! is queued here.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::time::Instant;

use super::pause;

/// What may pass at once after a pause. A longer burst would fill the line that was to be spared.
const BURST: Duration = Duration::from_millis(100);

/// A budget of bytes per second, shared by everything that it is given to.
#[derive(Clone, Debug)]
pub struct RateLimit {
    bytes_per_s: NonZeroU64,
    /// When all that has been let pass will have passed at that rate.
    passed_at: Arc<Mutex<Instant>>,
}

impl RateLimit {
    /// A limit of that many bytes per second, or none for 0.
    pub fn new(bytes_per_s: u64) -> Option<Self> {
        let bytes_per_s = NonZeroU64::new(bytes_per_s)?;
        Some(Self { bytes_per_s, passed_at: Arc::new(Mutex::new(pause::now())) })
    }

    /// Waits until that many bytes may have passed. Cancelled, they have not passed, and those that come later do not wait for them.
    async fn pass(&self, bytes: usize) {
        let takes_ns = (bytes as u128).saturating_mul(1_000_000_000) / u128::from(self.bytes_per_s.get());
        let takes = Duration::from_nanos(u64::try_from(takes_ns).unwrap_or(u64::MAX));
        let until = {
            let mut passed_at = self.passed_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = pause::now();
            let begins = passed_at.max(now.checked_sub(BURST).unwrap_or(now));
            *passed_at = begins.checked_add(takes).unwrap_or(begins);
            *passed_at
        };
        let mut turn = Turn { limit: self, takes, has_passed: false };
        pause::until(until).await;
        turn.has_passed = true;
    }
}

/// Bytes that wait until they may have passed.
struct Turn<'a> {
    limit: &'a RateLimit,
    takes: Duration,
    has_passed: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.has_passed {
            let mut passed_at = self.limit.passed_at.lock().unwrap_or_else(PoisonError::into_inner);
            *passed_at = passed_at.checked_sub(self.takes).unwrap_or(*passed_at);
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn bytes_that_were_given_up_hold_up_nobody() {
        let limit = RateLimit::new(1000).unwrap();
        // More than an hour.
        assert!(limit.pass(4_000_000).now_or_never().is_none());
        tokio::time::timeout(Duration::from_secs(60), limit.pass(200)).await.unwrap();
    }
}
