//! What is counted while keys pass by.

use std::collections::BTreeMap;

use slotkeep_rdb::ValueType;

use super::InspectOptions;
use super::biggest::Biggest;
use super::expiry;
use super::prefixes::Prefixes;
use super::report::Amount;
use crate::keys::KeyFacts;

/// How many databases are told apart; servers have 16 unless they are asked for more.
const MOST_DATABASES: usize = 10_000;

/// The keys that passed, in sums.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) encodings: BTreeMap<u8, (ValueType, Amount)>,
    pub(super) databases: BTreeMap<u32, Amount>,
    /// What is in databases beyond those that are told apart.
    pub(super) other_databases: Amount,
    pub(super) expiry: [Amount; expiry::ROWS],
    pub(super) prefixes: Prefixes,
    pub(super) by_bytes: Biggest,
    pub(super) by_elements: Biggest,
    /// Function libraries; every shard has all of them.
    pub(super) functions: u64,
}

impl Summary {
    pub(super) fn new(options: &InspectOptions) -> Self {
        Self {
            encodings: BTreeMap::new(),
            databases: BTreeMap::new(),
            other_databases: Amount::default(),
            expiry: [Amount::default(); expiry::ROWS],
            prefixes: Prefixes::new(&options.separators),
            by_bytes: Biggest::new(options.biggest),
            by_elements: Biggest::new(options.biggest),
            functions: 0,
        }
    }

    pub(super) fn add(&mut self, facts: &KeyFacts, moment_ms: i64) {
        let amount = Amount { keys: 1, bytes: facts.bytes, elements: facts.elements };
        let value_type = facts.value_type;
        self.encodings.entry(code(value_type)).or_insert((value_type, Amount::default())).1.add(amount);
        self.database(facts.database).add(amount);
        if let Some(row) = self.expiry.get_mut(expiry::row(facts.expiry_ms, moment_ms)) {
            row.add(amount);
        }
        self.prefixes.add(facts);
        self.by_bytes.add(facts.bytes, facts);
        self.by_elements.add(facts.elements, facts);
    }

    fn database(&mut self, database: u32) -> &mut Amount {
        if self.databases.len() >= MOST_DATABASES && !self.databases.contains_key(&database) {
            return &mut self.other_databases;
        }
        self.databases.entry(database).or_default()
    }

    pub(super) const fn function(&mut self) {
        self.functions += 1;
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (code, (value_type, amount)) in other.encodings {
            self.encodings.entry(code).or_insert((value_type, Amount::default())).1.add(amount);
        }
        for (database, amount) in other.databases {
            self.database(database).add(amount);
        }
        self.other_databases.add(other.other_databases);
        for (row, amount) in self.expiry.iter_mut().zip(other.expiry) {
            row.add(amount);
        }
        self.prefixes.merge(other.prefixes);
        self.by_bytes.merge(other.by_bytes);
        self.by_elements.merge(other.by_elements);
        self.functions = self.functions.max(other.functions);
    }

    /// All keys.
    pub(super) fn total(&self) -> Amount {
        let mut total = Amount::default();
        for row in self.expiry {
            total.add(row);
        }
        total
    }
}

/// A number for an encoding: bytes of types mean different things to the two products, and a backup holds RDBs of one.
const fn code(value_type: ValueType) -> u8 {
    value_type.byte()
}
