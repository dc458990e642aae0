//! A base and its objects.

use serde::{Deserialize, Serialize};
use slotkeep_model::RdbVersion;

use crate::json::text;

/// An RDB snapshot of one shard, and what is derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// The RDB, framed.
    pub rdb: ObjectRecord,
    /// The RDB's version.
    #[serde(with = "text")]
    pub rdb_version: RdbVersion,
    /// Whether the server's CRC64 was there and right.
    pub crc64: CrcRecord,
    /// The index, framed; absent if the RDB was not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<ObjectRecord>,
    /// The digest; absent if the RDB was not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ObjectRecord>,
    /// Number of keys, expired ones included; absent if the RDB was not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Number of function libraries; absent if the RDB was not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub functions: Option<u64>,
    /// Why the RDB was stored without being interpreted: a version or type that was not known then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_interpreted: Option<String>,
}

impl BaseRecord {
    /// The objects of the base.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRecord> {
        std::iter::once(&self.rdb).chain(&self.index).chain(&self.digest)
    }
}

/// What became of the server's own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrcRecord {
    /// It was there, and right.
    Verified,
    /// The server wrote none (`rdbchecksum no`, or a version before 5).
    NotComputed,
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Its path in the repository.
    pub path: String,
    /// Its length as stored.
    pub stored_bytes: u64,
    /// The length of what it holds, before compression.
    pub raw_bytes: u64,
    /// BLAKE3 of the stored bytes, in hex.
    pub blake3: String,
    /// The header of an encrypted object: it fixes the key of all that follows, so that a part can be proved without the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderRecord>,
}

/// The header of an age file, with the nonce behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRecord {
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3, in hex.
    pub blake3: String,
}
