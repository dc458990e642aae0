//! What is known of a key, and its form in JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use slotkeep_model::{Slot, SlotRange, key_slot};
use slotkeep_rdb::{Element, Event, KeyHeader, ValueType, adds_element};

use super::filter::Filter;

/// What is known of a key once its value has passed.
#[derive(Clone, Debug)]
pub(crate) struct KeyFacts {
    pub(crate) database: u32,
    pub(crate) slot: Slot,
    pub(crate) key: Vec<u8>,
    pub(crate) value_type: ValueType,
    pub(crate) expiry_ms: Option<i64>,
    pub(crate) idle_s: Option<u64>,
    pub(crate) freq: Option<u8>,
    /// Bytes of its record in the RDB.
    pub(crate) bytes: u64,
    /// Elements, as the element level gives them.
    pub(crate) elements: u64,
    offset: u64,
}

impl KeyFacts {
    fn new() -> Self {
        Self {
            database: 0,
            slot: key_slot(&[]),
            key: Vec::new(),
            value_type: ValueType::String,
            expiry_ms: None,
            idle_s: None,
            freq: None,
            bytes: 0,
            elements: 0,
            offset: 0,
        }
    }

    /// A key of that type, of which nothing else is known.
    #[cfg(test)]
    pub(crate) fn of(key: &[u8], value_type: ValueType) -> Self {
        Self { key: key.to_vec(), slot: key_slot(key), value_type, ..Self::new() }
    }

    fn begin(&mut self, header: &KeyHeader<'_>) {
        self.database = header.db;
        self.slot = key_slot(header.key);
        self.key.clear();
        self.key.extend_from_slice(header.key);
        self.value_type = header.value_type;
        self.expiry_ms = header.expiry_ms;
        self.idle_s = header.idle_s;
        self.freq = header.freq;
        self.bytes = 0;
        self.elements = 0;
        self.offset = header.offset;
    }

    /// The encoding in the RDB, by name.
    pub(crate) const fn encoding(&self) -> &'static str {
        encoding(self.value_type)
    }

    /// The key as it is listed.
    pub(crate) fn listed(&self) -> Key<'_> {
        Key {
            db: self.database,
            slot: self.slot.number(),
            key: KeyText(&self.key),
            r#type: self.value_type.logical().name(),
            encoding: self.encoding(),
            bytes: self.bytes,
            elements: self.elements,
            expires_at_ms: self.expiry_ms,
            expires_at: self.expiry_ms.and_then(time_text),
            idle_s: self.idle_s,
            freq: self.freq,
        }
    }
}

/// The name of an encoding. Strings have but one type in an RDB, whatever they are in a server's memory.
pub(crate) const fn encoding(value_type: ValueType) -> &'static str {
    match value_type {
        ValueType::String => "string",
        _ => value_type.encoding(),
    }
}

/// Follows the events of an RDB, and tells which keys are wanted.
pub(crate) struct KeyWatch {
    filter: Filter,
    pub(crate) facts: KeyFacts,
    /// Whether the key is wanted, by what stands before its value.
    pub(crate) wanted: bool,
    /// Slots that the shard was importing: their keys are not yet its own, and never wanted.
    importing: Vec<SlotRange>,
}

impl KeyWatch {
    pub(crate) fn new(filter: &Filter) -> Self {
        Self { filter: filter.clone(), facts: KeyFacts::new(), wanted: false, importing: Vec::new() }
    }

    /// Takes an event; true at the end of a key that is wanted.
    #[inline]
    pub(crate) fn event(&mut self, moment_ms: i64, event: &Event<'_>) -> bool {
        match event {
            Event::Element(element) => {
                self.element(element);
                false
            }
            Event::Key(header) => {
                self.facts.begin(header);
                self.wanted = !self.is_imported() && self.filter.wants(&self.facts, moment_ms);
                false
            }
            Event::KeyEnd { end_offset } => {
                self.facts.bytes = end_offset.saturating_sub(self.facts.offset);
                self.wanted && self.filter.wants_size(&self.facts)
            }
            Event::Start(_) => {
                self.importing.clear();
                false
            }
            Event::SlotImport { ranges, .. } => {
                self.importing.extend_from_slice(ranges);
                false
            }
            _ => false,
        }
    }

    fn is_imported(&self) -> bool {
        let slot = self.facts.slot;
        self.importing.iter().any(|range| (range.first()..=range.last()).contains(&slot))
    }

    /// Counts an element.
    #[inline]
    pub(crate) fn element(&mut self, element: &Element<'_>) {
        if adds_element(element) {
            self.facts.elements = self.facts.elements.saturating_add(1);
        }
    }
}

/// A key as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Key<'a> {
    /// The database it is in.
    pub db: u32,
    /// Its slot.
    pub slot: u16,
    /// Its name.
    #[serde(flatten)]
    pub key: KeyText<'a>,
    /// Its type, as `TYPE` gives it.
    pub r#type: &'static str,
    /// Its encoding in the RDB.
    pub encoding: &'static str,
    /// Bytes of its record in the RDB: type, expiry, key and value, as they are serialised there.
    pub bytes: u64,
    /// Items, members, fields, entries, or strings and numbers of a module; 1 for a string.
    pub elements: u64,
    /// When it expires, in ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    /// The same by RFC 3339; absent if it is beyond the year 9999.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// How long it had been idle, in seconds, if the server noted it (an LRU policy).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    /// Its use counter, if the server noted it (an LFU policy).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freq: Option<u8>,
}

/// The name of a key in JSON: `"key": text` if it is UTF-8, else `"key_base64": text`.
#[derive(Clone, Copy, Debug)]
pub struct KeyText<'a>(pub &'a [u8]);

impl Serialize for KeyText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match std::str::from_utf8(self.0) {
            Ok(text) => map.serialize_entry("key", text)?,
            Err(_) => map.serialize_entry("key_base64", &STANDARD.encode(self.0))?,
        }
        map.end()
    }
}

/// A moment by RFC 3339, if it can be written so.
pub fn time_text(moment_ms: i64) -> Option<String> {
    Timestamp::from_millisecond(moment_ms).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_slots_that_are_being_imported_are_not_the_shards_own() {
        let header = KeyHeader {
            db: 0,
            key: b"key",
            expiry_ms: None,
            idle_s: None,
            freq: None,
            has_meta: false,
            value_type: ValueType::String,
            offset: 9,
            value_offset: 14,
        };
        let mut watch = KeyWatch::new(&Filter::default());
        let range = SlotRange::new(key_slot(b"key"), key_slot(b"key")).unwrap();
        for (ranges, wanted) in [(vec![], true), (vec![range], false)] {
            watch.event(0, &Event::SlotImport { job: b"job", ranges: &ranges });
            watch.event(0, &Event::Key(header));
            assert_eq!(watch.event(0, &Event::KeyEnd { end_offset: 20 }), wanted);
            assert_eq!(watch.facts.bytes, 11);
        }
    }
}
