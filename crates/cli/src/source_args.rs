//! Where a backup reads from: options of `slotkeep backup` for servers that refuse replication.

use clap::{Args, ValueEnum};
use slotkeep_jobs::backup::{Reading, ScanOptions};
use slotkeep_jobs::{Error, ErrorKind, Result};

use crate::args::size;

/// Where the bases come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Source: where replication is not allowed")]
pub(crate) struct SourceArgs {
    /// Where the data is read from
    #[arg(long, value_enum, default_value_t = SourceArg::Replication)]
    source: SourceArg,
    /// With --source scan: most keys read a second, of each shard; 0 is no limit. Listing them first goes ten times as fast
    #[arg(long, value_name = "KEYS", default_value_t = 20_000)]
    scan_rate: u64,
    /// With --source scan: most bytes of values a second, of each shard; 0 is no limit
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size)]
    scan_bytes: u64,
    /// With --source scan: largest value that is asked for, by the memory that it takes on the server, which makes each reply as a whole
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    scan_max_value: u64,
    /// With --source scan: leave function libraries out, if the user may not read them
    #[arg(long)]
    scan_without_functions: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceArg {
    /// As a replica: exact at one point, and the log can go on from there
    Replication,
    /// Key by key, with SCAN and DUMP: needs no replication, and is not one point in time
    Scan,
}

impl SourceArgs {
    /// What to read from, if not from a replication link; `asked` names what else was asked for that only a replication link gives.
    pub(crate) fn reading(&self, asked: Option<&str>) -> Result<Option<Reading>> {
        let reading = match self.source {
            SourceArg::Replication => return Ok(None),
            SourceArg::Scan => Reading::Scan(ScanOptions {
                keys_per_s: self.scan_rate,
                bytes_per_s: self.scan_bytes,
                max_value_bytes: self.scan_max_value,
                without_functions: self.scan_without_functions,
            }),
        };
        match asked {
            None => Ok(Some(reading)),
            Some(asked) => Err(Error::new(
                ErrorKind::Usage,
                format!("{asked} needs replication: what is read otherwise stands at no offset that a log could go on from"),
            )
            .hint("leave it out, or leave --source out")),
        }
    }
}
