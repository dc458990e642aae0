//! `slotkeep init`

use clap::Args;
use serde::Serialize;
use slotkeep_jobs::Result;

use crate::args::RepoArgs;
use crate::exit;
use crate::output::Output;
use crate::session::Session;

/// Make a repository
///
/// A new local folder needs no `init`: the first backup into it makes it a repository.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    repo: RepoArgs,
}

#[derive(Serialize)]
struct Made {
    repository: String,
    repository_id: String,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &InitArgs) -> Result<u8> {
    let (location, _) = session.location(&arguments.repo)?;
    let repository = session.init(&location, &arguments.repo).await?;
    let made =
        Made { repository: location.to_string(), repository_id: repository.file().repository_id.clone() };
    if !repository.refuses_overwrite() {
        output.warn(
            "this store overwrites objects although requests forbid it (it ignores If-None-Match): Slotkeep looks before it \
             writes and reads back afterwards, but let only one Slotkeep write here at a time",
        );
    }
    output.data(&made, |made| format!("Made a repository in {}.", made.repository))?;
    Ok(exit::OK)
}
