//! A whole RDB at the level of values: one event a key.

use slotkeep_model::{RdbVersion, Slot, SlotRange};

use super::{Value, ValueBuilder};
use crate::error::Error;
use crate::parser::{Event, KeyHeader, Level, Parser};
use crate::types::{LogicalType, ValueType};

/// A key with its value and all that is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The database.
    pub db: u32,
    /// The key.
    pub key: Vec<u8>,
    /// When it expires, in ms since the epoch.
    pub expiry_ms: Option<i64>,
    /// How long it had been idle, in seconds, under an LRU policy.
    pub idle_s: Option<u64>,
    /// Its use counter under an LFU policy.
    pub freq: Option<u8>,
    /// Whether modules attached metadata (Redis 8.6), which is not decoded.
    pub has_meta: bool,
    /// The encoding the value had.
    pub value_type: ValueType,
    /// Offset of the record's first byte.
    pub offset: u64,
    /// Offset of the first byte after it.
    pub end_offset: u64,
    /// The value.
    pub value: Value,
}

/// A piece of an RDB, with all that it holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OwnedEvent {
    /// See [`Event::Start`].
    Start(RdbVersion),
    /// See [`Event::Aux`].
    Aux {
        /// The field's name.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// See [`Event::ModuleAux`].
    ModuleAux {
        /// The module type's id.
        module_id: u64,
        /// 1 before the keys, 2 after them.
        when: u64,
    },
    /// See [`Event::Function`].
    Function {
        /// The library's source.
        source: Vec<u8>,
    },
    /// See [`Event::SelectDb`].
    SelectDb(u32),
    /// See [`Event::ResizeDb`].
    ResizeDb {
        /// Keys.
        keys: u64,
        /// Keys that expire.
        expires: u64,
    },
    /// See [`Event::SlotInfo`].
    SlotInfo {
        /// The slot.
        slot: Slot,
        /// Keys.
        keys: u64,
        /// Keys that expire.
        expires: u64,
    },
    /// See [`Event::SlotImport`].
    SlotImport {
        /// The job's name.
        job: Vec<u8>,
        /// The slots.
        ranges: Vec<SlotRange>,
    },
    /// A key and its value.
    Key(Box<Record>),
    /// See [`Event::End`].
    End {
        /// The CRC64 the RDB carries; 0 if none was computed.
        crc: u64,
    },
}

/// Reads an RDB that is fed in chunks and gives its records with their values whole.
pub struct Reader {
    parser: Parser,
    builder: ValueBuilder,
    head: Option<Box<Record>>,
    failed: bool,
}

impl Reader {
    /// A reader of values of at most about that many bytes each.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            parser: Parser::new(Level::Element),
            builder: ValueBuilder::new(LogicalType::String, limit_bytes),
            head: None,
            failed: false,
        }
    }

    /// How many bytes have been consumed.
    pub const fn offset(&self) -> u64 {
        self.parser.offset()
    }

    /// Takes bytes off the front of `input` and gives the next event, or `None` when all of the input is consumed. After an
    /// error every call gives an error.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<OwnedEvent>, Error> {
        while let Some(event) = self.parser.next(input)? {
            if self.failed {
                return Err(Error::new(crate::ErrorKind::AfterError, self.parser.offset()));
            }
            match event {
                Event::Key(header) => {
                    self.builder.restart(header.value_type.logical());
                    self.head = Some(Box::new(begin(&header)));
                }
                Event::Element(element) => {
                    if let Err(kind) = self.builder.element(&element) {
                        self.failed = true;
                        return Err(self.error(kind));
                    }
                }
                Event::KeyEnd { end_offset } => {
                    if let Some(mut record) = self.head.take() {
                        record.end_offset = end_offset;
                        record.value = self.builder.take_value();
                        return Ok(Some(OwnedEvent::Key(record)));
                    }
                }
                other => return Ok(owned(&other)),
            }
        }
        Ok(None)
    }

    #[cold]
    fn error(&self, kind: crate::ErrorKind) -> Error {
        let error = Error::new(kind, self.parser.offset());
        match &self.head {
            Some(record) => error.in_value(record.value_type).in_key(&record.key),
            None => error,
        }
    }

    /// Checks that the RDB is complete.
    pub fn finish(&self) -> Result<(), Error> {
        self.parser.finish()
    }
}

fn begin(header: &KeyHeader<'_>) -> Record {
    Record {
        db: header.db,
        key: header.key.to_vec(),
        expiry_ms: header.expiry_ms,
        idle_s: header.idle_s,
        freq: header.freq,
        has_meta: header.has_meta,
        value_type: header.value_type,
        offset: header.offset,
        end_offset: header.value_offset,
        value: Value::String(Vec::new()),
    }
}

fn owned(event: &Event<'_>) -> Option<OwnedEvent> {
    Some(match *event {
        Event::Start(version) => OwnedEvent::Start(version),
        Event::Aux { key, value } => OwnedEvent::Aux { key: key.to_vec(), value: value.to_vec() },
        Event::ModuleAux { module_id, when } => OwnedEvent::ModuleAux { module_id, when },
        Event::Function { source } => OwnedEvent::Function { source: source.to_vec() },
        Event::SelectDb(db) => OwnedEvent::SelectDb(db),
        Event::ResizeDb { keys, expires } => OwnedEvent::ResizeDb { keys, expires },
        Event::SlotInfo { slot, keys, expires } => OwnedEvent::SlotInfo { slot, keys, expires },
        Event::SlotImport { job, ranges } => {
            OwnedEvent::SlotImport { job: job.to_vec(), ranges: ranges.to_vec() }
        }
        Event::End { crc } => OwnedEvent::End { crc },
        Event::Key(_) | Event::ValueBytes(_) | Event::Element(_) | Event::KeyEnd { .. } => return None,
    })
}
