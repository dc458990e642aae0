//! `slotkeep compact`

use clap::Args;
use slotkeep_jobs::Result;
use slotkeep_jobs::compact::{CompactOptions, CompactPlan, CompactReport};

use crate::args::{AccessArgs, RepoArgs, size};
use crate::exit;
use crate::output::{Output, bytes, count, table, table_text};
use crate::session::Session;

/// About how large segments become.
pub(crate) const TARGET_SIZE: &str = "64MiB";

/// Join many small segments of the log into few large ones
///
/// The large segments are written beside the small ones, read back, and used from then on; `slotkeep prune` deletes the small ones
/// later, in its two steps. A large one that nothing proves to be whole is read again, and replaced if it is damaged. The newest segment of each line is left alone. An encrypted repository must be opened (--identity).
#[derive(Debug, Args)]
pub(crate) struct CompactArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// About how large segments become, as stored
    #[arg(long, value_name = "SIZE", default_value = TARGET_SIZE, value_parser = size)]
    target_size: u64,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &CompactArgs) -> Result<u8> {
    let (repository, cluster) = session.repository(&arguments.repo).await?;
    let options = CompactOptions { cluster, target_bytes: arguments.target_size };
    let plan = session.unless_stopped(Box::pin(CompactPlan::make(&repository, &options))).await?;
    let report = if arguments.dry_run {
        plan.preview()
    } else {
        plan.run(&session.context(&AccessArgs::default())?, &repository).await?
    };
    output.data(&report, render)?;
    Ok(exit::OK)
}

pub(crate) fn render(report: &CompactReport) -> String {
    let mut parts = Vec::new();
    if !report.groups.is_empty() {
        let mut rows = table(&["history", "first byte>", "last byte>", "segments>", "stored>"]);
        for group in &report.groups {
            rows.add_row([
                group.history.to_string(),
                group.start.to_string(),
                group.end.saturating_sub(1).to_string(),
                count(group.segments as u64),
                bytes(group.stored_bytes),
            ]);
        }
        parts.push(table_text(&rows));
    }
    if !report.seams.is_empty() {
        let lines: Vec<String> =
            report.seams.iter().map(|seam| format!("  {}: {}", seam.segment, seam.why)).collect();
        parts.push(format!("Not joined with the segment before:\n{}", lines.join("\n")));
    }
    if report.read_again > 0 {
        let many = count(report.read_again as u64);
        parts.push(if report.dry_run {
            format!("{many} segments that hold the bytes of others too would be read first: nothing proves that they are whole.")
        } else {
            format!("{many} segments that hold the bytes of others too were read and are whole.")
        });
    }
    let (segments, groups) = (count(report.segments as u64), count(report.groups.len() as u64));
    parts.push(match (report.groups.is_empty(), report.dry_run) {
        (true, _) => "No segments are to be joined.".to_owned(),
        (false, true) => {
            format!("Nothing was changed (--dry-run). {segments} segments would become {groups}.")
        }
        (false, false) => {
            format!(
                "{segments} segments became {groups}. `slotkeep prune` deletes those that are not needed now."
            )
        }
    });
    parts.join("\n\n")
}
