//! The RDB format of Redis and Valkey, without I/O: feed bytes, take events.
//!
//! - [`Envelope`] checks magic and CRC64 of any version, at the speed of memory;
//! - [`Parser`] gives the records, with values raw or element by element; [`Decoder`] takes one value apart;
//! - [`Digester`] makes digests of the elements (the serialisation is in [`digest`]);
//! - [`dump`] builds payloads for `RESTORE`, [`commands`] builds commands, for values too big for one payload.
//!
//! Memory is bounded whatever the dataset, the value or the element, and whatever the lengths in the input claim; only keys,
//! auxiliary fields and function libraries are held whole, and grow as their bytes arrive.

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
pub use dump::{DumpBuilder, DumpPayload, dump_payload, footer_version, function_payload};
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
