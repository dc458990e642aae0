//! The layouts packed into one string: listpack, ziplist, intset and zipmap, entry by entry.
//!
//! Layouts: `src/listpack.c`, `src/ziplist.c`, `src/intset.c`, `src/zipmap.c` of Redis. A blob may come in any number of
//! views; entries of at most 64 KiB are handed out whole, longer ones in parts.
//!
//! Invariant: `held` is empty except while a small entry that is split over views is being gathered, or for handing it out.

use crate::error::ErrorKind;
use crate::primitive::{Carry, Decoded, at_most, take, wide};
use crate::string::WHOLE_BYTES;

/// Which layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Listpack,
    Ziplist,
    Intset,
    Zipmap,
}

impl Layout {
    const fn name(self) -> &'static str {
        match self {
            Self::Listpack => "listpack",
            Self::Ziplist => "ziplist",
            Self::Intset => "intset",
            Self::Zipmap => "zipmap",
        }
    }
}

/// Where the bytes of an entry are.
#[derive(Clone, Copy)]
pub(crate) enum EntryPlace {
    /// A range of the view given to [`Blob::next`].
    View(usize, usize),
    /// [`Blob::held`].
    Held,
}

/// One entry, or a part of one.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    Integer(i64),
    Bytes { place: EntryPlace, last: bool },
    End,
}

#[derive(Clone, Copy)]
enum Phase {
    Preamble,
    Entry,
    Data { left: u64, whole: bool, trailer: Trailer },
    Trailer(Trailer),
    Ended,
}

/// What stands after an entry's bytes: free bytes of a zipmap, or an entry's length again in a listpack.
#[derive(Clone, Copy)]
struct Trailer {
    bytes: usize,
    /// For a listpack the length that must be repeated, else 0.
    entry_len: u64,
}

enum Payload {
    Integer(i64),
    Bytes(u64),
    End,
}

struct Head {
    payload: Payload,
    trailer: usize,
    previous: u64,
}

struct Preamble {
    /// Entries announced; `None` if unknown.
    entries: Option<u64>,
    /// Length of the blob as it says itself.
    bytes: Option<u64>,
    integer_bytes: usize,
}

pub(crate) struct Blob {
    layout: Layout,
    phase: Phase,
    carry: Carry,
    held: Vec<u8>,
    announced: Option<u64>,
    walked: u64,
    integer_bytes: usize,
    /// Length of the entry before, which a ziplist repeats.
    previous_len: u64,
}

impl Blob {
    pub(crate) const fn new() -> Self {
        Self {
            layout: Layout::Listpack,
            phase: Phase::Ended,
            carry: Carry::new(),
            held: Vec::new(),
            announced: None,
            walked: 0,
            integer_bytes: 0,
            previous_len: 0,
        }
    }

    /// Makes ready for the next blob.
    pub(crate) fn begin(&mut self, layout: Layout) {
        self.layout = layout;
        self.phase = Phase::Preamble;
        self.carry.clear();
        self.held.clear();
        self.walked = 0;
        self.previous_len = 0;
    }

    /// The bytes of an entry that was gathered.
    pub(crate) fn held(&self) -> &[u8] {
        &self.held
    }

    #[cold]
    fn corrupt<T>(&self, what: &'static str) -> Result<T, ErrorKind> {
        Err(ErrorKind::Blob { blob: self.layout.name(), what })
    }

    /// The error for a blob whose string ended before it did.
    #[cold]
    pub(crate) fn cut_short(&self) -> ErrorKind {
        ErrorKind::Blob { blob: self.layout.name(), what: "its string ends before it does" }
    }

    /// Reads on in `view`; `left` is the length of the string from the view's start on, `total` that of all of it. Returns
    /// how much of the view was consumed, and an entry, or `None` when all of the view is consumed.
    #[inline]
    pub(crate) fn next(
        &mut self,
        view: &[u8],
        left: u64,
        total: u64,
    ) -> Result<(usize, Option<Entry>), ErrorKind> {
        let mut rest = view;
        loop {
            let flow = match self.phase {
                Phase::Entry => self.entry(view, &mut rest, left)?,
                Phase::Preamble => self.preamble(&mut rest, total)?,
                Phase::Data { left: data, whole, trailer } => {
                    self.data(view, &mut rest, data, whole, trailer)
                }
                Phase::Trailer(trailer) => self.trailer(&mut rest, trailer)?,
                Phase::Ended => {
                    if left > wide(view.len() - rest.len()) {
                        return self.corrupt("bytes follow its end");
                    }
                    return Ok((view.len() - rest.len(), Some(Entry::End)));
                }
            };
            match flow {
                Step::Need => return Ok((view.len(), None)),
                Step::Again => {}
                Step::Emit(entry) => return Ok((view.len() - rest.len(), Some(entry))),
            }
        }
    }

    fn preamble(&mut self, rest: &mut &[u8], total: u64) -> Result<Step, ErrorKind> {
        let layout = self.layout;
        let Some(preamble) = self.carry.read(rest, |bytes| read_preamble(layout, bytes))? else {
            return Ok(Step::Need);
        };
        if preamble.bytes.is_some_and(|bytes| bytes != total) {
            return self.corrupt("its length is not that of its string");
        }
        self.announced = preamble.entries;
        self.integer_bytes = preamble.integer_bytes;
        self.phase = Phase::Entry;
        Ok(Step::Again)
    }

    #[inline]
    fn entry(&mut self, view: &[u8], rest: &mut &[u8], left: u64) -> Result<Step, ErrorKind> {
        let head = match self.layout {
            Layout::Listpack => self.carry.read(rest, listpack_head)?,
            Layout::Ziplist => self.carry.read(rest, ziplist_head)?,
            Layout::Intset => {
                let at_end = self.announced == Some(self.walked);
                let bytes = self.integer_bytes;
                self.carry.read(rest, |input| intset_head(input, bytes, at_end))?
            }
            Layout::Zipmap => {
                let value = self.walked % 2 == 1;
                self.carry.read(rest, |input| zipmap_head(input, value))?
            }
        };
        let Some((head, head_len)) = head else { return Ok(Step::Need) };
        if self.layout == Layout::Ziplist && !matches!(head.payload, Payload::End) {
            self.check_previous(&head, head_len)?;
        }
        match head.payload {
            Payload::Integer(number) => {
                self.walked += 1;
                if head.trailer > 0 {
                    let trailer = Trailer { bytes: head.trailer, entry_len: wide(head_len) };
                    if !self.quick_trailer(rest, trailer) {
                        self.phase = Phase::Trailer(trailer);
                    }
                }
                Ok(Step::Emit(Entry::Integer(number)))
            }
            Payload::Bytes(len) => {
                self.walked += 1;
                let trailer = match self.layout {
                    Layout::Listpack => {
                        let entry_len = len + wide(head_len);
                        Trailer { bytes: back_length_bytes(entry_len), entry_len }
                    }
                    _ => Trailer { bytes: head.trailer, entry_len: 0 },
                };
                self.bytes(view, rest, len, left, trailer)
            }
            Payload::End => {
                if self.announced.is_some_and(|announced| announced != self.walked) {
                    return self.corrupt("it has not as many entries as it says");
                }
                self.phase = Phase::Ended;
                Ok(Step::Again)
            }
        }
    }

    fn check_previous(&mut self, head: &Head, head_len: usize) -> Result<(), ErrorKind> {
        if head.previous != self.previous_len {
            return self.corrupt("an entry's length is not what the next one says");
        }
        self.previous_len = match head.payload {
            Payload::Bytes(len) => len + wide(head_len),
            _ => wide(head_len),
        };
        Ok(())
    }

    #[inline]
    fn bytes(
        &mut self,
        view: &[u8],
        rest: &mut &[u8],
        len: u64,
        left: u64,
        trailer: Trailer,
    ) -> Result<Step, ErrorKind> {
        let from = view.len() - rest.len();
        if len > left.saturating_sub(wide(from)) {
            return self.corrupt("an entry is longer than what is left of the blob");
        }
        if wide(rest.len()) < len {
            self.held.clear();
            self.phase = Phase::Data { left: len, whole: len <= wide(WHOLE_BYTES), trailer };
            return Ok(Step::Again);
        }
        let data = take(rest, at_most(len, rest.len()));
        if trailer.bytes > 0 && !self.quick_trailer(rest, trailer) {
            self.phase = Phase::Trailer(trailer);
        }
        let place = EntryPlace::View(from, from + data.len());
        Ok(Step::Emit(Entry::Bytes { place, last: true }))
    }

    /// Passes over the commonest trailer, a back-length of one byte.
    #[inline]
    fn quick_trailer(&self, rest: &mut &[u8], trailer: Trailer) -> bool {
        if self.layout == Layout::Listpack
            && trailer.bytes == 1
            && let Some((&byte, after)) = rest.split_first()
            && u64::from(byte) == trailer.entry_len
        {
            *rest = after;
            return true;
        }
        false
    }

    fn data(&mut self, view: &[u8], rest: &mut &[u8], left: u64, whole: bool, trailer: Trailer) -> Step {
        let from = view.len() - rest.len();
        let part = take(rest, at_most(left, rest.len()));
        let left = left - wide(part.len());
        let last = left == 0;
        self.phase = if last { Phase::Trailer(trailer) } else { Phase::Data { left, whole, trailer } };
        if whole {
            self.held.extend_from_slice(part);
            if !last {
                return Step::Need;
            }
            return Step::Emit(Entry::Bytes { place: EntryPlace::Held, last });
        }
        if part.is_empty() {
            return Step::Need;
        }
        let place = EntryPlace::View(from, from + part.len());
        Step::Emit(Entry::Bytes { place, last })
    }

    fn trailer(&mut self, rest: &mut &[u8], trailer: Trailer) -> Result<Step, ErrorKind> {
        let matches = self.carry.read(rest, |input| {
            Ok(input.get(..trailer.bytes).map(|bytes| {
                (trailer.entry_len == 0 || is_back_length(bytes, trailer.entry_len), trailer.bytes)
            }))
        })?;
        match matches {
            None => Ok(Step::Need),
            Some(false) => self.corrupt("an entry's length is not what its end says"),
            Some(true) => {
                self.phase = Phase::Entry;
                Ok(Step::Again)
            }
        }
    }
}

enum Step {
    Need,
    Again,
    Emit(Entry),
}

const fn preamble_bytes(layout: Layout) -> usize {
    match layout {
        Layout::Listpack => 6,
        Layout::Ziplist => 10,
        Layout::Intset => 8,
        Layout::Zipmap => 1,
    }
}

const fn known(count: u16) -> Option<u64> {
    if count == u16::MAX { None } else { Some(count as u64) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|number| u64::from(u32::from_le_bytes(*number)))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|number| u16::from_le_bytes(*number))
}

fn read_preamble(layout: Layout, bytes: &[u8]) -> Decoded<Preamble> {
    let preamble = match layout {
        Layout::Listpack => u32_at(bytes, 0).zip(u16_at(bytes, 4)).map(|(total, count)| Preamble {
            entries: known(count),
            bytes: Some(total),
            integer_bytes: 0,
        }),
        Layout::Ziplist => u32_at(bytes, 0).zip(u16_at(bytes, 8)).map(|(total, count)| Preamble {
            entries: known(count),
            bytes: Some(total),
            integer_bytes: 0,
        }),
        Layout::Intset => match u32_at(bytes, 0).zip(u32_at(bytes, 4)) {
            Some((size, count)) => Some(intset_preamble(size, count)?),
            None => None,
        },
        Layout::Zipmap => bytes.first().map(|&count| Preamble {
            // The count is of pairs, and 254 says that it is not known.
            entries: (count < 254).then_some(u64::from(count) * 2),
            bytes: None,
            integer_bytes: 0,
        }),
    };
    Ok(preamble.map(|preamble| (preamble, preamble_bytes(layout))))
}

fn intset_preamble(size: u64, count: u64) -> Result<Preamble, ErrorKind> {
    let integer_bytes = match size {
        2 => 2,
        4 => 4,
        8 => 8,
        found => return Err(ErrorKind::OutOfRange { part: "the integer size of an intset", found }),
    };
    Ok(Preamble { entries: Some(count), bytes: Some(8 + size * count), integer_bytes })
}

/// A head and its own length, as the piece of a [`Carry`].
type HeadPiece = Decoded<(Head, usize)>;

#[inline]
#[expect(clippy::unnecessary_wraps, reason = "the shape that `Carry::read` takes")]
fn head(payload: Payload, len: usize, trailer: usize) -> HeadPiece {
    Ok(Some(((Head { payload, trailer, previous: 0 }, len), len)))
}

#[inline]
fn listpack_head(bytes: &[u8]) -> HeadPiece {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first < 0x80 {
        return head(Payload::Integer(i64::from(first)), 1, 1);
    }
    if first < 0xc0 {
        return head(Payload::Bytes(u64::from(first & 0x3f)), 1, 0);
    }
    let Some(&second) = bytes.get(1) else {
        return if first == 0xff { head(Payload::End, 1, 0) } else { Ok(None) };
    };
    if first < 0xe0 {
        let number = i64::from(u16::from_be_bytes([first & 0x1f, second]));
        let number = if number >= 4096 { number - 8192 } else { number };
        return head(Payload::Integer(number), 2, 1);
    }
    if first < 0xf0 {
        return head(Payload::Bytes(u64::from(u16::from_be_bytes([first & 0x0f, second]))), 2, 0);
    }
    listpack_wide_head(first, bytes)
}

fn listpack_wide_head(first: u8, bytes: &[u8]) -> HeadPiece {
    let data_bytes = match first {
        0xf0 => {
            return match u32_at(bytes, 1) {
                Some(len) => head(Payload::Bytes(len), 5, 0),
                None => Ok(None),
            };
        }
        0xf1 => 2,
        0xf2 => 3,
        0xf3 => 4,
        0xf4 => 8,
        0xff => return head(Payload::End, 1, 0),
        _ => return Err(ErrorKind::Blob { blob: "listpack", what: "an entry has no known encoding" }),
    };
    match signed(bytes.get(1..).unwrap_or_default(), data_bytes) {
        Some(number) => head(Payload::Integer(number), 1 + data_bytes, 1),
        None => Ok(None),
    }
}

/// A little-endian signed integer of that many bytes, 1 to 8.
fn signed(bytes: &[u8], len: usize) -> Option<i64> {
    let mut wide_bytes = [0; 8];
    let source = bytes.get(..len)?;
    for (place, byte) in wide_bytes.iter_mut().zip(source) {
        *place = *byte;
    }
    let unused_bits = 64 - 8 * u32::try_from(len).ok()?;
    Some(i64::from_le_bytes(wide_bytes) << unused_bits >> unused_bits)
}

fn ziplist_head(bytes: &[u8]) -> HeadPiece {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (previous, previous_bytes) = match first {
        0xff => return head(Payload::End, 1, 0),
        0xfe => match u32_at(bytes, 1) {
            Some(previous) => (previous, 5),
            None => return Ok(None),
        },
        _ => (u64::from(first), 1),
    };
    let Some((payload, len)) = ziplist_encoding(bytes.get(previous_bytes..).unwrap_or_default())? else {
        return Ok(None);
    };
    let len = len + previous_bytes;
    Ok(Some(((Head { payload, trailer: 0, previous }, len), len)))
}

fn ziplist_encoding(bytes: &[u8]) -> Decoded<Payload> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let rest = bytes.get(1..).unwrap_or_default();
    let integer = |len: usize| signed(rest, len).map(|number| (Payload::Integer(number), 1 + len));
    Ok(match first {
        0x00..0x40 => Some((Payload::Bytes(u64::from(first)), 1)),
        0x40..0x80 => rest
            .first()
            .map(|&second| (Payload::Bytes(u64::from(u16::from_be_bytes([first & 0x3f, second]))), 2)),
        0x80 => rest.first_chunk().map(|len| (Payload::Bytes(u64::from(u32::from_be_bytes(*len))), 5)),
        0xc0 => integer(2),
        0xd0 => integer(4),
        0xe0 => integer(8),
        0xf0 => integer(3),
        0xfe => integer(1),
        0xf1..=0xfd => Some((Payload::Integer(i64::from(first & 15) - 1), 1)),
        _ => return Err(ErrorKind::Blob { blob: "ziplist", what: "an entry has no known encoding" }),
    })
}

fn intset_head(bytes: &[u8], integer_bytes: usize, at_end: bool) -> HeadPiece {
    if at_end {
        return head(Payload::End, 0, 0);
    }
    match signed(bytes, integer_bytes) {
        Some(number) => head(Payload::Integer(number), integer_bytes, 0),
        None => Ok(None),
    }
}

fn zipmap_head(bytes: &[u8], value: bool) -> HeadPiece {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (len, len_bytes) = match first {
        0xff if !value => return head(Payload::End, 1, 0),
        0xff => return Err(ErrorKind::Blob { blob: "zipmap", what: "it ends after a field" }),
        0xfe => match u32_at(bytes, 1) {
            Some(len) => (len, 5),
            None => return Ok(None),
        },
        _ => (u64::from(first), 1),
    };
    if !value {
        return head(Payload::Bytes(len), len_bytes, 0);
    }
    match bytes.get(len_bytes) {
        Some(&free) => head(Payload::Bytes(len), len_bytes + 1, usize::from(free)),
        None => Ok(None),
    }
}

/// How many bytes the back-length of an entry takes (`lpEncodeBacklenBytes`).
#[inline]
const fn back_length_bytes(entry_len: u64) -> usize {
    match entry_len {
        0..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    }
}

/// Whether those bytes are the back-length of an entry of that length.
fn is_back_length(bytes: &[u8], entry_len: u64) -> bool {
    let mut number = 0;
    for (position, byte) in bytes.iter().enumerate() {
        if (byte & 0x80 != 0) != (position > 0) {
            return false;
        }
        number = number << 7 | u64::from(byte & 0x7f);
    }
    number == entry_len
}
