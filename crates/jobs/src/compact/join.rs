//! One large segment from small ones.
//!
//! Invariants: what is written has been read back and is, byte for byte, what the small segments hold, and says what they say; so is what was there
//! already; one that is damaged is deleted only when the small ones have all been read and are whole.

use slotkeep_format::manifest::ServerRecord;
use slotkeep_format::{SegmentRecord, Timeline};
use slotkeep_model::{NodeAddr, ReplOffset};
use slotkeep_repo::{Problem, RepoError, Repository, SegmentEntry, SegmentMeta, SegmentWriter, StoredObject};
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
    /// The large segment, which was read back, and the BLAKE3 of its record; none if nothing was joined.
    pub(super) large: Option<(StoredObject, String)>,
}

/// Joins as many of these segments as fit together, from the first on. At least one; one alone stays as it is.
pub(super) async fn join(repository: &Repository, cluster: &str, entries: &[SegmentEntry]) -> Result<Joined> {
    let (records, mut seam) = fitting(repository, entries).await?;
    let mut count = records.len();
    let mut large = None;
    let mut replaced = false;
    // What only the bytes tell may shorten it further.
    while count > 1 {
        let Some(some) = entries.get(..count) else { break };
        match write(repository, cluster, some, &records).await? {
            Written::Whole(object, blake3) => {
                large = Some((object, blake3));
                break;
            }
            Written::Spoiled { existed: true, .. } if !replaced => replaced = true,
            Written::Spoiled { error, .. } => return Err(error),
            Written::Breaks { before, why } => {
                let segment = entries.get(before).map(|entry| entry.path().to_owned()).unwrap_or_default();
                seam = Some(Seam { segment, why });
                count = before;
            }
        }
    }
    Ok(Joined { count, seam, large })
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
    /// The large segment, and the BLAKE3 of its record.
    Whole(StoredObject, String),
    /// It was damaged, and is deleted; whether it was there before.
    Spoiled { existed: bool, error: Error },
    /// The segment of that number does not go on where the one before ends.
    Breaks { before: usize, why: String },
}

async fn write(
    repository: &Repository,
    cluster: &str,
    entries: &[SegmentEntry],
    records: &[SegmentRecord],
) -> Result<Written> {
    let (Some(first), Some(last), Some(head)) = (entries.first(), entries.last(), records.first()) else {
        return Err(Error::new(ErrorKind::Failed, "there is nothing to join"));
    };
    let range = first.start..last.end;
    let mut writer = match repository.create_segment(cluster, &first.history, range.clone()).await {
        Ok(writer) => Some(writer),
        // An earlier run wrote it, or one that runs now: not to its end, perhaps.
        Err(RepoError { problem: Problem::Exists, .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let existed = writer.is_none();
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
        copy(repository, entry, writer.as_mut(), (&mut splitter, &mut raw)).await?;
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
    if let Some(writer) = writer {
        match writer.finish(meta).await {
            Ok(_) | Err(RepoError { problem: Problem::Exists, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let written = repository.segments(cluster, &first.history).await?;
    let written = written.into_iter().find(|entry| (entry.start, entry.end) == (range.start, range.end));
    let written = written.ok_or_else(|| damaged(first, "what was written in its place is not there"))?;
    read_back(repository, &written, raw.finalize(), existed).await
}

async fn copy(
    repository: &Repository,
    entry: &SegmentEntry,
    mut writer: Option<&mut SegmentWriter>,
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
        if let Some(writer) = &mut writer {
            writer.write(&bytes).await?;
        }
    }
    Ok(())
}

/// Reads a segment to its end: its record and the BLAKE3 of its bytes.
pub(super) async fn whole(
    repository: &Repository,
    entry: &SegmentEntry,
) -> Result<(SegmentRecord, blake3::Hash), RepoError> {
    let mut reader = repository.read_segment(entry).await?;
    let mut raw = blake3::Hasher::new();
    while let Some(bytes) = reader.next().await? {
        raw.update(&bytes);
    }
    Ok((reader.record().clone(), raw.finalize()))
}

/// Reads all of it. One that is damaged is deleted again: the small ones are whole.
async fn read_back(
    repository: &Repository,
    entry: &SegmentEntry,
    wanted: blake3::Hash,
    existed: bool,
) -> Result<Written> {
    let error = match whole(repository, entry).await {
        Ok((record, found)) if found == wanted => return Ok(Written::Whole(entry.stored(), record.blake3)),
        // Nobody can tell here which of them is right.
        Ok(_) if existed => {
            return Err(damaged(entry, "it is whole, and holds other bytes than the small ones"));
        }
        Ok(_) => damaged(entry, "it does not hold what was written"),
        Err(error) => match Error::from(error) {
            error if error.kind() == ErrorKind::Corrupt => error,
            error => return Err(error),
        },
    };
    repository.delete(entry.path()).await?;
    Ok(Written::Spoiled { existed, error })
}

fn damaged(entry: &SegmentEntry, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("segment {} can't be used: {what}", entry.path()))
        .hint("`slotkeep verify` tells what else is wrong; segments that are whole stay as they are")
}
