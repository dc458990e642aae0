//! `slotkeep repair`

use std::io::IsTerminal as _;

use clap::Args;
use slotkeep_jobs::repair::{Repair, RepairPlan, RepairReport};
use slotkeep_jobs::{Error, ErrorKind, Result};

use crate::args::{AccessArgs, RepoArgs};
use crate::exit;
use crate::output::{Output, table, table_text};
use crate::session::Session;

/// Make again what can be made from the data of a repository, and list backups whose manifests were lost
///
/// Indexes and digests are made again from their RDBs, files of histories from the log and how the cluster looked; bases that no manifest
/// names are listed as a backup. Nothing is overwritten, and no data is deleted. Without --yes nothing is done, and what would be done is shown.
/// `slotkeep verify` tells whether RDBs and log are whole, which can't be made from anything. Exits with 49 if something is lost.
#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &RepairArgs) -> Result<u8> {
    if !arguments.yes && !arguments.dry_run && !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::Usage, "repair writes, and nobody is there to look at its plan")
            .hint("give --dry-run to see what would be done, --yes to do it"));
    }
    let (repository, cluster) = session.repository(&arguments.repo).await?;
    let context = session.context(&AccessArgs::default())?;
    let plan = RepairPlan::make(&context, &repository, &cluster).await?;
    let report = if arguments.yes { plan.run(&context, &repository).await? } else { plan.preview() };
    output.data(&report, render)?;
    Ok(if report.lost.is_empty() { exit::OK } else { exit::LOST })
}

fn render(report: &RepairReport) -> String {
    let mut parts = Vec::new();
    if !report.repairs.is_empty() {
        let mut rows = table(&["repair", "object", "because", "gives"]);
        for row in &report.repairs {
            let what = match row.repair {
                Repair::Derived => "index and digest",
                Repair::Adopt => "backup",
                Repair::History => "history",
            };
            rows.add_row([what, &row.object, &row.why, &row.gives.join(", ")]);
        }
        parts.push(table_text(&rows));
    }
    if !report.lost.is_empty() {
        let line = |loss: &slotkeep_jobs::repair::Loss| {
            let backups = match loss.backups.as_slice() {
                [] => String::new(),
                backups => format!(" (backups {})", backups.join(", ")),
            };
            format!("  {}: {}{backups}", loss.object, loss.what)
        };
        let lines: Vec<String> = report.lost.iter().map(line).collect();
        parts.push(format!("LOST:\n{}", lines.join("\n")));
    }
    parts.push(match (report.repairs.is_empty(), report.dry_run) {
        (true, _) => "There is nothing to repair.".to_owned(),
        (false, true) => "Nothing was changed; --yes repairs it.".to_owned(),
        (false, false) => "Repaired. `slotkeep prune` deletes what was replaced.".to_owned(),
    });
    parts.join("\n\n")
}
