//! Lists of listpacks and plain nodes (type 18) as lists of ziplists (type 14), node by node.

use slotkeep_model::RdbVersion;

use super::Translation;
use super::copier::Copier;
use crate::encode::{Ziplist, push_blob, push_length};
use crate::error::ErrorKind;
use crate::primitive::wide;
use crate::types::ValueType;
use crate::value::{Decoder, Element};

enum Step {
    Count,
    Container,
    Node,
}

pub(super) struct Quicklist {
    version: RdbVersion,
    target: RdbVersion,
    limit_bytes: u64,
    step: Step,
    left: u64,
    copier: Copier,
    node: Decoder,
    ziplist: Ziplist,
    /// The parts of a long item.
    gathered: Vec<u8>,
}

impl Quicklist {
    pub(super) fn new(translation: &Translation, version: RdbVersion) -> Self {
        Self {
            version,
            target: translation.target,
            limit_bytes: translation.limit_bytes,
            step: Step::Count,
            left: 0,
            copier: Copier::new(),
            node: Decoder::new(ValueType::String, version),
            ziplist: Ziplist::new(),
            gathered: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, ErrorKind> {
        loop {
            match self.step {
                Step::Count => {
                    let Some(count) = self.copier.length(input)? else { return Ok(false) };
                    push_length(out, count);
                    self.left = count;
                    self.step = Step::Container;
                }
                Step::Container => {
                    if self.left == 0 {
                        return Ok(true);
                    }
                    let Some(container) = self.copier.length(input)? else { return Ok(false) };
                    // A node is a string, or a listpack, as a small set is.
                    let node = match container {
                        1 => ValueType::String,
                        2 => ValueType::SetListpack,
                        found => {
                            let part = "the container of a list node";
                            return Err(ErrorKind::OutOfRange {
                                part,
                                found,
                                expected: "1, a plain node, or 2, a packed one",
                            });
                        }
                    };
                    self.left -= 1;
                    self.node.restart(node, self.version, false);
                    self.step = Step::Node;
                }
                Step::Node => {
                    if !self.node(input)? {
                        return Ok(false);
                    }
                    let done = core::mem::replace(&mut self.ziplist, Ziplist::new()).finish();
                    let what = "a list with an item of 4 GiB";
                    let done = done.ok_or(ErrorKind::NoEquivalent { what, target: self.target })?;
                    push_blob(out, &done);
                    self.step = Step::Container;
                }
            }
        }
    }

    fn node(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        while let Some(element) = self.node.next(input).map_err(|error| error.kind)? {
            match element {
                Element::Bytes { bytes, last: true, .. } if self.gathered.is_empty() => {
                    self.ziplist.push(bytes);
                }
                Element::Bytes { bytes, last, .. } => {
                    self.gathered.extend_from_slice(bytes);
                    if last {
                        self.ziplist.push(&self.gathered);
                        self.gathered.clear();
                    }
                }
                _ => return Ok(true),
            }
            if wide(self.ziplist.len() + self.gathered.len()) > self.limit_bytes {
                return Err(ErrorKind::ValueTooLarge { limit_bytes: self.limit_bytes });
            }
        }
        Ok(false)
    }
}
