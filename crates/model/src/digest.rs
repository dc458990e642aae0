//! Fingerprints of datasets, slot by slot (`DESIGN` §5).
//!
//! Invariant: a slot's digest is the sum, modulo 2^128, of the 128-bit hashes of its keys, so digests add and subtract
//! and do not depend on the order of keys.

use crate::slot::{Slot, SlotSet};

/// The digest of one slot: how many keys it holds and the sum of their hashes modulo 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotDigest {
    /// Number of keys.
    pub keys: u64,
    /// Sum of the keys' hashes modulo 2^128.
    pub sum: u128,
}

impl SlotDigest {
    /// Takes a key with that hash into the digest.
    #[inline]
    pub fn add_key(&mut self, hash: u128) {
        self.keys = self.keys.saturating_add(1);
        self.sum = self.sum.wrapping_add(hash);
    }

    /// Takes a key with that hash out of the digest. The key must be in it.
    pub fn remove_key(&mut self, hash: u128) {
        self.keys = self.keys.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(hash);
    }

    /// Takes all keys of another digest into this one.
    pub fn merge(&mut self, other: Self) {
        self.keys = self.keys.saturating_add(other.keys);
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Whether the slot holds no key.
    pub const fn is_empty(&self) -> bool {
        self.keys == 0
    }
}

/// The digest of a dataset: one row for each of the 16384 slots, and one for the function libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetDigest {
    rows: Vec<SlotDigest>,
    /// The function libraries, as if each were a key; not part of any slot.
    pub functions: SlotDigest,
}

impl Default for DatasetDigest {
    fn default() -> Self {
        Self { rows: vec![SlotDigest::default(); usize::from(Slot::COUNT)], functions: SlotDigest::default() }
    }
}

impl DatasetDigest {
    /// The digest of one slot.
    pub fn slot(&self, slot: Slot) -> SlotDigest {
        self.rows.get(slot.index()).copied().unwrap_or_default()
    }

    /// The digest of one slot, to be changed.
    #[inline]
    #[expect(clippy::missing_panics_doc, clippy::expect_used, reason = "a slot is below the number of rows")]
    pub fn slot_mut(&mut self, slot: Slot) -> &mut SlotDigest {
        self.rows.get_mut(slot.index()).expect("a row for every slot")
    }

    /// The slots that hold at least one key, with their digests, ascending.
    pub fn occupied(&self) -> impl Iterator<Item = (Slot, SlotDigest)> + '_ {
        Slot::all().zip(self.rows.iter().copied()).filter(|(_, digest)| !digest.is_empty())
    }

    /// The number of keys in all slots.
    pub fn keys(&self) -> u64 {
        self.rows.iter().fold(0, |keys, row| keys.saturating_add(row.keys))
    }

    /// The sum over all slots: one number for the whole dataset, functions left out.
    pub fn total(&self) -> SlotDigest {
        let mut total = SlotDigest::default();
        for row in &self.rows {
            total.merge(*row);
        }
        total
    }

    /// Takes all keys of another dataset into this one; function libraries are left as they are, for every shard has all of
    /// them.
    pub fn merge_keys(&mut self, other: &Self) {
        for (row, more) in self.rows.iter_mut().zip(&other.rows) {
            row.merge(*more);
        }
    }

    /// The slots whose digests differ.
    pub fn differing_slots(&self, other: &Self) -> SlotSet {
        Slot::all().filter(|slot| self.slot(*slot) != other.slot(*slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_do_not_depend_on_order_and_subtract() {
        let (mut one, mut other) = (SlotDigest::default(), SlotDigest::default());
        for hash in [1, u128::MAX, 7] {
            one.add_key(hash);
        }
        for hash in [7, 1, u128::MAX] {
            other.add_key(hash);
        }
        assert_eq!(one, other);
        other.remove_key(7);
        assert_ne!(one, other);
        other.add_key(7);
        assert_eq!(one, other);
    }

    #[test]
    fn only_slots_that_differ_are_named() {
        let (mut one, other) = (DatasetDigest::default(), DatasetDigest::default());
        assert!(one.differing_slots(&other).is_empty());
        one.slot_mut(Slot::new(9).unwrap()).add_key(0);
        assert_eq!(one.differing_slots(&other).to_string(), "9");
        assert_eq!(one.keys(), 1);
    }
}
