//! `slotkeep check`

use std::time::Duration;

use clap::Args;
use slotkeep_jobs::Result;
use slotkeep_jobs::check::{CheckOptions, CheckReport, Finding, Severity, check};

use crate::args::{ClusterArgs, RepoArgs};
use crate::exit;
use crate::output::{Output, table, table_text};
use crate::session::Session;

/// So many subjects of one finding are named; the others are counted.
const NAMED_SUBJECTS: usize = 3;

/// Check whether a cluster and a repository are ready for a backup
///
/// Looks at permissions, versions, buffers, the backlog against the rate of writes, memory for a fork, clocks and the cluster's health,
/// and says what to do about each finding. Changes nothing on the servers; what it writes to probe the repository it deletes.
/// Exits with 0 if nothing stands in the way of a backup, with 41 if something does.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    repo: RepoArgs,
    /// Seconds for which each node's writes are watched
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    sample: u64,
    /// Show what is fine as well
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &CheckArgs) -> Result<u8> {
    let (context, seeds) = session.cluster(&arguments.cluster)?;
    let options = CheckOptions {
        watch: Duration::from_secs(arguments.sample.max(1)),
        repository: session.location_if_given(&arguments.repo)?,
        open: session.open_options(&arguments.repo)?,
    };
    let report = check(&context, &seeds, &options).await?;
    output.data(&report, |report| render(report, arguments.all, options.repository.is_some()))?;
    Ok(if report.ready { exit::OK } else { exit::NOT_READY })
}

fn render(report: &CheckReport, all: bool, with_repository: bool) -> String {
    let mut rows = table(&["severity", "subject", "check", "what, and what to do"]);
    let shown = report.findings.iter().filter(|finding| all || finding.severity > Severity::Ok);
    let groups = grouped(shown);
    for (finding, subjects) in &groups {
        let advice = finding.advice.as_ref().map(|advice| format!("\n→ {advice}")).unwrap_or_default();
        rows.add_row([
            severity(finding.severity).to_owned(),
            named(subjects),
            finding.check.to_owned(),
            format!("{}{advice}", finding.what),
        ]);
    }
    let mut text = if groups.is_empty() { String::new() } else { table_text(&rows) + "\n\n" };
    let number = |wanted| report.findings.iter().filter(|finding| finding.severity == wanted).count();
    let (problems, warnings) = (number(Severity::Problem), number(Severity::Warning));
    let named = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let counts = format!(
        "{}, {}, {}; {} fine.",
        named(problems, "problem"),
        named(warnings, "warning"),
        named(number(Severity::Note), "note"),
        named(report.fine, "check")
    );
    text.push_str(if report.ready { "Ready for a backup: " } else { "Not ready for a backup: " });
    text.push_str(&counts);
    if !with_repository {
        text.push_str(" The repository was not checked (--repo).");
    }
    text
}

/// Findings that say the same of several subjects become one row.
fn grouped<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<(&'a Finding, Vec<String>)> {
    let mut groups: Vec<(&Finding, Vec<String>)> = Vec::new();
    for finding in findings {
        let same = |other: &Finding| {
            (other.severity, other.check, &other.what, &other.advice)
                == (finding.severity, finding.check, &finding.what, &finding.advice)
        };
        match groups.iter_mut().find(|(other, _)| same(other)) {
            Some((_, subjects)) => subjects.push(finding.subject.to_string()),
            None => groups.push((finding, vec![finding.subject.to_string()])),
        }
    }
    groups
}

fn named(subjects: &[String]) -> String {
    let names: Vec<&str> = subjects.iter().take(NAMED_SUBJECTS).map(String::as_str).collect();
    match subjects.len().saturating_sub(NAMED_SUBJECTS) {
        0 => names.join("\n"),
        more => format!("{}\nand {more} more", names.join("\n")),
    }
}

const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warning => "WARNING",
        Severity::Problem => "PROBLEM",
    }
}
