//! One RDB, from its first byte to its last: parsed, and checked against its own CRC64.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use slotkeep_model::{Product, RdbVersion, ServerVersion};
use slotkeep_rdb::{Envelope, EnvelopeError, ErrorKind as Fault, Event, Level, Parser};
use slotkeep_repo::{Problem, RepoError};

use super::{Feed, Input, Place};
use crate::progress::{Phase, ShardProgress, add};
use crate::{Error, ErrorKind, Result};

/// What takes the events of an RDB.
pub(crate) trait EventSink {
    /// Takes one. `facts` holds what the RDB has said about itself so far.
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()>;
}

/// What an RDB says about itself, before its keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RdbFacts {
    /// Its version.
    pub(crate) version: RdbVersion,
    /// The server that wrote it.
    pub(crate) server: Option<ServerVersion>,
    /// The moment that its expiries are compared with.
    pub(crate) moment_ms: i64,
}

impl RdbFacts {
    fn aux(&mut self, input: &Input, key: &[u8], value: &[u8]) {
        let Ok(value) = std::str::from_utf8(value) else { return };
        match key {
            b"redis-ver" if input.server.is_none() => {
                self.server = ServerVersion::parse(Product::Redis, value);
            }
            b"valkey-ver" if input.server.is_none() => {
                self.server = ServerVersion::parse(Product::Valkey, value);
            }
            b"ctime" if input.moment.is_none() => {
                let moment_ms = value.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(1000));
                self.moment_ms = moment_ms.unwrap_or(self.moment_ms);
            }
            _ => {}
        }
    }
}

/// Reads an RDB to its end; `now` stands in where it does not say when it was made. Blocks.
pub(crate) fn read(
    mut feed: Feed,
    input: &Input,
    level: Level,
    now: Timestamp,
    progress: &ShardProgress,
    sink: &mut impl EventSink,
) -> Result<RdbFacts> {
    let mut parser = Parser::new(level);
    let mut envelope = Envelope::new();
    let mut facts = RdbFacts {
        version: RdbVersion { product: Product::Redis, number: 0 },
        server: input.server,
        moment_ms: input.moment.unwrap_or(now).as_millisecond(),
    };
    progress.enter(Phase::Running);
    while let Some(bytes) = feed.next()? {
        envelope.feed(&bytes);
        let mut keys = 0;
        let mut rest = bytes.as_slice();
        while let Some(event) = parser.next(&mut rest).map_err(|error| unreadable(input, &error))? {
            match event {
                Event::Start(version) => facts.version = version,
                Event::Aux { key, value } => facts.aux(input, key, value),
                Event::KeyEnd { .. } => keys += 1,
                _ => {}
            }
            sink.event(&facts, &event)?;
        }
        progress.raw_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        add(&progress.keys, keys);
    }
    parser.finish().map_err(|error| unreadable(input, &error))?;
    envelope.finish().map_err(|error| forged(input, &error))?;
    progress.enter(Phase::Done);
    Ok(facts)
}

/// Passes the bytes of an RDB to `take` without reading its records; an error at the end if its magic or CRC64 is wrong. Blocks.
pub(crate) fn check_envelope(
    feed: &mut Feed,
    input: &Input,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut envelope = Envelope::new();
    while let Some(bytes) = feed.next()? {
        envelope.feed(&bytes);
        take(&bytes)?;
    }
    envelope.finish().map(drop).map_err(|error| forged(input, &error))
}

/// That the bytes of an RDB make no sense, or not yet.
pub(crate) fn unreadable(input: &Input, error: &slotkeep_rdb::Error) -> Error {
    let newer = matches!(
        error.kind,
        Fault::UnknownVersion(_)
            | Fault::UnknownType { .. }
            | Fault::PreRelease { .. }
            | Fault::ForeignType { .. }
    );
    if newer {
        let what = format!("{} can't be read: {error}", input.path());
        return Error::new(ErrorKind::Unsupported, what).hint(
            "a newer Slotkeep may understand it, if the file is not damaged; its bytes were not changed",
        );
    }
    damaged(input, error.to_string())
}

fn forged(input: &Input, error: &EnvelopeError) -> Error {
    damaged(input, error.to_string())
}

fn damaged(input: &Input, what: String) -> Error {
    match input.place {
        Place::Base(..) => {
            RepoError { doing: "read", on: input.path().to_owned(), problem: Problem::Damaged(what) }.into()
        }
        _ => Error::new(ErrorKind::Corrupt, format!("{} is damaged: {what}", input.path()))
            .hint("get the file from where it came from again, or use another one; what came out so far is not the whole"),
    }
}
