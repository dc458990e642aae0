//! What a dataset holds: counts and bytes by type, encoding, database and prefix, when keys expire, and which are the biggest.
//!
//! Bytes are those of the keys' records in the RDB. Several shards are read at a time; each has a summary of its own, and these are
//! added up in the order of the shards, so the result is always the same. Memory is bounded whatever the dataset.

mod biggest;
mod expiry;
mod prefixes;
mod report;
mod summary;

use std::io::Write;

use futures::StreamExt;
use jiff::Timestamp;
use slotkeep_rdb::{Event, Level};
use tokio_util::sync::CancellationToken;

pub use biggest::BigKey;
pub use prefixes::{PrefixReport, PrefixRow, Separators};
pub use report::{Amount, DatabaseRow, EncodingRow, ExpiryRow, Report, ShardRow, TypeRow};

use crate::dataset::{Dataset, EventSink, Feed, RdbFacts, read};
use crate::keys::{Filter, KeyWatch};
use crate::{Error, ErrorKind, Result};
use summary::Summary;

/// How many shards are read at a time.
const SHARDS_AT_A_TIME: usize = 4;

/// What to look at, and how closely.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    /// Which keys.
    pub filter: Filter,
    /// How many of the biggest keys to name.
    pub biggest: usize,
    /// How many prefixes to name.
    pub prefixes: usize,
    /// What separates the parts of a key.
    pub separators: Separators,
}

/// Looks at a whole dataset. `now` stands in for the moment of a file that does not say when it was made.
pub async fn inspect(
    dataset: &Dataset,
    options: &InspectOptions,
    now: Timestamp,
    stop: &CancellationToken,
) -> Result<Report> {
    let slots = options.filter.slots();
    let mut shards = futures::stream::iter(dataset.inputs(slots.as_ref()))
        .map(async |(input, progress)| {
            let feed = Feed::open(input, stop).await?;
            let (input, progress, options) =
                (input.clone(), std::sync::Arc::clone(progress), options.clone());
            blocking(move || {
                let mut counting =
                    Counting { watch: KeyWatch::new(&options.filter), summary: Summary::new(&options) };
                let facts = read(feed, &input, Level::Element, now, &progress, &mut counting)?;
                Ok((input.name.clone(), facts, counting.summary))
            })
            .await
        })
        .buffered(SHARDS_AT_A_TIME);
    let mut whole = Summary::new(options);
    let mut moment_ms = now.as_millisecond();
    let mut rows = Vec::new();
    while let Some(shard) = shards.next().await {
        let (name, facts, summary) = shard?;
        moment_ms = facts.moment_ms;
        rows.push(ShardRow { shard: name, rdb_version: facts.version.to_string(), amount: summary.total() });
        whole.merge(summary);
    }
    Ok(Report::new(dataset.origin.clone(), moment_ms, rows, whole, options))
}

/// Runs blocking work on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::new(ErrorKind::Failed, format!("a thread ended early: {error}"))),
    }
}

struct Counting {
    watch: KeyWatch,
    summary: Summary,
}

impl EventSink for Counting {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        if let Event::Function { .. } = event {
            self.summary.function();
        }
        if self.watch.event(facts.moment_ms, event) {
            self.summary.add(&self.watch.facts, facts.moment_ms);
        }
        Ok(())
    }
}

/// Writes every key that is wanted as a line of JSON, in the order of the shards and of their RDBs; how many there were.
pub async fn list_keys(
    dataset: &Dataset,
    filter: &Filter,
    now: Timestamp,
    stop: &CancellationToken,
    mut out: impl Write + Send + 'static,
) -> Result<u64> {
    let mut listed = 0;
    for (input, progress) in dataset.inputs(filter.slots().as_ref()) {
        let feed = Feed::open(input, stop).await?;
        let (input, progress, filter) = (input.clone(), std::sync::Arc::clone(progress), filter.clone());
        let (more, back) = blocking(move || {
            let mut listing = Listing { watch: KeyWatch::new(&filter), out: &mut out, listed: 0 };
            read(feed, &input, Level::Element, now, &progress, &mut listing)?;
            Ok((listing.listed, out))
        })
        .await?;
        listed += more;
        out = back;
    }
    out.flush().map_err(|error| cannot_write(&error))?;
    Ok(listed)
}

struct Listing<'a, W> {
    watch: KeyWatch,
    out: &'a mut W,
    listed: u64,
}

impl<W: Write> EventSink for Listing<'_, W> {
    fn event(&mut self, facts: &RdbFacts, event: &Event<'_>) -> Result<()> {
        if self.watch.event(facts.moment_ms, event) {
            serde_json::to_writer(&mut *self.out, &self.watch.facts.listed())
                .map_err(std::io::Error::from)
                .and_then(|()| self.out.write_all(b"\n"))
                .map_err(|error| cannot_write(&error))?;
            self.listed += 1;
        }
        Ok(())
    }
}

/// That what was read can't be written out.
pub(crate) fn cannot_write(error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, format!("can't write the output: {error}"))
        .hint("free some space or write elsewhere, and run it again")
}
