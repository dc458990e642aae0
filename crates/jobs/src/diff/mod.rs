//! What differs between two datasets, each a backup or a running cluster.
//!
//! Digests are compared slot by slot; only slots that differ are opened to name the keys. Keys that have expired at the later of the
//! two moments count as absent on both sides. A running cluster is captured as for a backup, into a temporary folder, so the
//! comparison is exact for one offset of each shard while it takes writes.

mod snapshot;

use std::collections::{BTreeSet, HashMap};

use futures::StreamExt;
use serde::Serialize;
use slotkeep_model::{DatasetDigest, Product, ServerVersion, Slot, SlotSet, TimestampMs};
use slotkeep_rdb::LogicalType;

pub use snapshot::{Capture, CaptureOptions, Snapshot};

use crate::value::quoted;
use crate::{Context, Error, Result};

/// How many keys of both sides are compared at a time: what bounds the memory.
const KEYS_AT_A_TIME: u64 = 200_000;
/// How many bases are read at a time.
const BASES_AT_A_TIME: usize = 4;

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct DiffOptions {
    /// The most keys to name; no more slots are opened once there are so many.
    pub limit: usize,
    /// By how much expiry times may be apart without counting as a difference, in ms. 0 but where a log is compared that tells only for
    /// how long keys shall live (Redis 6.2).
    pub expiry_slack_ms: i64,
}

impl DiffOptions {
    /// Exactly, naming at most so many keys.
    pub const fn exact(limit: usize) -> Self {
        Self { limit, expiry_slack_ms: 0 }
    }
}

/// Redis before 7.0 passes on for how long a key shall live (`SET … PX`, `EXPIRE`): each replica counts from when it receives that, and
/// from the log the moment is known as exactly as the server's clock was asked.
const RELATIVE_EXPIRY_SLACK_MS: i64 = 5_000;

/// By how much expiry times may be apart that come from the log of that server, in ms.
pub(crate) fn expiry_slack_ms(server: Option<ServerVersion>) -> i64 {
    let is_relative = server.is_some_and(|server| server.product == Product::Redis && server.major < 7);
    if is_relative { RELATIVE_EXPIRY_SLACK_MS } else { 0 }
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// What the first side is.
    pub a: SideSummary,
    /// What the second side is.
    pub b: SideSummary,
    /// The moment at which expired keys were left out, in ms since the epoch.
    pub at_ms: i64,
    /// The slots whose digests differ.
    pub differing_slots: String,
    /// How many those are.
    pub differing_slot_count: usize,
    /// Whether the function libraries differ.
    pub functions_differ: bool,
    /// The keys that differ, those of the lowest slots first.
    pub keys: Vec<KeyDifference>,
    /// Whether slots were left unopened because enough keys had been named.
    pub limited: bool,
}

impl Diff {
    /// Whether nothing differs.
    pub const fn is_empty(&self) -> bool {
        self.differing_slot_count == 0 && !self.functions_differ
    }
}

/// One side, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideSummary {
    /// What it is.
    pub name: String,
    /// How many keys it holds that have not expired.
    pub keys: u64,
    /// The sum of their hashes, in hex.
    pub digest: String,
}

/// How one key differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyDifference {
    /// The key, as `redis-cli` would quote it.
    pub key: String,
    /// The database it is in.
    pub database: u32,
    /// Its slot.
    pub slot: u16,
    /// How.
    #[serde(flatten)]
    pub how: How,
}

/// How a key differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum How {
    /// Only the first side has it.
    OnlyInA,
    /// Only the second side has it.
    OnlyInB,
    /// It holds another type.
    Type {
        /// The type on the first side.
        a: String,
        /// The type on the second side.
        b: String,
    },
    /// It holds another value.
    Value,
    /// It holds the same value and expires at another time, in ms since the epoch.
    Expiry {
        /// When it expires on the first side.
        a: Option<i64>,
        /// When it expires on the second side.
        b: Option<i64>,
    },
    /// It holds another value and expires at another time, in ms since the epoch.
    ValueAndExpiry {
        /// When it expires on the first side.
        a: Option<i64>,
        /// When it expires on the second side.
        b: Option<i64>,
    },
}

/// Compares two datasets.
pub async fn diff(context: &Context, a: &Snapshot, b: &Snapshot, options: DiffOptions) -> Result<Diff> {
    let work = compare(a, b, options);
    tokio::select! {
        diff = work => diff,
        () = context.stop.cancelled() => Err(Error::interrupted()),
    }
}

async fn compare(a: &Snapshot, b: &Snapshot, options: DiffOptions) -> Result<Diff> {
    let at = a.moment().max(b.moment());
    let (digest_a, digest_b) = (digest_at(a, at).await?, digest_at(b, at).await?);
    let differing = digest_a.differing_slots(&digest_b);
    let mut keys: Vec<KeyDifference> = Vec::new();
    let mut limited = false;
    // Slots whose keys differ by more than what may be.
    let mut slots_left = differing.clone();
    for slots in batches(&differing, &digest_a, &digest_b) {
        if keys.len() >= options.limit {
            limited = true;
            break;
        }
        let found = compare_slots(a, b, &slots, (at, options.expiry_slack_ms)).await?;
        if options.expiry_slack_ms > 0 {
            let named: BTreeSet<u16> = found.iter().map(|key| key.slot).collect();
            let stays = |slot: &Slot| !slots.contains(*slot) || named.contains(&slot.number());
            slots_left = slots_left.iter().filter(stays).collect();
        }
        keys.extend(found);
    }
    limited |= keys.len() > options.limit;
    keys.truncate(options.limit);
    let differing = slots_left;
    Ok(Diff {
        a: summary(a, &digest_a),
        b: summary(b, &digest_b),
        at_ms: at.0,
        differing_slot_count: differing.len(),
        differing_slots: differing.to_string(),
        functions_differ: digest_a.functions != digest_b.functions,
        keys,
        limited,
    })
}

fn summary(snapshot: &Snapshot, digest: &DatasetDigest) -> SideSummary {
    let total = digest.total();
    SideSummary { name: snapshot.name().to_owned(), keys: total.keys, digest: format!("{:032x}", total.sum) }
}

/// The digest of all shards, without what has expired. Every shard has all function libraries; one that lacks some makes the whole
/// differ.
async fn digest_at(snapshot: &Snapshot, at: TimestampMs) -> Result<DatasetDigest> {
    let bases = snapshot.bases()?;
    let mut digests = futures::stream::iter(&bases).map(|base| base.digest_at(at)).buffered(BASES_AT_A_TIME);
    let mut whole: Option<DatasetDigest> = None;
    while let Some(digest) = digests.next().await {
        let digest = digest?;
        match &mut whole {
            None => whole = Some(digest),
            Some(whole) => {
                if whole.functions != digest.functions {
                    whole.functions.merge(digest.functions);
                }
                whole.merge_keys(&digest);
            }
        }
    }
    Ok(whole.unwrap_or_default())
}

/// The slots in groups that fit into memory.
fn batches(slots: &SlotSet, a: &DatasetDigest, b: &DatasetDigest) -> Vec<SlotSet> {
    let mut batches: Vec<Vec<Slot>> = Vec::new();
    let mut keys = u64::MAX;
    for slot in slots.iter() {
        let more = a.slot(slot).keys.saturating_add(b.slot(slot).keys);
        if keys.saturating_add(more) > KEYS_AT_A_TIME {
            batches.push(Vec::new());
            keys = 0;
        }
        keys = keys.saturating_add(more);
        if let Some(batch) = batches.last_mut() {
            batch.push(slot);
        }
    }
    batches.into_iter().map(|batch| batch.into_iter().collect()).collect()
}

/// What is compared of a key.
struct Facts {
    slot: Slot,
    logical: LogicalType,
    value: u128,
    expiry_ms: Option<i64>,
    hash: u128,
}

type Keys = HashMap<(u32, Vec<u8>), Facts>;

/// The keys of those slots that had not expired at that moment.
async fn keys_of(snapshot: &Snapshot, slots: &SlotSet, at: TimestampMs) -> Result<Keys> {
    let mut keys = Keys::new();
    for base in snapshot.bases()? {
        let visit = |digest: &slotkeep_rdb::KeyDigest, key: &[u8]| {
            let expired = digest.expiry_ms.is_some_and(|expiry_ms| expiry_ms <= at.0);
            if expired || digest.is_empty_collection() {
                return;
            }
            let facts = Facts {
                slot: digest.slot,
                logical: digest.logical,
                value: digest.value,
                expiry_ms: digest.expiry_ms,
                hash: digest.hash,
            };
            keys.insert((digest.db, key.to_vec()), facts);
        };
        base.keys_in(slots, visit).await?;
    }
    Ok(keys)
}

async fn compare_slots(
    a: &Snapshot,
    b: &Snapshot,
    slots: &SlotSet,
    (at, slack_ms): (TimestampMs, i64),
) -> Result<Vec<KeyDifference>> {
    let early = TimestampMs(at.0.saturating_sub(slack_ms));
    let late_ms = at.0.saturating_add(slack_ms);
    let mut in_a = keys_of(a, slots, early).await?;
    let in_b = keys_of(b, slots, early).await?;
    let mut differences = Vec::new();
    let mut differs = |(database, key): (u32, Vec<u8>), slot: Slot, how| {
        differences.push(KeyDifference { key: quoted(&key), database, slot: slot.number(), how });
    };
    // On the other side it may have expired already.
    let may_be_gone = |facts: &Facts| facts.expiry_ms.is_some_and(|expiry_ms| expiry_ms <= late_ms);
    for (key, facts_b) in in_b {
        match in_a.remove(&key) {
            None if may_be_gone(&facts_b) => {}
            None => differs(key, facts_b.slot, How::OnlyInB),
            Some(facts_a) if facts_a.hash == facts_b.hash || facts_a.nearly(&facts_b, slack_ms) => {}
            Some(facts_a) => differs(key, facts_b.slot, how(&facts_a, &facts_b)),
        }
    }
    for (key, facts) in in_a {
        if !may_be_gone(&facts) {
            differs(key, facts.slot, How::OnlyInA);
        }
    }
    differences.sort_by(|one, other| {
        (one.slot, one.database, &one.key).cmp(&(other.slot, other.database, &other.key))
    });
    Ok(differences)
}

impl Facts {
    /// Whether the other is the same but for an expiry at most so far away.
    fn nearly(&self, other: &Self, slack_ms: i64) -> bool {
        let apart = self.expiry_ms.zip(other.expiry_ms).map(|(one, other)| one.abs_diff(other));
        (self.logical, self.value) == (other.logical, other.value)
            && apart.is_some_and(|apart_ms| apart_ms <= slack_ms.unsigned_abs())
    }
}

fn how(a: &Facts, b: &Facts) -> How {
    if a.logical != b.logical {
        How::Type { a: a.logical.name().to_owned(), b: b.logical.name().to_owned() }
    } else if a.expiry_ms == b.expiry_ms {
        How::Value
    } else if a.value == b.value {
        How::Expiry { a: a.expiry_ms, b: b.expiry_ms }
    } else {
        How::ValueAndExpiry { a: a.expiry_ms, b: b.expiry_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_times_may_be_apart_only_where_the_log_does_not_tell_them() {
        let facts = |value, expiry_ms| Facts {
            slot: Slot::new(0).unwrap(),
            logical: LogicalType::String,
            value,
            expiry_ms,
            hash: 0,
        };
        let one = facts(1, Some(10_000));
        assert!(one.nearly(&facts(1, Some(12_000)), 5_000) && one.nearly(&facts(1, Some(5_000)), 5_000));
        assert!(!one.nearly(&facts(1, Some(15_001)), 5_000), "too far");
        assert!(!one.nearly(&facts(2, Some(10_000)), 5_000), "another value");
        assert!(!one.nearly(&facts(1, None), 5_000) && !one.nearly(&facts(1, Some(10_001)), 0));
        let version = |product, text| ServerVersion::parse(product, text);
        assert_eq!(expiry_slack_ms(version(Product::Redis, "6.2.19")), 5_000);
        assert_eq!(expiry_slack_ms(version(Product::Redis, "7.0.15")), 0);
        assert_eq!(expiry_slack_ms(version(Product::Valkey, "7.2.9")), 0);
    }

    #[test]
    fn slots_are_compared_in_groups_that_fit_into_memory() {
        let mut full = DatasetDigest::default();
        for number in 0..4 {
            full.slot_mut(Slot::new(number).unwrap()).keys = KEYS_AT_A_TIME / 2;
        }
        let slots: SlotSet = "0-3".parse().unwrap();
        let batches: Vec<String> =
            batches(&slots, &full, &DatasetDigest::default()).iter().map(ToString::to_string).collect();
        assert_eq!(batches, ["0-1", "2-3"]);
    }
}
