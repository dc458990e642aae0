//! A connection over which commands are sent and replies come back in order.

use std::time::Duration;

use slotkeep_model::NodeAddr;
use slotkeep_wire::resp::{Command, Decoder, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{LinkError, LinkProblem, Stream};

const READ_BYTES: usize = 64 << 10;

/// The direction of a stream that bytes come from.
pub(crate) type Reading = ReadHalf<Box<dyn Stream>>;
/// The direction of a stream that bytes go to.
pub(crate) type Writing = WriteHalf<Box<dyn Stream>>;

/// A connection for commands. After an error it is not to be used further, unless the error is a reply of the server.
pub struct Connection {
    node: NodeAddr,
    stream: Box<dyn Stream>,
    decoder: Decoder,
    buffer: Vec<u8>,
    timeout: Duration,
}

impl Connection {
    pub(super) fn new(node: NodeAddr, stream: Box<dyn Stream>, timeout: Duration) -> Self {
        Self { node, stream, decoder: Decoder::new(), buffer: vec![0; READ_BYTES], timeout }
    }

    /// The node, by the address that was asked for.
    pub const fn node(&self) -> &NodeAddr {
        &self.node
    }

    /// Sends a command and gives its reply; an error reply is an error. Not cancel-safe: cancelled between command and reply, the
    /// connection is out of step and must be dropped.
    pub async fn call(&mut self, command: &Command) -> Result<Value, LinkError> {
        let reply = self.exchange(command).await?;
        match reply.as_error() {
            None => Ok(reply),
            Some(text) => Err(self.failed(LinkProblem::from_reply(command.name(), text))),
        }
    }

    /// Sends a command and gives its reply, be it an error. Not cancel-safe.
    pub async fn exchange(&mut self, command: &Command) -> Result<Value, LinkError> {
        self.send(&command.to_bytes()).await?;
        self.reply().await
    }

    /// Writes encoded commands. Not cancel-safe.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(broken(error))),
            Err(_) => Err(self.failed(LinkProblem::Timeout { doing: "sending a command", after: timeout })),
        }
    }

    /// The next reply, be it an error. Cancel-safe.
    pub async fn reply(&mut self) -> Result<Value, LinkError> {
        loop {
            match self.decoder.next() {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => return Err(self.failed(error.into())),
            }
            let timeout = self.timeout;
            let read = match tokio::time::timeout(timeout, self.stream.read(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(self.failed(LinkProblem::Closed)),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Err(self.failed(broken(error))),
                Err(_) => {
                    return Err(
                        self.failed(LinkProblem::Timeout { doing: "waiting for a reply", after: timeout })
                    );
                }
            };
            self.decoder.feed(self.buffer.get(..read).unwrap_or_default());
        }
    }

    /// The two directions of the stream, and the decoder with what it holds already: for pipelines that send and receive at
    /// the same time.
    pub(crate) fn split(self) -> (Reading, Writing, Decoder) {
        let (reading, writing) = tokio::io::split(self.stream);
        (reading, writing, self.decoder)
    }

    fn failed(&self, problem: LinkProblem) -> LinkError {
        LinkError { node: self.node.clone(), problem }
    }
}

/// What a broken connection means: a peer that refuses TLS alerts shows only now.
pub(crate) fn broken(error: std::io::Error) -> LinkProblem {
    let tls =
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<tokio_rustls::rustls::Error>);
    if tls { LinkProblem::Tls(error.to_string()) } else { LinkProblem::Io(error) }
}
