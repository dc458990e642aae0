//! JSON written as it goes: which arrays and objects are open, and where commas belong; texts of any length.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The longest text that is held to see whether it is UTF-8.
const TEXT_BYTES: usize = 16 << 20;

/// Integers below this are written without an exponent or a decimal point.
const SHORT_INTEGERS: f64 = 1e15;

/// What an open array or object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Key,
    Items,
    Item,
    Stream,
    Entries,
    Entry,
    Fields,
    Field,
    Groups,
    Group,
    Pending,
    Consumers,
    Consumer,
    Owned,
    Released,
    Idempotence,
    Producers,
    Producer,
    Produced,
}

/// How a text is called.
#[derive(Clone, Copy)]
pub(super) enum Called {
    /// A member of that name, or of that name with `_base64`.
    Name(&'static str),
    /// An element of an array: text, or an object with the one member `base64`.
    Element,
}

struct Open {
    scope: Scope,
    closing: &'static [u8],
    filled: bool,
}

/// Writes JSON piece by piece.
pub(super) struct Json {
    open: Vec<Open>,
    /// The longest text that is held: [`TEXT_BYTES`].
    held_bytes: usize,
    /// The text being gathered.
    text: Vec<u8>,
    /// Whether a text is being written as base64 because it is too long to be held; `text` has then the bytes of its last, incomplete group.
    streaming: bool,
}

impl Json {
    pub(super) const fn new() -> Self {
        Self { open: Vec::new(), held_bytes: TEXT_BYTES, text: Vec::new(), streaming: false }
    }

    /// A comma, if one belongs here.
    pub(super) fn next(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self.open.last_mut() {
            Some(open) if open.filled => out.write_all(b","),
            Some(open) => {
                open.filled = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The name of a member, whose value is to follow.
    pub(super) fn name(&mut self, out: &mut impl Write, name: &str) -> io::Result<()> {
        self.next(out)?;
        write!(out, "\"{name}\":")
    }

    /// A member that is a number or the like, or plain text without anything to escape.
    pub(super) fn member(
        &mut self,
        out: &mut impl Write,
        name: &str,
        value: impl std::fmt::Display,
    ) -> io::Result<()> {
        self.name(out, name)?;
        write!(out, "{value}")
    }

    /// A member that is plain text without anything to escape.
    pub(super) fn word(
        &mut self,
        out: &mut impl Write,
        name: &str,
        value: impl std::fmt::Display,
    ) -> io::Result<()> {
        self.name(out, name)?;
        write!(out, "\"{value}\"")
    }

    /// A number; one that JSON has no form for is a text.
    pub(super) fn float(out: &mut impl Write, number: f64) -> io::Result<()> {
        if number.fract() == 0.0 && number.abs() < SHORT_INTEGERS {
            return write!(out, "{number}");
        }
        if number.is_finite() {
            return Ok(serde_json::to_writer(out, &number)?);
        }
        let text = match (number.is_nan(), number > 0.0) {
            (true, _) => "\"nan\"",
            (_, true) => "\"inf\"",
            (_, false) => "\"-inf\"",
        };
        out.write_all(text.as_bytes())
    }

    pub(super) fn object(&mut self, out: &mut impl Write, scope: Scope) -> io::Result<()> {
        self.open.push(Open { scope, closing: b"}", filled: false });
        out.write_all(b"{")
    }

    pub(super) fn array(&mut self, out: &mut impl Write, scope: Scope) -> io::Result<()> {
        self.open.push(Open { scope, closing: b"]", filled: false });
        out.write_all(b"[")
    }

    /// Whether one of that sort is open.
    pub(super) fn is_in(&self, scope: Scope) -> bool {
        self.open.iter().any(|open| open.scope == scope)
    }

    /// Closes what was opened in that one since.
    pub(super) fn back_to(&mut self, out: &mut impl Write, scope: Scope) -> io::Result<()> {
        while self.open.last().is_some_and(|open| open.scope != scope) {
            self.close(out)?;
        }
        Ok(())
    }

    /// Closes the innermost.
    pub(super) fn close(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.open.pop().map_or(Ok(()), |open| out.write_all(open.closing))
    }

    /// A piece of a text: UTF-8 of at most 16 MiB as it is, everything else as base64.
    pub(super) fn text(
        &mut self,
        out: &mut impl Write,
        called: Called,
        bytes: &[u8],
        last: bool,
    ) -> io::Result<()> {
        if !self.streaming && last && self.text.is_empty() && bytes.len() <= self.held_bytes {
            return self.whole(out, called, bytes);
        }
        self.text.extend_from_slice(bytes);
        if !self.streaming {
            if self.text.len() <= self.held_bytes {
                if last {
                    let text = std::mem::take(&mut self.text);
                    self.whole(out, called, &text)?;
                }
                return Ok(());
            }
            self.begin_base64(out, called)?;
            self.streaming = true;
        }
        let complete = if last { self.text.len() } else { self.text.len() / 3 * 3 };
        let rest = self.text.split_off(complete);
        out.write_all(STANDARD.encode(&self.text).as_bytes())?;
        self.text = rest;
        if last {
            self.streaming = false;
            end_base64(out, called)?;
        }
        Ok(())
    }

    fn whole(&mut self, out: &mut impl Write, called: Called, bytes: &[u8]) -> io::Result<()> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            self.begin_base64(out, called)?;
            out.write_all(STANDARD.encode(bytes).as_bytes())?;
            return end_base64(out, called);
        };
        match called {
            Called::Name(name) => self.name(out, name)?,
            Called::Element => self.next(out)?,
        }
        Ok(serde_json::to_writer(out, text)?)
    }

    fn begin_base64(&mut self, out: &mut impl Write, called: Called) -> io::Result<()> {
        self.next(out)?;
        match called {
            Called::Name(name) => write!(out, "\"{name}_base64\":\""),
            Called::Element => out.write_all(b"{\"base64\":\""),
        }
    }
}

fn end_base64(out: &mut impl Write, called: Called) -> io::Result<()> {
    out.write_all(match called {
        Called::Name(_) => b"\"",
        Called::Element => b"\"}",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of a text depends on its bytes alone, not on the pieces in which they come.
    #[test]
    fn a_text_has_one_form_however_it_is_cut() {
        const HELD: usize = 1000;
        let long: Vec<u8> = (0..HELD + 2).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
        for (bytes, base64) in [(&long[..HELD], false), (long.as_slice(), true), (b"\xff\x00", true)] {
            let mut forms = Vec::new();
            for piece in [1, 7, 333, bytes.len()] {
                let (mut json, mut out) = (Json { held_bytes: HELD, ..Json::new() }, Vec::new());
                json.object(&mut out, Scope::Item).unwrap();
                let count = bytes.len().div_ceil(piece);
                for (number, piece) in bytes.chunks(piece).enumerate() {
                    json.text(&mut out, Called::Name("value"), piece, number + 1 == count).unwrap();
                }
                json.close(&mut out).unwrap();
                forms.push(out);
            }
            assert!(forms.windows(2).all(|pair| pair[0] == pair[1]));
            let value: serde_json::Value = serde_json::from_slice(&forms[0]).unwrap();
            let found = if base64 {
                STANDARD.decode(value["value_base64"].as_str().unwrap()).unwrap()
            } else {
                value["value"].as_str().unwrap().as_bytes().to_vec()
            };
            assert!(found == bytes);
        }
    }
}
