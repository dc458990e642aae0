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
    List(commands::list::ListArgs),
    Show(commands::show::ShowArgs),
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
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, env = "SLOTKEEP_LIMIT_RATE")]
    pub(crate) limit_rate: Option<u64>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
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
    /// File with the key that signs backups, on a machine that did not make the repository
    #[arg(long, value_name = "FILE", env = "SLOTKEEP_SIGNING_KEY")]
    pub(crate) signing_key: Option<PathBuf>,
    /// Fingerprint that the repository must have; `slotkeep init` prints it
    #[arg(long, value_name = "FINGERPRINT", env = "SLOTKEEP_TRUST")]
    pub(crate) trust: Option<String>,
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

/// A number of bytes, with K, M or G behind it for multiples of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no number of bytes: write it as 500K, 20M or 1G");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 30),
        _ => (Some(text), 0),
    };
    let number: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn bytes_are_read_with_and_without_a_letter() {
        assert_eq!(parse_bytes("123"), Ok(123));
        assert_eq!(parse_bytes("20M"), Ok(20 << 20));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        for wrong in ["", "K", "0", "1.5M", "-1", "99999999999G", "5Q"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
