//! Text that compresses as real values do: some that resembles JSON, some that is random.

use std::io::Write;

use crate::random::Random;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const WORDS: [&str; 16] = [
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbour", "indigo", "juniper", "kelp",
    "lagoon", "marble", "nectar", "opal", "pine",
];

/// Appends `len` bytes of random text, six bits of chance in each byte.
pub(super) fn push_random(out: &mut Vec<u8>, random: &mut Random, len: usize) {
    let end = out.len() + len;
    while out.len() < end {
        let mut bits = random.next();
        for _ in 0..10.min(end - out.len()) {
            let symbol = usize::try_from(bits & 63).ok().and_then(|index| ALPHABET.get(index));
            out.push(symbol.copied().unwrap_or(b'A'));
            bits >>= 6;
        }
    }
}

/// Appends `len` bytes of records that resemble JSON, the last one cut off.
pub(super) fn push_json(out: &mut Vec<u8>, random: &mut Random, len: usize) {
    let end = out.len() + len;
    out.push(b'[');
    while out.len() < end {
        let (one, two) = (word(random), word(random));
        // Writing into a `Vec` cannot fail.
        let _ = write!(
            out,
            r#"{{"id":{},"name":"{one}-{two}","session":"{:016x}","active":{},"score":{},"tags":["{two}","{}"]}},"#,
            random.below(10_000_000),
            random.next(),
            random.chance(70),
            random.below(1000),
            word(random),
        );
    }
    out.truncate(end);
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
    fn values_have_their_length_and_follow_the_seed() {
        for len in [0, 1, 9, 41, 100, 4096] {
            let first = value(&mut Random::from_seed(7), len);
            assert_eq!(first.len(), len);
            assert_eq!(first, value(&mut Random::from_seed(7), len));
        }
        assert_ne!(value(&mut Random::from_seed(7), 100), value(&mut Random::from_seed(8), 100));
    }
}
