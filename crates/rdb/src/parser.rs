//! A whole RDB, record by record (`rdbLoadRioWithLoadingCtx` in `src/rdb.c`).
//!
//! Invariants: `offset` is the number of bytes consumed; the attributes gathered in `next` belong to the next key only and are
//! cleared after it; `key` is the key whose value is being read.

use slotkeep_model::{Product, RdbVersion, Slot, SlotRange};

use crate::error::{Error, ErrorKind};
use crate::primitive::{Carry, Decoded, Flow, fixed, length, length_pair, take, wide};
use crate::types::ValueType;
use crate::value::{Decoder, Element, Item, ModuleReader};

mod event;
mod header;

pub use event::{Event, KeyHeader};

use header::ModuleAux;

/// The longest string that is held whole: a key, an auxiliary field, a function library. Servers allow no longer keys.
const HELD_LIMIT_BYTES: u64 = 512 << 20;
/// The first RDB version that ends with a CRC64.
const FIRST_WITH_CRC: u16 = 5;
/// The newest versions that are known.
const NEWEST_REDIS: u16 = 14;
const VALKEY: u16 = 80;

/// How far values are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Values come as their bytes, which `DUMP` has between the type byte and the footer.
    Raw,
    /// Values come element by element.
    Element,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Magic,
    Opcode,
    ExpiryMs,
    ExpiryS,
    Idle,
    Freq,
    SelectDb,
    ResizeDb,
    AuxKey,
    AuxValue,
    ModuleAux,
    Function,
    SlotInfo,
    SlotImportJob,
    SlotImportCount,
    SlotImportRange,
    KeyMetaCount,
    KeyMetaClass,
    KeyMetaValues,
    Key,
    Value,
    KeyEnd,
    Crc,
    Ended,
    Failed,
}

/// What the parser hands out, before anything of its own is borrowed.
enum Step<'i> {
    Start,
    Aux,
    ModuleAux { module_id: u64, when: u64 },
    Function,
    SelectDb,
    ResizeDb { keys: u64, expires: u64 },
    SlotInfo { slot: Slot, keys: u64, expires: u64 },
    SlotImport,
    Key,
    ValueBytes(&'i [u8]),
    Item(Item<'i>),
    KeyEnd,
    End { crc: u64 },
}

/// What is known of the next key.
#[derive(Clone, Copy, Default)]
struct Attributes {
    /// Offset of the record's first byte, once there is one.
    start: Option<u64>,
    expiry_ms: Option<i64>,
    idle_s: Option<u64>,
    freq: Option<u8>,
    has_meta: bool,
}

/// Reads an RDB that is fed in chunks and gives its records as [`Event`]s.
pub struct Parser {
    level: Level,
    state: State,
    version: RdbVersion,
    offset: u64,
    /// Offset of the end of the input that was offered last.
    input_end: u64,
    db: u32,
    next: Attributes,
    value_type: ValueType,
    /// The opcode or type byte read last, once there is one.
    opcode: Option<u8>,
    value_offset: u64,
    carry: Carry,
    key: Vec<u8>,
    /// The value of an auxiliary field, a function library's source, or a slot import's job.
    text: Vec<u8>,
    ranges: Vec<SlotRange>,
    count: u64,
    module: ModuleReader,
    module_aux: ModuleAux,
    decoder: Decoder,
}

impl Parser {
    /// A parser that takes values apart as far as `level` says.
    pub fn new(level: Level) -> Self {
        let version = RdbVersion { product: Product::Redis, number: 0 };
        Self {
            level,
            state: State::Magic,
            version,
            offset: 0,
            input_end: 0,
            db: 0,
            next: Attributes::default(),
            value_type: ValueType::String,
            opcode: None,
            value_offset: 0,
            carry: Carry::new(),
            key: Vec::new(),
            text: Vec::new(),
            ranges: Vec::new(),
            count: 0,
            module: ModuleReader::new(),
            module_aux: ModuleAux::default(),
            decoder: Decoder::new(ValueType::String, version),
        }
    }

    /// How many bytes have been consumed.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The version of the RDB, once its magic was read.
    pub fn version(&self) -> Option<RdbVersion> {
        (self.version.number > 0).then_some(self.version)
    }

    /// Takes bytes off the front of `input` and gives the next event, or `None` when all of the input is consumed. After an
    /// error every call gives an error.
    #[inline]
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Result<Option<Event<'s>>, Error> {
        let before = input.len();
        self.input_end = self.offset.saturating_add(wide(before));
        if self.state == State::Value && self.level == Level::Element {
            // Nearly all events are elements: they take the short way.
            match self.decoder.step(input) {
                Ok(Flow::Emit(Item::Element(Element::End))) => self.state = State::KeyEnd,
                Ok(Flow::Emit(item)) => {
                    self.offset = self.input_end - wide(input.len());
                    return Ok(Some(Event::Element(self.decoder.element(item))));
                }
                Ok(_) => {
                    debug_assert!(input.is_empty(), "a decoder that needs more has taken all there is");
                    self.offset = self.input_end;
                    return Ok(None);
                }
                Err(kind) => return Err(self.fail(kind, input)),
            }
        }
        let step = self.run(input);
        self.offset = self.input_end - wide(input.len());
        match step {
            Ok(Some(step)) => Ok(Some(self.event(step))),
            Ok(None) => Ok(None),
            Err(kind) => Err(self.fail(kind, input)),
        }
    }

    #[cold]
    fn fail(&mut self, kind: ErrorKind, input: &[u8]) -> Error {
        self.offset = self.input_end - wide(input.len());
        let error = self.error(kind);
        self.state = State::Failed;
        error
    }

    /// Checks that the RDB is complete.
    pub fn finish(&self) -> Result<(), Error> {
        match self.state {
            State::Ended => Ok(()),
            State::Failed => Err(self.error(ErrorKind::AfterError)),
            _ => Err(self.error(ErrorKind::Truncated { inside: self.inside() })),
        }
    }

    fn inside(&self) -> &'static str {
        match self.state {
            State::Magic => "the magic at its start",
            State::Opcode => "the records, before the end mark",
            State::Key => "a key",
            State::Value => "a value",
            State::Crc => "the CRC64 at its end",
            _ => "a record's head",
        }
    }

    #[cold]
    fn error(&self, kind: ErrorKind) -> Error {
        let error = Error { opcode: self.opcode, ..Error::new(kind, self.offset) };
        match self.state {
            State::Value | State::KeyEnd => error.in_value(self.value_type).in_key(&self.key),
            State::Key => error.in_value(self.value_type),
            _ => error,
        }
    }

    fn here(&self, input: &[u8]) -> u64 {
        self.input_end - wide(input.len())
    }

    #[inline(never)]
    fn run<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Step<'i>>, ErrorKind> {
        loop {
            let flow = match self.state {
                State::Value => self.value(input)?,
                State::Opcode => self.opcode(input)?,
                State::Key => self.key(input)?,
                State::KeyEnd => {
                    self.state = State::Opcode;
                    self.next = Attributes::default();
                    Flow::Emit(Step::KeyEnd)
                }
                State::ExpiryMs | State::ExpiryS | State::Idle | State::Freq => self.attribute(input)?,
                State::Ended if input.is_empty() => Flow::Need,
                State::Ended => return Err(ErrorKind::TrailingBytes { bytes: wide(input.len()) }),
                State::Failed => return Err(ErrorKind::AfterError),
                _ => self.header(input)?,
            };
            match flow {
                Flow::Again => {}
                Flow::Need => return Ok(None),
                Flow::Emit(step) => return Ok(Some(step)),
            }
        }
    }

    #[inline(never)]
    fn opcode<'i>(&mut self, input: &mut &'i [u8]) -> Result<Flow<Step<'i>>, ErrorKind> {
        let start = self.here(input);
        let Some(&opcode) = take(input, 1).first() else { return Ok(Flow::Need) };
        self.opcode = Some(opcode);
        let valkey = self.version.product == Product::Valkey;
        if self.next.start.is_some() && matches!(opcode, 0xf4..=0xf7 | 0xfa | 0xfb | 0xfe | 0xff) {
            return Err(ErrorKind::Malformed {
                part: "a record",
                what: "no key follows its attributes",
                expected: "another attribute, or the type of a value",
            });
        }
        self.state = match opcode {
            0xff if self.version.number < FIRST_WITH_CRC => {
                self.state = State::Ended;
                return Ok(Flow::Emit(Step::End { crc: 0 }));
            }
            0xff => State::Crc,
            0xfe => State::SelectDb,
            0xfd => self.begin_attribute(start, State::ExpiryS),
            0xfc => self.begin_attribute(start, State::ExpiryMs),
            0xfb => State::ResizeDb,
            0xfa => self.begin_text(State::AuxKey),
            0xf9 => self.begin_attribute(start, State::Freq),
            0xf8 => self.begin_attribute(start, State::Idle),
            0xf7 => {
                self.module_aux = ModuleAux::default();
                State::ModuleAux
            }
            0xf5 => self.begin_text(State::Function),
            0xf4 => State::SlotInfo,
            0xf3 if valkey => self.begin_text(State::SlotImportJob),
            0xf3 => self.begin_attribute(start, State::KeyMetaCount),
            0xf6 => return Err(ErrorKind::PreRelease { number: opcode }),
            number => {
                self.value_type = ValueType::from_byte(number, self.version.product)?;
                self.begin_attribute(start, State::Key);
                self.begin_text(State::Key)
            }
        };
        Ok(Flow::Again)
    }

    fn begin_attribute(&mut self, start: u64, state: State) -> State {
        self.next.start.get_or_insert(start);
        state
    }

    fn begin_text(&mut self, state: State) -> State {
        self.key.clear();
        self.text.clear();
        self.decoder.string_mut().begin();
        state
    }

    fn attribute<'i>(&mut self, input: &mut &'i [u8]) -> Result<Flow<Step<'i>>, ErrorKind> {
        match self.state {
            State::ExpiryMs => {
                let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.next.expiry_ms = Some(i64::from_le_bytes(bytes));
            }
            State::ExpiryS => {
                let Some(bytes) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.next.expiry_ms = Some(i64::from(i32::from_le_bytes(bytes)) * 1000);
            }
            State::Freq => {
                let Some([freq]) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.next.freq = Some(freq);
            }
            _ => {
                let Some(idle_s) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
                self.next.idle_s = Some(idle_s);
            }
        }
        self.state = State::Opcode;
        Ok(Flow::Again)
    }

    fn key<'i>(&mut self, input: &mut &'i [u8]) -> Result<Flow<Step<'i>>, ErrorKind> {
        let string = self.decoder.string_mut();
        if !string.collect(input, &mut self.key, "a key", HELD_LIMIT_BYTES)? {
            return Ok(Flow::Need);
        }
        self.value_offset = self.here(input);
        self.decoder.restart(self.value_type, self.version, self.level == Level::Raw);
        self.state = State::Value;
        Ok(Flow::Emit(Step::Key))
    }

    /// Steps through a value; elements that are due at once after a key come this way, all others by the short one.
    fn value<'i>(&mut self, input: &mut &'i [u8]) -> Result<Flow<Step<'i>>, ErrorKind> {
        let whole: &'i [u8] = input;
        let ended = match self.decoder.step(input)? {
            Flow::Emit(Item::Element(Element::End)) => true,
            Flow::Emit(item) => return Ok(Flow::Emit(Step::Item(item))),
            _ => false,
        };
        if ended {
            self.state = State::KeyEnd;
        }
        let consumed = whole.get(..whole.len() - input.len()).unwrap_or_default();
        Ok(match (self.level, consumed.is_empty(), ended) {
            (Level::Raw, false, _) => Flow::Emit(Step::ValueBytes(consumed)),
            (_, _, true) => Flow::Again,
            (_, _, false) => Flow::Need,
        })
    }

    #[inline]
    fn event<'a>(&'a self, step: Step<'a>) -> Event<'a> {
        match step {
            Step::Item(item) => Event::Element(self.decoder.element(item)),
            Step::ValueBytes(bytes) => Event::ValueBytes(bytes),
            Step::KeyEnd => Event::KeyEnd { end_offset: self.offset },
            Step::Key => Event::Key(self.key_header()),
            Step::Start => Event::Start(self.version),
            Step::Aux => Event::Aux { key: &self.key, value: &self.text },
            Step::ModuleAux { module_id, when } => Event::ModuleAux { module_id, when },
            Step::Function => Event::Function { source: &self.text },
            Step::SelectDb => Event::SelectDb(self.db),
            Step::ResizeDb { keys, expires } => Event::ResizeDb { keys, expires },
            Step::SlotInfo { slot, keys, expires } => Event::SlotInfo { slot, keys, expires },
            Step::SlotImport => Event::SlotImport { job: &self.text, ranges: &self.ranges },
            Step::End { crc } => Event::End { crc },
        }
    }

    fn key_header(&self) -> KeyHeader<'_> {
        KeyHeader {
            db: self.db,
            key: &self.key,
            expiry_ms: self.next.expiry_ms,
            idle_s: self.next.idle_s,
            freq: self.next.freq,
            has_meta: self.next.has_meta,
            value_type: self.value_type,
            offset: self.next.start.unwrap_or(self.value_offset),
            value_offset: self.value_offset,
        }
    }
}

fn slot_counts(bytes: &[u8]) -> Decoded<(u64, u64, u64)> {
    let Some(((slot, keys), used)) = length_pair(bytes)? else { return Ok(None) };
    let rest = bytes.get(used..).unwrap_or_default();
    Ok(length(rest)?.map(|(expires, more)| ((slot, keys, expires), used + more)))
}
