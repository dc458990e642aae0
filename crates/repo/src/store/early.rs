//! A local folder whose large objects go to the disk while they are being written, and do not stay in memory.
//!
//! The system would keep gigabytes in its memory until an object is complete and must be durable, and the disk, idle until then, would
//! make everybody wait. This is advice only: what makes an object durable is still the library's `fsync` at its end.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::task::spawn_blocking;

/// How much is given to the disk at a time.
const EVERY_BYTES: u64 = 16 << 20;

/// From so many bytes on an object that came in one piece does not stay in memory.
const LARGE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Early {
    inner: LocalFileSystem,
}

impl Early {
    pub(crate) fn new(inner: LocalFileSystem) -> Self {
        Self { inner }
    }
}

impl fmt::Display for Early {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Early {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        let put = self.inner.put_opts(location, payload, opts).await?;
        if bytes >= LARGE_BYTES {
            let object = self.inner.path_to_filesystem(location)?;
            // Where it can't be opened nothing is lost: it is stored.
            let _ = spawn_blocking(move || File::open(object).map(|file| write_back(&file, bytes))).await;
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        let object = self.inner.path_to_filesystem(location)?;
        let file = spawn_blocking(move || being_written(&object)).await?.map(Arc::new);
        Ok(Box::new(EarlyUpload { inner, file, put_bytes: 0, given_bytes: 0 }))
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

/// The file in which the library gathers an upload: the object's name with `#` and the first number that was free. If it is another's,
/// no harm is done.
fn being_written(object: &std::path::Path) -> Option<File> {
    let numbered = |number: u32| {
        let mut name = object.as_os_str().to_owned();
        name.push(format!("#{number}"));
        File::open(name).ok()
    };
    (1..).map_while(numbered).last()
}

#[derive(Debug)]
struct EarlyUpload {
    inner: Box<dyn MultipartUpload>,
    file: Option<Arc<File>>,
    put_bytes: u64,
    /// What has been given to the disk.
    given_bytes: u64,
}

#[async_trait]
impl MultipartUpload for EarlyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.put_bytes = self.put_bytes.saturating_add(data.content_length() as u64);
        let part = self.inner.put_part(data);
        let new_bytes = self.put_bytes.saturating_sub(self.given_bytes);
        let Some(file) = self.file.clone().filter(|_| new_bytes >= EVERY_BYTES) else { return part };
        self.given_bytes = self.put_bytes;
        let put_bytes = self.put_bytes;
        Box::pin(async move {
            part.await?;
            spawn_blocking(move || write_back(&file, put_bytes)).await?;
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

/// Begins to write the first bytes of the file to the disk, and does not wait for it. Linux writes what is not yet on the disk when it is
/// told that the bytes are not needed in memory, and lets go of what is there already (`generic_fadvise` in `mm/fadvise.c`): so a few pages
/// are used again and again, and those that servers of this machine have read stay. Backups are indeed not read soon.
#[cfg(target_os = "linux")]
fn write_back(file: &File, bytes: u64) {
    use std::num::NonZeroU64;

    use rustix::fs::{Advice, fadvise};

    // A file system that takes no advice writes everything at the end.
    let _ = fadvise(file, 0, NonZeroU64::new(bytes), Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn write_back(_: &File, _: u64) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_last_file_of_an_upload_is_the_one_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join("rdb.zst");
        assert!(being_written(&object).is_none());
        // The first was left behind by a process that was killed; the fourth is no upload that begins now.
        for number in [1, 2, 4] {
            std::fs::write(folder.path().join(format!("rdb.zst#{number}")), number.to_string()).unwrap();
        }
        let mut found = String::new();
        being_written(&object).unwrap().read_to_string(&mut found).unwrap();
        assert_eq!(found, "2");
    }
}
