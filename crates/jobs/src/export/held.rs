//! Output that can be taken back, key by key: whether a key is wanted may be known only once its value has passed.
//!
//! What is held goes to a temporary file once it is longer than some MiB.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

const MEMORY_BYTES: usize = 8 << 20;

/// Output, of which the last part can be taken back.
pub(super) struct Held {
    out: Box<dyn Write + Send>,
    waiting: Option<BufWriter<SpooledTempFile>>,
    bytes: u64,
}

impl Held {
    /// Output that is held until it is kept, or passes at once.
    pub(super) fn new(out: Box<dyn Write + Send>, holds: bool) -> Self {
        Self { out, waiting: holds.then(spool), bytes: 0 }
    }

    /// Passes on what is held.
    pub(super) fn keep(&mut self) -> io::Result<()> {
        let Some(held) = &mut self.waiting else { return Ok(()) };
        held.flush()?;
        let held = held.get_mut();
        held.seek(SeekFrom::Start(0))?;
        self.bytes = self.bytes.saturating_add(io::copy(held, &mut self.out)?);
        self.discard()
    }

    /// Takes back what is held.
    pub(super) fn discard(&mut self) -> io::Result<()> {
        let Some(held) = self.waiting.take() else { return Ok(()) };
        let (mut file, _) = held.into_parts();
        if file.is_rolled() {
            file = SpooledTempFile::new(MEMORY_BYTES);
        } else {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        self.waiting = Some(BufWriter::new(file));
        Ok(())
    }

    /// Flushes; how many bytes were passed on.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.bytes)
    }
}

fn spool() -> BufWriter<SpooledTempFile> {
    BufWriter::new(SpooledTempFile::new(MEMORY_BYTES))
}

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut self.waiting {
            return held.write(bytes);
        }
        let written = self.out.write(bytes)?;
        self.bytes = self.bytes.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_discarded_leaves_no_trace_however_long_it_is() {
        let shared = Shared::default();
        let mut held = Held::new(Box::new(shared.clone()), true);
        let mut expected = Vec::new();
        for (length, kept) in
            [(10, true), (MEMORY_BYTES + 5, false), (3, true), (MEMORY_BYTES + 9, true), (7, false)]
        {
            let bytes = vec![b'a' + u8::try_from(length % 26).unwrap(); length];
            held.write_all(&bytes).unwrap();
            if kept {
                held.keep().unwrap();
                expected.extend_from_slice(&bytes);
            } else {
                held.discard().unwrap();
            }
        }
        assert_eq!(held.finish().unwrap(), expected.len() as u64);
        assert!(*shared.0.lock().unwrap() == expected);
    }
}
