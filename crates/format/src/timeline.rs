//! Which offsets a server had reached at which moments, by its own clock.
//!
//! A sample is two `TIME`s with an `INFO replication` between them: at some instant between the two the server had produced
//! exactly the bytes up to `offset`. So every byte up to it was produced at or before `until_ms`, and every byte behind it at or
//! after `from_ms`.
//!
//! Invariants of a [`Timeline`]: neither offsets nor times run backwards from one sample to the next, and no sample ends before it
//! begins. A clock that was set back gives no samples until it has caught up.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a server's clock and offset were at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSample {
    /// The instant was not before this, in ms since 1970.
    pub from_ms: i64,
    /// The instant was not after this, in ms since 1970.
    pub until_ms: i64,
    /// The last byte that the server had produced.
    pub offset: u64,
}

impl TimeSample {
    /// Whether this sample may follow `earlier`.
    pub const fn follows(&self, earlier: &Self) -> bool {
        self.offset >= earlier.offset
            && self.from_ms >= earlier.from_ms
            && self.until_ms >= earlier.until_ms
            && self.until_ms >= self.from_ms
    }

    /// Whether both can't be right: this one shows more bytes, and was certainly taken before `earlier`. Samples that two readers took of one
    /// stream need not follow each other.
    pub const fn contradicts(&self, earlier: &Self) -> bool {
        self.offset > earlier.offset && self.until_ms < earlier.from_ms
    }
}

/// Samples in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    samples: Vec<TimeSample>,
}

impl Timeline {
    /// Adds a sample; gives false, and leaves it out, if it contradicts the ones before.
    pub fn push(&mut self, sample: TimeSample) -> bool {
        let fits = sample.until_ms >= sample.from_ms
            && self.samples.last().is_none_or(|earlier| sample.follows(earlier));
        if fits {
            self.samples.push(sample);
        }
        fits
    }

    /// The samples.
    pub fn samples(&self) -> &[TimeSample] {
        &self.samples
    }

    /// The last sample of which it is certain that it was taken at or before that moment. All bytes up to its offset were
    /// produced by then.
    pub fn last_by(&self, moment_ms: i64) -> Option<&TimeSample> {
        let count = self.samples.partition_point(|sample| sample.until_ms <= moment_ms);
        self.samples.get(count.checked_sub(1)?)
    }

    /// The first sample of which it is certain that it was taken at or after that moment. No byte behind its offset was
    /// produced before.
    pub fn first_from(&self, moment_ms: i64) -> Option<&TimeSample> {
        self.samples.get(self.samples.partition_point(|sample| sample.from_ms < moment_ms))
    }

    /// Between which moments that byte was produced, as far as the samples tell: not before the first, not after the second.
    pub fn produced(&self, offset: u64) -> (Option<i64>, Option<i64>) {
        let count = self.samples.partition_point(|sample| sample.offset < offset);
        let before = count.checked_sub(1).and_then(|last| self.samples.get(last));
        (before.map(|sample| sample.from_ms), self.samples.get(count).map(|sample| sample.until_ms))
    }
}

/// In JSON: a row of three numbers for each sample, each the difference to the row before: `from_ms`, `until_ms` less `from_ms` (not
/// a difference), `offset`.
impl Serialize for Timeline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut before = TimeSample { from_ms: 0, until_ms: 0, offset: 0 };
        serializer.collect_seq(self.samples.iter().map(|sample| {
            let row = (
                sample.from_ms.saturating_sub(before.from_ms),
                sample.until_ms.saturating_sub(sample.from_ms),
                sample.offset.saturating_sub(before.offset),
            );
            before = *sample;
            row
        }))
    }
}

impl<'de> Deserialize<'de> for Timeline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let rows = Vec::<(i64, i64, u64)>::deserialize(deserializer)?;
        let (mut from_ms, mut offset) = (0_i64, 0_u64);
        let mut timeline = Self::default();
        for (step_ms, width_ms, bytes) in rows {
            let next = from_ms.checked_add(step_ms).and_then(|from_ms| {
                let until_ms = from_ms.checked_add(width_ms)?;
                Some(TimeSample { from_ms, until_ms, offset: offset.checked_add(bytes)? })
            });
            let sample = next.ok_or_else(|| D::Error::custom("a time sample is out of range"))?;
            if !timeline.push(sample) {
                return Err(D::Error::custom("time samples run backwards"));
            }
            (from_ms, offset) = (sample.from_ms, sample.offset);
        }
        Ok(timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timeline(rows: &[(i64, i64, u64)]) -> Timeline {
        let mut timeline = Timeline::default();
        for &(from_ms, until_ms, offset) in rows {
            assert!(timeline.push(TimeSample { from_ms, until_ms, offset }));
        }
        timeline
    }

    #[test]
    fn a_moment_is_enclosed_by_the_samples_around_it() {
        let timeline = timeline(&[(100, 102, 10), (200, 203, 10), (300, 301, 50)]);
        assert_eq!(timeline.last_by(101), None);
        assert_eq!(timeline.last_by(102).unwrap().offset, 10);
        assert_eq!(timeline.last_by(300).unwrap().from_ms, 200);
        assert_eq!(timeline.last_by(301).unwrap().offset, 50);
        assert_eq!(timeline.first_from(201).unwrap().offset, 50);
        assert_eq!(timeline.first_from(301), None);
    }

    #[test]
    fn samples_of_two_readers_contradict_each_other_only_if_both_can_not_be_right() {
        let sample = |(from_ms, until_ms, offset)| TimeSample { from_ms, until_ms, offset };
        let earlier = sample((100, 103, 50));
        for (later, contradicts) in [
            ((99, 99, 51), true),
            // Taken before, of a server that was silent meanwhile.
            ((60, 61, 50), false),
            ((98, 101, 51), false),
            ((104, 105, 60), false),
        ] {
            assert_eq!(sample(later).contradicts(&earlier), contradicts, "{later:?}");
        }
    }

    #[test]
    fn a_byte_was_produced_between_two_samples() {
        let timeline = timeline(&[(100, 102, 10), (200, 203, 10), (300, 301, 50)]);
        assert_eq!(timeline.produced(10), (None, Some(102)));
        assert_eq!(timeline.produced(11), (Some(200), Some(301)));
        assert_eq!(timeline.produced(51), (Some(300), None));
    }

    #[test]
    fn what_runs_backwards_is_left_out_or_refused() {
        let mut timeline = timeline(&[(100, 102, 10)]);
        assert!(!timeline.push(TimeSample { from_ms: 99, until_ms: 103, offset: 11 }));
        assert!(!timeline.push(TimeSample { from_ms: 110, until_ms: 111, offset: 9 }));
        assert_eq!(timeline.samples().len(), 1);
        assert!(serde_json::from_str::<Timeline>("[[100,2,10],[-5,9,1]]").is_err());
        assert!(serde_json::from_str::<Timeline>("[[100,-2,10]]").is_err());
    }

    proptest! {
        #[test]
        fn a_timeline_reads_as_it_was_written(rows in prop::collection::vec((0_i64..1 << 40, 0_i64..1000, 0_u64..1 << 50), 0..40)) {
            let mut timeline = Timeline::default();
            for (from_ms, width_ms, offset) in rows {
                timeline.push(TimeSample { from_ms, until_ms: from_ms + width_ms, offset });
            }
            let json = serde_json::to_vec(&timeline).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Timeline>(&json).unwrap(), timeline);
        }
    }
}
