//! A key with its value as one JSON object; `docs/inspect.md` describes the form.

use std::io::{self, Write};

use slotkeep_rdb::{Element, LogicalType, Part, StreamInfo, module_name};

use super::scopes::{Called, Json, Scope};
use crate::keys::{KeyFacts, time_text};

/// Writes one key after another.
pub(crate) struct JsonKey {
    json: Json,
    logical: LogicalType,
    in_text: bool,
}

impl JsonKey {
    pub(crate) const fn new() -> Self {
        Self { json: Json::new(), logical: LogicalType::String, in_text: false }
    }

    /// Begins a key's object.
    pub(crate) fn begin(&mut self, out: &mut impl Write, facts: &KeyFacts) -> io::Result<()> {
        let json = &mut self.json;
        self.logical = facts.value_type.logical();
        json.object(out, Scope::Key)?;
        json.member(out, "db", facts.database)?;
        json.member(out, "slot", facts.slot)?;
        json.text(out, Called::Name("key"), &facts.key, true)?;
        json.word(out, "type", self.logical.name())?;
        json.word(out, "encoding", facts.encoding())?;
        if let Some(expiry_ms) = facts.expiry_ms {
            json.member(out, "expires_at_ms", expiry_ms)?;
            if let Some(time) = time_text(expiry_ms) {
                json.word(out, "expires_at", time)?;
            }
        }
        if let Some(idle_s) = facts.idle_s {
            json.member(out, "idle_s", idle_s)?;
        }
        if let Some(freq) = facts.freq {
            json.member(out, "freq", freq)?;
        }
        match self.logical {
            LogicalType::String => Ok(()),
            LogicalType::Stream => {
                json.name(out, "value")?;
                json.object(out, Scope::Stream)?;
                json.name(out, "entries")?;
                json.array(out, Scope::Entries)
            }
            LogicalType::Module | LogicalType::Array => {
                json.name(out, "value")?;
                json.object(out, Scope::Stream)
            }
            _ => {
                json.name(out, "value")?;
                json.array(out, Scope::Items)
            }
        }
    }

    /// Ends the object, with what is known only now, and `more` numbers.
    pub(crate) fn end(
        &mut self,
        out: &mut impl Write,
        facts: &KeyFacts,
        more: &[(&str, u64)],
    ) -> io::Result<()> {
        self.json.back_to(out, Scope::Key)?;
        for (name, number) in [("bytes", facts.bytes), ("elements", facts.elements)].iter().chain(more) {
            self.json.member(out, name, number)?;
        }
        self.json.close(out)
    }

    /// Writes a piece of the value.
    pub(crate) fn element(&mut self, out: &mut impl Write, element: &Element<'_>) -> io::Result<()> {
        let json = &mut self.json;
        match *element {
            Element::Bytes { part, bytes, last } => {
                if !self.in_text {
                    self.before_text(out, part)?;
                }
                self.in_text = !last;
                self.json.text(out, called(self.logical, part), bytes, last)?;
                if last {
                    self.after_text(out, part)?;
                }
                Ok(())
            }
            Element::Score(score) => {
                json.name(out, "score")?;
                Json::float(out, score)?;
                json.back_to(out, Scope::Items)
            }
            Element::FieldExpiry(expiry_ms) => json.member(out, "expires_at_ms", expiry_ms),
            Element::ArrayInfo { insert_index, .. } => {
                if let Some(index) = insert_index {
                    json.member(out, "insert_index", index)?;
                }
                json.name(out, "elements")?;
                json.array(out, Scope::Items)
            }
            Element::ArrayIndex(index) => {
                json.back_to(out, Scope::Items)?;
                json.next(out)?;
                json.object(out, Scope::Item)?;
                json.member(out, "index", index)
            }
            Element::ArrayDouble(number) => {
                json.name(out, "value")?;
                Json::float(out, number)
            }
            Element::ModuleId(_)
            | Element::ModuleSigned(_)
            | Element::ModuleUnsigned(_)
            | Element::ModuleFloat(_)
            | Element::ModuleDouble(_) => self.module(out, element),
            _ => self.stream(out, element),
        }
    }

    /// What stands before a text.
    fn before_text(&mut self, out: &mut impl Write, part: Part) -> io::Result<()> {
        let json = &mut self.json;
        match part {
            Part::Member if self.logical == LogicalType::Zset => {
                json.next(out)?;
                json.object(out, Scope::Item)
            }
            Part::Field => {
                json.back_to(out, Scope::Items)?;
                json.next(out)?;
                json.object(out, Scope::Item)
            }
            Part::StreamField => {
                json.next(out)?;
                json.array(out, Scope::Field)
            }
            Part::GroupName => {
                json.back_to(out, Scope::Groups)?;
                json.next(out)?;
                json.object(out, Scope::Group)
            }
            Part::ConsumerName => {
                if json.is_in(Scope::Consumers) {
                    json.back_to(out, Scope::Consumers)?;
                } else {
                    json.back_to(out, Scope::Group)?;
                    json.name(out, "consumers")?;
                    json.array(out, Scope::Consumers)?;
                }
                json.next(out)?;
                json.object(out, Scope::Consumer)
            }
            Part::ProducerId => {
                json.back_to(out, Scope::Producers)?;
                json.next(out)?;
                json.object(out, Scope::Producer)
            }
            Part::ProducedId | Part::ModuleString => {
                json.next(out)?;
                json.object(out, Scope::Item)
            }
            _ => Ok(()),
        }
    }

    /// What stands after a text.
    fn after_text(&mut self, out: &mut impl Write, part: Part) -> io::Result<()> {
        let json = &mut self.json;
        match part {
            Part::StreamValue | Part::ModuleString => json.close(out),
            Part::ProducerId => {
                json.name(out, "produced")?;
                json.array(out, Scope::Produced)
            }
            _ => Ok(()),
        }
    }

    fn module(&mut self, out: &mut impl Write, element: &Element<'_>) -> io::Result<()> {
        let json = &mut self.json;
        if let Element::ModuleId(id) = *element {
            json.word(out, "module", module_name(id).escape_ascii())?;
            json.member(out, "module_version", id & 1023)?;
            json.name(out, "saved")?;
            return json.array(out, Scope::Items);
        }
        json.next(out)?;
        json.object(out, Scope::Item)?;
        match *element {
            Element::ModuleSigned(number) => json.member(out, "signed", number)?,
            Element::ModuleUnsigned(number) => json.member(out, "unsigned", number)?,
            Element::ModuleFloat(bits) => {
                json.name(out, "float")?;
                Json::float(out, f64::from(f32::from_bits(bits)))?;
            }
            Element::ModuleDouble(bits) => {
                json.name(out, "double")?;
                Json::float(out, f64::from_bits(bits))?;
            }
            _ => {}
        }
        json.close(out)
    }

    fn stream(&mut self, out: &mut impl Write, element: &Element<'_>) -> io::Result<()> {
        let json = &mut self.json;
        match *element {
            Element::StreamEntry { id, .. } => {
                json.back_to(out, Scope::Entries)?;
                json.next(out)?;
                json.object(out, Scope::Entry)?;
                json.word(out, "id", id)?;
                json.name(out, "fields")?;
                json.array(out, Scope::Fields)
            }
            Element::StreamInfo(info) => self.stream_info(out, info),
            Element::Group { last_id, entries_read } => {
                json.word(out, "last_id", last_id)?;
                if let Some(read) = entries_read {
                    json.member(out, "entries_read", read)?;
                }
                json.name(out, "pending")?;
                json.array(out, Scope::Pending)
            }
            Element::GroupPending { id, delivery_time_ms, deliveries } => {
                json.next(out)?;
                json.object(out, Scope::Item)?;
                json.word(out, "id", id)?;
                json.member(out, "delivered_at_ms", delivery_time_ms)?;
                json.member(out, "deliveries", deliveries)?;
                json.close(out)
            }
            Element::Consumer { seen_ms, active_ms } => {
                json.member(out, "seen_at_ms", seen_ms)?;
                if let Some(active_ms) = active_ms {
                    json.member(out, "active_at_ms", active_ms)?;
                }
                json.name(out, "pending")?;
                json.array(out, Scope::Owned)
            }
            Element::ConsumerPending(id) => {
                json.next(out)?;
                write!(out, "\"{id}\"")
            }
            Element::GroupReleased(id) => {
                if !json.is_in(Scope::Released) {
                    json.back_to(out, Scope::Group)?;
                    json.name(out, "released")?;
                    json.array(out, Scope::Released)?;
                }
                json.next(out)?;
                write!(out, "\"{id}\"")
            }
            Element::Idempotence { duration_s, max_entries } => {
                json.back_to(out, Scope::Stream)?;
                json.name(out, "idempotence")?;
                json.object(out, Scope::Idempotence)?;
                json.member(out, "duration_s", duration_s)?;
                json.member(out, "max_entries", max_entries)?;
                json.name(out, "producers")?;
                json.array(out, Scope::Producers)
            }
            Element::ProducedEntry(id) => {
                json.word(out, "entry", id)?;
                json.close(out)
            }
            Element::IdempotenceCounters { added, duplicates } => {
                json.back_to(out, Scope::Idempotence)?;
                json.member(out, "added", added)?;
                json.member(out, "duplicates", duplicates)
            }
            _ => Ok(()),
        }
    }

    fn stream_info(&mut self, out: &mut impl Write, info: StreamInfo) -> io::Result<()> {
        let json = &mut self.json;
        json.back_to(out, Scope::Stream)?;
        json.member(out, "length", info.length)?;
        json.word(out, "last_id", info.last_id)?;
        for (name, id) in [("first_id", info.first_id), ("max_deleted_id", info.max_deleted_id)] {
            if let Some(id) = id {
                json.word(out, name, id)?;
            }
        }
        if let Some(added) = info.entries_added {
            json.member(out, "entries_added", added)?;
        }
        json.name(out, "groups")?;
        json.array(out, Scope::Groups)
    }
}

const fn called(logical: LogicalType, part: Part) -> Called {
    match part {
        Part::Member if matches!(logical, LogicalType::Zset) => Called::Name("member"),
        Part::String | Part::Value | Part::ArrayString => Called::Name("value"),
        Part::Field => Called::Name("field"),
        Part::GroupName | Part::ConsumerName => Called::Name("name"),
        Part::ProducerId | Part::ProducedId => Called::Name("id"),
        Part::ModuleString => Called::Name("string"),
        _ => Called::Element,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use slotkeep_rdb::{StreamId, ValueType};

    use super::*;
    use crate::keys::KeyFacts;

    fn written(value_type: ValueType, elements: &[Element<'_>]) -> Value {
        let facts = KeyFacts::of(b"k", value_type);
        let (mut key, mut out) = (JsonKey::new(), Vec::new());
        // Twice, for the writer is used again.
        for _ in 0..2 {
            out.clear();
            key.begin(&mut out, &facts).unwrap();
            for element in elements {
                key.element(&mut out, element).unwrap();
            }
            key.end(&mut out, &facts, &[]).unwrap();
        }
        let text = String::from_utf8(out).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn bytes(part: Part, bytes: &[u8]) -> Element<'_> {
        Element::Bytes { part, bytes, last: true }
    }

    #[test]
    fn every_type_has_its_form() {
        let string = written(ValueType::String, &[bytes(Part::String, b"a\"b")]);
        assert_eq!(string["value"], "a\"b");
        assert_eq!(
            (&string["key"], &string["type"], &string["bytes"]),
            (&json!("k"), &json!("string"), &json!(0))
        );
        let list = [bytes(Part::Item, b"a"), bytes(Part::Item, b"\xff")];
        assert_eq!(written(ValueType::List, &list)["value"], json!(["a", {"base64": "/w=="}]));
        assert_eq!(written(ValueType::Set, &[])["value"], json!([]));
        let zset = [
            bytes(Part::Member, b"a"),
            Element::Score(1.5),
            bytes(Part::Member, b"\xfe"),
            Element::Score(f64::NEG_INFINITY),
        ];
        let expected = json!([{"member": "a", "score": 1.5}, {"member_base64": "/g==", "score": "-inf"}]);
        assert_eq!(written(ValueType::Zset2, &zset)["value"], expected);
        let hash = [
            bytes(Part::Field, b"f"),
            bytes(Part::Value, b"v"),
            Element::FieldExpiry(7),
            bytes(Part::Field, b"g"),
            bytes(Part::Value, b""),
        ];
        let expected = json!([{"field": "f", "value": "v", "expires_at_ms": 7}, {"field": "g", "value": ""}]);
        assert_eq!(written(ValueType::HashMetadata, &hash)["value"], expected);
        let array = [
            Element::ArrayInfo { count: 2, insert_index: Some(9) },
            Element::ArrayIndex(0),
            bytes(Part::ArrayString, b"x"),
            Element::ArrayIndex(5),
            Element::ArrayDouble(0.5),
        ];
        let expected = json!({
            "insert_index": 9,
            "elements": [{"index": 0, "value": "x"}, {"index": 5, "value": 0.5}]
        });
        assert_eq!(written(ValueType::Array, &array)["value"], expected);
    }

    #[test]
    fn a_stream_has_its_entries_groups_and_producers() {
        let id = |ms| StreamId { ms, seq: 0 };
        let elements = [
            Element::StreamEntry { id: id(1), fields: 2 },
            bytes(Part::StreamField, b"a"),
            bytes(Part::StreamValue, b"1"),
            bytes(Part::StreamField, b"b"),
            bytes(Part::StreamValue, b"2"),
            Element::StreamEntry { id: id(2), fields: 0 },
            Element::StreamInfo(StreamInfo { length: 2, last_id: id(2), ..StreamInfo::default() }),
            bytes(Part::GroupName, b"g"),
            Element::Group { last_id: id(2), entries_read: Some(2) },
            Element::GroupPending { id: id(1), delivery_time_ms: 5, deliveries: 1 },
            Element::GroupPending { id: id(2), delivery_time_ms: 6, deliveries: 2 },
            bytes(Part::ConsumerName, b"c"),
            Element::Consumer { seen_ms: 8, active_ms: Some(9) },
            Element::ConsumerPending(id(1)),
            bytes(Part::ConsumerName, b"d"),
            Element::Consumer { seen_ms: 8, active_ms: None },
            Element::GroupReleased(id(2)),
            bytes(Part::GroupName, b"h"),
            Element::Group { last_id: id(0), entries_read: None },
            bytes(Part::ConsumerName, b"c"),
            Element::Consumer { seen_ms: 8, active_ms: None },
            Element::Idempotence { duration_s: 100, max_entries: 100 },
            bytes(Part::ProducerId, b"p"),
            bytes(Part::ProducedId, b"i"),
            Element::ProducedEntry(id(1)),
            bytes(Part::ProducerId, b"q"),
            Element::IdempotenceCounters { added: 3, duplicates: 4 },
        ];
        let expected = json!({
            "entries": [
                {"id": "1-0", "fields": [["a", "1"], ["b", "2"]]},
                {"id": "2-0", "fields": []}
            ],
            "length": 2,
            "last_id": "2-0",
            "groups": [
                {
                    "name": "g", "last_id": "2-0", "entries_read": 2,
                    "pending": [
                        {"id": "1-0", "delivered_at_ms": 5, "deliveries": 1},
                        {"id": "2-0", "delivered_at_ms": 6, "deliveries": 2}
                    ],
                    "consumers": [
                        {"name": "c", "seen_at_ms": 8, "active_at_ms": 9, "pending": ["1-0"]},
                        {"name": "d", "seen_at_ms": 8, "pending": []}
                    ],
                    "released": ["2-0"]
                },
                {
                    "name": "h", "last_id": "0-0", "pending": [],
                    "consumers": [{"name": "c", "seen_at_ms": 8, "pending": []}]
                }
            ],
            "idempotence": {
                "duration_s": 100, "max_entries": 100,
                "producers": [
                    {"id": "p", "produced": [{"id": "i", "entry": "1-0"}]},
                    {"id": "q", "produced": []}
                ],
                "added": 3, "duplicates": 4
            }
        });
        assert_eq!(written(ValueType::StreamListpacks5, &elements)["value"], expected);
    }

    #[test]
    fn a_modules_value_names_its_type() {
        // "ReJSON-RL" with encoding version 3, as RedisJSON has it.
        let characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let id = "ReJSON-RL".chars().fold(0_u64, |id, one| (id << 6) | characters.find(one).unwrap() as u64);
        let elements = [
            Element::ModuleId((id << 10) | 3),
            Element::ModuleUnsigned(7),
            bytes(Part::ModuleString, b"s"),
            Element::ModuleDouble(0.5_f64.to_bits()),
        ];
        let expected = json!({
            "module": "ReJSON-RL", "module_version": 3,
            "saved": [{"unsigned": 7}, {"string": "s"}, {"double": 0.5}]
        });
        assert_eq!(written(ValueType::Module2, &elements)["value"], expected);
    }
}
