//! One server that follows us.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use futures::future::BoxFuture;
use slotkeep_model::ReplOffset;
use slotkeep_wire::primary::{KEEP_WAITING, PING, Primary, PrimaryError, PrimaryEvent, ReplicaFacts};
use slotkeep_wire::transfer::PayloadHeader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{LinkOptions, LogEditor, Snapshot};
use crate::progress::add;
use crate::source::ByteSource;
use crate::{Context, Error, ErrorKind, Result};

const READ_BYTES: usize = 4 << 10;
/// How often a follower is told to wait while its snapshot is being prepared.
const WAIT_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

/// A server that follows us. After an error it is to be dropped, which ends the link. Its methods are not cancel-safe where
/// they do not say so.
pub struct Follower {
    context: Context,
    peer: SocketAddr,
    reading: OwnedReadHalf,
    writing: OwnedWriteHalf,
    buffer: Vec<u8>,
    primary: Primary,
    options: LinkOptions,
    wanted: bool,
    sent: ReplOffset,
    /// Ends when nothing has happened for too long.
    give_up: BoxFuture<'static, ()>,
}

impl Follower {
    pub(super) fn new(context: &Context, stream: TcpStream, peer: SocketAddr, options: &LinkOptions) -> Self {
        let (reading, writing) = stream.into_split();
        Self {
            context: context.clone(),
            peer,
            reading,
            writing,
            buffer: vec![0; READ_BYTES],
            primary: Primary::new(options.credentials.clone()),
            options: options.clone(),
            wanted: false,
            sent: ReplOffset(0),
            give_up: context.clock.sleep(options.patience),
        }
    }

    /// Who it is.
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What it has told about itself.
    pub const fn facts(&self) -> &ReplicaFacts {
        self.primary.facts()
    }

    /// The offset of the last byte sent to it, as it counts: keep-alives are in it.
    pub const fn sent(&self) -> ReplOffset {
        self.sent
    }

    /// The last byte that it said it has applied.
    pub const fn acknowledged(&self) -> Option<ReplOffset> {
        self.primary.acknowledged()
    }

    /// Answers it until it wants to follow.
    pub(super) async fn introduce(&mut self) -> Result<()> {
        while !self.wanted {
            self.receive().await?;
        }
        Ok(())
    }

    /// Announces the base and sends it.
    pub(super) async fn send_base<B: ByteSource>(
        &mut self,
        base: &mut Snapshot<B>,
        sent_bytes: &AtomicU64,
    ) -> Result<()> {
        // The first piece may take a while: it waits with line feeds.
        let first = {
            let next = base.source.next();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    first = &mut next => break first?,
                    () = self.context.clock.sleep(WAIT_LIMIT) => self.write(KEEP_WAITING).await?,
                }
            }
        };
        self.primary.full_resync(&base.history, base.offset, &PayloadHeader::Length(base.len_bytes));
        self.sent = base.offset;
        self.answer().await?;
        let mut left = base.len_bytes;
        let mut piece = first;
        while let Some(bytes) = piece {
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| wrong_length(base.len_bytes))?;
            self.write(&bytes).await?;
            add(sent_bytes, bytes.len() as u64);
            piece = base.source.next().await?;
        }
        if left > 0 { Err(wrong_length(base.len_bytes)) } else { Ok(()) }
    }

    /// Sends the log, as the editor lets it.
    pub(super) async fn send_log<L: ByteSource>(
        &mut self,
        log: &mut L,
        editor: &mut LogEditor,
        sent_bytes: &AtomicU64,
    ) -> Result<()> {
        loop {
            // A source that makes us wait must not cost the link.
            let piece = self.serve_until(log.next(), editor.is_between_commands()).await??;
            let Some(piece) = piece else { return Ok(()) };
            let bytes = editor.edit(&piece)?;
            self.write_stream(bytes).await?;
            add(sent_bytes, piece.len() as u64);
        }
    }

    /// Waits until it has applied exactly the byte at `offset`.
    pub async fn wait_acknowledged(&mut self, offset: ReplOffset) -> Result<()> {
        let mut before = None;
        self.be_patient();
        loop {
            let applied = self.primary.acknowledged();
            match applied {
                Some(applied) if applied == offset => return Ok(()),
                Some(applied) if applied > offset => return Err(self.went_past(applied, offset)),
                _ => {}
            }
            if applied != before {
                before = applied;
                self.be_patient();
            }
            // Signs of life are not enough here: it has to come further.
            let read = self.reading.read(&mut self.buffer);
            let read = tokio::select! {
                read = read => read,
                () = &mut self.give_up => {
                    let at = applied.map_or_else(|| "nothing".to_owned(), |applied| applied.to_string());
                    let words = format!("it has stayed at {at} for {} s, expected {offset}", self.options.patience.as_secs());
                    return Err(self.failed(&words));
                }
                () = self.context.stop.cancelled() => return Err(Error::interrupted()),
            };
            self.on_read(read)?;
            self.answer().await?;
        }
    }

    /// Keeps the link until `until` is done, and gives what that gives. An error if the link breaks or the user stops the job before:
    /// then `until` is dropped.
    pub async fn keep_until<T>(&mut self, until: impl Future<Output = Result<T>>) -> Result<T> {
        self.serve_until(until, true).await?
    }

    /// Keeps the link as long as it holds, and gives what `until` gives: for what may end the link, and for what must come to
    /// its end. Cancel-safe if `until` is.
    pub async fn hold<T>(&mut self, until: impl Future<Output = T>) -> T {
        tokio::pin!(until);
        tokio::select! {
            biased;
            done = &mut until => return done,
            broken = self.keep(true) => tracing::debug!(error = %broken, "a link has ended"),
        }
        until.await
    }

    /// Keeps the link until `until` is done, or the user stops the job.
    async fn serve_until<T>(&mut self, until: impl Future<Output = T>, between: bool) -> Result<T> {
        let stop = self.context.stop.clone();
        tokio::select! {
            biased;
            done = until => Ok(done),
            broken = self.keep(between) => Err(broken),
            () = stop.cancelled() => Err(Error::interrupted()),
        }
    }

    /// Takes what comes, and keeps the link alive if `between` commands, until it breaks. Dropped between two commands, it loses
    /// nothing: what it sends is small enough to be taken at once.
    async fn keep(&mut self, between: bool) -> Error {
        let keep_alive = self.options.keep_alive.filter(|_| between);
        loop {
            let ping = self.context.clock.sleep(keep_alive.unwrap_or_default());
            let outcome = tokio::select! {
                read = self.reading.read(&mut self.buffer) => {
                    match self.on_read(read) {
                        Ok(()) => self.answer().await,
                        Err(error) => Err(error),
                    }
                }
                () = ping, if keep_alive.is_some() => self.write_stream(PING).await,
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    /// Sends bytes that it counts.
    async fn write_stream(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes).await?;
        let sent = self.sent.checked_add(bytes.len() as u64);
        self.sent = sent.ok_or_else(|| self.failed("the log goes past the last offset there is"))?;
        Ok(())
    }

    /// Sends bytes, and takes what comes meanwhile: a follower that nobody listens to would come to a stop.
    async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.be_patient();
        while !bytes.is_empty() {
            tokio::select! {
                written = self.writing.write(bytes) => {
                    let written = written.map_err(|error| self.broken(&error))?;
                    bytes = bytes.get(written..).unwrap_or_default();
                    self.be_patient();
                }
                read = self.reading.read(&mut self.buffer) => {
                    self.on_read(read)?;
                    self.be_patient();
                }
                () = &mut self.give_up => return Err(self.too_late("takes no more bytes")),
                () = self.context.stop.cancelled() => return Err(Error::interrupted()),
            }
        }
        Ok(())
    }

    /// Waits for bytes from it, and answers them.
    async fn receive(&mut self) -> Result<()> {
        self.be_patient();
        let read = tokio::select! {
            read = self.reading.read(&mut self.buffer) => read,
            () = &mut self.give_up => return Err(self.too_late("says nothing")),
            () = self.context.stop.cancelled() => return Err(Error::interrupted()),
        };
        let outcome = self.on_read(read);
        self.answer().await?;
        outcome
    }

    fn on_read(&mut self, read: std::io::Result<usize>) -> Result<()> {
        let read = read.map_err(|error| self.broken(&error))?;
        if read == 0 {
            return Err(self.not_followed(&self.primary.connection_closed()));
        }
        let bytes = self.buffer.get(..read).unwrap_or_default();
        let fed = self.primary.feed(bytes);
        while let Some(event) = self.primary.poll() {
            if let PrimaryEvent::SyncWanted { .. } = event {
                self.wanted = true;
            }
        }
        fed.map_err(|error| self.not_followed(&error))
    }

    /// Sends the answers that are due. They are not counted.
    async fn answer(&mut self) -> Result<()> {
        if let Some(bytes) = self.primary.to_send() {
            let written = self.writing.write_all(&bytes).await;
            written.map_err(|error| self.broken(&error))?;
        }
        Ok(())
    }

    fn be_patient(&mut self) {
        self.give_up = self.context.clock.sleep(self.options.patience);
    }

    fn failed(&self, words: &str) -> Error {
        Error::new(ErrorKind::Failed, format!("the server that follows from {}: {words}", self.peer))
    }

    fn not_followed(&self, error: &PrimaryError) -> Error {
        self.failed(&error.to_string())
    }

    fn broken(&self, error: &std::io::Error) -> Error {
        self.failed(&format!("the connection broke: {error}"))
    }

    fn too_late(&self, what: &str) -> Error {
        let words = format!("it {what} for {} s", self.options.patience.as_secs());
        Error::new(ErrorKind::Unreachable, format!("the server that follows from {}: {words}", self.peer))
    }

    fn went_past(&self, applied: ReplOffset, offset: ReplOffset) -> Error {
        self.failed(&format!("it has applied offset {applied}, but the last byte sent is {offset}"))
    }
}

fn wrong_length(len_bytes: u64) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the base is not the {len_bytes} bytes that it was said to be"))
        .hint("verify the repository")
}
