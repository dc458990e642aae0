//! `slotkeep diff`

use std::path::PathBuf;

use clap::Args;
use slotkeep_jobs::backup::Prefer;
use slotkeep_jobs::diff::{CaptureOptions, Diff, DiffOptions, How, KeyDifference, Snapshot, diff};
use slotkeep_jobs::{Context, Result};
use slotkeep_model::NodeAddr;
use slotkeep_repo::BackupSelector;

use super::merge::{EngineArgs, Folded};
use super::restore::aim::Wanted;
use crate::args::{AccessArgs, RepoArgs};
use crate::exit;
use crate::output::{Output, count, table, table_text};
use crate::progress::Display;
use crate::session::Session;

/// Compare two datasets, each a backup or a running cluster
///
/// Compares digests of all 16384 slots and opens only those that differ, to name the keys. Keys that have expired at the later of the two
/// moments count as absent on both sides. A backup with a log behind its bases is compared as it ends: a private server applies the log
/// first. Exits with 0 if nothing differs, with 40 if something does.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A backup of the repository (its id, the beginning of its id, or `latest`), or a cluster (host:port)
    #[arg(value_name = "A")]
    a: String,
    /// The same
    #[arg(value_name = "B")]
    b: String,
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// Most keys to name
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Folder in which a running cluster is captured for the comparison, and the log of a backup applied; needs as much space as a
    /// backup
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Most shards of a running cluster at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &DiffArgs) -> Result<u8> {
    let context = session.context(&arguments.access)?;
    let a = snapshot(session, output, arguments, &context, &arguments.a).await?;
    let b = snapshot(session, output, arguments, &context, &arguments.b).await?;
    let found = diff(&context, &a, &b, DiffOptions::exact(arguments.limit)).await?;
    output.data(&found, render)?;
    Ok(if found.is_empty() { exit::OK } else { exit::DIFFERENT })
}

async fn snapshot(
    session: &Session,
    output: &Output,
    arguments: &DiffArgs,
    context: &Context,
    side: &str,
) -> Result<Snapshot> {
    // An id has no colon, an address has one.
    let Ok(seed) = side.parse::<NodeAddr>() else {
        let (repository, name) = session.repository(&arguments.repo).await?;
        let Ok(selector) = side.parse::<BackupSelector>();
        let manifest = repository.find(&name, &selector).await?;
        let wanted = Wanted::of_backup(&repository, &name, manifest.clone()).await?;
        if !wanted.point.has_log() {
            return Ok(Snapshot::of_backup(repository, manifest));
        }
        let spool = arguments.spool.clone().unwrap_or_else(std::env::temp_dir);
        let folded = Folded::make(session, output, &repository, &wanted, &arguments.engine, &spool).await?;
        return Ok(Snapshot::of_folded(&manifest.id, folded.repository, folded.manifest, folded.folder));
    };
    let capture = Snapshot::plan(context, &[seed], Prefer::Replica).await?;
    let spool = arguments.spool.clone().unwrap_or_else(std::env::temp_dir);
    let display = Display::start(output, &capture.progress);
    let taken = Snapshot::of_cluster(context, &capture, &CaptureOptions::new(&spool, arguments.jobs)).await;
    display.finish().await;
    taken
}

fn render(diff: &Diff) -> String {
    let side = |name: &str, side: &slotkeep_jobs::diff::SideSummary| {
        format!("{name}  {}: {} keys, digest {}\n", side.name, count(side.keys), side.digest)
    };
    let mut text = side("A", &diff.a) + &side("B", &diff.b);
    if diff.is_empty() {
        text.push_str("\nNo difference: the digests of all 16384 slots and of the functions are equal.");
        return text;
    }
    if !diff.keys.is_empty() {
        let mut rows = table(&["key", "slot>", "difference"]);
        for key in &diff.keys {
            rows.add_row([key_name(key), key.slot.to_string(), how(&key.how)]);
        }
        text.push('\n');
        text.push_str(&table_text(&rows));
        text.push('\n');
    }
    if diff.functions_differ {
        text.push_str("\nThe function libraries differ.\n");
    }
    let more = if diff.limited { " and more (--limit)" } else { "" };
    let slots = diff.differing_slot_count;
    text.push_str(&format!(
        "\nDifferent: {slots} {}, {} {}{more}.",
        if slots == 1 { "slot" } else { "slots" },
        diff.keys.len(),
        if diff.keys.len() == 1 { "key" } else { "keys" },
    ));
    text
}

fn key_name(key: &KeyDifference) -> String {
    if key.database == 0 { key.key.clone() } else { format!("{} (database {})", key.key, key.database) }
}

fn how(how: &How) -> String {
    let expiry = |expiry: &Option<i64>| {
        let time = expiry.and_then(|expiry_ms| jiff::Timestamp::from_millisecond(expiry_ms).ok());
        match (expiry, time) {
            (None, _) => "never".to_owned(),
            (Some(_), Some(time)) => time.to_string(),
            (Some(expiry_ms), None) => format!("{expiry_ms} ms"),
        }
    };
    match how {
        How::OnlyInA => "only in A".to_owned(),
        How::OnlyInB => "only in B".to_owned(),
        How::Type { a, b } => format!("type: {a} in A, {b} in B"),
        How::Value => "value".to_owned(),
        How::Expiry { a, b } => format!("expiry: {} in A, {} in B", expiry(a), expiry(b)),
        How::ValueAndExpiry { a, b } => format!("value, and expiry: {} in A, {} in B", expiry(a), expiry(b)),
    }
}
