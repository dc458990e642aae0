//! RDB strings as a stream: plain, integers as decimal text, LZF; in pieces, or as a view for a nested layout.
//!
//! Invariants: `left` counts the decoded bytes not yet handed out. A string of at most [`WHOLE_BYTES`] is handed out in one
//! piece. The buffers grow to at most a few times [`WHOLE_BYTES`], whatever the lengths announced.

use crate::error::ErrorKind;
use crate::lzf;
use crate::primitive::{
    Carry, DIGITS_BYTES, Length, any_length, at_most, fixed, length_pair, take, wide, write_decimal,
};

/// Strings and elements up to this length are always handed out whole.
pub(crate) const WHOLE_BYTES: usize = 64 * 1024;
/// The most that is decoded of a long LZF string in one go.
const BURST_BYTES: usize = WHOLE_BYTES;

/// Where the bytes of a piece are.
#[derive(Clone, Copy)]
pub(crate) enum Place<'i> {
    /// In the input.
    Input(&'i [u8]),
    /// In the reader's decoded buffer, from, to.
    Decoded(usize, usize),
    /// The whole of the reader's gathering buffer.
    Gathered,
}

/// Some bytes of a string.
pub(crate) struct Piece<'i> {
    pub(crate) place: Place<'i>,
    pub(crate) last: bool,
}

#[derive(Clone, Copy)]
enum Mode {
    Header,
    Integer(u8),
    LzfLengths,
    /// Small LZF: its compressed bytes are being gathered.
    LzfWhole {
        compressed: u64,
    },
    /// The bytes are those of the input.
    Plain,
    /// All decoded bytes are in the buffer.
    Decoded,
    /// LZF decoded bit by bit; how many compressed bytes are still to come.
    LzfStream {
        compressed_left: u64,
    },
    /// Raw bytes to pass over.
    Skip {
        left: u64,
    },
}

pub(crate) struct StringReader {
    mode: Mode,
    carry: Carry,
    /// Length of the decoded string.
    total: u64,
    left: u64,
    /// Announced length of the compressed bytes, for errors.
    compressed: u64,
    /// Decoded bytes; for a stream of LZF the last [`lzf::WINDOW_BYTES`] handed out stay before `start`.
    decoded: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of a small string, or of compressed bytes, or of an LZF token, that came in several chunks.
    gathered: Vec<u8>,
}

impl StringReader {
    pub(crate) const fn new() -> Self {
        Self {
            mode: Mode::Header,
            carry: Carry::new(),
            total: 0,
            left: 0,
            compressed: 0,
            decoded: Vec::new(),
            start: 0,
            end: 0,
            gathered: Vec::new(),
        }
    }

    /// Makes ready for the next string. Pieces of the last one stay valid until more is read.
    #[inline]
    pub(crate) fn begin(&mut self) {
        self.mode = Mode::Header;
    }

    /// Decoded bytes not yet handed out. Meaningful once [`Self::open`] has returned true.
    pub(crate) const fn left(&self) -> u64 {
        self.left
    }

    /// Length of the whole string when decoded. Meaningful once [`Self::open`] has returned true.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// The bytes a place stands for.
    #[inline]
    pub(crate) fn resolve<'a>(&'a self, place: Place<'a>) -> &'a [u8] {
        match place {
            Place::Input(bytes) => bytes,
            Place::Decoded(from, to) => self.decoded.get(from..to).unwrap_or_default(),
            Place::Gathered => &self.gathered,
        }
    }

    /// Reads up to where bytes of the string can be had; false if more input is needed first.
    #[inline]
    pub(crate) fn open(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        if matches!(self.mode, Mode::Decoded | Mode::Plain) {
            return Ok(true);
        }
        self.open_further(input)
    }

    #[inline(never)]
    fn open_further(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        loop {
            match self.mode {
                Mode::Plain | Mode::Decoded | Mode::LzfStream { .. } => return Ok(true),
                Mode::Header => {
                    let Some(length) = self.carry.read(input, any_length)? else { return Ok(false) };
                    self.gathered.clear();
                    match length {
                        Length::Plain(total) => self.set(Mode::Plain, total),
                        Length::Special(encoding @ 0..=2) => self.mode = Mode::Integer(encoding),
                        Length::Special(3) => self.mode = Mode::LzfLengths,
                        Length::Special(found) => return Err(ErrorKind::BadStringEncoding { found }),
                    }
                }
                _ => {
                    if !self.open_encoded(input)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn set(&mut self, mode: Mode, total: u64) {
        self.mode = mode;
        self.total = total;
        self.left = total;
    }

    fn open_encoded(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        match self.mode {
            Mode::Integer(encoding) => {
                let Some(number) = self.integer(encoding, input)? else { return Ok(false) };
                self.set_digits(number);
            }
            Mode::LzfLengths => {
                let Some((compressed, bytes)) = self.carry.read(input, length_pair)? else {
                    return Ok(false);
                };
                self.compressed = compressed;
                self.total = bytes;
                // Two compressed bytes give at least one.
                if compressed / 2 > bytes {
                    return Err(self.lzf_error("it is longer than any such string"));
                }
                if bytes <= wide(WHOLE_BYTES) {
                    self.mode = Mode::LzfWhole { compressed };
                } else {
                    (self.start, self.end) = (0, 0);
                    self.set(Mode::LzfStream { compressed_left: compressed }, bytes);
                }
            }
            Mode::LzfWhole { compressed } => return self.decode_whole(compressed, input),
            _ => {}
        }
        Ok(true)
    }

    fn integer(&mut self, encoding: u8, input: &mut &[u8]) -> Result<Option<i64>, ErrorKind> {
        Ok(match encoding {
            0 => self.carry.read(input, fixed)?.map(|bytes| i64::from(i8::from_le_bytes(bytes))),
            1 => self.carry.read(input, fixed)?.map(|bytes| i64::from(i16::from_le_bytes(bytes))),
            _ => self.carry.read(input, fixed)?.map(|bytes| i64::from(i32::from_le_bytes(bytes))),
        })
    }

    fn set_digits(&mut self, number: i64) {
        let mut digits = [0; DIGITS_BYTES];
        let start = write_decimal(number, &mut digits);
        if self.decoded.len() < DIGITS_BYTES {
            self.decoded.resize(DIGITS_BYTES, 0);
        }
        for (place, digit) in self.decoded.iter_mut().zip(digits) {
            *place = digit;
        }
        (self.start, self.end) = (start, DIGITS_BYTES);
        self.set(Mode::Decoded, wide(DIGITS_BYTES - start));
    }

    fn decode_whole(&mut self, compressed: u64, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        let missing = compressed.saturating_sub(wide(self.gathered.len()));
        let part = take(input, at_most(missing, input.len()));
        let source = if self.gathered.is_empty() && wide(part.len()) == compressed {
            part
        } else {
            self.gathered.extend_from_slice(part);
            if wide(self.gathered.len()) < compressed {
                return Ok(false);
            }
            &self.gathered
        };
        let total = at_most(self.total, WHOLE_BYTES);
        lzf::decode_whole(source, &mut self.decoded, total).map_err(|what| self.lzf_error(what))?;
        self.gathered.clear();
        (self.start, self.end) = (0, total);
        self.set(Mode::Decoded, self.total);
        Ok(true)
    }

    #[cold]
    fn lzf_error(&self, what: &'static str) -> ErrorKind {
        ErrorKind::Lzf { what, compressed_bytes: self.compressed, bytes: self.total }
    }

    /// Decodes more of a long LZF string, if all that was decoded is consumed.
    #[inline]
    pub(crate) fn fill(&mut self, input: &mut &[u8]) -> Result<(), ErrorKind> {
        match self.mode {
            Mode::LzfStream { compressed_left } => self.fill_stream(compressed_left, input),
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn fill_stream(&mut self, compressed_left: u64, input: &mut &[u8]) -> Result<(), ErrorKind> {
        if self.start < self.end || self.left == 0 {
            return Ok(());
        }
        self.slide();
        let mut compressed_left = compressed_left;
        // A token that was split by the end of a chunk is completed first.
        while !self.gathered.is_empty() && !input.is_empty() && compressed_left > 0 {
            let byte = take(input, 1);
            compressed_left -= 1;
            self.gathered.extend_from_slice(byte);
            let whole =
                self.gathered.first().is_some_and(|&first| self.gathered.len() == lzf::token_len(first));
            if whole {
                let token = core::mem::take(&mut self.gathered);
                let consumed = self.decode_tokens(&token)?;
                self.gathered = token;
                self.gathered.clear();
                if consumed == 0 {
                    return Err(self.lzf_error("a token does not decode"));
                }
            }
        }
        if self.gathered.is_empty() {
            let source = input.get(..at_most(compressed_left, input.len())).unwrap_or_default();
            let consumed = self.decode_tokens(source)?;
            take(input, consumed);
            compressed_left -= wide(consumed);
            let paused = self.end.saturating_sub(self.start) >= BURST_BYTES;
            // What is left of the string may end inside a token although input follows it.
            if !paused && at_most(compressed_left, input.len()) < lzf::LONGEST_TOKEN_BYTES {
                let rest = take(input, at_most(compressed_left, input.len()));
                compressed_left -= wide(rest.len());
                self.gathered.extend_from_slice(rest);
            }
        }
        let decoded = wide(self.end - self.start);
        if compressed_left == 0 && decoded < self.left {
            return Err(self.lzf_error("it decodes to less than announced"));
        }
        if decoded == self.left && (compressed_left > 0 || !self.gathered.is_empty()) {
            return Err(self.lzf_error("it decodes to more than announced"));
        }
        self.mode = Mode::LzfStream { compressed_left };
        Ok(())
    }

    /// Moves the window that later tokens may refer to to the front of the buffer.
    fn slide(&mut self) {
        let keep = self.end.saturating_sub(lzf::WINDOW_BYTES);
        if keep > 0 {
            self.decoded.copy_within(keep..self.end, 0);
            self.end -= keep;
        }
        self.start = self.end;
        let room = lzf::WINDOW_BYTES + BURST_BYTES + 2 * lzf::LONGEST_MATCH_BYTES + lzf::SLACK_BYTES;
        if self.decoded.len() < room {
            self.decoded.resize(room, 0);
        }
    }

    fn decode_tokens(&mut self, source: &[u8]) -> Result<usize, ErrorKind> {
        let pause = self.start + BURST_BYTES;
        let room = BURST_BYTES + lzf::LONGEST_MATCH_BYTES;
        let end = self.start + at_most(self.left, room);
        let progress = lzf::decode(source, &mut self.decoded, self.end, pause, end)
            .map_err(|what| self.lzf_error(what))?;
        self.end = progress.filled;
        Ok(progress.consumed)
    }

    /// The decoded bytes that are at hand, and whether they lie in the input. Call after [`Self::open`] and [`Self::fill`].
    #[inline]
    pub(crate) fn view<'v>(&'v self, input: &'v [u8]) -> &'v [u8] {
        match self.mode {
            Mode::Plain => input.get(..at_most(self.left, input.len())).unwrap_or_default(),
            _ => self.decoded.get(self.start..self.end).unwrap_or_default(),
        }
    }

    /// The place of a range of the view.
    #[inline]
    pub(crate) fn place<'i>(&self, input: &'i [u8], from: usize, to: usize) -> Place<'i> {
        match self.mode {
            Mode::Plain => Place::Input(input.get(from..to).unwrap_or_default()),
            _ => Place::Decoded(self.start + from, self.start + to),
        }
    }

    /// Consumes bytes of the view.
    #[inline]
    pub(crate) fn consume(&mut self, input: &mut &[u8], count: usize) {
        match self.mode {
            Mode::Plain => {
                take(input, count);
            }
            _ => self.start += count,
        }
        self.left = self.left.saturating_sub(wide(count));
    }

    /// The next piece of the string: all of it if it is at most [`WHOLE_BYTES`] long. `None` if more input is needed.
    #[inline]
    pub(crate) fn piece<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Piece<'i>>, ErrorKind> {
        if !self.open(input)? {
            return Ok(None);
        }
        self.fill(input)?;
        let available = self.view(input).len();
        let whole = self.total <= wide(WHOLE_BYTES);
        if wide(available) == self.left && (!whole || self.gathered.is_empty()) {
            let place = self.place(input, 0, available);
            self.consume(input, available);
            return Ok(Some(Piece { place, last: true }));
        }
        if !whole {
            if available == 0 {
                return Ok(None);
            }
            let place = self.place(input, 0, available);
            self.consume(input, available);
            return Ok(Some(Piece { place, last: false }));
        }
        // Small and split over chunks: only plain strings come here.
        let part = take(input, available);
        self.left -= wide(part.len());
        self.gathered.extend_from_slice(part);
        Ok((self.left == 0).then_some(Piece { place: Place::Gathered, last: true }))
    }

    /// Appends the string to `target` as it arrives; true when it is complete.
    pub(crate) fn collect(
        &mut self,
        input: &mut &[u8],
        target: &mut Vec<u8>,
        part: &'static str,
        limit: u64,
    ) -> Result<bool, ErrorKind> {
        loop {
            let Some(piece) = self.piece(input)? else {
                return Ok(false);
            };
            if self.total > limit {
                return Err(ErrorKind::TooLong { part, bytes: self.total, limit });
            }
            target.extend_from_slice(self.resolve(piece.place));
            if piece.last {
                return Ok(true);
            }
        }
    }

    /// Passes over the string without decoding it; true when it is complete.
    pub(crate) fn skip(&mut self, input: &mut &[u8]) -> Result<bool, ErrorKind> {
        loop {
            match self.mode {
                Mode::Skip { left } => {
                    let passed = take(input, at_most(left, input.len()));
                    let left = left - wide(passed.len());
                    self.mode = Mode::Skip { left };
                    return Ok(left == 0);
                }
                Mode::LzfLengths => {
                    let Some((left, _)) = self.carry.read(input, length_pair)? else { return Ok(false) };
                    self.mode = Mode::Skip { left };
                }
                _ => {
                    let Some(length) = self.carry.read(input, any_length)? else { return Ok(false) };
                    self.mode = match length {
                        Length::Plain(left) => Mode::Skip { left },
                        Length::Special(encoding @ 0..=2) => Mode::Skip { left: 1 << encoding },
                        Length::Special(3) => Mode::LzfLengths,
                        Length::Special(found) => return Err(ErrorKind::BadStringEncoding { found }),
                    };
                }
            }
        }
    }
}
