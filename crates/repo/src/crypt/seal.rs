//! Encrypting, a piece at a time.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::stream::StreamWriter;
use age::x25519::{Identity, Recipient};
use age::{Decryptor, Encryptor};

use super::age_problem;
use crate::error::Problem;

/// Where the library writes to, so that it can be taken away piece by piece.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

/// How much of a file is encrypted at a time, and how much longer that makes it (age's STREAM of ChaCha20-Poly1305).
const CHUNK_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;

impl Sink {
    /// Makes room for what these bytes become: a buffer that grows is copied, and meets fresh pages, again and again.
    fn reserve_for(&self, bytes: &[u8]) {
        let chunks = bytes.len().checked_div(CHUNK_BYTES).unwrap_or_default().saturating_add(1);
        let sealed = chunks.saturating_mul(CHUNK_BYTES.saturating_add(TAG_BYTES));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).reserve(sealed);
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An age file that is being written.
pub(crate) struct Sealer {
    stream: StreamWriter<Sink>,
    sink: Sink,
}

fn failed(error: impl std::fmt::Display) -> Problem {
    Problem::Store(format!("encryption failed: {error}"))
}

impl Sealer {
    /// Begins the file; gives its header, which is to be stored first.
    pub(crate) fn start(recipient: &Recipient) -> Result<(Self, Vec<u8>), Problem> {
        let recipients = std::iter::once(recipient as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(failed)?;
        let sink = Sink::default();
        let stream = encryptor.wrap_output(sink.clone()).map_err(failed)?;
        let header = sink.take();
        Ok((Self { stream, sink }, header))
    }

    /// What is to be stored for these bytes; the last of them may be held back.
    pub(crate) fn seal(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Problem> {
        self.sink.reserve_for(bytes);
        self.stream.write_all(bytes).map_err(failed)?;
        Ok(self.sink.take())
    }

    /// What completes the file.
    pub(crate) fn finish(self) -> Result<Vec<u8>, Problem> {
        let sink = self.stream.finish().map_err(failed)?;
        Ok(sink.take())
    }
}

/// A short text as an armoured age file, to stand in a JSON file.
pub(crate) fn seal_armored(recipient: &Recipient, text: &[u8]) -> Result<String, Problem> {
    let recipients = std::iter::once(recipient as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(recipients).map_err(failed)?;
    let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor).map_err(failed)?;
    let mut stream = encryptor.wrap_output(armor).map_err(failed)?;
    stream.write_all(text).map_err(failed)?;
    let bytes = stream.finish().and_then(ArmoredWriter::finish).map_err(failed)?;
    String::from_utf8(bytes).map_err(failed)
}

/// The text of such a file.
pub(crate) fn open_armored(identity: &Identity, armored: &str) -> Result<Vec<u8>, Problem> {
    let decryptor = Decryptor::new_buffered(ArmoredReader::new(armored.as_bytes())).map_err(age_problem)?;
    let mut text = Vec::new();
    let identities = std::iter::once(identity as &dyn age::Identity);
    let mut stream = decryptor.decrypt(identities).map_err(age_problem)?;
    stream.read_to_end(&mut text).map_err(super::io_problem)?;
    Ok(text)
}
