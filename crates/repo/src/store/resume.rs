//! Reading on where a download or a listing broke.
//!
//! The library tries a broken download again too, but only within three minutes of its beginning, and large objects take longer; a listing whose answer
//! breaks it does not try again. Invariants: the bytes come in order, each once, and all of one version of the object where the store names
//! versions; a listing shows each object once, and ends without an error only if one answer came to its end.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use tokio::time::Instant;

use super::pause;

/// How often a download may break in a row without a byte between, and a listing.
const TRIES: u32 = 5;
/// A listing that has given nothing for so long is not asked for again: the library has tried so long by itself.
const GIVES_UP_AFTER: Duration = Duration::from_secs(180);

/// The object is not any more the one that a download began with.
#[derive(Debug, thiserror::Error)]
#[error("it changed while it was read")]
pub(crate) struct Changed;

#[derive(Debug)]
pub(super) struct Resuming {
    inner: Arc<dyn ObjectStore>,
    gives_up_after: Duration,
}

impl Resuming {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, gives_up_after: GIVES_UP_AFTER }
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
                Err(Error::Precondition { path, .. }) => {
                    return Err(Error::Precondition { path, source: Box::new(Changed) });
                }
                Err(again @ Error::NotFound { .. }) => return Err(again),
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
    /// When something came last.
    heard_at: Instant,
    gives_up_after: Duration,
    stream: BoxStream<'static, Result<ObjectMeta>>,
}

impl Listing {
    async fn next(mut self) -> Option<(Result<ObjectMeta>, Self)> {
        loop {
            match self.stream.next().await? {
                Ok(object) => {
                    self.heard_at = pause::now();
                    if self.given.insert(object.location.clone()) {
                        return Some((Ok(object), self));
                    }
                }
                Err(error)
                    if may_be_asked_again(&error, self.failures, self.heard_at, self.gives_up_after) =>
                {
                    self.failures += 1;
                    pause::before_try(self.failures).await;
                    self.stream = self.inner.list(self.prefix.as_ref());
                }
                Err(error) => return Some((Err(error), self)),
            }
        }
    }
}

/// Whether to ask for a listing again that failed before so often: its answer did not come to its end; everything else is the store's word.
fn may_be_asked_again(error: &Error, failures: u32, heard_at: Instant, gives_up_after: Duration) -> bool {
    let is_broken = matches!(error, Error::Generic { .. });
    is_broken && failures + 1 < TRIES && pause::now().duration_since(heard_at) < gives_up_after
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
            heard_at: pause::now(),
            gives_up_after: self.gives_up_after,
            stream: self.inner.list(prefix),
        };
        futures::stream::unfold(listing, Listing::next).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (mut failures, began) = (0, pause::now());
        loop {
            match self.inner.list_with_delimiter(prefix).await {
                Err(error) if may_be_asked_again(&error, failures, began, self.gives_up_after) => {
                    failures += 1;
                }
                outcome => return outcome,
            }
            pause::before_try(failures).await;
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::error::Problem;

    fn broken() -> Error {
        Error::Generic { store: "test", source: "the connection broke".into() }
    }

    /// Breaks its first download after three bytes and has somebody else's object there then; fails every listing.
    #[derive(Debug, Default)]
    struct Changing {
        inner: InMemory,
        replacement: Mutex<Option<PutPayload>>,
        listings: AtomicU32,
    }

    impl fmt::Display for Changing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("changing")
        }
    }

    #[async_trait]
    impl ObjectStore for Changing {
        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            let mut found = self.inner.get_opts(location, options).await?;
            let replacement = self.replacement.lock().unwrap().take();
            if let Some(replacement) = replacement {
                self.inner.put(location, replacement).await?;
                let pieces = vec![Ok(Bytes::from_static(b"abc")), Err(broken())];
                found.payload = GetResultPayload::Stream(futures::stream::iter(pieces).boxed());
            }
            Ok(found)
        }

        async fn put_opts(&self, location: &Path, data: PutPayload, opts: PutOptions) -> Result<PutResult> {
            self.inner.put_opts(location, data, opts).await
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            opts: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(location, opts).await
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.listings.fetch_add(1, Ordering::Relaxed);
            self.inner.list(prefix).chain(futures::stream::iter([Err(broken())])).boxed()
        }

        async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
            self.listings.fetch_add(1, Ordering::Relaxed);
            Err(broken())
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn an_object_that_changes_while_it_is_read_is_damaged_and_not_there_already() {
        for (replacement, is_other) in [("abcdef", false), ("ghijkl", true), ("", true)] {
            let path = Path::from("x");
            let store = Changing::default();
            let put = store.inner.put(&path, "abcdef".into()).await.unwrap();
            if is_other {
                *store.replacement.lock().unwrap() = Some(replacement.into());
            }
            let store = Resuming::new(Arc::new(store));
            let read = store.get(&path).await.unwrap().bytes().await;
            match (read, is_other) {
                (Ok(bytes), false) => assert_eq!(bytes, replacement, "{put:?}"),
                (Err(error), true) => match Problem::from(error) {
                    Problem::Damaged(what) => assert_eq!(what, "it changed while it was read"),
                    other => panic!("{other:?}"),
                },
                (read, _) => panic!("{read:?}"),
            }
        }
        // A create that is refused is another matter.
        let refused = Error::Precondition { path: "x".to_owned(), source: "412".into() };
        assert!(matches!(Problem::from(refused), Problem::Exists));
    }

    #[tokio::test]
    async fn a_listing_that_fails_is_asked_for_again_while_the_store_did_not_take_long_to_fail() {
        for (gives_up_after, times) in [(GIVES_UP_AFTER, TRIES), (Duration::ZERO, 1)] {
            let store = Arc::new(Changing::default());
            let inner = Arc::clone(&store) as Arc<dyn ObjectStore>;
            let resuming = Resuming { gives_up_after, ..Resuming::new(inner) };
            resuming.list(None).try_collect::<Vec<_>>().await.unwrap_err();
            assert_eq!(store.listings.swap(0, Ordering::Relaxed), times);
            resuming.list_with_delimiter(None).await.unwrap_err();
            assert_eq!(store.listings.load(Ordering::Relaxed), times);
        }
    }
}
