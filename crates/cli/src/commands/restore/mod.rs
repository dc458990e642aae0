//! `slotkeep restore`: what all targets share, and which one is meant.

pub(crate) mod aim;
pub(super) mod files;
mod live;
mod old;

use clap::Args;
use slotkeep_jobs::Result;

use crate::args::{AccessArgs, RepoArgs};
use crate::output::Output;
use crate::session::Session;

/// Bring a backup back, or any moment that the log leads to
///
/// As data directories of a new cluster with the same slots and replicas (--to-dir), which --start starts, or into a running
/// cluster.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    aim: aim::AimArgs,
    /// Show what would be done, and do nothing
    #[arg(long, help_heading = "How")]
    dry_run: bool,
    /// Restore what there is of a backup that lacks slots
    #[arg(long, help_heading = "How")]
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
    let context = session.context(&AccessArgs::default())?;
    let wanted = arguments.aim.resolve(output, &context, &repository, &name);
    let wanted = session.unless_stopped(Box::pin(wanted)).await?;
    if !arguments.aim.is_given() {
        let told = async {
            wanted.warn_of_more(output, &repository, &name).await;
            Ok(())
        };
        session.unless_stopped(Box::pin(told)).await?;
    }
    match &arguments.files.to_dir {
        Some(folder) => files::run(session, output, arguments, &repository, &wanted, folder).await,
        None => live::run(session, output, arguments, &repository, &wanted).await,
    }
}
