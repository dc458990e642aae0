//! The upload of one object, in parts of one length.
//!
//! Invariant: whatever of it was cancelled, [`Upload::abort`] can be called then and removes what the store has of it. The library's own writer is
//! consumed by its completion: cancelled there, the parts would stay in the store.

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayloadMut, Result};
use tokio::task::JoinSet;

/// An object on its way into a store.
pub(crate) struct Upload {
    parts: Box<dyn MultipartUpload>,
    part_bytes: usize,
    /// What waits for more to make a part with it.
    waiting: PutPayloadMut,
    on_their_way: JoinSet<Result<()>>,
    /// Completed, or aborted.
    is_over: bool,
}

impl Upload {
    pub(crate) fn new(parts: Box<dyn MultipartUpload>, part_bytes: usize) -> Self {
        let (waiting, on_their_way) = (PutPayloadMut::new(), JoinSet::new());
        Self { parts, part_bytes, waiting, on_their_way, is_over: false }
    }

    /// Waits until fewer than `most` parts are on their way; with 1 until all have arrived.
    pub(crate) async fn fewer_than(&mut self, most: usize) -> Result<()> {
        while self.on_their_way.len() >= most.max(1) {
            let Some(ended) = self.on_their_way.join_next().await else { break };
            ended??;
        }
        Ok(())
    }

    /// Appends bytes; what makes a part with what waits begins its way.
    pub(crate) fn put(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let room = self.part_bytes.saturating_sub(self.waiting.content_length()).max(1);
            if bytes.len() < room {
                self.waiting.push(bytes);
                return;
            }
            self.waiting.push(bytes.split_to(room));
            self.put_waiting();
        }
    }

    fn put_waiting(&mut self) {
        let part = std::mem::take(&mut self.waiting);
        self.on_their_way.spawn(self.parts.put_part(part.into()));
    }

    /// Completes the object. Cancelled or failed, it must be aborted; it may be complete all the same.
    pub(crate) async fn complete(&mut self) -> Result<()> {
        if self.waiting.content_length() > 0 {
            self.put_waiting();
        }
        self.fewer_than(1).await?;
        self.parts.complete().await?;
        self.is_over = true;
        Ok(())
    }

    /// Gives the object up and removes what the store has of it, once.
    pub(crate) async fn abort(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_over, true) {
            return Ok(());
        }
        self.on_their_way.shutdown().await;
        self.parts.abort().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use futures::FutureExt;
    use object_store::{PutPayload, PutResult, UploadPart};

    use super::*;

    /// A store that takes parts and never says so.
    #[derive(Clone, Debug, Default)]
    struct Silent {
        parts: Arc<Mutex<Vec<usize>>>,
        aborted: Arc<Mutex<u32>>,
    }

    #[async_trait]
    impl MultipartUpload for Silent {
        fn put_part(&mut self, data: PutPayload) -> UploadPart {
            self.parts.lock().unwrap().push(data.content_length());
            Box::pin(std::future::pending())
        }

        async fn complete(&mut self) -> Result<PutResult> {
            std::future::pending().await
        }

        async fn abort(&mut self) -> Result<()> {
            *self.aborted.lock().unwrap() += 1;
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_was_cancelled_can_be_aborted() {
        let store = Silent::default();
        let mut upload = Upload::new(Box::new(store.clone()), 4);
        assert!(upload.fewer_than(1).now_or_never().is_some());
        upload.put(Bytes::from_static(b"0123456789"));
        assert_eq!(*store.parts.lock().unwrap(), [4, 4]);
        assert!(upload.fewer_than(3).now_or_never().is_some());
        assert!(upload.fewer_than(2).now_or_never().is_none());
        assert!(upload.complete().now_or_never().is_none());
        assert_eq!(*store.parts.lock().unwrap(), [4, 4, 2]);
        upload.abort().await.unwrap();
        upload.abort().await.unwrap();
        assert_eq!(*store.aborted.lock().unwrap(), 1);
    }
}
