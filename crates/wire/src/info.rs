//! `INFO`: what a server says about itself.
//!
//! Source of the fields: `genRedisInfoString` (Valkey: `genValkeyInfoString`) in `src/server.c` of Redis 6.2 to 8.8 and
//! Valkey 7.2 to 9.1. Field names are the same in both, the old words included.

mod replication;

use std::collections::BTreeMap;

use slotkeep_model::{Product, ServerVersion};
use thiserror::Error;

pub use replication::{Backlog, ConnectedReplica, PrimaryLink, Replication};

/// A field of `INFO` that is missing or not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("INFO's field {field} is {}, expected {expected}", found.as_ref().map_or_else(|| "missing".to_owned(), |found| format!("`{found}`")))]
pub struct InfoError {
    /// The field.
    pub field: String,
    /// Its value, if it is there.
    pub found: Option<String>,
    /// What it should be.
    pub expected: &'static str,
}

/// The fields of `INFO`, by section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    sections: Vec<Section>,
}

/// One section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// The section's name, as in `Replication`; empty for fields before the first heading.
    pub name: String,
    /// The fields and their values, in the server's order.
    pub fields: Vec<(String, String)>,
}

/// One database of the keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Database {
    /// Number of keys, expired ones that are not deleted yet among them.
    pub keys: u64,
    /// Number of keys with an expiry.
    pub expires: u64,
}

/// How the server stands with its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the server's own flags, independent of each other")]
pub struct Persistence {
    /// Whether it is loading its dataset.
    pub loading: bool,
    /// Whether a snapshot is being made, for the disk or for a replica.
    pub bgsave_in_progress: bool,
    /// Whether the last snapshot to disk succeeded.
    pub last_bgsave_ok: bool,
    /// Whether it keeps an append-only file.
    pub aof_enabled: bool,
    /// Whether that file is being rewritten.
    pub aof_rewrite_in_progress: bool,
}

/// The server's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What the server has allocated.
    pub used_bytes: u64,
    /// What the process occupies.
    pub resident_bytes: u64,
    /// `maxmemory`; 0 means no limit.
    pub limit_bytes: u64,
    /// The machine's memory; `None` if the server cannot tell.
    pub system_bytes: Option<u64>,
}

impl Info {
    /// Takes the text apart. Lines that are neither headings nor fields are passed over.
    pub fn parse(text: &str) -> Self {
        let mut sections: Vec<Section> = Vec::new();
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            if let Some(name) = line.strip_prefix('#') {
                sections.push(Section { name: name.trim().to_owned(), fields: Vec::new() });
            } else if let Some((name, value)) = line.split_once(':') {
                if sections.is_empty() {
                    sections.push(Section::default());
                }
                if let Some(section) = sections.last_mut() {
                    section.fields.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        Self { sections }
    }

    /// The sections, in the server's order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section of that name, in any case.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name.eq_ignore_ascii_case(name))
    }

    /// The value of a field, in whichever section it stands.
    pub fn get(&self, field: &str) -> Option<&str> {
        let mut fields = self.sections.iter().flat_map(|section| &section.fields);
        fields.find(|(name, _)| name == field).map(|(_, value)| value.as_str())
    }

    /// The value of a field that counts something.
    pub fn number(&self, field: &str) -> Result<u64, InfoError> {
        self.parsed(field, "a number")
    }

    /// The value of a field that is `0` or `1`.
    pub fn flag(&self, field: &str) -> Result<bool, InfoError> {
        match self.get(field) {
            Some("0") => Ok(false),
            Some("1") => Ok(true),
            _ => Err(self.wrong(field, "0 or 1")),
        }
    }

    fn parsed<T: core::str::FromStr>(&self, field: &str, expected: &'static str) -> Result<T, InfoError> {
        self.get(field).and_then(|value| value.parse().ok()).ok_or_else(|| self.wrong(field, expected))
    }

    fn wrong(&self, field: &str, expected: &'static str) -> InfoError {
        InfoError { field: field.to_owned(), found: self.get(field).map(str::to_owned), expected }
    }

    /// The server's product and version. Valkey also reports a `redis_version`, for old clients: it doesn't count.
    pub fn server_version(&self) -> Option<ServerVersion> {
        match self.get("valkey_version") {
            Some(text) => ServerVersion::parse(Product::Valkey, text),
            None => ServerVersion::parse(Product::Redis, self.get("redis_version")?),
        }
    }

    /// Whether the server runs in cluster mode (section `Cluster`).
    pub fn cluster_enabled(&self) -> Result<bool, InfoError> {
        self.flag("cluster_enabled")
    }

    /// Section `Replication`.
    pub fn replication(&self) -> Result<Replication, InfoError> {
        Replication::from_info(self)
    }

    /// Section `Keyspace`: the databases that hold keys, by number.
    pub fn keyspace(&self) -> Result<BTreeMap<u32, Database>, InfoError> {
        let fields = self.section("Keyspace").map(|section| section.fields.as_slice()).unwrap_or_default();
        let databases = fields.iter().filter_map(|(name, value)| {
            let number = name.strip_prefix("db")?.parse().ok()?;
            Some((number, name, value))
        });
        databases
            .map(|(number, name, value)| {
                let count = |item| part(value, item).and_then(|count| count.parse().ok());
                let database = count("keys").zip(count("expires"));
                let (keys, expires) = database.ok_or_else(|| self.wrong(name, "keys=N,expires=N"))?;
                Ok((number, Database { keys, expires }))
            })
            .collect()
    }

    /// Section `Persistence`.
    pub fn persistence(&self) -> Result<Persistence, InfoError> {
        Ok(Persistence {
            loading: self.flag("loading")?,
            bgsave_in_progress: self.flag("rdb_bgsave_in_progress")?,
            last_bgsave_ok: self.get("rdb_last_bgsave_status") == Some("ok"),
            aof_enabled: self.flag("aof_enabled")?,
            aof_rewrite_in_progress: self.flag("aof_rewrite_in_progress")?,
        })
    }

    /// Section `Memory`.
    pub fn memory(&self) -> Result<Memory, InfoError> {
        Ok(Memory {
            used_bytes: self.number("used_memory")?,
            resident_bytes: self.number("used_memory_rss")?,
            limit_bytes: self.number("maxmemory")?,
            system_bytes: self.number("total_system_memory").ok().filter(|bytes| *bytes > 0),
        })
    }
}

/// The value of an item in `item=value,item=value`.
fn part<'v>(value: &'v str, item: &str) -> Option<&'v str> {
    value.split(',').find_map(|pair| pair.strip_prefix(item)?.strip_prefix('='))
}

#[cfg(test)]
mod tests;
