//! Where a backup reads from: options of `slotkeep backup` for servers that refuse replication.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use slotkeep_jobs::backup::{BackupPlan, Reading, ScanOptions, find_data_dirs};
use slotkeep_jobs::engine::EngineOptions;
use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_model::NodeAddr;

use crate::args::size;

/// Where the bases come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Source: where replication is not allowed")]
pub(crate) struct SourceArgs {
    /// Where the data is read from
    #[arg(long, value_enum, default_value_t = SourceArg::Replication)]
    source: SourceArg,
    /// With --source scan: most keys read a second, of each shard; 0 is no limit. Listing them first goes ten times as fast
    #[arg(long, value_name = "KEYS", default_value_t = 10_000)]
    scan_rate: u64,
    /// With --source scan: most bytes of values a second, of each shard; 0 is no limit
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size)]
    scan_bytes: u64,
    /// With --source scan: largest value that is asked for, by the memory that it takes on the server, which makes each reply as a whole
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    scan_max_value: u64,
    /// With --source files: the folder of a node's data on this machine, as HOST:PORT=DIR; more than one by giving it again. Where none is given for a
    /// shard, nodes of this machine are asked for theirs
    #[arg(long, value_name = "HOST:PORT=DIR", value_parser = data_dir)]
    data_dir: Vec<(NodeAddr, PathBuf)>,
    /// With --source files: which of a node's files
    #[arg(long, value_enum, default_value_t = FilesArg::Snapshot)]
    files_from: FilesArg,
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
    /// From the servers' files, for an agent on their machine
    Files,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FilesArg {
    /// The file of a BGSAVE, which the server is asked for
    Snapshot,
    /// The append-only file as it is, base and commands; --type incremental goes on where it was left. The node does not fork
    Aof,
    /// What the server's own BACKUP seals: a fresh base, for which it forks, and the commands behind it (Redis 8.10)
    Backup,
}

/// What append-only files give, too.
pub(crate) const INCREMENTAL: &str = "--type incremental";

fn data_dir(text: &str) -> std::result::Result<(NodeAddr, PathBuf), String> {
    let wrong = || format!("`{text}` is not HOST:PORT=DIR");
    let (addr, dir) = text.split_once('=').ok_or_else(wrong)?;
    if dir.is_empty() {
        return Err(wrong());
    }
    Ok((addr.parse().map_err(|_| wrong())?, dir.into()))
}

impl SourceArgs {
    /// Refuses what only a replication link gives, which `asked` names.
    pub(crate) fn check(&self, asked: Option<&str>) -> Result<()> {
        let refuse = |what: String, hint: &str| Err(Error::new(ErrorKind::Usage, what).hint(hint));
        if self.source != SourceArg::Files && !self.data_dir.is_empty() {
            return refuse("--data-dir goes with --source files".to_owned(), "add --source files");
        }
        let goes_on = self.source == SourceArg::Files && self.files_from == FilesArg::Aof;
        match asked
            .filter(|asked| self.source != SourceArg::Replication && !(goes_on && *asked == INCREMENTAL))
        {
            None => Ok(()),
            Some(asked) => refuse(
                format!("{asked} needs replication, and --source says to do without"),
                "leave it out, or leave --source out",
            ),
        }
    }

    /// What to read from, if not from a replication link. In the plan only nodes are left that can be read.
    pub(crate) async fn reading(
        &self,
        context: &Context,
        plan: &mut BackupPlan,
        allow_partial: bool,
        engine: EngineOptions,
    ) -> Result<Option<Reading>> {
        Ok(match self.source {
            SourceArg::Replication => None,
            SourceArg::Files => {
                let given = self.data_dir.iter().cloned().collect();
                let dirs = find_data_dirs(context, plan, &given, allow_partial).await?;
                Some(match self.files_from {
                    FilesArg::Snapshot => Reading::Snapshot(dirs),
                    FilesArg::Aof => Reading::Aof(dirs, engine),
                    FilesArg::Backup => Reading::Sealed(dirs),
                })
            }
            SourceArg::Scan => Some(Reading::Scan(ScanOptions {
                keys_per_s: self.scan_rate,
                bytes_per_s: self.scan_bytes,
                max_value_bytes: self.scan_max_value,
                without_functions: self.scan_without_functions,
            })),
        })
    }
}
