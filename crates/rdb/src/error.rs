//! What can be wrong with an RDB or a value, and where.

use core::fmt;

use slotkeep_model::{Product, RdbVersion};

use crate::types::ValueType;

/// How many bytes of a key an error keeps: enough to find it, whatever its length.
const SHOWN_KEY_BYTES: usize = 256;

/// An RDB or a value that cannot be read: what is wrong, at which byte, inside which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub kind: ErrorKind,
    /// How many bytes had been taken in when it was found: from the start of the RDB, or of the value if a
    /// [`crate::Decoder`] is used by itself.
    pub offset: u64,
    /// The opcode or type byte that was read last, if it is known.
    pub opcode: Option<u8>,
    /// The type of the value that was being read.
    pub value_type: Option<ValueType>,
    /// The first bytes of the key that was being read (at most 256).
    pub key: Option<Box<[u8]>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, offset: u64) -> Self {
        Self { kind, offset, opcode: None, value_type: None, key: None }
    }

    pub(crate) fn in_value(mut self, value_type: ValueType) -> Self {
        self.value_type = Some(value_type);
        self.opcode = Some(value_type.byte());
        self
    }

    pub(crate) fn in_key(mut self, key: &[u8]) -> Self {
        self.key = Some(key.get(..SHOWN_KEY_BYTES).unwrap_or(key).into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(expected) = self.kind.expected() {
            write!(f, ", expected {expected}")?;
        }
        write!(f, " (at byte {}", self.offset)?;
        match (self.value_type, self.opcode) {
            (Some(value_type), _) => write!(
                f,
                ", in a value of type {}, {} {}",
                value_type.byte(),
                value_type.logical().name(),
                value_type.encoding()
            )?,
            (None, Some(opcode)) => write!(f, ", after opcode {opcode:#04x}")?,
            (None, None) => {}
        }
        if let Some(key) = &self.key {
            write!(f, ", key `{}`", key.escape_ascii())?;
        }
        f.write_str(")")
    }
}

impl core::error::Error for Error {}

/// What is wrong with an RDB or a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The first nine bytes are not `REDIS` or `VALKEY` and a number.
    #[error("not an RDB: it starts with `{}`", .found.escape_ascii())]
    BadMagic {
        /// The bytes found.
        found: [u8; RdbVersion::MAGIC_LEN],
    },
    /// An RDB of a version that is not known.
    #[error("RDB version {0} is not known")]
    UnknownVersion(RdbVersion),
    /// A byte that is neither an opcode nor a value type of that product.
    #[error("byte {number} is neither an opcode nor a value type of {product}")]
    UnknownType {
        /// The byte.
        number: u8,
        /// Whose RDB it is.
        product: Product,
    },
    /// A type or opcode of release candidates, which released servers refuse too.
    #[error("type or opcode {number} was written only by release candidates and is not supported")]
    PreRelease {
        /// The byte.
        number: u8,
    },
    /// A value type that the RDB's product does not have.
    #[error("value type {number} does not exist in RDBs of {product}")]
    ForeignType {
        /// The type.
        number: u8,
        /// Whose RDB it is.
        product: Product,
    },
    /// A byte that starts no length.
    #[error("byte {found:#04x} does not start a length")]
    BadLength {
        /// The byte.
        found: u8,
    },
    /// A string encoding other than 8, 16, 32-bit integer and LZF.
    #[error("string encoding {found} is not known")]
    BadStringEncoding {
        /// The encoding.
        found: u8,
    },
    /// An LZF string that does not decode.
    #[error("an LZF string of {compressed_bytes} bytes, {bytes} when decoded, is corrupt: {what}")]
    Lzf {
        /// What is wrong.
        what: &'static str,
        /// Announced length of the compressed bytes.
        compressed_bytes: u64,
        /// Announced length of the decoded bytes.
        bytes: u64,
    },
    /// A listpack, ziplist, intset or zipmap that does not decode.
    #[error("a {blob} is corrupt: {what}")]
    Blob {
        /// Its name.
        blob: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// A part of a value or record that breaks its grammar.
    #[error("{part} is corrupt: {what}")]
    Malformed {
        /// Which part.
        part: &'static str,
        /// What is wrong.
        what: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A number out of its range.
    #[error("{part} is {found}, which is out of range")]
    OutOfRange {
        /// Which number.
        part: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// A string that must be held whole and is too long for it.
    #[error("{part} is {bytes} bytes long; at most {limit} are accepted")]
    TooLong {
        /// Which string.
        part: &'static str,
        /// Its length in bytes.
        bytes: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A value that is to be held whole, or nearly, is longer than the caller allows.
    #[error("the value takes more than the {limit_bytes} bytes of memory that it may")]
    ValueTooLarge {
        /// What the caller allows, in bytes.
        limit_bytes: u64,
    },
    /// Something that an RDB of the wanted version cannot hold.
    #[error("{what} cannot be written as {target}")]
    NoEquivalent {
        /// What it is.
        what: &'static str,
        /// The RDB version that was wanted.
        target: RdbVersion,
    },
    /// A module's value, for a target that does not have the module, as far as that is known.
    #[error("values of the module type `{}` cannot be written as {target}", .name.escape_ascii())]
    NoModule {
        /// The type's name.
        name: [u8; 9],
        /// The RDB version that was wanted.
        target: RdbVersion,
    },
    /// The CRC64 at the end is not that of the bytes before it.
    #[error("the CRC64 is {computed:016x}, but the RDB ends with {stored:016x}")]
    CrcMismatch {
        /// That of the bytes.
        computed: u64,
        /// That at the end.
        stored: u64,
    },
    /// The input ended too early.
    #[error("truncated: the input ends inside {inside}")]
    Truncated {
        /// What was being read.
        inside: &'static str,
    },
    /// Bytes after the end.
    #[error("{bytes} bytes follow the end")]
    TrailingBytes {
        /// How many were offered.
        bytes: u64,
    },
    /// Use of a reader that has already failed.
    #[error("reading had already failed")]
    AfterError,
}

impl ErrorKind {
    /// What was expected in place of what was found; nothing where the message says it, or where nothing could be right.
    pub const fn expected(&self) -> Option<&'static str> {
        Some(match self {
            Self::Malformed { expected, .. } | Self::OutOfRange { expected, .. } => expected,
            Self::BadMagic { .. } => "REDIS and four digits, or VALKEY and three",
            Self::UnknownVersion(_) => "REDIS0001 to REDIS0014, or VALKEY080",
            Self::UnknownType { .. } | Self::PreRelease { .. } => {
                "an opcode from 0xf3 to 0xff, or the type of a value"
            }
            Self::ForeignType { .. } => "a type of that product",
            Self::BadLength { .. } => "a byte below 0x80, 0x80 or 0x81",
            Self::BadStringEncoding { .. } => "0 to 3",
            Self::Lzf { .. } => "compressed bytes that give exactly as many as announced",
            Self::Blob { .. } => "entries whose lengths and count agree with its head",
            Self::Truncated { .. } => "more bytes",
            Self::TrailingBytes { .. } => "no more bytes",
            Self::TooLong { .. }
            | Self::ValueTooLarge { .. }
            | Self::NoEquivalent { .. }
            | Self::NoModule { .. }
            | Self::CrcMismatch { .. }
            | Self::AfterError => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_where_in_what_and_what_was_expected() {
        let found = ErrorKind::OutOfRange { part: "the flag of an array", found: 7, expected: "0 or 1" };
        let error = Error::new(found, 40).in_value(ValueType::Array).in_key(b"k\xff");
        assert_eq!(
            error.to_string(),
            r"the flag of an array is 7, which is out of range, expected 0 or 1 (at byte 40, in a value of type 28, array sparse, key `k\xff`)"
        );
        let error = Error { opcode: Some(0xfe), ..Error::new(ErrorKind::BadLength { found: 0x82 }, 11) };
        assert_eq!(
            error.to_string(),
            "byte 0x82 does not start a length, expected a byte below 0x80, 0x80 or 0x81 (at byte 11, after opcode 0xfe)"
        );
        assert_eq!(
            Error::new(ErrorKind::AfterError, 3).to_string(),
            "reading had already failed (at byte 3)"
        );
    }
}
