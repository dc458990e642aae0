//! RESP, the protocol between clients and servers: RESP2 and RESP3.
//!
//! Source: the RESP specification and `addReply*` in `src/networking.c` of Redis 7 and Valkey 9. Streamed types (`$?`,
//! `*?`) stand in the specification but no server sends them; they are refused.

mod command;
mod decoder;
mod tokens;
mod value;

pub use command::{Command, write_command};
pub use decoder::{Decoder, Limits, RespError};
pub use tokens::{Token, Tokens};
pub use value::Value;
