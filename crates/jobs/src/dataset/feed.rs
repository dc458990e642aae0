//! The bytes of one RDB on their way to a thread that reads them.
//!
//! They are fetched a few pieces ahead, by a task for a stored base (which decompresses and checks them) or by a thread for a file. A
//! feed that ends without its end mark was stopped.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use slotkeep_repo::FramedObject;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Input, Place};
use crate::{Error, ErrorKind, Result};

/// How many pieces may wait.
const PIECES_AHEAD: usize = 3;
/// The length of a piece of a file.
const PIECE_BYTES: usize = 1 << 20;

enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// The bytes of one RDB.
pub(crate) struct Feed {
    pieces: mpsc::Receiver<Result<Piece>>,
    _fetching: Option<AbortOnDropHandle<()>>,
    stop: CancellationToken,
    runtime: Handle,
}

impl Feed {
    /// Begins to fetch an RDB.
    pub(crate) async fn open(input: &Input, stop: &CancellationToken) -> Result<Self> {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let fetching = match &input.place {
            Place::Base(repository, record) => {
                let object = repository.framed(&record.rdb).await?;
                Some(AbortOnDropHandle::new(tokio::spawn(fetch(object, sender))))
            }
            Place::File(path) => {
                let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
                let path = path.clone();
                std::thread::spawn(move || pump(file, &path, &sender));
                None
            }
            // A thread of its own, not the runtime's: it may wait for input for ever, and the runtime for it.
            Place::Stdin => {
                std::thread::spawn(move || pump(std::io::stdin(), Path::new("standard input"), &sender));
                None
            }
        };
        Ok(Self { pieces, _fetching: fetching, stop: stop.clone(), runtime: Handle::current() })
    }

    /// The next bytes, or `None` at the end. Blocks.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let Self { pieces, stop, runtime, .. } = self;
        let piece = runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => None,
                piece = pieces.recv() => piece,
            }
        });
        match piece {
            None => Err(Error::interrupted()),
            Some(Err(error)) => Err(error),
            Some(Ok(Piece::End)) => Ok(None),
            Some(Ok(Piece::Bytes(bytes))) => Ok(Some(bytes)),
        }
    }
}

async fn fetch(mut object: FramedObject, pieces: mpsc::Sender<Result<Piece>>) {
    loop {
        let (piece, last) = match object.next().await {
            Ok(Some(frame)) => (Ok(Piece::Bytes(frame)), false),
            Ok(None) => (Ok(Piece::End), true),
            Err(error) => (Err(error.into()), true),
        };
        if pieces.send(piece).await.is_err() || last {
            return;
        }
    }
}

fn pump(mut source: impl Read, path: &Path, pieces: &mpsc::Sender<Result<Piece>>) {
    loop {
        let mut bytes = Vec::with_capacity(PIECE_BYTES);
        let (piece, last) = match source.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut bytes) {
            Ok(0) => (Ok(Piece::End), true),
            Ok(_) => (Ok(Piece::Bytes(bytes)), false),
            Err(error) => (Err(cannot_read(path, &error)), true),
        };
        if pieces.blocking_send(piece).is_err() || last {
            return;
        }
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Failed, format!("can't read {}: {error}", path.display()))
        .hint("check that this user may read it, and that the disk is healthy")
}
