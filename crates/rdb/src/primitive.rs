//! The small pieces of the format: lengths, fixed numbers, decimal text; and how to read them across chunk borders.
//!
//! Invariant: a [`Carry`] holds bytes only between two chunks, and always fewer than the piece being read needs.

use crate::error::ErrorKind;

/// What one step of a state machine came to.
pub(crate) enum Flow<T> {
    /// All input is consumed and more is needed.
    Need,
    /// The state changed; step again.
    Again,
    /// Something to hand out.
    Emit(T),
}

/// The outcome of trying to read a piece from the front of some bytes: the piece and its length in bytes, or nothing if
/// the bytes end too early.
pub(crate) type Decoded<T> = Result<Option<(T, usize)>, ErrorKind>;

/// The longest piece: a score as text, with its length.
const LONGEST_PIECE_BYTES: usize = 256;

/// Reads pieces of at most 256 bytes that may be split over chunks.
pub(crate) struct Carry {
    bytes: [u8; LONGEST_PIECE_BYTES],
    len: usize,
}

impl Carry {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LONGEST_PIECE_BYTES], len: 0 }
    }

    /// Reads one piece, or takes in all of the input if the piece goes on after it.
    #[inline]
    pub(crate) fn read<T>(
        &mut self,
        input: &mut &[u8],
        decode: impl Fn(&[u8]) -> Decoded<T>,
    ) -> Result<Option<T>, ErrorKind> {
        if self.len == 0
            && let Some((piece, used)) = decode(input)?
        {
            take(input, used);
            return Ok(Some(piece));
        }
        self.read_split(input, decode)
    }

    #[cold]
    fn read_split<T>(
        &mut self,
        input: &mut &[u8],
        decode: impl Fn(&[u8]) -> Decoded<T>,
    ) -> Result<Option<T>, ErrorKind> {
        while let Some((&byte, rest)) = input.split_first() {
            let Some(place) = self.bytes.get_mut(self.len) else {
                return Err(ErrorKind::Malformed {
                    part: "a piece",
                    what: "it does not end",
                    expected: "at most 256 bytes",
                });
            };
            *place = byte;
            self.len += 1;
            *input = rest;
            if let Some((piece, _)) = decode(self.bytes.get(..self.len).unwrap_or_default())? {
                self.len = 0;
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Whether no piece has been begun.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}

/// Takes up to `count` bytes off the front of the input.
#[inline]
pub(crate) fn take<'i>(input: &mut &'i [u8], count: usize) -> &'i [u8] {
    let (head, rest) = input.split_at_checked(count).unwrap_or((input, &[]));
    *input = rest;
    head
}

/// The smaller of a 64-bit count and a number of bytes at hand.
#[inline]
pub(crate) fn at_most(count: u64, available: usize) -> usize {
    usize::try_from(count).map_or(available, |count| count.min(available))
}

/// A count of bytes in memory as a 64-bit number.
#[inline]
pub(crate) const fn wide(count: usize) -> u64 {
    count as u64
}

/// What the length encoding stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// A length, or any other number.
    Plain(u64),
    /// The number of a special string encoding.
    Special(u8),
}

/// Reads a length (Redis `rdbLoadLenByRef`).
#[inline]
pub(crate) fn any_length(bytes: &[u8]) -> Decoded<Length> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let low = first & 0x3f;
    match first >> 6 {
        0 => Ok(Some((Length::Plain(u64::from(low)), 1))),
        1 => Ok(bytes.get(1).map(|&second| (Length::Plain(u64::from(u16::from_be_bytes([low, second]))), 2))),
        3 => Ok(Some((Length::Special(low), 1))),
        _ => long_length(first, bytes),
    }
}

fn long_length(first: u8, bytes: &[u8]) -> Decoded<Length> {
    let digits = bytes.get(1..).unwrap_or_default();
    match first {
        0x80 => Ok(digits
            .first_chunk::<4>()
            .map(|number| (Length::Plain(u64::from(u32::from_be_bytes(*number))), 5))),
        0x81 => Ok(digits.first_chunk::<8>().map(|number| (Length::Plain(u64::from_be_bytes(*number)), 9))),
        found => Err(ErrorKind::BadLength { found }),
    }
}

/// Reads a length where no string encoding may stand.
#[inline]
pub(crate) fn length(bytes: &[u8]) -> Decoded<u64> {
    match any_length(bytes)? {
        Some((Length::Plain(number), used)) => Ok(Some((number, used))),
        Some((Length::Special(encoding), _)) => Err(ErrorKind::BadLength { found: 0xc0 | encoding }),
        None => Ok(None),
    }
}

/// Reads a fixed number of bytes.
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "the shape that `Carry::read` takes")]
pub(crate) fn fixed<const N: usize>(bytes: &[u8]) -> Decoded<[u8; N]> {
    Ok(bytes.first_chunk::<N>().map(|piece| (*piece, N)))
}

/// Reads two lengths in a row.
pub(crate) fn length_pair(bytes: &[u8]) -> Decoded<(u64, u64)> {
    let Some((first, first_len)) = length(bytes)? else { return Ok(None) };
    let Some((second, second_len)) = length(bytes.get(first_len..).unwrap_or_default())? else {
        return Ok(None);
    };
    Ok(Some(((first, second), first_len + second_len)))
}

/// Reads a score of type 3: a length byte and text, or one of three special bytes.
pub(crate) fn text_score(bytes: &[u8]) -> Decoded<f64> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    match first {
        253 => Err(BAD_SCORE),
        254 => Ok(Some((f64::INFINITY, 1))),
        255 => Ok(Some((f64::NEG_INFINITY, 1))),
        len => {
            let len = usize::from(len);
            let Some(text) = rest.get(..len) else { return Ok(None) };
            Ok(Some((parse_score(text)?, len + 1)))
        }
    }
}

const BAD_SCORE: ErrorKind = ErrorKind::Malformed {
    part: "a score",
    what: "it is not a number",
    expected: "a decimal number, or an infinity",
};

/// Reads the text of a score. Servers refuse NaN when they load, and so does this.
pub(crate) fn parse_score(text: &[u8]) -> Result<f64, ErrorKind> {
    let text = core::str::from_utf8(text).map_err(|_| BAD_SCORE)?;
    checked_score(text.trim_start().parse().map_err(|_| BAD_SCORE)?)
}

/// Refuses NaN.
#[inline]
pub(crate) fn checked_score(score: f64) -> Result<f64, ErrorKind> {
    if score.is_nan() { Err(BAD_SCORE) } else { Ok(score) }
}

/// The most bytes the decimal text of a 64-bit integer takes.
pub(crate) const DIGITS_BYTES: usize = 20;

/// Writes the decimal text of a number at the end of the buffer and returns where it starts.
#[inline]
pub(crate) fn write_decimal(number: i64, buffer: &mut [u8; DIGITS_BYTES]) -> usize {
    let mut rest = number.unsigned_abs();
    let mut start = DIGITS_BYTES;
    for place in buffer.iter_mut().rev() {
        start -= 1;
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start = start.saturating_sub(1);
        if let Some(place) = buffer.get_mut(start) {
            *place = b'-';
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_form_are_read() {
        for (bytes, number) in [
            (&[0x3f][..], 63),
            (&[0x41, 0x02], 258),
            (&[0x80, 0, 1, 0, 0], 65536),
            (&[0x81, 0, 0, 0, 1, 0, 0, 0, 0], 1 << 32),
        ] {
            assert_eq!(length(bytes).unwrap(), Some((number, bytes.len())));
            assert_eq!(length(&bytes[..bytes.len() - 1]).unwrap(), None);
        }
        assert!(length(&[0x82]).is_err());
        assert!(length(&[0xc0]).is_err());
    }

    #[test]
    fn decimal_text_agrees_with_the_standard_library() {
        for number in [0, 7, -7, 10, 99, 100, i64::MAX, i64::MIN, -1_000_000] {
            let mut buffer = [0; DIGITS_BYTES];
            let start = write_decimal(number, &mut buffer);
            assert_eq!(&buffer[start..], number.to_string().as_bytes());
        }
    }
}
