//! What an inspection found, as tables and JSON show it.

use std::collections::BTreeMap;

use serde::Serialize;
use slotkeep_rdb::LogicalType;

use super::InspectOptions;
use super::biggest::BigKey;
use super::expiry;
use super::prefixes::PrefixReport;
use super::summary::Summary;
use crate::dataset::Origin;
use crate::keys::{encoding, time_text};

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Keys.
    pub keys: u64,
    /// Bytes of their records in the RDB.
    pub bytes: u64,
    /// Their elements.
    pub elements: u64,
}

impl Amount {
    pub(super) const fn add(&mut self, more: Self) {
        self.keys = self.keys.saturating_add(more.keys);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.elements = self.elements.saturating_add(more.elements);
    }

    pub(super) const fn subtract(&mut self, less: Self) {
        self.keys = self.keys.saturating_sub(less.keys);
        self.bytes = self.bytes.saturating_sub(less.bytes);
        self.elements = self.elements.saturating_sub(less.elements);
    }

    /// Makes each number at least that of `other`.
    pub(super) fn raise(&mut self, other: Self) {
        self.keys = self.keys.max(other.keys);
        self.bytes = self.bytes.max(other.bytes);
        self.elements = self.elements.max(other.elements);
    }
}

/// What a dataset holds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was looked at.
    pub source: Origin,
    /// Whether only some of the keys were wanted.
    pub filtered: bool,
    /// The moment that expiries are compared with, in ms since the epoch: the server's time at the backup, or when the file was made.
    pub at_ms: i64,
    /// The same by RFC 3339.
    pub at: Option<String>,
    /// All keys that were wanted.
    pub total: Amount,
    /// Function libraries.
    pub functions: u64,
    /// The shards.
    pub shards: Vec<ShardRow>,
    /// By type, the most bytes first.
    pub types: Vec<TypeRow>,
    /// By encoding in the RDB, the most bytes first.
    pub encodings: Vec<EncodingRow>,
    /// By database.
    pub databases: Vec<DatabaseRow>,
    /// By the time that is left until they expire.
    pub expiry: Vec<ExpiryRow>,
    /// By prefix.
    pub prefixes: PrefixReport,
    /// The keys with the most bytes.
    pub biggest_by_bytes: Vec<BigKey>,
    /// The keys with the most elements.
    pub biggest_by_elements: Vec<BigKey>,
}

/// The keys of one shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardRow {
    /// Its slots, or the file's name.
    pub shard: String,
    /// The version of its RDB.
    pub rdb_version: String,
    /// How much it holds.
    #[serde(flatten)]
    pub amount: Amount,
}

/// The keys of one type.
#[derive(Clone, Debug, Serialize)]
pub struct TypeRow {
    /// The type.
    pub r#type: &'static str,
    /// How much there is of it.
    #[serde(flatten)]
    pub amount: Amount,
}

/// The keys of one encoding.
#[derive(Clone, Debug, Serialize)]
pub struct EncodingRow {
    /// The type.
    pub r#type: &'static str,
    /// The encoding.
    pub encoding: &'static str,
    /// How much there is of it.
    #[serde(flatten)]
    pub amount: Amount,
}

/// The keys of one database.
#[derive(Clone, Debug, Serialize)]
pub struct DatabaseRow {
    /// The database; absent in the row of all those beyond the first ten thousand.
    pub db: Option<u32>,
    /// How much it holds.
    #[serde(flatten)]
    pub amount: Amount,
}

/// The keys that expire in a span of time.
#[derive(Clone, Debug, Serialize)]
pub struct ExpiryRow {
    /// The span.
    pub expires: &'static str,
    /// How much there is of it.
    #[serde(flatten)]
    pub amount: Amount,
}

impl Report {
    pub(super) fn new(
        source: Origin,
        at_ms: i64,
        shards: Vec<ShardRow>,
        summary: Summary,
        options: &InspectOptions,
    ) -> Self {
        let total = summary.total();
        let expiry = expiry::names().zip(summary.expiry);
        Self {
            source,
            filtered: !options.filter.is_everything(),
            at_ms,
            at: time_text(at_ms),
            total,
            functions: summary.functions,
            shards,
            types: types(&summary),
            encodings: encodings(&summary),
            databases: databases(&summary),
            expiry: expiry.map(|(expires, amount)| ExpiryRow { expires, amount }).collect(),
            prefixes: summary.prefixes.report(total, options.prefixes),
            biggest_by_bytes: summary.by_bytes.into_sorted(),
            biggest_by_elements: summary.by_elements.into_sorted(),
        }
    }
}

fn types(summary: &Summary) -> Vec<TypeRow> {
    let mut types: BTreeMap<LogicalType, Amount> = BTreeMap::new();
    for (value_type, amount) in summary.encodings.values() {
        types.entry(value_type.logical()).or_default().add(*amount);
    }
    let mut rows: Vec<TypeRow> =
        types.into_iter().map(|(logical, amount)| TypeRow { r#type: logical.name(), amount }).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.amount.bytes));
    rows
}

fn encodings(summary: &Summary) -> Vec<EncodingRow> {
    let mut rows: Vec<EncodingRow> = summary
        .encodings
        .values()
        .map(|(value_type, amount)| EncodingRow {
            r#type: value_type.logical().name(),
            encoding: encoding(*value_type),
            amount: *amount,
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.amount.bytes));
    rows
}

fn databases(summary: &Summary) -> Vec<DatabaseRow> {
    let told_apart = summary.databases.iter();
    let mut rows: Vec<DatabaseRow> =
        told_apart.map(|(db, amount)| DatabaseRow { db: Some(*db), amount: *amount }).collect();
    if summary.other_databases.keys > 0 {
        rows.push(DatabaseRow { db: None, amount: summary.other_databases });
    }
    rows
}
