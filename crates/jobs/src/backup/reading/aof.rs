//! A base from an append-only file, for an agent beside the data where no fork is wanted: base and increments, applied by an engine.
//!
//! The commands of the file are those of the replication stream, so the engine follows our link as it does for a log (`fold`). What the
//! server was just writing is cut off at the last whole command outside a transaction.
//!
//! Invariants: the files are opened as they belong together, and their sum is what the server says that it has written; the base is made of
//! exactly the bytes up to the cut. An append-only file names no offset of the server's stream, so no log goes on behind the base.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use slotkeep_format::manifest::{ReadRecord, ReadSource};
use slotkeep_model::{Product, RdbVersion, ReplOffset, ServerVersion};
use slotkeep_rdb::RdbWriter;
use slotkeep_wire::info::Info;
use slotkeep_wire::stream::{Annotations, Splitter, StreamStart};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::aof_files::{AofFile, AofFiles};
use super::data_dirs::{DataDirs, setting};
use super::{Job, server_time};
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

const READ_BYTES: usize = 1 << 20;
/// How often the files are looked for before they are taken for another server's.
const TRIES: usize = 50;
const LOOK: Duration = Duration::from_millis(100);

/// The files, and between which moments their end was.
struct Opened {
    files: AofFiles,
    folder: PathBuf,
    from: Timestamp,
    until: Timestamp,
}

/// Takes the base of a shard from that node, whose folder is known.
pub(super) async fn take(
    job: &Job,
    (dirs, options): (&DataDirs, &EngineOptions),
    candidate: &Candidate,
    progress: &Arc<ShardProgress>,
) -> Result<TakenBase> {
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
    let context = &job.context;
    let Opened { mut files, folder, from, until } =
        context.unless_stopped(open(context, candidate, dir)).await?;
    let base = BaseFile::split_off(&mut files, server, &folder).await?;
    let needs = EngineNeeds { rdb: base.version(), source: Some(server) };
    let engine = choose_engine(options, &needs).await?;
    let log = AofLog::new(files.files, folder);
    let (log, cut) = context.unless_stopped(log.up_to_a_safe_cut()).await?;
    let history = job.made_up_history()?;
    let snapshot = Snapshot { len_bytes: base.bytes(), source: base, history, offset: ReplOffset(0) };
    let input = FoldInput { feed: Feed { base: snapshot, log, cut }, needs, time_of: None };
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
    };
    Ok(TakenBase::folded(folded, candidate, read))
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
                if [all, increments].iter().any(|bytes| (before..=after).contains(bytes)) {
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

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let what = format!("can't read {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::Failed, what)
            .hint("name the folder of that server as this machine sees it: --data-dir HOST:PORT=DIR"),
        io::ErrorKind::PermissionDenied => Error::new(ErrorKind::Failed, what)
            .hint("run as the user that the server runs as, or let this user read the folder"),
        io::ErrorKind::InvalidData => Error::new(ErrorKind::Corrupt, what).hint(
            "`redis-check-aof` looks at it more closely; read snapshots meanwhile: --files-from snapshot",
        ),
        _ => Error::new(ErrorKind::Failed, what),
    }
}

/// What stands before the commands.
enum BaseFile {
    /// An RDB of so many bytes, of which so many were given.
    Rdb { version: RdbVersion, file: File, bytes: u64, given: u64, path: PathBuf },
    /// No dataset: the commands are all there is.
    Empty { version: RdbVersion, bytes: Option<Bytes>, len: u64 },
}

impl BaseFile {
    /// Takes the base off the files, if it is an RDB; one that is itself commands stays.
    async fn split_off(files: &mut AofFiles, server: ServerVersion, folder: &Path) -> Result<Self> {
        if let Some(first) = files.files.first_mut().filter(|_| files.has_base) {
            let path = folder.join(&first.name);
            let mut magic = Vec::new();
            let read = async {
                (&mut first.file).take(RdbVersion::MAGIC_LEN as u64).read_to_end(&mut magic).await?;
                first.file.rewind().await
            };
            read.await.map_err(|error| unreadable(&path, &error))?;
            let version = <&[u8; RdbVersion::MAGIC_LEN]>::try_from(magic.as_slice()).ok();
            if let Some(version) = version.and_then(RdbVersion::from_magic) {
                let AofFile { file, bytes, .. } = files.files.remove(0);
                return Ok(Self::Rdb { version, file, bytes, given: 0, path });
            }
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

/// The commands of the files, one file after the other, as a stream that begins behind offset 0.
struct AofLog {
    files: VecDeque<AofFile>,
    folder: PathBuf,
    /// How many bytes of the first file were read.
    read: u64,
    annotations: Annotations,
    /// So many bytes are to come.
    left: u64,
}

impl AofLog {
    fn new(files: Vec<AofFile>, folder: PathBuf) -> Self {
        let annotations = Annotations::new(ReplOffset(0));
        Self { files: files.into(), folder, read: 0, annotations, left: u64::MAX }
    }

    /// Reads everything once, and gives it up to the last whole command outside transactions, with the offset of that.
    async fn up_to_a_safe_cut(self) -> Result<(Self, ReplOffset)> {
        let mut again = Vec::new();
        for file in &self.files {
            let copy = file.file.try_clone().await.map_err(|error| unreadable(&self.folder, &error))?;
            again.push(AofFile { name: file.name.clone(), file: copy, bytes: file.bytes });
        }
        let folder = self.folder.clone();
        let (mut log, mut name) = (self, String::new());
        let start = StreamStart { offset: ReplOffset(0), db: Some(0), in_transaction: false };
        let mut splitter = Splitter::new(start);
        while let Some(bytes) = log.next().await? {
            let mut rest = bytes.as_ref();
            if let Some(file) = log.files.front() {
                name.clone_from(&file.name);
            }
            loop {
                match splitter.next(&mut rest) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => return Err(damaged(&folder.join(&name), &error.to_string())),
                }
            }
        }
        let cut = splitter.safe_cut();
        // Copies of a descriptor share its place.
        for file in &mut again {
            file.file.rewind().await.map_err(|error| unreadable(&folder.join(&file.name), &error))?;
        }
        let mut log = Self::new(again, folder);
        log.left = cut.0;
        Ok((log, cut))
    }
}

impl ByteSource for AofLog {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() && self.left > 0 {
            let Some(first) = self.files.front_mut() else { break };
            let path = self.folder.join(&first.name);
            let bytes = piece(&mut first.file, first.bytes.saturating_sub(self.read), &path).await?;
            if bytes.is_empty() {
                if self.read < first.bytes {
                    return Err(damaged(&path, "it has become shorter"));
                }
                self.files.pop_front();
                self.read = 0;
                continue;
            }
            self.read = self.read.saturating_add(bytes.len() as u64);
            let stripped = self.annotations.strip(&bytes, &mut out);
            stripped.map_err(|error| damaged(&path, &error.to_string()))?;
        }
        out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left = self.left.saturating_sub(out.len() as u64);
        Ok(Some(Bytes::from(out)).filter(|bytes| !bytes.is_empty()))
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} is damaged: {what}", path.display()))
        .hint("`redis-check-aof` looks at it more closely; read snapshots meanwhile: --files-from snapshot")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn log(folder: &Path, texts: &[&[u8]]) -> Result<(Vec<u8>, u64)> {
        let mut files = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let name = number.to_string();
            std::fs::write(folder.join(&name), text).unwrap();
            let file = File::open(folder.join(&name)).await.unwrap();
            files.push(AofFile { name, file, bytes: text.len() as u64 });
        }
        let (mut log, cut) = AofLog::new(files, folder.to_owned()).up_to_a_safe_cut().await?;
        let mut all = Vec::new();
        while let Some(bytes) = log.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok((all, cut.0))
    }

    #[tokio::test]
    async fn a_log_ends_with_its_last_whole_command_outside_transactions() {
        let folder = tempfile::tempdir().unwrap();
        let (ping, multi, exec): (&[u8], &[u8], &[u8]) =
            (b"*1\r\n$4\r\nPING\r\n", b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n");
        let first = [b"#TS:1\r\n", ping, b"#TS:2\r\n"].concat();
        for (tail, kept) in [
            (vec![], 1),
            (ping.to_vec(), 2),
            (ping[..5].to_vec(), 1),
            ([multi, ping].concat(), 1),
            ([multi, ping, &exec[..13]].concat(), 1),
            ([multi, exec, b"#TS", b""].concat(), 3),
        ] {
            let (bytes, cut) = log(folder.path(), &[&first, &tail]).await.unwrap();
            let whole = match kept {
                3 => [ping, multi, exec].concat(),
                kept => ping.repeat(kept),
            };
            assert_eq!(
                (bytes.as_slice(), cut),
                (whole.as_slice(), whole.len() as u64),
                "{}",
                tail.escape_ascii()
            );
        }
        assert!(log(folder.path(), &[&ping[..5], ping]).await.is_err());
        assert_eq!(log(folder.path(), &[]).await.unwrap(), (vec![], 0));
    }
}
