//! The commands of append-only files, one file after the other, as a stream: where it may be cut, what was executed when, and its bytes.
//!
//! Offsets count the bytes of commands; annotations have none. A place is known both ways: by its offset, and by the file and the byte at which
//! it stands there.
//!
//! Invariants: a piece begins behind a command and ends with one, outside transactions at both ends; what the server was just writing belongs to
//! no piece; a time is told only where such a place is. Memory depends on the number of pieces and of seconds, not on what is written.

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use slotkeep_format::manifest::AofMark;
use slotkeep_format::{TimeSample, Timeline};
use slotkeep_model::ReplOffset;
use slotkeep_wire::stream::{Annotations, AofPart, Splitter, StreamError, StreamStart};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::aof_files::AofFile;
use crate::source::ByteSource;
use crate::{Context, Error, ErrorKind, Result};

pub(super) const READ_BYTES: usize = 1 << 20;
/// How long is waited for what a server was just writing.
const TRIES: usize = 50;
const LOOK: Duration = Duration::from_millis(100);
/// How much of each end of a file tells it from others.
const MARK_BYTES: u64 = 64 << 10;

/// A byte of one of the files: so many bytes lie before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AofPlace {
    /// Which of the files.
    pub(super) file: usize,
    pub(super) bytes: u64,
}

/// A place between two commands, outside transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AofCut {
    /// The last byte of the stream before it.
    pub(super) offset: u64,
    pub(super) place: AofPlace,
    /// The database that is selected there, if that is known.
    pub(super) database: Option<u32>,
}

impl AofCut {
    /// Before the first command.
    pub(super) const START: Self =
        Self { offset: 0, place: AofPlace { file: 0, bytes: 0 }, database: Some(0) };
}

/// What is to become one segment.
#[derive(Clone, Debug, Default)]
pub(super) struct AofPiece {
    /// Its offsets: the first one, and the one behind the last.
    pub(super) range: Range<u64>,
    /// The database selected before its first command, if that is known.
    pub(super) database: Option<u32>,
    pub(super) commands: u64,
    pub(super) times: Timeline,
}

/// What stands in the files behind a place.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    /// Without a gap, from the place on.
    pub(super) pieces: Vec<AofPiece>,
    /// Where the last of them ends.
    pub(super) end: AofCut,
    /// Whether a command or a transaction has begun behind it.
    pub(super) is_torn: bool,
}

/// [`scan`] of files that a server writes to. What it was just writing comes to its end soon; if it does not, a server that died has left a
/// transaction that never ends (seen with Redis 7.0.15: at its start it cuts off half a command, and not the `MULTI` before it). The server itself
/// drops everything behind that when it loads the file, so nothing that looks whole may be made of it.
pub(super) async fn scan_live(
    context: &Context,
    files: &mut [AofFile],
    folder: &Path,
    from: AofCut,
    piece_bytes: u64,
) -> Result<Scanned> {
    let scanned = scan(files, folder, from, piece_bytes).await?;
    if !scanned.is_torn {
        return Ok(scanned);
    }
    let as_read: Vec<u64> = files.iter().map(|file| file.bytes).collect();
    let mut goes_on = false;
    for _ in 0..TRIES {
        context.clock.sleep(LOOK).await;
        if let Some(last) = files.last_mut() {
            let length = last.file.metadata().await;
            last.bytes = length.map_err(|error| unreadable(&folder.join(&last.name), &error))?.len();
        }
        let behind = scan(files, folder, scanned.end, u64::MAX).await?;
        goes_on = behind.end.offset > scanned.end.offset || !behind.is_torn;
        if goes_on {
            break;
        }
    }
    for (file, bytes) in files.iter_mut().zip(as_read) {
        file.bytes = bytes;
    }
    if goes_on {
        return Ok(scanned);
    }
    let AofPlace { file, bytes } = scanned.end.place;
    let path = folder.join(files.get(file).map(|file| file.name.as_str()).unwrap_or_default());
    let what = format!(
        "{} holds, from byte {bytes} on, a command or a transaction that does not end: the server would drop all behind it when it loads the file",
        path.display()
    );
    Err(Error::new(ErrorKind::Corrupt, what).hint(
        "have the server write the file anew (BGREWRITEAOF), then take a full backup; until then what it wrote lately is in its memory alone",
    ))
}

/// Reads everything behind a cut once, and finds pieces of about `piece_bytes`.
pub(super) async fn scan(
    files: &mut [AofFile],
    folder: &Path,
    from: AofCut,
    piece_bytes: u64,
) -> Result<Scanned> {
    let mut annotations = Annotations::new(ReplOffset(from.offset));
    let mut finder = Finder::new(from, piece_bytes);
    let mut raw = Raw::new(from.place);
    while let Some((place, bytes)) = raw.next(files, folder).await? {
        let path = || folder.join(files.get(place.file).map(|file| file.name.as_str()).unwrap_or_default());
        let mut rest = bytes.as_ref();
        while let Some(part) = annotations.next(&mut rest).map_err(|error| damaged(&path(), &error))? {
            let taken = bytes.len().saturating_sub(rest.len()) as u64;
            let behind = AofPlace { bytes: place.bytes.saturating_add(taken), ..place };
            finder.take(part, behind).map_err(|error| damaged(&path(), &error))?;
        }
    }
    Ok(finder.finish())
}

/// Finds pieces in the parts of files. Pure.
struct Finder {
    splitter: Splitter,
    piece_bytes: u64,
    pieces: Vec<AofPiece>,
    open: AofPiece,
    /// Commands behind the last cut: of a transaction that has not ended yet.
    uncut_commands: u64,
    end: AofCut,
}

impl Finder {
    fn new(from: AofCut, piece_bytes: u64) -> Self {
        let start = StreamStart { offset: ReplOffset(from.offset), db: from.database, in_transaction: false };
        Self {
            splitter: Splitter::new(start),
            piece_bytes,
            pieces: Vec::new(),
            open: piece_behind(from),
            uncut_commands: 0,
            end: from,
        }
    }

    /// Takes the next part; `behind` is the place where it ends.
    fn take(&mut self, part: AofPart<'_>, behind: AofPlace) -> std::result::Result<(), StreamError> {
        match part {
            AofPart::Time(second) => {
                if self.splitter.offset().0 == self.end.offset
                    && let Some(ms) = second.checked_mul(1000)
                {
                    let offset = self.end.offset;
                    self.open.times.push(TimeSample { from_ms: ms, until_ms: ms, offset });
                }
            }
            AofPart::Stream(mut bytes) => {
                // A part is a piece of one command, so at most one ends with it.
                while self.splitter.next(&mut bytes)?.is_some() {
                    self.uncut_commands = self.uncut_commands.saturating_add(1);
                    if self.splitter.safe_cut() == self.splitter.offset() {
                        self.cut(behind);
                    }
                }
            }
        }
        Ok(())
    }

    fn cut(&mut self, place: AofPlace) {
        let offset = self.splitter.offset().0;
        self.end = AofCut { offset, place, database: self.splitter.db() };
        self.open.range.end = offset.saturating_add(1);
        self.open.commands = self.open.commands.saturating_add(std::mem::take(&mut self.uncut_commands));
        if self.open.range.end.saturating_sub(self.open.range.start) >= self.piece_bytes {
            self.pieces.push(std::mem::replace(&mut self.open, piece_behind(self.end)));
        }
    }

    fn finish(mut self) -> Scanned {
        let is_torn = self.splitter.offset().0 != self.end.offset;
        if self.open.range.start < self.open.range.end {
            self.pieces.push(self.open);
        } else if let Some(last) = self.pieces.last_mut() {
            for sample in self.open.times.samples() {
                last.times.push(*sample);
            }
        }
        Scanned { pieces: self.pieces, end: self.end, is_torn }
    }
}

fn piece_behind(cut: AofCut) -> AofPiece {
    let start = cut.offset.saturating_add(1);
    AofPiece { range: start..start, database: cut.database, commands: 0, times: Timeline::default() }
}

/// The bytes of the files as they stand there, from a place on. Copies of a descriptor share its place, so the first read seeks.
struct Raw {
    at: AofPlace,
    sought: bool,
}

impl Raw {
    const fn new(at: AofPlace) -> Self {
        Self { at, sought: false }
    }

    /// The next bytes, and where they begin.
    async fn next(&mut self, files: &mut [AofFile], folder: &Path) -> Result<Option<(AofPlace, Bytes)>> {
        while let Some(file) = files.get_mut(self.at.file) {
            let path = folder.join(&file.name);
            if !self.sought {
                let sought = file.file.seek(SeekFrom::Start(self.at.bytes)).await;
                sought.map_err(|error| unreadable(&path, &error))?;
                self.sought = true;
            }
            let most = file.bytes.saturating_sub(self.at.bytes).min(READ_BYTES as u64);
            let mut bytes = Vec::new();
            let read = (&mut file.file).take(most).read_to_end(&mut bytes).await;
            read.map_err(|error| unreadable(&path, &error))?;
            if bytes.is_empty() {
                if self.at.bytes < file.bytes {
                    return Err(damaged(&path, &"it has become shorter"));
                }
                self.at = AofPlace { file: self.at.file.saturating_add(1), bytes: 0 };
                self.sought = false;
                continue;
            }
            let begins = self.at;
            self.at.bytes = begins.bytes.saturating_add(bytes.len() as u64);
            return Ok(Some((begins, bytes.into())));
        }
        Ok(None)
    }
}

/// The stream that the files hold from one cut to another.
pub(super) struct AofLog {
    files: Vec<AofFile>,
    folder: PathBuf,
    raw: Raw,
    annotations: Annotations,
    /// So many bytes are to come.
    left: u64,
}

impl AofLog {
    pub(super) fn new(files: Vec<AofFile>, folder: PathBuf, from: AofCut, until: AofCut) -> Self {
        Self {
            files,
            folder,
            raw: Raw::new(from.place),
            annotations: Annotations::new(ReplOffset(from.offset)),
            left: until.offset.saturating_sub(from.offset),
        }
    }
}

impl ByteSource for AofLog {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() && self.left > 0 {
            let Some((place, bytes)) = self.raw.next(&mut self.files, &self.folder).await? else { break };
            let stripped = self.annotations.strip(&bytes, &mut out);
            stripped.map_err(|error| {
                let name = self.files.get(place.file).map(|file| file.name.as_str());
                damaged(&self.folder.join(name.unwrap_or_default()), &error)
            })?;
        }
        out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left = self.left.saturating_sub(out.len() as u64);
        Ok(Some(Bytes::from(out)).filter(|bytes| !bytes.is_empty()))
    }
}

/// What tells a file up to some byte from others.
pub(super) async fn mark(file: &mut AofFile, folder: &Path, bytes: u64) -> Result<AofMark> {
    let mut hasher = blake3::Hasher::new();
    let head = 0..bytes.min(MARK_BYTES);
    let tail = bytes.saturating_sub(MARK_BYTES).max(head.end)..bytes;
    for part in [head, tail] {
        let mut read = Vec::new();
        let reading = async {
            file.file.seek(SeekFrom::Start(part.start)).await?;
            (&mut file.file).take(part.end.saturating_sub(part.start)).read_to_end(&mut read).await
        };
        reading.await.map_err(|error| unreadable(&folder.join(&file.name), &error))?;
        hasher.update(&read);
    }
    Ok(AofMark { file: file.name.clone(), bytes, blake3: hasher.finalize().to_hex().to_string() })
}

pub(super) fn damaged(path: &Path, what: &impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} is damaged: {what}", path.display()))
        .hint("`redis-check-aof` looks at it more closely; read snapshots meanwhile: --files-from snapshot")
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Error {
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

#[cfg(test)]
#[path = "aof_log_tests.rs"]
mod tests;
