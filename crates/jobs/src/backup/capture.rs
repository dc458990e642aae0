//! A full resynchronisation of one node: be its replica until its RDB is here, then be gone.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_model::{NodeAddr, ReplId, ReplOffset};
use slotkeep_repo::layout::BaseLayout;
use slotkeep_repo::{Problem, RepoError, Repository};
use slotkeep_wire::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::resp::Command;
use slotkeep_wire::transfer::{Chunk, PayloadHeader, Transfer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pipeline::{Pipeline, PipelineReport, Stopped};
use crate::net::{LinkError, LinkProblem, Stream};
use crate::progress::{Phase, ShardProgress};
use crate::{Context, Error, Result};

const READ_BYTES: usize = 256 << 10;
/// How often a replica that waits or loads shows the server that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A base that has been stored.
pub(crate) struct Captured {
    /// The history and the offset, as the server announced them.
    pub(crate) history: ReplId,
    pub(crate) offset: ReplOffset,
    pub(super) server_time: Option<Timestamp>,
    pub(super) report: PipelineReport,
    pub(crate) layout: BaseLayout,
}

/// Where a base goes.
pub(crate) struct Destination<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) cluster: &'a str,
    pub(crate) backup_id: &'a str,
    /// The place in a history under which the base is stored, if it is not the one that the server announces.
    pub(crate) stored_as: Option<(ReplId, ReplOffset)>,
}

/// Captures the dataset of one node. Whatever happens, the connection is closed when this returns, and unless it succeeds
/// nothing of the base stays in the repository.
pub(crate) async fn capture(
    context: &Context,
    node: &NodeAddr,
    destination: &Destination<'_>,
    progress: &Arc<ShardProgress>,
) -> Result<Captured> {
    progress.restart();
    let mut link = tokio::select! {
        link = Link::open(context, node) => link?,
        () = context.stop.cancelled() => return Err(Error::interrupted()),
    };
    let (history, offset, header) = tokio::select! {
        snapshot = link.await_snapshot() => snapshot?,
        () = context.stop.cancelled() => return Err(Error::interrupted()),
    };
    let server_time = link.server_time;
    let (stored_history, stored_offset) =
        destination.stored_as.clone().unwrap_or_else(|| (history.clone(), offset));
    let layout = BaseLayout::new(destination.cluster, &stored_history, stored_offset, destination.backup_id);
    let mut pipeline = Pipeline::start(destination.repository, &layout, Arc::clone(progress)).await?;
    progress.enter(Phase::Running);
    let received = tokio::select! {
        received = link.receive(header, &mut pipeline) => received,
        () = context.stop.cancelled() => Err(Interruption::Other(Error::interrupted())),
    };
    // The server is free of its replica before anything else happens.
    drop(link);
    progress.enter(Phase::Finishing);
    let report = match received {
        Ok(()) => pipeline.finish().await,
        Err(Interruption::Pipeline) => {
            let cause = pipeline.abandon().await;
            Err(cause
                .unwrap_or_else(|| Error::new(crate::ErrorKind::Failed, "the snapshot could not be stored")))
        }
        Err(Interruption::Other(error)) => {
            pipeline.abandon().await;
            Err(error)
        }
    };
    match report {
        Ok(report) => Ok(Captured { history, offset, server_time, report, layout }),
        Err(error) => {
            discard_base(destination.repository, &layout).await;
            Err(error)
        }
    }
}

/// Deletes what there is of a base that will not be listed: one of its objects may be complete where another failed.
pub(crate) async fn discard_base(repository: &Repository, layout: &BaseLayout) {
    for path in [layout.rdb(), layout.index(), layout.digest()] {
        match repository.discard(&path).await {
            Ok(()) | Err(RepoError { problem: Problem::Missing, .. }) => {}
            Err(error) => tracing::warn!(%error, "an unlisted object stays in the repository"),
        }
    }
}

/// Why no more bytes were received.
enum Interruption {
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

/// The link of a replica.
struct Link<'a> {
    context: &'a Context,
    node: &'a NodeAddr,
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that belong to the payload and have not been taken yet.
    rest: Vec<u8>,
    server_time: Option<Timestamp>,
}

impl<'a> Link<'a> {
    async fn open(context: &'a Context, node: &'a NodeAddr) -> Result<Self> {
        let stream = context.connector.dial(node).await?;
        Ok(Self { context, node, stream, buffer: vec![0; READ_BYTES], rest: Vec::new(), server_time: None })
    }

    /// Shakes hands and waits until the server has its snapshot ready.
    async fn await_snapshot(&mut self) -> Result<(ReplId, ReplOffset, PayloadHeader)> {
        let mut options = HandshakeOptions::new(Request::Full);
        options.credentials = self.context.connector.credentials().cloned();
        let mut handshake = Handshake::new(options);
        let mut snapshot = None;
        loop {
            if let Some(bytes) = handshake.to_send() {
                self.stream.write_all(&bytes).await.map_err(|error| self.broken(error))?;
            }
            let fed = match self.read("waiting for the snapshot", snapshot.is_some()).await? {
                0 => handshake.connection_closed(),
                read => handshake.feed(self.buffer.get(..read).unwrap_or_default()),
            };
            fed.map_err(|error| self.failed(error.into()))?;
            while let Some(event) = handshake.poll() {
                match event {
                    HandshakeEvent::Alive => {}
                    HandshakeEvent::FullResync { replid, offset } => {
                        self.server_time = self.ask_time().await;
                        snapshot = Some((replid, offset));
                    }
                    HandshakeEvent::Payload(header) => {
                        self.rest = handshake.take_rest();
                        let unannounced = || {
                            self.failed(LinkProblem::Protocol("a snapshot without +FULLRESYNC".to_owned()))
                        };
                        let (replid, offset) = snapshot.ok_or_else(unannounced)?;
                        return Ok((replid, offset, header));
                    }
                    HandshakeEvent::Continue { .. } => {
                        let words = "+CONTINUE where a full resynchronisation was asked for".to_owned();
                        return Err(self.failed(LinkProblem::Protocol(words)).into());
                    }
                }
            }
        }
    }

    /// Passes the payload on until its end.
    async fn receive(&mut self, header: PayloadHeader, pipeline: &mut Pipeline) -> Result<(), Interruption> {
        let mut transfer = Transfer::new(header);
        let rest = std::mem::take(&mut self.rest);
        if pass_on(&mut transfer, &rest, pipeline).await? {
            return Ok(());
        }
        loop {
            let read = self.read("receiving the snapshot", true).await?;
            if read == 0 {
                let cut =
                    transfer.connection_closed().err().map(|error| error.to_string()).unwrap_or_default();
                let ended = std::io::Error::new(
                    std::io::ErrorKind::UnexpectedEof,
                    format!("the server closed the connection: {cut}"),
                );
                return Err(self.failed(LinkProblem::Io(ended)).into());
            }
            let bytes = self.buffer.get(..read).unwrap_or_default();
            if pass_on(&mut transfer, bytes, pipeline).await? {
                return Ok(());
            }
        }
    }

    /// Reads what there is; writes a line feed every second meanwhile if `alive`, as replicas do while they wait and load.
    async fn read(&mut self, doing: &'static str, alive: bool) -> Result<usize> {
        let timeout = self.context.connector.timeout();
        let give_up = self.context.clock.sleep(timeout);
        tokio::pin!(give_up);
        loop {
            let outcome = tokio::select! {
                biased;
                read = self.stream.read(&mut self.buffer) => Some(read),
                () = self.context.clock.sleep(KEEP_ALIVE), if alive => None,
                () = &mut give_up => return Err(self.failed(LinkProblem::Timeout { doing, after: timeout }).into()),
            };
            match outcome {
                Some(read) => return read.map_err(|error| self.broken(error).into()),
                None => self.stream.write_all(b"\n").await.map_err(|error| self.broken(error))?,
            }
        }
    }

    /// The server's own time; unknown if the user may not ask for it.
    async fn ask_time(&self) -> Option<Timestamp> {
        let mut side = self.context.connector.connect(self.node).await.ok()?;
        let reply = side.call(&Command::new("TIME")).await.ok()?;
        let [seconds, microseconds] = reply.as_array()? else { return None };
        let (seconds, microseconds) = (seconds.as_i64()?, microseconds.as_i64()?);
        Timestamp::new(seconds, i32::try_from(microseconds.checked_mul(1000)?).ok()?).ok()
    }

    fn failed(&self, problem: LinkProblem) -> LinkError {
        LinkError { node: self.node.clone(), problem }
    }

    fn broken(&self, error: std::io::Error) -> LinkError {
        self.failed(crate::net::broken(error))
    }
}

/// Passes on what of `bytes` belongs to the payload; true at its end.
async fn pass_on(
    transfer: &mut Transfer,
    mut bytes: &[u8],
    pipeline: &mut Pipeline,
) -> Result<bool, Interruption> {
    loop {
        match transfer
            .next(&mut bytes)
            .map_err(|error| Error::new(crate::ErrorKind::Corrupt, error.to_string()))?
        {
            Some(Chunk::Bytes(piece)) => pipeline.write(piece).await?,
            Some(Chunk::End) => return Ok(true),
            None => return Ok(false),
        }
    }
}
