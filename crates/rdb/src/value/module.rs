//! What modules save: a run of tagged numbers and strings that ends with a zero (`src/module.c`, `rdbLoadCheckModuleValue`).

use crate::error::ErrorKind;
use crate::primitive::{Carry, Flow, fixed, length};
use crate::string::{Place, StringReader};
use crate::value::Element;

/// A piece of what a module saved.
pub(crate) enum ModuleItem<'i> {
    Element(Element<'static>),
    Bytes { place: Place<'i>, last: bool },
    End,
}

#[derive(Clone, Copy)]
enum State {
    Id,
    Opcode,
    Signed,
    Unsigned,
    Float,
    Double,
    String,
}

/// Reads a module's values, with its id before them or without.
pub(crate) struct ModuleReader {
    state: State,
}

impl ModuleReader {
    pub(crate) const fn new() -> Self {
        Self { state: State::Opcode }
    }

    /// Makes ready for the next run; `with_id` if a module id stands before it.
    pub(crate) const fn begin(&mut self, with_id: bool) {
        self.state = if with_id { State::Id } else { State::Opcode };
    }

    pub(crate) fn step<'i>(
        &mut self,
        carry: &mut Carry,
        string: &mut StringReader,
        skipping: bool,
        input: &mut &'i [u8],
    ) -> Result<Flow<ModuleItem<'i>>, ErrorKind> {
        let element = match self.state {
            State::String => return self.string(string, skipping, input),
            State::Float => {
                carry.read(input, fixed)?.map(|bytes| Element::ModuleFloat(u32::from_le_bytes(bytes)))
            }
            State::Double => {
                carry.read(input, fixed)?.map(|bytes| Element::ModuleDouble(u64::from_le_bytes(bytes)))
            }
            _ => {
                let Some(number) = carry.read(input, length)? else { return Ok(Flow::Need) };
                match self.state {
                    State::Opcode => return self.opcode(number, string),
                    State::Id => Some(Element::ModuleId(number)),
                    State::Signed => Some(Element::ModuleSigned(number.cast_signed())),
                    _ => Some(Element::ModuleUnsigned(number)),
                }
            }
        };
        let Some(element) = element else { return Ok(Flow::Need) };
        self.state = State::Opcode;
        Ok(Flow::Emit(ModuleItem::Element(element)))
    }

    fn opcode<'i>(
        &mut self,
        opcode: u64,
        string: &mut StringReader,
    ) -> Result<Flow<ModuleItem<'i>>, ErrorKind> {
        self.state = match opcode {
            0 => return Ok(Flow::Emit(ModuleItem::End)),
            1 => State::Signed,
            2 => State::Unsigned,
            3 => State::Float,
            4 => State::Double,
            5 => {
                string.begin();
                State::String
            }
            found => {
                return Err(ErrorKind::OutOfRange {
                    part: "the opcode of a module's value",
                    found,
                    expected: "0 to 5",
                });
            }
        };
        Ok(Flow::Again)
    }

    fn string<'i>(
        &mut self,
        string: &mut StringReader,
        skipping: bool,
        input: &mut &'i [u8],
    ) -> Result<Flow<ModuleItem<'i>>, ErrorKind> {
        if skipping {
            if !string.skip(input)? {
                return Ok(Flow::Need);
            }
            self.state = State::Opcode;
            return Ok(Flow::Again);
        }
        let Some(piece) = string.piece(input)? else { return Ok(Flow::Need) };
        if piece.last {
            self.state = State::Opcode;
        }
        Ok(Flow::Emit(ModuleItem::Bytes { place: piece.place, last: piece.last }))
    }
}
