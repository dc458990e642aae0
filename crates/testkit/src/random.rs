//! Randomness: a generator that a seed decides, for data, and seeds that differ from run to run, for names and ports.

use std::hash::{BuildHasher, RandomState};

/// `SplitMix64` (Steele, Lea and Flood 2014): small, fast, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for item `item` of what `seed` decides.
    pub(crate) fn for_item(seed: u64, item: u64) -> Self {
        let mut mixed = Self(seed ^ item.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        Self(mixed.next())
    }

    /// A generator that differs in every run.
    pub(crate) fn unpredictable() -> Self {
        Self(RandomState::new().hash_one("slotkeep"))
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero if `bound` is zero. The slight bias towards small numbers does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        (wide >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Forty hexadecimal digits.
    pub(crate) fn node_id(&mut self) -> String {
        let mut id = format!("{:016x}{:016x}{:016x}", self.next(), self.next(), self.next());
        id.truncate(40);
        id
    }
}
