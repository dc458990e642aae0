//! The payload of `DUMP` and `RESTORE`: type byte, value, footer (`createDumpPayload` and `verifyDumpPayload` in
//! `src/cluster.c`).

use crc_fast::{CrcAlgorithm, Digest, checksum};
use slotkeep_model::{Product, RdbVersion, ServerVersion};

use crate::error::{Error, ErrorKind};
use crate::parser::{Event, Level, Parser};
use crate::primitive::wide;
use crate::types::ValueType;

/// Length of the footer: the RDB version and the CRC64.
pub const FOOTER_BYTES: usize = 10;
/// The opcode that stands before each library in the payload of `FUNCTION DUMP`.
const FUNCTION: u8 = 0xf5;

/// Bits of a payload that passes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpPart<'a> {
    /// The encoding of the value, which comes first.
    Type(ValueType),
    /// Bytes of the value, at least one.
    Value(&'a [u8]),
}

/// Takes a payload apart that passes by bit by bit, so that a huge value needs never be whole in memory. What the value is good for is only
/// known at its end, when [`DumpReader::finish`] has checked the CRC64.
pub struct DumpReader {
    product: Product,
    payload_bytes: u64,
    taken: u64,
    crc: Digest,
    footer: [u8; FOOTER_BYTES],
}

impl DumpReader {
    /// Begins a payload of that length, from a server of that product.
    pub fn new(payload_bytes: u64, product: Product) -> Result<Self, Error> {
        if payload_bytes <= wide(FOOTER_BYTES) {
            return Err(Error::new(ErrorKind::Truncated { inside: "a DUMP payload" }, payload_bytes));
        }
        let crc = Digest::new(CrcAlgorithm::Crc64Redis);
        Ok(Self { product, payload_bytes, taken: 0, crc, footer: [0; FOOTER_BYTES] })
    }

    /// Takes bytes off the front of `input` and gives what they are; none when more are needed. What follows the payload is left.
    ///
    /// A payload that starts with modules' metadata (Redis 8.6) is an error.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<DumpPart<'a>>, Error> {
        let value_end = self.payload_bytes.saturating_sub(wide(FOOTER_BYTES));
        if self.taken == 0 {
            let first = self.split(1, input);
            let Some(byte) = first.first() else { return Ok(None) };
            self.crc.update(first);
            let value_type = ValueType::from_byte(*byte, self.product).map_err(|kind| Error::new(kind, 0))?;
            return Ok(Some(DumpPart::Type(value_type)));
        }
        let value = self.split(value_end.saturating_sub(self.taken), input);
        if !value.is_empty() {
            self.crc.update(value);
            return Ok(Some(DumpPart::Value(value)));
        }
        if self.taken >= value_end {
            let seen = usize::try_from(self.taken.saturating_sub(value_end)).unwrap_or(FOOTER_BYTES);
            let footer = self.split(self.payload_bytes.saturating_sub(self.taken), input);
            for (place, byte) in self.footer.iter_mut().skip(seen).zip(footer) {
                *place = *byte;
            }
        }
        Ok(None)
    }

    fn split<'a>(&mut self, most: u64, input: &mut &'a [u8]) -> &'a [u8] {
        let (now, rest) = input.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(input.len()));
        *input = rest;
        self.taken = self.taken.saturating_add(wide(now.len()));
        now
    }

    /// Checks the CRC64 of the whole, after its last byte; gives the RDB version in the footer. A CRC64 of 0 is taken as "not computed".
    pub fn finish(mut self) -> Result<RdbVersion, Error> {
        if self.taken != self.payload_bytes {
            return Err(Error::new(ErrorKind::Truncated { inside: "a DUMP payload" }, self.taken));
        }
        let [low, high, crc @ ..] = self.footer;
        self.crc.update(&[low, high]);
        let stored = u64::from_le_bytes(crc);
        if stored != 0 && stored != self.crc.finalize() {
            return Err(Error::new(WRONG_CRC, self.taken));
        }
        Ok(version_of(u16::from_le_bytes([low, high])))
    }
}

/// Builds a payload bit by bit, so that a huge value needs never be whole in memory.
pub struct DumpBuilder {
    crc: Digest,
    version: u16,
}

impl DumpBuilder {
    /// Begins a payload for that RDB version, and gives the bytes it starts with.
    pub fn new(value_type: ValueType, version: u16) -> (Self, [u8; 1]) {
        let first = [value_type.byte()];
        let mut crc = Digest::new(CrcAlgorithm::Crc64Redis);
        crc.update(&first);
        (Self { crc, version }, first)
    }

    /// Takes note of bytes of the value, which the caller sends as they are.
    pub fn value_bytes(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    /// The payload's last bytes.
    pub fn footer(mut self) -> [u8; FOOTER_BYTES] {
        let version = self.version.to_le_bytes();
        self.crc.update(&version);
        footer(version, self.crc.finalize())
    }
}

fn footer(version: [u8; 2], crc: u64) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    for (place, byte) in footer.iter_mut().zip(version.into_iter().chain(crc.to_le_bytes())) {
        *place = byte;
    }
    footer
}

fn close(mut payload: Vec<u8>, version: u16) -> Vec<u8> {
    payload.extend_from_slice(&version.to_le_bytes());
    let crc = checksum(CrcAlgorithm::Crc64Redis, &payload);
    payload.extend_from_slice(&crc.to_le_bytes());
    payload
}

/// A whole payload of a value, for that RDB version.
pub fn dump_payload(value_type: ValueType, value: &[u8], version: u16) -> Vec<u8> {
    let mut payload = Vec::with_capacity(value.len() + 1 + FOOTER_BYTES);
    payload.push(value_type.byte());
    payload.extend_from_slice(value);
    close(payload, version)
}

/// The payload of `FUNCTION RESTORE` for libraries with those sources, for that RDB version.
pub fn function_payload<'a>(sources: impl IntoIterator<Item = &'a [u8]>, version: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    for source in sources {
        payload.push(FUNCTION);
        push_length(&mut payload, wide(source.len()));
        payload.extend_from_slice(source);
    }
    close(payload, version)
}

fn push_length(payload: &mut Vec<u8>, length: u64) {
    match (u8::try_from(length), u32::try_from(length)) {
        (Ok(short), _) if short < 64 => payload.push(short),
        (_, Ok(middle)) => {
            payload.push(0x80);
            payload.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            payload.push(0x81);
            payload.extend_from_slice(&length.to_be_bytes());
        }
    }
}

/// The lowest footer version with which that server restores values of the type, or `None` if it does not know the type. With
/// it a value taken from a newer server is accepted by an older one.
pub fn footer_version(value_type: ValueType, server: ServerVersion) -> Option<u16> {
    value_type.introduced_in(server.product).filter(|_| value_type.loads_on(server))
}

/// A payload taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpPayload<'a> {
    /// The encoding of the value.
    pub value_type: ValueType,
    /// The value's bytes.
    pub value: &'a [u8],
    /// The RDB version in the footer; its product is taken from the number (Valkey's begin at 80).
    pub version: RdbVersion,
}

impl<'a> DumpPayload<'a> {
    /// Takes a payload apart and checks its CRC64. A CRC64 of 0 is taken as "not computed", as Redis 8.4 does.
    ///
    /// A payload that starts with modules' metadata (Redis 8.6) is an error.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Error> {
        let at_end = |kind| Error::new(kind, wide(payload.len()));
        let truncated = || at_end(ErrorKind::Truncated { inside: "a DUMP payload" });
        let (covered, crc) = payload.split_last_chunk::<8>().ok_or_else(truncated)?;
        let (body, number) = covered.split_last_chunk::<2>().ok_or_else(truncated)?;
        let (first, value) = body.split_first().ok_or_else(truncated)?;
        let stored = u64::from_le_bytes(*crc);
        if stored != 0 && stored != checksum(CrcAlgorithm::Crc64Redis, covered) {
            return Err(at_end(WRONG_CRC));
        }
        let version = version_of(u16::from_le_bytes(*number));
        let value_type = ValueType::from_byte(*first, version.product).map_err(|kind| Error::new(kind, 0))?;
        Ok(Self { value_type, value, version })
    }
}

const WRONG_CRC: ErrorKind = ErrorKind::Malformed {
    part: "a DUMP payload",
    what: "its CRC64 is not that of its bytes",
    expected: "the CRC64 of all before it, or 0",
};

/// The version that a footer names: Valkey's begin at 80.
const fn version_of(number: u16) -> RdbVersion {
    let product = if number >= 80 { Product::Valkey } else { Product::Redis };
    RdbVersion { product, number }
}

/// The sources of the libraries in a payload of `FUNCTION DUMP`, whose CRC64 is checked.
pub fn function_sources(payload: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let truncated = || Error::new(ErrorKind::Truncated { inside: "a DUMP payload" }, wide(payload.len()));
    let (covered, crc) = payload.split_last_chunk::<8>().ok_or_else(truncated)?;
    let (mut records, _) = covered.split_last_chunk::<2>().ok_or_else(truncated)?;
    let stored = u64::from_le_bytes(*crc);
    if stored != 0 && stored != checksum(CrcAlgorithm::Crc64Redis, covered) {
        return Err(Error::new(WRONG_CRC, wide(payload.len())));
    }
    // The records are those of an RDB.
    let mut parser = Parser::new(Level::Raw);
    let mut sources = Vec::new();
    parser.next(&mut &b"REDIS0010"[..])?;
    while let Some(event) = parser.next(&mut records)? {
        match event {
            Event::Function { source } => sources.push(source.to_vec()),
            _ => return Err(Error::new(NO_FUNCTION, parser.offset())),
        }
    }
    parser.next(&mut &b"\xff\0\0\0\0\0\0\0\0"[..])?;
    parser.finish()?;
    Ok(sources)
}

const NO_FUNCTION: ErrorKind = ErrorKind::Malformed {
    part: "a payload of FUNCTION DUMP",
    what: "it holds something else than libraries",
    expected: "function libraries",
};

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader makes of a payload that comes in pieces of that length.
    fn read(payload: &[u8], piece: usize) -> Result<(ValueType, Vec<u8>, RdbVersion), Error> {
        let mut reader = DumpReader::new(wide(payload.len()), Product::Redis)?;
        let (mut found, mut value) = (None, Vec::new());
        for mut piece in payload.chunks(piece) {
            while let Some(part) = reader.next(&mut piece)? {
                match part {
                    DumpPart::Type(value_type) => found = Some(value_type),
                    DumpPart::Value(bytes) => value.extend_from_slice(bytes),
                }
            }
        }
        Ok((found.unwrap(), value, reader.finish()?))
    }

    #[test]
    fn a_payload_that_passes_by_is_the_same_as_a_whole_one() {
        let payload = dump_payload(ValueType::SetIntset, b"\x0bsome bytes.", 10);
        let whole = DumpPayload::parse(&payload).unwrap();
        for piece in 1..=payload.len() {
            let (value_type, value, version) = read(&payload, piece).unwrap();
            assert_eq!(
                (value_type, value.as_slice(), version),
                (whole.value_type, whole.value, whole.version)
            );
        }
        for at in 1..payload.len() {
            let mut damaged = payload.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged, 5).is_err(), "byte {at}");
        }
        assert!(read(&payload[..10], 3).is_err());
        let mut reader = DumpReader::new(wide(payload.len()), Product::Redis).unwrap();
        while reader.next(&mut &payload[..5]).unwrap().is_none() {}
        assert!(reader.finish().is_err());
    }

    #[test]
    fn libraries_come_out_of_a_payload_as_they_went_in() {
        let sources = [b"#!lua name=one\nx".to_vec(), vec![b'y'; 20_000]];
        let payload = function_payload(sources.iter().map(Vec::as_slice), 10);
        assert_eq!(function_sources(&payload).unwrap(), sources);
        assert!(function_sources(&function_payload([], 12)).unwrap().is_empty());
        let mut damaged = payload.clone();
        damaged[3] ^= 1;
        assert!(function_sources(&damaged).is_err());
        assert!(function_sources(&dump_payload(ValueType::String, b"\x01x", 10)).is_err());
        assert!(function_sources(&payload[..7]).is_err());
    }
}
