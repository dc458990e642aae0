//! Values for servers that do not know their encoding: the same value in an encoding that the target has, piece by piece.
//!
//! | from | to |
//! | --- | --- |
//! | listpacks (16, 17, 20, 25), and ziplists, intsets, zipmaps where needed | the plain encoding: 4, 5 or 3, 2, 24 or 22 |
//! | 24, 25 (Redis) and 22 (Valkey): hashes with expiry of fields | 22, 24; 4 if no field expires |
//! | 18, lists of listpacks | 14, lists of ziplists; 1 before RDB version 7 |
//! | 26, 27, 21, 19: streams | 21, 19, 15, whichever is the newest that the target has |
//! | 5, sorted sets with binary scores | 3, before RDB version 8 |
//!
//! # Memory
//!
//! A plain encoding begins with the count of its elements, which a listpack's value does not always say. Values that are packed into one
//! string (servers keep them at some KiB; they can be larger only where an administrator said so) are therefore gathered in
//! their new encoding before anything is given. All others — the ones that grow without bound — say their counts at the
//! start, and are translated as they come, the encoded strings copied as they are: of a list one node is held, of a hash from Valkey one
//! field with its value. What is held is limited; a value that needs more is an error. Two passes over the input would need no
//! limit, but a source of bytes that flow by cannot give them.
//!
//! # What streams lose
//!
//! Types before 26 have no producers and no settings of idempotent production, types before 21 no active times of consumers, type
//! 15 no history of deletions and no `entries_read`. These go without error: servers of those versions have no such thing. A
//! pending entry that no consumer owns (Redis 8.8) is data, and refused unless [`Released`] says who shall own it.

use slotkeep_model::RdbVersion;

use crate::error::{Error, ErrorKind};
use crate::primitive::wide;
use crate::types::{LogicalType, ValueType};

mod copier;
mod counted;
mod quicklist;
mod spool;
mod stream;

use counted::Counted;
use quicklist::Quicklist;
use spool::Spool;
use stream::StreamTail;

/// What becomes of the expiry of a hash's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldExpiry {
    /// It stays, and is an error if the target has none.
    #[default]
    Keep,
    /// It is dropped: fields stay for good.
    Drop,
    /// It is moved by that many ms, but not before the first ms of 1970.
    Shift(i64),
}

impl FieldExpiry {
    pub(crate) fn apply(self, expiry_ms: Option<i64>) -> Option<i64> {
        match self {
            Self::Keep => expiry_ms,
            Self::Drop => None,
            Self::Shift(ms) => expiry_ms.map(|expiry_ms| expiry_ms.saturating_add(ms).max(1)),
        }
    }
}

/// What becomes of a pending stream entry that no consumer owns, where the target has no such thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Released {
    /// It is an error.
    #[default]
    Refuse,
    /// A consumer of that name owns it, from whom others can claim it. An error if the group has one of that name. Each group's
    /// consumers are held until its end is known.
    Own(Vec<u8>),
}

/// How values are to be translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The RDB version to write for.
    pub target: RdbVersion,
    /// How many bytes of one value may be held.
    pub limit_bytes: u64,
    /// What becomes of the expiry of fields.
    pub field_expiry: FieldExpiry,
    /// What becomes of released entries.
    pub released: Released,
}

/// How a value of some encoding gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// As it is.
    Copy,
    /// In that encoding.
    Translate(ValueType),
}

impl Translation {
    /// How many bytes of one value are held at most, if not said otherwise.
    pub const DEFAULT_LIMIT_BYTES: u64 = 256 << 20;

    /// Translation for an RDB of that version, which keeps all that it can and refuses the rest.
    pub fn new(target: RdbVersion) -> Self {
        Self {
            target,
            limit_bytes: Self::DEFAULT_LIMIT_BYTES,
            field_expiry: FieldExpiry::Keep,
            released: Released::Refuse,
        }
    }

    /// How a value of that encoding gets to the target. [`ErrorKind::NoEquivalent`] if none of its kind can: modules' values before
    /// version 8, streams before 9, arrays before 14 and for Valkey.
    ///
    /// A hash with expiry of fields, for a target without, is planned as a plain hash: it is an error later if a field does expire.
    pub fn plan(&self, value_type: ValueType) -> Result<Plan, ErrorKind> {
        use ValueType as T;
        let expires = matches!(value_type, T::HashMetadata | T::HashListpackEx | T::ValkeyHash2);
        let keep = self.field_expiry == FieldExpiry::Keep;
        if value_type.exists_in(self.target) && (keep || !expires) {
            return Ok(Plan::Copy);
        }
        let (candidates, what): (&[ValueType], &'static str) = match value_type.logical() {
            LogicalType::String => (&[T::String], "a string"),
            LogicalType::List => (&[T::ListQuicklist, T::List], "a list"),
            LogicalType::Set => (&[T::Set], "a set"),
            LogicalType::Zset => (&[T::Zset2, T::Zset], "a sorted set"),
            LogicalType::Hash if expires && self.field_expiry != FieldExpiry::Drop => {
                (&[T::HashMetadata, T::ValkeyHash2, T::Hash], "a hash")
            }
            LogicalType::Hash => (&[T::Hash], "a hash"),
            LogicalType::Stream => (crate::owned::STREAM_TYPES, "a stream"),
            LogicalType::Module => (&[], "a module's value"),
            LogicalType::Array => (&[], "an array"),
        };
        let found = candidates.iter().find(|candidate| candidate.exists_in(self.target));
        let none = ErrorKind::NoEquivalent { what, target: self.target };
        found.map(|to| Plan::Translate(*to)).ok_or(none)
    }
}

enum Machine {
    Counted(Box<Counted>),
    Quicklist(Box<Quicklist>),
    Spool(Box<Spool>),
    Stream(Box<StreamTail>),
}

/// Translates one value.
pub struct Translator {
    from: ValueType,
    machine: Machine,
    consumed: u64,
    failed: bool,
}

impl Translator {
    /// A translator of a value of that type, out of an RDB or DUMP payload of that version, to the type that
    /// [`Translation::plan`] gave for it.
    pub fn new(translation: &Translation, from: ValueType, version: RdbVersion, to: ValueType) -> Self {
        use ValueType as T;
        let machine = match (from, to) {
            (_, T::StreamListpacks4 | T::StreamListpacks3 | T::StreamListpacks2 | T::StreamListpacks) => {
                Machine::Stream(Box::new(StreamTail::new(translation, from, to)))
            }
            (T::ListQuicklist2, T::ListQuicklist) => {
                Machine::Quicklist(Box::new(Quicklist::new(translation, version)))
            }
            (T::HashMetadata | T::ValkeyHash2, _) | (T::Zset2, T::Zset) => {
                Machine::Counted(Box::new(Counted::new(translation, from, to)))
            }
            _ => Machine::Spool(Box::new(Spool::new(translation, from, version, to))),
        };
        Self { from, machine, consumed: 0, failed: false }
    }

    /// Takes bytes of the value off the front of `input` and appends what they become to `out`; true when the value is complete. What
    /// follows the value is left in `input`.
    pub fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, Error> {
        let before = input.len();
        let outcome = if self.failed {
            Err(ErrorKind::AfterError)
        } else {
            match &mut self.machine {
                Machine::Counted(machine) => machine.feed(input, out),
                Machine::Quicklist(machine) => machine.feed(input, out),
                Machine::Spool(machine) => machine.feed(input, out),
                Machine::Stream(machine) => machine.feed(input, out),
            }
        };
        self.consumed = self.consumed.saturating_add(wide(before - input.len()));
        outcome.map_err(|kind| {
            self.failed = true;
            Error::new(kind, self.consumed).in_value(self.from)
        })
    }
}
