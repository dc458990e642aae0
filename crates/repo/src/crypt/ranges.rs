//! Reading a part of an object, encrypted or not.
//!
//! An age file is a header, a nonce of 16 bytes, and the plain bytes in chunks of 64 KiB, each sealed with its number and 16 bytes longer for it
//! (<https://age-encryption.org/v1>, "Payload"). So plain bytes are found by arithmetic; only the header and the chunks that hold them
//! are needed, and the library wants the last chunk as well.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use age::Decryptor;
use age::x25519::Identity;
use bytes::Bytes;

use super::{age_problem, io_problem};
use crate::error::Problem;

const CHUNK_BYTES: u64 = 64 << 10;
const TAG_BYTES: u64 = 16;
const SEALED_CHUNK_BYTES: u64 = CHUNK_BYTES + TAG_BYTES;
const NONCE_BYTES: usize = 16;
/// More than any header to one key takes.
pub(crate) const MOST_HEADER_BYTES: u64 = 4096;

/// How an object's bytes lie in the store.
pub(crate) enum Layer {
    /// As they are, so many of them.
    Plain(u64),
    /// In an age file.
    Sealed(SealedObject),
}

impl Layer {
    /// How many bytes the object holds when decrypted.
    pub(crate) const fn bytes(&self) -> u64 {
        match self {
            Self::Plain(bytes) => *bytes,
            Self::Sealed(object) => object.plain_bytes,
        }
    }

    /// The header and the nonce of an encrypted object.
    pub(crate) fn header(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Sealed(object) => Some(&object.header),
        }
    }
}

/// An age file, of which the parts that every reading needs are here.
pub(crate) struct SealedObject {
    stored_bytes: u64,
    /// The header and the nonce.
    header: Bytes,
    /// The last chunk, and where it starts.
    tail: (u64, Bytes),
    plain_bytes: u64,
}

fn damaged(what: &str) -> Problem {
    Problem::Damaged(what.to_owned())
}

impl SealedObject {
    /// How many bytes at the beginning of an age file are its header and nonce; `None` if `beginning` is too short to tell.
    pub(crate) fn header_bytes(beginning: &[u8]) -> Option<u64> {
        let mac = b"\n--- ";
        let line = beginning.windows(mac.len()).position(|window| window == mac)?.checked_add(mac.len())?;
        let rest = beginning.get(line..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?.checked_add(1)?;
        let bytes = line.checked_add(end)?.checked_add(NONCE_BYTES)?;
        (bytes <= beginning.len()).then_some(bytes as u64)
    }

    /// Where the last chunk lies in an age file of so many bytes, and how many plain bytes all chunks hold.
    pub(crate) fn last_chunk(header_bytes: u64, stored_bytes: u64) -> Result<(Range<u64>, u64), Problem> {
        let payload = stored_bytes.checked_sub(header_bytes).filter(|bytes| *bytes >= TAG_BYTES);
        let payload = payload.ok_or_else(|| damaged("it is too short to be encrypted"))?;
        let chunks = payload.div_ceil(SEALED_CHUNK_BYTES);
        let before = chunks.saturating_sub(1).saturating_mul(SEALED_CHUNK_BYTES);
        let plain = payload.checked_sub(chunks.saturating_mul(TAG_BYTES));
        let plain = plain.ok_or_else(|| damaged("its last encrypted chunk is cut short"))?;
        Ok((header_bytes.saturating_add(before)..stored_bytes, plain))
    }

    /// From the header with its nonce, and the last chunk.
    pub(crate) fn new(stored_bytes: u64, header: Bytes, tail: Bytes) -> Result<Self, Problem> {
        let (range, plain_bytes) = Self::last_chunk(header.len() as u64, stored_bytes)?;
        if tail.len() as u64 != range.end.saturating_sub(range.start) {
            return Err(damaged("it is cut short"));
        }
        Ok(Self { stored_bytes, header, tail: (range.start, tail), plain_bytes })
    }

    /// Which stored bytes hold those plain bytes.
    pub(crate) fn stored_range(&self, plain: &Range<u64>) -> Range<u64> {
        let start_of = |chunk: u64| {
            (self.header.len() as u64)
                .saturating_add(chunk.saturating_mul(SEALED_CHUNK_BYTES))
                .min(self.stored_bytes)
        };
        start_of(plain.start / CHUNK_BYTES)..start_of(plain.end.div_ceil(CHUNK_BYTES))
    }

    /// The plain bytes, from the stored bytes that [`Self::stored_range`] names for them.
    pub(crate) fn open(
        &self,
        identity: &Identity,
        plain: &Range<u64>,
        stored: &Bytes,
    ) -> Result<Bytes, Problem> {
        let length = plain.end.saturating_sub(plain.start);
        let length =
            usize::try_from(length).map_err(|_| damaged("more was asked for than fits into memory"))?;
        let source = Sparse {
            position: 0,
            end: self.stored_bytes,
            parts: [
                (0, self.header.clone()),
                (self.stored_range(plain).start, stored.clone()),
                self.tail.clone(),
            ],
        };
        let decryptor = Decryptor::new(source).map_err(age_problem)?;
        let identities = std::iter::once(identity as &dyn age::Identity);
        let mut reader = decryptor.decrypt(identities).map_err(age_problem)?;
        reader.seek(SeekFrom::Start(plain.start)).map_err(io_problem)?;
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map_err(io_problem)?;
        Ok(bytes.into())
    }
}

/// An object of which only some parts are here; reading another part is an error.
struct Sparse {
    position: u64,
    end: u64,
    parts: [(u64, Bytes); 3],
}

impl Read for Sparse {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.position >= self.end || into.is_empty() {
            return Ok(0);
        }
        for (start, bytes) in &self.parts {
            let Some(at) = self.position.checked_sub(*start).and_then(|at| usize::try_from(at).ok()) else {
                continue;
            };
            let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else { continue };
            let read = rest.len().min(into.len());
            if let (Some(to), Some(from)) = (into.get_mut(..read), rest.get(..read)) {
                to.copy_from_slice(from);
            }
            self.position = self.position.saturating_add(read as u64);
            return Ok(read);
        }
        Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "a part that was not fetched"))
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.position = position
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::Sealer;

    fn sealed(identity: &Identity, plain: &[u8]) -> (Vec<u8>, usize) {
        let (mut sealer, mut stored) = Sealer::start(&identity.to_public()).unwrap();
        let header = stored.len();
        stored.extend(sealer.seal(plain).unwrap());
        stored.extend(sealer.finish().unwrap());
        (stored, header)
    }

    #[test]
    fn any_range_of_an_object_of_any_length_is_found() {
        let identity = Identity::generate();
        let chunk = usize::try_from(CHUNK_BYTES).unwrap();
        for length in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 3 * chunk + 77] {
            let plain: Vec<u8> = (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
            let (stored, header) = sealed(&identity, &plain);
            assert_eq!(SealedObject::header_bytes(&stored), Some(header as u64));
            assert!(header as u64 <= MOST_HEADER_BYTES);
            let (tail, bytes) = SealedObject::last_chunk(header as u64, stored.len() as u64).unwrap();
            assert_eq!(bytes, length as u64);
            let stored = Bytes::from(stored);
            let at = |range: &Range<u64>| {
                stored.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
            };
            let object = SealedObject::new(stored.len() as u64, stored.slice(..header), at(&tail)).unwrap();
            let edges = [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, length.saturating_sub(1), length];
            for start in edges {
                for end in edges.into_iter().filter(|end| start <= *end && *end <= length) {
                    let range = start as u64..end as u64;
                    let found = object.open(&identity, &range, &at(&object.stored_range(&range))).unwrap();
                    assert_eq!(found, plain[start..end], "{start}..{end} of {length}");
                }
            }
        }
    }

    #[test]
    fn a_chunk_of_another_file_or_place_is_refused() {
        let identity = Identity::generate();
        let plain = vec![7; 200_000];
        let (stored, header) = sealed(&identity, &plain);
        let (forged, forged_header) = sealed(&identity, &plain);
        let open = |middle: &[u8]| {
            let (tail, _) = SealedObject::last_chunk(header as u64, stored.len() as u64).unwrap();
            let tail = Bytes::copy_from_slice(&stored[usize::try_from(tail.start).unwrap()..]);
            let head = Bytes::copy_from_slice(&stored[..header]);
            let object = SealedObject::new(stored.len() as u64, head, tail).unwrap();
            object.open(&identity, &(65_536..65_540), &Bytes::copy_from_slice(middle))
        };
        let chunk = |object: &[u8], header: usize, number: usize| {
            let bytes = usize::try_from(SEALED_CHUNK_BYTES).unwrap();
            object[header + number * bytes..header + (number + 1) * bytes].to_vec()
        };
        assert!(open(&chunk(&stored, header, 1)).is_ok());
        assert!(open(&chunk(&stored, header, 0)).is_err());
        assert!(open(&chunk(&forged, forged_header, 1)).is_err());
    }
}
