//! An RDB, turned into another in one pass: filtered, for other slots, with other expiries, for another version.
//!
//! A [`Rewriter`] is fed the bytes of an RDB and appends those of the new one to the caller's buffer. Values that stay as they are
//! are copied, whatever their length; others are translated as [`crate::translate`] says. The end mark and CRC64 of the new RDB are written by
//! [`Rewriter::finish`], after the CRC64 of the old one was checked: what is written of a damaged RDB is no RDB.
//!
//! # Records other than keys
//!
//! | record | what becomes of it |
//! | --- | --- |
//! | sizes of databases and slots (`RESIZEDB`, `SLOT_INFO`, `slot-info`) | kept if every key is kept and the version has them |
//! | `repl-id`, `repl-offset`, `repl-stream-db`, `cluster-asm-task` | kept if nothing is changed: other data is another history |
//! | other auxiliary fields | kept |
//! | function libraries | kept, unless [`Policy::functions`] is off; an error before version 10 |
//! | data of modules outside keys, metadata of keys | kept within a product, if the version has them |
//! | slots being imported (Valkey) | kept if nothing is changed; else dropped, with the keys of those slots: they are not yet this shard's |
//! | idle times and use counters | kept from version 9 on |
//!
//! Invariants: `head` holds the bytes consumed since the last record or value ended, so at an event all of its record; `key` is the beginning
//! of the key whose value is being read, for errors.

use slotkeep_model::{RdbVersion, SlotRange, key_slot};

use crate::envelope::{Envelope, EnvelopeError};
use crate::error::{Error, ErrorKind};
use crate::module_name::{VECTOR_SET, module_name};
use crate::parser::{Event, KeyHeader, Level, Parser};
use crate::primitive::{Carry, length, wide};
use crate::translate::{Plan, Translator};
use crate::types::{LogicalType, ValueType};
use crate::write::{KeyHead, RdbWriter};

mod meta;
mod policy;

pub use policy::{Expiry, ExpiryMap, Filter, Modules, Policy};

/// How many bytes one [`Rewriter::feed`] appends before it returns, about.
const PAUSE_BYTES: usize = 256 << 10;
/// How many bytes of a key are kept for errors.
const KEPT_KEY_BYTES: usize = 256;

/// Turns an RDB into another.
pub struct Rewriter<'p> {
    parser: Parser,
    envelope: Option<Envelope>,
    inner: Inner<'p>,
}

/// What becomes of the value that is being read.
enum Current {
    Dropped,
    Copied,
    /// Copied; the module's id is still to be seen.
    Module(Box<Carry>),
    Translated(Box<Translator>),
}

struct Inner<'p> {
    policy: Policy<'p>,
    writer: Option<RdbWriter>,
    source: Option<RdbVersion>,
    head: Vec<u8>,
    key: Vec<u8>,
    value_type: Option<ValueType>,
    current: Current,
    db: u32,
    importing: Vec<SlotRange>,
    counts: Counts,
}

/// How many keys were written and left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys written.
    pub written: u64,
    /// Of these, keys whose value was translated into another encoding.
    pub translated: u64,
    /// Keys left out.
    pub dropped: u64,
}

impl<'p> Rewriter<'p> {
    /// A rewriter that does what the policy says.
    pub fn new(policy: Policy<'p>) -> Self {
        Self {
            parser: Parser::new(Level::Raw),
            envelope: Some(Envelope::new()),
            inner: Inner {
                policy,
                writer: None,
                source: None,
                head: Vec::new(),
                key: Vec::new(),
                value_type: None,
                current: Current::Dropped,
                db: 0,
                importing: Vec::new(),
                counts: Counts::default(),
            },
        }
    }

    /// How many keys were written and left out so far.
    pub const fn counts(&self) -> Counts {
        self.inner.counts
    }

    /// Takes bytes off the front of `input` and appends what they become to `out`. Returns when all of the input is consumed, or with some
    /// left when some 256 KiB were appended: then empty `out` and call again.
    pub fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let enough = out.len().saturating_add(PAUSE_BYTES);
        loop {
            let whole: &[u8] = input;
            let event = self.parser.next(input)?;
            let used = whole.get(..whole.len() - input.len()).unwrap_or_default();
            if let Some(envelope) = &mut self.envelope {
                envelope.feed(used);
            }
            let ended = event.is_none();
            let outcome = self.inner.event(event.as_ref(), used, out);
            if let Err(kind) = outcome {
                return Err(self.inner.error(kind, self.parser.offset()));
            }
            if ended || (out.len() >= enough && !input.is_empty()) {
                return Ok(());
            }
        }
    }

    /// Ends the new RDB, if the old one was complete and its CRC64 is right; gives the length in bytes and the CRC64 of the new one.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(u64, u64), Error> {
        self.parser.finish()?;
        let offset = self.parser.offset();
        let kind = match self.envelope.take().map(Envelope::finish) {
            Some(Err(EnvelopeError::CrcMismatch { computed, stored, .. })) => {
                ErrorKind::CrcMismatch { computed, stored }
            }
            Some(Err(_)) | None => ErrorKind::Truncated { inside: "its envelope" },
            Some(Ok(_)) => match self.inner.writer.take() {
                Some(writer) => return Ok(writer.finish(out)),
                None => ErrorKind::AfterError,
            },
        };
        Err(Error::new(kind, offset))
    }
}

impl Inner<'_> {
    #[cold]
    fn error(&mut self, kind: ErrorKind, offset: u64) -> Error {
        self.writer = None;
        let error = Error::new(kind, offset);
        match self.value_type {
            Some(value_type) => error.in_value(value_type).in_key(&self.key),
            None => error,
        }
    }

    fn event(&mut self, event: Option<&Event<'_>>, used: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        if let Some(Event::ValueBytes(bytes)) = event {
            return self.value_bytes(bytes, out);
        }
        self.head.extend_from_slice(used);
        let limit_bytes = self.policy.translation.limit_bytes;
        if wide(self.head.len()) > limit_bytes {
            return Err(ErrorKind::ValueTooLarge { limit_bytes });
        }
        let Some(event) = event else { return Ok(()) };
        let head = core::mem::take(&mut self.head);
        let outcome = self.record(event, &head, out);
        self.head = head;
        self.head.clear();
        outcome
    }

    fn record(&mut self, event: &Event<'_>, head: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        match event {
            Event::Start(version) => {
                self.source = Some(*version);
                self.writer = Some(RdbWriter::new(self.policy.translation.target, out)?);
                Ok(())
            }
            Event::Key(header) => self.key(header, head, out),
            Event::KeyEnd { .. } => {
                self.value_type = None;
                Ok(())
            }
            _ => self.other(event, head, out),
        }
    }

    fn other(&mut self, event: &Event<'_>, head: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        let (faithful, whole) =
            (self.is_faithful(), self.policy.keeps_all_keys() && self.importing.is_empty());
        let Some(writer) = &mut self.writer else { return Err(ErrorKind::AfterError) };
        let same_product = self.source.is_some_and(|source| source.product == writer.version().product);
        match event {
            Event::Aux { key, value } => {
                let kept = match *key {
                    b"repl-id" | b"repl-offset" | b"repl-stream-db" | b"cluster-asm-task" => faithful,
                    b"slot-info" => whole && same_product,
                    _ => true,
                };
                if kept {
                    writer.aux(key, value, out);
                }
            }
            Event::Function { source } if self.policy.functions => writer.function(source, out)?,
            Event::SelectDb(db) => self.db = *db,
            Event::ResizeDb { keys, expires } if whole => {
                writer.select_db(self.db, out);
                writer.resize_db(*keys, *expires, out);
            }
            Event::SlotInfo { slot, keys, expires } if whole => {
                writer.select_db(self.db, out);
                writer.slot_info(*slot, *keys, *expires, out);
            }
            Event::ModuleAux { module_id, .. } => {
                let known = writer.version().number >= 9;
                if known && self.policy.takes_module(*module_id, same_product, writer.version()) {
                    writer.raw(head, out);
                }
            }
            Event::SlotImport { .. } if faithful => writer.raw(head, out),
            Event::SlotImport { ranges, .. } => self.importing.extend_from_slice(ranges),
            _ => {}
        }
        Ok(())
    }

    /// Whether the new RDB says the same as the old one.
    fn is_faithful(&self) -> bool {
        self.source == Some(self.policy.translation.target) && self.policy.keeps_everything()
    }

    fn key(&mut self, header: &KeyHeader<'_>, head: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        self.key.clear();
        self.key.extend_from_slice(header.key.get(..KEPT_KEY_BYTES).unwrap_or(header.key));
        self.value_type = Some(header.value_type);
        let slot = key_slot(header.key);
        let imported = self.importing.iter().any(|range| (range.first()..=range.last()).contains(&slot));
        if imported || !self.policy.wants(header, slot) {
            self.current = Current::Dropped;
            self.counts.dropped += 1;
            return Ok(());
        }
        let (Some(writer), Some(source)) = (&mut self.writer, self.source) else {
            return Err(ErrorKind::AfterError);
        };
        let translation = &self.policy.translation;
        let (value_type, current) = match translation.plan(header.value_type)? {
            Plan::Copy if header.value_type.logical() == LogicalType::Module => {
                (header.value_type, Current::Module(Box::new(Carry::new())))
            }
            Plan::Copy => (header.value_type, Current::Copied),
            Plan::Translate(to) => {
                self.counts.translated += 1;
                let translator = Translator::new(translation, header.value_type, source, to);
                (to, Current::Translated(Box::new(translator)))
            }
        };
        self.current = current;
        self.counts.written += 1;
        let key_head = KeyHead {
            key: header.key,
            value_type,
            expiry_ms: self.policy.expiry_of(header),
            idle_s: header.idle_s,
            freq: header.freq,
        };
        writer.select_db(header.db, out);
        let has_meta = header.has_meta && meta::is_known(writer.version());
        match meta::of(head).filter(|_| has_meta) {
            Some(meta) => writer.key_with_meta(&key_head, meta, out),
            None => writer.key(&key_head, out),
        }
    }

    fn value_bytes(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        let Some(writer) = &mut self.writer else { return Err(ErrorKind::AfterError) };
        match &mut self.current {
            Current::Dropped => {}
            Current::Copied => writer.value_bytes(bytes, out),
            Current::Module(carry) => {
                if let Some(id) = carry.read(&mut &*bytes, length)? {
                    let same_product =
                        self.source.is_some_and(|source| source.product == writer.version().product);
                    if !self.policy.takes_module(id, same_product, writer.version()) {
                        let target = writer.version();
                        return Err(ErrorKind::NoModule { name: module_name(id), target });
                    }
                    self.current = Current::Copied;
                }
                writer.value_bytes(bytes, out);
            }
            Current::Translated(translator) => {
                let from = out.len();
                let outcome = translator.feed(&mut &*bytes, out);
                writer.note(from, out);
                outcome.map_err(|error| error.kind)?;
            }
        }
        Ok(())
    }
}

impl Policy<'_> {
    /// Whether a module's value goes to the target: vector sets only to Redis 8.0, whose RDB version is 12.
    fn takes_module(&self, id: u64, same_product: bool, target: RdbVersion) -> bool {
        let redis_8 = target.product == slotkeep_model::Product::Redis && target.number >= 12;
        if module_name(id) == VECTOR_SET && !redis_8 {
            return false;
        }
        match self.modules {
            Modules::SameProduct => same_product,
            Modules::All => true,
            Modules::None => false,
        }
    }
}
