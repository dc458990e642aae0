//! Values packed into one string: decoded, and gathered in their new encoding until their count is known.
//!
//! Invariant: `body` holds whole elements in the new encoding, `count` of them; `field` the field whose value or expiry may still
//! come.

use slotkeep_model::RdbVersion;

use super::counted::check_expiry;
use super::{FieldExpiry, Translation};
use crate::encode::{push_length, push_string, push_text_score};
use crate::error::ErrorKind;
use crate::owned::{LOWEST_EXPIRY_MS, ttl_of};
use crate::primitive::wide;
use crate::types::ValueType;
use crate::value::{Decoder, Element, Part};

/// A field and its value, encoded.
struct Field {
    encoded: Vec<u8>,
    expiry_ms: Option<i64>,
}

struct Body {
    to: ValueType,
    target: RdbVersion,
    field_expiry: FieldExpiry,
    bytes: Vec<u8>,
    count: u64,
    /// The parts of a long element.
    gathered: Vec<u8>,
    field: Option<Field>,
}

pub(super) struct Spool {
    decoder: Decoder,
    limit_bytes: u64,
    body: Body,
}

impl Spool {
    pub(super) fn new(
        translation: &Translation,
        from: ValueType,
        version: RdbVersion,
        to: ValueType,
    ) -> Self {
        Self {
            decoder: Decoder::new(from, version),
            limit_bytes: translation.limit_bytes,
            body: Body {
                to,
                target: translation.target,
                field_expiry: translation.field_expiry,
                bytes: Vec::new(),
                count: 0,
                gathered: Vec::new(),
                field: None,
            },
        }
    }

    pub(super) fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        while let Some(element) = self.decoder.next(input).map_err(|error| error.kind)? {
            if element == Element::End {
                self.body.end_field()?;
                self.body.give(out);
                return Ok(true);
            }
            self.body.element(&element)?;
            if self.body.held() > self.limit_bytes {
                return Err(ErrorKind::ValueTooLarge { limit_bytes: self.limit_bytes });
            }
        }
        Ok(false)
    }
}

impl Body {
    fn held(&self) -> u64 {
        let field = self.field.as_ref().map_or(0, |field| field.encoded.len());
        wide(self.bytes.len()).saturating_add(wide(self.gathered.len())).saturating_add(wide(field))
    }

    fn element(&mut self, element: &Element<'_>) -> Result<(), ErrorKind> {
        match *element {
            Element::Bytes { part, bytes, last } => {
                if last && self.gathered.is_empty() {
                    return self.part(part, bytes);
                }
                self.gathered.extend_from_slice(bytes);
                if last {
                    let whole = core::mem::take(&mut self.gathered);
                    self.part(part, &whole)?;
                }
            }
            Element::Score(score) => {
                self.count += 1;
                if self.to == ValueType::Zset {
                    push_text_score(&mut self.bytes, score);
                } else {
                    self.bytes.extend_from_slice(&score.to_le_bytes());
                }
            }
            Element::FieldExpiry(expiry_ms) => {
                if let Some(field) = &mut self.field {
                    field.expiry_ms = self.field_expiry.apply(Some(expiry_ms));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn part(&mut self, part: Part, bytes: &[u8]) -> Result<(), ErrorKind> {
        match part {
            Part::Field => {
                self.end_field()?;
                let mut encoded = Vec::new();
                push_string(&mut encoded, bytes);
                self.field = Some(Field { encoded, expiry_ms: None });
            }
            Part::Value => {
                if let Some(field) = &mut self.field {
                    push_string(&mut field.encoded, bytes);
                }
            }
            // Of a sorted set the score counts.
            Part::Member if matches!(self.to, ValueType::Zset | ValueType::Zset2) => {
                push_string(&mut self.bytes, bytes);
            }
            _ => {
                self.count += 1;
                push_string(&mut self.bytes, bytes);
            }
        }
        Ok(())
    }

    fn end_field(&mut self) -> Result<(), ErrorKind> {
        let Some(mut field) = self.field.take() else { return Ok(()) };
        check_expiry(field.expiry_ms, self.to, self.target)?;
        self.count += 1;
        if self.to == ValueType::HashMetadata {
            push_length(&mut self.bytes, ttl_of(field.expiry_ms));
        }
        self.bytes.append(&mut field.encoded);
        if self.to == ValueType::ValkeyHash2 {
            self.bytes.extend_from_slice(&field.expiry_ms.unwrap_or(-1).to_le_bytes());
        }
        Ok(())
    }

    fn give(&mut self, out: &mut Vec<u8>) {
        if self.to == ValueType::HashMetadata {
            out.extend_from_slice(&LOWEST_EXPIRY_MS.to_le_bytes());
        }
        push_length(out, self.count);
        out.append(&mut self.bytes);
    }
}
