//! A dataset, or some of its keys, in a form that other tools read.
//!
//! The shards are read one after another, so what comes out is always the same. A file is written beside its place, made durable and
//! renamed: it is there whole or not at all. Memory is bounded whatever a key holds.

mod held;
mod inventory;
mod json;
mod options;
mod parquet;
mod rdb;
mod resp;
mod target;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use slotkeep_rdb::Level;
use tokio_util::sync::CancellationToken;

pub use options::{ExportOptions, ExportReport, Format};

use crate::dataset::{Dataset, EventSink, Feed, read};
use crate::inspect::{blocking, cannot_write};
use crate::{Error, ErrorKind, Result};
use held::Held;
use target::OutputFile;

/// Where what is written goes.
pub enum Destination {
    /// A file, which must not exist unless it may be replaced.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether a file of that name is replaced.
        force: bool,
    },
    /// Somewhere else, standard output for example.
    Stream(Box<dyn Write + Send>),
}

/// What writes one format.
trait Exporter: EventSink + Send + 'static {
    /// How far it needs values taken apart.
    fn level(&self) -> Level;
    /// Writes what stands at the end.
    fn finish(self, report: &mut ExportReport) -> Result<Held>;
}

/// Writes a dataset. `now` stands in for the moment of a file that does not say when it was made.
pub async fn export(
    dataset: &Dataset,
    options: &ExportOptions,
    now: Timestamp,
    stop: &CancellationToken,
    destination: Destination,
) -> Result<ExportReport> {
    let (file, out) = match destination {
        Destination::Stream(out) => (None, out),
        Destination::File { path, force } => {
            let (file, out) = OutputFile::create(path, force)?;
            (Some(file), out)
        }
    };
    let mut report = ExportReport { format: options.format.name(), ..ExportReport::default() };
    let job = Job { dataset, options, now, stop };
    let held = job.run(out, &mut report).await?;
    blocking(move || {
        report.output_bytes = held.finish().map_err(|error| cannot_write(&error))?;
        if let Some(file) = file {
            report.output = Some(file.commit()?.display().to_string());
        }
        Ok(report)
    })
    .await
}

struct Job<'a> {
    dataset: &'a Dataset,
    options: &'a ExportOptions,
    now: Timestamp,
    stop: &'a CancellationToken,
}

impl Job<'_> {
    async fn run(&self, out: Box<dyn Write + Send>, report: &mut ExportReport) -> Result<Held> {
        let options = self.options;
        // The others write of a key once it has passed, or hold its value themselves.
        let as_it_comes = matches!(options.format, Format::Json | Format::Resp);
        let held = Held::new(out, options.filter.needs_size() && as_it_comes);
        match options.format {
            Format::Rdb => {
                let inputs = self.dataset.inputs(options.filter.slots().as_ref());
                if let [(input, progress)] = inputs.as_slice()
                    && options.keeps_all()
                {
                    report.as_stored = true;
                    return rdb::copy(input, progress, self.stop, held).await;
                }
                let exporter = rdb::Merging::new(options, &inputs, held)?;
                self.drive(exporter, report).await
            }
            Format::Resp => self.drive(resp::Resp::new(options, held), report).await,
            Format::Json => self.drive(json::JsonLines::new(options, held), report).await,
            Format::Csv => self.drive(inventory::Csv::new(options, held)?, report).await,
            Format::Parquet => self.drive(parquet::Table::new(options, held)?, report).await,
        }
    }

    async fn drive(&self, mut exporter: impl Exporter, report: &mut ExportReport) -> Result<Held> {
        for (input, progress) in self.dataset.inputs(self.options.filter.slots().as_ref()) {
            let feed = Feed::open(input, self.stop).await?;
            let (input, progress, now) = (input.clone(), Arc::clone(progress), self.now);
            exporter = blocking(move || {
                let level = exporter.level();
                read(feed, &input, level, now, &progress, &mut exporter)?;
                Ok(exporter)
            })
            .await?;
        }
        exporter.finish(report)
    }
}

/// That a key has no form in what is to be written.
fn cannot_express(key: &[u8], why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unsupported, format!("key {}: {why}", crate::quoted(key)))
        .hint("name another --target-version, or leave such keys out with --type and the other filters")
}
