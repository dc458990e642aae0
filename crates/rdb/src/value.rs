//! One value, element by element.
//!
//! A [`Decoder`] is fed the bytes that stand after a key and gives [`Element`]s until [`Element::End`]. Memory stays within a few
//! hundred KiB whatever the value, with one exception: the field names that the entries of a stream node share are held
//! while that node is read, for each entry repeats them.
//!
//! Invariants: `count` is the number of elements not yet begun. In skipping use nothing is decoded and nothing but
//! [`Element::End`] is given, so the same grammar serves for finding a value's end.

use slotkeep_model::RdbVersion;

use crate::blob::{Blob, Layout};
use crate::error::{Error, ErrorKind};
use crate::primitive::{Carry, DIGITS_BYTES, Flow, checked_score, fixed, length, text_score, wide};
use crate::string::{Place, StringReader};
use crate::types::ValueType;

mod array;
mod element;
mod module;
mod packed;
mod stream;

pub use element::{Element, Part, StreamId, StreamInfo};
pub(crate) use module::{ModuleItem, ModuleReader};

use array::ArrayState;
use stream::StreamState;

/// Where the bytes of an [`Element::Bytes`] are, until they are borrowed for the caller.
#[derive(Clone, Copy)]
pub(crate) enum Source<'i> {
    String(Place<'i>),
    Held,
    Digits(usize),
    /// A shared field name of a stream node.
    Shared(usize, usize),
}

/// An element that borrows only from the input.
pub(crate) enum Item<'i> {
    Bytes { part: Part, source: Source<'i>, last: bool },
    Element(Element<'static>),
}

pub(crate) type ItemFlow<'i> = Result<Flow<Item<'i>>, ErrorKind>;

/// What the entries of a blob are, by turns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Item,
    Member,
    Score,
    ScoredMember,
    Field,
    Value,
    Expiry,
}

#[derive(Clone, Copy)]
enum State {
    Start,
    MinExpiry,
    Count,
    Next,
    Ttl,
    Container,
    String(Part),
    TextScore,
    Score,
    Expiry,
    GiveExpiry,
    Blob,
    Stream,
    Module,
    Array,
    End,
    Ended,
}

/// Decodes one value.
pub struct Decoder {
    value_type: ValueType,
    version: RdbVersion,
    skipping: bool,
    state: State,
    turn: Turn,
    count: u64,
    min_expiry_ms: i64,
    expiry_ms: Option<i64>,
    consumed: u64,
    carry: Carry,
    digits: [u8; DIGITS_BYTES],
    string: StringReader,
    blob: Blob,
    stream: StreamState,
    module: ModuleReader,
    array: ArrayState,
}

impl Decoder {
    /// A decoder for a value of that type, out of an RDB or DUMP payload of that version.
    pub fn new(value_type: ValueType, version: RdbVersion) -> Self {
        Self {
            value_type,
            version,
            skipping: false,
            state: State::Start,
            turn: Turn::Item,
            count: 0,
            min_expiry_ms: 0,
            expiry_ms: None,
            consumed: 0,
            carry: Carry::new(),
            digits: [0; DIGITS_BYTES],
            string: StringReader::new(),
            blob: Blob::new(),
            stream: StreamState::new(),
            module: ModuleReader::new(),
            array: ArrayState::new(),
        }
    }

    /// Makes ready for another value, keeping the buffers. `skipping`: only find where the value ends.
    pub(crate) fn restart(&mut self, value_type: ValueType, version: RdbVersion, skipping: bool) {
        self.value_type = value_type;
        self.version = version;
        self.skipping = skipping;
        self.state = State::Start;
        self.expiry_ms = None;
        self.consumed = 0;
    }

    /// The type of the value.
    pub const fn value_type(&self) -> ValueType {
        self.value_type
    }

    /// How many bytes of the value have been consumed.
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Takes bytes off the front of `input` and gives the next element: [`Element::End`] after the last one, `None` when all of
    /// the input is consumed and the value goes on. What follows the value is left in `input`.
    ///
    /// Byte strings of at most 64 KiB come in one [`Element::Bytes`]; longer ones in parts.
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Result<Option<Element<'s>>, Error> {
        match self.step(input) {
            Ok(Flow::Emit(item)) => Ok(Some(self.element(item))),
            Ok(_) => Ok(None),
            Err(kind) => Err(Error::new(kind, self.consumed).in_value(self.value_type)),
        }
    }

    /// The string reader, for a parser's own strings between two values.
    pub(crate) const fn string_mut(&mut self) -> &mut StringReader {
        &mut self.string
    }

    /// The next element, or that more input is needed; never [`Flow::Again`].
    #[inline]
    pub(crate) fn step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let before = input.len();
        let item = self.run(input);
        self.consumed += wide(before - input.len());
        if item.is_err() {
            self.state = State::Ended;
        }
        item
    }

    /// Borrows the bytes of an item.
    #[inline]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "an item is used once; it goes by value as all of a step does"
    )]
    pub(crate) fn element<'a>(&'a self, item: Item<'a>) -> Element<'a> {
        match item {
            Item::Bytes { part, source, last } => Element::Bytes { part, bytes: self.bytes_of(source), last },
            Item::Element(element) => element,
        }
    }

    #[inline]
    fn bytes_of<'a>(&'a self, source: Source<'a>) -> &'a [u8] {
        match source {
            Source::String(place) => self.string.resolve(place),
            Source::Held => self.blob.held(),
            Source::Digits(from) => self.digits.get(from..).unwrap_or_default(),
            Source::Shared(from, to) => self.stream.shared(from, to),
        }
    }

    #[inline]
    fn run<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        loop {
            // What a step gives is passed on as it is: rewrapping it costs more than the step.
            let flow = match self.state {
                State::Blob => self.blob_step(input),
                State::String(part) => self.string_step(part, input),
                State::Next => Ok(self.next_element()),
                State::Start => self.start(),
                State::Stream => self.stream_step(input),
                State::Module => self.module_step(input),
                State::Array => self.array_step(input),
                State::GiveExpiry => Ok(self.give_expiry()),
                State::End => {
                    self.state = State::Ended;
                    Ok(Flow::Emit(Item::Element(Element::End)))
                }
                State::Ended => Err(ErrorKind::AfterError),
                _ => self.number_step(input),
            };
            if !matches!(flow, Ok(Flow::Again)) {
                return flow;
            }
        }
    }

    #[inline(never)]
    fn start<'i>(&mut self) -> ItemFlow<'i> {
        use ValueType as T;
        if self.value_type.introduced_in(self.version.product).is_none() {
            return Err(ErrorKind::ForeignType {
                number: self.value_type.byte(),
                product: self.version.product,
            });
        }
        match self.value_type {
            T::String => self.go_string(Part::String),
            T::List
            | T::Set
            | T::Zset
            | T::Hash
            | T::Zset2
            | T::ListQuicklist
            | T::ListQuicklist2
            | T::ValkeyHash2 => {
                self.state = State::Count;
            }
            T::HashMetadata | T::HashListpackEx => self.state = State::MinExpiry,
            T::HashZipmap => self.go_blob(Layout::Zipmap, Turn::Field),
            T::ListZiplist => self.go_blob(Layout::Ziplist, Turn::Item),
            T::SetIntset => self.go_blob(Layout::Intset, Turn::Member),
            T::ZsetZiplist => self.go_blob(Layout::Ziplist, Turn::ScoredMember),
            T::HashZiplist => self.go_blob(Layout::Ziplist, Turn::Field),
            T::HashListpack => self.go_blob(Layout::Listpack, Turn::Field),
            T::ZsetListpack => self.go_blob(Layout::Listpack, Turn::ScoredMember),
            T::SetListpack => self.go_blob(Layout::Listpack, Turn::Member),
            T::StreamListpacks
            | T::StreamListpacks2
            | T::StreamListpacks3
            | T::StreamListpacks4
            | T::StreamListpacks5 => {
                self.stream.begin(self.value_type);
                self.state = State::Stream;
            }
            T::Module2 => {
                self.module.begin(true);
                self.state = State::Module;
            }
            T::Array => {
                self.array = ArrayState::new();
                self.state = State::Array;
            }
        }
        Ok(Flow::Again)
    }

    #[inline]
    fn go_string(&mut self, part: Part) {
        self.string.begin();
        self.state = State::String(part);
    }

    #[inline]
    fn go_blob(&mut self, layout: Layout, turn: Turn) {
        self.string.begin();
        self.blob.begin(layout);
        self.turn = turn;
        self.state = State::Blob;
    }

    #[inline]
    fn next_element<'i>(&mut self) -> Flow<Item<'i>> {
        let Some(rest) = self.count.checked_sub(1) else {
            self.state = State::End;
            return Flow::Again;
        };
        self.count = rest;
        match self.value_type {
            ValueType::List => self.go_string(Part::Item),
            ValueType::Set | ValueType::Zset | ValueType::Zset2 => self.go_string(Part::Member),
            ValueType::ListQuicklist => self.go_blob(Layout::Ziplist, Turn::Item),
            ValueType::ListQuicklist2 => self.state = State::Container,
            ValueType::HashMetadata => self.state = State::Ttl,
            _ => self.go_string(Part::Field),
        }
        Flow::Again
    }

    /// Numbers between the strings of a value.
    #[inline]
    fn number_step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        match self.state {
            State::Score => {
                let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.state = State::Next;
                return Ok(self.give_score(checked_score(f64::from_le_bytes(bytes))?));
            }
            State::TextScore => {
                let Some(score) = self.carry.read(input, text_score)? else { return Ok(Flow::Need) };
                self.state = State::Next;
                return Ok(self.give_score(score));
            }
            State::MinExpiry => {
                let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.min_expiry_ms = i64::from_le_bytes(bytes);
                if self.value_type == ValueType::HashMetadata {
                    self.state = State::Count;
                } else {
                    self.go_blob(Layout::Listpack, Turn::Field);
                }
            }
            State::Expiry => {
                let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                let expiry_ms = i64::from_le_bytes(bytes);
                self.expiry_ms = (expiry_ms != -1).then_some(expiry_ms);
                self.state = State::GiveExpiry;
            }
            _ => return self.length_step(input),
        }
        Ok(Flow::Again)
    }

    #[inline(never)]
    fn length_step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let Some(number) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
        match self.state {
            State::Ttl => {
                self.expiry_ms = self.expiry_of_ttl(number)?;
                self.go_string(Part::Field);
            }
            State::Container => match number {
                1 => self.go_string(Part::Item),
                2 => self.go_blob(Layout::Listpack, Turn::Item),
                found => {
                    return Err(ErrorKind::OutOfRange {
                        part: "the container of a list node",
                        found,
                        expected: "1, a plain node, or 2, a packed one",
                    });
                }
            },
            _ => {
                self.count = number;
                self.state = State::Next;
            }
        }
        Ok(Flow::Again)
    }

    /// The expiry that a field's TTL stands for: 0 for none, else counted from the lowest expiry, plus one.
    fn expiry_of_ttl(&self, ttl: u64) -> Result<Option<i64>, ErrorKind> {
        if ttl == 0 {
            return Ok(None);
        }
        i64::try_from(ttl - 1).ok().and_then(|ttl| self.min_expiry_ms.checked_add(ttl)).map(Some).ok_or(
            ErrorKind::OutOfRange {
                part: "the expiry of a field",
                found: ttl,
                expected: "a time within 63 bits of ms",
            },
        )
    }

    #[inline]
    fn give_score<'i>(&self, score: f64) -> Flow<Item<'i>> {
        if self.skipping { Flow::Again } else { Flow::Emit(Item::Element(Element::Score(score))) }
    }

    fn give_expiry<'i>(&mut self) -> Flow<Item<'i>> {
        self.state = State::Next;
        match self.expiry_ms.take() {
            Some(expiry_ms) if !self.skipping => Flow::Emit(Item::Element(Element::FieldExpiry(expiry_ms))),
            _ => Flow::Again,
        }
    }

    #[inline]
    fn string_step<'i>(&mut self, part: Part, input: &mut &'i [u8]) -> ItemFlow<'i> {
        if self.skipping {
            if !self.string.skip(input)? {
                return Ok(Flow::Need);
            }
            self.after_string(part);
            return Ok(Flow::Again);
        }
        let Some(piece) = self.string.piece(input)? else { return Ok(Flow::Need) };
        if piece.last {
            self.after_string(part);
        }
        Ok(Flow::Emit(Item::Bytes { part, source: Source::String(piece.place), last: piece.last }))
    }

    #[inline]
    fn after_string(&mut self, part: Part) {
        match part {
            Part::Field => {
                self.string.begin();
                self.state = State::String(Part::Value);
            }
            Part::Value => {
                self.state = match self.value_type {
                    ValueType::ValkeyHash2 => State::Expiry,
                    ValueType::HashMetadata => State::GiveExpiry,
                    _ => State::Next,
                }
            }
            Part::Member => {
                self.state = match self.value_type {
                    ValueType::Zset => State::TextScore,
                    ValueType::Zset2 => State::Score,
                    _ => State::Next,
                }
            }
            Part::String => self.state = State::End,
            _ => self.state = State::Next,
        }
    }

    #[inline(never)]
    fn module_step<'i>(&mut self, input: &mut &'i [u8]) -> ItemFlow<'i> {
        let flow = self.module.step(&mut self.carry, &mut self.string, self.skipping, input)?;
        Ok(match flow {
            Flow::Need => Flow::Need,
            Flow::Again => Flow::Again,
            Flow::Emit(ModuleItem::End) => {
                self.state = State::End;
                Flow::Again
            }
            Flow::Emit(_) if self.skipping => Flow::Again,
            Flow::Emit(ModuleItem::Bytes { place, last }) => {
                Flow::Emit(Item::Bytes { part: Part::ModuleString, source: Source::String(place), last })
            }
            Flow::Emit(ModuleItem::Element(element)) => Flow::Emit(Item::Element(element)),
        })
    }
}
