//! The names of modules' types, which their ids pack (`moduleTypeNameByID` in `src/module.c`).

const CHARSET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const NAME_BYTES: usize = 9;
/// How many bits of an id are the encoding's version.
const VERSION_BITS: u32 = 10;

/// The type of vector sets, which Redis has built in from 8.0 on.
pub const VECTOR_SET: [u8; NAME_BYTES] = *b"vectorset";

/// The name of a module's type.
pub fn module_name(id: u64) -> [u8; NAME_BYTES] {
    let mut rest = id >> VERSION_BITS;
    let mut name = [0; NAME_BYTES];
    for place in name.iter_mut().rev() {
        let character = CHARSET.get(usize::from((rest & 63).to_le_bytes()[0]));
        *place = character.copied().unwrap_or_default();
        rest >>= 6;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unpacked_from_the_top() {
        let packed = b"vectorset".iter().fold(0_u64, |id, character| {
            let code = CHARSET.iter().position(|known| known == character).unwrap();
            id << 6 | code as u64
        });
        assert_eq!(module_name(packed << VERSION_BITS | 1), VECTOR_SET);
        assert_eq!(&module_name(0), b"AAAAAAAAA");
    }
}
