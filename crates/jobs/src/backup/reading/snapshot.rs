//! A base from the file of a `BGSAVE`, for an agent beside the data.
//!
//! The server forks at one moment and writes the file under another name; when it has renamed it, it is opened once and read through that
//! one descriptor, so that the next save, which puts another file in its place, does no harm.
//!
//! Invariants: a file that the server did not save after it was asked to is refused; history and offset are only those that the file
//! itself names, which the server wrote at the moment of the fork (`rdbSaveInfoAuxFields` in `src/rdb.c`), between two commands.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::manifest::{ReadRecord, ReadSource};
use slotkeep_model::{ReplId, ReplOffset};
use slotkeep_repo::layout::BaseLayout;
use slotkeep_wire::info::Info;
use slotkeep_wire::resp::Command;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::data_dirs::{DataDirs, setting};
use super::{Job, server_time};
use crate::archive::link::Interruption;
use crate::backup::base::{Announced, TakenBase, Taking};
use crate::backup::pipeline::Pipeline;
use crate::backup::plan::Candidate;
use crate::discover::read_info;
use crate::net::{Connection, LinkError, LinkProblem};
use crate::progress::{Phase, ShardProgress};
use crate::rdb_head::{HEAD_BYTES, RdbHead};
use crate::{Context, Error, ErrorKind, Result};

/// How often the server is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// How often a save is asked for where something else always comes first.
const TRIES: usize = 20;
const READ_BYTES: usize = 1 << 20;
const DEFAULT_FILE: &str = "dump.rdb";

/// A save that was asked for.
struct Saved {
    /// The server's time before it was asked.
    before: Timestamp,
    /// The server's time when it had forked.
    forked: Timestamp,
    path: PathBuf,
    /// The histories that the server knows: what it follows, and what it followed before.
    histories: Vec<ReplId>,
}

/// Takes the base of a shard from that node, whose folder is known.
pub(super) async fn take(
    job: &Job,
    dirs: &DataDirs,
    candidate: &Candidate,
    progress: &Arc<ShardProgress>,
) -> Result<TakenBase> {
    let dir = dirs.get(&candidate.addr).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("it is not known where the data of {} lies", candidate.addr))
    })?;
    progress.enter(Phase::Waiting);
    let saved = job.context.unless_stopped(save(&job.context, candidate, dir)).await?;
    let mut file = File::open(&saved.path).await.map_err(|error| unreadable(&saved.path, &error))?;
    let head = read_head(&mut file, &saved.path).await?;
    let (from, until) = moment(&head, &saved, candidate)?;
    let place = place(&head, &saved, candidate)?;
    let anchored = place.is_some();
    let (history, offset) = match place {
        Some(place) => place,
        None => (job.made_up_history()?, ReplOffset(0)),
    };
    let announced = Announced {
        source: candidate.addr.clone(),
        source_role: candidate.role.into(),
        server: candidate.server.into(),
        layout: BaseLayout::new(&job.options.cluster, &history, offset, &job.id),
        history,
        offset: offset.0,
        server_time: Some(until),
    };
    let mut taking = Taking::begin(&job.context, &job.repository, announced, progress).await?;
    let written = tokio::select! {
        written = pass_on(&mut file, &saved.path, &mut taking.pipeline) => written,
        () = job.context.stop.cancelled() => Err(Interruption::Other(Error::interrupted())),
    };
    let received = taking.end(&job.context, &job.repository, written, progress).await?;
    let mut base = received.store(&job.context, &job.repository).await?;
    base.read = Some(ReadRecord {
        source: ReadSource::Snapshot,
        from,
        until,
        anchored,
        database: head.database.filter(|_| anchored),
        without_functions: false,
        aof: None,
    });
    Ok(base)
}

/// Has the server save, and waits until it has.
async fn save(context: &Context, candidate: &Candidate, dir: &Path) -> Result<Saved> {
    let mut connection = context.connector.connect(&candidate.addr).await?;
    let file = setting(&mut connection, "dbfilename").await?;
    let path = dir.join(file.as_deref().unwrap_or(DEFAULT_FILE));
    let mut histories = histories(&read_info(&mut connection).await?, candidate)?;
    for _ in 0..TRIES {
        until_idle(context, &mut connection).await?;
        let before = server_time(context, &mut connection).await?;
        let reply = connection.exchange(&Command::new("BGSAVE")).await?;
        match reply.as_error() {
            None => {
                // The server has forked when it answers.
                let forked = server_time(context, &mut connection).await?;
                let info = until_idle(context, &mut connection).await?;
                if !persistence(&info, candidate)?.last_bgsave_ok {
                    let what = format!("{}: BGSAVE failed", candidate.addr);
                    return Err(Error::new(ErrorKind::Failed, what)
                        .hint("the server's log says why: often no space, or no memory to fork"));
                }
                histories.extend(self::histories(&info, candidate)?);
                return Ok(Saved { before, forked: forked.max(before), path, histories });
            }
            // A save or a rewrite that began just now.
            Some(text) if text.contains("in progress") || text.contains("child process") => {
                context.clock.sleep(LOOK).await;
            }
            Some(text) => {
                let problem = LinkProblem::from_reply("BGSAVE", text);
                let error = LinkError { node: candidate.addr.clone(), problem };
                return Err(match &error.problem {
                    LinkProblem::NoPermission { .. } | LinkProblem::UnknownCommand { .. } => {
                        Error::new(ErrorKind::Permission, error.to_string()).hint(
                            "allow it (+bgsave +info +time +config|get), or read key by key: --source scan",
                        )
                    }
                    _ => error.into(),
                });
            }
        }
    }
    let what = format!("{}: saves and rewrites follow one another without a pause", candidate.addr);
    Err(Error::new(ErrorKind::Unreachable, what).hint("run it again when the server is less busy"))
}

/// Waits until neither a snapshot nor a rewrite is under way.
async fn until_idle(context: &Context, connection: &mut Connection) -> Result<Info> {
    loop {
        let info = read_info(connection).await?;
        let state = info.persistence().map_err(|error| odd(connection, &error.to_string()))?;
        if !state.bgsave_in_progress && !state.aof_rewrite_in_progress {
            return Ok(info);
        }
        context.clock.sleep(LOOK).await;
    }
}

fn odd(connection: &Connection, words: &str) -> Error {
    LinkError { node: connection.node().clone(), problem: LinkProblem::Protocol(words.to_owned()) }.into()
}

fn persistence(info: &Info, candidate: &Candidate) -> Result<slotkeep_wire::info::Persistence> {
    info.persistence().map_err(|error| senseless(candidate, &error.to_string()))
}

fn histories(info: &Info, candidate: &Candidate) -> Result<Vec<ReplId>> {
    let replication = info.replication().map_err(|error| senseless(candidate, &error.to_string()))?;
    Ok(std::iter::once(replication.replid).chain(replication.previous_replid).collect())
}

fn senseless(candidate: &Candidate, words: &str) -> Error {
    LinkError { node: candidate.addr.clone(), problem: LinkProblem::Protocol(words.to_owned()) }.into()
}

/// What the RDB says of itself; the file stands at its beginning afterwards.
async fn read_head(file: &mut File, path: &Path) -> Result<RdbHead> {
    let mut bytes = Vec::new();
    let read = async {
        (&mut *file).take(HEAD_BYTES as u64).read_to_end(&mut bytes).await?;
        file.rewind().await
    };
    read.await.map_err(|error| unreadable(path, &error))?;
    RdbHead::of(&bytes).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("{} can't be read: {error}", path.display()))
            .hint("check that --data-dir is the folder of that server, and its disk")
    })
}

/// Between which moments the server forked for the file. Fails if that was before it was asked to save.
fn moment(head: &RdbHead, saved: &Saved, candidate: &Candidate) -> Result<(Timestamp, Timestamp)> {
    let path = saved.path.display();
    let strange = |why: String| {
        Error::new(ErrorKind::Failed, format!("{path} is not what {} has just saved: {why}", candidate.addr))
            .hint(format!("name the folder of that server: --data-dir {}=DIR", candidate.addr))
    };
    let created_s = head.created_s.ok_or_else(|| strange("it does not say when it was made".to_owned()))?;
    if created_s < saved.before.as_second() {
        let made = Timestamp::from_second(created_s).map(|at| at.to_string()).unwrap_or_default();
        return Err(strange(format!("it was made at {made}, the save began at {}", saved.before)));
    }
    if created_s <= saved.forked.as_second().saturating_add(1) {
        return Ok((saved.before, saved.forked));
    }
    // Somebody else's save has replaced the file already: that one is as good.
    let second = |at: i64| {
        Timestamp::from_second(at)
            .map_err(|_| strange("it says that it was made at no time at all".to_owned()))
    };
    Ok((second(created_s)?, second(created_s.saturating_add(1))?))
}

/// The history and the offset that the file names, if it does. Fails if the history is none of the server's.
fn place(head: &RdbHead, saved: &Saved, candidate: &Candidate) -> Result<Option<(ReplId, ReplOffset)>> {
    let Some(((history, offset), _)) = head.history.clone().zip(head.offset).zip(head.database) else {
        return Ok(None);
    };
    if saved.histories.contains(&history) {
        return Ok(Some((history, ReplOffset(offset))));
    }
    let what =
        format!("{} is of history {history}, which is none of {}'s", saved.path.display(), candidate.addr);
    Err(Error::new(ErrorKind::Failed, what).hint(format!(
        "name the folder of that server: --data-dir {}=DIR; if it has failed over just now, run it again",
        candidate.addr
    )))
}

/// Gives a file to a pipeline, from where it stands to its end.
pub(super) async fn pass_on(
    file: &mut File,
    path: &Path,
    pipeline: &mut Pipeline,
) -> Result<(), Interruption> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).await.map_err(|error| unreadable(path, &error))?;
        if read == 0 {
            return Ok(());
        }
        pipeline.write(buffer.get(..read).unwrap_or_default()).await?;
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let what = format!("can't read {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::Failed, what)
            .hint("name the folder of that server as this machine sees it: --data-dir HOST:PORT=DIR"),
        io::ErrorKind::PermissionDenied => Error::new(ErrorKind::Failed, what)
            .hint("run as the user that the server runs as, or let this user read the folder"),
        _ => Error::new(ErrorKind::Failed, what),
    }
}

#[cfg(test)]
mod tests {
    use slotkeep_model::{Product, RdbVersion};
    use slotkeep_rdb::RdbWriter;

    use super::*;

    fn head(fields: &[(&str, &str)]) -> RdbHead {
        let mut bytes = Vec::new();
        let version = RdbVersion { product: Product::Redis, number: 10 };
        let mut writer = RdbWriter::new(version, &mut bytes).unwrap();
        for (name, value) in fields {
            writer.aux(name.as_bytes(), value.as_bytes(), &mut bytes);
        }
        writer.finish(&mut bytes);
        RdbHead::of(&bytes).unwrap()
    }

    #[test]
    fn a_file_names_its_place_with_all_three_fields_or_not_at_all() {
        let id = "a".repeat(40);
        let whole = head(&[
            ("redis-ver", "7.0.15"),
            ("ctime", "1700000000"),
            ("repl-stream-db", "3"),
            ("repl-id", &id),
            ("repl-offset", "18446744073709551615"),
        ]);
        assert_eq!(whole.created_s, Some(1_700_000_000));
        assert_eq!((whole.offset, whole.database), (Some(u64::MAX), Some(3)));
        assert_eq!(whole.history.unwrap().as_str(), id);
        let none = head(&[("ctime", "1700000000"), ("repl-offset", "x")]);
        assert_eq!((none.history, none.offset, none.database), (None, None, None));
        assert!(RdbHead::of(b"not an RDB at all").is_err());
    }
}
