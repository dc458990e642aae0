//! A segment in the making: what is written to a spool file is packed on the way, so that nothing has to be read again to seal it.
//!
//! Invariants: a pack holds exactly the bytes of its file, which a cut has ended, or it is given up; the file alone is what counts, and sealing it
//! without its pack gives the same bytes and the same record. All packs of a process together hold at most [`MOST_HELD_BYTES`]: who would go beyond
//! does without a pack.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use slotkeep_format::{Effort, SpoolHeader, TimeSample, Timeline};
use slotkeep_repo::SegmentPack;

/// How much memory all packs of a process take at the most.
const MOST_HELD_BYTES: u64 = 64 << 20;

/// The memory that packs of a process take together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holding {
    bytes: Arc<AtomicU64>,
}

/// A pack's share of it, given back when it is dropped.
struct Share {
    of: Holding,
    bytes: u64,
}

impl Share {
    /// Whether the share may become that large.
    fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let grown = |all: u64| all.checked_add(more).filter(|all| *all <= MOST_HELD_BYTES);
        if more > 0 && self.of.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_err() {
            return false;
        }
        self.bytes = self.bytes.saturating_add(more);
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a piece ended, at a cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PieceEnd {
    /// Its last byte.
    pub(crate) end: u64,
    /// How many commands it holds.
    pub(crate) commands: u64,
    /// Whether its size ended it.
    pub(crate) full: bool,
}

impl PieceEnd {
    /// How the piece behind it is packed. While pieces grow to their full size within seconds, the time for each byte counts, and what is stored
    /// is made smaller when small segments are joined.
    pub(crate) const fn next_effort(&self) -> Effort {
        if self.full { Effort::Light } else { Effort::Usual }
    }
}

/// The pack of a file that is being written.
pub(crate) struct Packing {
    pack: SegmentPack,
    times: Timeline,
    share: Share,
}

/// The pack of a file that is complete.
pub(crate) struct Packed {
    pub(crate) header: SpoolHeader,
    pub(crate) end: u64,
    pub(crate) commands: u64,
    pub(crate) times: Timeline,
    pub(crate) pack: SegmentPack,
    _share: Share,
}

impl Packing {
    /// An empty one; nothing if that fails.
    pub(crate) fn begin(holding: &Holding, effort: Effort) -> Option<Self> {
        let share = Share { of: holding.clone(), bytes: 0 };
        Some(Self { pack: SegmentPack::new(effort).ok()?, times: Timeline::default(), share })
    }

    /// Takes what is written to the file; false if the pack is to be given up.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.pack.write(bytes).is_ok() && self.share.grow(self.pack.memory_bytes())
    }

    pub(crate) fn time(&mut self, sample: TimeSample) {
        self.times.push(sample);
    }

    /// Ends it; nothing if it is not exactly what is wanted.
    pub(crate) fn end(self, header: &SpoolHeader, piece: PieceEnd) -> Option<Packed> {
        let Self { pack, times, share } = self;
        let whole = header.start.checked_add(pack.raw_bytes()) == piece.end.checked_add(1);
        whole.then(|| Packed {
            header: header.clone(),
            end: piece.end,
            commands: piece.commands,
            times,
            pack,
            _share: share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_packs_together_are_bounded() {
        let holding = Holding::default();
        let share = || Share { of: holding.clone(), bytes: 0 };
        let (mut one, mut two) = (share(), share());
        assert!(one.grow(MOST_HELD_BYTES - 10) && two.grow(10));
        assert!(!two.grow(11) && two.grow(10) && !one.grow(MOST_HELD_BYTES));
        drop(two);
        assert!(one.grow(MOST_HELD_BYTES));
        drop(one);
        assert!(share().grow(MOST_HELD_BYTES));
    }
}
