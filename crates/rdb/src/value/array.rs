//! Arrays (type 28, Redis 8.8): pairs of index and value (`src/rdb.c`, `src/sparsearray.h`).

use crate::error::ErrorKind;
use crate::primitive::{DIGITS_BYTES, Flow, fixed, length, length_pair, write_decimal};
use crate::value::{Decoder, Element, Item, ItemFlow, Part, Source, State};

/// The most bytes a string with the tag for short ones has.
const SHORT_STRING_BYTES: u64 = 7;

#[derive(Clone, Copy)]
enum Phase {
    Header,
    InsertIndex,
    Next,
    IndexAndTag,
    Integer,
    Double,
    String { short: bool },
}

pub(crate) struct ArrayState {
    phase: Phase,
    count: u64,
}

impl ArrayState {
    pub(crate) const fn new() -> Self {
        Self { phase: Phase::Header, count: 0 }
    }
}

impl Decoder {
    #[inline(never)]
    pub(super) fn array_step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        match self.array.phase {
            Phase::Header => {
                let Some((count, flag)) = self.carry.read(input, length_pair)? else {
                    return Ok(Flow::Need);
                };
                self.array.count = count;
                match flag {
                    0 => Ok(self.array_info(None)),
                    1 => {
                        self.array.phase = Phase::InsertIndex;
                        Ok(Flow::Again)
                    }
                    found => {
                        Err(ErrorKind::OutOfRange { part: "the flag of an array", found, expected: "0 or 1" })
                    }
                }
            }
            Phase::InsertIndex => {
                let Some(index) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
                Ok(self.array_info(Some(index)))
            }
            Phase::Next => {
                self.next_array_element();
                Ok(Flow::Again)
            }
            Phase::IndexAndTag => self.array_index(input),
            Phase::Integer => self.array_integer(input),
            Phase::Double => {
                let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.array.phase = Phase::Next;
                Ok(self.give(Element::ArrayDouble(f64::from_le_bytes(bytes))))
            }
            Phase::String { short } => self.array_string(short, input),
        }
    }

    pub(super) fn give<'i>(&self, element: Element<'static>) -> Flow<Item<'i>> {
        if self.skipping { Flow::Again } else { Flow::Emit(Item::Element(element)) }
    }

    fn array_info<'i>(&mut self, insert_index: Option<u64>) -> Flow<Item<'i>> {
        self.array.phase = Phase::Next;
        self.give(Element::ArrayInfo { count: self.array.count, insert_index })
    }

    fn next_array_element(&mut self) {
        match self.array.count.checked_sub(1) {
            Some(rest) => {
                self.array.count = rest;
                self.array.phase = Phase::IndexAndTag;
            }
            None => self.state = State::End,
        }
    }

    fn array_index<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let Some((index, tag)) = self.carry.read(input, length_pair)? else { return Ok(Flow::Need) };
        if index == u64::MAX {
            return Err(ErrorKind::OutOfRange {
                part: "an array index",
                found: index,
                expected: "less than 2^64 - 1",
            });
        }
        self.array.phase = match tag {
            0 | 3 => Phase::String { short: tag == 3 },
            1 => Phase::Integer,
            2 => Phase::Double,
            found => {
                return Err(ErrorKind::OutOfRange {
                    part: "the tag of an array element",
                    found,
                    expected: "0 to 3",
                });
            }
        };
        self.string.begin();
        Ok(self.give(Element::ArrayIndex(index)))
    }

    fn array_integer<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
        self.array.phase = Phase::Next;
        if self.skipping {
            return Ok(Flow::Again);
        }
        let from = write_decimal(i64::from_le_bytes(bytes), &mut self.digits);
        debug_assert!(from < DIGITS_BYTES, "a number has at least one digit");
        Ok(Flow::Emit(Item::Bytes { part: Part::ArrayString, source: Source::Digits(from), last: true }))
    }

    fn array_string<'i>(&mut self, short: bool, input: &mut &'i [u8]) -> ItemFlow<'i> {
        if self.skipping {
            if !self.string.skip(input)? {
                return Ok(Flow::Need);
            }
            self.array.phase = Phase::Next;
            return Ok(Flow::Again);
        }
        let Some(piece) = self.string.piece(input)? else { return Ok(Flow::Need) };
        if short && self.string.total() > SHORT_STRING_BYTES {
            let found = self.string.total();
            return Err(ErrorKind::OutOfRange {
                part: "the length of a short array string",
                found,
                expected: "at most 7",
            });
        }
        if piece.last {
            self.array.phase = Phase::Next;
        }
        Ok(Flow::Emit(Item::Bytes {
            part: Part::ArrayString,
            source: Source::String(piece.place),
            last: piece.last,
        }))
    }
}
