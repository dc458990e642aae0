//! A value for a running server of some version: as a payload for `RESTORE`, as commands, or not at all.

use slotkeep_model::{RdbVersion, ServerVersion};

use crate::commands::{Command, CommandBuilder};
use crate::dump::{dump_payload, footer_version};
use crate::error::{Error, ErrorKind};
use crate::primitive::wide;
use crate::translate::{FieldExpiry, Plan, Released, Translation, Translator};
use crate::types::ValueType;
use crate::value::{Decoder, Element};

/// How values are to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryOptions {
    /// How long a payload may be; servers take 512 MiB (`proto-max-bulk-len`), if not set otherwise.
    pub payload_bytes: usize,
    /// About how long a command may be.
    pub command_bytes: usize,
    /// What becomes of the expiry of fields.
    pub field_expiry: FieldExpiry,
    /// What becomes of released entries.
    pub released: Released,
}

impl Default for DeliveryOptions {
    fn default() -> Self {
        Self {
            payload_bytes: 512 << 20,
            command_bytes: 256 << 10,
            field_expiry: FieldExpiry::Keep,
            released: Released::Refuse,
        }
    }
}

impl DeliveryOptions {
    fn translation(&self, target: ServerVersion) -> Translation {
        Translation {
            target: RdbVersion { product: target.product, number: target.newest_rdb().number },
            limit_bytes: wide(self.payload_bytes),
            field_expiry: self.field_expiry,
            released: self.released.clone(),
        }
    }
}

/// How a value gets to a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// By `RESTORE` with this payload.
    Payload(Vec<u8>),
    /// By these commands, the first of which makes the key; its expiry is to be set after the last.
    Commands(Vec<Command>),
    /// It cannot: the server has nothing that is equal.
    Impossible(String),
}

/// How values of a type get to a server, as far as the type alone tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// By `RESTORE`, with the value as it is and a footer of that version.
    AsItIs {
        /// The RDB version in the footer.
        footer: u16,
    },
    /// By `RESTORE`, translated into that type.
    Translated {
        /// The type that the server has.
        to: ValueType,
        /// The RDB version in the footer.
        footer: u16,
    },
    /// Not at all, for that reason.
    Impossible(ErrorKind),
}

/// How values of that type get to a server of that version. Whether the server has a module is not known to this.
pub fn route(value_type: ValueType, target: ServerVersion, options: &DeliveryOptions) -> Route {
    let to = match options.translation(target).plan(value_type) {
        Ok(Plan::Copy) => value_type,
        Ok(Plan::Translate(to)) => to,
        Err(kind) => return Route::Impossible(kind),
    };
    match footer_version(to, target) {
        Some(footer) if to == value_type => Route::AsItIs { footer },
        Some(footer) => Route::Translated { to, footer },
        None => {
            let target = options.translation(target).target;
            Route::Impossible(ErrorKind::NoEquivalent { what: "a value of this encoding", target })
        }
    }
}

/// Makes of a value, out of an RDB or payload of that version, what brings it to a server: the payload if it is not too long, else
/// commands. The error is that the value is damaged.
pub fn deliver(
    key: &[u8],
    value_type: ValueType,
    version: RdbVersion,
    value: &[u8],
    target: ServerVersion,
    options: &DeliveryOptions,
) -> Result<Delivery, Error> {
    let payload = match route(value_type, target, options) {
        Route::Impossible(kind) => return Ok(Delivery::Impossible(kind.to_string())),
        Route::AsItIs { footer } => Some(dump_payload(value_type, value, footer)),
        Route::Translated { to, footer } => {
            match translated(&options.translation(target), value_type, version, to, value) {
                Ok(bytes) => Some(dump_payload(to, &bytes, footer)),
                Err(error) => match error.kind {
                    ErrorKind::ValueTooLarge { .. } => None,
                    ErrorKind::NoEquivalent { .. } => {
                        return Ok(Delivery::Impossible(error.kind.to_string()));
                    }
                    _ => return Err(error),
                },
            }
        }
    };
    match payload {
        Some(payload) if payload.len() <= options.payload_bytes => Ok(Delivery::Payload(payload)),
        _ => commands(key, value_type, version, value, target, options),
    }
}

fn truncated(value_type: ValueType, value: &[u8]) -> Error {
    Error::new(ErrorKind::Truncated { inside: "a value" }, wide(value.len())).in_value(value_type)
}

fn translated(
    translation: &Translation,
    from: ValueType,
    version: RdbVersion,
    to: ValueType,
    value: &[u8],
) -> Result<Vec<u8>, Error> {
    let (mut input, mut out) = (value, Vec::new());
    let mut translator = Translator::new(translation, from, version, to);
    if !translator.feed(&mut input, &mut out)? {
        return Err(truncated(from, value));
    }
    Ok(out)
}

fn commands(
    key: &[u8],
    value_type: ValueType,
    version: RdbVersion,
    value: &[u8],
    target: ServerVersion,
    options: &DeliveryOptions,
) -> Result<Delivery, Error> {
    let mut builder = CommandBuilder::new(key, value_type, target, options.command_bytes);
    let (mut decoder, mut input, mut commands) = (Decoder::new(value_type, version), value, Vec::new());
    while let Some(element) = decoder.next(&mut input)? {
        let element = match element {
            Element::FieldExpiry(expiry_ms) => match options.field_expiry.apply(Some(expiry_ms)) {
                Some(expiry_ms) => Element::FieldExpiry(expiry_ms),
                None => continue,
            },
            element => element,
        };
        if let Err(error) = builder.element(&element, &mut commands) {
            return Ok(Delivery::Impossible(error.to_string()));
        }
        if element == Element::End {
            return Ok(Delivery::Commands(commands));
        }
    }
    Err(truncated(value_type, value))
}
