//! From the bytes of an RDB to the objects of a base.
//!
//! ```text
//! capture ─┬─► store worker (CRC64, zstd) ─► upload (BLAKE3) ─► rdb
//!          └─► interpretation (parse, digest, index, zstd) ─► upload ─► index
//! ```
//!
//! A connection's bytes are read straight into the frame and never copied as they are: both workers look at the same.
//! Every arrow is a queue of at most [`QUEUE_PIECES`] pieces of one frame, so the memory of a base does not depend on its size. A
//! queue that ends without its end mark means that what came before was not whole: the object is aborted.
//! Interpretation may give up; the RDB is stored all the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use bytes::buf::{BufMut, Limit};
use slotkeep_format::FrameWriter;
use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::manifest::ObjectRecord;
use slotkeep_model::DatasetDigest;
use slotkeep_rdb::{Envelope, EnvelopeReport};
use slotkeep_repo::layout::BaseLayout;
use slotkeep_repo::{ObjectWriter, Repository};
use slotkeep_wire::transfer::MARK_LEN;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::buffers::Buffers;
use super::interpret::{Interpretation, Interpreter};
use crate::progress::{ShardProgress, add};
use crate::rdb_head::{HEAD_BYTES, RdbHead};
use crate::{Error, ErrorKind, Result};

/// Pieces that wait in each queue.
const QUEUE_PIECES: usize = 2;
/// How many bytes may stand in a frame behind those that are certainly the RDB's: less than a mark.
const UNCERTAIN_BYTES: usize = MARK_LEN;

/// What goes into the workers.
enum Raw {
    /// The next bytes: a whole frame, or the last one.
    Piece(Bytes),
    /// Nothing is missing.
    End,
}

/// What goes into an upload.
enum Stored {
    Piece(Bytes),
    End { raw_bytes: u64 },
}

/// What became of the bytes.
pub(crate) struct PipelineReport {
    pub(crate) rdb: ObjectRecord,
    pub(crate) envelope: EnvelopeReport,
    pub(crate) interpretation: std::result::Result<(Interpretation, ObjectRecord), String>,
}

/// A base that is being written.
pub(crate) struct Pipeline {
    store: mpsc::Sender<Raw>,
    interpret: mpsc::Sender<Raw>,
    buffers: Arc<Buffers>,
    /// The frame that is being filled. Behind the RDB's bytes may stand some of which it is not known yet whether they belong to it.
    frame: Vec<u8>,
    /// How many bytes of the frame are certainly the RDB's; always less than a whole frame.
    certain: usize,
    /// What the RDB says of itself, once its first bytes are there; nothing if they can't be read.
    head: Option<RdbHead>,
    progress: Arc<ShardProgress>,
    tasks: Tasks,
    /// Cancelled when nothing of it is to stay: what is on its way to the store is not waited for then.
    given_up: CancellationToken,
}

struct Tasks {
    store: JoinHandle<Result<EnvelopeReport>>,
    interpret: JoinHandle<std::result::Result<Interpretation, String>>,
    rdb: JoinHandle<Result<Option<ObjectRecord>>>,
    index: JoinHandle<Result<Option<ObjectRecord>>>,
}

impl Pipeline {
    pub(crate) async fn start(
        repository: &Repository,
        layout: &BaseLayout,
        progress: Arc<ShardProgress>,
    ) -> Result<Self> {
        let rdb = repository.create_object(layout.rdb()).await?;
        let index = match repository.create_object(layout.index()).await {
            Ok(index) => index,
            Err(error) => {
                // The first error is the one to report.
                let _ = rdb.abort().await;
                return Err(error.into());
            }
        };
        let (store, store_queue) = mpsc::channel(QUEUE_PIECES);
        let (interpret, interpret_queue) = mpsc::channel(QUEUE_PIECES);
        let (rdb_pieces, rdb_queue) = mpsc::channel(QUEUE_PIECES);
        let (index_pieces, index_queue) = mpsc::channel(QUEUE_PIECES);
        let (seen, counted) = (Arc::clone(&progress), Arc::clone(&progress));
        let given_up = CancellationToken::new();
        let tasks = Tasks {
            store: tokio::task::spawn_blocking(move || store_worker(store_queue, &rdb_pieces)),
            interpret: tokio::task::spawn_blocking(move || {
                interpret_worker(interpret_queue, &index_pieces, &seen)
            }),
            rdb: tokio::spawn(upload(rdb, rdb_queue, Some(counted), given_up.clone())),
            index: tokio::spawn(upload(index, index_queue, None, given_up.clone())),
        };
        let buffers = Arc::<Buffers>::default();
        let frame = buffers.take(FRAME_RAW_BYTES + UNCERTAIN_BYTES);
        Ok(Self { store, interpret, buffers, frame, certain: 0, head: None, progress, tasks, given_up })
    }

    /// Where the next bytes may be read to.
    pub(crate) fn room(&mut self) -> Limit<&mut Vec<u8>> {
        let room = (FRAME_RAW_BYTES + UNCERTAIN_BYTES).saturating_sub(self.frame.len());
        (&mut self.frame).limit(room)
    }

    /// The last bytes that were read to [`Self::room`], `count` of them.
    pub(crate) fn last_read(&self, count: usize) -> &[u8] {
        self.frame.get(self.frame.len().saturating_sub(count)..).unwrap_or_default()
    }

    /// Takes so many more of the bytes that were read to [`Self::room`] for the RDB's; all but the last few must be.
    /// Not cancel-safe: cancelled, the pipeline must be given up.
    pub(crate) async fn take_read(&mut self, count: usize) -> Result<(), Stopped> {
        add(&self.progress.raw_bytes, count as u64);
        self.certain = self.certain.saturating_add(count).min(self.frame.len());
        if self.certain >= FRAME_RAW_BYTES {
            self.dispatch().await?;
        }
        Ok(())
    }

    /// Takes the next bytes of the RDB. Not cancel-safe: cancelled, the pipeline must be given up.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let room = FRAME_RAW_BYTES.saturating_sub(self.frame.len()).max(1);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.frame.extend_from_slice(now);
            bytes = later;
            self.take_read(now.len()).await?;
        }
        Ok(())
    }

    /// What the RDB says of itself, as far as it has come.
    pub(crate) fn head(&mut self) -> &RdbHead {
        let Self { head, frame, certain, .. } = self;
        head.get_or_insert_with(|| {
            let first = frame.get(..HEAD_BYTES.min(*certain)).unwrap_or_default();
            RdbHead::of(first).unwrap_or_default()
        })
    }

    /// Hands the frame on; what is read beyond it begins the next one.
    async fn dispatch(&mut self) -> Result<(), Stopped> {
        self.head();
        let mut next = self.buffers.take(FRAME_RAW_BYTES + UNCERTAIN_BYTES);
        let end = self.certain.min(FRAME_RAW_BYTES);
        next.extend_from_slice(self.frame.get(end..).unwrap_or_default());
        self.frame.truncate(end);
        self.certain -= end;
        let piece = self.buffers.lend(std::mem::replace(&mut self.frame, next));
        self.store.send(Raw::Piece(piece.clone())).await.map_err(|_| Stopped)?;
        // Interpretation may have given up: the bytes are stored without it.
        let _ = self.interpret.send(Raw::Piece(piece)).await;
        Ok(())
    }

    /// Ends the RDB, and gives what was stored once it is durable. When `stop` is cancelled before, the base is given up. Not cancel-safe.
    pub(crate) async fn finish(mut self, stop: &CancellationToken) -> Result<PipelineReport> {
        let ended = async {
            if self.certain > 0 {
                self.dispatch().await?;
            }
            self.store.send(Raw::End).await.map_err(|_| Stopped)?;
            let _ = self.interpret.send(Raw::End).await;
            Ok::<(), Stopped>(())
        };
        let ended = tokio::select! {
            ended = ended => ended,
            () = stop.cancelled() => Err(Stopped),
        };
        let Self { store, interpret, tasks, given_up, .. } = self;
        drop((store, interpret));
        let collected = tasks.collect(ended);
        tokio::pin!(collected);
        tokio::select! {
            report = &mut collected => return report,
            () = stop.cancelled() => given_up.cancel(),
        }
        collected.await.map_err(|_| Error::interrupted())
    }

    /// Gives the base up: nothing of it stays in the repository. Gives the reason why the pipeline stopped, if it was its own.
    pub(crate) async fn abandon(self) -> Option<Error> {
        let Self { store, interpret, tasks, given_up, .. } = self;
        given_up.cancel();
        drop((store, interpret));
        tasks.collect(Err(Stopped)).await.err()
    }
}

/// The pipeline takes no more bytes; [`Pipeline::abandon`] tells why.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Tasks {
    /// Waits for all tasks. What a task failed of goes before the mere fact that the pipeline stopped.
    async fn collect(self, ended: Result<(), Stopped>) -> Result<PipelineReport> {
        let rdb = joined(self.rdb.await)?;
        let index = joined(self.index.await)?;
        let envelope = joined(self.store.await)?;
        let interpretation = joined(self.interpret.await)?;
        let rdb = rdb?;
        let (envelope, index) = (envelope?, index?);
        let (Ok(()), Some(rdb)) = (ended, rdb) else {
            return Err(Error::new(ErrorKind::Failed, "the snapshot was given up before its end"));
        };
        let interpretation = match (interpretation, index) {
            (Ok(interpretation), Some(index)) => Ok((interpretation, index)),
            (Ok(_), None) => Err("its index was not written".to_owned()),
            (Err(reason), _) => Err(reason),
        };
        Ok(PipelineReport { rdb, envelope, interpretation })
    }
}

/// What was made again of an RDB that is stored.
pub(crate) struct Remade {
    pub(crate) envelope: EnvelopeReport,
    pub(crate) digest: DatasetDigest,
    pub(crate) index: ObjectRecord,
}

/// Reads a stored RDB to its end and writes its index anew; `seen` is given every frame. Unless it succeeds, no index is written.
pub(crate) async fn index_again(
    repository: &Repository,
    rdb: &ObjectRecord,
    index: String,
    mut seen: impl FnMut(&[u8]),
) -> Result<Remade> {
    let mut stored = repository.framed(rdb).await?;
    let index = repository.create_object(index).await?;
    let (interpret, queue) = mpsc::channel(QUEUE_PIECES);
    let (pieces, index_queue) = mpsc::channel(QUEUE_PIECES);
    let progress = ShardProgress::new(String::new());
    let worker = tokio::task::spawn_blocking(move || interpret_worker(queue, &pieces, &progress));
    let upload = tokio::spawn(upload(index, index_queue, None, CancellationToken::new()));
    let fed = async {
        let mut envelope = Envelope::new();
        while let Some(frame) = stored.next().await? {
            envelope.feed(&frame);
            seen(&frame);
            // If it has given up, it says why.
            let _ = interpret.send(Raw::Piece(frame.into())).await;
        }
        let _ = interpret.send(Raw::End).await;
        Ok::<_, Error>(envelope)
    };
    let fed = fed.await;
    drop(interpret);
    let (interpretation, index) = (joined(worker.await)?, joined(upload.await)?);
    let envelope = fed?.finish();
    let damaged = |why: String| Error::new(ErrorKind::Corrupt, format!("{} can't be used: {why}", rdb.path));
    let envelope = envelope.map_err(|error| damaged(error.to_string()))?;
    let interpretation = interpretation.map_err(damaged)?;
    let index = index?.ok_or_else(|| damaged("its index was not written".to_owned()))?;
    Ok(Remade { envelope, digest: interpretation.digest, index })
}

fn joined<T>(outcome: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    outcome.map_err(|error| Error::new(ErrorKind::Failed, format!("a worker ended unexpectedly: {error}")))
}

fn store_worker(mut queue: mpsc::Receiver<Raw>, out: &mpsc::Sender<Stored>) -> Result<EnvelopeReport> {
    let stopped = |_| Error::new(ErrorKind::Failed, "the upload of the snapshot ended early");
    let mut envelope = Envelope::new();
    let mut frames = FrameWriter::new().map_err(compression)?;
    let buffers = Arc::<Buffers>::default();
    let mut raw_bytes = 0_u64;
    loop {
        match queue.blocking_recv() {
            Some(Raw::Piece(piece)) => {
                envelope.feed(&piece);
                raw_bytes = raw_bytes.saturating_add(piece.len() as u64);
                let mut stored = buffers.take(0);
                frames.frame_into(&piece, &mut stored).map_err(compression)?;
                drop(piece);
                out.blocking_send(Stored::Piece(buffers.lend(stored))).map_err(stopped)?;
            }
            Some(Raw::End) => break,
            None => return Err(Error::new(ErrorKind::Failed, "the snapshot was given up before its end")),
        }
    }
    let report = envelope.finish().map_err(damaged_snapshot)?;
    out.blocking_send(Stored::Piece(frames.finish().map_err(compression)?.into())).map_err(stopped)?;
    out.blocking_send(Stored::End { raw_bytes }).map_err(stopped)?;
    Ok(report)
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn compression(error: slotkeep_format::FrameError) -> Error {
    Error::new(ErrorKind::Failed, error.to_string())
}

fn damaged_snapshot(error: slotkeep_rdb::EnvelopeError) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the snapshot that the server sent is damaged: {error}"))
        .hint("run it again; if it happens again, check the server's memory and the network")
}

fn interpret_worker(
    mut queue: mpsc::Receiver<Raw>,
    out: &mpsc::Sender<Stored>,
    progress: &ShardProgress,
) -> std::result::Result<Interpretation, String> {
    let mut interpreter = Interpreter::default();
    let mut frames = FrameWriter::new().map_err(|error| error.to_string())?;
    let mut raw_bytes = 0_u64;
    let mut send = |piece: Vec<u8>| {
        raw_bytes = raw_bytes.saturating_add(piece.len() as u64);
        let stored = frames.frame(&piece).map_err(|error| error.to_string())?;
        out.blocking_send(Stored::Piece(stored.into()))
            .map_err(|_| "the upload of the index ended early".to_owned())
    };
    loop {
        match queue.blocking_recv() {
            Some(Raw::Piece(piece)) => {
                interpreter.feed(&piece)?;
                progress.keys.store(interpreter.keys(), Ordering::Relaxed);
                while interpreter.index().len() >= FRAME_RAW_BYTES {
                    send(interpreter.index().take(FRAME_RAW_BYTES))?;
                }
            }
            Some(Raw::End) => break,
            None => return Err("the snapshot was given up before its end".to_owned()),
        }
    }
    while !interpreter.index().is_empty() {
        send(interpreter.index().take(FRAME_RAW_BYTES))?;
    }
    let interpretation = interpreter.finish()?;
    let end = frames.finish().map_err(|error| error.to_string())?;
    let ended = out
        .blocking_send(Stored::Piece(end.into()))
        .and_then(|()| out.blocking_send(Stored::End { raw_bytes }));
    ended.map_err(|_| "the upload of the index ended early".to_owned())?;
    Ok(interpretation)
}

/// Writes the pieces of one object. Gives none if it was given up, or if the queue ended without its end mark: then the object was aborted.
async fn upload(
    mut writer: ObjectWriter,
    mut queue: mpsc::Receiver<Stored>,
    progress: Option<Arc<ShardProgress>>,
    given_up: CancellationToken,
) -> Result<Option<ObjectRecord>> {
    let written = tokio::select! {
        biased;
        // A part may be on its way for minutes.
        () = given_up.cancelled() => Ok(None),
        written = write_all(&mut writer, &mut queue, progress.as_deref()) => written,
    };
    // Who fills the queue must not wait for the store.
    drop(queue);
    match written {
        Ok(Some(record)) => Ok(Some(record)),
        Ok(None) => {
            writer.abort().await?;
            Ok(None)
        }
        Err(error) => {
            // The first error is the one to report.
            let _ = writer.abort().await;
            Err(error)
        }
    }
}

/// Not cancel-safe: cancelled, the object must be aborted.
async fn write_all(
    writer: &mut ObjectWriter,
    queue: &mut mpsc::Receiver<Stored>,
    progress: Option<&ShardProgress>,
) -> Result<Option<ObjectRecord>> {
    loop {
        match queue.recv().await {
            Some(Stored::Piece(piece)) => {
                if let Some(progress) = progress {
                    add(&progress.stored_bytes, piece.len() as u64);
                }
                writer.write(piece).await?;
            }
            Some(Stored::End { raw_bytes }) => return Ok(Some(writer.finish(raw_bytes).await?)),
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use slotkeep_model::ReplOffset;
    use slotkeep_repo::{Location, OpenOptions, RateLimit};

    use super::*;
    use crate::ports::{Rng, SystemRng};

    const RAW_BYTES: usize = 5 << 20;
    /// So much has been given to the upload when it can take no more.
    const TAKEN_BYTES: u64 = 2 << 20;
    /// A part would take a quarter of an hour.
    const BYTES_PER_S: u64 = 1000;
    const LIMIT: Duration = Duration::from_secs(60);

    /// A base in the folder, whose parts are on their way.
    async fn under_way(folder: &Path) -> Pipeline {
        let location = Location::Folder(folder.to_owned());
        let now = jiff::Timestamp::UNIX_EPOCH;
        Repository::init(&location, "0".repeat(32), now).await.unwrap();
        let options = OpenOptions { limit: RateLimit::new(BYTES_PER_S), ..OpenOptions::default() };
        let repository = Repository::open_with(&location, &options).await.unwrap();
        let history = "a".repeat(40).parse().unwrap();
        let layout = BaseLayout::new("main", &history, ReplOffset(1), "id");
        let progress = ShardProgress::new(String::new());
        let mut pipeline = Pipeline::start(&repository, &layout, Arc::clone(&progress)).await.unwrap();
        let mut raw = vec![0; RAW_BYTES];
        SystemRng.fill(&mut raw).unwrap();
        pipeline.write(&raw).await.unwrap();
        while progress.stored_bytes.load(Ordering::Relaxed) <= TAKEN_BYTES {
            tokio::task::yield_now().await;
        }
        pipeline
    }

    /// The files that are there, whatever they are called.
    fn left(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![folder.to_owned()];
        while let Some(next) = open.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                } else {
                    found.push(entry.file_name().into_string().unwrap());
                }
            }
        }
        found
    }

    #[tokio::test]
    async fn a_base_that_is_given_up_does_not_wait_for_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let given_up = async { under_way(folder.path()).await.abandon().await };
        tokio::time::timeout(LIMIT, given_up).await.unwrap();
        assert_eq!(left(folder.path()), ["slotkeep.json"]);
    }

    #[tokio::test]
    async fn a_base_that_is_being_finished_is_given_up_when_the_user_stops() {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let finished = async {
            let pipeline = under_way(folder.path()).await;
            let (finished, ()) = futures::join!(pipeline.finish(&stop), async { stop.cancel() });
            finished
        };
        let finished = tokio::time::timeout(LIMIT, finished).await.unwrap();
        assert_eq!(finished.err().unwrap().kind(), ErrorKind::Interrupted);
        assert_eq!(left(folder.path()), ["slotkeep.json"]);
    }
}
