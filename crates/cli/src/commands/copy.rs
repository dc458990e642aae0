//! `slotkeep copy`

use std::str::FromStr as _;

use clap::Args;
use slotkeep_jobs::Result;
use slotkeep_jobs::copy::{CopyOptions, CopyPlan, CopyReport, State, Target, copy_progress};
use slotkeep_repo::{BackupSelector, Location, Unlock};

use super::object_words::many;
use crate::args::{AccessArgs, RepoArgs};
use crate::exit;
use crate::output::{Output, bytes, count, table, table_text};
use crate::progress::ByteDisplay;
use crate::session::Session;

/// Bring another repository up to date
///
/// Copies what the other one lacks: backups with their bases and all log, histories, topologies, pins, fences and records of verifications.
/// Every object is proved by its BLAKE3 on the way, and a backup is listed in the target only when all that it needs is there. What is
/// damaged is named and not copied; the exit code is then 23, or 26 if a signature is wrong. May be broken off and run again at any time. An
/// empty target is made a mirror, with the same id, keys and readers; an encrypted repository is copied as it is stored, and must be opened
/// (--identity) to be proved.
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// The repository to bring up to date: a folder, or an address such as `s3://bucket/prefix`
    #[arg(long, value_name = "DIR-OR-URL")]
    to: String,
    /// Copy one backup (its id, a beginning of it, or `latest`) and what it needs; all if not given, of all clusters unless --name is given
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Show what would be copied, and copy nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &CopyArgs) -> Result<u8> {
    let (source, cluster) = session.repository(&arguments.repo).await?;
    let named = arguments.repo.name.is_some() || session.file.name.is_some();
    let options = CopyOptions {
        cluster: (named || arguments.backup.is_some()).then_some(cluster),
        backup: arguments.backup.as_deref().map(|id| {
            let Ok(selector) = BackupSelector::from_str(id);
            selector
        }),
    };
    // Nothing has to open the target; it may have other readers by now.
    let mut target = session.open_options(&arguments.repo)?;
    (target.unlock, target.signing_keys) = (Unlock::default(), vec![]);
    let target = Target::find(&source, Location::from_str(&arguments.to)?, target);
    let target = session.unless_stopped(Box::pin(target)).await?;
    let plan = session.unless_stopped(Box::pin(CopyPlan::make(&source, &target, &options))).await?;
    let report = if arguments.dry_run {
        plan.preview()
    } else {
        let progress = copy_progress();
        let display = ByteDisplay::start(output, &[(std::sync::Arc::clone(&progress), plan.bytes())]);
        let context = session.context(&AccessArgs::default())?;
        let outcome = plan.run(&context, &source, target, &progress).await;
        display.finish().await;
        outcome?
    };
    for remark in &report.remarks {
        output.warn(remark);
    }
    output.data(&report, render)?;
    Ok(report.worst().map_or(exit::OK, exit::code))
}

fn render(report: &CopyReport) -> String {
    let mut parts = Vec::new();
    let several =
        report.kinds.iter().any(|row| report.kinds.first().is_some_and(|one| one.cluster != row.cluster));
    if !report.kinds.is_empty() {
        let copied = if report.dry_run { "to copy>" } else { "copied>" };
        let mut rows = table(&["", copied, "bytes>", "there>", "bytes>"]);
        for row in &report.kinds {
            let kind = many(row.kind);
            rows.add_row([
                if several { format!("{}: {kind}", row.cluster) } else { kind.to_owned() },
                count(row.objects),
                bytes(row.bytes),
                count(row.there_objects),
                bytes(row.there_bytes),
            ]);
        }
        parts.push(table_text(&rows));
    }
    if !report.refused.is_empty() {
        let lines: Vec<String> =
            report.refused.iter().map(|refused| format!("  {}: {}", refused.path, refused.why)).collect();
        parts.push(format!("NOT COPIED:\n{}", lines.join("\n")));
    }
    let of = |state: State| report.backups.iter().filter(move |row| row.state == state);
    let refused: Vec<&str> = of(State::Refused).map(|row| row.id.as_str()).collect();
    if !refused.is_empty() {
        parts.push(format!(
            "These backups need it and are not in the copy: {}. `slotkeep verify` says what is damaged, `slotkeep repair` makes again what can be.",
            refused.join(", ")
        ));
    }
    parts.push(closing(report, of(State::ToCopy).count(), of(State::Copied).count()));
    parts.join("\n\n")
}

fn closing(report: &CopyReport, to_copy: usize, copied: usize) -> String {
    let backups = |number: usize| format!("{number} {}", if number == 1 { "backup" } else { "backups" });
    let made = if report.makes_target { ", which is made" } else { "" };
    let Some(took_ms) = report.took_ms else {
        return format!(
            "Nothing was changed (--dry-run). {} and {} would be copied to {}{made}.",
            backups(to_copy),
            bytes(report.bytes),
            report.to
        );
    };
    if report.kinds.iter().all(|row| row.objects == 0) {
        return format!("{} has all of it.", report.to);
    }
    let rate = report.bytes.saturating_mul(1000) / took_ms.max(1);
    format!(
        "{} and {} copied to {} in {}.{} s, {}/s, every object proved.",
        backups(copied),
        bytes(report.bytes),
        report.to,
        took_ms / 1000,
        took_ms % 1000 / 100,
        bytes(rate)
    )
}
