//! `slotkeep key`: the keys of an encrypted repository.

use clap::{Args, Subcommand};
use serde::Serialize;
use slotkeep_jobs::Result;
use slotkeep_repo::fingerprint;

use crate::args::{RecipientArgs, RepoArgs};
use crate::exit;
use crate::output::Output;
use crate::session::Session;

/// Change or export the keys of an encrypted repository
#[derive(Debug, Args)]
pub(crate) struct KeyCommandArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Print the repository's own keys, which must be kept secret: an identity file with which `age` decrypts objects
    Export(RepoOnly),
    /// Print the key that signs backups, for another machine that is to write them without being able to read them
    ExportSigning(RepoOnly),
    /// Let only these recipients open the repository from now on; nothing that is stored changes
    Rekey(RekeyArgs),
}

#[derive(Debug, Args)]
struct RepoOnly {
    #[command(flatten)]
    repo: RepoArgs,
}

#[derive(Debug, Args)]
struct RekeyArgs {
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
}

#[derive(Serialize)]
struct Secret {
    secret: String,
}

#[derive(Serialize)]
struct Rekeyed {
    repository: String,
    fingerprint: Option<String>,
    /// Key files that open it besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    others: Vec<String>,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &KeyCommandArgs) -> Result<u8> {
    match &arguments.command {
        KeyCommand::Export(arguments) => {
            let (repository, _) = session.repository(&arguments.repo).await?;
            output.data(&Secret { secret: repository.export_keys()? }, |key| key.secret.clone())?;
        }
        KeyCommand::ExportSigning(arguments) => {
            let (repository, _) = session.repository(&arguments.repo).await?;
            output.data(&Secret { secret: repository.export_signing_key()? }, |key| key.secret.clone())?;
        }
        KeyCommand::Rekey(arguments) => {
            let recipients = session.recipients(&arguments.recipients, &arguments.repo.keys)?;
            let (repository, _) = session.repository(&arguments.repo).await?;
            let others = repository.rekey(&recipients).await?;
            let rekeyed = Rekeyed {
                repository: repository.location().to_string(),
                fingerprint: fingerprint(repository.file()),
                others,
            };
            output.data(&rekeyed, |rekeyed| {
                let place = &rekeyed.repository;
                match rekeyed.others.as_slice() {
                    [] => format!("{place} is opened by these recipients only; its fingerprint is as before."),
                    others => format!(
                        "{place} is opened by these recipients, and by those of {}, which somebody else wrote at the same time: run it again to shut \
                         them out. Its fingerprint is as before.",
                        others.join(" and ")
                    ),
                }
            })?;
        }
    }
    Ok(exit::OK)
}
