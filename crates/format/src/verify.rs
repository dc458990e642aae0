//! What was proved of a repository, and what was found to be wrong with it.
//!
//! A run leaves one [`VerifyRecord`], its report, and files of [`Proofs`], which name what it has proved: later runs need not prove
//! that again, and notice what was there and is gone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::json::{parse_versioned, render};
use crate::manifest::ManifestError;

/// The newest format of records and proofs that this code writes and reads.
pub const VERIFY_VERSION: u32 = 1;

/// What stands in the place of a finding's words where they are encrypted.
const SEALED_WORDS: &str = "what was found is encrypted: it is shown to who has an identity";

/// How deep a verification goes. Each depth includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Every object is there and has its length and BLAKE3.
    Objects,
    /// Every byte has a meaning, and what is derived from it is right.
    Structure,
    /// A base and the log behind it give the next base.
    Chain,
    /// It restores and serves.
    Drill,
    /// It equals the running cluster.
    Live,
}

impl Depth {
    /// Its word on the command line and in files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Structure => "structure",
            Self::Chain => "chain",
            Self::Drill => "drill",
            Self::Live => "live",
        }
    }
}

impl core::fmt::Display for Depth {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.word())
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing needs to be done.
    Note,
    /// What is to be done can be done, but less well or less completely than it should be.
    Warning,
    /// It can't be done, or not of everything.
    Problem,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyFinding {
    /// How bad it is.
    pub severity: Severity,
    /// The depth whose promise does not hold.
    pub depth: Depth,
    /// Which check found it: a fixed word for programs.
    pub check: String,
    /// The object's path in the repository, or what else it is about.
    pub object: String,
    /// Where: a byte of the RDB, or an offset of the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What was found.
    pub what: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How much a run has looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyTotals {
    /// Objects that there are to prove.
    pub objects: u64,
    /// Of those, proved in this run.
    pub proved: u64,
    /// Of those, proved by an earlier run and not changed since.
    pub proved_before: u64,
    /// Of those, left out of the sample.
    pub left_out: u64,
    /// Stored bytes read.
    pub stored_bytes: u64,
    /// Bytes of RDBs and of the log taken apart.
    pub raw_bytes: u64,
    /// Keys seen in RDBs.
    pub keys: u64,
    /// Commands seen in the log.
    pub commands: u64,
    /// Pairs of neighbouring bases that a log joins.
    #[serde(default)]
    pub links: u64,
    /// Of those, proved in this run: the first base and the log give the second.
    #[serde(default)]
    pub links_proved: u64,
    /// Of those, proved by an earlier run.
    #[serde(default)]
    pub links_proved_before: u64,
}

/// What a run came to for one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupVerdict {
    /// The backup.
    pub id: String,
    /// The worst finding about what it needs.
    pub worst: Severity,
}

/// One step of a drill or of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillStep {
    /// What was done.
    pub name: String,
    /// How long it took, in ms.
    pub ms: u64,
}

/// A restore into a throw-away cluster, measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// The backup that was restored, or whose bases were.
    pub backup: String,
    /// The moment that was restored, by the servers' clocks; absent if it was a backup without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// What the nodes ran.
    pub server: String,
    /// How many nodes there were.
    pub nodes: u64,
    /// How many keys came back.
    pub keys: u64,
    /// From the beginning until every slot was served, in ms; absent if it did not come so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_ms: Option<u64>,
    /// The age of the newest moment that could be restored, in ms: what would have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// The steps in order.
    pub steps: Vec<DrillStep>,
}

/// One shard of a running cluster that was compared with the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveShard {
    /// Its slots.
    pub slots: String,
    /// The node that was captured.
    pub source: String,
    /// The history that it followed.
    pub history: String,
    /// The offset at which it was captured.
    pub offset: u64,
    /// The backup whose base the repository's side was made from.
    pub backup: String,
    /// How many bytes of the log were applied to it.
    pub log_bytes: u64,
    /// How many keys the node held.
    pub keys: u64,
}

/// A comparison with the running cluster, measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRecord {
    /// The backups all of whose bases were used.
    pub backups: Vec<String>,
    /// When the last shard was captured, by its server's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Whether an archive brought the log to the captured offsets; if not, this run continued it.
    pub archived: bool,
    /// How many keys the cluster held.
    pub keys: u64,
    /// The shards, in the order of their slots.
    pub shards: Vec<LiveShard>,
    /// The steps in order.
    pub steps: Vec<DrillStep>,
}

/// A run: how deep it went, what it looked at, what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRecord {
    /// [`VERIFY_VERSION`] at the time of writing.
    pub format_version: u32,
    /// Its id, unique in its repository; ids sort by time.
    pub id: String,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// How deep it went.
    pub depth: Depth,
    /// Whether it came to its end; what an interrupted one has proved counts all the same.
    pub complete: bool,
    /// Whether it left out the depths before that one.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub only: bool,
    /// Whether it proved again what had been proved before.
    pub again: bool,
    /// How many per cent of the objects it chose at random; absent if all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_percent: Option<u8>,
    /// When it began, by the clock of the machine that it ran on.
    pub started_at: Timestamp,
    /// When it ended, by the same clock.
    pub finished_at: Timestamp,
    /// The version of Slotkeep that ran.
    pub slotkeep_version: String,
    /// How much it looked at.
    pub totals: VerifyTotals,
    /// The oldest proof that it relied on; absent if it relied on none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_proof_at: Option<Timestamp>,
    /// Every backup that was listed, oldest first.
    pub backups: Vec<BackupVerdict>,
    /// The drill, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillRecord>,
    /// The comparison with the running cluster, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveRecord>,
    /// What it found, the worst first.
    pub findings: Vec<VerifyFinding>,
}

impl VerifyRecord {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, VERIFY_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }

    /// The file as JSON without the words of its findings, which may hold keys and values: `sealed` is an armoured age file that holds
    /// what [`Self::render_findings`] gives.
    pub fn render_sealed(&self, sealed: &str) -> Result<Vec<u8>, ManifestError> {
        #[derive(Serialize)]
        struct Sealed<'a> {
            #[serde(flatten)]
            record: &'a VerifyRecord,
            sealed_findings: &'a str,
        }
        let findings = self.findings.iter().map(|finding| VerifyFinding {
            severity: finding.severity,
            depth: finding.depth,
            check: finding.check.clone(),
            object: finding.object.clone(),
            offset: finding.offset,
            what: SEALED_WORDS.to_owned(),
            advice: None,
        });
        let record = Self { findings: findings.collect(), ..self.clone() };
        render(&Sealed { record: &record, sealed_findings: sealed })
    }

    /// The encrypted findings of a record's JSON, if it has some.
    pub fn sealed_findings(json: &[u8]) -> Result<Option<String>, ManifestError> {
        #[derive(Deserialize)]
        struct Sealed {
            #[serde(default)]
            sealed_findings: Option<String>,
        }
        Ok(serde_json::from_slice::<Sealed>(json)?.sealed_findings)
    }

    /// [`Self::findings`] as JSON, to be encrypted.
    pub fn render_findings(&self) -> Result<Vec<u8>, ManifestError> {
        Ok(serde_json::to_vec(&self.findings)?)
    }

    /// Reads what [`Self::render_findings`] gave.
    pub fn parse_findings(json: &[u8]) -> Result<Vec<VerifyFinding>, ManifestError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// The worst finding; [`Severity::Ok`] if there is none.
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }
}

/// That an object was found to be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Its path in the repository.
    pub object: String,
    /// Its length as stored.
    pub stored_bytes: u64,
    /// When the store says that it was written, in ms since 1970: a later time means another object.
    pub modified_ms: i64,
    /// BLAKE3 of its stored bytes, in hex; of a segment, of those before its record.
    pub blake3: String,
    /// How deep it was looked into.
    pub depth: Depth,
    /// When.
    pub at: Timestamp,
}

/// Some of what a run has proved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs {
    /// [`VERIFY_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The proofs.
    pub proofs: Vec<Proof>,
}

impl Proofs {
    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        parse_versioned(json, VERIFY_VERSION)
    }

    /// The file as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_proofs_read_as_they_were_written() {
        let finding = VerifyFinding {
            severity: Severity::Problem,
            depth: Depth::Structure,
            check: "rdb".to_owned(),
            object: "main/history/x".to_owned(),
            offset: Some(u64::MAX),
            what: "damaged".to_owned(),
            advice: None,
        };
        let record = VerifyRecord {
            format_version: VERIFY_VERSION,
            id: "20261125T000000.000Z-0000".to_owned(),
            cluster: "main".to_owned(),
            depth: Depth::Drill,
            complete: true,
            only: false,
            again: false,
            sample_percent: Some(10),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            slotkeep_version: "0".to_owned(),
            totals: VerifyTotals::default(),
            oldest_proof_at: None,
            backups: vec![BackupVerdict { id: "b".to_owned(), worst: Severity::Ok }],
            drill: None,
            live: None,
            findings: vec![finding],
        };
        assert_eq!(VerifyRecord::parse(&record.render().unwrap()).unwrap(), record);
        assert_eq!(record.worst(), Severity::Problem);
        let proof = Proof {
            object: "main/x".to_owned(),
            stored_bytes: 1,
            modified_ms: -1,
            blake3: "00".to_owned(),
            depth: Depth::Objects,
            at: Timestamp::UNIX_EPOCH,
        };
        let proofs = Proofs { format_version: VERIFY_VERSION, proofs: vec![proof] };
        assert_eq!(Proofs::parse(&proofs.render().unwrap()).unwrap(), proofs);
    }

    #[test]
    fn depths_are_ordered_and_have_one_word() {
        assert!(Depth::Objects < Depth::Structure && Depth::Drill < Depth::Live);
        assert_eq!(serde_json::to_string(&Depth::Chain).unwrap(), format!("\"{}\"", Depth::Chain));
    }
}
