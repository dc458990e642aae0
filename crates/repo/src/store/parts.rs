//! Uploads of any length to stores that take 10,000 parts of an object at most (S3, and what speaks like it; Google's too; Azure takes 50,000).
//!
//! The first 5,000 parts are as large as they come; from then on several go together, twice as many with every thousand parts, up to 32. Of parts of
//! 8 MiB an object has room for 523 GiB so, and what is held in memory stays below a hundredth of what has been stored. Invariant: the bytes
//! are those that were given, in their order.

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutPayloadMut, PutResult, Result, UploadPart,
};

/// So many parts are left as they are: most objects have fewer, and some stores want all parts of an object equally large.
const EQUAL_PARTS: u32 = 5_000;
/// After so many parts they grow.
const GROWS_EVERY: u32 = 1_000;
/// The most that go together.
const MOST_TOGETHER: u32 = 32;

/// How many of the parts that come go together into the part of that number, which is counted from 0.
fn together(number: u32) -> u32 {
    let Some(behind) = number.checked_sub(EQUAL_PARTS) else { return 1 };
    let doublings = (behind / GROWS_EVERY).saturating_add(1);
    1_u32.checked_shl(doublings).unwrap_or(MOST_TOGETHER).min(MOST_TOGETHER)
}

/// A store whose uploads grow their parts.
#[derive(Debug)]
pub(crate) struct GrowingParts<S> {
    inner: S,
}

impl<S> GrowingParts<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: ObjectStore> fmt::Display for GrowingParts<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for GrowingParts<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Growing::new(self.inner.put_multipart_opts(location, opts).await?)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct Growing {
    inner: Box<dyn MultipartUpload>,
    /// Parts that have been given on.
    parts: u32,
    /// What waits for more to go with it, and of how many parts it is.
    waiting: PutPayloadMut,
    waiting_parts: u32,
}

impl Growing {
    fn new(inner: Box<dyn MultipartUpload>) -> Self {
        Self { inner, parts: 0, waiting: PutPayloadMut::new(), waiting_parts: 0 }
    }

    fn put_waiting(&mut self) -> UploadPart {
        let part = std::mem::take(&mut self.waiting);
        self.waiting_parts = 0;
        self.parts = self.parts.saturating_add(1);
        self.inner.put_part(part.into())
    }
}

#[async_trait]
impl MultipartUpload for Growing {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let wanted = together(self.parts);
        if wanted == 1 {
            self.parts = self.parts.saturating_add(1);
            return self.inner.put_part(data);
        }
        for piece in data {
            self.waiting.push(piece);
        }
        self.waiting_parts = self.waiting_parts.saturating_add(1);
        if self.waiting_parts < wanted { Box::pin(std::future::ready(Ok(()))) } else { self.put_waiting() }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        if self.waiting_parts > 0 {
            self.put_waiting().await?;
        }
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use object_store::{Error, WriteMultipart};

    use super::*;

    const MOST_PARTS: usize = 10_000;

    /// A store that takes 10,000 parts and no more.
    #[derive(Clone, Debug, Default)]
    struct Limited(Arc<Mutex<Vec<Vec<u8>>>>);

    #[async_trait]
    impl MultipartUpload for Limited {
        fn put_part(&mut self, data: PutPayload) -> UploadPart {
            let mut parts = self.0.lock().unwrap();
            let taken = parts.len() < MOST_PARTS;
            parts.push(data.iter().flatten().copied().collect());
            let refused = || Error::Generic { store: "limited", source: "part number 10001".into() };
            Box::pin(std::future::ready(if taken { Ok(()) } else { Err(refused()) }))
        }

        async fn complete(&mut self) -> Result<PutResult> {
            Ok(PutResult { e_tag: None, version: None, extensions: object_store::Extensions::default() })
        }

        async fn abort(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// Uploads so many bytes in parts of four; gives the parts, if the store took them.
    async fn upload(bytes: &[u8], grows: bool) -> Option<Vec<Vec<u8>>> {
        let store = Limited::default();
        let inner: Box<dyn MultipartUpload> = Box::new(store.clone());
        let inner = if grows { Box::new(Growing::new(inner)) } else { inner };
        let mut writer = WriteMultipart::new_with_chunk_size(inner, 4);
        for piece in bytes.chunks(999) {
            writer.wait_for_capacity(2).await.ok()?;
            writer.put(bytes::Bytes::copy_from_slice(piece));
        }
        writer.finish().await.ok()?;
        let parts = store.0.lock().unwrap().clone();
        Some(parts)
    }

    #[tokio::test]
    async fn an_object_may_have_many_more_bytes_than_ten_thousand_parts() {
        let bytes: Vec<u8> = (0..260_001_u32).map(|number| (number % 251) as u8).collect();
        assert!(upload(&bytes, false).await.is_none(), "as the store would refuse it");
        let parts = upload(&bytes, true).await.unwrap();
        assert_eq!(parts.concat(), bytes);
        let of = |number: usize| parts[number].len();
        assert_eq!([of(0), of(4_999), of(5_000), of(5_999), of(6_000), of(9_000)], [4, 4, 8, 8, 16, 128]);
        // Up to where they would be counted out, all but the last are equal.
        let few = upload(&bytes[..19_999], true).await.unwrap();
        assert!(few.len() == 5_000 && few[..4_999].iter().all(|part| part.len() == 4));
        assert!(upload(&[], true).await.unwrap().is_empty());
    }

    #[test]
    fn what_fits_is_what_is_promised() {
        let parts: u64 = (0..10_000).map(|number| u64::from(together(number))).sum();
        assert_eq!(parts * 8 / 1024, 523, "GiB");
        assert_eq!(together(u32::MAX), MOST_TOGETHER);
    }
}
