//! A shard from its append-only file, for an agent beside the data where no fork is wanted.
//!
//! Where the file's base is an RDB, base and commands are stored as they stand there ([`super::aof_line`]). Where it is commands itself
//! (`aof-use-rdb-preamble no`), an engine follows our link as it does for a log (`fold`) and gives the base; the commands of the file are those of
//! the replication stream. What the server was just writing is cut off at the last whole command outside a transaction.
//!
//! Invariants: the files are opened as they belong together, and their sum is what the server says that it has written; what is stored is
//! made of exactly the bytes up to the cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use slotkeep_format::manifest::{ReadRecord, ReadSource};
use slotkeep_model::{Product, RdbVersion, ReplOffset, ServerVersion, Shard};
use slotkeep_rdb::RdbWriter;
use slotkeep_wire::info::Info;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::aof_files::{AofFile, AofFiles};
use super::aof_line::{self, AofSet, KnownLines};
use super::aof_log::{AofCut, AofLog, READ_BYTES, scan_live, unreadable};
use super::data_dirs::{DataDirs, setting};
use super::{Job, Taken, server_time};
use crate::backup::base::TakenBase;
use crate::backup::plan::Candidate;
use crate::discover::read_info;
use crate::engine::{EngineNeeds, EngineOptions, choose_engine};
use crate::fold::{FoldDestination, FoldInput, FoldProgress, fold};
use crate::link::{Feed, Snapshot};
use crate::net::Connection;
use crate::progress::{Phase, ShardProgress};
use crate::source::ByteSource;
use crate::{Context, Error, ErrorKind, Result};

/// How often the files are looked for before they are taken for another server's.
const TRIES: usize = 50;
const LOOK: Duration = Duration::from_millis(100);
/// With `appendfsync everysec`, while an fsync lasts, a server holds commands back for up to two seconds, by a clock of whole seconds
/// (`flushAppendOnlyFile` in `src/aof.c`).
const HELD_BACK: SignedDuration = SignedDuration::from_secs(3);

/// The files, and between which moments their end was.
struct Opened {
    files: AofFiles,
    folder: PathBuf,
    from: Timestamp,
    until: Timestamp,
}

/// Takes a shard from that node, whose folder is known: whole, or behind one of the backups that are `known`.
pub(super) async fn take(
    job: &Job,
    (dirs, options): (&DataDirs, &EngineOptions),
    known: Option<&KnownLines>,
    shard: &Shard,
    candidate: &Candidate,
    progress: &Arc<ShardProgress>,
) -> Result<Taken> {
    let server = candidate.server;
    if server.product == Product::Redis && server.major < 7 {
        let what = format!(
            "{server} keeps its append-only file in one piece, which can't be read while it is rewritten"
        );
        return Err(
            Error::new(ErrorKind::Unsupported, what).hint("read its snapshots: --files-from snapshot")
        );
    }
    let dir = dirs.get(&candidate.addr).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("it is not known where the data of {} lies", candidate.addr))
    })?;
    progress.enter(Phase::Waiting);
    let mut opened = job.context.unless_stopped(open(&job.context, candidate, dir)).await?;
    let base = rdb_version(&mut opened.files, &opened.folder).await?;
    let has_commands = opened.files.files.len() > 1;
    match known {
        _ if base.is_some() && has_commands => {
            let Opened { mut files, folder, from, until } = opened;
            let base = files.files.remove(0);
            let source = ReadSource::Aof;
            let set = AofSet { source, base, increments: files.files, folder, from, until };
            match known {
                None => aof_line::take(job, shard, candidate, set, progress).await,
                Some(known) => aof_line::go_on(job, known, shard, candidate, set).await,
            }
        }
        None => folded(job, options, candidate, opened, base, progress).await,
        Some(_) => {
            let what = format!(
                "the base of the append-only file of {} is no RDB (aof-use-rdb-preamble no): no log is kept behind it",
                candidate.addr
            );
            Err(Error::new(ErrorKind::Gap, what)
                .hint("take a full backup (--type full), or set aof-use-rdb-preamble yes and have the file rewritten"))
        }
    }
}

/// Has an engine apply all of it.
async fn folded(
    job: &Job,
    options: &EngineOptions,
    candidate: &Candidate,
    opened: Opened,
    base: Option<RdbVersion>,
    progress: &Arc<ShardProgress>,
) -> Result<Taken> {
    let (context, server) = (&job.context, candidate.server);
    let Opened { mut files, folder, from, until } = opened;
    let base = BaseFile::split_off(&mut files, base, server, &folder)?;
    let needs = EngineNeeds { rdb: base.version(), source: Some(server) };
    let engine = choose_engine(options, &needs).await?;
    let scanned = scan_live(context, &mut files.files, &folder, AofCut::START, u64::MAX);
    let cut = context.unless_stopped(scanned).await?.end;
    let log = AofLog::new(files.files, folder, AofCut::START, cut);
    let history = job.made_up_history()?;
    let snapshot = Snapshot { len_bytes: base.bytes(), source: base, history, offset: ReplOffset(0) };
    let feed = Feed { base: snapshot, log, cut: ReplOffset(cut.offset) };
    let input = FoldInput { feed, needs, time_of: None };
    let destination =
        FoldDestination { repository: &job.repository, cluster: &job.options.cluster, backup_id: &job.id };
    let progress = FoldProgress { fed_bytes: AtomicU64::new(0), capture: Arc::clone(progress) };
    let folded = Box::pin(fold(context, &engine, options, input, &destination, &progress)).await?;
    let read = ReadRecord {
        source: ReadSource::Aof,
        from,
        until: until.max(from),
        anchored: false,
        database: None,
        without_functions: false,
        aof: None,
    };
    Ok(Taken { base: TakenBase::folded(folded, candidate, read), cut: None })
}

/// Opens the files that the server writes to.
async fn open(context: &Context, candidate: &Candidate, dir: &Path) -> Result<Opened> {
    let mut connection = context.connector.connect(&candidate.addr).await?;
    let mut named = async |name: &str, default: &str| {
        let value = setting(&mut connection, name).await?;
        Ok::<_, Error>(value.unwrap_or_else(|| default.to_owned()))
    };
    let folder = dir.join(named("appenddirname", "appendonlydir").await?);
    let manifest = folder.join(format!("{}.manifest", named("appendfilename", "appendonly.aof").await?));
    let is_its_own = named("dir", "").await?.as_str() == dir.as_os_str();
    let held_back = match named("appendfsync", "everysec").await?.as_str() {
        "always" | "no" => SignedDuration::ZERO,
        _ => HELD_BACK,
    };
    let mut why = String::new();
    for _ in 0..TRIES {
        let from = server_time(context, &mut connection).await?;
        let before = written(&mut connection, candidate).await?;
        let Some(before) = before else {
            "it is making a new base, or could not make one".clone_into(&mut why);
            context.clock.sleep(LOOK).await;
            continue;
        };
        let opened =
            AofFiles::open(&folder, &manifest).await.map_err(|error| unreadable(&manifest, &error))?;
        let after = written(&mut connection, candidate).await?;
        let until = server_time(context, &mut connection).await?;
        match (opened, after) {
            (Some(files), Some(after)) => {
                let (all, increments) = files.bytes();
                // Redis 7.0 does not count the empty base that it began with.
                let as_told = [all, increments].iter().any(|bytes| (before..=after).contains(bytes));
                // A server that cut off the end of its file when it started goes on counting it (seen with Redis 7.0).
                if as_told || (is_its_own && all < before) {
                    let from = from.checked_sub(held_back).unwrap_or(from);
                    return Ok(Opened { files, folder, from, until });
                }
                why = format!("it says that it has written {before} to {after} bytes, the files have {all}");
            }
            _ => "it was rewriting them".clone_into(&mut why),
        }
        context.clock.sleep(LOOK).await;
    }
    let what = format!(
        "the files that {} names are not those that {} writes: {why}",
        manifest.display(),
        candidate.addr
    );
    Err(Error::new(ErrorKind::Failed, what).hint(format!(
        "name the folder of that server: --data-dir {}=DIR; if the server is rewriting its append-only file, run it again",
        candidate.addr
    )))
}

/// How many bytes the server has written to the files that its manifest names; nothing while it has no base for what it writes, or may have
/// none.
async fn written(connection: &mut Connection, candidate: &Candidate) -> Result<Option<u64>> {
    let info: Info = read_info(connection).await?;
    let state = info
        .persistence()
        .map_err(|error| Error::new(ErrorKind::Failed, format!("{}: {error}", candidate.addr)))?;
    if !state.aof_enabled {
        let what = format!("{} keeps no append-only file (appendonly no)", candidate.addr);
        return Err(
            Error::new(ErrorKind::Unsupported, what).hint("read its snapshots: --files-from snapshot")
        );
    }
    let is_ok = |field: &str| info.get(field).is_none_or(|value| value == "ok");
    let settled = !state.aof_rewrite_in_progress
        && info.get("aof_rewrite_scheduled").is_none_or(|value| value == "0")
        && is_ok("aof_last_bgrewrite_status")
        && is_ok("aof_last_write_status");
    Ok(info.get("aof_current_size").and_then(|bytes| bytes.parse().ok()).filter(|_| settled))
}

/// What stands before the commands.
enum BaseFile {
    /// An RDB of so many bytes, of which so many were given.
    Rdb { version: RdbVersion, file: File, bytes: u64, given: u64, path: PathBuf },
    /// No dataset: the commands are all there is.
    Empty { version: RdbVersion, bytes: Option<Bytes>, len: u64 },
}

/// The version of the base, if there is one and it is an RDB.
pub(super) async fn rdb_version(files: &mut AofFiles, folder: &Path) -> Result<Option<RdbVersion>> {
    let Some(first) = files.files.first_mut().filter(|_| files.has_base) else { return Ok(None) };
    let mut magic = Vec::new();
    let read = async {
        (&mut first.file).take(RdbVersion::MAGIC_LEN as u64).read_to_end(&mut magic).await?;
        first.file.rewind().await
    };
    read.await.map_err(|error| unreadable(&folder.join(&first.name), &error))?;
    let magic = <&[u8; RdbVersion::MAGIC_LEN]>::try_from(magic.as_slice()).ok();
    Ok(magic.and_then(RdbVersion::from_magic))
}

impl BaseFile {
    /// Takes the base off the files, if it is an RDB of that version; one that is itself commands stays.
    fn split_off(
        files: &mut AofFiles,
        rdb: Option<RdbVersion>,
        server: ServerVersion,
        folder: &Path,
    ) -> Result<Self> {
        if let Some(version) = rdb
            && !files.files.is_empty()
        {
            let AofFile { file, bytes, name } = files.files.remove(0);
            return Ok(Self::Rdb { version, file, bytes, given: 0, path: folder.join(name) });
        }
        let (version, mut bytes) = (server.newest_rdb(), Vec::new());
        let writer = RdbWriter::new(version, &mut bytes).map_err(|problem| {
            Error::new(ErrorKind::Unsupported, format!("{server} can't be read yet: {problem}"))
                .hint("read its snapshots: --files-from snapshot")
        })?;
        writer.finish(&mut bytes);
        Ok(Self::Empty { version, len: bytes.len() as u64, bytes: Some(bytes.into()) })
    }

    const fn version(&self) -> RdbVersion {
        match self {
            Self::Rdb { version, .. } | Self::Empty { version, .. } => *version,
        }
    }

    const fn bytes(&self) -> u64 {
        match self {
            Self::Rdb { bytes, .. } => *bytes,
            Self::Empty { len, .. } => *len,
        }
    }
}

impl ByteSource for BaseFile {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Empty { bytes, .. } => Ok(bytes.take()),
            Self::Rdb { file, bytes, given, path, .. } => {
                let piece = piece(file, bytes.saturating_sub(*given), path).await?;
                *given = given.saturating_add(piece.len() as u64);
                Ok(Some(piece).filter(|piece| !piece.is_empty()))
            }
        }
    }
}

/// The next bytes of a file, at most `left`; none at its end.
async fn piece(file: &mut File, left: u64, path: &Path) -> Result<Bytes> {
    let mut piece = Vec::new();
    let most = left.min(READ_BYTES as u64);
    file.take(most).read_to_end(&mut piece).await.map_err(|error| unreadable(path, &error))?;
    Ok(piece.into())
}
