//! The RDB format of Redis and Valkey, without I/O: feed bytes, take events; give events, take bytes.
//!
//! Reading, at three levels that are paid for one by one:
//!
//! - *raw*: [`Parser`] at [`Level::Raw`] gives each key and the exact bytes of its value, ready for `RESTORE`;
//! - *element*: [`Parser`] at [`Level::Element`], or [`Decoder`] for one value, gives its elements whatever the encoding;
//! - *value*: [`Reader`], or [`ValueBuilder`] for one value, gives it whole, within a limit that the caller sets ([`owned`]).
//!
//! Writing:
//!
//! - [`RdbWriter`] writes an RDB record by record; [`Value::encode`] gives it the bytes of a value;
//! - [`Rewriter`] makes of one RDB another in one pass: filtered, for other slots, with other expiries, for another version ([`rewrite`]);
//! - [`Translator`] makes of one value the same one for a server that does not know its encoding ([`translate`]);
//! - [`dump`] builds payloads for `RESTORE`, [`commands`] builds commands, and [`deliver()`] says which of them a server takes.
//!
//! Besides, [`Envelope`] checks magic and CRC64 of any version, at the speed of memory, and [`Digester`] makes digests of the elements,
//! the same for every encoding and version (the serialisation is in [`digest`]).
//!
//! Versions: Redis 1 to 14 and Valkey 80 are read, Redis 6 to 14 and Valkey 80 written. Errors name offset, key, opcode, encoding, and what was
//! expected.
//!
//! Memory is bounded whatever the dataset, the value or the element, and whatever the lengths in the input claim, at the raw and element
//! levels and in a rewriter; only keys, auxiliary fields and function libraries are held whole, and grow as their bytes arrive. What holds
//! values takes a limit.

mod blob;
pub mod commands;
mod count;
pub mod deliver;
pub mod digest;
pub mod dump;
mod encode;
mod envelope;
mod error;
mod lzf;
mod module_name;
pub mod owned;
mod parser;
mod primitive;
pub mod rewrite;
mod string;
pub mod translate;
mod types;
mod value;
mod write;

#[cfg(test)]
mod tests;

pub use commands::{Command, CommandBuilder, CommandError};
pub use count::adds_element;
pub use deliver::{Delivery, DeliveryOptions, Route, deliver, route};
pub use digest::{Digester, KeyDigest, function_hash, key_fingerprint};
pub use dump::{
    DumpBuilder, DumpPart, DumpPayload, DumpReader, dump_payload, footer_version, function_payload,
    function_sources,
};
pub use envelope::{Crc, Envelope, EnvelopeError, EnvelopeReport};
pub use error::{Error, ErrorKind};
pub use module_name::{VECTOR_SET, module_name};
pub use owned::{OwnedEvent, Reader, Record, Value, ValueBuilder};
pub use parser::{Event, KeyHeader, Level, Parser};
pub use rewrite::{Counts, Expiry, Modules, Policy, Rewriter};
pub use translate::{FieldExpiry, Plan, Released, Translation, Translator};
pub use types::{LogicalType, ValueType};
pub use value::{Decoder, Element, Part, StreamId, StreamInfo};
pub use write::{KeyHead, RdbWriter};
