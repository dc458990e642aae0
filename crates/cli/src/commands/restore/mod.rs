//! `slotkeep restore`: what all targets share, and which one is meant.

mod files;
mod live;

use clap::Args;
use slotkeep_jobs::Result;
use slotkeep_repo::BackupSelector;

use crate::args::RepoArgs;
use crate::output::Output;
use crate::session::Session;

/// Bring a backup back
///
/// As data directories of a new cluster with the same slots and replicas (--to-dir), which --start starts, or into a running
/// cluster.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// The backup: its id, the beginning of its id, or `latest`
    #[arg(long, value_name = "ID", default_value = "latest", help_heading = "What and how")]
    backup: String,
    /// Show what would be done, and do nothing
    #[arg(long, help_heading = "What and how")]
    dry_run: bool,
    /// Restore what there is of a backup that lacks slots
    #[arg(long, help_heading = "What and how")]
    allow_partial: bool,
    #[command(flatten)]
    files: files::FilesArgs,
    #[command(flatten)]
    live: live::LiveArgs,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &RestoreArgs) -> Result<u8> {
    let (repository, name) = session.repository(&arguments.repo).await?;
    // Before anything is planned: without an identity not even the users are known.
    repository.check_reads()?;
    let Ok(selector) = arguments.backup.parse::<BackupSelector>();
    let manifest = repository.find(&name, &selector).await?;
    match &arguments.files.to_dir {
        Some(folder) => files::run(session, output, arguments, &repository, &manifest, folder).await,
        None => live::run(session, output, arguments, &repository, &manifest).await,
    }
}
