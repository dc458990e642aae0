//! Base and log of an append-only file as they stand in it: the file's base is the base, its commands are the log behind it. So a later backup
//! needs only what was appended since, as long as the server has not rewritten the file.
//!
//! Each generation of the file, from one rewrite to the next, is a history of its own under a made-up name, with the base at offset 0: neither the
//! base nor the commands say where they stand in the server's replication stream. What was read up to where stands in the manifest, with marks
//! by which the files are known again.
//!
//! Invariants: a log is gone on with only if it is of the same node, and the base and every byte before the place where it ended are what they were, as far as the marks tell;
//! a segment is written of whole commands outside transactions; a moment is told only where the server's clock was asked, or where the file
//! itself tells it (`#TS`).

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use slotkeep_format::HistoryRecord;
use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::manifest::{AofMark, AofRecord, ReadRecord, ReadSource, ShardCut, ShardRecord};
use slotkeep_model::{ReplId, ReplOffset, Shard};
use slotkeep_repo::layout::BaseLayout;
use slotkeep_repo::{Problem, RepoError, Repository, SegmentMeta};
use tokio::io::AsyncSeekExt;

use super::aof_files::AofFile;
use super::aof_log::{AofCut, AofLog, AofPiece, AofPlace, mark, scan_live, unreadable};
use super::snapshot::pass_on;
use super::{Job, Taken};
use crate::archive::link::Interruption;
use crate::backup::base::{Announced, TakenBase, Taking};
use crate::backup::plan::Candidate;
use crate::progress::ShardProgress;
use crate::source::ByteSource;
use crate::{Error, ErrorKind, Result};

/// Files that belong together, and when their end was.
pub(super) struct AofSet {
    pub(super) source: ReadSource,
    /// An RDB.
    pub(super) base: AofFile,
    /// Commands; at least one file.
    pub(super) increments: Vec<AofFile>,
    pub(super) folder: PathBuf,
    /// Their end was not before this, by the server's clock.
    pub(super) from: Timestamp,
    /// Their end was not after this.
    pub(super) until: Timestamp,
}

/// The backups of append-only files that a repository holds, the newest first, each shard by itself.
#[derive(Default)]
pub(super) struct KnownLines {
    shards: Vec<(String, ShardRecord)>,
}

impl KnownLines {
    pub(super) async fn read(repository: &Repository, cluster: &str) -> Result<Self> {
        let backups = repository.backups(cluster).await?.backups;
        let shards = backups.into_iter().rev().flat_map(|manifest| {
            let of_files = manifest.shards.into_iter().filter(|shard| shard.aof().is_some());
            of_files.map(move |shard| (manifest.id.clone(), shard)).collect::<Vec<_>>()
        });
        Ok(Self { shards: shards.collect() })
    }

    /// The backups that this node's file was read for.
    fn all_of<'a>(
        &'a self,
        shard: &'a Shard,
        candidate: &'a Candidate,
    ) -> impl Iterator<Item = (&'a str, &'a ShardRecord)> {
        let id = shard.nodes().find(|node| node.addr == candidate.addr).and_then(|node| node.id.as_ref());
        let is_the_same = move |record: &ShardRecord| {
            let mut nodes = std::iter::once(&record.primary).chain(&record.replicas);
            let was = nodes.find(|node| node.addr == record.source).and_then(|node| node.id.as_ref());
            // Nodes keep their ids where their addresses change.
            if id.is_some() && was.is_some() { id == was } else { record.source == candidate.addr }
        };
        let own = self.shards.iter().filter(move |(_, record)| is_the_same(record));
        own.map(|(backup, record)| (backup.as_str(), record))
    }

    /// The newest backup that this node's file was read for.
    pub(super) fn last_of<'a>(
        &'a self,
        shard: &'a Shard,
        candidate: &'a Candidate,
    ) -> Option<(&'a str, &'a ShardRecord)> {
        self.all_of(shard, candidate).next()
    }
}

/// Takes base and log whole.
pub(super) async fn take(
    job: &Job,
    shard: &Shard,
    candidate: &Candidate,
    mut set: AofSet,
    progress: &Arc<ShardProgress>,
) -> Result<Taken> {
    let history = job.made_up_history()?;
    let announced = Announced {
        source: candidate.addr.clone(),
        source_role: candidate.role.into(),
        server: candidate.server.into(),
        layout: BaseLayout::new(&job.options.cluster, &history, ReplOffset(0), &job.id),
        history: history.clone(),
        offset: 0,
        server_time: Some(set.until),
    };
    let base_bytes = set.base.bytes;
    let base_mark = mark(&mut set.base, &set.folder, base_bytes).await?;
    let path = set.folder.join(&set.base.name);
    set.base.file.rewind().await.map_err(|error| unreadable(&path, &error))?;
    let mut taking = Taking::begin(&job.context, &job.repository, announced, progress).await?;
    let written = tokio::select! {
        written = pass_on(&mut set.base.file, &path, &mut taking.pipeline) => written,
        () = job.context.stop.cancelled() => Err(Interruption::Other(Error::interrupted())),
    };
    let received = taking.end(&job.context, &job.repository, written, progress).await?;
    let base = received.store(&job.context, &job.repository).await?;
    let line = Line { job, shard, candidate, history, base_mark };
    match line.store_log(&mut set, AofCut::START).await {
        Ok((read, cut)) => Ok(Taken { base: base.with_read(read), cut: Some(cut) }),
        Err(error) => {
            base.take_back(&job.repository).await;
            Err(error)
        }
    }
}

/// Takes what was appended since a backup before. Fails with [`ErrorKind::Gap`] if there is none that leads to these files.
pub(super) async fn go_on(
    job: &Job,
    known: &KnownLines,
    shard: &Shard,
    candidate: &Candidate,
    mut set: AofSet,
) -> Result<Taken> {
    let base_bytes = set.base.bytes;
    let base_mark = mark(&mut set.base, &set.folder, base_bytes).await?;
    // Empty bases of two nodes may be the same to the byte.
    let mut own = known.all_of(shard, candidate).filter_map(|(id, record)| Some((id, record, record.aof()?)));
    let Some((backup, record, aof)) = own.find(|(.., aof)| aof.base == base_mark) else {
        let last = known.last_of(shard, candidate).and_then(|(id, record)| Some((id, record.aof()?)));
        return Err(not_known(&job.options.cluster, last, candidate, &base_mark));
    };
    let place = end_of(&mut set, &aof.end, backup).await?;
    let cut = record.cut();
    let from = AofCut { offset: cut.offset, place, database: aof.database };
    let line = Line { job, shard, candidate, history: cut.history, base_mark };
    let (read, cut) = line.store_log(&mut set, from).await?;
    Ok(Taken { base: TakenBase::of(record, backup).with_read(read), cut: Some(cut) })
}

/// Why nothing leads to these files.
fn not_known(
    cluster: &str,
    last: Option<(&str, &AofRecord)>,
    candidate: &Candidate,
    base: &AofMark,
) -> Error {
    let what = match last {
        None => format!(
            "no backup of `{cluster}` was read from the append-only file of {}: there is nothing to continue",
            candidate.addr
        ),
        Some((id, before)) if before.base.file == base.file => format!(
            "{} has another append-only file than when backup {id} was read: {} is not what it was",
            candidate.addr, base.file
        ),
        Some((id, before)) => format!(
            "{} has rewritten its append-only file since backup {id}: its base was {} and is {}, and what it wrote in between may be gone",
            candidate.addr, before.base.file, base.file
        ),
    };
    gap(what)
}

fn gap(what: String) -> Error {
    Error::new(ErrorKind::Gap, what).hint("take a full backup from the files (--type full); take backups more often than the server rewrites its file")
}

/// Where a backup ended, in the files as they are now.
async fn end_of(set: &mut AofSet, end: &AofMark, backup: &str) -> Result<AofPlace> {
    let number = set.increments.iter().position(|file| file.name == end.file);
    let Some((number, file)) = number.and_then(|number| Some((number, set.increments.get_mut(number)?)))
    else {
        return Err(gap(format!("{}, in which backup {backup} ended, is gone", end.file)));
    };
    if file.bytes < end.bytes {
        return Err(gap(format!(
            "{} has {} bytes, and backup {backup} had read {}: its end was lost, or cut off when the server started",
            end.file, file.bytes, end.bytes
        )));
    }
    if mark(file, &set.folder, end.bytes).await? != *end {
        return Err(gap(format!("{} does not hold what backup {backup} has read of it", end.file)));
    }
    Ok(AofPlace { file: number, bytes: end.bytes })
}

/// The log of one generation of a file, being stored.
struct Line<'a> {
    job: &'a Job,
    shard: &'a Shard,
    candidate: &'a Candidate,
    history: ReplId,
    base_mark: AofMark,
}

impl Line<'_> {
    /// Stores what the files hold behind a cut, and gives where that ends.
    async fn store_log(self, set: &mut AofSet, from: AofCut) -> Result<(ReadRecord, ShardCut)> {
        let piece_bytes = self.job.options.seal.size_bytes;
        let context = &self.job.context;
        let scanned = scan_live(context, &mut set.increments, &set.folder, from, piece_bytes);
        // When the end was stands in the manifest; in the segment it could contradict the next one's times, which are whole seconds.
        let scanned = context.unless_stopped(scanned).await?;
        let until = set.until.max(set.from);
        let AofCut { offset, place, database } = scanned.end;
        let Some(file) = set.increments.get_mut(place.file) else {
            return Err(Error::new(ErrorKind::Failed, "the append-only file has no file of commands"));
        };
        let end = mark(file, &set.folder, place.bytes).await?;
        let stored = self.store_pieces(set, from, scanned.end, &scanned.pieces);
        context.unless_stopped(stored).await?;
        let read = ReadRecord {
            source: set.source,
            from: set.from,
            until,
            anchored: true,
            database: None,
            without_functions: false,
            aof: Some(AofRecord { base: self.base_mark, end, database }),
        };
        Ok((read, ShardCut { history: self.history, offset }))
    }

    async fn store_pieces(
        &self,
        set: &mut AofSet,
        from: AofCut,
        until: AofCut,
        pieces: &[AofPiece],
    ) -> Result<()> {
        let record = HistoryRecord {
            format_version: HISTORY_VERSION,
            history: self.history.clone(),
            parent: None,
            slots: self.shard.slots.clone(),
            source: self.candidate.addr.clone(),
            first_seen_at: self.job.context.clock.now(),
        };
        let (repository, cluster) = (&self.job.repository, &self.job.options.cluster);
        repository.put_history(cluster, &record).await?;
        let mut log = AofLog::new(std::mem::take(&mut set.increments), set.folder.clone(), from, until);
        let mut bytes = bytes::Bytes::new();
        for piece in pieces {
            let mut segment =
                match repository.create_segment(cluster, &self.history, piece.range.clone()).await {
                    Ok(segment) => Some(segment),
                    // By a backup that was not listed: the same bytes.
                    Err(RepoError { problem: Problem::Exists, .. }) => None,
                    Err(error) => return Err(error.into()),
                };
            let mut left = piece.range.end.saturating_sub(piece.range.start);
            while left > 0 {
                if bytes.is_empty() {
                    bytes = log.next().await?.ok_or_else(|| {
                        Error::new(ErrorKind::Failed, "the append-only file ended before its end")
                    })?;
                }
                let now = bytes.split_to(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
                left = left.saturating_sub(now.len() as u64);
                if let Some(segment) = &mut segment {
                    segment.write(&now).await?;
                }
            }
            let meta = SegmentMeta {
                database: piece.database,
                commands: piece.commands,
                source: self.candidate.addr.clone(),
                server: self.candidate.server.into(),
                times: piece.times.clone(),
            };
            match segment {
                None => {}
                Some(segment) => match segment.finish(meta).await {
                    Ok(_) | Err(RepoError { problem: Problem::Exists, .. }) => {}
                    Err(error) => return Err(error.into()),
                },
            }
        }
        Ok(())
    }
}
