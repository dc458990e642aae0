//! Values packed into a string: entries of a blob as elements, by turns.

use crate::blob::{Entry, EntryPlace};
use crate::error::ErrorKind;
use crate::primitive::{Flow, parse_score, write_decimal};
use crate::types::ValueType;
use crate::value::{Decoder, Element, Item, ItemFlow, Part, Source, State, Turn};

/// The longest text of a score or an expiry inside a ziplist or listpack.
const LONGEST_NUMBER_BYTES: usize = 256;

/// An entry of a blob whose bytes borrow only from the input.
pub(super) enum BlobItem<'i> {
    Integer(i64),
    Bytes { source: Source<'i>, last: bool },
    End,
}

impl Decoder {
    /// The next entry of the blob in the string, or `None` if more input is needed.
    #[inline]
    pub(super) fn blob_item<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<BlobItem<'i>>, ErrorKind> {
        if !self.string.open(input)? {
            return Ok(None);
        }
        loop {
            self.string.fill(input)?;
            let whole: &'i [u8] = input;
            let view = self.string.view(whole);
            let (available, left) = (view.len(), self.string.left());
            let (used, entry) = self.blob.next(view, left, self.string.total())?;
            let item = match entry {
                None => None,
                Some(Entry::Integer(number)) => Some(BlobItem::Integer(number)),
                Some(Entry::Bytes { place: EntryPlace::View(from, to), last }) => {
                    Some(BlobItem::Bytes { source: Source::String(self.string.place(whole, from, to)), last })
                }
                Some(Entry::Bytes { place: EntryPlace::Held, last }) => {
                    Some(BlobItem::Bytes { source: Source::Held, last })
                }
                Some(Entry::End) => Some(BlobItem::End),
            };
            self.string.consume(input, used);
            if item.is_some() {
                return Ok(item);
            }
            if self.string.left() == 0 {
                return Err(self.blob.cut_short());
            }
            if available == 0 {
                return Ok(None);
            }
        }
    }

    #[inline]
    pub(super) fn blob_step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        if self.skipping {
            if !self.string.skip(input)? {
                return Ok(Flow::Need);
            }
            self.after_blob();
            return Ok(Flow::Again);
        }
        let Some(item) = self.blob_item(input)? else { return Ok(Flow::Need) };
        match item {
            BlobItem::Integer(number) => Ok(self.blob_integer(number)),
            BlobItem::Bytes { source, last } => self.blob_bytes(source, last),
            BlobItem::End => {
                if !matches!(self.turn, Turn::Item | Turn::Member | Turn::ScoredMember | Turn::Field) {
                    return Err(ErrorKind::Malformed {
                        part: "a packed value",
                        what: "its last element is cut",
                        expected: "the value, score or expiry that belongs to it",
                    });
                }
                self.after_blob();
                Ok(Flow::Again)
            }
        }
    }

    /// Only lists have more than one blob.
    fn after_blob(&mut self) {
        self.state = match self.value_type {
            ValueType::ListQuicklist | ValueType::ListQuicklist2 => State::Next,
            _ => State::End,
        };
    }

    #[inline]
    fn blob_integer<'i>(&mut self, number: i64) -> Flow<Item<'i>> {
        match self.turn {
            Turn::Score => {
                self.turn = Turn::ScoredMember;
                #[expect(clippy::cast_precision_loss, reason = "servers convert such a score the same way")]
                self.give_score(number as f64)
            }
            Turn::Expiry => {
                self.turn = Turn::Field;
                if number == 0 {
                    return Flow::Again;
                }
                Flow::Emit(Item::Element(Element::FieldExpiry(number)))
            }
            _ => {
                let from = write_decimal(number, &mut self.digits);
                self.give_turn(Source::Digits(from), true)
            }
        }
    }

    #[inline]
    fn blob_bytes<'i>(&mut self, source: Source<'i>, last: bool) -> ItemFlow<'i> {
        match self.turn {
            Turn::Score | Turn::Expiry => {
                let text = self.bytes_of(source);
                if !last || text.len() > LONGEST_NUMBER_BYTES {
                    return Err(ErrorKind::Malformed {
                        part: "a score or expiry",
                        what: "its text is too long",
                        expected: "at most 256 bytes",
                    });
                }
                if self.turn == Turn::Score {
                    let score = parse_score(text)?;
                    self.turn = Turn::ScoredMember;
                    return Ok(self.give_score(score));
                }
                Err(ErrorKind::Malformed {
                    part: "the expiry of a field",
                    what: "it is not an integer",
                    expected: "a time in ms",
                })
            }
            _ => Ok(self.give_turn(source, last)),
        }
    }

    #[inline]
    fn give_turn<'i>(&mut self, source: Source<'i>, last: bool) -> Flow<Item<'i>> {
        let (part, after) = match self.turn {
            Turn::Member => (Part::Member, Turn::Member),
            Turn::ScoredMember => (Part::Member, Turn::Score),
            Turn::Field => (Part::Field, Turn::Value),
            Turn::Value if self.value_type == ValueType::HashListpackEx => (Part::Value, Turn::Expiry),
            Turn::Value => (Part::Value, Turn::Field),
            _ => (Part::Item, Turn::Item),
        };
        if last {
            self.turn = after;
        }
        Flow::Emit(Item::Bytes { part, source, last })
    }
}
