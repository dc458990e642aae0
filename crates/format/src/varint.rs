//! LEB128 numbers: seven bits a byte, lowest first, the high bit set on all bytes but the last.

/// Appends a number.
pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Takes a number from the front of `input`; `None` if it is cut short, in which case `input` is left as it was, or `Err` if
/// it has more bits than 64.
pub(crate) fn take(input: &mut &[u8]) -> Result<Option<u64>, Overlong> {
    let mut number = 0_u64;
    for (position, byte) in input.iter().enumerate() {
        let shift =
            u32::try_from(position).ok().and_then(|position| position.checked_mul(7)).ok_or(Overlong)?;
        let bits = u64::from(byte & 0x7f);
        let shifted = bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits).ok_or(Overlong)?;
        number |= shifted;
        if byte & 0x80 == 0 {
            *input = input.get(position + 1..).unwrap_or_default();
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// A number of more than 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overlong;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_read_as_they_were_written(number in any::<u64>()) {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            for end in 0..bytes.len() {
                prop_assert_eq!(take(&mut &bytes[..end]), Ok(None));
            }
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take(&mut rest), Ok(Some(number)));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        assert_eq!(take(&mut [0xff; 11].as_slice()), Err(Overlong));
    }
}
