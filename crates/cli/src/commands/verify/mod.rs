//! `slotkeep verify`

mod report;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use slotkeep_format::{Depth, Severity, VerifyRecord};
use slotkeep_jobs::verify::{DrillOptions, LiveOptions, VerifyOptions, VerifyProgress, verify};
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_model::NodeAddr;
use slotkeep_repo::Repository;

use super::backup::PreferArg;
use super::merge::EngineArgs;
use super::restore::aim::AimArgs;
use crate::args::{AccessArgs, ClusterArgs, RepoArgs, span};
use crate::exit;
use crate::output::Output;
use crate::progress::VerifyDisplay;
use crate::session::Session;

/// Prove that a repository holds what it says
///
/// Each depth includes those above it, unless --only is given. What was proved before and has not changed is not proved again, unless --again is given. Ctrl-C
/// keeps what was proved: run it again to go on. The record stays in the repository and shows in `slotkeep list`. Exits with 0 if nothing
/// worse than notes was found, with 43 after warnings, with 42 after problems.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// How deep to look
    #[arg(long, value_enum, default_value_t = DepthArg::Structure)]
    depth: DepthArg,
    /// Leave out the depths above that one (chain, drill or live)
    #[arg(long)]
    only: bool,
    /// Prove again what was proved before: finds bytes that have rotted on the disk since
    #[arg(long)]
    again: bool,
    /// Look into so many per cent of the objects, chosen at random
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    sample: Option<u8>,
    /// Most objects at a time, as many as this machine has cores if not given; also most shards at a time of a cluster that is captured, two
    /// if not given
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Folder in which bases are put for a while that a private server gives; the system's for temporary files if not given
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// With --depth drill: what to restore; a random moment that can be restored if not given
    #[command(flatten)]
    aim: AimArgs,
    /// With --depth drill: the server program that the nodes run; the best one on the PATH if not given
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// With --depth drill: your own checks, a file of lines such as `GET key => value`, or a folder of programs that must succeed
    #[arg(long, value_name = "FILE-OR-DIR")]
    checks: Option<PathBuf>,
    #[command(flatten)]
    live: LiveArgs,
    /// Write a report too: FILE.md, FILE.html or FILE.json
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Show the record of an earlier run (its id, or `latest`) and verify nothing
    #[arg(long, value_name = "ID", conflicts_with_all = ["again", "sample"])]
    show: Option<String>,
}

/// What a running cluster is compared with, and how.
#[derive(Debug, Args)]
struct LiveArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// With --depth live: which node to capture where there is a choice
    #[arg(long, value_enum, default_value_t = PreferArg::Replica, help_heading = "Cluster")]
    prefer: PreferArg,
    /// With --depth live: most shards at a time whose nodes are on one host; each forks
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Cluster")]
    jobs_per_host: usize,
    /// With --depth live: how long to wait for an archive to bring the log to where the cluster was captured, before this run fetches the
    /// log itself; 0 to fetch it at once
    #[arg(long, value_name = "TIME", default_value = "150s", value_parser = span, help_heading = "Cluster")]
    live_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DepthArg {
    /// Every object is there and has its length and BLAKE3
    Objects,
    /// Every RDB and every command parses, checksums and digests computed again are equal, the log has no holes
    Structure,
    /// Each base and the log behind it give the next base, proved by a private server
    Chain,
    /// A throw-away cluster on this machine is restored, compared, written to and failed over
    Drill,
    /// Every key of the running cluster is in the repository, exactly so, and nothing else is; the cluster takes writes meanwhile
    Live,
}

impl From<DepthArg> for Depth {
    fn from(depth: DepthArg) -> Self {
        match depth {
            DepthArg::Objects => Self::Objects,
            DepthArg::Structure => Self::Structure,
            DepthArg::Chain => Self::Chain,
            DepthArg::Drill => Self::Drill,
            DepthArg::Live => Self::Live,
        }
    }
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &VerifyArgs) -> Result<u8> {
    let format = arguments.report.as_deref().map(format_of).transpose()?;
    if arguments.only && matches!(arguments.depth, DepthArg::Objects | DepthArg::Structure) {
        let what =
            "--only leaves out the depths above the one that is named, and needs one that stands alone";
        return Err(Error::new(ErrorKind::Usage, what).hint("add --depth chain, drill or live"));
    }
    let (repository, cluster) = session.repository(&arguments.repo).await?;
    let record = match &arguments.show {
        Some(id) => kept(&repository, &cluster, id).await?,
        None => verified(session, output, arguments, &repository, &cluster).await?,
    };
    let place = repository.location().to_string();
    if let (Some(path), Some(format)) = (&arguments.report, format) {
        write_report(path, &report::file(&record, &place, format)?)?;
        output.note(&format!("Report: {}", path.display()));
    }
    output.data(&record, |record| report::text(record, &place))?;
    Ok(match record.worst() {
        Severity::Ok | Severity::Note => exit::OK,
        Severity::Warning => exit::DOUBTFUL,
        Severity::Problem => exit::UNSOUND,
    })
}

async fn verified(
    session: &Session,
    output: &Output,
    arguments: &VerifyArgs,
    repository: &Repository,
    cluster: &str,
) -> Result<VerifyRecord> {
    let clusters = session.unless_stopped(async { Ok(repository.clusters().await?) }).await?;
    if !clusters.iter().any(|name| name == cluster) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("{} holds nothing of a cluster named `{cluster}`", repository.location()),
        )
        .hint("`slotkeep list --repo …` shows what there is; --name names another cluster"));
    }
    let (context, live) = match arguments.depth {
        DepthArg::Live => {
            let (context, seeds) = session.cluster(&arguments.live.cluster)?;
            (context, Some(live_options(session, arguments, seeds)?))
        }
        _ => (session.context(&AccessArgs::default())?, None),
    };
    let point = if arguments.aim.is_given() {
        let wanted = arguments.aim.resolve(output, &context, repository, cluster);
        let wanted = session.unless_stopped(Box::pin(wanted)).await?;
        Some((Arc::new(wanted.point), wanted.past))
    } else {
        None
    };
    let options = VerifyOptions {
        cluster: cluster.to_owned(),
        depth: arguments.depth.into(),
        only: arguments.only,
        again: arguments.again,
        sample_percent: arguments.sample,
        jobs: arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, NonZero::get)),
        captures: arguments.jobs.unwrap_or(2),
        engine: arguments.engine.options(),
        drill: DrillOptions { point, server: arguments.server.clone(), checks: arguments.checks.clone() },
        spool: arguments.spool.clone().unwrap_or_else(std::env::temp_dir),
        live,
    };
    let progress = Arc::new(VerifyProgress::default());
    let display = VerifyDisplay::start(output, &progress);
    let outcome = verify(&context, repository, &options, &progress).await;
    display.finish().await;
    outcome
}

fn live_options(session: &Session, arguments: &VerifyArgs, seeds: Vec<NodeAddr>) -> Result<LiveOptions> {
    Ok(LiveOptions {
        seeds,
        prefer: arguments.live.prefer.into(),
        jobs_per_host: arguments.live.jobs_per_host,
        limit: session.open_options(&arguments.repo)?.limit,
        wait: arguments.live.live_wait,
    })
}

/// The record of an earlier run.
async fn kept(repository: &Repository, cluster: &str, id: &str) -> Result<VerifyRecord> {
    let ids = repository.verification_ids(cluster).await?;
    let found = if id == "latest" { ids.last() } else { ids.iter().find(|one| *one == id) };
    match found {
        Some(id) => Ok(repository.verification(cluster, id).await?),
        None => {
            let newest: Vec<&str> = ids.iter().rev().take(5).map(String::as_str).collect();
            let error =
                Error::new(ErrorKind::NotFound, format!("there is no verification `{id}` of {cluster}"));
            Err(error.hint(if newest.is_empty() {
                "none was made yet: slotkeep verify --repo …".to_owned()
            } else {
                format!("the newest: {}", newest.join(", "))
            }))
        }
    }
}

fn format_of(path: &Path) -> Result<report::Format> {
    match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("md") => Ok(report::Format::Markdown),
        Some("html") => Ok(report::Format::Html),
        Some("json") => Ok(report::Format::Json),
        _ => Err(Error::new(ErrorKind::Usage, format!("{}: what kind of report?", path.display()))
            .hint("end the name with .md, .html or .json")),
    }
}

fn write_report(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| {
        Error::new(ErrorKind::Failed, format!("can't write the report {}: {error}", path.display()))
            .hint("the record is in the repository: slotkeep verify --show latest --report FILE")
    })
}
