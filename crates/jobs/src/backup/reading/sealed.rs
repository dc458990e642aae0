//! A shard from the files that the server's own `BACKUP` seals: a fresh base and the commands behind it, pinned by hard links so that no rewrite of
//! the append-only file takes them away.
//!
//! Source: the reference of the `BACKUP` commands of Redis 8.10 and its section on persistence, and the server's own test
//! (`tests/integration/backup.tcl`). It was written against these, not tried with such a server.
//!
//! Invariants: a backup that somebody else has begun on the server is left alone; one that was begun here is aborted or cleaned up whatever
//! comes of it, so that the server keeps no files; its files are read only once it is sealed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::manifest::ReadSource;
use slotkeep_model::Shard;
use slotkeep_wire::resp::{Command, Value};

use super::aof::rdb_version;
use super::aof_files::AofFiles;
use super::aof_line::{self, AofSet};
use super::aof_log::unreadable;
use super::data_dirs::DataDirs;
use super::{Job, Taken, server_time};
use crate::backup::plan::Candidate;
use crate::net::{Connection, LinkError, LinkProblem};
use crate::progress::{Phase, ShardProgress};
use crate::{Context, Error, ErrorKind, Result};

/// How often the server is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// What `BACKUP STATUS` tells.
struct Status {
    state: String,
    error: String,
}

/// Takes the shard from that node, whose folder is known.
pub(super) async fn take(
    job: &Job,
    dirs: &DataDirs,
    shard: &Shard,
    candidate: &Candidate,
    progress: &Arc<ShardProgress>,
) -> Result<Taken> {
    let dir = dirs.get(&candidate.addr).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("it is not known where the data of {} lies", candidate.addr))
    })?;
    progress.enter(Phase::Waiting);
    let mut connection = job.context.connector.connect(&candidate.addr).await?;
    let before = job.context.unless_stopped(status(&mut connection)).await?;
    if !["idle", "failed"].contains(&before.state.as_str()) {
        let what = format!("{} has a backup of somebody else's, which is {}", candidate.addr, before.state);
        return Err(Error::new(ErrorKind::Failed, what).hint(
            "wait until it is over; if nobody will end it: BACKUP ABORT, or BACKUP CLEANUP once it is sealed",
        ));
    }
    expect_ok(&mut connection, "START").await?;
    let outcome = async {
        let (from, until) = job.context.unless_stopped(seal(&job.context, &mut connection)).await?;
        let set = open(&mut connection, dir, (from, until)).await?;
        aof_line::take(job, shard, candidate, set, progress).await
    };
    let outcome = Box::pin(outcome).await;
    drop(connection);
    let tidied = tidy(&job.context, candidate).await;
    match (outcome, tidied) {
        (Ok(taken), Err(error)) => {
            // What was stored is whole; the server's disk is not, and the next backup would be refused.
            tracing::warn!(node = %candidate.addr, %error, "the files of the server's own backup stay there");
            Ok(taken)
        }
        (outcome, _) => outcome,
    }
}

/// Waits for the base, and seals; gives the moments between which that was.
async fn seal(context: &Context, connection: &mut Connection) -> Result<(Timestamp, Timestamp)> {
    loop {
        let now = status(connection).await?;
        match now.state.as_str() {
            "pending" | "snapshotting" => context.clock.sleep(LOOK).await,
            "incrementing" => break,
            other => {
                let why = if now.error.is_empty() { String::new() } else { format!(": {}", now.error) };
                let what = format!(
                    "{}: the server's own backup is {other} before it was sealed{why}",
                    connection.node()
                );
                return Err(Error::new(ErrorKind::Failed, what)
                    .hint("the server's log says why: often no space, or no memory to fork"));
            }
        }
    }
    let from = server_time(context, connection).await?;
    expect_ok(connection, "SEAL").await?;
    let until = server_time(context, connection).await?;
    Ok((from, until.max(from)))
}

/// Opens the sealed files: those that the list names, in the folder as this machine sees it.
async fn open(
    connection: &mut Connection,
    dir: &Path,
    (from, until): (Timestamp, Timestamp),
) -> Result<AofSet> {
    let strange = |what: &str, node| Error::new(ErrorKind::Failed, format!("{node}: BACKUP LIST {what}"));
    let reply = ask(connection, "LIST").await?;
    let listed = reply.as_array().unwrap_or_default().iter().filter_map(Value::as_text);
    let listed: Vec<&Path> = listed.map(Path::new).collect();
    let manifest = listed.iter().find(|path| path.extension().is_some_and(|end| end == "manifest"));
    let manifest = manifest.ok_or_else(|| strange("names no manifest", connection.node()))?;
    let folder = manifest.parent().and_then(Path::file_name);
    let folder = dir.join(folder.ok_or_else(|| strange("names a file in no folder", connection.node()))?);
    let manifest = folder.join(manifest.file_name().unwrap_or_default());
    let opened = AofFiles::open(&folder, &manifest).await.map_err(|error| unreadable(&manifest, &error))?;
    let mut files = opened.ok_or_else(|| strange("names files that are gone", connection.node()))?;
    let is_listed = |name: &str| listed.iter().any(|path| path.file_name().is_some_and(|own| own == name));
    if !files.files.iter().all(|file| is_listed(&file.name)) {
        return Err(strange("does not name what the manifest names", connection.node())
            .hint("check that --data-dir is the folder of that server"));
    }
    if rdb_version(&mut files, &folder).await?.is_none() || files.files.len() < 2 {
        let what = format!(
            "{}: the base of the server's own backup is no RDB (aof-use-rdb-preamble no), or no commands stand behind it",
            connection.node()
        );
        return Err(Error::new(ErrorKind::Unsupported, what)
            .hint("set aof-use-rdb-preamble yes, or --files-from snapshot"));
    }
    let base = files.files.remove(0);
    Ok(AofSet { source: ReadSource::Backup, base, increments: files.files, folder, from, until })
}

/// Has the server give up the files, however far it came. On a connection of its own: a stop may have left half an answer on the other one.
async fn tidy(context: &Context, candidate: &Candidate) -> Result<()> {
    let mut connection = context.connector.connect(&candidate.addr).await?;
    let unsealed = ["pending", "snapshotting", "incrementing"];
    // A seal that was under way when the other connection was left may come first.
    if unsealed.contains(&status(&mut connection).await?.state.as_str())
        && let Err(error) = expect_ok(&mut connection, "ABORT").await
        && unsealed.contains(&status(&mut connection).await?.state.as_str())
    {
        return Err(error);
    }
    expect_ok(&mut connection, "CLEANUP").await
}

async fn status(connection: &mut Connection) -> Result<Status> {
    let reply = ask(connection, "STATUS").await?;
    let field = |name: &str| reply.get(name).and_then(Value::as_text).map(str::to_owned);
    let state = field("state").ok_or_else(|| {
        let problem = LinkProblem::Protocol("BACKUP STATUS names no state".to_owned());
        Error::from(LinkError { node: connection.node().clone(), problem })
    })?;
    Ok(Status { state, error: field("error").unwrap_or_default() })
}

async fn expect_ok(connection: &mut Connection, what: &str) -> Result<()> {
    ask(connection, what).await.map(drop)
}

/// The reply to one of the commands, if it is no error.
async fn ask(connection: &mut Connection, what: &str) -> Result<Value> {
    let reply = connection.exchange(&Command::new("BACKUP").arg(what)).await?;
    let Some(text) = reply.as_error() else { return Ok(reply) };
    let problem = LinkProblem::from_reply("BACKUP", text);
    let error = LinkError { node: connection.node().clone(), problem };
    Err(match &error.problem {
        LinkProblem::UnknownCommand { .. } => {
            Error::new(ErrorKind::Unsupported, format!("{} knows no BACKUP: {error}", connection.node()))
                .hint("Redis has it from 8.10 on; read other files: --files-from snapshot, or aof")
        }
        LinkProblem::NoPermission { .. } => Error::new(ErrorKind::Permission, error.to_string())
            .hint("allow it (+backup +info +time +config|get)"),
        _ => Error::new(ErrorKind::Failed, format!("{}: BACKUP {what}: {text}", connection.node())).hint(
            "`BACKUP STATUS` on that server tells more; its backupdirname must be empty before a backup",
        ),
    })
}
