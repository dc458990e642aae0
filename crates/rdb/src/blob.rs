//! The layouts packed into one string: listpack, ziplist, intset and zipmap, entry by entry.
//!
//! Layouts: `src/listpack.c`, `src/ziplist.c`, `src/intset.c`, `src/zipmap.c` of Redis. A blob may come in any number of
//! views; entries of at most 64 KiB are handed out whole, longer ones in parts.
//!
//! Invariant: `held` is empty except while a small entry that is split over views is being gathered, or for handing it out.

use crate::error::ErrorKind;
use crate::primitive::{Carry, at_most, take, wide};
use crate::string::WHOLE_BYTES;

mod layout;

pub(crate) use layout::back_length_bytes;

use layout::{
    Head, Payload, intset_head, is_back_length, listpack_head, read_preamble, ziplist_head, zipmap_head,
};

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
        if let Some((used, entry)) = self.quick_entry(view) {
            return Ok((used, Some(entry)));
        }
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

    /// The commonest entries in one step: those of a listpack, at most 63 bytes or a small integer, that lie in the view as a whole.
    #[inline]
    fn quick_entry(&mut self, view: &[u8]) -> Option<(usize, Entry)> {
        if self.layout != Layout::Listpack || !matches!(self.phase, Phase::Entry) || !self.carry.is_empty() {
            return None;
        }
        let first = *view.first()?;
        let (len, entry) = match first {
            0..0x80 => (1, Entry::Integer(i64::from(first))),
            0x80..0xc0 => {
                let len = 1 + usize::from(first & 0x3f);
                (len, Entry::Bytes { place: EntryPlace::View(1, len), last: true })
            }
            _ => return None,
        };
        if view.get(len).map(|&back| usize::from(back)) != Some(len) {
            return None;
        }
        self.walked += 1;
        Some((len + 1, entry))
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
