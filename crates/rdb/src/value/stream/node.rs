//! The entries of a stream node: a listpack that begins with a master entry, whose field names later entries share.

use super::{Phase, Place};
use crate::error::ErrorKind;
use crate::primitive::{Flow, wide, write_decimal};
use crate::value::packed::BlobItem;
use crate::value::{Decoder, Element, Item, ItemFlow, Part, Source};

/// The most bytes of field names that one node may share; servers split nodes at 4 KiB by default.
const SHARED_LIMIT_BYTES: u64 = 512 << 20;
const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;

const NODE_CUT: ErrorKind = ErrorKind::Malformed {
    part: "a stream node",
    what: "it ends inside an entry",
    expected: "the flags of an entry, or its rest",
};
const NODE_TEXT: ErrorKind = ErrorKind::Malformed {
    part: "a stream node",
    what: "a string stands in place of a number",
    expected: "a number",
};
const NODE_NUMBER: ErrorKind = ErrorKind::Malformed {
    part: "a stream node",
    what: "a number is out of range",
    expected: "a count of what the node holds",
};

impl Decoder {
    pub(super) fn stream_node<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        if self.skipping {
            if !self.string.skip(input)? {
                return Ok(Flow::Need);
            }
            self.stream.phase = Phase::NextNode;
            return Ok(Flow::Again);
        }
        if let Some(name) = self.shared_name() {
            return Ok(Flow::Emit(name));
        }
        match self.blob_item(input)? {
            None => Ok(Flow::Need),
            Some(BlobItem::End) => self.end_of_node(),
            Some(BlobItem::Integer(number)) => match self.stream.place {
                Place::SharedField | Place::Field | Place::Value => {
                    let from = write_decimal(number, &mut self.digits);
                    self.node_bytes(Source::Digits(from), true)
                }
                _ => self.node_number(number),
            },
            Some(BlobItem::Bytes { source, last }) => self.node_bytes(source, last),
        }
    }

    /// The shared field name before a value, where that is not given yet.
    fn shared_name<'i>(&mut self) -> Option<Item<'i>> {
        let stream = &mut self.stream;
        let due = matches!(stream.place, Place::Value)
            && !stream.named
            && stream.flags & SAME_FIELDS != 0
            && stream.flags & DELETED == 0;
        if !due {
            return None;
        }
        let position = stream.next_shared;
        let to = *stream.shared_ends.get(position)?;
        let from = position.checked_sub(1).and_then(|before| stream.shared_ends.get(before)).copied();
        stream.next_shared += 1;
        stream.named = true;
        Some(Item::Bytes {
            part: Part::StreamField,
            source: Source::Shared(from.unwrap_or(0), to),
            last: true,
        })
    }

    fn end_of_node<'i>(&mut self) -> ItemFlow<'i> {
        if !matches!(self.stream.place, Place::Flags) {
            return Err(NODE_CUT);
        }
        if self.stream.live != 0 || self.stream.deleted != 0 {
            return Err(ErrorKind::Malformed {
                part: "a stream node",
                what: "it has not as many entries as it says",
                expected: "as many live and deleted entries as its head counts",
            });
        }
        self.stream.phase = Phase::NextNode;
        Ok(Flow::Again)
    }

    fn node_number<'i>(&mut self, number: i64) -> ItemFlow<'i> {
        let stream = &mut self.stream;
        let count = u64::try_from(number);
        stream.place = match stream.place {
            Place::Count => {
                stream.live = count.map_err(|_| NODE_NUMBER)?;
                Place::Deleted
            }
            Place::Deleted => {
                stream.deleted = count.map_err(|_| NODE_NUMBER)?;
                Place::FieldCount
            }
            Place::FieldCount => {
                stream.master_fields = count.map_err(|_| NODE_NUMBER)?;
                stream.fields_left = stream.master_fields;
                stream.shared.clear();
                stream.shared_ends.clear();
                if stream.fields_left == 0 { Place::MasterEnd } else { Place::SharedField }
            }
            Place::Flags => {
                let left = if number & DELETED == 0 { &mut stream.live } else { &mut stream.deleted };
                *left = left.checked_sub(1).ok_or(NODE_NUMBER)?;
                stream.flags = number;
                Place::Ms
            }
            // Deltas wrap as the servers' unsigned arithmetic does.
            Place::Ms => {
                stream.id.ms = stream.master_id.ms.wrapping_add(number.cast_unsigned());
                Place::Seq
            }
            Place::Seq => {
                stream.id.seq = stream.master_id.seq.wrapping_add(number.cast_unsigned());
                if stream.flags & SAME_FIELDS == 0 {
                    Place::OwnFieldCount
                } else {
                    return Ok(self.begin_entry(self.stream.master_fields));
                }
            }
            Place::OwnFieldCount => {
                let fields = count.map_err(|_| NODE_NUMBER)?;
                return Ok(self.begin_entry(fields));
            }
            _ if matches!(stream.place, Place::MasterEnd) && number != 0 => return Err(NODE_NUMBER),
            _ => Place::Flags,
        };
        Ok(Flow::Again)
    }

    fn begin_entry<'i>(&mut self, fields: u64) -> Flow<Item<'i>> {
        let stream = &mut self.stream;
        stream.fields_left = fields;
        stream.next_shared = 0;
        stream.named = false;
        stream.place = if fields == 0 {
            Place::EntryEnd
        } else if stream.flags & SAME_FIELDS == 0 {
            Place::Field
        } else {
            Place::Value
        };
        if stream.flags & DELETED != 0 {
            return Flow::Again;
        }
        Flow::Emit(Item::Element(Element::StreamEntry { id: stream.id, fields }))
    }

    fn node_bytes<'i>(&mut self, source: Source<'i>, last: bool) -> ItemFlow<'i> {
        let part = match self.stream.place {
            Place::SharedField => return self.shared_bytes(source, last),
            Place::Field => Part::StreamField,
            Place::Value => Part::StreamValue,
            _ => return Err(NODE_TEXT),
        };
        let deleted = self.stream.flags & DELETED != 0;
        if last {
            self.after_node_bytes();
        }
        Ok(if deleted { Flow::Again } else { Flow::Emit(Item::Bytes { part, source, last }) })
    }

    fn after_node_bytes(&mut self) {
        let stream = &mut self.stream;
        if matches!(stream.place, Place::Field) {
            stream.place = Place::Value;
            return;
        }
        stream.fields_left = stream.fields_left.saturating_sub(1);
        stream.named = false;
        stream.place = if stream.fields_left == 0 {
            Place::EntryEnd
        } else if stream.flags & SAME_FIELDS == 0 {
            Place::Field
        } else {
            Place::Value
        };
    }

    fn shared_bytes<'i>(&mut self, source: Source<'i>, last: bool) -> ItemFlow<'i> {
        let bytes = match source {
            Source::String(place) => self.string.resolve(place),
            Source::Digits(from) => self.digits.get(from..).unwrap_or_default(),
            _ => self.blob.held(),
        };
        let held = wide(self.stream.shared.len()).saturating_add(wide(bytes.len()));
        if held > SHARED_LIMIT_BYTES {
            return Err(ErrorKind::TooLong {
                part: "the shared field names of a stream node",
                bytes: held,
                limit: SHARED_LIMIT_BYTES,
            });
        }
        self.stream.shared.extend_from_slice(bytes);
        if last {
            let stream = &mut self.stream;
            stream.shared_ends.push(stream.shared.len());
            stream.fields_left = stream.fields_left.saturating_sub(1);
            if stream.fields_left == 0 {
                stream.place = Place::MasterEnd;
            }
        }
        Ok(Flow::Again)
    }
}
