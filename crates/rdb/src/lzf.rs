//! LZF, the compression of strings (liblzf's format).
//!
//! Invariants: a token never reaches back before the start of the output buffer, and never writes past `end`; copies in blocks
//! of 16 may write up to [`SLACK_BYTES`] beyond it, which the buffer must have.

/// The farthest a token reaches back.
pub(crate) const WINDOW_BYTES: usize = 8192;
/// The most one token gives.
pub(crate) const LONGEST_MATCH_BYTES: usize = 264;
/// How much longer than the output the buffer must be.
pub(crate) const SLACK_BYTES: usize = 64;
/// The most compressed bytes one token takes.
pub(crate) const LONGEST_TOKEN_BYTES: usize = 33;

/// Where decoding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Compressed bytes consumed.
    pub(crate) consumed: usize,
    /// The end of the output in the buffer.
    pub(crate) filled: usize,
}

/// The length of the token that starts here, as far as its first byte tells.
pub(crate) const fn token_len(first: u8) -> usize {
    match first {
        0..32 => first as usize + 2,
        32..224 => 2,
        _ => 3,
    }
}

/// Decodes whole tokens of `source` into `buffer` from `filled` on, until the source ends (inside a token or after one) or the
/// output has reached `pause`. Output beyond `end` is an error.
pub(crate) fn decode(
    source: &[u8],
    buffer: &mut [u8],
    filled: usize,
    pause: usize,
    end: usize,
) -> Result<Progress, &'static str> {
    let mut consumed = 0;
    let mut filled = filled;
    if buffer.len() < end.saturating_add(SLACK_BYTES) {
        return Err("the output buffer is too short");
    }
    while filled < pause {
        let Some(&first) = source.get(consumed) else { break };
        if first < 32 {
            let count = usize::from(first) + 1;
            let Some(tail) = source.get(consumed + 1..) else { break };
            if tail.len() < count {
                break;
            }
            if filled + count > end {
                return Err("it decodes to more than announced");
            }
            copy_literals(tail, buffer, filled, count);
            filled += count;
            consumed += count + 1;
            continue;
        }
        let Some(&second) = source.get(consumed + 1) else { break };
        let (count, low, used) = if first < 224 {
            (usize::from(first >> 5) + 2, second, 2)
        } else {
            let Some(&third) = source.get(consumed + 2) else { break };
            (usize::from(second) + 9, third, 3)
        };
        let distance = (usize::from(first & 31) << 8 | usize::from(low)) + 1;
        let Some(from) = filled.checked_sub(distance) else {
            return Err("it refers to bytes before its start");
        };
        if filled + count > end {
            return Err("it decodes to more than announced");
        }
        copy_match(buffer, from, filled, count);
        filled += count;
        consumed += used;
    }
    Ok(Progress { consumed, filled })
}

/// Copies up to 32 bytes, in one block of 32 where the source is long enough.
#[inline]
fn copy_literals(tail: &[u8], buffer: &mut [u8], filled: usize, count: usize) {
    let Some(target) = buffer.get_mut(filled..) else { return };
    if let (Some(block), Some(place)) = (tail.first_chunk::<32>(), target.first_chunk_mut::<32>()) {
        *place = *block;
    } else {
        for (place, byte) in target.iter_mut().zip(tail).take(count) {
            *place = *byte;
        }
    }
}

/// Copies `count` bytes within the buffer; where the two ranges overlap the pattern repeats.
#[inline]
fn copy_match(buffer: &mut [u8], from: usize, filled: usize, count: usize) {
    let distance = filled - from;
    if distance >= 16 {
        copy_blocks::<16>(buffer, from, filled, count);
    } else if distance >= 8 {
        copy_blocks::<8>(buffer, from, filled, count);
    } else if distance == 1 {
        let byte = buffer.get(from).copied().unwrap_or_default();
        if let Some(target) = buffer.get_mut(filled..filled + count) {
            target.fill(byte);
        }
    } else {
        for step in 0..count {
            let byte = buffer.get(from + step).copied().unwrap_or_default();
            if let Some(place) = buffer.get_mut(filled + step) {
                *place = byte;
            }
        }
    }
}

/// Copies in blocks of `N`, which must not be more than the distance between the ranges.
#[inline]
fn copy_blocks<const N: usize>(buffer: &mut [u8], from: usize, filled: usize, count: usize) {
    let mut step = 0;
    while step < count {
        let Some(block) = buffer.get(from + step..).and_then(|tail| tail.first_chunk::<N>()).copied() else {
            return;
        };
        let Some(place) = buffer.get_mut(filled + step..).and_then(|tail| tail.first_chunk_mut::<N>()) else {
            return;
        };
        *place = block;
        step += N;
    }
}

/// Decodes a whole string into the front of `buffer`, which is lengthened if it is too short.
pub(crate) fn decode_whole(source: &[u8], buffer: &mut Vec<u8>, bytes: usize) -> Result<(), &'static str> {
    if buffer.len() < bytes + SLACK_BYTES {
        buffer.resize(bytes + SLACK_BYTES, 0);
    }
    let progress = decode(source, buffer, 0, usize::MAX, bytes)?;
    if progress.consumed != source.len() {
        return Err("it ends inside a token");
    }
    if progress.filled != bytes {
        return Err("it decodes to less than announced");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_of_every_distance_decode() {
        for distance in 1..40_usize {
            let pattern: Vec<u8> = (0..u8::try_from(distance).unwrap()).collect();
            let mut source = Vec::new();
            for chunk in pattern.chunks(32) {
                source.push(u8::try_from(chunk.len() - 1).unwrap());
                source.extend_from_slice(chunk);
            }
            source.extend([0xe0, 91, u8::try_from(distance - 1).unwrap()]);
            let expected: Vec<u8> = pattern.iter().copied().cycle().take(distance + 100).collect();
            let mut buffer = Vec::new();
            decode_whole(&source, &mut buffer, expected.len()).unwrap();
            assert_eq!(&buffer[..expected.len()], &expected[..], "distance {distance}");
        }
    }

    #[test]
    fn lies_are_errors() {
        let mut buffer = Vec::new();
        assert!(decode_whole(&[0x20, 0x00], &mut buffer, 3).is_err());
        assert!(decode_whole(&[0, b'a', 0x20, 0x00], &mut buffer, 3).is_err());
        assert!(decode_whole(&[0, b'a'], &mut buffer, 2).is_err());
        assert!(decode_whole(&[1, b'a'], &mut buffer, 2).is_err());
    }
}
