//! The snapshot on its way from a primary to a replica: payload bytes up to their end.
//!
//! Source: `syncWithMaster`'s and `readSyncBulkPayload`'s counterparts in `src/replication.c` of Redis 6.2 to 8.8 and
//! Valkey 7.2 to 9.1. A payload's length is announced, or its end is marked by forty bytes that were announced.
//!
//! Invariant for a marked payload: the `held` bytes that were taken from the input and not yet given out are the first
//! `held` bytes of the mark, so they need no buffer: they are given out from the mark itself.

use memchr::memmem::Finder;
use thiserror::Error;

/// Length of the mark that ends a payload of unknown length.
pub const MARK_LEN: usize = 40;

/// How a payload ends: the line that precedes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadHeader {
    /// `$<length>`: after that many bytes. What the server saved to disk first is sent so.
    Length(u64),
    /// `$EOF:<mark>`: with these forty bytes. A diskless transfer is sent so.
    Mark([u8; MARK_LEN]),
}

impl PayloadHeader {
    /// Reads the header's line, without its CRLF.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = line.strip_prefix(b"$")?;
        if let Some(mark) = text.strip_prefix(b"EOF:") {
            return mark.try_into().ok().map(Self::Mark);
        }
        if !text.iter().all(u8::is_ascii_digit) {
            return None;
        }
        core::str::from_utf8(text).ok()?.parse().ok().map(Self::Length)
    }

    /// The payload's length in bytes, if it is known.
    pub const fn len_bytes(&self) -> Option<u64> {
        match self {
            Self::Length(len) => Some(*len),
            Self::Mark(_) => None,
        }
    }
}

/// What a transfer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// The next bytes of the payload, at least one.
    Bytes(&'a [u8]),
    /// The payload is complete. Given once.
    End,
}

/// A transfer that cannot be taken for whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransferError {
    /// The connection ended before the payload did.
    #[error("the snapshot ended after {received} bytes, expected {}", expectation(*expected))]
    Truncated {
        /// Payload bytes that were given out.
        received: u64,
        /// The announced length, if there was one.
        expected: Option<u64>,
    },
    /// The payload has more bytes than 64 bits can count.
    #[error("the snapshot is longer than can be counted")]
    TooLong,
}

fn expectation(expected: Option<u64>) -> String {
    expected.map_or_else(|| "the mark that ends it".to_owned(), |len| format!("{len}"))
}

/// Splits a payload from what follows it.
#[derive(Debug)]
pub struct Transfer {
    received: u64,
    ended: bool,
    end: EndRule,
}

#[derive(Debug)]
enum EndRule {
    Count(u64),
    Mark(Box<Search>),
}

impl Transfer {
    /// A transfer that begins right after the header.
    pub fn new(header: PayloadHeader) -> Self {
        let end = match header {
            PayloadHeader::Length(total) => EndRule::Count(total),
            PayloadHeader::Mark(mark) => EndRule::Mark(Box::new(Search::new(mark))),
        };
        Self { received: 0, ended: false, end }
    }

    /// Takes what it can from the front of `input` and gives the next piece of the payload, or its end. `None`: the
    /// input is used up, or the transfer is over and `input` holds what follows it, untouched.
    pub fn next<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Option<Chunk<'a>>, TransferError> {
        if self.ended {
            return Ok(None);
        }
        let chunk = match &mut self.end {
            EndRule::Count(total) => count(total.saturating_sub(self.received), input),
            EndRule::Mark(search) => search.next(input),
        };
        match chunk {
            Some(Chunk::End) => self.ended = true,
            Some(Chunk::Bytes(bytes)) => {
                let more = u64::try_from(bytes.len()).map_err(|_| TransferError::TooLong)?;
                self.received = self.received.checked_add(more).ok_or(TransferError::TooLong)?;
            }
            None => {}
        }
        Ok(chunk)
    }

    /// Payload bytes that were given out so far.
    pub const fn received_bytes(&self) -> u64 {
        self.received
    }

    /// Whether the payload's end was given out.
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// What it means that the connection ends here: nothing after the payload's end, else a truncated snapshot.
    pub fn connection_closed(&self) -> Result<(), TransferError> {
        if self.ended {
            return Ok(());
        }
        let expected = match &self.end {
            EndRule::Count(total) => Some(*total),
            EndRule::Mark(_) => None,
        };
        Err(TransferError::Truncated { received: self.received, expected })
    }
}

/// The next chunk of a payload that has `missing` bytes to come.
fn count<'i>(missing: u64, input: &mut &'i [u8]) -> Option<Chunk<'i>> {
    if missing == 0 {
        return Some(Chunk::End);
    }
    if input.is_empty() {
        return None;
    }
    let take = usize::try_from(missing).map_or(input.len(), |missing| missing.min(input.len()));
    Some(Chunk::Bytes(take_front(input, take)))
}

fn take_front<'i>(input: &mut &'i [u8], len: usize) -> &'i [u8] {
    let (front, rest) = input.split_at_checked(len).unwrap_or((*input, &[]));
    *input = rest;
    front
}

/// The search for the mark: in leaps while no mark is in sight, Knuth-Morris-Pratt over what may be the beginning of one.
///
/// Servers' marks are hexadecimal digits, and a snapshot is mostly other bytes: a place of the mark's length whose last byte is none of the mark's
/// is left behind at once.
struct Search {
    mark: [u8; MARK_LEN],
    /// Whether a byte stands anywhere in the mark.
    alphabet: Box<[bool; 256]>,
    finder: Finder<'static>,
    /// For each prefix of the mark, the length of its longest proper suffix that is a prefix of the mark too.
    fallback: [usize; MARK_LEN],
    held: usize,
}

impl core::fmt::Debug for Search {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Search").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Search {
    fn new(mark: [u8; MARK_LEN]) -> Self {
        let mut alphabet = Box::new([false; 256]);
        for byte in mark {
            if let Some(place) = alphabet.get_mut(usize::from(byte)) {
                *place = true;
            }
        }
        Self { mark, alphabet, finder: Finder::new(&mark).into_owned(), fallback: fallbacks(&mark), held: 0 }
    }

    fn next<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Option<Chunk<'a>> {
        if self.held == 0 {
            let clear = self.clear_bytes(input);
            if clear > 0 {
                return Some(Chunk::Bytes(take_front(input, clear)));
            }
        }
        while let Some((&byte, rest)) = input.split_first() {
            if self.mark.get(self.held) == Some(&byte) {
                self.held = self.held.saturating_add(1);
                *input = rest;
                if self.held == MARK_LEN {
                    return Some(Chunk::End);
                }
                continue;
            }
            // The byte stays in the input: what is held is shortened until the byte fits or nothing is held.
            let kept =
                self.held.checked_sub(1).and_then(|last| self.fallback.get(last)).copied().unwrap_or(0);
            let released = self.held.saturating_sub(kept);
            self.held = kept;
            return self.mark.get(..released).filter(|bytes| !bytes.is_empty()).map(Chunk::Bytes);
        }
        None
    }

    /// How many bytes at the front of `input` cannot belong to a mark.
    fn clear_bytes(&self, input: &[u8]) -> usize {
        if let Some(at) = self.find(input) {
            return at;
        }
        let tail = input.get(input.len().saturating_sub(MARK_LEN - 1)..).unwrap_or_default();
        input.len().saturating_sub(self.prefix_at_end(tail))
    }

    /// Where the first whole mark begins.
    fn find(&self, input: &[u8]) -> Option<usize> {
        let mut at = 0_usize;
        while let Some(window) = input.get(at..).and_then(|rest| rest.first_chunk::<MARK_LEN>()) {
            if let Some(foreign) = window.iter().rposition(|byte| !self.may_be_of_mark(*byte)) {
                at = at.saturating_add(foreign).saturating_add(1);
                continue;
            }
            let rest = input.get(at..).unwrap_or_default();
            let run = rest.iter().position(|byte| !self.may_be_of_mark(*byte)).unwrap_or(rest.len());
            if let Some(found) = self.finder.find(rest.get(..run).unwrap_or_default()) {
                return Some(at.saturating_add(found));
            }
            at = at.saturating_add(run).saturating_add(1);
        }
        None
    }

    fn may_be_of_mark(&self, byte: u8) -> bool {
        self.alphabet.get(usize::from(byte)).copied().unwrap_or(true)
    }

    /// Length of the longest suffix of `tail` that is a prefix of the mark.
    fn prefix_at_end(&self, tail: &[u8]) -> usize {
        tail.iter().fold(0, |matched, byte| longer_match(&self.mark, &self.fallback, matched, *byte))
    }
}

/// One step of Knuth-Morris-Pratt: `matched` bytes of the pattern precede `byte`; how many do after it.
fn longer_match(pattern: &[u8], fallback: &[usize], mut matched: usize, byte: u8) -> usize {
    loop {
        if pattern.get(matched) == Some(&byte) {
            return matched.saturating_add(1);
        }
        let Some(last) = matched.checked_sub(1) else { return 0 };
        matched = fallback.get(last).copied().unwrap_or(0);
    }
}

fn fallbacks(mark: &[u8; MARK_LEN]) -> [usize; MARK_LEN] {
    let mut fallback = [0; MARK_LEN];
    let mut matched = 0;
    for (position, byte) in mark.iter().enumerate().skip(1) {
        matched = longer_match(mark, &fallback, matched, *byte);
        if let Some(slot) = fallback.get_mut(position) {
            *slot = matched;
        }
    }
    fallback
}

#[cfg(test)]
mod tests;
