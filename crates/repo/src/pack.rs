//! What a segment stores for the bytes of a stream, made as they come: frames, seek table, BLAKE3. No I/O.
//!
//! Invariants: what is taken, in order, and what [`SegmentPack::end`] gives are the stored bytes of a segment before its record; they do not
//! depend on how the bytes were cut when they were written.

use blake3::{Hash, Hasher};
use bytes::Bytes;
use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::{Effort, FrameError, FrameWriter};

/// A segment in the making.
pub struct SegmentPack {
    frames: FrameWriter,
    /// Bytes of the frame that is not full yet.
    frame: Vec<u8>,
    /// Where frames are compressed to. What is kept is a copy of its own length: this is as long as a frame can become.
    compressed: Vec<u8>,
    raw_bytes: u64,
    /// On the heap: it is large, and futures hold it.
    hasher: Box<Hasher>,
    stored_bytes: u64,
    pieces: Vec<Bytes>,
}

/// What a segment's record says of the bytes before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub(crate) stored_bytes: u64,
    pub(crate) blake3: Hash,
}

impl SegmentPack {
    /// An empty one.
    pub fn new(effort: Effort) -> Result<Self, FrameError> {
        Ok(Self {
            frames: FrameWriter::with_effort(effort)?,
            frame: Vec::new(),
            compressed: Vec::new(),
            raw_bytes: 0,
            hasher: Box::new(Hasher::new()),
            stored_bytes: 0,
            pieces: Vec::new(),
        })
    }

    /// Appends bytes of the stream.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        self.raw_bytes = self.raw_bytes.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            let room = FRAME_RAW_BYTES.saturating_sub(self.frame.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == FRAME_RAW_BYTES {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    /// How many bytes of the stream it holds.
    pub const fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// About how much memory it takes.
    pub fn memory_bytes(&self) -> u64 {
        let pieces = self.pieces.iter().fold(0, |sum, piece| piece.len().saturating_add(sum));
        // The compressor has tables and buffers of a size like the frame's.
        let buffers = self.frame.capacity().saturating_add(self.compressed.capacity().saturating_mul(2));
        pieces.saturating_add(buffers) as u64
    }

    /// What has been compressed since the last call.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.pieces)
    }

    /// Ends the last frame, and adds the seek table. Gives what has not been taken.
    pub(crate) fn end(mut self) -> Result<(Packed, Vec<Bytes>), FrameError> {
        if !self.frame.is_empty() {
            self.end_frame()?;
        }
        let Self { frames, mut hasher, stored_bytes, mut pieces, .. } = self;
        let table = Bytes::from(frames.finish()?);
        hasher.update(&table);
        let stored_bytes = stored_bytes.saturating_add(table.len() as u64);
        pieces.push(table);
        Ok((Packed { stored_bytes, blake3: hasher.finalize() }, pieces))
    }

    fn end_frame(&mut self) -> Result<(), FrameError> {
        self.frames.frame_into(&self.frame, &mut self.compressed)?;
        self.frame.clear();
        let stored = Bytes::copy_from_slice(&self.compressed);
        self.hasher.update(&stored);
        self.stored_bytes = self.stored_bytes.saturating_add(stored.len() as u64);
        self.pieces.push(stored);
        Ok(())
    }
}
