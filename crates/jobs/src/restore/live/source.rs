//! The records of a stored RDB, from its start or from any record on.
//!
//! Frames are fetched and decompressed by a task of their own, a few ahead. From the start the object is read in order, and its
//! BLAKE3 is checked at the end once more; from elsewhere frame by frame, each with zstd's own checksum.

use slotkeep_format::manifest::BaseRecord;
use slotkeep_rdb::{Level, Parser};
use slotkeep_repo::{FramedObject, Problem, RepoError, Repository};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::tracker::Position;
use crate::Result;

/// How many frames may wait, of 1 MiB each.
const FRAMES_AHEAD: usize = 3;
const OPCODE_SELECTDB: u8 = 0xfe;

/// An RDB being read.
pub(super) struct Source {
    frames: mpsc::Receiver<Result<Vec<u8>>>,
    _fetching: AbortOnDropHandle<()>,
    /// The parser, which has consumed a magic and a `SELECTDB` if the reading began in the middle.
    pub(super) parser: Parser,
    /// What to add to the parser's offsets, and then what to subtract.
    shift: (u64, u64),
    path: String,
}

impl Source {
    /// Opens an RDB at a record.
    pub(super) async fn open(repository: &Repository, record: &BaseRecord, at: Position) -> Result<Self> {
        let object = repository.framed(&record.rdb).await?;
        let (sender, frames) = mpsc::channel(FRAMES_AHEAD);
        let fetching = AbortOnDropHandle::new(tokio::spawn(fetch(object, at.offset, sender)));
        let path = record.rdb.path.clone();
        let mut source =
            Self { frames, _fetching: fetching, parser: Parser::new(Level::Raw), shift: (0, 0), path };
        if at.offset > 0 {
            // A 32-bit length, whatever the number: loaders accept any form.
            let [a, b, c, d] = at.database.to_be_bytes();
            let magic = record.rdb_version.to_string();
            let prefix = [magic.as_bytes(), &[OPCODE_SELECTDB, 0x80, a, b, c, d]].concat();
            let mut input = prefix.as_slice();
            loop {
                match source.parser.next(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => return Err(source.damaged(&error)),
                }
            }
            source.shift = (at.offset, prefix.len() as u64);
        }
        Ok(source)
    }

    /// How to turn offsets of the parser into offsets in the RDB.
    pub(super) const fn shift(&self) -> (u64, u64) {
        self.shift
    }

    /// The next bytes, or `None` at the end.
    pub(super) async fn next_bytes(&mut self) -> Result<Option<Vec<u8>>> {
        self.frames.recv().await.transpose()
    }

    /// That the bytes are not an RDB, although they are what was stored.
    pub(super) fn damaged(&self, error: &slotkeep_rdb::Error) -> crate::Error {
        damaged(&self.path, error)
    }

    /// Checks that the RDB has come to its end.
    pub(super) fn finish(&self) -> Result<()> {
        self.parser.finish().map_err(|error| self.damaged(&error))
    }

    /// The object's path.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

/// An offset of a parser as an offset in the RDB, by [`Source::shift`].
pub(super) const fn real_offset(shift: (u64, u64), offset: u64) -> u64 {
    offset.saturating_sub(shift.1).saturating_add(shift.0)
}

/// That an RDB's bytes make no sense.
pub(super) fn damaged(path: &str, error: &slotkeep_rdb::Error) -> crate::Error {
    RepoError { doing: "read", on: path.to_owned(), problem: Problem::Damaged(error.to_string()) }.into()
}

async fn fetch(mut object: FramedObject, from: u64, frames: mpsc::Sender<Result<Vec<u8>>>) {
    if from == 0 {
        loop {
            let frame = match object.next().await {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    }
    let count = object.table().frames().len();
    let Some(first) = object.table().frame_at(from).copied() else { return };
    for number in first.number..count {
        let mut frame = object.frame(number).await;
        if let Ok(bytes) = &mut frame
            && number == first.number
        {
            let before = usize::try_from(from.saturating_sub(first.raw_start)).unwrap_or(usize::MAX);
            bytes.drain(..before.min(bytes.len()));
        }
        if frames.send(frame.map_err(Into::into)).await.is_err() {
            return;
        }
    }
}
