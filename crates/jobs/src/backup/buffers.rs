//! Buffers of a frame's size that are used again. New ones would cost the system's zeroing of their pages each time.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers that nobody uses at the moment. There are never more than have been in use at a time.
#[derive(Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer of at least that capacity.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = free.unwrap_or_default();
        buffer.clear();
        buffer.reserve(bytes);
        buffer
    }

    /// What is in the buffer, to be handed on; it comes back when nobody holds it any more.
    pub(super) fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, home: Arc::clone(self) })
    }
}

struct Lent {
    buffer: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_holder_lets_go() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(100);
        buffer.extend_from_slice(b"abc");
        let place = buffer.as_ptr();
        let bytes = buffers.lend(buffer);
        let (half, other) = (bytes.slice(..1), buffers.take(100));
        assert_ne!(other.as_ptr(), place);
        drop(bytes);
        assert!(buffers.free.lock().unwrap().is_empty(), "half of it is still held");
        assert_eq!(half.as_ref(), b"a");
        drop(half);
        let again = buffers.take(100);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }
}
