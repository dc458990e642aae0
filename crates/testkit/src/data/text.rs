//! Text that compresses as real values do: some that resembles JSON, some that is random.

use crate::random::Random;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const WORDS: [&str; 16] = [
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbour", "indigo", "juniper", "kelp",
    "lagoon", "marble", "nectar", "opal", "pine",
];

/// Appends `len` bytes of random text, six bits of chance in each byte.
pub fn push_random(out: &mut Vec<u8>, random: &mut Random, len: usize) {
    let end = out.len() + len;
    while out.len() < end {
        let mut bits = random.next();
        let piece: [u8; 10] = std::array::from_fn(|_| {
            let symbol = symbol(bits);
            bits >>= 6;
            symbol
        });
        out.extend_from_slice(&piece);
    }
    out.truncate(end);
}

/// Appends `len` bytes of records that resemble JSON, the last one cut off.
pub fn push_json(out: &mut Vec<u8>, random: &mut Random, len: usize) {
    let end = out.len() + len;
    out.push(b'[');
    // Put together from pieces: the formatting machinery would take longer than the servers.
    while out.len() < end {
        let (one, two) = (word(random), word(random));
        out.extend_from_slice(b"{\"id\":");
        push_number(out, random.below(10_000_000));
        for piece in [",\"name\":\"", one, "-", two, "\",\"session\":\""] {
            out.extend_from_slice(piece.as_bytes());
        }
        push_hex(out, random, 24);
        out.extend_from_slice(if random.chance(70) { b"\",\"active\":true" } else { b"\",\"active\":null" });
        out.extend_from_slice(b",\"score\":");
        push_number(out, random.below(1000));
        for piece in [",\"tags\":[\"", two, "\",\"", word(random), "\"]},"] {
            out.extend_from_slice(piece.as_bytes());
        }
    }
    out.truncate(end);
}

/// Appends `len` hexadecimal digits: identifiers, which no server compresses and a backup can.
fn push_hex(out: &mut Vec<u8>, random: &mut Random, len: usize) {
    let mut bits = 0;
    for place in 0..len {
        if place % 16 == 0 {
            bits = random.next();
        }
        out.push(b"0123456789abcdef".get(usize::try_from(bits & 15).unwrap_or(0)).copied().unwrap_or(b'0'));
        bits >>= 4;
    }
}

/// One of 64 symbols, by the lowest six bits.
fn symbol(bits: u64) -> u8 {
    let index = usize::try_from(bits & 63).unwrap_or(0);
    ALPHABET.get(index).copied().unwrap_or(b'A')
}

/// Appends a number below ten million in decimal.
fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 7];
    let mut left = number;
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        used += 1;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(7 - used..).unwrap_or_default());
}

/// A value of `len` bytes: JSON in 60 of a hundred cases, else random text.
pub(super) fn value(random: &mut Random, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 256);
    if len > 40 && random.chance(60) {
        push_json(&mut out, random, len);
    } else {
        push_random(&mut out, random, len);
    }
    out
}

/// One of a few words.
pub(super) fn word(random: &mut Random) -> &'static str {
    let index = usize::try_from(random.below(16)).unwrap_or(0);
    WORDS.get(index).copied().unwrap_or("amber")
}

/// A length from `low` to `high`, both included.
pub(super) fn len_between(random: &mut Random, low: u64, high: u64) -> usize {
    usize::try_from(random.between(low, high)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 999, 1_000_000, 9_999_999] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn values_have_their_length_and_follow_the_seed() {
        for len in [0, 1, 9, 41, 100, 4096] {
            let first = value(&mut Random::from_seed(7), len);
            assert_eq!(first.len(), len);
            assert_eq!(first, value(&mut Random::from_seed(7), len));
        }
        assert_ne!(value(&mut Random::from_seed(7), 100), value(&mut Random::from_seed(8), 100));
    }
}
