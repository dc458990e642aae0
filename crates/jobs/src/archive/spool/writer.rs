//! Writing a link's spool files, on a thread of its own, and packing what they hold on the way.
//!
//! Invariants: what is published as durable has been synced; a file is handed over once it is closed, up to its last safe cut.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use slotkeep_format::spool::{MOST_PAYLOAD_BYTES, bytes_head, encode_header, encode_time};
use slotkeep_format::{Effort, SpoolHeader, TimeSample};
use slotkeep_model::ReplId;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::SpoolFolder;
use crate::archive::pack::{Packed, Packing, PieceEnd};
use crate::ports::Clock;

/// What waits for the disk; each is at most what is read from a link at a time.
const QUEUE_MESSAGES: usize = 32;
/// So many bytes are written at the most before they are made durable.
const GROUP_BYTES: u64 = 8 << 20;
/// While bytes come without a pause they are made durable so often, unless somebody waits for them. What comes after a pause is made durable at
/// once.
const GROUP_EVERY: Duration = Duration::from_millis(50);

/// What a writer has reached.
#[derive(Clone, Debug)]
pub(crate) struct SpoolState {
    /// The history of the last durable byte.
    pub(crate) history: ReplId,
    /// The last safe cut that is durable.
    pub(crate) durable: u64,
    /// Why the writer has stopped, if it has.
    pub(crate) failed: Option<Arc<io::Error>>,
}

/// A file that is closed: whole up to its last safe cut.
pub(crate) struct ClosedFile {
    pub(crate) path: PathBuf,
    /// What it holds as a segment, if a cut ended it and there was room.
    pub(crate) packed: Option<Box<Packed>>,
    /// How it is packed if not.
    pub(crate) effort: Effort,
}

enum Message {
    Begin { header: Box<SpoolHeader>, before: Option<PieceEnd> },
    Bytes { bytes: Vec<u8>, safe_cut: u64 },
    Time(TimeSample),
    Sync,
}

/// The writer of one link's files: a thread of its own, so that a slow disk holds up nothing else.
pub(crate) struct SpoolWriter {
    queue: mpsc::Sender<Message>,
    state: watch::Receiver<SpoolState>,
    thread: JoinHandle<()>,
}

/// The disk takes no more; [`SpoolState::failed`] tells why.
#[derive(Debug)]
pub(crate) struct SpoolStopped;

impl SpoolWriter {
    /// Begins behind `durable` of that history. `closed` gets every file once it is complete.
    pub(crate) fn start(
        folder: Arc<SpoolFolder>,
        history: ReplId,
        durable: u64,
        closed: mpsc::UnboundedSender<ClosedFile>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE_MESSAGES);
        let (publish, state) = watch::channel(SpoolState { history, durable, failed: None });
        let thread = tokio::task::spawn_blocking(move || {
            let mut writer = Writer {
                folder,
                publish,
                closed,
                clock,
                header: None,
                effort: Effort::Usual,
                waiting: Vec::new(),
                file: None,
                synced_at: None,
                sync_wanted: false,
                sync_data: File::sync_data,
            };
            writer.run(messages);
        });
        Self { queue, state, thread }
    }

    /// What has been reached; changes are seen through it.
    pub(crate) fn state(&self) -> watch::Receiver<SpoolState> {
        self.state.clone()
    }

    /// Begins a new file, behind a safe cut. `before` is how the piece before it ended, if there is one.
    pub(crate) async fn begin(
        &self,
        header: SpoolHeader,
        before: Option<PieceEnd>,
    ) -> Result<(), SpoolStopped> {
        let message = Message::Begin { header: Box::new(header), before };
        self.queue.send(message).await.map_err(|_| SpoolStopped)
    }

    /// Takes the next bytes; `safe_cut` is the last one up to their end.
    pub(crate) async fn bytes(&self, bytes: Vec<u8>, safe_cut: u64) -> Result<(), SpoolStopped> {
        self.queue.send(Message::Bytes { bytes, safe_cut }).await.map_err(|_| SpoolStopped)
    }

    /// Takes a time sample of bytes that have been given.
    pub(crate) async fn time(&self, sample: TimeSample) -> Result<(), SpoolStopped> {
        self.queue.send(Message::Time(sample)).await.map_err(|_| SpoolStopped)
    }

    /// Has what was given made durable without delay: somebody waits for it.
    pub(crate) async fn sync(&self) -> Result<(), SpoolStopped> {
        self.queue.send(Message::Sync).await.map_err(|_| SpoolStopped)
    }

    /// Ends the last file, and tells what was reached.
    pub(crate) async fn end(self) -> SpoolState {
        drop(self.queue);
        let _ = self.thread.await;
        self.state.borrow().clone()
    }
}

struct Writer {
    folder: Arc<SpoolFolder>,
    publish: watch::Sender<SpoolState>,
    closed: mpsc::UnboundedSender<ClosedFile>,
    clock: Arc<dyn Clock>,
    header: Option<Box<SpoolHeader>>,
    /// How the current piece is packed.
    effort: Effort,
    /// Samples that came before the file's first byte.
    waiting: Vec<TimeSample>,
    file: Option<OpenFile>,
    synced_at: Option<Duration>,
    sync_wanted: bool,
    sync_data: fn(&File) -> io::Result<()>,
}

struct OpenFile {
    path: PathBuf,
    file: File,
    packing: Option<Packing>,
    safe_cut: Option<u64>,
    unsynced_bytes: u64,
    /// What was written since the last sync may be lost: the system tells of a failed write once, and then has forgotten it.
    sync_failed: bool,
}

impl Writer {
    fn run(&mut self, mut messages: mpsc::Receiver<Message>) {
        let outcome = self.take_all(&mut messages);
        let ended = self.close(None);
        if let Err(error) = outcome.and(ended) {
            self.publish.send_modify(|state| state.failed = Some(Arc::new(error)));
        }
    }

    fn take_all(&mut self, messages: &mut mpsc::Receiver<Message>) -> io::Result<()> {
        loop {
            let first = match self.sync_due_in() {
                None => messages.blocking_recv(),
                Some(pause) => match receive_within(messages, &*self.clock, pause) {
                    Ok(received) => received,
                    Err(Late) => {
                        self.sync()?;
                        continue;
                    }
                },
            };
            let Some(message) = first else { return Ok(()) };
            self.take(message)?;
            while self.unsynced_bytes() < GROUP_BYTES
                && let Ok(message) = messages.try_recv()
            {
                self.take(message)?;
            }
            let now_due = self.sync_due_in().is_some_and(|pause| pause.is_zero());
            if now_due || self.sync_wanted || self.unsynced_bytes() >= GROUP_BYTES {
                self.sync()?;
            }
        }
    }

    fn unsynced_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.unsynced_bytes)
    }

    /// In how long what was written is to be made durable, if it is not.
    fn sync_due_in(&self) -> Option<Duration> {
        if self.unsynced_bytes() == 0 {
            return None;
        }
        let due_at = self.synced_at.map_or(Duration::ZERO, |at| at.saturating_add(GROUP_EVERY));
        Some(due_at.saturating_sub(self.clock.elapsed()))
    }

    fn take(&mut self, message: Message) -> io::Result<()> {
        match message {
            Message::Begin { header, before } => {
                self.close(before)?;
                self.waiting.clear();
                self.header = Some(header);
                self.effort = before.map_or(Effort::Usual, |before| before.next_effort());
                Ok(())
            }
            Message::Time(sample) => match self.file {
                Some(_) => self.time(sample),
                None => {
                    self.waiting.push(sample);
                    Ok(())
                }
            },
            Message::Bytes { bytes, safe_cut } => self.bytes(&bytes, safe_cut),
            Message::Sync => {
                self.sync_wanted = true;
                Ok(())
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8], safe_cut: u64) -> io::Result<()> {
        if self.file.is_none() {
            self.open()?;
        }
        for piece in bytes.chunks(MOST_PAYLOAD_BYTES) {
            let head = bytes_head(piece).ok_or_else(|| io::Error::other("a record is too long"))?;
            self.write(&head, piece)?;
        }
        if let Some(file) = &mut self.file {
            file.safe_cut = Some(safe_cut);
            file.packing.take_if(|packing| !packing.bytes(bytes));
        }
        for sample in std::mem::take(&mut self.waiting) {
            self.time(sample)?;
        }
        Ok(())
    }

    fn time(&mut self, sample: TimeSample) -> io::Result<()> {
        let mut record = Vec::new();
        encode_time(&sample, &mut record);
        if let Some(packing) = self.file.as_mut().and_then(|file| file.packing.as_mut()) {
            packing.time(sample);
        }
        self.write(&record, &[])
    }

    fn open(&mut self) -> io::Result<()> {
        let header = self.header.as_ref().ok_or_else(|| io::Error::other("no file was begun"))?;
        let mut record = Vec::new();
        encode_header(header, &mut record).map_err(io::Error::other)?;
        let (path, file) = self.folder.create(header)?;
        let packing = Packing::begin(&self.folder.holding, self.effort);
        self.file =
            Some(OpenFile { path, file, packing, safe_cut: None, unsynced_bytes: 0, sync_failed: false });
        File::open(&self.folder.path)?.sync_all()?;
        self.write(&record, &[])
    }

    fn write(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        write_both(&mut file.file, head, payload)?;
        let bytes = head.len().saturating_add(payload.len()) as u64;
        file.unsynced_bytes = file.unsynced_bytes.saturating_add(bytes);
        self.folder.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_wanted = false;
        let Some(file) = &mut self.file else { return Ok(()) };
        if file.unsynced_bytes == 0 {
            return Ok(());
        }
        if file.sync_failed {
            return Err(io::Error::other("it could not be synced"));
        }
        if let Err(error) = (self.sync_data)(&file.file) {
            file.sync_failed = true;
            return Err(error);
        }
        file.unsynced_bytes = 0;
        if file.packing.is_some() {
            let_go(&file.file);
        }
        self.synced_at = Some(self.clock.elapsed());
        if let (Some(durable), Some(header)) = (file.safe_cut, &self.header) {
            self.publish.send_modify(|state| {
                state.history = header.history.clone();
                // Inside the first command the last safe cut lies before the file.
                state.durable = durable;
            });
        }
        Ok(())
    }

    /// Hands the file over, even if its last bytes could not be written.
    fn close(&mut self, piece: Option<PieceEnd>) -> io::Result<()> {
        let synced = self.sync();
        if let (Some(file), Some(header)) = (self.file.take(), &self.header) {
            let packed = file.packing.zip(piece).and_then(|(packing, piece)| packing.end(header, piece));
            let packed = packed.filter(|_| synced.is_ok()).map(Box::new);
            // Without a receiver the next run finds the file.
            let _ = self.closed.send(ClosedFile { path: file.path, packed, effort: self.effort });
        }
        synced
    }
}

/// Gives the memory back that the system keeps a file's bytes in: they are on the disk, and are not read again if they are packed. Fresh pages for
/// each file cost more than what is copied into them.
#[cfg(target_os = "linux")]
fn let_go(file: &File) {
    // A file system that takes no advice keeps them.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn let_go(_: &File) {}

/// Nothing came in time.
struct Late;

/// The next message, or nothing at the end of all.
fn receive_within(
    messages: &mut mpsc::Receiver<Message>,
    clock: &dyn Clock,
    limit: Duration,
) -> Result<Option<Message>, Late> {
    Handle::current().block_on(async {
        tokio::select! {
            biased;
            message = messages.recv() => Ok(message),
            () = clock.sleep(limit) => Err(Late),
        }
    })
}

fn write_both(file: &mut File, head: &[u8], payload: &[u8]) -> io::Result<()> {
    let written = match file.write_vectored(&[IoSlice::new(head), IoSlice::new(payload)]) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
        written => written?,
    };
    file.write_all(head.get(written..).unwrap_or_default())?;
    file.write_all(payload.get(written.saturating_sub(head.len())..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use slotkeep_format::manifest::{ProductRecord, ServerRecord};
    use slotkeep_format::spool::SPOOL_VERSION;

    use super::*;
    use crate::ports::SystemClock;

    thread_local! {
        static FAILURES: Cell<u32> = const { Cell::new(0) };
    }

    /// As a disk with an error: the first try tells of it, the next one succeeds.
    fn failing_once(_: &File) -> io::Result<()> {
        match FAILURES.get() {
            0 => Ok(()),
            more => {
                FAILURES.set(more - 1);
                Err(io::Error::other("the disk is broken"))
            }
        }
    }

    #[test]
    fn what_a_failed_sync_may_have_lost_is_never_durable() {
        let folder = tempfile::tempdir().unwrap();
        let spool = SpoolFolder::open(folder.path(), &"0".repeat(32), "main", 1 << 20).unwrap();
        let history: ReplId = "a".repeat(40).parse().unwrap();
        let (publish, state) =
            watch::channel(SpoolState { history: history.clone(), durable: 0, failed: None });
        let (closed, mut files) = mpsc::unbounded_channel();
        let mut writer = Writer {
            folder: spool,
            publish,
            closed,
            clock: Arc::new(SystemClock::new()),
            header: None,
            effort: Effort::Usual,
            waiting: Vec::new(),
            file: None,
            synced_at: None,
            sync_wanted: false,
            sync_data: failing_once,
        };
        let header = SpoolHeader {
            format_version: SPOOL_VERSION,
            cluster: "main".to_owned(),
            history,
            parent: None,
            start: 1,
            database: None,
            slots: "0-16383".parse().unwrap(),
            source: "127.0.0.1:1".parse().unwrap(),
            server: ServerRecord { product: ProductRecord::Valkey, version: "9.1.2".to_owned() },
            begun_at: jiff::Timestamp::UNIX_EPOCH,
        };
        writer.take(Message::Begin { header: Box::new(header), before: None }).unwrap();
        writer.take(Message::Bytes { bytes: vec![0; 10], safe_cut: 10 }).unwrap();
        writer.sync().unwrap();
        FAILURES.set(1);
        writer.take(Message::Bytes { bytes: vec![0; 10], safe_cut: 20 }).unwrap();
        assert!(writer.sync().is_err());
        assert!(writer.close(None).is_err());
        assert_eq!(state.borrow().durable, 10);
        assert!(files.try_recv().is_ok(), "what can be read of it is sealed all the same");
    }
}
