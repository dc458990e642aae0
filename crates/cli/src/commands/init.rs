//! `slotkeep init`

use clap::Args;
use serde::Serialize;
use slotkeep_jobs::Result;

use slotkeep_repo::fingerprint;

use crate::args::{RecipientArgs, RepoArgs};
use crate::exit;
use crate::output::Output;
use crate::session::Session;

/// Make a repository
///
/// With --recipient or --passphrase it is encrypted, and every backup signed by a key that this machine keeps.
/// A new local folder that is not to be encrypted needs no `init`: the first backup into it makes it a repository, unless keys of an encrypted
/// one are given.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
}

#[derive(Serialize)]
struct Made {
    repository: String,
    repository_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &InitArgs) -> Result<u8> {
    let (location, _) = session.location(&arguments.repo)?;
    let recipients = session.recipients(&arguments.recipients, &arguments.repo.keys)?;
    let repository = session.init(&location, &arguments.repo, recipients).await?;
    let made = Made {
        repository: location.to_string(),
        repository_id: repository.file().repository_id.clone(),
        fingerprint: fingerprint(repository.file()),
    };
    if !repository.refuses_overwrite() {
        output.warn(
            "this store overwrites objects although requests forbid it (it ignores If-None-Match): Slotkeep looks before it \
             writes and reads back afterwards, but let only one Slotkeep write here at a time",
        );
    }
    output.data(&made, |made| match &made.fingerprint {
        None => format!("Made a repository in {}.", made.repository),
        Some(fingerprint) => format!(
            "Made an encrypted repository in {}. Its fingerprint, for --trust on other machines, to be kept with the identity:\n{fingerprint}",
            made.repository
        ),
    })?;
    Ok(exit::OK)
}
