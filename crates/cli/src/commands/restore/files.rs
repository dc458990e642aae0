//! `slotkeep restore --to-dir`: data directories of a new cluster.

use std::path::{Path, PathBuf};

use clap::Args;
use slotkeep_format::Manifest;
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::Repository;

use super::RestoreArgs;
use crate::output::Output;
use crate::session::Session;

/// Options of a restore to data directories.
#[derive(Debug, Args)]
#[command(next_help_heading = "To data directories")]
pub(crate) struct FilesArgs {
    /// Folder to make the nodes' data directories in; must not exist, or be empty
    #[arg(long, value_name = "DIR", requires = "nodes")]
    pub(super) to_dir: Option<PathBuf>,
    /// Addresses of the new nodes: as many as the backup has primaries and replicas
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', requires = "to_dir")]
    pub(super) nodes: Vec<String>,
}

#[expect(clippy::unused_async, reason = "until the first version is here")]
pub(crate) async fn run(
    _session: &Session,
    _output: &Output,
    _arguments: &RestoreArgs,
    _repository: &Repository,
    _manifest: &Manifest,
    _folder: &Path,
) -> Result<u8> {
    Err(Error::new(ErrorKind::Unsupported, "restoring to data directories is being written"))
}
