//! One large segment from small ones.
//!
//! Invariant: what is written has been read back and is, byte for byte, what the small segments hold, and says what they say.

use slotkeep_format::manifest::ServerRecord;
use slotkeep_format::{SegmentRecord, Timeline};
use slotkeep_model::{NodeAddr, ReplOffset};
use slotkeep_repo::{Problem, RepoError, Repository, SegmentEntry, SegmentMeta, SegmentWriter};
use slotkeep_wire::stream::{Splitter, StreamStart};

use super::Seam;
use crate::{Error, ErrorKind, Result};

/// A record holds at most so many time samples: some megabyte in memory, and hours of a log.
const MOST_SAMPLES: usize = 50_000;

/// What was joined.
pub(super) struct Joined {
    /// How many segments, from the first on.
    pub(super) count: usize,
    /// Why no more, if sizes asked for more.
    pub(super) seam: Option<Seam>,
}

/// Joins as many of these segments as fit together, from the first on. At least one; one alone stays as it is.
pub(super) async fn join(repository: &Repository, cluster: &str, entries: &[SegmentEntry]) -> Result<Joined> {
    let (records, mut seam) = fitting(repository, entries).await?;
    let mut count = records.len();
    // What only the bytes tell may shorten it further.
    while count > 1 {
        let Some(some) = entries.get(..count) else { break };
        match write(repository, cluster, some, &records).await? {
            Written::Whole => break,
            Written::Breaks { before, why } => {
                let segment = entries.get(before).map(|entry| entry.path().to_owned()).unwrap_or_default();
                seam = Some(Seam { segment, why });
                count = before;
            }
        }
    }
    Ok(Joined { count, seam })
}

/// The records of the segments that fit together, by what their records say.
async fn fitting(
    repository: &Repository,
    entries: &[SegmentEntry],
) -> Result<(Vec<SegmentRecord>, Option<Seam>)> {
    let mut records: Vec<SegmentRecord> = Vec::new();
    let mut times = Timeline::default();
    for entry in entries {
        let record = repository.segment_record(entry).await?;
        let why = match records.first() {
            Some(first) => differs((&first.source, &first.server), &record, &mut times),
            None => extend(&mut times, &record).err(),
        };
        if let Some(why) = why {
            if records.is_empty() {
                // Nothing fits to this one: it stays as it is.
                records.push(record);
            }
            let seam = Seam { segment: entry.path().to_owned(), why: why.to_owned() };
            return Ok((records, Some(seam)));
        }
        records.push(record);
    }
    Ok((records, None))
}

fn differs(
    (source, server): (&NodeAddr, &ServerRecord),
    record: &SegmentRecord,
    times: &mut Timeline,
) -> Option<&'static str> {
    if (&record.source, &record.server) != (source, server) {
        return Some("it came from another node or version");
    }
    extend(times, record).err()
}

/// Adds a segment's samples; an error if the whole could not say all of them.
fn extend(times: &mut Timeline, record: &SegmentRecord) -> Result<(), &'static str> {
    let samples = record.times.samples();
    if times.samples().len().saturating_add(samples.len()) > MOST_SAMPLES {
        return Err("together they have too many time samples");
    }
    for sample in samples {
        if !times.push(*sample) {
            return Err("its clock is behind that of the segment before");
        }
    }
    Ok(())
}

enum Written {
    Whole,
    /// The segment of that number does not go on where the one before ends.
    Breaks {
        before: usize,
        why: String,
    },
}

async fn write(
    repository: &Repository,
    cluster: &str,
    entries: &[SegmentEntry],
    records: &[SegmentRecord],
) -> Result<Written> {
    let (Some(first), Some(last), Some(head)) = (entries.first(), entries.last(), records.first()) else {
        return Ok(Written::Whole);
    };
    let range = first.start..last.end;
    let mut writer = match repository.create_segment(cluster, &first.history, range.clone()).await {
        Ok(writer) => writer,
        // An earlier run wrote it, or one that runs now.
        Err(RepoError { problem: Problem::Exists, .. }) => return Ok(Written::Whole),
        Err(error) => return Err(error.into()),
    };
    let start = StreamStart {
        offset: ReplOffset(first.start.saturating_sub(1)),
        db: head.database,
        in_transaction: false,
    };
    let mut splitter = Splitter::new(start);
    let mut raw = blake3::Hasher::new();
    let mut times = Timeline::default();
    let mut commands = 0_u64;
    for (number, (entry, record)) in entries.iter().zip(records).enumerate() {
        if let Some(database) = record.database.filter(|_| number > 0)
            && splitter.db() != Some(database)
        {
            let why =
                format!("it says that database {database} is selected, which the one before does not show");
            drop(writer);
            return Ok(Written::Breaks { before: number, why });
        }
        copy(repository, entry, &mut writer, (&mut splitter, &mut raw)).await?;
        if splitter.safe_cut().0 != entry.end.saturating_sub(1) {
            return Err(damaged(entry, "it does not end with a command"));
        }
        extend(&mut times, record).map_err(|why| damaged(entry, why))?;
        commands = commands.saturating_add(record.commands);
    }
    let meta = SegmentMeta {
        database: head.database,
        commands,
        source: head.source.clone(),
        server: head.server.clone(),
        times,
    };
    match writer.finish(meta).await {
        Ok(_) | Err(RepoError { problem: Problem::Exists, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let written = repository.segments(cluster, &first.history).await?;
    let written = written.into_iter().find(|entry| (entry.start, entry.end) == (range.start, range.end));
    let written = written.ok_or_else(|| damaged(first, "what was written in its place is not there"))?;
    read_back(repository, &written, raw.finalize()).await?;
    Ok(Written::Whole)
}

async fn copy(
    repository: &Repository,
    entry: &SegmentEntry,
    writer: &mut SegmentWriter,
    (splitter, raw): (&mut Splitter, &mut blake3::Hasher),
) -> Result<()> {
    let mut reader = repository.read_segment(entry).await?;
    while let Some(bytes) = reader.next().await? {
        raw.update(&bytes);
        let mut rest = bytes.as_slice();
        loop {
            match splitter.next(&mut rest) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Err(damaged(entry, &error.to_string())),
            }
        }
        writer.write(&bytes).await?;
    }
    Ok(())
}

/// Reads all of it. One that is not right is deleted again, before anything relies on it.
async fn read_back(repository: &Repository, entry: &SegmentEntry, wanted: blake3::Hash) -> Result<()> {
    let read = async {
        let mut reader = repository.read_segment(entry).await?;
        let mut raw = blake3::Hasher::new();
        while let Some(bytes) = reader.next().await? {
            raw.update(&bytes);
        }
        Ok::<_, Error>(raw.finalize())
    };
    match read.await {
        Ok(found) if found == wanted => Ok(()),
        Ok(_) => {
            repository.delete(entry.path()).await?;
            Err(damaged(entry, "it does not hold what was written"))
        }
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            repository.delete(entry.path()).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn damaged(entry: &SegmentEntry, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("segment {} can't be used: {what}", entry.path()))
        .hint("`slotkeep verify` tells what else is wrong; segments that are whole stay as they are")
}
