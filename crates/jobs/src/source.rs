//! Where bytes come from that go to a server: stored objects, files, memory.

use std::collections::VecDeque;
use std::future::Future;

use bytes::Bytes;
use slotkeep_repo::FramedObject;

use crate::Result;

/// Bytes in order, a piece at a time. Whoever makes one keeps its pieces small (about a mebibyte at the most), for a piece is held
/// in memory while it is sent.
pub trait ByteSource: Send {
    /// The next bytes; none at the end. Need not be cancel-safe: who calls it awaits it to its end, or gives the source up.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>>> + Send;
}

/// Pieces that are in memory.
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    pieces: VecDeque<Bytes>,
}

impl MemorySource {
    /// Gives those pieces.
    pub fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        Self { pieces: pieces.into_iter().collect() }
    }
}

impl ByteSource for MemorySource {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.pieces.pop_front())
    }
}

/// A stored object, as it was before it was compressed. Its bytes are checked as they pass: a damaged object is an error before its
/// end.
pub struct ObjectSource(pub FramedObject);

impl ByteSource for ObjectSource {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.next().await?.map(Bytes::from))
    }
}
