//! Reading the pieces of a value without decoding its strings, which are copied as they are encoded.

use crate::error::ErrorKind;
use crate::primitive::{Carry, fixed, length, length_pair};
use crate::string::StringReader;

/// Reads pieces that may be split over chunks. Each method gives nothing if more input is needed.
pub(super) struct Copier {
    carry: Carry,
    string: StringReader,
}

impl Copier {
    pub(super) const fn new() -> Self {
        Self { carry: Carry::new(), string: StringReader::new() }
    }

    pub(super) fn length(&mut self, input: &mut &[u8]) -> Result<Option<u64>, ErrorKind> {
        self.carry.read(input, length)
    }

    pub(super) fn pair(&mut self, input: &mut &[u8]) -> Result<Option<(u64, u64)>, ErrorKind> {
        self.carry.read(input, length_pair)
    }

    pub(super) fn fixed<const N: usize>(&mut self, input: &mut &[u8]) -> Result<Option<[u8; N]>, ErrorKind> {
        self.carry.read(input, fixed)
    }

    /// Appends the encoded bytes of a string to `into`; true when it is complete.
    pub(super) fn string(&mut self, input: &mut &[u8], into: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        let whole: &[u8] = input;
        let done = self.string.skip(input)?;
        into.extend_from_slice(whole.get(..whole.len() - input.len()).unwrap_or_default());
        if done {
            self.string.begin();
        }
        Ok(done)
    }

    /// Appends the decoded bytes of a string to `into`; true when it is complete.
    pub(super) fn text(
        &mut self,
        input: &mut &[u8],
        into: &mut Vec<u8>,
        part: &'static str,
        limit: u64,
    ) -> Result<bool, ErrorKind> {
        let done = self.string.collect(input, into, part, limit)?;
        if done {
            self.string.begin();
        }
        Ok(done)
    }
}
