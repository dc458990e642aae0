//! From elements to a value.
//!
//! Invariants: `gathered` holds the parts of a byte string that has not ended; `held` a member, field or name whose second half is
//! still to come. Nothing is added to the value before the budget has taken it.

use super::{
    Array, ArrayElement, Budget, Consumer, Group, HashField, Idempotence, ModulePart, ModuleValue, Pending,
    Producer, Stream, StreamEntry, Value,
};
use crate::error::ErrorKind;
use crate::types::LogicalType;
use crate::value::{Element, Part};

/// What an item of any kind costs besides its bytes: the largest of the structures above, roughly.
const ITEM_BYTES: usize = 64;

/// Gathers the elements of one value.
pub struct ValueBuilder {
    value: Value,
    budget: Budget,
    gathered: Vec<u8>,
    held: Vec<u8>,
}

impl ValueBuilder {
    /// A builder for a value of that kind that holds at most about that many bytes.
    pub fn new(logical: LogicalType, limit_bytes: u64) -> Self {
        Self {
            value: Value::empty(logical),
            budget: Budget::new(limit_bytes),
            gathered: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Makes ready for the next value.
    pub(crate) fn restart(&mut self, logical: LogicalType) {
        self.value = Value::empty(logical);
        self.budget.reset();
        self.gathered.clear();
        self.held.clear();
    }

    /// Takes in an element; gives the value with [`Element::End`]. The error is [`ErrorKind::ValueTooLarge`], or
    /// [`ErrorKind::Malformed`] for elements that are not those of such a value.
    pub fn element(&mut self, element: &Element<'_>) -> Result<Option<Value>, ErrorKind> {
        match *element {
            Element::Bytes { part, bytes, last } => {
                self.budget.take(bytes.len())?;
                if last && self.gathered.is_empty() {
                    self.part(part, bytes.to_vec())?;
                } else {
                    self.gathered.extend_from_slice(bytes);
                    if last {
                        let whole = core::mem::take(&mut self.gathered);
                        self.part(part, whole)?;
                    }
                }
            }
            Element::Score(score) => {
                let member = core::mem::take(&mut self.held);
                let Value::Zset(pairs) = &mut self.value else { return Err(STRAY) };
                pairs.push((member, score));
            }
            Element::FieldExpiry(expiry_ms) => {
                let Value::Hash(fields) = &mut self.value else { return Err(STRAY) };
                fields.last_mut().ok_or(STRAY)?.expiry_ms = Some(expiry_ms);
            }
            Element::End => {
                return Ok(Some(self.take_value()));
            }
            _ => self.rare(element)?,
        }
        Ok(None)
    }

    /// The value as far as it was gathered.
    pub(crate) fn take_value(&mut self) -> Value {
        let empty = Value::empty(self.value.logical());
        core::mem::replace(&mut self.value, empty)
    }

    fn part(&mut self, part: Part, whole: Vec<u8>) -> Result<(), ErrorKind> {
        self.budget.take(ITEM_BYTES)?;
        match (part, &mut self.value) {
            (Part::String, Value::String(bytes)) => *bytes = whole,
            (Part::Item, Value::List(items)) | (Part::Member, Value::Set(items)) => items.push(whole),
            (Part::Member, Value::Zset(_)) | (Part::Field, Value::Hash(_)) => self.held = whole,
            (Part::Value, Value::Hash(fields)) => {
                let field = core::mem::take(&mut self.held);
                fields.push(HashField { field, value: whole, expiry_ms: None });
            }
            (Part::ModuleString, Value::Module(module)) => module.parts.push(ModulePart::String(whole)),
            (Part::ArrayString, Value::Array(array)) => {
                array.elements.last_mut().ok_or(STRAY)?.1 = ArrayElement::String(whole);
            }
            (_, Value::Stream(_)) => self.stream_part(part, whole)?,
            _ => return Err(STRAY),
        }
        Ok(())
    }

    fn stream_part(&mut self, part: Part, whole: Vec<u8>) -> Result<(), ErrorKind> {
        let Value::Stream(stream) = &mut self.value else { return Err(STRAY) };
        match part {
            Part::StreamField | Part::ProducedId => self.held = whole,
            Part::StreamValue => {
                let field = core::mem::take(&mut self.held);
                stream.entries.last_mut().ok_or(STRAY)?.fields.push((field, whole));
            }
            Part::GroupName => stream.groups.push(Group { name: whole, ..Group::default() }),
            Part::ConsumerName => {
                group(stream)?.consumers.push(Consumer { name: whole, ..Consumer::default() });
            }
            Part::ProducerId => {
                let idempotence = stream.idempotence.as_mut().ok_or(STRAY)?;
                idempotence.producers.push(Producer { id: whole, entries: Vec::new() });
            }
            _ => return Err(STRAY),
        }
        Ok(())
    }

    fn rare(&mut self, element: &Element<'_>) -> Result<(), ErrorKind> {
        self.budget.take(ITEM_BYTES)?;
        match &mut self.value {
            Value::Stream(stream) => stream_element(stream, &mut self.held, element),
            Value::Module(module) => module_element(module, element),
            Value::Array(array) => array_element(array, element),
            _ => Err(STRAY),
        }
    }
}

const STRAY: ErrorKind = ErrorKind::Malformed {
    part: "a value",
    what: "an element of another kind of value stands in it",
    expected: "elements as a decoder gives them",
};

fn group(stream: &mut Stream) -> Result<&mut Group, ErrorKind> {
    stream.groups.last_mut().ok_or(STRAY)
}

fn stream_element(stream: &mut Stream, held: &mut Vec<u8>, element: &Element<'_>) -> Result<(), ErrorKind> {
    match *element {
        Element::StreamEntry { id, .. } => stream.entries.push(StreamEntry { id, fields: Vec::new() }),
        Element::StreamInfo(info) => stream.info = info,
        Element::Group { last_id, entries_read } => {
            let group = group(stream)?;
            (group.last_id, group.entries_read) = (last_id, entries_read);
        }
        Element::GroupPending { id, delivery_time_ms, deliveries } => {
            group(stream)?.pending.push(Pending { id, delivery_time_ms, deliveries });
        }
        Element::Consumer { seen_ms, active_ms } => {
            let consumer = group(stream)?.consumers.last_mut().ok_or(STRAY)?;
            (consumer.seen_ms, consumer.active_ms) = (seen_ms, active_ms);
        }
        Element::ConsumerPending(id) => {
            group(stream)?.consumers.last_mut().ok_or(STRAY)?.pending.push(id);
        }
        Element::GroupReleased(id) => group(stream)?.released.push(id),
        Element::Idempotence { duration_s, max_entries } => {
            stream.idempotence = Some(Idempotence { duration_s, max_entries, ..Idempotence::default() });
        }
        Element::ProducedEntry(id) => {
            let idempotence = stream.idempotence.as_mut().ok_or(STRAY)?;
            let producer = idempotence.producers.last_mut().ok_or(STRAY)?;
            producer.entries.push((core::mem::take(held), id));
        }
        Element::IdempotenceCounters { added, duplicates } => {
            let idempotence = stream.idempotence.as_mut().ok_or(STRAY)?;
            (idempotence.added, idempotence.duplicates) = (added, duplicates);
        }
        _ => return Err(STRAY),
    }
    Ok(())
}

fn module_element(module: &mut ModuleValue, element: &Element<'_>) -> Result<(), ErrorKind> {
    let part = match *element {
        Element::ModuleId(id) => {
            module.id = id;
            return Ok(());
        }
        Element::ModuleSigned(number) => ModulePart::Signed(number),
        Element::ModuleUnsigned(number) => ModulePart::Unsigned(number),
        Element::ModuleFloat(bits) => ModulePart::Float(bits),
        Element::ModuleDouble(bits) => ModulePart::Double(bits),
        _ => return Err(STRAY),
    };
    module.parts.push(part);
    Ok(())
}

fn array_element(array: &mut Array, element: &Element<'_>) -> Result<(), ErrorKind> {
    match *element {
        Element::ArrayInfo { insert_index, .. } => array.insert_index = insert_index,
        Element::ArrayIndex(index) => array.elements.push((index, ArrayElement::String(Vec::new()))),
        Element::ArrayDouble(number) => {
            array.elements.last_mut().ok_or(STRAY)?.1 = ArrayElement::Double(number);
        }
        _ => return Err(STRAY),
    }
    Ok(())
}
