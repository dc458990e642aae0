//! `slotkeep prune`

use std::io::IsTerminal as _;
use std::str::FromStr as _;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;
use slotkeep_format::manifest::BackupKind;
use slotkeep_format::{KeptFor, RetentionPolicy, Unneeded};
use slotkeep_jobs::compact::{CompactOptions, CompactPlan, CompactReport};
use slotkeep_jobs::prune::{
    BackupRow, CLOCK_TOLERANCE, Pinned, PruneOptions, PrunePlan, PruneReport, Step, TotalRow, pin, unpin,
};
use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_repo::{BackupSelector, Repository};

use super::compact::TARGET_SIZE;
use super::object_words::{many, one, short};
use crate::args::{AccessArgs, RepoArgs, size, span};
use crate::exit;
use crate::output::{Output, bytes, count, table, table_text};
use crate::session::Session;

const DEFAULT_GRACE: &str = "24h";

/// Delete backups that no rule keeps, and log that nothing kept needs
///
/// In two steps: what is not needed is marked, and a later run deletes what has been marked for --grace and is not needed still. Whatever a
/// kept backup, a pinned one or the window needs stays. Until something is deleted it can be restored as before. Without --yes nothing is
/// done, and what would be done is shown. Exits with 48 if the store refused to delete something, as object lock does: it stays marked, and
/// is tried again; with 51, and nothing deleted, if this machine's clock is not the store's.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// Join small segments of the log before, as `slotkeep compact` does. If that fails, what is to go goes all the same, and the exit code is that
    /// of the failure. An encrypted repository must be opened (--identity)
    #[arg(long)]
    compact: bool,
    /// About how large they become, with --compact
    #[arg(long, value_name = "SIZE", default_value = TARGET_SIZE, value_parser = size, requires = "compact")]
    target_size: u64,
    /// Pin a backup (its id, a beginning of it, or `latest`): it stays until it is unpinned; nothing else is done
    #[arg(long, value_name = "ID", value_delimiter = ',', conflicts_with_all = ["yes", "dry_run"])]
    pin: Vec<String>,
    /// Take the pin of a backup away; nothing else is done
    #[arg(long, value_name = "ID", value_delimiter = ',', conflicts_with_all = ["yes", "dry_run"])]
    unpin: Vec<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

/// Which backups stay.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "What to keep; a backup stays if any rule asks for it (days, weeks and months are those of UTC)"
)]
pub(crate) struct KeepArgs {
    /// The newest so many
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
    /// All that are younger than that, such as 36h, 30d or 8w
    #[arg(long, value_name = "SPAN", value_parser = span)]
    keep_within: Option<Duration>,
    /// The newest of each of the last so many hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<usize>,
    /// The newest of each of the last so many days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<usize>,
    /// The newest of each of the last so many weeks that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<usize>,
    /// The newest of each of the last so many months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<usize>,
    /// Keep every moment since then restorable: the newest backup from before, and all log since. Older log stays only where a kept backup
    /// needs it; without a window, all log since the oldest kept base stays
    #[arg(long, value_name = "SPAN", value_parser = span)]
    window: Option<Duration>,
    /// How long what is marked stays before it is deleted, at least an hour. Longer than any backup or restore takes [default: 24h]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    grace: Option<Duration>,
}

impl KeepArgs {
    fn options(&self, session: &Session, cluster: String) -> Result<PruneOptions> {
        let file = &session.file.retention;
        let policy = RetentionPolicy {
            last: self.keep_last.or(file.keep_last).unwrap_or(0),
            within: signed(self.keep_within, "keep_within", file.keep_within.as_deref())?,
            hourly: self.keep_hourly.or(file.keep_hourly).unwrap_or(0),
            daily: self.keep_daily.or(file.keep_daily).unwrap_or(0),
            weekly: self.keep_weekly.or(file.keep_weekly).unwrap_or(0),
            monthly: self.keep_monthly.or(file.keep_monthly).unwrap_or(0),
            window: signed(self.window, "window", file.window.as_deref())?,
            ..RetentionPolicy::default()
        };
        let in_file = file.grace.as_deref().unwrap_or(DEFAULT_GRACE);
        let grace = signed(self.grace, "grace", Some(in_file))?.unwrap_or(SignedDuration::MAX);
        Ok(PruneOptions { cluster, policy, grace, clock_tolerance: Some(CLOCK_TOLERANCE) })
    }
}

/// A span as it was typed, or as it stands in the settings file.
fn signed(typed: Option<Duration>, name: &str, in_file: Option<&str>) -> Result<Option<SignedDuration>> {
    let refuse = |why: String| {
        Error::new(ErrorKind::Usage, format!("can't use `{name}` of [retention]: {why}"))
            .hint("write it as on the command line: 36h, 30d, 8w")
    };
    let given = match (typed, in_file) {
        (Some(typed), _) => Some(typed),
        (None, Some(text)) => Some(span(text).map_err(refuse)?),
        (None, None) => None,
    };
    given.map(|given| SignedDuration::try_from(given).map_err(|error| refuse(error.to_string()))).transpose()
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &PruneArgs) -> Result<u8> {
    let pins = !arguments.pin.is_empty() || !arguments.unpin.is_empty();
    if !pins && !arguments.yes && !arguments.dry_run && !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::Usage, "prune deletes, and nobody is there to look at its plan")
            .hint("give --dry-run to see what would be done, --yes to do it"));
    }
    let (repository, cluster) = session.repository(&arguments.repo).await?;
    let context = session.context(&AccessArgs::default())?;
    if pins {
        return pinned(&context, output, arguments, (&repository, &cluster)).await;
    }
    let options = arguments.keep.options(session, cluster.clone())?;
    let (mut compaction, mut not_compacted) = (None, None);
    if arguments.compact {
        match compacted(&context, arguments, (&repository, cluster)).await {
            Ok(compacted) => {
                output.note(&super::compact::render(&compacted));
                compaction = Some(compacted);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            // What is to go does not wait for it.
            Err(error) => {
                output.warn(&format!("not all was compacted, and pruning goes on: {error}"));
                not_compacted = Some(error);
            }
        }
    }
    let plan = PrunePlan::make(&context, &repository, &options).await?;
    let report = if arguments.yes { plan.run(&context, &repository).await? } else { plan.preview() };
    for remark in &report.remarks {
        output.warn(remark);
    }
    let done = Done { compaction, report };
    output.data(&done, |done| render(&done.report))?;
    match not_compacted {
        Some(error) => Err(error),
        None if done.report.refused.is_empty() => Ok(exit::OK),
        None => Ok(exit::NOT_DELETED),
    }
}

async fn compacted(
    context: &Context,
    arguments: &PruneArgs,
    (repository, cluster): (&Repository, String),
) -> Result<CompactReport> {
    let options = CompactOptions { cluster, target_bytes: arguments.target_size };
    let plan = CompactPlan::make(repository, &options).await?;
    if arguments.yes { plan.run(context, repository).await } else { Ok(plan.preview()) }
}

/// What was done, or would be.
#[derive(Serialize)]
struct Done {
    /// With `--compact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    compaction: Option<CompactReport>,
    #[serde(flatten)]
    report: PruneReport,
}

async fn pinned(
    context: &Context,
    output: &Output,
    arguments: &PruneArgs,
    (repository, cluster): (&Repository, &str),
) -> Result<u8> {
    let mut all: Vec<Pinned> = Vec::new();
    for id in &arguments.pin {
        all.push(pin(context, repository, cluster, &selector(id)).await?);
    }
    for id in &arguments.unpin {
        all.push(unpin(repository, cluster, &selector(id)).await?);
    }
    output.data(&all, |all| {
        let line = |one: &Pinned| match (one.pinned, one.unchanged) {
            (true, false) => format!("Backup {} is pinned: it stays until it is unpinned.", one.backup),
            (true, true) => format!("Backup {} was pinned already.", one.backup),
            (false, false) => format!("Backup {} is pinned no more.", one.backup),
            (false, true) => format!("Backup {} was not pinned.", one.backup),
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(exit::OK)
}

fn selector(id: &str) -> BackupSelector {
    let Ok(selector) = BackupSelector::from_str(id);
    selector
}

fn render(report: &PruneReport) -> String {
    let mut parts = vec![backups(report)];
    if !report.goes.is_empty() {
        let mut rows = table(&["goes", "because", "", "objects>", "bytes>"]);
        for row in &report.goes {
            rows.add_row([
                short(row.kind).to_owned(),
                row.why.map(why).unwrap_or_default().to_owned(),
                row.step.map(|now| step(now, report.dry_run)).unwrap_or_default().to_owned(),
                count(row.objects),
                bytes(row.bytes),
            ]);
        }
        parts.push(table_text(&rows));
    }
    if !report.unfinished.is_empty() {
        let left = report.unfinished.iter().map(|file| format!("  {} ({})", file.path, bytes(file.bytes)));
        let verb = if report.dry_run { "would be" } else { "are" };
        let lines: Vec<String> = left.collect();
        parts.push(format!("What killed writes left, which {verb} deleted:\n{}", lines.join("\n")));
    }
    parts.push(stays(report));
    if !report.refused.is_empty() {
        let lines: Vec<String> =
            report.refused.iter().map(|refused| format!("  {}: {}", refused.path, refused.error)).collect();
        parts.push(format!(
            "The store did not delete; they stay marked and are tried again:\n{}",
            lines.join("\n")
        ));
    }
    parts.push(closing(report));
    parts.join("\n\n")
}

fn backups(report: &PruneReport) -> String {
    let mut rows = table(&["backup", "kind", "finished", "stays", ""]);
    for row in &report.backups {
        let kind = match row.kind {
            BackupKind::Full => "full",
            BackupKind::Incremental => "incremental",
            BackupKind::Merged => "merged",
        };
        rows.add_row([
            row.id.clone(),
            kind.to_owned(),
            row.finished_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            if row.kept_for.is_empty() { "no" } else { "yes" }.to_owned(),
            because(row, report.dry_run),
        ]);
    }
    for id in &report.unreadable {
        rows.add_row([id.as_str(), "?", "", "yes", "its manifest can't be read"]);
    }
    table_text(&rows)
}

fn because(row: &BackupRow, dry_run: bool) -> String {
    if let Some(now) = row.step {
        return format!("no rule keeps it; {}", step(now, dry_run));
    }
    let word = |kept: &KeptFor| match kept {
        KeptFor::Pinned => "pinned",
        KeptFor::Last => "last",
        KeptFor::Within => "within",
        KeptFor::Hourly => "hourly",
        KeptFor::Daily => "daily",
        KeptFor::Weekly => "weekly",
        KeptFor::Monthly => "monthly",
        KeptFor::Window => "window",
        KeptFor::Newest => "newest",
    };
    row.kept_for.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn stays(report: &PruneReport) -> String {
    let part = |row: &TotalRow| {
        let what = if row.objects == 1 { one(row.kind) } else { many(row.kind) };
        format!("{} {what} ({})", count(row.objects), bytes(row.bytes))
    };
    let parts: Vec<String> = report.stays.iter().map(part).collect();
    let mut text =
        format!("Stays: {}.", if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") });
    if report.young_bytes > 0 {
        text += &format!(
            " {} of it are needed by no backup, and too young to be given up: one that runs may need them.",
            bytes(report.young_bytes)
        );
    }
    text
}

fn closing(report: &PruneReport) -> String {
    let grace = SignedDuration::from_secs(report.grace_s);
    let again = format!("what is marked goes {grace:#} after it was marked, if nothing needs it then");
    let mut text = match (report.dry_run, report.freed_bytes, report.marked_bytes) {
        (true, 0, 0) => "Nothing is to be done.".to_owned(),
        (true, freed, marked) => format!(
            "Nothing was changed. With --yes: {} are deleted, {} marked or stay marked ({again}).",
            bytes(freed),
            bytes(marked)
        ),
        (false, freed, 0) => format!("{} deleted.", bytes(freed)),
        (false, freed, marked) => {
            format!("{} deleted, {} marked ({again}).", bytes(freed), bytes(marked))
        }
    };
    if report.released > 0 {
        text += &format!(" {} objects that were marked are needed now.", count(report.released));
    }
    if !report.unreadable.is_empty() {
        text += " As long as a manifest can't be read, nothing but manifests is given up.";
    }
    text
}

const fn why(why: Unneeded) -> &'static str {
    match why {
        Unneeded::NotKept => "no rule keeps it",
        Unneeded::OfRemoved => "only backups that go need it",
        Unneeded::Unlisted => "no backup names it",
        Unneeded::Outside => "nothing that stays needs it",
        Unneeded::Covered => "a larger segment holds the same",
        Unneeded::Empty => "nothing is left of it",
        Unneeded::Old => "older than all that stays",
    }
}

const fn step(step: Step, dry_run: bool) -> &'static str {
    match step {
        Step::Mark if dry_run => "to be marked",
        Step::Mark => "marked now",
        Step::Wait => "marked",
        Step::Delete => "to be deleted",
        Step::Deleted => "deleted",
        Step::Needed => "needed meanwhile",
        Step::Refused => "REFUSED by the store",
    }
}
