//! Encodings that begin with a count: translated element by element, their strings copied as they are encoded.
//!
//! Invariant: `left` is the number of elements not yet begun; `held` is empty but for the one field of a hash from Valkey whose
//! expiry, which Redis wants before it, is still to come.

use slotkeep_model::RdbVersion;

use super::copier::Copier;
use super::{FieldExpiry, Translation};
use crate::encode::{push_length, push_text_score};
use crate::error::ErrorKind;
use crate::owned::{Budget, LOWEST_EXPIRY_MS, ttl_of};
use crate::primitive::checked_score;
use crate::types::ValueType;

/// The expiry from which on Redis takes a field's expiry for damage (`EB_EXPIRE_TIME_MAX` in `src/ebuckets.h`).
const REDIS_EXPIRY_LIMIT_MS: i64 = (1 << 48) - 2;

#[derive(Clone, Copy)]
enum Step {
    LowestExpiry,
    Count,
    Next,
    Ttl,
    First,
    Second,
    Expiry,
    Score,
}

pub(super) struct Counted {
    from: ValueType,
    to: ValueType,
    target: RdbVersion,
    field_expiry: FieldExpiry,
    budget: Budget,
    step: Step,
    copier: Copier,
    left: u64,
    lowest_ms: i64,
    expiry_ms: Option<i64>,
    held: Vec<u8>,
}

impl Counted {
    pub(super) fn new(translation: &Translation, from: ValueType, to: ValueType) -> Self {
        let step = if from == ValueType::HashMetadata { Step::LowestExpiry } else { Step::Count };
        Self {
            from,
            to,
            target: translation.target,
            field_expiry: translation.field_expiry,
            budget: Budget::new(translation.limit_bytes),
            step,
            copier: Copier::new(),
            left: 0,
            lowest_ms: 0,
            expiry_ms: None,
            held: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        loop {
            let stepped = match self.step {
                Step::Next => match self.left.checked_sub(1) {
                    None => return Ok(true),
                    Some(left) => {
                        self.left = left;
                        let redis = self.from == ValueType::HashMetadata;
                        self.step = if redis { Step::Ttl } else { Step::First };
                        true
                    }
                },
                Step::First | Step::Second => self.string(input, out)?,
                _ => self.number(input, out)?,
            };
            if !stepped {
                return Ok(false);
            }
        }
    }

    fn holds(&self) -> bool {
        (self.from, self.to) == (ValueType::ValkeyHash2, ValueType::HashMetadata)
    }

    fn string(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let holds = self.holds();
        let into = if holds { &mut self.held } else { &mut *out };
        let before = into.len();
        let done = self.copier.string(input, into)?;
        if holds {
            self.budget.take(self.held.len() - before)?;
        }
        if done {
            self.step = match (self.step, self.from) {
                (Step::First, ValueType::Zset2) => Step::Score,
                (Step::First, _) => Step::Second,
                (_, ValueType::ValkeyHash2) => Step::Expiry,
                _ => {
                    self.expiry_after(out);
                    Step::Next
                }
            };
        }
        Ok(done)
    }

    fn number(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        match self.step {
            Step::LowestExpiry => {
                let Some(bytes) = self.copier.fixed(input)? else { return Ok(false) };
                self.lowest_ms = i64::from_le_bytes(bytes);
                self.step = Step::Count;
            }
            Step::Ttl => {
                let Some(ttl) = self.copier.length(input)? else { return Ok(false) };
                self.set_expiry(expiry_of_ttl(ttl, self.lowest_ms)?)?;
                if self.to == ValueType::HashMetadata {
                    push_length(out, ttl_of(self.expiry_ms));
                }
                self.step = Step::First;
            }
            Step::Expiry => {
                let Some(bytes) = self.copier.fixed(input)? else { return Ok(false) };
                let expiry_ms = i64::from_le_bytes(bytes);
                self.set_expiry((expiry_ms != -1).then_some(expiry_ms))?;
                if self.holds() {
                    push_length(out, ttl_of(self.expiry_ms));
                    out.append(&mut self.held);
                    self.budget.reset();
                }
                self.expiry_after(out);
                self.step = Step::Next;
            }
            Step::Score => {
                let Some(bytes) = self.copier.fixed(input)? else { return Ok(false) };
                push_text_score(out, checked_score(f64::from_le_bytes(bytes))?);
                self.step = Step::Next;
            }
            _ => {
                let Some(count) = self.copier.length(input)? else { return Ok(false) };
                if self.to == ValueType::HashMetadata {
                    out.extend_from_slice(&LOWEST_EXPIRY_MS.to_le_bytes());
                }
                push_length(out, count);
                self.left = count;
                self.step = Step::Next;
            }
        }
        Ok(true)
    }

    fn set_expiry(&mut self, expiry_ms: Option<i64>) -> Result<(), ErrorKind> {
        self.expiry_ms = self.field_expiry.apply(expiry_ms);
        check_expiry(self.expiry_ms, self.to, self.target)
    }

    /// The expiry where Valkey has it, after the value.
    fn expiry_after(&self, out: &mut Vec<u8>) {
        if self.to == ValueType::ValkeyHash2 {
            out.extend_from_slice(&self.expiry_ms.unwrap_or(-1).to_le_bytes());
        }
    }
}

/// Whether that type can hold a field that expires then.
pub(super) fn check_expiry(
    expiry_ms: Option<i64>,
    to: ValueType,
    target: RdbVersion,
) -> Result<(), ErrorKind> {
    match (expiry_ms, to) {
        (Some(_), ValueType::Hash) => {
            Err(ErrorKind::NoEquivalent { what: "a hash with expiry of fields", target })
        }
        (Some(expiry_ms), ValueType::HashMetadata) if expiry_ms > REDIS_EXPIRY_LIMIT_MS => {
            Err(ErrorKind::NoEquivalent { what: "a field that expires after the year 10888", target })
        }
        _ => Ok(()),
    }
}

fn expiry_of_ttl(ttl: u64, lowest_ms: i64) -> Result<Option<i64>, ErrorKind> {
    let Some(after) = ttl.checked_sub(1) else { return Ok(None) };
    i64::try_from(after).ok().and_then(|after| lowest_ms.checked_add(after)).map(Some).ok_or(
        ErrorKind::OutOfRange {
            part: "the expiry of a field",
            found: ttl,
            expected: "a time within 63 bits of ms",
        },
    )
}
