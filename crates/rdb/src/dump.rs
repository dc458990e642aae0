//! The payload of `DUMP` and `RESTORE`: type byte, value, footer (`createDumpPayload` and `verifyDumpPayload` in
//! `src/cluster.c`).

use crc_fast::{CrcAlgorithm, Digest, checksum};
use slotkeep_model::{Product, RdbVersion, ServerVersion};

use crate::error::{Error, ErrorKind};
use crate::primitive::wide;
use crate::types::ValueType;

/// Length of the footer: the RDB version and the CRC64.
pub const FOOTER_BYTES: usize = 10;
/// The opcode that stands before each library in the payload of `FUNCTION DUMP`.
const FUNCTION: u8 = 0xf5;

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
            return Err(at_end(ErrorKind::Malformed {
                part: "a DUMP payload",
                what: "its CRC64 is not that of its bytes",
                expected: "the CRC64 of all before it, or 0",
            }));
        }
        let number = u16::from_le_bytes(*number);
        let product = if number >= 80 { Product::Valkey } else { Product::Redis };
        let value_type = ValueType::from_byte(*first, product).map_err(|kind| Error::new(kind, 0))?;
        Ok(Self { value_type, value, version: RdbVersion { product, number } })
    }
}
