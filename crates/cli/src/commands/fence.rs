//! `slotkeep fence`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use slotkeep_format::FenceRecord;
use slotkeep_jobs::fence::{Action, LogReach, Member, NodeState, Outcome, Plan, Writes, await_log, members};
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::{KeptFence, Problem, RepoError, Repository};

use crate::args::{ClusterArgs, RepoArgs, span};
use crate::exit;
use crate::output::{Output, seconds, table, table_text};
use crate::session::Session;

/// Keep a cluster from taking writes, for instance before another takes its place
///
/// Every node refuses writes (-NOREPLICAS), in scripts and transactions too; reads, expiry and replication go on, and a replica that is
/// promoted refuses as well. What was set before is kept in --state or the repository, and --undo puts it back exactly. Nodes that can't be
/// reached are listed: they may take writes when they are back. Exits with 44 if there are any.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(crate) struct FenceArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    repo: RepoArgs,
    /// File in which to keep what was set before; without it, the repository
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Let the cluster take writes again
    #[arg(long, conflicts_with_all = ["shutdown", "status", "persist"])]
    undo: bool,
    /// Show which nodes may take writes, and change nothing
    #[arg(long, conflicts_with_all = ["shutdown", "persist"])]
    status: bool,
    /// Shut the nodes down, replicas first; needs --yes
    #[arg(long, conflicts_with = "persist")]
    shutdown: bool,
    /// Write the fence to the nodes' configuration files, so that it survives their restart
    #[arg(long)]
    persist: bool,
    /// When every node refuses writes: wait until the log in the repository holds all that they have accepted, at most so long, and say how
    /// to restore exactly that; `slotkeep archive` has to run
    #[arg(long, value_name = "TIME", value_parser = span, conflicts_with_all = ["undo", "shutdown", "dry_run"])]
    await_log: Option<Duration>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do what can't be undone
    #[arg(long)]
    yes: bool,
}

impl FenceArgs {
    fn action(&self) -> Action {
        match (self.undo, self.status, self.shutdown) {
            (true, _, _) => Action::Undo,
            (_, true, _) => Action::Status,
            (_, _, true) => Action::ShutDown,
            _ => Action::Fence { persist: self.persist },
        }
    }
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &FenceArgs) -> Result<u8> {
    let action = arguments.action();
    if action == Action::ShutDown && !arguments.yes && !arguments.dry_run {
        return Err(Error::new(ErrorKind::Usage, "--shutdown ends the servers of the cluster")
            .hint("look at what would be done with --dry-run, then add --yes"));
    }
    let (context, seeds) = session.cluster(&arguments.cluster)?;
    let kept = match arguments.await_log {
        // Before anything is fenced: without a repository there is nothing to wait for.
        Some(limit) => Some((session.repository(&arguments.repo).await?, limit)),
        None => None,
    };
    let memory = Memory::open(session, arguments, action).await?;
    let (members, before) = match memory.read(action).await? {
        Some(kept) if !kept.is_proved => {
            output.warn(UNPROVED);
            unproved(members(&context, &seeds, None).await?, kept.record)
        }
        kept => {
            let before = kept.map(|kept| kept.record);
            (members(&context, &seeds, before.as_ref()).await?, before)
        }
    };
    let plan = Plan::make(&context, action, members, before).await?;
    let mut outcome = if arguments.dry_run || action == Action::Status {
        Outcome { dry_run: arguments.dry_run, ..plan.preview() }
    } else {
        if let Some(record) = plan.record(&context)? {
            memory.write(&record).await?;
        }
        let (outcome, left) = plan.run(&context).await?;
        if let Some(left) = left {
            memory.write(&left).await?;
        }
        outcome
    };
    let is_fenced = outcome.open().next().is_none();
    if let Some(((repository, cluster), limit)) = kept.as_ref().filter(|_| is_fenced) {
        output.note("Every node refuses writes; waiting for the log…");
        outcome.log = Some(await_log(&context, (repository, cluster), &outcome.nodes, *limit).await?);
    }
    output.data(&outcome, render)?;
    if let Some(log) = outcome.log.as_ref().filter(|log| !log.complete) {
        return Err(behind(log));
    }
    let unfinished = match action {
        Action::Undo => {
            outcome.nodes.iter().any(|node| matches!(node.writes, Writes::Fenced | Writes::Unknown))
        }
        _ => outcome.open().next().is_some(),
    };
    Ok(if unfinished && !arguments.dry_run { exit::NOT_FENCED } else { exit::OK })
}

/// What to say of a record that the repository's key did not sign.
const UNPROVED: &str = "the record of this fence is not signed: an earlier version wrote it, or somebody else who can write to the repository. Only nodes that \
     the cluster itself names are asked; look at their min-replicas-to-write and min-replicas-max-lag after --undo";

/// Of a record that anybody may have written, what it says of nodes that the cluster itself names: no other is sent a password.
fn unproved(members: Vec<Member>, mut record: FenceRecord) -> (Vec<Member>, Option<FenceRecord>) {
    record.nodes.retain(|node| {
        members.iter().any(|member| match &member.id {
            Some(id) => node.id.as_ref() == Some(id),
            None => node.addr == member.addr,
        })
    });
    (members, Some(record))
}

fn behind(log: &LogReach) -> Error {
    let shards = log.behind().map(|shard| match shard.kept {
        Some(kept) => {
            format!("slots {} lack {} bytes", shard.slots, shard.offset.saturating_sub(kept))
        }
        None => format!("of slots {} it holds nothing that leads there", shard.slots),
    });
    let shards: Vec<String> = shards.collect();
    Error::new(
        ErrorKind::Gap,
        format!("the log in the repository does not hold every write that was accepted: {}", shards.join(", ")),
    )
    .hint("the fence stays: see to it that `slotkeep archive` runs and run this again, take `slotkeep backup --type incremental`, or let the old cluster go on with `slotkeep fence --undo`")
}

/// Where it is kept what was set before.
enum Memory {
    File(PathBuf),
    Repository(Box<Repository>, String),
    /// Only to look.
    None,
}

impl Memory {
    async fn open(session: &Session, arguments: &FenceArgs, action: Action) -> Result<Self> {
        if let Some(path) = &arguments.state {
            return Ok(Self::File(path.clone()));
        }
        match session.location_if_given(&arguments.repo)? {
            Some(_) => {
                let (repository, name) = session.repository(&arguments.repo).await?;
                if action != Action::Status {
                    // Before anything is set: what can't be written down can't be undone.
                    repository.check_signs()?;
                }
                Ok(Self::Repository(Box::new(repository), name))
            }
            None if action == Action::Status || arguments.dry_run => Ok(Self::None),
            None => Err(Error::new(ErrorKind::Usage, "nowhere to keep what the nodes have set now")
                .hint("give --state FILE or --repo DIR-OR-URL: --undo needs it")),
        }
    }

    /// What was set before. A record that the repository's key did not sign is no more than a help to look and to undo.
    async fn read(&self, action: Action) -> Result<Option<KeptFence>> {
        let proved = |record| KeptFence { record, is_proved: true };
        match (self, action) {
            (Self::File(path), _) => Ok(read_file(path)?.map(proved)),
            (Self::Repository(repository, cluster), Action::Status | Action::Undo) => {
                Ok(repository.fence_to_lift(cluster).await?)
            }
            (Self::Repository(repository, cluster), _) => Ok(repository.fence(cluster).await?.map(proved)),
            (Self::None, _) => Ok(None),
        }
    }

    async fn write(&self, record: &FenceRecord) -> Result<()> {
        match self {
            Self::File(path) => write_file(path, record),
            Self::Repository(repository, cluster) => Ok(repository.put_fence(cluster, record).await?),
            Self::None => Ok(()),
        }
    }
}

fn read_file(path: &Path) -> Result<Option<FenceRecord>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, "read", &error)),
    };
    let parsed = FenceRecord::parse(&bytes).map_err(|error| RepoError {
        doing: "read",
        on: path.display().to_string(),
        problem: Problem::from(error),
    });
    Ok(Some(parsed?))
}

/// Writes the file whole or not at all.
fn write_file(path: &Path, record: &FenceRecord) -> Result<()> {
    let json = record.render().map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
    let beside = path.with_extension("new");
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        std::io::Write::write_all(&mut file, &json)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&beside, path)).map_err(|error| unusable(path, "write", &error))
}

fn unusable(path: &Path, doing: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Failed, format!("can't {doing} {}: {error}", path.display()))
        .hint("name another file with --state; nothing was changed on the nodes")
}

fn render(outcome: &Outcome) -> String {
    let mut rows = table(&["node", "role", "slots", "writes", ""]);
    for node in &outcome.nodes {
        rows.add_row([
            node.addr.to_string(),
            node.role.unwrap_or("?").to_owned(),
            node.slots.to_string(),
            writes(node, outcome).to_owned(),
            node.remark.clone().unwrap_or_default(),
        ]);
    }
    let log = outcome.log.as_ref().map(|log| format!("\n{}", log_text(log))).unwrap_or_default();
    format!("{}\n\n{}{log}", table_text(&rows), closing(outcome))
}

fn log_text(log: &LogReach) -> String {
    if !log.complete {
        return "The log in the repository does not hold every write that they accepted.".to_owned();
    }
    format!(
        "The log in the repository holds every write that they accepted (after {}). To restore exactly that:\n--at-offset {}",
        seconds(Duration::from_millis(log.waited_ms)),
        log.at_offset
    )
}

fn writes(node: &NodeState, outcome: &Outcome) -> &'static str {
    match (outcome.dry_run && node.changed, outcome.action) {
        (true, Action::Undo) => "refused → to be taken again",
        (true, Action::ShutDown) => "to be shut down",
        (true, _) => "taken → to be refused",
        (false, _) => match node.writes {
            Writes::Fenced => "refused",
            Writes::Taken => "TAKEN",
            Writes::IfPromoted => "if promoted",
            Writes::Unknown => "UNKNOWN",
            Writes::Down => "shut down",
        },
    }
}

fn closing(outcome: &Outcome) -> String {
    let open: Vec<String> = outcome.open().map(|node| node.addr.to_string()).collect();
    let all = outcome.nodes.len();
    match (outcome.dry_run, outcome.action) {
        (true, _) => "Nothing was changed (--dry-run).".to_owned(),
        (false, Action::Undo) => {
            let left: Vec<String> = outcome
                .nodes
                .iter()
                .filter(|node| matches!(node.writes, Writes::Fenced | Writes::Unknown))
                .map(|node| node.addr.to_string())
                .collect();
            if left.is_empty() {
                "The fence is lifted: every node has what it had set before.".to_owned()
            } else {
                format!(
                    "Still fenced, or out of reach: {}. Run it again when they can be reached.",
                    left.join(", ")
                )
            }
        }
        (false, action) if open.is_empty() => match action {
            Action::ShutDown => format!("All {all} nodes are shut down."),
            _ => format!("All {all} nodes refuse writes."),
        },
        (false, _) => format!(
            "NOT FENCED: {} of {all} nodes may take writes, now or when they are back: {}.",
            open.len(),
            open.join(", ")
        ),
    }
}
