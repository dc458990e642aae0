//! `slotkeep export`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use slotkeep_jobs::dataset::Origin;
use slotkeep_jobs::export::{Destination, ExportOptions, ExportReport, Format, export};
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_model::{Product, ServerVersion};

use crate::args::RepoArgs;
use crate::args::size;
use crate::dataset_args::{FilterArgs, open};
use crate::exit;
use crate::output::{Output, Stream, bytes, count, prints_to_terminal};
use crate::progress::ByteDisplay;
use crate::session::Session;

/// Write a backup, or some of its keys, in a form that other tools read
///
/// A file is written beside its place and renamed when it is whole; one that exists is replaced only with --force.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The backup: its id, the beginning of its id, or `latest`; or an RDB file, or `-` for one on standard input
    #[arg(default_value = "latest")]
    backup: OsString,
    #[command(flatten)]
    repo: RepoArgs,
    /// The form
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = "What and how")]
    format: FormatArg,
    /// File to write, or `-` for standard output
    #[arg(short, long, value_name = "FILE", help_heading = "What and how")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long, help_heading = "What and how")]
    force: bool,
    /// Only this shard, counted from 1 in the order of `slotkeep show`
    #[arg(long, value_name = "N", help_heading = "What and how")]
    shard: Option<usize>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

/// For whom commands are.
#[derive(Debug, Args)]
#[command(next_help_heading = "For --format resp")]
struct TargetArgs {
    /// The server that is to read it, as in redis-7.0 or valkey-9.1, for rdb too; if not given, one like that it comes from
    #[arg(long, value_name = "SERVER", value_parser = parse_server)]
    target_version: Option<ServerVersion>,
    /// Build values with commands of their elements, which people can read, instead of RESTORE
    #[arg(long)]
    commands: bool,
    /// Replace keys and function libraries that exist
    #[arg(long)]
    replace: bool,
    /// Longest payload of one RESTORE, in bytes; longer values go element by element
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "32M")]
    max_restore_bytes: u64,
    /// Leave function libraries out, of rdb too
    #[arg(long)]
    no_functions: bool,
}

/// The forms.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// One RDB file, of all shards if there are several
    Rdb,
    /// Commands, for `redis-cli --pipe` or as an append-only file
    #[value(alias = "aof")]
    Resp,
    /// A line of JSON a key, with its value
    #[value(alias = "jsonl")]
    Json,
    /// A row a key, without its value
    Csv,
    /// The same as a Parquet table
    Parquet,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Rdb => Self::Rdb,
            FormatArg::Resp => Self::Resp,
            FormatArg::Json => Self::Json,
            FormatArg::Csv => Self::Csv,
            FormatArg::Parquet => Self::Parquet,
        }
    }
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &ExportArgs) -> Result<u8> {
    let options = options(arguments)?;
    let to_stdout = arguments.output.as_os_str() == "-";
    if to_stdout && prints_to_terminal() && matches!(options.format, Format::Rdb | Format::Parquet) {
        return Err(Error::new(ErrorKind::Usage, "this form is not for a terminal")
            .hint("write it to a file: --output FILE"));
    }
    let mut dataset = open(session, output, &arguments.repo, &arguments.backup).await?;
    if let Some(number) = arguments.shard {
        dataset.only(number)?;
    }
    let (stream, closed) = Stream::new();
    let destination = if to_stdout {
        Destination::Stream(Box::new(stream))
    } else {
        Destination::File { path: arguments.output.clone(), force: arguments.force }
    };
    let rows = if to_stdout && prints_to_terminal() { &[] } else { dataset.progress.as_slice() };
    let display = ByteDisplay::start(output, rows);
    let outcome = export(&dataset, &options, session.now(), session.stop(), destination).await;
    display.finish().await;
    let Some(report) = closed.unless_closed(outcome)? else { return Ok(exit::OK) };
    warn(output, &dataset.origin, &report);
    if to_stdout {
        output.note(&summary(&report));
    } else {
        output.data(&report, summary)?;
    }
    Ok(exit::OK)
}

fn options(arguments: &ExportArgs) -> Result<ExportOptions> {
    let format = Format::from(arguments.format);
    let not_for = |option: &str, formats: &str| {
        Err(Error::new(ErrorKind::Usage, format!("{option} means nothing for {}", format.name()))
            .hint(format!("leave it away, or use --format {formats}")))
    };
    if arguments.target.target_version.is_some() && !matches!(format, Format::Rdb | Format::Resp) {
        return not_for("--target-version", "rdb or resp");
    }
    if (arguments.target.commands || arguments.target.replace) && format != Format::Resp {
        return not_for(if arguments.target.commands { "--commands" } else { "--replace" }, "resp");
    }
    Ok(ExportOptions {
        filter: arguments.filter.filter()?,
        format,
        functions: !arguments.target.no_functions,
        target: arguments.target.target_version,
        commands: arguments.target.commands,
        replace: arguments.target.replace,
        max_restore_bytes: usize::try_from(arguments.target.max_restore_bytes).unwrap_or(usize::MAX),
    })
}

fn parse_server(text: &str) -> Result<ServerVersion, String> {
    let parsed = text.split_once(['-', ':', ' ']).and_then(|(product, version)| {
        let product = match product.to_ascii_lowercase().as_str() {
            "redis" => Product::Redis,
            "valkey" => Product::Valkey,
            _ => return None,
        };
        ServerVersion::parse(product, version)
    });
    parsed.ok_or_else(|| "give a product and a version, as in redis-7.0 or valkey-9.1".to_owned())
}

fn warn(output: &Output, origin: &Origin, report: &ExportReport) {
    if let Origin::Backup { missing_slots, .. } = origin
        && !missing_slots.is_empty()
    {
        output.warn(&format!("the backup lacks slots {missing_slots}, and so does what was written"));
    }
    if report.without_metadata > 0 {
        output.warn(&format!(
            "{} keys carry metadata of modules, which was left out",
            count(report.without_metadata)
        ));
    }
    if report.module_records_left_out > 0 {
        output.warn("data that modules keep outside keys was left out");
    }
}

fn summary(report: &ExportReport) -> String {
    let place = report.output.as_deref().unwrap_or("standard output");
    let size = bytes(report.output_bytes);
    if report.as_stored {
        return format!("{place}: {size}, the RDB as the server made it.");
    }
    let mut text =
        format!("{place}: {} {}, {size}", count(report.keys), if report.keys == 1 { "key" } else { "keys" });
    let parts = [
        (report.functions, "function libraries"),
        (report.element_wise, "keys element by element"),
        (report.translated, "values in another encoding"),
    ];
    for (number, what) in parts.iter().filter(|(number, _)| *number > 0) {
        text.push_str(&format!(", {} {what}", count(*number)));
    }
    text.push('.');
    text
}
