//! `slotkeep restore --to-dir`: data directories of a new cluster.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;
use slotkeep_format::manifest::RoleRecord;
use slotkeep_jobs::log::apply::feed;
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::restore::files::{
    FilesOptions, FilesPlan, Links, NodePlan, Source, StartedNode, StockServer, UsersPolicy, apply,
    check_start, plan, start, start_following,
};
use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_model::{Product, ServerVersion};
use slotkeep_repo::Repository;

use super::RestoreArgs;
use super::aim::{Recovery, Wanted, render as render_recovery};
use super::old::Opening;
use crate::exit;
use crate::output::{Output, bytes, count, seconds, table, table_text};
use crate::progress::ByteDisplay;
use crate::session::{Session, parse_addr};

/// Options of a restore to data directories.
#[derive(Debug, Args)]
#[command(next_help_heading = "To data directories of a new cluster")]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(crate) struct FilesArgs {
    /// Folder to make the nodes' data directories in; must not exist, or be empty
    #[arg(long, value_name = "DIR", requires = "nodes")]
    pub(super) to_dir: Option<PathBuf>,
    /// Addresses of the new nodes: as many as the backup has primaries and replicas
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', requires = "to_dir")]
    nodes: Vec<String>,
    /// Leave the replicas out: as many addresses as the backup has primaries
    #[arg(long, requires = "to_dir")]
    no_replicas: bool,
    /// The server that will load the files, such as redis-7.0.15; the recorded one if not given
    #[arg(long, value_name = "PRODUCT-VERSION", requires = "to_dir", conflicts_with = "start", value_parser = parse_server)]
    for_server: Option<ServerVersion>,
    /// Start the nodes here when they are restored, and wait until the cluster is up
    #[arg(long, requires = "to_dir")]
    start: bool,
    /// Server program to start; `valkey-server` or `redis-server` from the PATH if not given
    #[arg(long, value_name = "PATH", requires = "start")]
    server: Option<PathBuf>,
    /// How the data gets into the nodes that are started: from files in their folders, or over a replication link from here, as
    /// though from their primaries
    #[arg(long, value_name = "WAY", requires = "start", default_value = "files", hide_default_value = true)]
    via: Via,
    /// Start them although the cluster that the backup was taken from still takes writes: to try a restore out, not to replace it
    #[arg(long, requires = "start")]
    beside_old: bool,
    /// File whose first line becomes the default user's password
    #[arg(long, value_name = "FILE", requires = "to_dir")]
    new_password_file: Option<PathBuf>,
    /// Leave users and passwords out: whoever reaches the nodes may do everything
    #[arg(long, requires = "to_dir", conflicts_with = "new_password_file")]
    no_acl: bool,
}

/// How data gets into nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Via {
    /// The nodes find it in their folders
    Files,
    /// The nodes follow this command until they have it
    Link,
}

/// What was restored, or would be.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    #[serde(flatten)]
    plan: &'a FilesPlan,
    /// How the log leads to the point; absent where a backup is restored that has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<Recovery<'a>>,
    /// The running nodes; absent without `--start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Vec<StartedNode>>,
    seconds: f64,
}

pub(crate) async fn run(
    session: &Session,
    output: &Output,
    arguments: &RestoreArgs,
    repository: &Repository,
    wanted: &Wanted,
    folder: &Path,
) -> Result<u8> {
    let files = &arguments.files;
    // The new nodes' users come from the backup; this is the way to the old ones.
    let context = session.context(arguments.live.access())?;
    let began = context.clock.elapsed();
    let server = match (&files.server, files.start) {
        (_, false) => None,
        (Some(program), true) => Some(StockServer::at(program).await?),
        (None, true) => Some(StockServer::on_path(&wanted.point).await?),
    };
    let links = match files.via {
        Via::Files => None,
        Via::Link => Some(bind(wanted).await?),
    };
    let options = FilesOptions {
        folder: folder.to_owned(),
        nodes: files.nodes.iter().map(|text| parse_addr(text)).collect::<Result<_>>()?,
        no_replicas: files.no_replicas,
        target: server.as_ref().map(|server| server.version).or(files.for_server),
        allow_partial: arguments.allow_partial,
        users: users(files)?,
        links: links.as_ref().map(Links::addrs).unwrap_or_default(),
        joining: None,
        tls: None,
    };
    let plan = plan(&context, &wanted.point, &options).await?;
    let opening = Opening::new(&context, output, repository, &plan.cluster, wanted, files.beside_old).await?;
    if server.is_some() {
        opening.check(output, &options.nodes).await?;
        check_start(&context, &plan)?;
    }
    for warning in &plan.warnings {
        output.warn(warning);
    }
    let mut report = Report {
        dry_run: arguments.dry_run,
        plan: &plan,
        recovery: wanted.recovery(),
        started: None,
        seconds: 0.0,
    };
    if !arguments.dry_run {
        let source = Source { repository: repository.clone(), past: wanted.past.clone() };
        write(output, &context, &source, &plan).await?;
        if let Some(server) = &server {
            output.note(&format!("Starting {} ({})…", server.version, nodes_in_words(plan.nodes.len())));
            let tell = |waiting: &str| output.note(&format!("  {waiting}"));
            let started = match links {
                None => {
                    opening.check_again().await?;
                    start(&context, &plan, server, tell).await?
                }
                Some(links) => {
                    let shards = Shards { context: &context, repository, wanted, opening: &opening };
                    lead(output, &shards, &plan, server, links).await?
                }
            };
            report.started = Some(started);
        }
    }
    report.seconds = context.clock.elapsed().saturating_sub(began).as_secs_f64();
    output.data(&report, render)?;
    Ok(exit::OK)
}

/// Where the primaries to be are going to follow us.
async fn bind(wanted: &Wanted) -> Result<Links> {
    if wanted.point.has_relative_times() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a log of Redis before 7.0 can't be passed on over a link",
        )
        .hint("restore it as files: leave --via out"));
    }
    Links::bind(Ipv4Addr::LOCALHOST.into(), wanted.point.shards.len()).await
}

/// What the nodes get.
struct Shards<'a> {
    context: &'a Context,
    repository: &'a Repository,
    wanted: &'a Wanted,
    opening: &'a Opening<'a>,
}

/// Starts the nodes and is their primary until they have the bases, and the log behind them.
async fn lead(
    output: &Output,
    shards: &Shards<'_>,
    plan: &FilesPlan,
    server: &StockServer,
    links: Links,
) -> Result<Vec<StartedNode>> {
    let mut feeds = Vec::new();
    let mut rows = Vec::new();
    let point = &shards.wanted.point;
    for (shard, state) in point.manifest.shards.iter().zip(&point.shards) {
        let feed = feed(shards.repository, shards.wanted.past.as_ref(), shard, state).await?;
        let bytes = feed.base.len_bytes.saturating_add(state.log_bytes);
        rows.push((ShardProgress::new(format!("slots {}", shard.slots)), bytes));
        feeds.push(feed);
    }
    let display = ByteDisplay::start(output, &rows);
    let progress: Vec<_> = rows.into_iter().map(|(progress, _)| progress).collect();
    let tell = |waiting: &str| output.note(&format!("  {waiting}"));
    let may_open = shards.opening.check_again();
    let following = (links, feeds);
    let started = start_following(shards.context, plan, server, following, &progress, may_open, tell).await;
    display.finish().await;
    started
}

async fn write(output: &Output, context: &Context, source: &Source, plan: &FilesPlan) -> Result<()> {
    let primaries = plan.nodes.iter().filter_map(|node| Some((node, node.dataset.as_ref()?)));
    let rows: Vec<(Arc<ShardProgress>, u64)> = primaries
        .map(|(node, dataset)| (ShardProgress::new(node.addr.to_string()), dataset.bytes()))
        .collect();
    let display = ByteDisplay::start(output, &rows);
    let progress: Vec<_> = rows.into_iter().map(|(progress, _)| progress).collect();
    let outcome = apply(context, source, plan, &progress).await;
    display.finish().await;
    outcome
}

fn users(files: &FilesArgs) -> Result<UsersPolicy> {
    if files.no_acl {
        return Ok(UsersPolicy::None);
    }
    let path = files.new_password_file.as_deref();
    path.map_or(Ok(UsersPolicy::AsRecorded), |path| new_password(path).map(UsersPolicy::NewPassword))
}

/// The first line of a file.
pub(in crate::commands) fn new_password(path: &Path) -> Result<String> {
    let refuse = |why: String| {
        Error::new(ErrorKind::Usage, format!("can't use password file {}: {why}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(refuse("its first line is empty".to_owned())),
    }
}

fn parse_server(text: &str) -> Result<ServerVersion, String> {
    let (product, version) = text.split_once('-').unwrap_or((text, ""));
    let product = match product {
        "redis" => Some(Product::Redis),
        "valkey" => Some(Product::Valkey),
        _ => None,
    };
    product
        .and_then(|product| ServerVersion::parse(product, version))
        .ok_or_else(|| "expected redis or valkey, a dash and a version, as in redis-7.0.15".to_owned())
}

fn render(report: &Report<'_>) -> String {
    let plan = report.plan;
    let mut rows =
        table(&["node", "role", "slots", "takes the place of", "dataset", "RDB>", "log>", "keys>"]);
    for node in &plan.nodes {
        rows.add_row([
            node.addr.to_string(),
            role(node),
            node.slots.to_string(),
            node.replaces.to_string(),
            node.dataset
                .as_ref()
                .map_or_else(|| "-".to_owned(), |dataset| dataset.path.display().to_string()),
            node.dataset.as_ref().map_or_else(String::new, |dataset| bytes(dataset.object.raw_bytes)),
            log_of(node).map(bytes).unwrap_or_default(),
            keys(report, node).map(count).unwrap_or_default(),
        ]);
    }
    let way = report.recovery.as_ref().map(|recovery| render_recovery(recovery) + "\n\n").unwrap_or_default();
    format!("{way}{}\n\n{}", table_text(&rows), conclusion(report))
}

fn log_of(node: &NodePlan) -> Option<u64> {
    node.dataset.as_ref().and_then(|dataset| dataset.log.as_ref()).map(|log| log.bytes)
}

fn nodes_in_words(nodes: usize) -> String {
    if nodes == 1 { "one node".to_owned() } else { format!("{nodes} nodes") }
}

fn role(node: &NodePlan) -> String {
    match (&node.role, &node.follows) {
        (RoleRecord::Primary, _) => "primary".to_owned(),
        (RoleRecord::Replica, Some(primary)) => format!("replica of {primary}"),
        (RoleRecord::Replica, None) => "replica".to_owned(),
    }
}

fn keys(report: &Report<'_>, node: &NodePlan) -> Option<u64> {
    let name = node.addr.to_string();
    report.started.as_ref()?.iter().find(|started| started.addr == name).map(|started| started.keys)
}

/// What is restored, as the beginning of a sentence.
fn what(report: &Report<'_>) -> String {
    let backup = &report.plan.backup;
    report.recovery.as_ref().map_or_else(|| format!("Backup {backup}"), |recovery| recovery.what(backup))
}

fn conclusion(report: &Report<'_>) -> String {
    let plan = report.plan;
    let (backup, target, folder) = (what(report), plan.target, plan.folder.display());
    let took = seconds(std::time::Duration::from_secs_f64(report.seconds.max(0.0)));
    if report.dry_run {
        return format!("{backup} would be restored for {target} to {folder}. Nothing was written.");
    }
    if report.started.is_some() {
        let replicas = plan.nodes.iter().any(|node| node.follows.is_some());
        let up = match (plan.cluster_mode, replicas) {
            (true, true) => ": cluster_state:ok on every node, every replica follows its primary",
            (true, false) => ": cluster_state:ok on every node",
            (false, true) => ": every replica follows its primary",
            (false, false) => "",
        };
        return format!("{backup} restored to {folder} and started with {target} in {took}{up}.");
    }
    let example = plan.nodes.first().map(|node| node.config_file.display().to_string()).unwrap_or_default();
    let program = match plan.target.product {
        Product::Redis => "redis-server",
        Product::Valkey => "valkey-server",
    };
    format!(
        "{backup} restored for {target} to {folder} in {took}. Start each node with its file: `{program} {example}`."
    )
}
