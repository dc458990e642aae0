//! A key as it was read back, to be compared with what another server, or the same one later, says of it.
//!
//! Only the meaning is compared: elements of sets, hashes and sorted sets in an order of their own, no idle times, no
//! encodings. What one of two servers cannot tell (6.2: the absolute expiry) is not compared.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::cluster_client::ClusterClient;
use crate::error::{Error, Result};
use crate::resp::Value;

/// Beyond this many fields a hash's field expiries are not read.
const MAX_FIELDS_WITH_EXPIRY: usize = 10_000;

/// One key: its type, its value as a fingerprint, and when it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    key: Vec<u8>,
    kind: String,
    fingerprint: u64,
    /// The start of the value, for messages.
    shown: String,
    expires_at_ms: Option<i64>,
    fields_expire: Option<Value>,
}

impl Sample {
    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key's type as the server calls it; `none` if it is not there.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Reads a key, whatever its type.
    pub fn read(client: &mut ClusterClient, key: &[u8]) -> Result<Self> {
        let kind = client.command(&[&b"TYPE"[..], key])?.text()?;
        let value = match kind.as_str() {
            "string" => client.command(&[&b"GET"[..], key])?,
            "list" => client.command(&[&b"LRANGE"[..], key, b"0", b"-1"])?,
            "set" => sorted(&client.command(&[&b"SMEMBERS"[..], key])?, 1)?,
            "zset" => sorted(&client.command(&[&b"ZRANGE"[..], key, b"0", b"-1", b"WITHSCORES"])?, 2)?,
            "hash" => sorted(&client.command(&[&b"HGETALL"[..], key])?, 2)?,
            "stream" => read_stream(client, key)?,
            _ => Value::Null,
        };
        let fields_expire = if kind == "hash" { read_fields_expire(client, key, &value)? } else { None };
        let expires_at_ms = match client.command(&[&b"PEXPIRETIME"[..], key]) {
            Ok(at) => Some(at.int()?),
            // Redis 6.2 cannot say.
            Err(Error::Reply { .. }) => None,
            Err(error) => return Err(error),
        };
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Ok(Self {
            key: key.to_vec(),
            kind,
            fingerprint: hasher.finish(),
            shown: format!("{value:?}").chars().take(200).collect(),
            expires_at_ms,
            fields_expire,
        })
    }

    /// Reads the key again and compares; [`Error::Mismatch`] if it is not what it was.
    pub fn verify(&self, client: &mut ClusterClient) -> Result<()> {
        let found = Self::read(client, &self.key)?;
        let same = self.kind == found.kind
            && self.fingerprint == found.fingerprint
            && agree(self.expires_at_ms.as_ref(), found.expires_at_ms.as_ref())
            && agree(self.fields_expire.as_ref(), found.fields_expire.as_ref());
        if same {
            return Ok(());
        }
        Err(Error::Mismatch {
            key: self.key.escape_ascii().to_string(),
            expected: self.to_string(),
            found: found.to_string(),
        })
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} expires {:?}, fields {:?}",
            self.kind, self.shown, self.expires_at_ms, self.fields_expire
        )
    }
}

fn agree<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

/// The elements in ascending order, in groups of `size` that belong together.
fn sorted(value: &Value, size: usize) -> Result<Value> {
    let mut groups: Vec<&[Value]> = value.array()?.chunks(size).collect();
    groups.sort_unstable();
    Ok(Value::Array(groups.concat()))
}

fn read_fields_expire(client: &mut ClusterClient, key: &[u8], fields: &Value) -> Result<Option<Value>> {
    let names: Vec<&[u8]> = fields.array()?.chunks(2).filter_map(|pair| pair.first()?.bytes()).collect();
    if names.len() > MAX_FIELDS_WITH_EXPIRY {
        return Ok(None);
    }
    let count = names.len().to_string();
    let mut args = vec![&b"HPEXPIRETIME"[..], key, b"FIELDS", count.as_bytes()];
    args.extend(names);
    match client.command(&args) {
        Ok(times) => Ok(Some(times)),
        // Servers before hash-field expiry.
        Err(Error::Reply { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The entries, and of each group its name, its consumers and what is pending, without idle times.
fn read_stream(client: &mut ClusterClient, key: &[u8]) -> Result<Value> {
    let mut parts = vec![client.command(&[&b"XRANGE"[..], key, b"-", b"+"])?];
    let groups = client.command_on(key, &[&b"XINFO"[..], b"GROUPS", key])?;
    for group in groups.array()? {
        // Every version starts with name, consumers, pending, last-delivered-id, each after its label.
        let known = group.array()?.get(..8).ok_or_else(|| group.unexpected("a group"))?;
        parts.push(Value::Array(known.to_vec()));
        let name = known.get(1).and_then(Value::bytes).unwrap_or_default();
        let pending = client.command(&[&b"XPENDING"[..], key, name, b"-", b"+", b"100000"])?;
        for entry in pending.array()? {
            let [id, consumer, _idle, deliveries] = entry.array()? else {
                return Err(entry.unexpected("a pending entry"));
            };
            parts.push(Value::Array(vec![id.clone(), consumer.clone(), deliveries.clone()]));
        }
        let consumers = client.command_on(key, &[&b"XINFO"[..], b"CONSUMERS", key, name])?;
        for consumer in consumers.array()? {
            parts.push(consumer.array()?.get(1).cloned().unwrap_or(Value::Null));
        }
    }
    Ok(Value::Array(parts))
}
