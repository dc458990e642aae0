//! LZF, the compression of strings (liblzf's format).
//!
//! Invariants: a token never reaches back before the start of the output buffer, and never writes past `end`; copies in blocks
//! may write up to [`SLACK_BYTES`] beyond it, which the buffer must have.
//!
//! Servers' tokens are short, six to eight bytes of output each, and which kind comes next is anybody's guess. So a whole string is decoded
//! without asking: its compressed bytes are copied behind the output, where literals and matches are both a place in one buffer and a
//! token is chosen by selecting numbers, not by a branch. That halves the time. Long strings, of which a part is at hand, take the
//! plain way.

use core::hint::select_unpredictable;

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
            return Err(BEFORE_START);
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
#[inline(never)]
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

/// What one copy moves: the longest run of literals.
const BLOCK_BYTES: usize = 32;
/// The most bytes of a string and its compressed form that [`decode_whole`] takes, [`SLACK_BYTES`] between them included.
const WHOLE_MOST_BYTES: usize = 256 << 10;
const WHOLE_ROOM_BYTES: usize = WHOLE_MOST_BYTES + SLACK_BYTES;

/// Decodes a whole string into the front of `buffer`, which is lengthened if it is too short: behind the string it takes the compressed
/// bytes as well.
pub(crate) fn decode_whole(source: &[u8], buffer: &mut Vec<u8>, bytes: usize) -> Result<(), &'static str> {
    if buffer.len() < WHOLE_ROOM_BYTES {
        buffer.resize(WHOLE_ROOM_BYTES, 0);
    }
    let start = bytes.saturating_add(SLACK_BYTES);
    let end = start.saturating_add(source.len());
    let Some(buffer) = buffer.first_chunk_mut::<WHOLE_ROOM_BYTES>() else { return Err(TOO_LONG) };
    let Some(place) = buffer.get_mut(start..end) else { return Err(TOO_LONG) };
    place.copy_from_slice(source);
    let (tokens_end, filled) = decode_beside(buffer, start, end, bytes)?;
    if tokens_end != end {
        return Err("it ends inside a token");
    }
    if filled != bytes {
        return Err("it decodes to less than announced");
    }
    Ok(())
}

/// Decodes the compressed bytes `at..end` of the buffer into its front. Returns where the last token ends, which is past `end` if it
/// is cut, and the end of the output. Output beyond `bytes` is an error.
///
/// The buffer's length is a constant, so that the compiler sees that no access needs a check of its own.
#[inline(never)]
fn decode_beside(
    buffer: &mut [u8; WHOLE_ROOM_BYTES],
    mut at: usize,
    end: usize,
    bytes: usize,
) -> Result<(usize, usize), &'static str> {
    if end > WHOLE_MOST_BYTES {
        return Err(TOO_LONG);
    }
    let mut filled = 0_usize;
    while at < end {
        let Some(&[first, second, third, _]) = buffer.get(at..).and_then(|tail| tail.first_chunk::<4>())
        else {
            break;
        };
        let (first, second, third) = (usize::from(first), usize::from(second), usize::from(third));
        let (literal, long) = (first < 32, first >= 224);
        let short_or_long = select_unpredictable(long, second + 9, (first >> 5) + 2);
        let count = select_unpredictable(literal, first + 1, short_or_long);
        let used = select_unpredictable(literal, first + 2, 2 + usize::from(long));
        let distance = ((first & 31) << 8 | select_unpredictable(long, third, second)) + 1;
        // Before the start it wraps to where the buffer has no bytes.
        let from = select_unpredictable(literal, at + 1, filled.wrapping_sub(distance));
        // Literals never overlap what they become.
        let apart = select_unpredictable(literal, BLOCK_BYTES, distance);
        at += used;
        let next = filled + count;
        if next > bytes {
            return Err("it decodes to more than announced");
        }
        if from >= WHOLE_MOST_BYTES {
            return Err(BEFORE_START);
        }
        if count > apart || count > BLOCK_BYTES {
            copy_match(buffer, from, filled, count);
        } else {
            let block = buffer.get(from..).and_then(|tail| tail.first_chunk::<BLOCK_BYTES>()).copied();
            // `filled` is below the most: the mask changes nothing and spares the check.
            let place = buffer.get_mut(filled & (WHOLE_MOST_BYTES - 1)..);
            let place = place.and_then(|tail| tail.first_chunk_mut::<BLOCK_BYTES>());
            if let (Some(block), Some(place)) = (block, place) {
                *place = block;
            }
        }
        filled = next;
    }
    Ok((at, filled))
}

const TOO_LONG: &str = "it is longer than what is decoded at once";
const BEFORE_START: &str = "it refers to bytes before its start";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        assert!(decode_whole(&[0, b'a', 0xe0, 200], &mut buffer, 300).is_err());
        assert!(decode_whole(&[0, b'a', 0xe0, 200, 1], &mut buffer, 300).is_err());
        assert!(decode_whole(&[0, b'a', 0xe0, 200, 0], &mut buffer, 209).is_err());
        decode_whole(&[0, b'a', 0xe0, 200, 0], &mut buffer, 210).unwrap();
    }

    proptest! {
        /// Strings that servers would never write, whole ones and damaged ones: both ways of decoding and a plain one agree.
        #[test]
        fn every_way_of_decoding_agrees(
            mut source in prop::collection::vec(token(), 1..60).prop_map(|tokens| tokens.concat()),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            wrong in -1_i8..=1,
        ) {
            if let Some((place, byte)) = damage {
                let place = place.index(source.len());
                source[place] = byte;
            }
            let plain = decode_plainly(&source);
            let bytes = plain.as_ref().map_or(source.len(), Vec::len).saturating_add_signed(wrong.into());
            // What an earlier string left in the buffer must not show.
            let mut buffer = vec![0xaa; 100];
            let whole = decode_whole(&source, &mut buffer, bytes).map(|()| buffer[..bytes].to_vec());
            let mut buffer = vec![0x55; bytes + SLACK_BYTES];
            let streamed = decode(&source, &mut buffer, 0, usize::MAX, bytes)
                .ok()
                .filter(|progress| progress.consumed == source.len() && progress.filled == bytes)
                .map(|_| buffer[..bytes].to_vec());
            let plain = plain.filter(|plain| plain.len() == bytes);
            prop_assert_eq!(whole.ok(), plain.clone());
            prop_assert_eq!(streamed, plain);
        }
    }

    fn token() -> impl Strategy<Value = Vec<u8>> {
        let literal = prop::collection::vec(any::<u8>(), 1..=32).prop_map(|bytes| {
            let mut token = vec![u8::try_from(bytes.len() - 1).unwrap()];
            token.extend(bytes);
            token
        });
        let distance = prop_oneof![4 => 0_u16..40, 1 => 0_u16..8192];
        let matched =
            (3_usize..=LONGEST_MATCH_BYTES, distance, any::<bool>()).prop_map(|(count, back, short)| {
                let [high, low] = back.to_be_bytes();
                let count = if short { count.min(8) } else { count };
                match u8::try_from(count - 2).unwrap_or(u8::MAX) {
                    packed @ 0..7 => vec![packed << 5 | high, low],
                    _ => vec![7 << 5 | high, u8::try_from(count - 9).unwrap(), low],
                }
            });
        prop_oneof![1 => literal, 2 => matched]
    }

    /// Byte by byte, as the format is described.
    fn decode_plainly(source: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut at) = (Vec::new(), 0);
        while let Some(&first) = source.get(at) {
            let token = source.get(at..at + token_len(first))?;
            at += token.len();
            if first < 32 {
                out.extend(&token[1..]);
                continue;
            }
            let count = if first < 224 { usize::from(first >> 5) + 2 } else { usize::from(token[1]) + 9 };
            let distance = (usize::from(first & 31) << 8 | usize::from(token[token.len() - 1])) + 1;
            let from = out.len().checked_sub(distance)?;
            for step in 0..count {
                out.push(out[from + step]);
            }
        }
        Some(out)
    }
}
