//! Streams for older servers. All types of streams have the same nodes, which are copied; what follows them has fewer parts the older
//! the type is.
//!
//! Invariants: `to` is older than `from`. `held` is empty except inside a group whose released entries may get an owner: the count of
//! consumers stands before them, and what is released after them.

use slotkeep_model::RdbVersion;

use super::copier::Copier;
use super::{Released, Translation};
use crate::encode::{push_length, push_string};
use crate::error::ErrorKind;
use crate::owned::{Budget, stream_generation};
use crate::types::ValueType;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Nodes,
    NextNode,
    NodeKey,
    Node,
    Length,
    LastId,
    FirstId,
    MaxDeletedId,
    EntriesAdded,
    Groups,
    NextGroup,
    GroupName,
    GroupLastId,
    EntriesRead,
    PendingCount,
    NextPending,
    Pending,
    Deliveries,
    ConsumerCount,
    NextConsumer,
    ConsumerName,
    Seen,
    Active,
    OwnedCount,
    NextOwned,
    Owned,
    ReleasedCount,
    NextReleased,
    ReleasedId,
    Idempotence,
    Producers,
    NextProducer,
    ProducerName,
    ProducedCount,
    NextProduced,
    ProducedName,
    ProducedEntry,
    Counters,
    Done,
}

pub(super) struct StreamTail {
    from: u8,
    to: u8,
    target: RdbVersion,
    released: Released,
    budget: Budget,
    step: Step,
    copier: Copier,
    /// How many of the outermost run are left: nodes, then groups, then producers.
    outer: u64,
    consumers_left: u64,
    inner: u64,
    /// Consumers of the group that is being held.
    consumers: u64,
    holding: bool,
    held: Vec<u8>,
    name: Vec<u8>,
    /// Whether a consumer has the name of the one that would own what is released.
    name_taken: bool,
    /// Where goes what the target does not have.
    dropped: Vec<u8>,
}

/// Where bytes go.
#[derive(Clone, Copy)]
enum Sink {
    Out,
    Held,
    Dropped,
}

impl StreamTail {
    pub(super) fn new(translation: &Translation, from: ValueType, to: ValueType) -> Self {
        Self {
            from: stream_generation(from),
            to: stream_generation(to),
            target: translation.target,
            released: translation.released.clone(),
            budget: Budget::new(translation.limit_bytes),
            step: Step::Nodes,
            copier: Copier::new(),
            outer: 0,
            consumers_left: 0,
            inner: 0,
            consumers: 0,
            holding: false,
            held: Vec::new(),
            name: Vec::new(),
            name_taken: false,
            dropped: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        loop {
            if let Some((count, inside, after)) = self.run() {
                match count.checked_sub(1) {
                    Some(rest) => {
                        *count = rest;
                        self.step = inside;
                    }
                    None => self.step = after,
                }
                continue;
            }
            let stepped = match self.step {
                Step::Done => return Ok(true),
                Step::NodeKey | Step::Node | Step::GroupName | Step::ConsumerName => {
                    self.string(input, out)?
                }
                Step::ProducerName | Step::ProducedName => self.string(input, out)?,
                Step::LastId | Step::FirstId | Step::MaxDeletedId | Step::GroupLastId => {
                    self.pair(input, out)?
                }
                Step::Idempotence | Step::ProducedEntry | Step::Counters => self.pair(input, out)?,
                Step::Pending | Step::Seen | Step::Active | Step::Owned | Step::ReleasedId => {
                    self.fixed(input, out)?
                }
                Step::ConsumerCount => self.consumer_count(input, out)?,
                Step::ReleasedCount => self.released_count(input, out)?,
                _ => self.number(input, out)?,
            };
            if !stepped {
                return Ok(false);
            }
        }
    }

    /// If a counted run goes on or ends here: how many are left, what each begins with, and what follows the run.
    fn run(&mut self) -> Option<(&mut u64, Step, Step)> {
        let (from_5, from_4) = (self.from >= 5, self.from >= 4);
        Some(match self.step {
            Step::NextNode => (&mut self.outer, Step::NodeKey, Step::Length),
            Step::NextGroup => {
                let after = if from_4 { Step::Idempotence } else { Step::Done };
                (&mut self.outer, Step::GroupName, after)
            }
            Step::NextPending => (&mut self.inner, Step::Pending, Step::ConsumerCount),
            Step::NextConsumer => {
                let after = if from_5 { Step::ReleasedCount } else { Step::NextGroup };
                (&mut self.consumers_left, Step::ConsumerName, after)
            }
            Step::NextOwned => (&mut self.inner, Step::Owned, Step::NextConsumer),
            Step::NextReleased => (&mut self.inner, Step::ReleasedId, Step::NextGroup),
            Step::NextProducer => (&mut self.outer, Step::ProducerName, Step::Counters),
            Step::NextProduced => (&mut self.inner, Step::ProducedName, Step::NextProducer),
            _ => return None,
        })
    }

    fn sink(&self) -> Sink {
        let since = match self.step {
            Step::FirstId | Step::MaxDeletedId | Step::EntriesAdded | Step::EntriesRead => 2,
            Step::Active => 3,
            Step::Idempotence
            | Step::Producers
            | Step::ProducerName
            | Step::ProducedCount
            | Step::ProducedName
            | Step::ProducedEntry
            | Step::Counters => 4,
            _ => 1,
        };
        match (self.to >= since, self.holding) {
            (false, _) => Sink::Dropped,
            (true, true) => Sink::Held,
            (true, false) => Sink::Out,
        }
    }

    /// Where what is read now goes.
    fn target_of<'v>(&'v mut self, out: &'v mut Vec<u8>) -> &'v mut Vec<u8> {
        self.dropped.clear();
        match self.sink() {
            Sink::Out => out,
            Sink::Held => &mut self.held,
            Sink::Dropped => &mut self.dropped,
        }
    }

    fn string(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        if self.step == Step::ConsumerName && self.holding {
            return self.held_name(input);
        }
        self.dropped.clear();
        let into = match self.sink() {
            Sink::Out => out,
            Sink::Held => &mut self.held,
            Sink::Dropped => &mut self.dropped,
        };
        let done = self.copier.string(input, into)?;
        if done {
            self.step = match self.step {
                Step::NodeKey => Step::Node,
                Step::Node => Step::NextNode,
                Step::GroupName => Step::GroupLastId,
                Step::ConsumerName => Step::Seen,
                Step::ProducerName => Step::ProducedCount,
                _ => Step::ProducedEntry,
            };
        }
        Ok(done)
    }

    fn held_name(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        let limit = self.budget.limit_bytes();
        if !self.copier.text(input, &mut self.name, "the name of a consumer", limit)? {
            return Ok(false);
        }
        self.budget.take(self.name.len())?;
        if let Released::Own(owner) = &self.released {
            self.name_taken |= *owner == self.name;
        }
        push_string(&mut self.held, &self.name);
        self.name.clear();
        self.step = Step::Seen;
        Ok(true)
    }

    fn pair(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let Some((one, two)) = self.copier.pair(input)? else { return Ok(false) };
        let into = self.target_of(out);
        push_length(into, one);
        push_length(into, two);
        let later = self.from >= 2;
        self.step = match self.step {
            Step::LastId if later => Step::FirstId,
            Step::LastId => Step::Groups,
            Step::FirstId => Step::MaxDeletedId,
            Step::MaxDeletedId => Step::EntriesAdded,
            Step::GroupLastId if later => Step::EntriesRead,
            Step::GroupLastId => Step::PendingCount,
            Step::Idempotence => Step::Producers,
            Step::ProducedEntry => Step::NextProduced,
            _ => Step::Done,
        };
        Ok(true)
    }

    fn fixed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let (bytes, len) = match self.step {
            Step::Pending => (self.copier.fixed::<24>(input)?, 24),
            Step::Seen | Step::Active => (self.copier.fixed::<8>(input)?.map(padded), 8),
            _ => (self.copier.fixed::<16>(input)?.map(padded), 16),
        };
        let Some(bytes) = bytes else { return Ok(false) };
        if self.holding {
            self.budget.take(len)?;
        }
        self.target_of(out).extend_from_slice(bytes.get(..len).unwrap_or_default());
        self.step = match self.step {
            Step::Pending => Step::Deliveries,
            Step::Seen if self.from >= 3 => Step::Active,
            Step::Seen | Step::Active => Step::OwnedCount,
            Step::Owned => Step::NextOwned,
            _ => Step::NextReleased,
        };
        Ok(true)
    }

    fn number(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let Some(number) = self.copier.length(input)? else { return Ok(false) };
        push_length(self.target_of(out), number);
        self.step = match self.step {
            Step::Nodes => {
                self.outer = number;
                Step::NextNode
            }
            Step::Length => Step::LastId,
            Step::EntriesAdded => Step::Groups,
            Step::Groups => {
                self.outer = number;
                Step::NextGroup
            }
            Step::EntriesRead => Step::PendingCount,
            Step::PendingCount => {
                self.inner = number;
                Step::NextPending
            }
            Step::Deliveries => Step::NextPending,
            Step::OwnedCount => {
                self.inner = number;
                Step::NextOwned
            }
            Step::Producers => {
                self.outer = number;
                Step::NextProducer
            }
            _ => {
                self.inner = number;
                Step::NextProduced
            }
        };
        Ok(true)
    }

    fn consumer_count(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let Some(count) = self.copier.length(input)? else { return Ok(false) };
        self.consumers = count;
        self.consumers_left = count;
        self.holding = self.from >= 5 && self.released != Released::Refuse;
        self.name_taken = false;
        self.budget.reset();
        if !self.holding {
            push_length(out, count);
        }
        self.step = Step::NextConsumer;
        Ok(true)
    }

    /// Ends the consumers of a group: what none of them owns goes to one more.
    fn released_count(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let Some(count) = self.copier.length(input)? else { return Ok(false) };
        let refused = |what| ErrorKind::NoEquivalent { what, target: self.target };
        self.holding = false;
        match &self.released {
            Released::Refuse if count > 0 => return Err(refused("a pending entry without consumer")),
            Released::Own(_) if count > 0 && self.name_taken => {
                let what = "a pending entry for a consumer whose name another one has";
                return Err(refused(what));
            }
            Released::Refuse => {}
            Released::Own(owner) => {
                push_length(out, self.consumers.saturating_add(u64::from(count > 0)));
                out.append(&mut self.held);
                if count > 0 {
                    push_string(out, owner);
                    out.extend_from_slice(&0_i64.to_le_bytes());
                    if self.to >= 3 {
                        out.extend_from_slice(&(-1_i64).to_le_bytes());
                    }
                    push_length(out, count);
                }
            }
        }
        self.inner = count;
        self.step = Step::NextReleased;
        Ok(true)
    }
}

/// The bytes at the front of more.
fn padded<const N: usize>(bytes: [u8; N]) -> [u8; 24] {
    let mut padded = [0; 24];
    for (place, byte) in padded.iter_mut().zip(bytes) {
        *place = byte;
    }
    padded
}
