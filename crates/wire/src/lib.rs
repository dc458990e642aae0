//! The wire formats of Redis and Valkey as machines without I/O: bytes go in, events come out.
//!
//! Invariants that hold for every machine here: the same bytes give the same events however they are cut into pieces;
//! no memory is set aside on the word of a length field; input from the network leads to a typed error at worst.

pub mod acl;
pub mod info;
pub mod nodes_conf;
pub mod primary;
pub mod replica;
pub mod resp;
pub mod server_error;
pub mod stream;
pub mod topology;
pub mod transfer;

pub use info::Info;
pub use primary::{Primary, PrimaryError, PrimaryEvent};
pub use replica::{Credentials, Handshake, HandshakeError, HandshakeEvent, HandshakeOptions, Request};
pub use resp::{Command, Decoder, RespError, Value};
pub use server_error::ServerError;
pub use stream::{Splitter, StreamCommand, StreamError, StreamStart};
pub use topology::ClusterView;
pub use transfer::{Chunk, PayloadHeader, Transfer};
