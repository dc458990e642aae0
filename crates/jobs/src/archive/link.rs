//! A replica's link: the handshake, the snapshot if one comes, the stream.
//!
//! Whatever happens, the connection is closed when the link is dropped. While the server prepares and sends a snapshot it is shown a
//! line feed every second, as replicas do.

use std::time::Duration;

use bytes::BufMut;
use bytes::buf::Limit;
use futures::FutureExt;
use jiff::Timestamp;
use slotkeep_model::{NodeAddr, ReplId, ReplOffset};
use slotkeep_wire::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::resp::Command;
use slotkeep_wire::transfer::{Chunk, PayloadHeader, Transfer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pace::Pace;
use crate::backup::pipeline::{Pipeline, Stopped};
use crate::net::{LinkError, LinkProblem, Stream};
use crate::{Context, Error, ErrorKind, Result};

const READ_BYTES: usize = 256 << 10;
/// What is longer is handed on in the buffer that it was read into, the rest in one of its own length.
const COPIED_BYTES: usize = READ_BYTES / 4;
/// How often a replica that waits or loads shows the server that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What the server answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A snapshot follows.
    Snapshot {
        history: ReplId,
        offset: ReplOffset,
        header: PayloadHeader,
        /// The server's own time just after it announced the offset, if it may be asked.
        server_time: Option<Timestamp>,
    },
    /// The stream follows from the byte that was asked for; in another history if one is given.
    Stream { history: Option<ReplId> },
}

/// Why no more bytes of a snapshot were received.
pub(crate) enum Interruption {
    /// The pipeline takes no more, and knows why.
    Pipeline,
    Other(Error),
}

impl From<Stopped> for Interruption {
    fn from(_: Stopped) -> Self {
        Self::Pipeline
    }
}

impl<E: Into<Error>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// The link.
pub(crate) struct Link<'a> {
    context: &'a Context,
    node: NodeAddr,
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Bytes that came with what was read before them and have not been taken yet.
    rest: Vec<u8>,
    /// What has been read of the stream and not been taken yet.
    gathered: Vec<u8>,
    pace: Pace,
}

impl<'a> Link<'a> {
    /// Connects.
    pub(crate) async fn open(context: &'a Context, node: &NodeAddr) -> Result<Self> {
        let stream = context.connector.dial(node).await?;
        Ok(Self {
            context,
            node: node.clone(),
            stream,
            buffer: vec![0; READ_BYTES],
            rest: Vec::new(),
            gathered: Vec::new(),
            pace: Pace::default(),
        })
    }

    /// Shakes hands and waits until the snapshot or the stream begins.
    pub(crate) async fn begin(&mut self, request: Request) -> Result<Answer> {
        let mut options = HandshakeOptions::new(request);
        options.credentials = self.context.connector.credentials().cloned();
        let mut handshake = Handshake::new(options);
        let mut announced = None;
        let mut server_time = None;
        loop {
            if let Some(bytes) = handshake.to_send() {
                self.stream.write_all(&bytes).await.map_err(|error| self.broken(error))?;
            }
            let fed = match self.read_alive("waiting for the snapshot", announced.is_some(), None).await? {
                0 => handshake.connection_closed(),
                read => handshake.feed(self.buffer.get(..read).unwrap_or_default()),
            };
            fed.map_err(|error| self.failed(error.into()))?;
            while let Some(event) = handshake.poll() {
                match event {
                    HandshakeEvent::Alive => {}
                    HandshakeEvent::FullResync { replid, offset } => {
                        server_time = ask_time(self.context, &self.node).await;
                        announced = Some((replid, offset));
                    }
                    HandshakeEvent::Payload(header) => {
                        self.rest = handshake.take_rest();
                        let unannounced = || {
                            self.failed(LinkProblem::Protocol("a snapshot without +FULLRESYNC".to_owned()))
                        };
                        let (history, offset) = announced.ok_or_else(unannounced)?;
                        return Ok(Answer::Snapshot { history, offset, header, server_time });
                    }
                    HandshakeEvent::Continue { replid } => {
                        self.rest = handshake.take_rest();
                        return Ok(Answer::Stream { history: replid });
                    }
                }
            }
        }
    }

    /// Passes the snapshot on until its end; what comes behind it is kept for [`Link::read`].
    pub(crate) async fn receive(
        &mut self,
        header: PayloadHeader,
        pipeline: &mut Pipeline,
    ) -> Result<(), Interruption> {
        let mut transfer = Transfer::new(header);
        let rest = std::mem::take(&mut self.rest);
        let mut rest = rest.as_slice();
        loop {
            let mut room = pipeline.room();
            let read = if rest.is_empty() {
                self.rest_a_while().await;
                let first = self.read_alive("receiving the snapshot", true, Some(&mut room)).await?;
                let read = if first == 0 {
                    0
                } else {
                    first.saturating_add(read_ready(&mut self.stream, &mut room))
                };
                self.pace.took(read, !room.has_remaining_mut(), self.context.clock.elapsed());
                read
            } else {
                let (now, later) = rest.split_at(rest.len().min(room.remaining_mut()));
                room.put_slice(now);
                rest = later;
                now.len()
            };
            if read == 0 {
                return Err(self.cut_short(&transfer).into());
            }
            let mut input = pipeline.last_read(read);
            let (count, ended) = count_payload(&mut transfer, &mut input)?;
            if ended {
                self.rest = [input, rest].concat();
            }
            pipeline.take_read(count).await?;
            if ended {
                return Ok(());
            }
        }
    }

    /// The next bytes of the stream, none at its end. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Result<Vec<u8>> {
        if !self.rest.is_empty() {
            return Ok(std::mem::take(&mut self.rest));
        }
        // The snapshot is over.
        self.buffer = Vec::new();
        self.rest_a_while().await;
        let room = READ_BYTES.saturating_sub(self.gathered.len());
        self.gathered.reserve_exact(room);
        let mut target = (&mut self.gathered).limit(room);
        let first = self.stream.read_buf(&mut target).await;
        if let Ok(1..) = first {
            read_ready(&mut self.stream, &mut target);
        }
        first.map_err(|error| self.broken(error))?;
        let read = self.gathered.len();
        self.pace.took(read, read >= READ_BYTES, self.context.clock.elapsed());
        if read > COPIED_BYTES {
            return Ok(std::mem::take(&mut self.gathered));
        }
        let bytes = self.gathered.clone();
        self.gathered.clear();
        Ok(bytes)
    }

    /// Acknowledges the bytes up to `offset`. Not cancel-safe.
    pub(crate) async fn acknowledge(&mut self, offset: u64) -> Result<()> {
        let ack = Command::new("REPLCONF").arg("ACK").arg_number(offset).to_bytes();
        let timeout = self.context.connector.timeout();
        let written = tokio::select! {
            written = self.stream.write_all(&ack) => Some(written),
            () = self.context.clock.sleep(timeout) => None,
        };
        match written {
            Some(written) => written.map_err(|error| self.broken(error).into()),
            None => Err(self
                .failed(LinkProblem::Timeout { doing: "acknowledging what was received", after: timeout })
                .into()),
        }
    }

    /// That nothing came for too long.
    pub(crate) fn silent(&self, after: Duration) -> Error {
        self.failed(LinkProblem::Timeout { doing: "following the stream", after }).into()
    }

    /// That the server closed the connection.
    pub(crate) fn closed(&self) -> Error {
        self.failed(LinkProblem::Closed).into()
    }

    /// That what came can't be a stream.
    pub(crate) fn senseless(&self, words: String) -> Error {
        self.failed(LinkProblem::Protocol(words)).into()
    }

    /// Lets a busy stream gather. Cancel-safe.
    async fn rest_a_while(&mut self) {
        if let Some(pause) = self.pace.pause(self.context.clock.elapsed()) {
            self.stream.rest();
            self.context.clock.sleep(pause).await;
        }
    }

    /// Reads what there is, into the link's own buffer if no other is given; writes a line feed every second meanwhile if `alive`.
    async fn read_alive(
        &mut self,
        doing: &'static str,
        alive: bool,
        mut target: Option<&mut Limit<&mut Vec<u8>>>,
    ) -> Result<usize> {
        let timeout = self.context.connector.timeout();
        let give_up = self.context.clock.sleep(timeout);
        tokio::pin!(give_up);
        loop {
            let reading = async {
                match &mut target {
                    Some(target) => self.stream.read_buf(*target).await,
                    None => self.stream.read(&mut self.buffer).await,
                }
            };
            let outcome = tokio::select! {
                biased;
                read = reading => Some(read),
                () = self.context.clock.sleep(KEEP_ALIVE), if alive => None,
                () = &mut give_up => return Err(self.failed(LinkProblem::Timeout { doing, after: timeout }).into()),
            };
            match outcome {
                Some(read) => return read.map_err(|error| self.broken(error).into()),
                None => self.stream.write_all(b"\n").await.map_err(|error| self.broken(error))?,
            }
        }
    }

    fn cut_short(&self, transfer: &Transfer) -> LinkError {
        let cut = transfer.connection_closed().err().map(|error| error.to_string()).unwrap_or_default();
        let words = format!("the server closed the connection: {cut}");
        self.failed(LinkProblem::Io(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, words)))
    }

    fn failed(&self, problem: LinkProblem) -> LinkError {
        LinkError { node: self.node.clone(), problem }
    }

    fn broken(&self, error: std::io::Error) -> LinkError {
        self.failed(crate::net::broken(error))
    }
}

/// Reads what else is there already, without waiting: TLS gives a record at a time. An error or the end is met again.
fn read_ready(stream: &mut Box<dyn Stream>, target: &mut Limit<&mut Vec<u8>>) -> usize {
    let mut total = 0_usize;
    while target.has_remaining_mut()
        && let Some(Ok(read @ 1..)) = stream.read_buf(target).now_or_never()
    {
        total = total.saturating_add(read);
    }
    total
}

/// How many bytes more are certainly the payload's, counted from the first that was not yet: what was held back before is right in front
/// of `input`. And whether the payload has ended: what stands behind it is left in `input`.
fn count_payload(transfer: &mut Transfer, input: &mut &[u8]) -> Result<(usize, bool)> {
    let mut count = 0_usize;
    loop {
        match transfer.next(input).map_err(|error| Error::new(ErrorKind::Corrupt, error.to_string()))? {
            Some(Chunk::Bytes(piece)) => count = count.saturating_add(piece.len()),
            Some(Chunk::End) => return Ok((count, true)),
            None => return Ok((count, false)),
        }
    }
}

/// The server's own time; unknown if the user may not ask for it.
async fn ask_time(context: &Context, node: &NodeAddr) -> Option<Timestamp> {
    let mut side = context.connector.connect(node).await.ok()?;
    let reply = side.call(&Command::new("TIME")).await.ok()?;
    let [seconds, microseconds] = reply.as_array()? else { return None };
    let (seconds, microseconds) = (seconds.as_i64()?, microseconds.as_i64()?);
    Timestamp::new(seconds, i32::try_from(microseconds.checked_mul(1000)?).ok()?).ok()
}
