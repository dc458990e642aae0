//! Which offset a shard had reached at which moment, and when a byte was written: the time samples of a whole path.

use std::ops::Range;

use slotkeep_format::TimeSample;
use slotkeep_repo::SegmentEntry;

use super::chain::Path;
use super::files::narrowed;
use super::past::Past;
use crate::{Error, ErrorKind, Result};

/// The samples of a path, found by reading the records of a few segments.
pub(super) struct Times<'a> {
    past: &'a Past,
    segments: Vec<(SegmentEntry, Range<u64>)>,
    /// What is known beside them.
    ends: Vec<TimeSample>,
}

/// What is known of a moment: the samples on both sides of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    /// The last sample that was certainly taken at or before the moment.
    pub(super) before: Option<TimeSample>,
    /// The next one.
    pub(super) after: Option<TimeSample>,
}

/// Between which moments a byte was written, in ms since 1970, as far as samples tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Not before this.
    pub(super) from_ms: Option<i64>,
    /// Not after this.
    pub(super) until_ms: Option<i64>,
}

/// That it is not known when something was written.
pub(super) fn untold() -> Error {
    let what = "nothing tells when those bytes were written: the log has no time samples there";
    Error::new(ErrorKind::Gap, what).hint("restore a backup (--backup, `slotkeep list`)")
}

impl<'a> Times<'a> {
    /// The samples along a path.
    pub(super) fn on(past: &'a Past, path: &Path) -> Self {
        let stretches = path.stretches().iter();
        let ends = stretches.flat_map(|stretch| past.files.ends(&stretch.history)).copied();
        Self { past, segments: past.segments_on(path), ends: narrowed(ends.collect()) }
    }

    /// The samples of one segment that tell of the bytes that lie on the path.
    async fn samples(&self, number: usize) -> Result<Vec<TimeSample>> {
        let Some((entry, part)) = self.segments.get(number) else {
            // A log that is empty has a time all the same.
            let alone = self.segments.is_empty() && number == 0;
            return Ok(if alone { self.ends.clone() } else { vec![] });
        };
        let record = self.past.record(entry).await?;
        let fits =
            |sample: &&TimeSample| sample.offset.saturating_add(1) >= part.start && sample.offset < part.end;
        let own = record.times.samples().iter();
        if self.ends.is_empty() {
            return Ok(own.filter(fits).copied().collect());
        }
        Ok(narrowed(own.chain(&self.ends).filter(fits).copied().collect()))
    }

    /// How many times [`Self::samples`] may be asked.
    fn parts(&self) -> usize {
        self.segments.len().max(usize::from(!self.ends.is_empty()))
    }

    /// The samples around a moment.
    pub(super) async fn around(&self, moment_ms: i64) -> Result<Around> {
        self.split(|sample| sample.until_ms <= moment_ms).await
    }

    /// The samples around a place: the last one before that byte was there, and the first with it.
    pub(super) async fn around_offset(&self, offset: u64) -> Result<Around> {
        self.split(|sample| sample.offset < offset).await
    }

    /// When a byte was written.
    pub(super) async fn written(&self, offset: u64) -> Result<Written> {
        let around = self.around_offset(offset).await?;
        Ok(Written {
            from_ms: around.before.map(|sample| sample.from_ms),
            until_ms: around.after.map(|sample| sample.until_ms),
        })
    }

    /// The first sample that shows at least that offset.
    pub(super) async fn first_with(&self, offset: u64) -> Result<Option<TimeSample>> {
        Ok(self.around_offset(offset).await?.after)
    }

    /// The last sample that shows at most that offset.
    pub(super) async fn last_within(&self, offset: u64) -> Result<Option<TimeSample>> {
        Ok(self.split(|sample| sample.offset <= offset).await?.before)
    }

    /// The last sample of which `early` holds, and the next one. `early` must hold of all samples up to one and of none behind it.
    async fn split(&self, early: impl Fn(&TimeSample) -> bool) -> Result<Around> {
        // The first segment whose last sample is not early; segments without samples are passed over.
        let (mut low, mut high) = (0, self.parts());
        while low < high {
            let middle = low.midpoint(high);
            let mut probe = middle;
            let last = loop {
                match self.samples(probe).await?.last() {
                    Some(sample) => break Some(*sample),
                    None if probe > low => probe -= 1,
                    None => break None,
                }
            };
            match last {
                Some(sample) if !early(&sample) => high = probe,
                _ => low = middle.saturating_add(1),
            }
        }
        let here = self.samples(low).await?;
        let count = here.partition_point(&early);
        let mut around = Around {
            before: count.checked_sub(1).and_then(|last| here.get(last)).copied(),
            after: here.get(count).copied(),
        };
        let mut number = low;
        while around.before.is_none() && number > 0 {
            number -= 1;
            around.before = self.samples(number).await?.last().copied();
        }
        Ok(around)
    }
}
