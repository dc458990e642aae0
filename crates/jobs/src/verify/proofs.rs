//! What was proved: read from earlier runs, and written down while a run goes on.
//!
//! Invariants: a proof is written only for an object that was read to its end and found right; it counts as long as the store shows the
//! object with the same length and the same time of writing, and in a signed repository only if it is signed. Of each object the newest word
//! counts, damage before proof: what a later run found wrong with it is not forgotten until it was read again and found right.

use std::collections::{BTreeMap, HashMap};

use futures::StreamExt;
use jiff::Timestamp;
use slotkeep_format::verify::VERIFY_VERSION;
use slotkeep_format::{Depth, Proof, Proofs, Severity, VerifyFinding};
use slotkeep_repo::{Area, Problem, RepoError, Repository, StoredObject};

use super::findings::{finding, of_object};
use crate::Result;
use crate::verifications::{Word, record_id, word};

/// How many files are read at a time.
const READS_IN_FLIGHT: usize = 4;
/// A file of proofs is written when so many have come together. A run that is killed proves as many again at the most.
const PROOFS_PER_FILE: usize = 2_000;

/// 128 bits of a hash of a path.
pub(super) fn fingerprint(path: &str) -> u128 {
    let hash = blake3::hash(path.as_bytes());
    hash.as_bytes().first_chunk::<16>().map_or(0, |bytes| u128::from_le_bytes(*bytes))
}

/// What earlier runs have proved. Some sixty bytes an object.
#[derive(Default)]
pub(super) struct Known {
    proofs: HashMap<u128, KnownProof>,
}

struct KnownProof {
    depth: Depth,
    at: Timestamp,
    stored_bytes: u64,
    modified_ms: i64,
    blake3_start: u64,
}

/// What was proved once and is not listed now: its path and when it was proved last.
pub(super) type Gone = BTreeMap<String, Timestamp>;

impl Known {
    /// Reads what earlier runs have proved of the cluster; `is_present` says whether an object is there.
    pub(super) async fn load(
        repository: &Repository,
        cluster: &str,
        is_present: impl Fn(u128) -> bool,
        findings: &mut Vec<VerifyFinding>,
    ) -> Result<(Self, Gone)> {
        let (mut known, mut gone) = (Self::default(), Gone::new());
        let mut files = repository.stored_objects(cluster, Area::Verifications).await?;
        files.sort_by_key(|file| (file.modified_ms, record_id(&file.path).is_some()));
        let mut reads = futures::stream::iter(files)
            .map(async |file| {
                let word = word(repository, cluster, &file).await;
                (file, word)
            })
            .buffered(READS_IN_FLIGHT);
        while let Some((object, word)) = reads.next().await {
            match word {
                Ok(Word::Proofs(file)) => {
                    for proof in file.proofs {
                        let path = fingerprint(&proof.object);
                        if is_present(path) {
                            known.add(path, &proof);
                        } else {
                            gone.insert(proof.object, proof.at);
                        }
                    }
                }
                Ok(Word::Record(record)) => record.findings.iter().for_each(|found| known.take_back(found)),
                Ok(Word::Nothing) => {}
                Err(RepoError { problem: Problem::Untrusted(what), .. }) => {
                    let advice = "what it says was proved is proved again; find out who can write to the repository, and delete it";
                    let at = (Depth::Objects, "signature");
                    findings.push(finding(Severity::Warning, at, &object.path, what, advice));
                }
                Err(error) => {
                    let advice = "what it says was proved is proved again; delete it";
                    let mut found = of_object(error, (Depth::Objects, "bytes"), &object.path, advice)?;
                    found.severity = Severity::Warning;
                    findings.push(found);
                }
            }
        }
        Ok((known, gone))
    }

    fn add(&mut self, path: u128, proof: &Proof) {
        let known = KnownProof {
            depth: proof.depth,
            at: proof.at,
            stored_bytes: proof.stored_bytes,
            modified_ms: proof.modified_ms,
            blake3_start: start_of(&proof.blake3),
        };
        let same = |old: &KnownProof| {
            (old.stored_bytes, old.modified_ms, old.blake3_start)
                == (known.stored_bytes, known.modified_ms, known.blake3_start)
        };
        // A deeper proof of the same object stands, however old.
        if self.proofs.get(&path).is_none_or(|old| !same(old) || old.depth <= known.depth) {
            self.proofs.insert(path, known);
        }
    }

    /// Hears what was found later. That a base and its log do not give the next one says nothing of the object itself.
    fn take_back(&mut self, found: &VerifyFinding) {
        if found.severity < Severity::Problem {
            return;
        }
        let path = fingerprint(&found.object);
        if found.depth <= Depth::Structure {
            self.proofs.remove(&path);
        } else if let Some(known) = self.proofs.get_mut(&path) {
            known.depth = known.depth.min(Depth::Structure);
        }
    }

    /// When that object was proved to that depth, if it was and has not changed. `blake3` is what it should have, if that is known.
    pub(super) fn proved(
        &self,
        object: &StoredObject,
        blake3: Option<&str>,
        depth: Depth,
    ) -> Option<Timestamp> {
        let known = self.proofs.get(&fingerprint(&object.path))?;
        let unchanged = (known.stored_bytes, known.modified_ms) == (object.bytes, object.modified_ms)
            && blake3.is_none_or(|blake3| known.blake3_start == start_of(blake3));
        (unchanged && known.depth >= depth).then_some(known.at)
    }
}

fn start_of(blake3: &str) -> u64 {
    blake3.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Writes down what a run proves.
pub(crate) struct Ledger<'a> {
    repository: &'a Repository,
    cluster: &'a str,
    id: &'a str,
    next_part: u32,
    pending: Vec<Proof>,
}

impl<'a> Ledger<'a> {
    pub(crate) const fn new(repository: &'a Repository, cluster: &'a str, id: &'a str) -> Self {
        Self { repository, cluster, id, next_part: 1, pending: Vec::new() }
    }

    /// Adds a proof.
    pub(crate) async fn prove(
        &mut self,
        object: &StoredObject,
        blake3: &str,
        depth: Depth,
        at: Timestamp,
    ) -> Result<()> {
        self.pending.push(Proof {
            object: object.path.clone(),
            stored_bytes: object.bytes,
            modified_ms: object.modified_ms,
            blake3: blake3.to_owned(),
            depth,
            at,
        });
        if self.pending.len() >= PROOFS_PER_FILE { self.flush().await } else { Ok(()) }
    }

    /// How many proofs are not written down yet.
    pub(crate) const fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes down what was not written down yet.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let proofs = Proofs { format_version: VERIFY_VERSION, proofs: std::mem::take(&mut self.pending) };
        self.repository.put_proofs(self.cluster, self.id, self.next_part, &proofs).await?;
        self.next_part = self.next_part.saturating_add(1);
        Ok(())
    }
}

/// What to say of objects that were proved once and are not there now.
pub(super) fn gone(
    gone: &Gone,
    severity_of: impl Fn(&str) -> Option<(Severity, &'static str)>,
) -> impl Iterator<Item = VerifyFinding> {
    gone.iter().filter_map(move |(path, at)| {
        let (severity, advice) = severity_of(path)?;
        let what = format!("it was here on {} and is gone", at.strftime("%Y-%m-%d %H:%M:%SZ"));
        Some(finding(severity, (Depth::Objects, "present"), path, what, advice))
    })
}
