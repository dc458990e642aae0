//! `slotkeep get`

use std::ffi::OsString;

use clap::Args;
use slotkeep_jobs::Result;
use slotkeep_jobs::get::{Form, GetOptions, get};

use crate::args::RepoArgs;
use crate::dataset_args::{key_bytes, open};
use crate::exit;
use crate::output::{Output, Stream, bytes, prints_to_terminal};
use crate::progress::ByteDisplay;
use crate::session::Session;

/// Show one key of a backup
///
/// Finds the key by the backup's index and reads only the part that holds it. A file has no index and is read from its beginning. The
/// value is written as it is read, whatever its size. Exits with 22 if there is no such key.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The backup: its id, the beginning of its id, or `latest`; or an RDB file, or `-` for one on standard input
    backup: OsString,
    /// The key
    key: OsString,
    #[command(flatten)]
    repo: RepoArgs,
    /// Database of the key
    #[arg(long, value_name = "N", default_value_t = 0)]
    db: u32,
    /// Take the key as escaped like `redis-cli` does: `\xff`, `\n`, `\"`, `\\`
    #[arg(long)]
    escaped: bool,
    /// Write the exact bytes of a string, and nothing else
    #[arg(long)]
    raw: bool,
    /// Write the payload of RESTORE, as DUMP gives it
    #[arg(long, conflicts_with = "raw")]
    dump: bool,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &GetArgs) -> Result<u8> {
    let form = match (arguments.raw, arguments.dump) {
        (true, _) => Form::Raw,
        (_, true) => Form::Dump,
        _ if output.is_json() => Form::Json,
        _ => Form::Text,
    };
    let key = key_bytes(&arguments.key, arguments.escaped)?;
    let options = GetOptions { key, database: arguments.db, form };
    let dataset = open(session, output, &arguments.repo, &arguments.backup).await?;
    let (stream, closed) = Stream::new();
    let rows = if prints_to_terminal() { &[] } else { dataset.progress.as_slice() };
    let display = ByteDisplay::start(output, rows);
    let outcome = get(&dataset, &options, session.now(), session.stop(), stream).await;
    display.finish().await;
    if let Some(got) = closed.unless_closed(outcome)? {
        let read = format!(
            "{} in the RDB; {} of {} were read",
            bytes(got.bytes),
            bytes(got.read_bytes),
            bytes(got.stored_bytes)
        );
        match form {
            Form::Text => output.note(&format!("\n{read}")),
            _ => tracing::info!("{read}"),
        }
    }
    Ok(exit::OK)
}
