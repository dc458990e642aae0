//! What spool files hold.
//!
//! Invariants: a file counts up to its last safe cut, whatever lies behind it; what is found in it takes no more memory than its time samples.

use std::io::Read;
use std::path::{Path, PathBuf};

use slotkeep_format::{SpoolHeader, SpoolReader, SpoolRecord, TimeSample, Timeline};
use slotkeep_model::ReplOffset;
use slotkeep_wire::stream::{Splitter, StreamStart};

use crate::{Error, ErrorKind, Result};

const READ_BYTES: usize = 256 << 10;

/// What a spool file was found to hold.
#[derive(Clone, Debug)]
pub(crate) struct Scanned {
    pub(crate) header: SpoolHeader,
    /// Its last safe cut; nothing if it holds no whole command.
    pub(crate) end: Option<u64>,
    /// The database selected there, if it is known.
    pub(crate) database: Option<u32>,
    commands: u64,
    /// Commands behind the last safe cut: of a transaction that has not ended yet.
    open_commands: u64,
    pub(crate) times: Timeline,
}

/// A safe cut in a file, or its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The last byte before it.
    pub(crate) offset: u64,
    /// The database that is selected there, if it is known.
    pub(crate) database: Option<u32>,
    /// How many commands of the file lie before it.
    pub(crate) commands: u64,
}

impl Scanned {
    pub(crate) const fn beginning(&self) -> Mark {
        Mark { offset: self.header.start.saturating_sub(1), database: self.header.database, commands: 0 }
    }

    /// Its last safe cut, which is at that offset.
    pub(crate) const fn reached(&self, end: u64) -> Mark {
        Mark { offset: end, database: self.database, commands: self.commands }
    }

    /// The time samples of the bytes between two marks.
    pub(crate) fn times_between(&self, from: Mark, to: Mark) -> Timeline {
        let mut times = Timeline::default();
        let own = |sample: &&TimeSample| from.offset <= sample.offset && sample.offset <= to.offset;
        for sample in self.times.samples().iter().filter(own) {
            times.push(*sample);
        }
        times
    }
}

/// Where a scan ends, if the file does not end before.
#[derive(Clone, Copy)]
struct Limits {
    /// At the first safe cut that is there or behind it.
    enough: u64,
    /// Before a safe cut that is there or behind it.
    before: u64,
}

impl Limits {
    const NONE: Self = Self { enough: u64::MAX, before: u64::MAX };
}

/// Reads a file that is not being written; `None` if it has not even a header.
fn scan(path: &Path, limits: Limits) -> std::io::Result<Option<Scanned>> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut reader = SpoolReader::default();
    let mut found: Option<(Scanned, Splitter)> = None;
    let mut samples = Vec::new();
    'file: loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        reader.feed(buffer.get(..read).unwrap_or_default());
        loop {
            match reader.record() {
                Ok(Some(SpoolRecord::Header(header))) => found = Some(begun(*header)),
                Ok(Some(SpoolRecord::Bytes(bytes))) => {
                    let Some((scanned, splitter)) = &mut found else { break 'file };
                    if !count(scanned, splitter, &bytes, limits) {
                        break 'file;
                    }
                }
                Ok(Some(SpoolRecord::Time(sample))) => samples.push(sample),
                Ok(None) => break,
                // A tail that was not written to its end, as after a loss of power.
                Err(error) => {
                    tracing::info!(file = %path.display(), %error, "a spool file ends early");
                    break 'file;
                }
            }
        }
    }
    Ok(found.map(|(mut scanned, _)| {
        for sample in samples {
            if scanned.end.is_some_and(|end| sample.offset <= end) {
                scanned.times.push(sample);
            }
        }
        scanned
    }))
}

fn begun(header: SpoolHeader) -> (Scanned, Splitter) {
    let start = StreamStart {
        offset: ReplOffset(header.start.saturating_sub(1)),
        db: header.database,
        in_transaction: false,
    };
    let database = header.database;
    let scanned =
        Scanned { header, end: None, database, commands: 0, open_commands: 0, times: Timeline::default() };
    (scanned, Splitter::new(start))
}

/// Counts the commands; false if the bytes are no stream, or the scan ends here.
fn count(scanned: &mut Scanned, splitter: &mut Splitter, mut bytes: &[u8], limits: Limits) -> bool {
    loop {
        match splitter.next(&mut bytes) {
            Ok(Some(_)) => scanned.open_commands = scanned.open_commands.saturating_add(1),
            Ok(None) => return true,
            Err(_) => return false,
        }
        let offset = splitter.offset();
        if splitter.safe_cut() == offset {
            if offset.0 >= limits.before {
                return false;
            }
            scanned.end = Some(offset.0);
            scanned.database = splitter.db();
            scanned.commands = scanned.commands.saturating_add(std::mem::take(&mut scanned.open_commands));
            if offset.0 >= limits.enough {
                return false;
            }
        }
    }
}

/// What a file holds, and the end of its last whole command; nothing if there is none.
pub(crate) async fn scan_file(path: &Path) -> Result<Option<(Scanned, u64)>> {
    scan_to(path, Limits::NONE).await
}

/// A safe cut between two others of a file, at their middle or behind it, or else the last one before; nothing if only one command, or transaction, lies
/// between them.
pub(crate) async fn split(path: &Path, (from, to): (Mark, Mark)) -> Result<Option<Mark>> {
    let half = to.offset.saturating_sub(from.offset) / 2;
    let limits = Limits { enough: from.offset.saturating_add(half), before: to.offset };
    let scanned = scan_to(path, limits).await?;
    let mark = scanned.map(|(scanned, end)| scanned.reached(end));
    Ok(mark.filter(|mark| mark.offset > from.offset))
}

async fn scan_to(path: &Path, limits: Limits) -> Result<Option<(Scanned, u64)>> {
    let file: PathBuf = path.to_owned();
    let scanned = tokio::task::spawn_blocking(move || scan(&file, limits)).await;
    let scanned = scanned.map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
    let scanned = scanned.map_err(|error| unreadable(path, &error))?;
    Ok(scanned.and_then(|scanned| Some((scanned.clone(), scanned.end?))))
}

pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Failed, format!("can't read spool file {}: {error}", path.display()))
}
