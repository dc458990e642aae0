//! Slotkeep beside what a user would use instead, on one cluster or one file, in one run.
//!
//! ```text
//! cargo run --release -p slotkeep-bench -- backup
//! cargo run --release -p slotkeep-bench -- rdb
//! cargo run --release -p slotkeep-bench -- fold
//! cargo run --release -p slotkeep-bench -- archive
//! cargo run --release -p slotkeep-bench -- list
//! cargo run --release -p slotkeep-bench -- verify
//! cargo run --release -p slotkeep-bench -- moment
//! cargo run --release -p slotkeep-bench -- store
//! ```
//!
//! Ratios hold from machine to machine; absolute figures do not.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_macros,
    reason = "a program for developers that prints its figures"
)]

mod archive;
mod backup;
mod discard;
mod fold;
mod list;
mod load;
mod measure;
mod moment;
mod rdb;
mod store;
mod verify;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A full backup against `redis-cli --cluster backup` and against readers that discard what they read
    Backup(backup::BackupArgs),
    /// Reading an RDB, against librdb and the crate `rdb`
    Rdb(rdb::RdbArgs),
    /// Read an RDB and print what was found; for this program's own use
    #[command(hide = true)]
    Read {
        /// How
        pass: rdb::Pass,
        /// The file
        path: std::path::PathBuf,
    },
    /// A log applied over a link, against the server's own load of it
    Fold(fold::FoldArgs),
    /// Following all writes of three shards, against replicas that discard what they read
    Archive(archive::ArchiveArgs),
    /// Listing a repository with 10,000 backups
    List(list::ListArgs),
    /// A verification against what only reads the same files, and a drill in its steps
    Verify(verify::VerifyArgs),
    /// A moment brought back, in its steps, against the servers' own start with RDBs of that data
    Moment(moment::MomentArgs),
    /// A backup into an S3 server and an encrypted one, against one into a folder and against the server's own rate
    Store(store::StoreArgs),
    /// Put files into an S3 bucket as a backup would; for this program's own use
    #[command(hide = true)]
    Put {
        /// The bucket
        bucket: String,
        /// A prefix in it
        prefix: String,
        /// The files
        files: Vec<std::path::PathBuf>,
    },
    /// Run a command and print what it used, as JSON; for this program's own use
    #[command(hide = true, trailing_var_arg = true)]
    Measure {
        /// The command
        command: Vec<String>,
    },
    /// Read the snapshots of some nodes at once and discard them; for this program's own use
    #[command(hide = true)]
    Discard {
        /// The nodes
        nodes: Vec<std::net::SocketAddr>,
    },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Arguments::parse().command {
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Rdb(arguments) => rdb::run(&arguments),
        Command::Read { pass, path } => rdb::read(pass, &path),
        Command::Fold(arguments) => fold::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Archive(arguments) => archive::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Moment(arguments) => moment::run(&arguments),
        Command::Store(arguments) => store::run(&arguments),
        Command::Put { bucket, prefix, files } => store::put(&bucket, &prefix, &files),
        Command::Measure { command } => measure::child(&command),
        Command::Discard { nodes } => discard::run(&nodes),
    }
}
