//! Reading a whole RDB or value in chunks, into owned events.

use slotkeep_model::{Product, RdbVersion};

use crate::{Decoder, Digester, Element, Error, Event, KeyDigest, Level, Parser, ValueType, adds_element};

/// What an RDB gave: its events as text, parts of one element joined, and its digests with their keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Read {
    pub(crate) events: Vec<String>,
    pub(crate) digests: Vec<(Vec<u8>, KeyDigest)>,
    pub(crate) raw: Vec<Vec<u8>>,
}

pub(crate) fn redis(number: u16) -> RdbVersion {
    RdbVersion { product: Product::Redis, number }
}

pub(crate) fn read(level: Level, chunks: &[&[u8]]) -> Result<Read, Error> {
    let (mut parser, mut digester, mut read) = (Parser::new(level), Digester::new(), Read::default());
    let mut joined: Vec<u8> = Vec::new();
    let mut counted = 0;
    for chunk in chunks {
        let mut input = *chunk;
        while let Some(event) = parser.next(&mut input)? {
            match &event {
                Event::Key(_) => counted = 0,
                Event::Element(element) => counted += u64::from(adds_element(element)),
                _ => {}
            }
            if let Some(digest) = digester.event(&event) {
                if level == Level::Element {
                    assert_eq!(counted, digest.elements, "two ways to count elements");
                }
                read.digests.push((digester.key().to_vec(), digest));
            }
            match event {
                Event::Element(Element::Bytes { part, bytes, last }) => {
                    joined.extend_from_slice(bytes);
                    if last {
                        read.events.push(format!("{part:?} {}", joined.escape_ascii()));
                        joined.clear();
                    }
                }
                Event::ValueBytes(bytes) => joined.extend_from_slice(bytes),
                Event::KeyEnd { .. } => {
                    if level == Level::Raw {
                        read.raw.push(std::mem::take(&mut joined));
                    }
                    read.events.push(format!("{event:?}"));
                }
                _ => read.events.push(format!("{event:?}")),
            }
        }
        assert!(input.is_empty(), "the parser left input");
    }
    parser.finish()?;
    Ok(read)
}

/// The chunks of `bytes` when it is cut after those lengths, over and over.
pub(crate) fn cut<'a>(bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut chunks = Vec::new();
    for length in lengths.iter().copied().cycle() {
        if rest.is_empty() {
            break;
        }
        let (head, tail) = rest.split_at(length.min(rest.len()));
        chunks.push(head);
        rest = tail;
    }
    chunks
}

/// The elements of one value, parts joined; the bytes after it are returned too.
pub(crate) fn elements(
    value_type: ValueType,
    version: RdbVersion,
    value: &[u8],
) -> Result<Vec<String>, Error> {
    let mut decoder = Decoder::new(value_type, version);
    let (mut input, mut joined, mut found) = (value, Vec::new(), Vec::new());
    while let Some(element) = decoder.next(&mut input)? {
        match element {
            Element::End => {
                assert!(input.is_empty(), "bytes left after the value");
                return Ok(found);
            }
            Element::Bytes { part, bytes, last } => {
                joined.extend_from_slice(bytes);
                if last {
                    found.push(format!("{part:?} {}", joined.escape_ascii()));
                    joined.clear();
                }
            }
            _ => found.push(format!("{element:?}")),
        }
    }
    panic!("the value does not end");
}
