//! The biggest keys of those that passed, by one measure.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use serde::Serialize;

use crate::keys::{KeyFacts, KeyText, time_text};

/// How many bytes of a key's name are kept.
const SHOWN_KEY_BYTES: usize = 4 << 10;

/// One of the biggest keys.
#[derive(Clone, Debug, Serialize)]
pub struct BigKey {
    /// The database it is in.
    pub db: u32,
    /// Its slot.
    pub slot: u16,
    /// Its name, or the first 4096 bytes of it.
    #[serde(flatten, serialize_with = "name")]
    pub key: Vec<u8>,
    /// The length of its name, if that is not whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_from_bytes: Option<usize>,
    /// Its type.
    pub r#type: &'static str,
    /// Its encoding in the RDB.
    pub encoding: &'static str,
    /// Bytes of its record in the RDB.
    pub bytes: u64,
    /// Its elements.
    pub elements: u64,
    /// When it expires, by RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

#[expect(clippy::ptr_arg, reason = "the signature that serde calls")]
fn name<S: serde::Serializer>(key: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    KeyText(key).serialize(serializer)
}

/// A key by its measure: the greater one is the bigger one, of equal ones that whose database and name come first.
#[derive(Clone, Debug)]
struct Ranked {
    measure: u64,
    key: BigKey,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        let names = (other.key.db, &other.key.key).cmp(&(self.key.db, &self.key.key));
        self.measure.cmp(&other.measure).then(names)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// The biggest keys.
#[derive(Clone, Debug)]
pub(super) struct Biggest {
    most: usize,
    heap: BinaryHeap<Reverse<Ranked>>,
}

impl Biggest {
    pub(super) fn new(most: usize) -> Self {
        Self { most, heap: BinaryHeap::new() }
    }

    pub(super) fn add(&mut self, measure: u64, facts: &KeyFacts) {
        let full = self.heap.len() >= self.most;
        if self.most == 0 || full && self.heap.peek().is_some_and(|least| least.0.measure > measure) {
            return;
        }
        let shown = facts.key.get(..SHOWN_KEY_BYTES);
        let key = BigKey {
            db: facts.database,
            slot: facts.slot.number(),
            key: shown.unwrap_or(&facts.key).to_vec(),
            cut_from_bytes: shown.map(|_| facts.key.len()).filter(|bytes| *bytes > SHOWN_KEY_BYTES),
            r#type: facts.value_type.logical().name(),
            encoding: facts.encoding(),
            bytes: facts.bytes,
            elements: facts.elements,
            expires_at: facts.expiry_ms.and_then(time_text),
        };
        self.push(Ranked { measure, key });
    }

    fn push(&mut self, key: Ranked) {
        self.heap.push(Reverse(key));
        if self.heap.len() > self.most {
            self.heap.pop();
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for Reverse(key) in other.heap {
            self.push(key);
        }
    }

    /// The biggest first.
    pub(super) fn into_sorted(self) -> Vec<BigKey> {
        self.heap.into_sorted_vec().into_iter().map(|Reverse(ranked)| ranked.key).collect()
    }
}
