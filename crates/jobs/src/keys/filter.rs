//! Which keys are wanted. Conditions of different kinds must all hold; of the values of one kind, any.

use slotkeep_model::{SlotSet, key_slot};
use slotkeep_rdb::LogicalType;

use super::facts::KeyFacts;
use super::glob::matches;

/// Which keys are wanted; all if nothing is set.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// This very key.
    pub key: Option<Vec<u8>>,
    /// Keys that match, as for `KEYS`.
    pub pattern: Option<Vec<u8>>,
    /// Keys of these types.
    pub types: Vec<LogicalType>,
    /// Keys of these slots.
    pub slots: Option<SlotSet>,
    /// Keys in these databases.
    pub databases: Vec<u32>,
    /// Keys whose record has at least so many bytes.
    pub min_bytes: Option<u64>,
    /// Keys whose record has at most so many bytes.
    pub max_bytes: Option<u64>,
    /// Keys of at least so many elements.
    pub min_elements: Option<u64>,
    /// Keys by their expiry.
    pub expires: Option<Expires>,
}

/// Keys by their expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expires {
    /// Those that expire.
    Yes,
    /// Those that don't.
    No,
    /// Those that had expired at the dataset's moment.
    Expired,
    /// Those that had not expired then, and do within so many ms.
    Within(i64),
}

/// The type of that name.
pub fn type_named(name: &str) -> Option<LogicalType> {
    use LogicalType::{Array, Hash, List, Module, Set, Stream, String, Zset};
    [String, List, Set, Zset, Hash, Stream, Module, Array].into_iter().find(|logical| logical.name() == name)
}

impl Filter {
    /// Whether every key is wanted.
    pub fn is_everything(&self) -> bool {
        let Self {
            key,
            pattern,
            types,
            slots,
            databases,
            min_bytes: _,
            max_bytes: _,
            min_elements: _,
            expires,
        } = self;
        key.is_none()
            && pattern.is_none()
            && types.is_empty()
            && slots.is_none()
            && databases.is_empty()
            && expires.is_none()
            && !self.needs_size()
    }

    /// Whether a key's value must have passed before it can be told whether the key is wanted.
    pub const fn needs_size(&self) -> bool {
        self.min_bytes.is_some() || self.max_bytes.is_some() || self.min_elements.is_some()
    }

    /// The slots of the keys that are wanted, if there is a limit to them.
    pub(crate) fn slots(&self) -> Option<SlotSet> {
        let of_key = self.key.as_ref().map(|key| SlotSet::from_iter([key_slot(key)]));
        match (of_key, &self.slots) {
            (Some(one), Some(slots)) => Some(one.intersection(slots)),
            (Some(one), None) => Some(one),
            (None, slots) => slots.clone(),
        }
    }

    /// Whether a key is wanted, by what stands before its value.
    pub(crate) fn wants(&self, facts: &KeyFacts, moment_ms: i64) -> bool {
        self.key.as_ref().is_none_or(|key| *key == facts.key)
            && self.slots.as_ref().is_none_or(|slots| slots.contains(facts.slot))
            && (self.types.is_empty() || self.types.contains(&facts.value_type.logical()))
            && (self.databases.is_empty() || self.databases.contains(&facts.database))
            && self.expires.is_none_or(|expires| expires.wants(facts.expiry_ms, moment_ms))
            && self.pattern.as_ref().is_none_or(|pattern| matches(pattern, &facts.key))
    }

    /// Whether a key is wanted, by the size of its value.
    pub(crate) fn wants_size(&self, facts: &KeyFacts) -> bool {
        self.min_bytes.is_none_or(|least| facts.bytes >= least)
            && self.max_bytes.is_none_or(|most| facts.bytes <= most)
            && self.min_elements.is_none_or(|least| facts.elements >= least)
    }
}

impl Expires {
    fn wants(self, expiry_ms: Option<i64>, moment_ms: i64) -> bool {
        match self {
            Self::Yes => expiry_ms.is_some(),
            Self::No => expiry_ms.is_none(),
            Self::Expired => expiry_ms.is_some_and(|expiry_ms| expiry_ms <= moment_ms),
            Self::Within(more_ms) => expiry_ms.is_some_and(|expiry_ms| {
                expiry_ms > moment_ms && expiry_ms <= moment_ms.saturating_add(more_ms)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_told_by_the_moment_of_the_dataset() {
        let wants = |expires: Expires| {
            [None, Some(999), Some(1000), Some(1001), Some(1500), Some(1501)]
                .map(|expiry_ms| expires.wants(expiry_ms, 1000))
        };
        assert_eq!(wants(Expires::Yes), [false, true, true, true, true, true]);
        assert_eq!(wants(Expires::No), [true, false, false, false, false, false]);
        assert_eq!(wants(Expires::Expired), [false, true, true, false, false, false]);
        assert_eq!(wants(Expires::Within(500)), [false, false, false, true, true, false]);
    }
}
