//! Reading on where a download or a listing broke.
//!
//! The library tries a broken download again too, but only within three minutes of its beginning, and large objects take longer; a listing whose answer
//! breaks it does not try again. Invariants: the bytes come in order, each once, and all of one version of the object where the store names
//! versions; a listing shows each object once, and ends without an error only if one answer came to its end.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::pause;

/// How often a download may break in a row without a byte between.
const TRIES: u32 = 5;

#[derive(Debug)]
pub(super) struct Resuming {
    inner: Arc<dyn ObjectStore>,
}

impl Resuming {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }
}

impl fmt::Display for Resuming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// A download and where it stands.
struct Download {
    inner: Arc<dyn ObjectStore>,
    location: Path,
    e_tag: Option<String>,
    /// The next byte.
    at: u64,
    end: u64,
    failures: u32,
    stream: BoxStream<'static, Result<Bytes>>,
}

impl Download {
    async fn next(mut self) -> Option<(Result<Bytes>, Self)> {
        loop {
            let error = match self.stream.next().await {
                Some(Ok(bytes)) => {
                    self.at = self.at.saturating_add(bytes.len() as u64);
                    self.failures = 0;
                    return Some((Ok(bytes), self));
                }
                None => return None,
                Some(Err(error)) => error,
            };
            if self.at >= self.end {
                return Some((Err(error), self));
            }
            if let Err(error) = self.again(error).await {
                return Some((Err(error), self));
            }
        }
    }

    /// Asks for the rest.
    async fn again(&mut self, mut error: Error) -> Result<()> {
        loop {
            self.failures += 1;
            if self.failures >= TRIES {
                return Err(error);
            }
            pause::before_try(self.failures).await;
            let rest = GetOptions {
                range: Some(GetRange::Bounded(self.at..self.end)),
                if_match: self.e_tag.clone(),
                ..GetOptions::default()
            };
            match self.inner.get_opts(&self.location, rest).await {
                Ok(found) => {
                    self.stream = found.into_stream();
                    return Ok(());
                }
                Err(again @ (Error::NotFound { .. } | Error::Precondition { .. })) => return Err(again),
                Err(again) => error = again,
            }
        }
    }
}

/// A listing and what it has given. When its answer breaks, it is asked for again from its beginning: not every store lists in an order.
struct Listing {
    inner: Arc<dyn ObjectStore>,
    prefix: Option<Path>,
    given: HashSet<Path>,
    failures: u32,
    stream: BoxStream<'static, Result<ObjectMeta>>,
}

impl Listing {
    async fn next(mut self) -> Option<(Result<ObjectMeta>, Self)> {
        loop {
            match self.stream.next().await? {
                Ok(object) if self.given.contains(&object.location) => {}
                Ok(object) => {
                    self.given.insert(object.location.clone());
                    return Some((Ok(object), self));
                }
                Err(error) if is_broken(&error) && self.failures + 1 < TRIES => {
                    self.failures += 1;
                    pause::before_try(self.failures).await;
                    self.stream = self.inner.list(self.prefix.as_ref());
                }
                Err(error) => return Some((Err(error), self)),
            }
        }
    }
}

/// Whether an answer did not come to its end; everything else is the store's word.
const fn is_broken(error: &Error) -> bool {
    matches!(error, Error::Generic { .. })
}

#[async_trait]
impl ObjectStore for Resuming {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let mut found = self.inner.get_opts(location, options).await?;
        if let GetResultPayload::Stream(stream) = found.payload {
            let download = Download {
                inner: Arc::clone(&self.inner),
                location: location.clone(),
                e_tag: found.meta.e_tag.clone(),
                at: found.range.start,
                end: if head { found.range.start } else { found.range.end },
                failures: 0,
                stream,
            };
            found.payload =
                GetResultPayload::Stream(futures::stream::unfold(download, Download::next).boxed());
        }
        Ok(found)
    }

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

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = Listing {
            inner: Arc::clone(&self.inner),
            prefix: prefix.cloned(),
            given: HashSet::new(),
            failures: 0,
            stream: self.inner.list(prefix),
        };
        futures::stream::unfold(listing, Listing::next).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut failures = 0;
        loop {
            match self.inner.list_with_delimiter(prefix).await {
                Err(error) if is_broken(&error) && failures + 1 < TRIES => failures += 1,
                outcome => return outcome,
            }
            pause::before_try(failures).await;
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
