//! The local disk before the repository: what has been received is written to files here and made durable, until it is sealed.
//!
//! Invariants: what [`SpoolState::durable`] names is on the disk, and survives the end of this process and of the machine; a file
//! that is not being written any more is whole up to its last safe cut, whatever happened to its writer; a folder is used by one
//! process at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use slotkeep_format::spool::{MOST_PAYLOAD_BYTES, bytes_head, encode_header, encode_time};
use slotkeep_format::{Effort, SpoolHeader, TimeSample};
use slotkeep_model::ReplId;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::pack::{Holding, Packed, Packing, PieceEnd};
use crate::ports::{Clock, Rng, random_hex};
use crate::{Error, ErrorKind, Result};

/// What waits for the disk; each is at most what is read from a link at a time.
const QUEUE_MESSAGES: usize = 32;
/// So many bytes are written at the most before they are made durable.
const GROUP_BYTES: u64 = 8 << 20;
/// While bytes come without a pause they are made durable so often, unless somebody waits for them. What comes after a pause is made durable at
/// once.
const GROUP_EVERY: Duration = Duration::from_millis(50);
const SUFFIX: &str = "spool";
const LOCK: &str = "lock";
/// The file that says which agent uses the folder.
const AGENT: &str = "agent";
const AGENT_DIGITS: usize = 16;
/// What folders of processes that keep nothing are called.
const PASSING: &str = "backup-";

/// A folder for spool files.
#[derive(Debug)]
pub(crate) struct SpoolFolder {
    path: PathBuf,
    used_bytes: AtomicU64,
    limit_bytes: u64,
    sequence: AtomicU64,
    /// What the packs of its files take.
    holding: Holding,
    /// Files are read again one at a time: each takes the memory of a segment.
    pub(crate) reading: Semaphore,
    /// Removed with everything in it when it is dropped.
    passing: bool,
    _lock: File,
}

impl SpoolFolder {
    /// The folder of an agent, for one cluster of one repository. What an earlier run left is still in it.
    pub(crate) fn open(
        root: &Path,
        repository_id: &str,
        cluster: &str,
        limit_bytes: u64,
    ) -> Result<Arc<Self>> {
        let place = Self::place(root, repository_id, cluster);
        let folder = Self::lock(place, limit_bytes, false)?;
        let used = folder.leftovers()?.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
        folder.used_bytes.store(used, Ordering::Relaxed);
        Ok(Arc::new(folder))
    }

    /// A folder for a run that leaves nothing behind: what it did not seal is on the servers still.
    pub(crate) fn passing(
        root: &Path,
        repository_id: &str,
        cluster: &str,
        id: &str,
        limit_bytes: u64,
    ) -> Result<Arc<Self>> {
        let place = Self::place(root, repository_id, cluster);
        remove_abandoned(&place);
        Ok(Arc::new(Self::lock(place.join(format!("{PASSING}{id}")), limit_bytes, true)?))
    }

    fn place(root: &Path, repository_id: &str, cluster: &str) -> PathBuf {
        let short: String = repository_id.chars().take(16).collect();
        root.join(format!("{cluster}-{short}"))
    }

    fn lock(path: PathBuf, limit_bytes: u64, passing: bool) -> Result<Self> {
        fs::create_dir_all(&path).map_err(|error| failed("make", &path, &error))?;
        let name = path.join(LOCK);
        let options = OpenOptions::new().write(true).create(true).truncate(false).open(&name);
        let lock = options.map_err(|error| failed("open", &name, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let what =
                    format!("another slotkeep archives this cluster already: it uses {}", path.display());
                return Err(Error::new(ErrorKind::Usage, what)
                    .hint("stop the other one first, or give this one its own place: --spool DIR"));
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &name, &error)),
        }
        Ok(Self {
            path,
            used_bytes: AtomicU64::new(0),
            limit_bytes,
            sequence: AtomicU64::new(0),
            holding: Holding::default(),
            reading: Semaphore::new(1),
            passing,
            _lock: lock,
        })
    }

    /// Who the agent is that uses this folder: chosen at random by the first run, and kept. The folder's lock keeps two processes from being
    /// one agent, unless somebody copies the folder.
    pub(crate) fn agent(&self, rng: &dyn Rng) -> Result<String> {
        let path = self.path.join(AGENT);
        if let Ok(text) = fs::read_to_string(&path) {
            let id = text.trim();
            if id.len() == AGENT_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(id.to_owned());
            }
        }
        let id = random_hex(rng, AGENT_DIGITS)?;
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(id.as_bytes())?;
            file.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| failed("write", &path, &error))?;
        Ok(id)
    }

    /// The files that an earlier run left.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let listed = fs::read_dir(&self.path).map_err(|error| failed("read", &self.path, &error))?;
        let paths = listed.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX)).collect();
        files.sort();
        Ok(files)
    }

    /// Whether as much is waiting to be sealed as is allowed.
    pub(crate) fn is_full(&self) -> bool {
        self.used_bytes() >= self.limit_bytes
    }

    /// Whether there is room for a while after it was full.
    pub(crate) fn has_room_again(&self) -> bool {
        self.used_bytes() <= self.limit_bytes / 2
    }

    /// What is waiting to be sealed, in bytes.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Deletes a file that has been sealed or is of no use.
    pub(crate) fn remove(&self, file: &Path) {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        match fs::remove_file(file) {
            Ok(()) => {
                let _ = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                    Some(used.saturating_sub(bytes))
                });
            }
            Err(error) => tracing::warn!(file = %file.display(), %error, "a sealed spool file stays"),
        }
    }

    fn create(&self, header: &SpoolHeader) -> io::Result<(PathBuf, File)> {
        loop {
            let number = self.sequence.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{:020}-{number:06}.{SUFFIX}", header.history, header.start);
            let path = self.path.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for SpoolFolder {
    fn drop(&mut self) {
        if self.passing
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "a temporary folder stays behind");
        }
        if self.passing {
            // The folders above stay if they are in use.
            for above in self.path.ancestors().skip(1).take(2) {
                let _ = fs::remove_dir(above);
            }
        }
    }
}

/// Removes the folders of runs that were killed.
fn remove_abandoned(place: &Path) {
    let Ok(listed) = fs::read_dir(place) else { return };
    for path in listed.filter_map(|entry| Some(entry.ok()?.path())) {
        let passing =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PASSING.as_bytes()));
        let abandoned = || File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if passing && abandoned() {
            // What is left of it is tried again next time.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, format!("can't {doing} {}: {error}", path.display()))
        .hint("name a folder on a local disk with enough space: --spool DIR")
}

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
}

struct OpenFile {
    path: PathBuf,
    file: File,
    packing: Option<Packing>,
    safe_cut: Option<u64>,
    unsynced_bytes: u64,
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
        self.file = Some(OpenFile { path, file, packing, safe_cut: None, unsynced_bytes: 0 });
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
        file.file.sync_data()?;
        file.unsynced_bytes = 0;
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
