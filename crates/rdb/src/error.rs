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
    /// The type of the value that was being read.
    pub value_type: Option<ValueType>,
    /// The first bytes of the key that was being read (at most 256).
    pub key: Option<Box<[u8]>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, offset: u64) -> Self {
        Self { kind, offset, value_type: None, key: None }
    }

    pub(crate) fn in_value(mut self, value_type: ValueType) -> Self {
        self.value_type = Some(value_type);
        self
    }

    pub(crate) fn in_key(mut self, key: &[u8]) -> Self {
        self.key = Some(key.get(..SHOWN_KEY_BYTES).unwrap_or(key).into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {}", self.kind, self.offset)?;
        if let Some(value_type) = self.value_type {
            write!(f, ", in a value of type {}", value_type.byte())?;
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
    #[error("RDB version {0} is not known; known are REDIS0001 to REDIS0014 and VALKEY080")]
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
    #[error("byte {found:#04x} does not start a length (expected 00…, 01…, 0x80 or 0x81)")]
    BadLength {
        /// The byte.
        found: u8,
    },
    /// A string encoding other than 8, 16, 32-bit integer and LZF.
    #[error("string encoding {found} is not known (expected 0 to 3)")]
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
    },
    /// A number out of its range.
    #[error("{part} is {found}, which is out of range")]
    OutOfRange {
        /// Which number.
        part: &'static str,
        /// Its value.
        found: u64,
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
