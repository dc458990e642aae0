//! What the user typed. Options that many commands share stand here once; each command's own stand with the command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    Restore(Box<commands::restore::RestoreArgs>),
    Check(commands::check::CheckArgs),
    Diff(commands::diff::DiffArgs),
    Verify(commands::verify::VerifyArgs),
    Fence(commands::fence::FenceArgs),
    List(commands::list::ListArgs),
    Show(commands::show::ShowArgs),
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
}
