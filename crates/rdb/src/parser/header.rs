//! The records of an RDB other than keys.

use slotkeep_model::{Product, RdbVersion, Slot, SlotRange};

use super::{HELD_LIMIT_BYTES, NEWEST_REDIS, Parser, State, Step, VALKEY, slot_counts};
use crate::error::ErrorKind;
use crate::primitive::{Flow, fixed, length, length_pair};

type StepFlow<'i> = Result<Flow<Step<'i>>, ErrorKind>;

/// The opcode that a module's auxiliary data has before the time it was saved at.
const MODULE_UNSIGNED: u64 = 2;

/// How far the data of a module outside any key was read.
#[derive(Clone, Copy, Default)]
pub(super) struct ModuleAux {
    module_id: Option<u64>,
    when: Option<u64>,
}

impl Parser {
    pub(super) fn header<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        match self.state {
            State::Magic => self.magic(input),
            State::SelectDb => self.select_db(input),
            State::ResizeDb => {
                let Some((keys, expires)) = self.carry.read(input, length_pair)? else {
                    return Ok(Flow::Need);
                };
                self.state = State::Opcode;
                Ok(Flow::Emit(Step::ResizeDb { keys, expires }))
            }
            State::AuxKey | State::AuxValue | State::Function => self.text(input),
            State::ModuleAux => self.module_aux(input),
            State::SlotInfo => self.slot_info(input),
            State::SlotImportJob | State::SlotImportCount | State::SlotImportRange => self.slot_import(input),
            State::Crc => {
                let Some(crc) = self.carry.read(input, fixed)? else { return Ok(Flow::Need) };
                self.state = State::Ended;
                Ok(Flow::Emit(Step::End { crc: u64::from_le_bytes(crc) }))
            }
            _ => self.key_meta(input),
        }
    }

    fn magic<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        let Some(found) = self.carry.read(input, fixed::<{ RdbVersion::MAGIC_LEN }>)? else {
            return Ok(Flow::Need);
        };
        let version = RdbVersion::from_magic(&found).ok_or(ErrorKind::BadMagic { found })?;
        let known = match version.product {
            Product::Redis => (1..=NEWEST_REDIS).contains(&version.number),
            Product::Valkey => version.number == VALKEY,
        };
        if !known {
            return Err(ErrorKind::UnknownVersion(version));
        }
        self.version = version;
        self.state = State::Opcode;
        Ok(Flow::Emit(Step::Start))
    }

    fn select_db<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        let Some(db) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
        self.db = u32::try_from(db).map_err(|_| ErrorKind::OutOfRange {
            part: "the number of a database",
            found: db,
            expected: "32 bits",
        })?;
        self.state = State::Opcode;
        Ok(Flow::Emit(Step::SelectDb))
    }

    fn text<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        let string = self.decoder.string_mut();
        let (target, part) = match self.state {
            State::AuxKey => (&mut self.key, "the name of an auxiliary field"),
            State::AuxValue => (&mut self.text, "the value of an auxiliary field"),
            _ => (&mut self.text, "a function library"),
        };
        if !string.collect(input, target, part, HELD_LIMIT_BYTES)? {
            return Ok(Flow::Need);
        }
        if self.state == State::AuxKey {
            string.begin();
            self.state = State::AuxValue;
            return Ok(Flow::Again);
        }
        let step = if self.state == State::AuxValue { Step::Aux } else { Step::Function };
        self.state = State::Opcode;
        Ok(Flow::Emit(step))
    }

    fn module_aux<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        let Some(module_id) = self.module_aux.module_id else {
            let id = self.carry.read(input, length)?;
            self.module_aux.module_id = id;
            return Ok(if id.is_some() { Flow::Again } else { Flow::Need });
        };
        let Some(when) = self.module_aux.when else {
            let Some((opcode, when)) = self.carry.read(input, length_pair)? else { return Ok(Flow::Need) };
            if opcode != MODULE_UNSIGNED {
                return Err(ErrorKind::OutOfRange {
                    part: "the first opcode of a module's data",
                    found: opcode,
                    expected: "2, before the time it was saved at",
                });
            }
            self.module_aux.when = Some(when);
            self.module.begin(false);
            return Ok(Flow::Again);
        };
        if !self.skip_module_values(input)? {
            return Ok(Flow::Need);
        }
        self.state = State::Opcode;
        Ok(Flow::Emit(Step::ModuleAux { module_id, when }))
    }

    /// Passes over a module's values; true at their end.
    fn skip_module_values(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        loop {
            match self.module.step(&mut self.carry, self.decoder.string_mut(), true, input)? {
                Flow::Need => return Ok(false),
                Flow::Emit(crate::value::ModuleItem::End) => return Ok(true),
                Flow::Again | Flow::Emit(_) => {}
            }
        }
    }

    fn slot_info<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        let Some((slot, keys, expires)) = self.carry.read(input, slot_counts)? else {
            return Ok(Flow::Need);
        };
        let slot = slot_of(slot)?;
        self.state = State::Opcode;
        Ok(Flow::Emit(Step::SlotInfo { slot, keys, expires }))
    }

    fn slot_import<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        match self.state {
            State::SlotImportJob => {
                let string = self.decoder.string_mut();
                if !string.collect(input, &mut self.text, "the name of a slot import", HELD_LIMIT_BYTES)? {
                    return Ok(Flow::Need);
                }
                self.ranges.clear();
                self.state = State::SlotImportCount;
            }
            State::SlotImportCount => {
                let Some(count) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
                if count > u64::from(Slot::COUNT) {
                    return Err(ErrorKind::OutOfRange {
                        part: "the count of imported slot ranges",
                        found: count,
                        expected: "at most 16384",
                    });
                }
                self.count = count;
                self.state = State::SlotImportRange;
            }
            _ => {
                let Some(rest) = self.count.checked_sub(1) else {
                    self.state = State::Opcode;
                    return Ok(Flow::Emit(Step::SlotImport));
                };
                let Some((first, last)) = self.carry.read(input, length_pair)? else {
                    return Ok(Flow::Need);
                };
                let range = SlotRange::new(slot_of(first)?, slot_of(last)?).ok_or(ErrorKind::OutOfRange {
                    part: "the end of a slot range",
                    found: last,
                    expected: "its first slot or a later one",
                })?;
                self.ranges.push(range);
                self.count = rest;
            }
        }
        Ok(Flow::Again)
    }

    /// Metadata that modules attached to the key that follows (`src/keymeta.c`).
    fn key_meta<'i>(&mut self, input: &mut &'i [u8]) -> StepFlow<'i> {
        match self.state {
            State::KeyMetaCount => {
                let Some(count) = self.carry.read(input, length)? else { return Ok(Flow::Need) };
                self.count = count;
                self.next.has_meta = true;
                self.state = State::KeyMetaClass;
            }
            State::KeyMetaClass => {
                let Some(rest) = self.count.checked_sub(1) else {
                    self.state = State::Opcode;
                    return Ok(Flow::Again);
                };
                if self.carry.read(input, fixed::<4>)?.is_none() {
                    return Ok(Flow::Need);
                }
                self.count = rest;
                self.module.begin(false);
                self.state = State::KeyMetaValues;
            }
            _ => {
                if !self.skip_module_values(input)? {
                    return Ok(Flow::Need);
                }
                self.state = State::KeyMetaClass;
            }
        }
        Ok(Flow::Again)
    }
}

fn slot_of(number: u64) -> Result<Slot, ErrorKind> {
    u16::try_from(number).ok().and_then(Slot::new).ok_or(ErrorKind::OutOfRange {
        part: "the number of a slot",
        found: number,
        expected: "0 to 16383",
    })
}
