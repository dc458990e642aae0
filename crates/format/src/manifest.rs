//! The manifest of a backup: JSON, for people to read.
//!
//! A manifest is the commit: it is written last, by a create that fails if it exists, and names every object of the backup
//! with its length and BLAKE3. Unknown fields are ignored; a newer format version is refused.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use slotkeep_model::{
    Node, NodeAddr, RdbVersion, ReplId, ReplOffset, Role, Shard, SlotDigest, SlotSet, Topology,
};
use thiserror::Error;

use crate::json::{parse_versioned, render, text};

mod base;
mod node;
mod order;
mod read;

pub use base::{BaseRecord, CrcRecord, HeaderRecord, ObjectRecord};
pub use node::{NodeRecord, ProductRecord, RoleRecord, ServerRecord};
pub use order::sort_newest_first;
pub use read::{AofMark, AofRecord, ReadRecord, ReadSource};

/// The newest format of manifests that this code writes and reads. Version 2 added cuts behind the bases.
pub const FORMAT_VERSION: u32 = 2;

/// So far apart the clocks may be of the servers and of those who write down what they see.
pub const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(15);

/// What is wrong with a manifest or a repository file.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is not JSON, or a field is missing or of the wrong type.
    #[error("not readable as JSON of a known format version: {0}")]
    Json(#[from] serde_json::Error),
    /// It was written by a newer Slotkeep.
    #[error("it has format version {found}; this Slotkeep reads up to {newest}")]
    NewerVersion {
        /// Its version.
        found: u32,
        /// The newest version that is read.
        newest: u32,
    },
    /// Its seal is not that of its bytes.
    #[error("it is not what was written: its seal is wrong")]
    Altered,
    /// It contradicts itself.
    #[error("it contradicts itself: {0}")]
    Contradiction(String),
}

/// How a backup was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every shard's dataset, read from its servers.
    Full,
    /// The bases of an earlier backup, and the log from there on.
    Incremental,
    /// A backup and its log, folded into new bases without the cluster.
    Merged,
}

/// A backup: what it holds and how the cluster looked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// The backup's id, unique in its repository; ids sort by time.
    pub id: String,
    /// The name under which the repository keeps the cluster's backups.
    pub cluster: String,
    /// How it was made.
    pub kind: BackupKind,
    /// Whether slots were left out: those of [`Manifest::missing_slots`].
    pub partial: bool,
    /// Slots that no base of this backup covers.
    #[serde(with = "text", default, skip_serializing_if = "SlotSet::is_empty")]
    pub missing_slots: SlotSet,
    /// When the backup began, by the clock of the machine that made it.
    pub started_at: Timestamp,
    /// When its last object was stored, by the same clock.
    pub finished_at: Timestamp,
    /// The version of Slotkeep that made it.
    pub slotkeep_version: String,
    /// Whether the servers ran in cluster mode; a standalone server is a cluster of one shard.
    pub cluster_mode: bool,
    /// The cluster's current epoch.
    pub current_epoch: u64,
    /// The shards, in the order of their first slots.
    pub shards: Vec<ShardRecord>,
    /// Settings of the nodes, nodes that agree in one row.
    pub settings: Vec<SettingsRecord>,
    /// How the shards' cuts belong together; absent if they do not, as each shard ends at its own base, or where its own file ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<ClusterCut>,
    /// Number of keys and digest over all bases; absent if a base was not interpreted.
    #[serde(with = "optional_digest", default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<SlotDigest>,
}

/// How the cuts of all shards belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCut {
    /// How it was made.
    pub method: CutMethod,
    /// The moment of the cut, by the servers' clocks.
    pub at: Timestamp,
    /// By how much the cuts of two shards can differ in time, in ms: the span in which all offsets were read, and how far the
    /// servers' clocks were seen to be apart. 0 with a barrier: no shard took writes while the offsets were read.
    pub error_ms: u64,
    /// For how long writes were paused at most, in ms; only with a barrier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Why another method was used than the one asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fell_back: Option<String>,
}

/// How a cut was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CutMethod {
    /// Every shard's offset at one instant, without a pause.
    Instant,
    /// Every shard's offset while none took writes.
    Barrier,
}

/// Where one shard's part of a backup ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCut {
    /// The history that the cut belongs to: the base's own, or one that descends from it.
    #[serde(with = "text")]
    pub history: ReplId,
    /// The last byte of the log that belongs to the backup; always the end of a command outside transactions.
    pub offset: u64,
}

/// One shard and its base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// The slots it served.
    #[serde(with = "text")]
    pub slots: SlotSet,
    /// Its primary's config epoch.
    pub config_epoch: u64,
    /// Its primary.
    pub primary: NodeRecord,
    /// Its replicas.
    pub replicas: Vec<NodeRecord>,
    /// The node that the base was taken from.
    #[serde(with = "text")]
    pub source: NodeAddr,
    /// What that node was at the time.
    pub source_role: RoleRecord,
    /// What that node ran.
    pub server: ServerRecord,
    /// The history that the base belongs to.
    #[serde(with = "text")]
    pub history: ReplId,
    /// The offset up to which the base holds every write.
    pub offset: u64,
    /// The server's own time just after it announced that offset: the base holds no write acknowledged after it. Absent if the
    /// user may not ask for it (`TIME`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_time: Option<Timestamp>,
    /// The base.
    pub base: BaseRecord,
    /// Where the backup ends, if the log goes on behind the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<ShardCut>,
    /// How the base was read, if it did not come over a replication link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<ReadRecord>,
}

impl ShardRecord {
    /// Where this shard's part of the backup ends: behind the log, or at the base if there is none.
    pub fn cut(&self) -> ShardCut {
        self.cut.clone().unwrap_or_else(|| ShardCut { history: self.history.clone(), offset: self.offset })
    }

    /// The offset up to which the base holds every write.
    pub fn offset(&self) -> ReplOffset {
        ReplOffset(self.offset)
    }
}

/// Settings that one or more nodes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsRecord {
    /// The nodes.
    pub nodes: Vec<String>,
    /// Configuration that differs from the server's defaults; what belongs to one machine alone (paths, ports, addresses) and
    /// passwords are left out.
    pub config: std::collections::BTreeMap<String, String>,
    /// `ACL LIST`; without password hashes unless [`SettingsRecord::secrets`].
    pub acl: Vec<String>,
    /// Whether password hashes and passwords of the configuration are included.
    pub secrets: bool,
    /// Loaded modules and their versions.
    pub modules: std::collections::BTreeMap<String, u64>,
    /// What could not be read, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl Manifest {
    /// Reads and checks a manifest.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = parse_versioned(json, FORMAT_VERSION)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as JSON.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        render(self)
    }

    /// The manifest as JSON with its settings encrypted: `sealed` is an armoured age file that holds [`Manifest::settings`] as
    /// JSON. They are left out of the rest.
    pub fn render_sealed(&self, sealed: &str) -> Result<Vec<u8>, ManifestError> {
        #[derive(Serialize)]
        struct Sealed<'a> {
            #[serde(flatten)]
            manifest: &'a Manifest,
            sealed_settings: &'a str,
        }
        let manifest = Self { settings: vec![], ..self.clone() };
        render(&Sealed { manifest: &manifest, sealed_settings: sealed })
    }

    /// The encrypted settings of a manifest's JSON, if it has some.
    pub fn sealed_settings(json: &[u8]) -> Result<Option<String>, ManifestError> {
        #[derive(Deserialize)]
        struct Sealed {
            #[serde(default)]
            sealed_settings: Option<String>,
        }
        Ok(serde_json::from_slice::<Sealed>(json)?.sealed_settings)
    }

    /// [`Manifest::settings`] as JSON, to be encrypted.
    pub fn render_settings(&self) -> Result<Vec<u8>, ManifestError> {
        Ok(serde_json::to_vec(&self.settings)?)
    }

    /// Reads what [`Manifest::render_settings`] wrote.
    pub fn parse_settings(json: &[u8]) -> Result<Vec<SettingsRecord>, ManifestError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// The cluster's shape at the time of the backup.
    pub fn topology(&self) -> Topology {
        let node = |record: &NodeRecord, role| Node {
            id: record.id.clone(),
            addr: record.addr.clone(),
            role,
            online: record.online,
        };
        let shards = self.shards.iter().map(|shard| Shard {
            slots: shard.slots.clone(),
            config_epoch: shard.config_epoch,
            primary: node(&shard.primary, Role::Primary),
            replicas: shard.replicas.iter().map(|replica| node(replica, Role::Replica)).collect(),
        });
        Topology {
            cluster_mode: self.cluster_mode,
            current_epoch: self.current_epoch,
            shards: shards.collect(),
        }
    }

    /// Every object of the backup.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRecord> {
        self.shards.iter().flat_map(|shard| shard.base.objects())
    }

    /// The newest RDB version among the bases.
    pub fn newest_rdb(&self) -> Option<RdbVersion> {
        self.shards.iter().map(|shard| shard.base.rdb_version).max()
    }

    fn check(&self) -> Result<(), ManifestError> {
        let mut covered = 0;
        for shard in &self.shards {
            covered += shard.slots.len();
        }
        let union: SlotSet =
            self.shards.iter().flat_map(|shard| shard.slots.ranges().iter().copied()).collect();
        if union.len() != covered {
            return Err(ManifestError::Contradiction("a slot belongs to two shards".to_owned()));
        }
        for shard in &self.shards {
            let behind = shard.cut.as_ref().is_some_and(|cut| cut.offset < shard.offset);
            if behind {
                let what = format!("the cut of slots {} lies before its base", shard.slots);
                return Err(ManifestError::Contradiction(what));
            }
        }
        for shard in &self.shards {
            read::check(shard)?;
        }
        if self.partial == self.missing_slots.is_empty() {
            return Err(ManifestError::Contradiction("`partial` and `missing_slots` disagree".to_owned()));
        }
        if union.complement() != self.missing_slots {
            return Err(ManifestError::Contradiction(
                "`missing_slots` are not the slots that no shard covers".to_owned(),
            ));
        }
        Ok(())
    }
}

pub(crate) mod optional_digest {
    use super::{DigestRecord, SlotDigest, digest_from_record};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(crate) fn serialize<S: Serializer>(
        digest: &Option<SlotDigest>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        digest
            .map(|digest| DigestRecord { keys: digest.keys, sum: format!("{:032x}", digest.sum) })
            .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SlotDigest>, D::Error> {
        Option::<DigestRecord>::deserialize(deserializer)?.as_ref().map(digest_from_record).transpose()
    }
}

#[derive(Serialize, Deserialize)]
struct DigestRecord {
    keys: u64,
    sum: String,
}

fn digest_from_record<E: serde::de::Error>(record: &DigestRecord) -> Result<SlotDigest, E> {
    let sum = u128::from_str_radix(&record.sum, 16).map_err(E::custom)?;
    Ok(SlotDigest { keys: record.keys, sum })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample() -> Manifest {
        let object = |path: &str| ObjectRecord {
            path: path.to_owned(),
            stored_bytes: 10,
            raw_bytes: 20,
            blake3: "00".repeat(32),
            header: None,
        };
        let shard = ShardRecord {
            slots: "0-100".parse().unwrap(),
            config_epoch: 3,
            primary: NodeRecord {
                id: Some("a".repeat(40).parse().unwrap()),
                addr: "[::1]:7000".parse().unwrap(),
                online: true,
            },
            replicas: vec![],
            source: "[::1]:7000".parse().unwrap(),
            source_role: RoleRecord::Primary,
            server: ServerRecord { product: ProductRecord::Redis, version: "7.0.15".to_owned() },
            history: "b".repeat(40).parse().unwrap(),
            offset: u64::MAX,
            server_time: Some(Timestamp::UNIX_EPOCH),
            base: BaseRecord {
                rdb: object("main/history/x/base/1/rdb.zst"),
                rdb_version: "REDIS0010".parse().unwrap(),
                crc64: CrcRecord::Verified,
                index: None,
                digest: Some(object("main/history/x/base/1/digest")),
                keys: Some(1),
                functions: Some(0),
                not_interpreted: None,
            },
            cut: None,
            read: None,
        };
        Manifest {
            format_version: FORMAT_VERSION,
            id: "20261123T031205Z-0f3a".to_owned(),
            cluster: "main".to_owned(),
            kind: BackupKind::Full,
            partial: true,
            missing_slots: "101-16383".parse().unwrap(),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            slotkeep_version: "0.1.0".to_owned(),
            cluster_mode: true,
            current_epoch: 3,
            shards: vec![shard],
            settings: vec![],
            cut: None,
            digest: Some(SlotDigest { keys: 1, sum: u128::MAX - 1 }),
        }
    }

    #[test]
    fn a_manifest_reads_as_it_was_written() {
        let manifest = sample();
        assert_eq!(Manifest::parse(&manifest.render().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn a_newer_format_is_refused_whatever_else_it_holds() {
        assert!(matches!(
            Manifest::parse(br#"{"format_version": 3, "shards": 7}"#),
            Err(ManifestError::NewerVersion { found: 3, newest: 2 })
        ));
    }

    #[test]
    fn contradictions_are_refused() {
        let mut manifest = sample();
        manifest.partial = false;
        assert!(matches!(Manifest::parse(&manifest.render().unwrap()), Err(ManifestError::Contradiction(_))));
        let mut manifest = sample();
        manifest.shards.push(manifest.shards[0].clone());
        assert!(matches!(Manifest::parse(&manifest.render().unwrap()), Err(ManifestError::Contradiction(_))));
        let mut manifest = sample();
        manifest.missing_slots = "102-16383".parse().unwrap();
        assert!(matches!(Manifest::parse(&manifest.render().unwrap()), Err(ManifestError::Contradiction(_))));
    }
}
