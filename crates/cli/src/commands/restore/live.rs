//! `slotkeep restore` into a running cluster.

use clap::Args;
use slotkeep_format::Manifest;
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::Repository;

use super::RestoreArgs;
use crate::output::Output;
use crate::session::Session;

/// Options of a restore into a running cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Into a running cluster")]
pub(crate) struct LiveArgs {}

#[expect(clippy::unused_async, reason = "called like the other targets")]
pub(crate) async fn run(
    _session: &Session,
    _output: &Output,
    _arguments: &RestoreArgs,
    _repository: &Repository,
    _manifest: &Manifest,
) -> Result<u8> {
    Err(Error::new(ErrorKind::Usage, "where to? no target was given").hint("give --to-dir DIR --nodes HOST:PORT,…"))
}
