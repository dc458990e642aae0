//! A base: its objects whole, its RDB understood to the last byte, its index and digest what the RDB gives.
//!
//! The RDB is read once. A worker takes it apart and makes the index again, which is compared with the stored one piece by piece as
//! it comes; every arrow is a queue of at most two frames.
//!
//! ```text
//! rdb.zst ─► frames ─► worker (CRC64, parse, digest) ─► index as it should be ─┐
//! index.zst ─► frames ────────────────────────────────────────────────────────┴─► compared
//! ```

use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::manifest::{BaseRecord, CrcRecord, ObjectRecord};
use slotkeep_format::{Depth, Severity, VerifyFinding, decode_digest};
use slotkeep_model::{DatasetDigest, SlotSet};
use slotkeep_rdb::{Crc, Envelope, EnvelopeError, EnvelopeReport};
use slotkeep_repo::{Problem, RepoError, StoredObject};
use tokio::sync::mpsc;

use super::findings::{BASE_ADVICE, DERIVED_ADVICE, finding, problem};
use super::object::{Looker, Outcome};
use crate::backup::{HASH_VERSION, Interpreter, NotUnderstood};
use crate::{Error, ErrorKind, Result};

/// Pieces that wait in each queue.
const QUEUE_PIECES: usize = 2;
/// A digest object has at most this many bytes: a header and 16384 rows.
const DIGEST_MOST_BYTES: usize = 1 << 20;
const RDB: (Depth, &str) = (Depth::Structure, "rdb");
const CRC: (Depth, &str) = (Depth::Structure, "crc64");
const INDEX: (Depth, &str) = (Depth::Structure, "index");
const DIGEST: (Depth, &str) = (Depth::Structure, "digest");

/// A base to look at.
pub(super) struct BaseJob {
    /// Which of the inventory's bases it is.
    pub(super) number: usize,
    pub(super) record: BaseRecord,
    pub(super) slots: SlotSet,
    /// Its objects as the listing shows them, in the order of [`BaseRecord::objects`]; those that are `None` are known to be bad.
    pub(super) stored: Vec<Option<StoredObject>>,
}

impl Looker {
    /// Looks at a base as deep as was asked for.
    pub(super) async fn base(&self, job: BaseJob) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let good: Vec<bool> = job.stored.iter().map(Option::is_some).collect();
        let has = |object: Option<&ObjectRecord>| {
            let place = object.and_then(|object| job.record.objects().position(|other| other == object));
            place.and_then(|place| good.get(place).copied()).unwrap_or(false)
        };
        let mut looked: Vec<&str> = Vec::new();
        if self.depth >= Depth::Structure && has(Some(&job.record.rdb)) {
            let (index, digest) = (job.record.index.as_ref(), job.record.digest.as_ref());
            let index = index.filter(|index| has(Some(index)));
            let digest = digest.filter(|digest| has(Some(digest)));
            self.take_apart(&job, index, digest, &mut outcome).await?;
            looked.extend(
                [Some(&job.record.rdb), index, digest]
                    .into_iter()
                    .flatten()
                    .map(|object| object.path.as_str()),
            );
        }
        for (object, stored) in job.record.objects().zip(&job.stored) {
            let Some(stored) = stored else { continue };
            if !looked.contains(&object.path.as_str()) {
                let advice = if *object == job.record.rdb { BASE_ADVICE } else { DERIVED_ADVICE };
                outcome.findings.extend(self.whole(object, advice).await?);
            }
            let is_bad = |finding: &VerifyFinding| {
                finding.object == object.path && finding.severity >= Severity::Warning
            };
            let deep_enough = self.depth < Depth::Structure
                || outcome.digest.is_some()
                || job.record.not_interpreted.is_some();
            if deep_enough && !outcome.findings.iter().any(is_bad) {
                outcome.proved.push((stored.clone(), object.blake3.clone()));
            }
        }
        Ok(outcome)
    }

    async fn take_apart(
        &self,
        job: &BaseJob,
        index: Option<&ObjectRecord>,
        digest: Option<&ObjectRecord>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let rdb = &job.record.rdb;
        let (frames, queue) = mpsc::channel(QUEUE_PIECES);
        let (used, buffers) = mpsc::channel(QUEUE_PIECES);
        let (pieces, remade) = mpsc::channel(QUEUE_PIECES);
        let worker = tokio::task::spawn_blocking(move || read_rdb(queue, &used, &pieces));
        let (fed, compared) = futures::join!(self.feed(rdb, frames, buffers), self.compare(index, remade));
        let reading = worker.await.map_err(|error| {
            Error::new(ErrorKind::Failed, format!("a worker ended unexpectedly: {error}"))
        })?;
        if let Err(error) = fed {
            outcome.findings.push(self.explain(error, rdb, "rdb", BASE_ADVICE).await?);
            // Without the RDB nothing can be said of what was made from it but whether it is whole.
            for object in [index, digest].into_iter().flatten() {
                outcome.findings.extend(self.whole(object, DERIVED_ADVICE).await?);
            }
            return Ok(());
        }
        outcome.totals.raw_bytes = rdb.raw_bytes;
        judge_envelope(job, &reading.envelope, outcome);
        let whole = match reading.meaning {
            Ok(meaning) => meaning,
            Err(why) => {
                outcome.findings.push(not_understood(&job.record, why));
                for object in [index, digest].into_iter().flatten() {
                    outcome.findings.extend(self.whole(object, DERIVED_ADVICE).await?);
                }
                return Ok(());
            }
        };
        outcome.totals.keys = whole.keys;
        outcome.digest = Some((job.number, whole.digest.total()));
        judge_numbers(job, &whole, outcome);
        match (compared, index) {
            (Err(error), Some(index)) => {
                outcome.findings.push(self.explain(error, index, "index", DERIVED_ADVICE).await?);
            }
            (Ok(Some(at)), Some(index)) => {
                let found = match self.whole(index, DERIVED_ADVICE).await? {
                    Some(damaged) => damaged,
                    None => VerifyFinding {
                        offset: Some(at),
                        ..problem(INDEX, &index.path, "it is not the index of its RDB", DERIVED_ADVICE)
                    },
                };
                outcome.findings.push(found);
            }
            _ => {}
        }
        match digest {
            Some(digest) => self.judge_digest(digest, &whole.digest, outcome).await,
            None => Ok(()),
        }
    }

    /// Gives the RDB to the worker, in buffers that it gives back.
    async fn feed(
        &self,
        rdb: &ObjectRecord,
        frames: mpsc::Sender<Vec<u8>>,
        mut buffers: mpsc::Receiver<Vec<u8>>,
    ) -> Result<(), RepoError> {
        let mut object = self.repository.framed(rdb).await?;
        let stored: Vec<u32> = object.table().frames().iter().map(|frame| frame.stored_bytes).collect();
        let mut stored = stored.into_iter();
        while let Some(frame) = object.next_in(buffers.try_recv().unwrap_or_default()).await? {
            self.count(stored.next().map_or(0, u64::from));
            // The worker takes everything as long as this side lives.
            let _ = frames.send(frame).await;
        }
        Ok(())
    }

    /// Compares the index with the one made again; gives the first byte that differs. What was made again is taken to its end whatever
    /// happens, so that the worker is not held up.
    async fn compare(
        &self,
        index: Option<&ObjectRecord>,
        mut remade: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Option<u64>, RepoError> {
        let compared = match index {
            Some(index) => self.compare_with(index, &mut remade).await,
            None => Ok(None),
        };
        while remade.recv().await.is_some() {}
        compared
    }

    async fn compare_with(
        &self,
        index: &ObjectRecord,
        remade: &mut mpsc::Receiver<Vec<u8>>,
    ) -> Result<Option<u64>, RepoError> {
        let mut object = self.repository.framed(index).await?;
        let mut at = 0_u64;
        loop {
            let (stored, made) = (object.next().await?, remade.recv().await);
            match (stored, made) {
                (None, None) => break,
                (Some(stored), Some(made)) if stored == made => at = at.saturating_add(stored.len() as u64),
                (stored, made) => {
                    let (stored, made) = (stored.unwrap_or_default(), made.unwrap_or_default());
                    let same = stored.iter().zip(&made).take_while(|(one, other)| one == other).count();
                    return Ok(Some(at.saturating_add(same as u64)));
                }
            }
        }
        self.count(index.stored_bytes);
        Ok(None)
    }

    async fn judge_digest(
        &self,
        object: &ObjectRecord,
        remade: &DatasetDigest,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let read = self.repository.read(object, DIGEST_MOST_BYTES).await.and_then(|bytes| {
            decode_digest(&bytes).map_err(|error| RepoError {
                doing: "read",
                on: object.path.clone(),
                problem: Problem::from(error),
            })
        });
        let found = match read {
            Err(error) => Some(self.explain(error, object, "digest", DERIVED_ADVICE).await?),
            Ok((_, version)) if version != HASH_VERSION => {
                let what = format!("it was made with version {version} of the hash: not compared");
                Some(finding(Severity::Note, DIGEST, &object.path, what, ""))
            }
            Ok((stored, _)) if stored == *remade => None,
            Ok((stored, _)) => {
                let slots = stored.differing_slots(remade);
                let what = if slots.is_empty() {
                    "it is not the digest of its RDB: the function libraries differ".to_owned()
                } else {
                    format!("it is not the digest of its RDB: slots {slots} differ")
                };
                Some(problem(DIGEST, &object.path, what, DERIVED_ADVICE))
            }
        };
        self.count(object.stored_bytes);
        outcome.findings.extend(found);
        Ok(())
    }
}

/// Compares what the manifest says of the RDB's envelope with what was found.
fn judge_envelope(
    job: &BaseJob,
    envelope: &std::result::Result<EnvelopeReport, EnvelopeError>,
    outcome: &mut Outcome,
) {
    let path = &job.record.rdb.path;
    match envelope {
        Err(error) => outcome.findings.push(problem(CRC, path, error.to_string(), BASE_ADVICE)),
        Ok(report) => {
            if report.version != job.record.rdb_version {
                let what = format!("it is {}, the manifest says {}", report.version, job.record.rdb_version);
                outcome.findings.push(problem(RDB, path, what, BASE_ADVICE));
            }
            let verified = matches!(report.crc, Crc::Matches(_));
            if job.record.crc64 == CrcRecord::Verified && !verified {
                let what = "it carries no CRC64, the manifest says that it had one";
                outcome.findings.push(problem(CRC, path, what, BASE_ADVICE));
            }
        }
    }
}

/// Compares what the manifest and the cluster's shape say with what the RDB holds.
fn judge_numbers(job: &BaseJob, meaning: &Meaning, outcome: &mut Outcome) {
    let path = &job.record.rdb.path;
    let numbers = [
        ("keys", job.record.keys, meaning.digest.keys()),
        ("function libraries", job.record.functions, meaning.digest.functions.keys),
    ];
    for (of, said, found) in numbers {
        if let Some(said) = said.filter(|said| *said != found) {
            let what = format!("it holds {found} {of}, the manifest says {said}");
            outcome.findings.push(problem(RDB, path, what, BASE_ADVICE));
        }
    }
    let strangers: SlotSet =
        meaning.digest.occupied().map(|(slot, _)| slot).filter(|slot| !job.slots.contains(*slot)).collect();
    if !strangers.is_empty() {
        let what = format!("it holds keys of slots that its shard did not serve: {strangers}");
        let advice = "leftovers of a move, which the server keeps too; a restore passes over them or says so";
        outcome.findings.push(finding(Severity::Note, RDB, path, what, advice));
    }
}

fn not_understood(record: &BaseRecord, why: NotUnderstood) -> VerifyFinding {
    let key = why.key.map(|key| format!(", in the key `{}`", key.escape_ascii()));
    let reason = why.reason + &key.unwrap_or_default();
    if record.not_interpreted.is_some() {
        let what = format!("its bytes are whole and were never understood: {reason}");
        let advice = "a newer Slotkeep may understand it; a server of its version loads it";
        return finding(Severity::Note, RDB, &record.rdb.path, what, advice);
    }
    VerifyFinding { offset: why.offset, ..problem(RDB, &record.rdb.path, reason, BASE_ADVICE) }
}

/// What an RDB means.
struct Meaning {
    digest: DatasetDigest,
    keys: u64,
}

/// What the worker has found.
struct Reading {
    envelope: std::result::Result<EnvelopeReport, EnvelopeError>,
    meaning: std::result::Result<Meaning, NotUnderstood>,
}

fn read_rdb(
    mut queue: mpsc::Receiver<Vec<u8>>,
    used: &mpsc::Sender<Vec<u8>>,
    index: &mpsc::Sender<Vec<u8>>,
) -> Reading {
    let mut envelope = Envelope::new();
    let mut interpreter = Interpreter::default();
    let mut failed = None;
    while let Some(piece) = queue.blocking_recv() {
        envelope.feed(&piece);
        if failed.is_none() {
            failed = interpreter.feed(&piece).err();
        }
        // Memory that is new to the process costs more than what stands in it.
        let _ = used.try_send(piece);
        while failed.is_none() && interpreter.index().len() >= FRAME_RAW_BYTES {
            // Nobody compares what nobody stored.
            let _ = index.blocking_send(interpreter.index().take(FRAME_RAW_BYTES));
        }
    }
    while !interpreter.index().is_empty() {
        let _ = index.blocking_send(interpreter.index().take(FRAME_RAW_BYTES));
    }
    let keys = interpreter.keys();
    let meaning = match failed {
        Some(why) => Err(why),
        None => interpreter.finish().map(|meaning| Meaning { digest: meaning.digest, keys }),
    };
    Reading { envelope: envelope.finish(), meaning }
}
