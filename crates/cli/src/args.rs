//! What the user typed. Options that many commands share stand here once; each command's own stand with the command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use slotkeep_jobs::archive::default_spool;
use slotkeep_jobs::cut::CutOptions;

use crate::commands;

/// Backs up Redis Cluster and Valkey Cluster, and brings them back, proven.
#[derive(Debug, Parser)]
#[command(name = "slotkeep", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Settings file; `slotkeep.toml` in the current folder is read if it is there
    #[arg(short = 'c', long, global = true, value_name = "FILE", env = "SLOTKEEP_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(commands::init::InitArgs),
    Backup(commands::backup::BackupArgs),
    Archive(Box<commands::archive::ArchiveArgs>),
    Restore(Box<commands::restore::RestoreArgs>),
    Check(commands::check::CheckArgs),
    Diff(commands::diff::DiffArgs),
    Verify(Box<commands::verify::VerifyArgs>),
    Fence(commands::fence::FenceArgs),
    Prune(commands::prune::PruneArgs),
    Compact(commands::compact::CompactArgs),
    Copy(commands::copy::CopyArgs),
    Repair(commands::repair::RepairArgs),
    Recover(Box<commands::recover::RecoverArgs>),
    List(commands::list::ListArgs),
    Log(commands::log::LogArgs),
    Merge(commands::merge::MergeArgs),
    Show(commands::show::ShowArgs),
    Inspect(Box<commands::inspect::InspectArgs>),
    Get(commands::get::GetArgs),
    Export(Box<commands::export::ExportArgs>),
    Key(commands::key::KeyCommandArgs),
    Demo(commands::demo::DemoArgs),
    Completions(commands::generate::CompletionsArgs),
    Man(commands::generate::ManArgs),
}

/// How to show things.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print JSON instead of tables, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show no progress and no closing words
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log more: -v what is done, -vv every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Where the cluster is and how to get in.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Address of any node, host:port; more than one in case some are down
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', env = "SLOTKEEP_CLUSTER")]
    pub(crate) cluster: Vec<String>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// How to get into a cluster.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Cluster access (the password: SLOTKEEP_PASSWORD or --password-file)")]
pub(crate) struct AccessArgs {
    /// ACL user; the default user if not given
    #[arg(long, value_name = "NAME", env = "SLOTKEEP_USER")]
    pub(crate) user: Option<String>,
    /// File that holds the password, on its first line
    #[arg(long, value_name = "FILE", env = "SLOTKEEP_PASSWORD_FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Speak TLS
    #[arg(long)]
    pub(crate) tls: bool,
    /// Certificates of the authorities to trust, PEM; the system's if not given
    #[arg(long, value_name = "FILE", env = "SLOTKEEP_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// This client's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "SLOTKEEP_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of this client's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "SLOTKEEP_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name to expect in the nodes' certificates instead of each node's own host
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
    /// Dial REACHABLE for nodes that announce ANNOUNCED, both host:port or both host
    #[arg(long, value_name = "ANNOUNCED=REACHABLE", value_delimiter = ',')]
    pub(crate) address_map: Vec<String>,
    /// Seconds that an answer, or the next byte of a snapshot, may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

/// Where the repository is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Repository")]
pub(crate) struct RepoArgs {
    /// Folder, or address such as `s3://bucket/prefix`
    #[arg(long, value_name = "DIR-OR-URL", env = "SLOTKEEP_REPO")]
    pub(crate) repo: Option<String>,
    /// Name under which the repository keeps this cluster's backups
    #[arg(long, value_name = "NAME", env = "SLOTKEEP_NAME")]
    pub(crate) name: Option<String>,
    /// Most bytes per second to and from the repository, such as 500K, 20M or 1G (multiples of 1024); no limit if not given
    #[arg(long, value_name = "BYTES", value_parser = size, env = "SLOTKEEP_LIMIT_RATE")]
    pub(crate) limit_rate: Option<u64>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

/// Where a backup goes: to one repository, or to several at once.
#[derive(Debug, Args)]
#[command(next_help_heading = "Repository")]
pub(crate) struct ReposArgs {
    /// Folder, or address such as `s3://bucket/prefix`; given more than once, the backup goes to all of them, and fails if one of them does not
    /// get it
    #[arg(long, value_name = "DIR-OR-URL", env = "SLOTKEEP_REPO")]
    pub(crate) repo: Vec<String>,
    /// Another repository that gets the backup too; if it does not, that is a warning
    #[arg(long, value_name = "DIR-OR-URL", env = "SLOTKEEP_REPO_OPTIONAL")]
    pub(crate) repo_optional: Vec<String>,
    /// How long one --repo-optional alone may hold up the backup, in all, such as 30s or 5m; then it is given up
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "60s")]
    pub(crate) repo_optional_wait: Duration,
    /// Name under which the repositories keep this cluster's backups
    #[arg(long, value_name = "NAME", env = "SLOTKEEP_NAME")]
    name: Option<String>,
    /// Most bytes per second to and from each repository, such as 500K, 20M or 1G (multiples of 1024); no limit if not given
    #[arg(long, value_name = "BYTES", value_parser = size, env = "SLOTKEEP_LIMIT_RATE")]
    limit_rate: Option<u64>,
    #[command(flatten)]
    keys: KeyArgs,
}

impl ReposArgs {
    /// The same for one of them; for the one in the settings file if none was given.
    pub(crate) fn one(&self, repo: Option<&String>) -> RepoArgs {
        RepoArgs {
            repo: repo.cloned(),
            name: self.name.clone(),
            limit_rate: self.limit_rate,
            keys: self.keys.clone(),
        }
    }
}

/// What opens a repository, and what proves it.
#[derive(Debug, Default, Clone, Args)]
#[command(
    next_help_heading = "Keys of an encrypted repository (a passphrase: SLOTKEEP_PASSPHRASE or --passphrase-file)"
)]
pub(crate) struct KeyArgs {
    /// File with age identities that open the repository, as `age-keygen` writes it
    #[arg(long, value_name = "FILE", value_delimiter = ',', env = "SLOTKEEP_IDENTITY")]
    pub(crate) identity: Vec<PathBuf>,
    /// Command that prints such a file, run by the shell: `pass show slotkeep`
    #[arg(long, value_name = "COMMAND", env = "SLOTKEEP_IDENTITY_COMMAND")]
    pub(crate) identity_command: Option<String>,
    /// File that holds the passphrase, on its first line
    #[arg(long, value_name = "FILE", env = "SLOTKEEP_PASSPHRASE_FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// File with the key that signs backups, on a machine that did not make the repository; one for each if there are several
    #[arg(long, value_name = "FILE", value_delimiter = ',', env = "SLOTKEEP_SIGNING_KEY")]
    pub(crate) signing_key: Vec<PathBuf>,
    /// Fingerprint that the repository must have; `slotkeep init` prints it; one for each if there are several
    #[arg(long, value_name = "FINGERPRINT", value_delimiter = ',', env = "SLOTKEEP_TRUST")]
    pub(crate) trust: Vec<String>,
}

/// Who may read a repository.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Who may read it")]
pub(crate) struct RecipientArgs {
    /// Encrypt for the owner of this public key, age1…; any number of them
    #[arg(long, value_name = "KEY", value_delimiter = ',', env = "SLOTKEEP_RECIPIENT")]
    pub(crate) recipient: Vec<String>,
    /// Encrypt for whoever knows a passphrase, too: that of --passphrase-file, or of the environment
    #[arg(long)]
    pub(crate) passphrase: bool,
}

/// How the shards' cut is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cut")]
pub(crate) struct CutArgs {
    /// Pause writes on all primaries for a moment, so that all shards end at exactly the same point
    #[arg(long)]
    pub(crate) barrier: bool,
    /// Longest pause; if not every primary can be read within it, the cut is made without
    #[arg(long, value_name = "MS", default_value_t = 200)]
    pub(crate) barrier_budget: u64,
}

impl CutArgs {
    pub(crate) fn options(&self) -> CutOptions {
        CutOptions { barrier: self.barrier.then(|| Duration::from_millis(self.barrier_budget.max(1))) }
    }
}

/// Where the log waits until it is sealed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Spool")]
pub(crate) struct SpoolArgs {
    /// Folder for what is received and not yet sealed, on a local disk; `slotkeep` in `$XDG_STATE_HOME` or `~/.local/state` if not
    /// given
    #[arg(long, value_name = "DIR", env = "SLOTKEEP_SPOOL")]
    pub(crate) spool: Option<PathBuf>,
    /// Most bytes there; when it is full, nothing is received until the repository has taken some
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = size)]
    pub(crate) spool_limit: u64,
}

impl SpoolArgs {
    pub(crate) fn folder(&self) -> PathBuf {
        let given = self.spool.clone().or_else(default_spool);
        given.unwrap_or_else(|| std::env::temp_dir().join("slotkeep"))
    }
}

/// A number of bytes: `4GiB`, `32M`, `1000`; every unit is a power of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = text.strip_prefix(digits).unwrap_or_default().to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("`{text}` is not a size: give a number and KiB, MiB, GiB or TiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a size: give for example 4GiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// A span of time: `10`, `10s`, `500ms`, `2m`, `1h`, `30d`, `2w`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit_ms = match text.strip_prefix(digits).unwrap_or_default() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return Err(format!("`{text}` is not a span of time: give a number and ms, s, m, h, d or w")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("`{text}` is not a span of time: give for example 10s"))?;
    let ms = number.checked_mul(unit_ms).ok_or_else(|| format!("`{text}` is too long"))?;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_has_two_options_of_one_name() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_and_spans_are_read_with_their_units() {
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("32m"), Ok(32 << 20));
        assert_eq!(size("1000"), Ok(1000));
        assert_eq!(size("20M"), Ok(20 << 20));
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("10"), Ok(Duration::from_secs(10)));
        assert_eq!(span("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(span("2w"), Ok(Duration::from_secs(14 * 86_400)));
        for text in ["", "x", "5x", "GiB", "99999999999999999999"] {
            assert!(size(text).is_err() && span(text).is_err(), "{text}");
        }
    }
}
