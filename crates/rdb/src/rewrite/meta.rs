//! Metadata that modules attach to keys (`src/keymeta.c` of Redis 8.6): found in the head of a record, to be copied as it is.

use slotkeep_model::{Product, RdbVersion};

use crate::primitive::{Carry, Flow, length, wide};
use crate::string::StringReader;
use crate::value::{ModuleItem, ModuleReader};

const META: u8 = 0xf3;
/// The first version of Redis with such metadata.
const FIRST: u16 = 13;
/// Length of a class's name and flags.
const CLASS_BYTES: usize = 4;

/// Whether RDBs of that version may hold metadata of keys.
pub(super) fn is_known(version: RdbVersion) -> bool {
    version.product == Product::Redis && version.number >= FIRST
}

/// The metadata in the head of a record that was parsed, with its opcode.
pub(super) fn of(head: &[u8]) -> Option<&[u8]> {
    let mut rest = head;
    loop {
        let (&opcode, after) = rest.split_first()?;
        let skipped = match opcode {
            0xfc => 8,
            0xfd => 4,
            0xf9 => 1,
            0xf8 => length(after).ok()??.1,
            META => {
                let end = end_of(after)?;
                return rest.get(..rest.len() - end.len());
            }
            _ => return None,
        };
        rest = after.get(skipped..)?;
    }
}

/// What follows the metadata.
fn end_of(bytes: &[u8]) -> Option<&[u8]> {
    let (classes, used) = length(bytes).ok()??;
    let mut rest = bytes.get(used..)?;
    let (mut carry, mut string, mut values) = (Carry::new(), StringReader::new(), ModuleReader::new());
    // More classes than bytes are a lie.
    for _ in 0..classes.min(wide(bytes.len())) {
        rest = rest.get(CLASS_BYTES..)?;
        values.begin(false);
        loop {
            match values.step(&mut carry, &mut string, true, &mut rest).ok()? {
                Flow::Need => return None,
                Flow::Emit(ModuleItem::End) => break,
                Flow::Again | Flow::Emit(_) => {}
            }
        }
    }
    Some(rest)
}
