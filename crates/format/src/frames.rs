//! Objects as a run of independent zstd frames with a seek table, so that a part is a ranged read.
//!
//! The bytes of an object are cut every [`FRAME_RAW_BYTES`]; each piece becomes one zstd frame that states its content size and
//! carries zstd's own checksum. Behind the last frame stands a skippable frame with the seek table, in the layout of the
//! "zstd seekable format" 0.1.0 (`contrib/seekable_format` of zstd), without its optional checksums. `zstd -d` gives the
//! original bytes back.
//!
//! Invariants: every frame but the last holds exactly [`FRAME_RAW_BYTES`]; the seek table names every frame, in order.

use thiserror::Error;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch, Strategy, compress_bound};

/// How many bytes of the original object go into one frame.
pub const FRAME_RAW_BYTES: usize = 1 << 20;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const SKIPPABLE_HEADER_BYTES: u64 = 8;
/// Number of frames (4), descriptor (1), magic (4).
pub const SEEK_FOOTER_BYTES: u64 = 9;
const SEEK_ENTRY_BYTES: u64 = 8;
/// The footer counts frames in 32 bits, and the skippable frame its own length.
const MAX_FRAMES: usize = 1 << 28;

/// What is wrong with a framed object.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The seek table at the end is missing or contradicts itself or the object's length.
    #[error("seek table: {0}")]
    SeekTable(&'static str),
    /// The zstd library could not compress.
    #[error("zstd could not compress a frame: {0}")]
    Compress(std::io::Error),
    /// A frame does not decompress: its bytes are not what was written.
    #[error("frame {frame} (stored bytes {start}..{end}) does not decompress: {source}")]
    Decompress {
        /// Which frame, counted from 0.
        frame: usize,
        /// Where it starts in the stored object.
        start: u64,
        /// Where it ends in the stored object.
        end: u64,
        /// What zstd says.
        source: std::io::Error,
    },
    /// A frame holds another number of bytes than the seek table says.
    #[error("frame {frame} holds {found} bytes, the seek table says {expected}")]
    Length {
        /// Which frame, counted from 0.
        frame: usize,
        /// Bytes found in it.
        found: usize,
        /// Bytes the seek table announces.
        expected: usize,
    },
    /// More frames than the format can count.
    #[error("more than {MAX_FRAMES} frames")]
    TooMany,
}

/// How much work is put into making bytes fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// What suits an RDB, and whatever stays.
    #[default]
    Usual,
    /// For what must be packed as fast as servers write it, and is written again later (`compact`): few matches are looked for, and what is
    /// left is not coded. On the benchmark's stream it takes 1.1 ms for each MB instead of 2.7, and stores 0.76 bytes a byte instead of 0.52.
    Light,
}

impl Effort {
    /// Most of an RDB went through LZF before: there are few matches to be found and much to be gained from coding what is left. On the
    /// benchmark's data steps of 3 store 0.4 % more than steps of 2, in about 6 % less time; a table of 2^15 stores 1 % less and takes a
    /// fifth longer. Steps of 4, or a window of 2^17 as well, go over four fifths of the RDB with the index.
    const fn parameters(self) -> [CParameter; 7] {
        let (hash_log, min_match, acceleration, literals) = match self {
            Self::Usual => (14, 5, 3, ParamSwitch::Enable),
            Self::Light => (13, 7, 16, ParamSwitch::Disable),
        };
        [
            CParameter::Strategy(Strategy::ZSTD_fast),
            CParameter::WindowLog(18),
            CParameter::HashLog(hash_log),
            CParameter::MinMatch(min_match),
            CParameter::TargetLength(acceleration),
            CParameter::LiteralCompressionMode(literals),
            CParameter::ChecksumFlag(true),
        ]
    }
}

/// Compresses pieces into frames and keeps the seek table.
pub struct FrameWriter {
    compressor: Compressor<'static>,
    frames: Vec<(u32, u32)>,
}

impl FrameWriter {
    /// A writer of the usual effort.
    pub fn new() -> Result<Self, FrameError> {
        Self::with_effort(Effort::Usual)
    }

    /// A writer of that effort.
    pub fn with_effort(effort: Effort) -> Result<Self, FrameError> {
        let mut compressor = Compressor::new(1).map_err(FrameError::Compress)?;
        for parameter in effort.parameters() {
            compressor.set_parameter(parameter).map_err(FrameError::Compress)?;
        }
        Ok(Self { compressor, frames: Vec::new() })
    }

    /// Compresses one piece, at most [`FRAME_RAW_BYTES`] long and exactly that unless it is the last one.
    pub fn frame(&mut self, raw: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut stored = Vec::new();
        self.frame_into(raw, &mut stored)?;
        Ok(stored)
    }

    /// The same into a buffer that is used again and again; what it held is gone.
    pub fn frame_into(&mut self, raw: &[u8], stored: &mut Vec<u8>) -> Result<(), FrameError> {
        if self.frames.len() >= MAX_FRAMES {
            return Err(FrameError::TooMany);
        }
        stored.clear();
        stored.reserve(compress_bound(raw.len()));
        self.compressor.compress_to_buffer(raw, stored).map_err(FrameError::Compress)?;
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| FrameError::TooMany);
        self.frames.push((length(stored.len())?, length(raw.len())?));
        Ok(())
    }

    /// The seek table, to be written behind the last frame.
    pub fn finish(self) -> Result<Vec<u8>, FrameError> {
        let count = u32::try_from(self.frames.len()).map_err(|_| FrameError::TooMany)?;
        let content = u64::from(count) * SEEK_ENTRY_BYTES + SEEK_FOOTER_BYTES;
        let mut out = Vec::new();
        out.extend(SKIPPABLE_MAGIC.to_le_bytes());
        out.extend(u32::try_from(content).map_err(|_| FrameError::TooMany)?.to_le_bytes());
        for (stored, raw) in self.frames {
            out.extend(stored.to_le_bytes());
            out.extend(raw.to_le_bytes());
        }
        out.extend(count.to_le_bytes());
        out.push(0);
        out.extend(SEEKABLE_MAGIC.to_le_bytes());
        Ok(out)
    }
}

/// Where one frame lies in the stored object and in the original one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which frame, counted from 0.
    pub number: usize,
    /// Its first byte in the stored object.
    pub stored_start: u64,
    /// Its length in the stored object.
    pub stored_bytes: u32,
    /// Its first byte in the original object.
    pub raw_start: u64,
    /// Its length in the original object.
    pub raw_bytes: u32,
}

impl Frame {
    /// The byte behind the frame in the stored object.
    pub fn stored_end(&self) -> u64 {
        self.stored_start.saturating_add(u64::from(self.stored_bytes))
    }

    /// Gives the original bytes of this frame, whose stored bytes are `stored`.
    pub fn decompress(
        &self,
        decompressor: &mut Decompressor<'_>,
        stored: &[u8],
    ) -> Result<Vec<u8>, FrameError> {
        let mut raw = Vec::new();
        self.decompress_into(decompressor, stored, &mut raw)?;
        Ok(raw)
    }

    /// The same into a buffer that is used again: the bytes replace what is in it.
    pub fn decompress_into(
        &self,
        decompressor: &mut Decompressor<'_>,
        stored: &[u8],
        raw: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let expected = usize::try_from(self.raw_bytes).unwrap_or(usize::MAX);
        raw.clear();
        raw.reserve_exact(expected);
        decompressor.decompress_to_buffer(stored, raw).map_err(|source| FrameError::Decompress {
            frame: self.number,
            start: self.stored_start,
            end: self.stored_end(),
            source,
        })?;
        if raw.len() == expected {
            Ok(())
        } else {
            Err(FrameError::Length { frame: self.number, found: raw.len(), expected })
        }
    }
}

/// Where every frame of an object lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekTable {
    frames: Vec<Frame>,
}

impl SeekTable {
    /// How many bytes at the end of an object hold its seek table, told from its last [`SEEK_FOOTER_BYTES`] bytes.
    pub fn stored_bytes(footer: &[u8], object_bytes: u64) -> Result<u64, FrameError> {
        let Some((&[a, b, c, d, descriptor], magic)) = footer.split_first_chunk::<5>() else {
            return Err(FrameError::SeekTable("the object is too short to hold one"));
        };
        if magic != SEEKABLE_MAGIC.to_le_bytes() {
            return Err(FrameError::SeekTable("the object does not end with one"));
        }
        if descriptor != 0 {
            return Err(FrameError::SeekTable("unknown descriptor"));
        }
        let entries = u64::from(u32::from_le_bytes([a, b, c, d]));
        let bytes = entries * SEEK_ENTRY_BYTES + SEEK_FOOTER_BYTES + SKIPPABLE_HEADER_BYTES;
        if bytes > object_bytes {
            return Err(FrameError::SeekTable("it is longer than the object"));
        }
        Ok(bytes)
    }

    /// Reads the seek table from `tail`, the last bytes of an object of `object_bytes`, as many as
    /// [`SeekTable::stored_bytes`] says.
    pub fn parse(tail: &[u8], object_bytes: u64) -> Result<Self, FrameError> {
        let wrong = FrameError::SeekTable;
        let (magic, rest) = tail.split_first_chunk::<4>().ok_or(wrong("cut short"))?;
        let (content, rest) = rest.split_first_chunk::<4>().ok_or(wrong("cut short"))?;
        if u32::from_le_bytes(*magic) != SKIPPABLE_MAGIC {
            return Err(wrong("its skippable frame does not start where it should"));
        }
        if u64::from(u32::from_le_bytes(*content)) != rest.len() as u64 {
            return Err(wrong("its length disagrees with its number of entries"));
        }
        let footer = usize::try_from(SEEK_FOOTER_BYTES).unwrap_or(usize::MAX);
        let entries =
            rest.len().checked_sub(footer).and_then(|end| rest.get(..end)).ok_or(wrong("cut short"))?;
        let mut frames = Vec::with_capacity(entries.len() / 8);
        let (mut stored_start, mut raw_start) = (0_u64, 0_u64);
        for (number, entry) in entries.chunks_exact(8).enumerate() {
            let Some((stored_bytes, raw_bytes)) = entry.split_first_chunk::<4>() else {
                return Err(wrong("cut short"));
            };
            let stored_bytes = u32::from_le_bytes(*stored_bytes);
            let raw_bytes = raw_bytes.first_chunk().copied().map_or(0, u32::from_le_bytes);
            if raw_bytes as usize > FRAME_RAW_BYTES {
                return Err(wrong("a frame is larger than the format allows"));
            }
            frames.push(Frame { number, stored_start, stored_bytes, raw_start, raw_bytes });
            stored_start =
                stored_start.checked_add(u64::from(stored_bytes)).ok_or(wrong("its lengths overflow"))?;
            raw_start = raw_start.checked_add(u64::from(raw_bytes)).ok_or(wrong("its lengths overflow"))?;
        }
        if stored_start.checked_add(tail.len() as u64) != Some(object_bytes) {
            return Err(wrong("its frames do not add up to the object"));
        }
        Ok(Self { frames })
    }

    /// The frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Length of the original object.
    pub fn raw_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |last| last.raw_start.saturating_add(u64::from(last.raw_bytes)))
    }

    /// The frame that holds that byte of the original object.
    pub fn frame_at(&self, raw_offset: u64) -> Option<&Frame> {
        let next = self.frames.partition_point(|frame| frame.raw_start <= raw_offset);
        let frame = self.frames.get(next.checked_sub(1)?)?;
        (raw_offset < frame.raw_start.saturating_add(u64::from(frame.raw_bytes))).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(raw: &[u8]) -> Vec<u8> {
        let mut writer = FrameWriter::new().unwrap();
        let mut stored = Vec::new();
        for piece in raw.chunks(FRAME_RAW_BYTES) {
            stored.extend(writer.frame(piece).unwrap());
        }
        stored.extend(writer.finish().unwrap());
        stored
    }

    fn table(stored: &[u8]) -> Result<SeekTable, FrameError> {
        let footer = &stored[stored.len().saturating_sub(9)..];
        let bytes = SeekTable::stored_bytes(footer, stored.len() as u64)?;
        SeekTable::parse(&stored[stored.len() - usize::try_from(bytes).unwrap()..], stored.len() as u64)
    }

    fn sample() -> Vec<u8> {
        (0..u32::try_from(FRAME_RAW_BYTES).unwrap() * 5 / 8).flat_map(|n| (n / 3).to_le_bytes()).collect()
    }

    #[test]
    fn each_frame_is_readable_by_itself() {
        let raw = sample();
        let stored = object(&raw);
        let table = table(&stored).unwrap();
        assert_eq!(table.raw_bytes(), raw.len() as u64);
        assert_eq!(table.frames().len(), 3);
        let frame = *table.frame_at(FRAME_RAW_BYTES as u64 + 7).unwrap();
        assert_eq!(frame.number, 1);
        let range =
            usize::try_from(frame.stored_start).unwrap()..usize::try_from(frame.stored_end()).unwrap();
        let piece = frame.decompress(&mut Decompressor::new().unwrap(), &stored[range]).unwrap();
        assert_eq!(piece, raw[FRAME_RAW_BYTES..2 * FRAME_RAW_BYTES]);
        assert!(table.frame_at(raw.len() as u64).is_none());
    }

    #[test]
    fn stock_zstd_gives_the_bytes_back() {
        let raw = sample();
        assert_eq!(zstd::stream::decode_all(object(&raw).as_slice()).unwrap(), raw);
    }

    #[test]
    fn an_empty_object_is_a_seek_table_alone() {
        let stored = object(b"");
        assert_eq!(table(&stored).unwrap().raw_bytes(), 0);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_an_error() {
        let raw: Vec<u8> = sample().into_iter().take(3000).collect();
        let stored = object(&raw);
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = table(&damaged).and_then(|table| {
                let mut out = Vec::new();
                for frame in table.frames() {
                    let range = usize::try_from(frame.stored_start).unwrap()
                        ..usize::try_from(frame.stored_end()).unwrap();
                    out.extend(frame.decompress(&mut Decompressor::new().unwrap(), &damaged[range])?);
                }
                Ok(out)
            });
            assert!(read.is_err() || read.is_ok_and(|read| read == raw), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let stored = object(&sample()[..2000]);
        for end in 0..stored.len() {
            assert!(table(&stored[..end]).is_err(), "{end}");
        }
    }
}
