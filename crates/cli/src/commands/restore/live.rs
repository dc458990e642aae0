//! `slotkeep restore --to`: into a running cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use slotkeep_jobs::discover::{Discovery, discover};
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::restore::live::{Coverage, LiveOptions, LivePlan, LiveReport, OnConflict, plan, restore};
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_model::NodeAddr;
use slotkeep_repo::Repository;

use super::RestoreArgs;
use super::aim::{Recovery, Wanted, render as render_recovery};
use crate::args::AccessArgs;
use crate::commands::merge::{EngineArgs, Folded};
use crate::exit;
use crate::output::{Output, bytes, count, seconds, table, table_text};
use crate::progress::Display;
use crate::session::{Session, parse_addr};

/// Options of a restore into a running cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Into a running cluster")]
pub(crate) struct LiveArgs {
    /// Address of any node of the target, host:port; more than one in case some are down. Any number of shards will do
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "to_dir")]
    pub(super) to: Vec<String>,
    /// What to do with keys that exist on the target
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = OnConflictArg::Fail)]
    on_conflict: OnConflictArg,
    /// With --on-conflict fail: accept a target that holds keys, if none is in a slot of which the backup holds keys
    #[arg(long)]
    allow_other_data: bool,
    /// Most shards of the backup at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Longest payload of one RESTORE command, in bytes; longer values go element by element
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20)]
    max_restore_bytes: usize,
    /// Seconds for which a key may be refused for passing reasons, such as a failover
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
    /// File that remembers how far the restore has come, so that the same command goes on there after an interruption;
    /// in `$XDG_STATE_HOME/slotkeep` or `~/.local/state/slotkeep` if not given
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Begin anew, whatever that file says
    #[arg(long)]
    restart: bool,
    /// Where to keep the dataset while a log is applied to it; the system's folder for temporary files if not given
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    access: AccessArgs,
}

impl LiveArgs {
    /// How to get into a cluster.
    pub(super) const fn access(&self) -> &AccessArgs {
        &self.access
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnConflictArg {
    /// Refuse a target that holds keys; stop at a key that turns up meanwhile
    Fail,
    /// Leave keys that exist as they are
    Skip,
    /// Put the backup's value in place of what the key holds
    Replace,
}

/// What was restored.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    restored: &'a LiveReport,
    /// How the log led to the point; absent where a backup was restored that has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<Recovery<'a>>,
}

pub(crate) async fn run(
    session: &Session,
    output: &Output,
    arguments: &RestoreArgs,
    repository: &Repository,
    wanted: &Wanted,
) -> Result<u8> {
    let live = &arguments.live;
    if live.to.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "where to? no target was given").hint(
            "give --to HOST:PORT for a running cluster, or --to-dir DIR --nodes HOST:PORT,… for a new one",
        ));
    }
    let folded = if wanted.point.has_log() && !arguments.dry_run {
        let spool = live.spool.clone().unwrap_or_else(std::env::temp_dir);
        Some(Folded::make(session, output, repository, wanted, &live.engine, &spool).await?)
    } else {
        None
    };
    let (repository, manifest) = match &folded {
        Some(folded) => (&folded.repository, &folded.manifest),
        None => (repository, &wanted.point.manifest),
    };
    let seeds: Vec<NodeAddr> = live.to.iter().map(|text| parse_addr(text)).collect::<Result<_>>()?;
    let context = session.context(&live.access)?;
    let state = match &live.state {
        Some(file) => file.clone(),
        None => default_state(&manifest.id, &discover(&context, &seeds).await?)?,
    };
    let options = LiveOptions {
        on_conflict: match live.on_conflict {
            OnConflictArg::Fail => OnConflict::Fail,
            OnConflictArg::Skip => OnConflict::Skip,
            OnConflictArg::Replace => OnConflict::Replace,
        },
        allow_other_data: live.allow_other_data,
        allow_partial: arguments.allow_partial,
        jobs: live.jobs,
        max_restore_bytes: live.max_restore_bytes.max(1),
        patience: Duration::from_secs(live.patience),
        state,
        restart: live.restart,
        coverage: Coverage::Whole,
    };
    let plan = plan(&context, repository, manifest, &seeds, &options).await?;
    for warning in &plan.warnings {
        output.warn(warning);
    }
    let recovery = wanted.recovery();
    if let Some(recovery) = &recovery {
        output.note(&render_recovery(recovery));
    }
    if arguments.dry_run {
        output.data(&plan, |plan| describe(plan, recovery.as_ref()))?;
        return Ok(exit::OK);
    }
    output.note(&announce(&plan, recovery.as_ref()));
    let progress: Vec<Arc<ShardProgress>> =
        manifest.shards.iter().map(|shard| ShardProgress::new(format!("slots {}", shard.slots))).collect();
    let told = plan.warnings.len();
    let display = Display::start(output, &progress);
    let outcome = restore(&context, repository, manifest, plan, &options, &progress).await;
    display.finish().await;
    let report = outcome?;
    for warning in report.warnings.iter().skip(told) {
        output.warn(warning);
    }
    output.data(&Report { restored: &report, recovery }, summary)?;
    Ok(exit::OK)
}

/// The file for this backup and this target. The target goes by the lowest of its node ids, which failovers don't change.
fn default_state(backup: &str, target: &Discovery) -> Result<PathBuf> {
    let folder = std::env::var_os("XDG_STATE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")));
    let folder = folder.ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            "there is no place for the state file: neither XDG_STATE_HOME nor HOME is set",
        )
        .hint("name a file with --state FILE")
    })?;
    let nodes = || target.topology().shards.iter().flat_map(slotkeep_model::Shard::nodes);
    let id = nodes().filter_map(|node| node.id.as_ref()).min().map(ToString::to_string);
    let name = id.unwrap_or_else(|| {
        let addr =
            target.topology().shards.first().map(|shard| shard.primary.addr.to_string()).unwrap_or_default();
        addr.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
    });
    Ok(folder.join("slotkeep").join(format!("restore-{backup}-{name}.json")))
}

fn announce(plan: &LivePlan, recovery: Option<&Recovery<'_>>) -> String {
    let primaries = plan.nodes.len();
    let begun =
        plan.resumes_at_percent.map(|percent| format!(", resuming at {percent} %")).unwrap_or_default();
    format!(
        "{}, {} keys, {} → {} {}, {primaries} {}{begun}",
        recovery.map_or_else(|| format!("backup {}", plan.backup), |_| "the state above".to_owned()),
        count(plan.keys),
        bytes(plan.rdb_bytes),
        plan.server,
        if plan.cluster_mode { "cluster" } else { "standalone" },
        if primaries == 1 { "primary" } else { "primaries" },
    )
}

/// The plan for people.
fn describe(plan: &LivePlan, recovery: Option<&Recovery<'_>>) -> String {
    let mut rows = table(&["node", "server", "slots", "keys there>", "keys to come>"]);
    for node in &plan.nodes {
        rows.add_row([
            node.node.clone(),
            node.server.clone(),
            node.slots.clone(),
            count(node.keys),
            count(node.keys_to_come),
        ]);
    }
    let functions = match plan.functions.len() {
        0 => String::new(),
        _ => format!("\nFunction libraries for every primary: {}.", plan.functions.join(", ")),
    };
    format!(
        "{}\n{functions}\n{}\nKeys that exist: {}. Nothing was written.",
        table_text(&rows),
        announce(plan, recovery),
        plan.on_conflict
    )
}

/// The table of what each node took, and the line that says what happened.
fn summary(of: &Report<'_>) -> String {
    let report = of.restored;
    let backup = &report.backup;
    let what =
        of.recovery.as_ref().map_or_else(|| format!("Backup {backup}"), |recovery| recovery.what(backup));
    let mut rows = table(&["node", "keys>"]);
    for node in &report.nodes {
        rows.add_row([node.node.clone(), count(node.restored)]);
    }
    let parts = [
        (report.skipped_existing, "left as they were, for they existed"),
        (report.skipped_expired, "left out, for they had expired"),
        (report.already_restored, "there already, from before an interruption"),
        (report.element_wise, "of the restored ones element by element"),
    ];
    let more: Vec<String> = parts
        .iter()
        .filter(|(keys, _)| *keys > 0)
        .map(|(keys, words)| format!("{} {words}", count(*keys)))
        .collect();
    let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join("; ")) };
    let functions = match report.functions {
        0 => String::new(),
        1 => ", 1 function library".to_owned(),
        more => format!(", {more} function libraries"),
    };
    format!(
        "{}\n\n{what}: {} keys restored{more}{functions}, {} sent, {}.",
        table_text(&rows),
        count(report.restored),
        bytes(report.sent_bytes),
        seconds(Duration::from_secs_f64(report.seconds.max(0.0))),
    )
}
