//! Reading keys: expiry and value of each in one transaction, so that they belong together, and the value passing by.
//!
//! Invariants: replies come in the order of the questions, and each key's are taken to their end before the next one's; nothing of a key
//! is written before its expiry is known for certain; of a value no more is held than what one read gave.

use std::ops::Range;
use std::time::Duration;

use slotkeep_model::NodeAddr;
use slotkeep_rdb::{DumpPart, DumpReader, KeyHead};
use slotkeep_wire::resp::{Command, Token, Tokens, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rdb_out::RdbOut;
use super::time_of;
use crate::archive::link::Interruption;
use crate::net::{Connection, LinkError, LinkProblem, Reading, Writing, broken};
use crate::{Error, ErrorKind, Result, quoted};

const READ_BYTES: usize = 256 << 10;
/// So much of a key's name is shown in an error.
const SHOWN_KEY_BYTES: usize = 256;

/// How keys' expiry is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpiryBy {
    /// `PEXPIRETIME`, from Redis 7.0 and Valkey 7.2 on: the moment itself.
    Moment,
    /// `PTTL` between two `TIME`s: the moment, if they are in the same millisecond.
    Span,
}

/// What came of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was written; so many bytes came for it.
    Written(u64),
    /// It is not there any more.
    Gone,
    /// Its expiry is not certain to the millisecond: it is to be asked for again.
    Again,
}

/// A key's expiry.
enum Expiry {
    At(Option<i64>),
    Gone,
    Unsure,
}

/// The beginning of a reply.
enum Head {
    Value(Value),
    Array(u64),
    Bulk(u64),
}

/// A connection over which keys are read.
pub(super) struct KeyLink {
    node: NodeAddr,
    reading: Reading,
    writing: Writing,
    tokens: Tokens,
    buffer: Vec<u8>,
    unread: Range<usize>,
    expiry_by: ExpiryBy,
    timeout: Duration,
}

impl KeyLink {
    /// Goes on with a connection over which nothing is under way.
    pub(super) fn new(connection: Connection, expiry_by: ExpiryBy, timeout: Duration) -> Self {
        let node = connection.node().clone();
        let (reading, writing, _) = connection.split();
        let buffer = vec![0; READ_BYTES];
        Self { node, reading, writing, tokens: Tokens::new(), buffer, unread: 0..0, expiry_by, timeout }
    }

    /// Asks for keys. As many [`KeyLink::take`] have to follow.
    pub(super) async fn ask(&mut self, keys: &[&[u8]]) -> Result<()> {
        let mut bytes = Vec::new();
        for key in keys {
            Command::new("MULTI").encode_into(&mut bytes);
            for command in self.questions(key) {
                command.encode_into(&mut bytes);
            }
            Command::new("EXEC").encode_into(&mut bytes);
        }
        let written = tokio::time::timeout(self.timeout, self.writing.write_all(&bytes)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(broken(error)).into()),
            Err(_) => Err(self.late("sending a command").into()),
        }
    }

    fn questions(&self, key: &[u8]) -> Vec<Command> {
        let time = || Command::new("TIME");
        match self.expiry_by {
            ExpiryBy::Moment => vec![Command::new("PEXPIRETIME").arg(key), Command::new("DUMP").arg(key)],
            ExpiryBy::Span => {
                vec![time(), Command::new("PTTL").arg(key), time(), Command::new("DUMP").arg(key)]
            }
        }
    }

    /// Takes what is said of a key, and writes it.
    pub(super) async fn take(&mut self, key: &[u8], out: &mut RdbOut<'_>) -> Result<Outcome, Interruption> {
        let taken = self.take_reply(key, out).await;
        taken.map_err(|interruption| match interruption {
            Interruption::Other(error) if error.kind() != ErrorKind::Unreachable => {
                let shown = quoted(key.get(..SHOWN_KEY_BYTES).unwrap_or(key));
                Interruption::Other(error.context(format!("{}, key {shown}", self.node)))
            }
            interruption => interruption,
        })
    }

    async fn take_reply(&mut self, key: &[u8], out: &mut RdbOut<'_>) -> Result<Outcome, Interruption> {
        let asked: u64 = match self.expiry_by {
            ExpiryBy::Moment => 2,
            ExpiryBy::Span => 4,
        };
        let mut refused = None;
        for _ in 0..=asked {
            match self.head().await? {
                Head::Value(Value::Error(text)) => refused = refused.or(Some(text)),
                Head::Value(Value::Simple(_)) => {}
                _ => return Err(self.senseless("a command in a transaction").into()),
            }
        }
        match self.head().await? {
            Head::Array(answers) if answers == asked && refused.is_none() => {}
            Head::Value(Value::Error(text)) => return Err(not_given(&refused.unwrap_or(text)).into()),
            _ => return Err(self.senseless("EXEC").into()),
        }
        let expiry = self.expiry().await?;
        match (self.head().await?, expiry) {
            (Head::Value(Value::Null), _) => Ok(Outcome::Gone),
            (Head::Value(Value::Error(text)), _) => Err(not_given(&text).into()),
            (Head::Bulk(payload_bytes), Expiry::At(expiry_ms)) => {
                self.value(key, expiry_ms, payload_bytes, out).await?;
                Ok(Outcome::Written(payload_bytes))
            }
            (Head::Bulk(_), Expiry::Unsure) => {
                while self.bytes().await?.is_some() {}
                Ok(Outcome::Again)
            }
            (Head::Bulk(_), Expiry::Gone) => {
                while self.bytes().await?.is_some() {}
                Ok(Outcome::Gone)
            }
            _ => Err(self.senseless("DUMP").into()),
        }
    }

    async fn expiry(&mut self) -> Result<Expiry> {
        if self.expiry_by == ExpiryBy::Moment {
            return Ok(match self.integer("PEXPIRETIME").await? {
                -1 => Expiry::At(None),
                at_ms if at_ms >= 0 => Expiry::At(Some(at_ms)),
                _ => Expiry::Gone,
            });
        }
        let before_ms = self.time_ms().await?;
        let left_ms = self.integer("PTTL").await?;
        let after_ms = self.time_ms().await?;
        Ok(match left_ms {
            -1 => Expiry::At(None),
            left_ms if left_ms < 0 => Expiry::Gone,
            left_ms if before_ms == after_ms => Expiry::At(before_ms.checked_add(left_ms)),
            _ => Expiry::Unsure,
        })
    }

    async fn integer(&mut self, command: &'static str) -> Result<i64> {
        match self.head().await? {
            Head::Value(Value::Integer(number)) => Ok(number),
            Head::Value(Value::Error(text)) => Err(not_given(&text)),
            _ => Err(self.senseless(command)),
        }
    }

    async fn time_ms(&mut self) -> Result<i64> {
        let mut parts = Vec::new();
        let Head::Array(2) = self.head().await? else { return Err(self.senseless("TIME")) };
        for _ in 0..2 {
            let Head::Bulk(_) = self.head().await? else { return Err(self.senseless("TIME")) };
            let mut text = Vec::new();
            while let Some(range) = self.bytes().await? {
                text.extend_from_slice(self.buffer.get(range).unwrap_or_default());
            }
            parts.push(Value::Bulk(text));
        }
        let time = time_of(&Value::Array(parts)).ok_or_else(|| self.senseless("TIME"))?;
        Ok(time.as_millisecond())
    }

    /// Passes a value on, and checks it.
    async fn value(
        &mut self,
        key: &[u8],
        expiry_ms: Option<i64>,
        payload_bytes: u64,
        out: &mut RdbOut<'_>,
    ) -> Result<(), Interruption> {
        let damaged = |error: slotkeep_rdb::Error| {
            Error::new(ErrorKind::Corrupt, format!("what DUMP gave can't be used: {error}"))
                .hint("run it again; if it happens again, check the server's memory and the network")
        };
        let mut dump = DumpReader::new(payload_bytes, out.version().product).map_err(damaged)?;
        while let Some(range) = self.bytes().await? {
            let mut rest = self.buffer.get(range).unwrap_or_default();
            while let Some(part) = dump.next(&mut rest).map_err(damaged)? {
                match part {
                    DumpPart::Type(value_type) => {
                        out.key(&KeyHead { key, value_type, expiry_ms, idle_s: None, freq: None })?;
                    }
                    DumpPart::Value(bytes) => out.value(bytes).await?,
                }
            }
        }
        let version = dump.finish().map_err(damaged)?;
        if version.number > out.version().number {
            let what = format!("its value is of RDB version {version}, the others of {}", out.version());
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("run it again when all servers of the shard run the same version")
                .into());
        }
        Ok(())
    }

    /// The next reply, or its beginning.
    async fn head(&mut self) -> Result<Head> {
        loop {
            let mut rest = self.buffer.get(self.unread.clone()).unwrap_or_default();
            let before = rest.len();
            let token = self.tokens.next(&mut rest);
            self.unread.start = self.unread.start.saturating_add(before.saturating_sub(rest.len()));
            match token {
                Ok(Some(Token::Value(value))) => return Ok(Head::Value(value)),
                Ok(Some(Token::Array(count))) => return Ok(Head::Array(count)),
                Ok(Some(Token::Bulk(len))) => return Ok(Head::Bulk(len)),
                Ok(Some(Token::Bytes(_) | Token::BulkEnd)) => return Err(self.senseless("what was asked")),
                Ok(None) => self.fill().await?,
                Err(error) => return Err(self.failed(error.into()).into()),
            }
        }
    }

    /// Where in the buffer the next bytes of the string are; none at its end.
    async fn bytes(&mut self) -> Result<Option<Range<usize>>> {
        loop {
            let mut rest = self.buffer.get(self.unread.clone()).unwrap_or_default();
            let before = rest.len();
            let token = self.tokens.next(&mut rest).map(|token| match token {
                Some(Token::Bytes(bytes)) => Some(bytes.len()),
                Some(_) => Some(0),
                None => None,
            });
            self.unread.start = self.unread.start.saturating_add(before.saturating_sub(rest.len()));
            match token {
                Ok(Some(0)) => return Ok(None),
                Ok(Some(len)) => {
                    return Ok(Some(self.unread.start.saturating_sub(len)..self.unread.start));
                }
                Ok(None) => self.fill().await?,
                Err(error) => return Err(self.failed(error.into()).into()),
            }
        }
    }

    async fn fill(&mut self) -> Result<()> {
        let read = tokio::time::timeout(self.timeout, self.reading.read(&mut self.buffer)).await;
        match read {
            Ok(Ok(0)) => Err(self.failed(LinkProblem::Closed).into()),
            Ok(Ok(read)) => {
                self.unread = 0..read;
                Ok(())
            }
            Ok(Err(error)) => Err(self.failed(broken(error)).into()),
            Err(_) => Err(self.late("waiting for a key").into()),
        }
    }

    fn failed(&self, problem: LinkProblem) -> LinkError {
        LinkError { node: self.node.clone(), problem }
    }

    fn late(&self, doing: &'static str) -> LinkError {
        self.failed(LinkProblem::Timeout { doing, after: self.timeout })
    }

    fn senseless(&self, command: &str) -> Error {
        let words = format!("to {command}, something else than its reply");
        self.failed(LinkProblem::Protocol(words)).into()
    }
}

/// That the server does not give a key.
fn not_given(text: &str) -> Error {
    match LinkProblem::from_reply("DUMP", text) {
        LinkProblem::NoPermission { reply, .. } => {
            Error::new(ErrorKind::Permission, format!("the server refuses it: {reply}")).hint(
                "the user must be allowed to read every key (~*), for a backup without some would look whole; docs/sources.md has the ACL SETUSER line",
            )
        }
        problem if text.starts_with("MOVED ") || text.starts_with("ASK ") => {
            let what = format!("slots moved between shards during the backup: {problem}");
            Error::new(ErrorKind::NotACluster, what)
                .hint("no backup was made; run it again when no slots are being moved")
        }
        problem => Error::new(ErrorKind::Failed, problem.to_string())
            .hint("docs/sources.md says what `--source scan` needs of a server"),
    }
}
