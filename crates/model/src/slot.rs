//! Hash slots, sets of them, and the slot of a key.
//!
//! Invariants: a [`Slot`] is below [`Slot::COUNT`]; the ranges of a [`SlotSet`] ascend, do not overlap and do not touch.

use core::fmt;
use core::str::FromStr;

/// One of the 16384 hash slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// How many slots a cluster has.
    pub const COUNT: u16 = 16384;

    /// The slot of that number, if there is one.
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The slot's number, below [`Slot::COUNT`].
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The slot's number as an index into a table of [`Slot::COUNT`] rows.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Every slot in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The part of a key that decides its slot: what stands between the first `{` and the next `}`, if that is not empty,
/// else the whole key (`keyHashSlot` in Redis `src/cluster.h`).
pub fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else { return key };
    let Some(tail) = key.get(open + 1..) else { return key };
    match tail.iter().position(|&byte| byte == b'}') {
        None | Some(0) => key,
        Some(close) => tail.get(..close).unwrap_or(key),
    }
}

/// The slot of a key: CRC16 (XMODEM) of its hashed part, modulo 16384.
pub fn key_slot(key: &[u8]) -> Slot {
    Slot(crc16(hashed_part(key)) % Slot::COUNT)
}

const CRC16_TABLE: [u16; 256] = crc16_table();

const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "byte is below 256; `TryFrom` is not const")]
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "byte is below 256; `get_mut` is not const")]
        {
            table[byte] = crc;
        }
        byte += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, &byte| {
        let [high, low] = crc.to_be_bytes();
        let row = CRC16_TABLE.get(usize::from(high ^ byte)).copied().unwrap_or(0);
        (u16::from(low) << 8) ^ row
    })
}

/// Slots from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRange {
    first: Slot,
    last: Slot,
}

impl SlotRange {
    /// The range from `first` to `last`, both included; `None` if it would be empty.
    pub fn new(first: Slot, last: Slot) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The first slot of the range.
    pub const fn first(self) -> Slot {
        self.first
    }

    /// The last slot of the range, included.
    pub const fn last(self) -> Slot {
        self.last
    }

    /// How many slots the range holds, at least one.
    pub fn len(self) -> usize {
        self.last.index() - self.first.index() + 1
    }

    /// Always false: a range holds at least one slot.
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A set of slots, kept as ascending ranges. Its text form is `0-5460,5462,10923-16383`; an empty set is the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotSet {
    ranges: Vec<SlotRange>,
}

impl SlotSet {
    /// Every slot.
    pub fn full() -> Self {
        Self { ranges: vec![SlotRange { first: Slot(0), last: Slot(Slot::COUNT - 1) }] }
    }

    /// The ranges, ascending, neither overlapping nor touching.
    pub fn ranges(&self) -> &[SlotRange] {
        &self.ranges
    }

    /// The slots, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.ranges.iter().flat_map(|range| (range.first.0..=range.last.0).map(Slot))
    }

    /// How many slots the set holds.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|range| range.len()).sum()
    }

    /// Whether the set holds no slot.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the set holds that slot.
    pub fn contains(&self, slot: Slot) -> bool {
        self.ranges.iter().any(|range| range.first <= slot && slot <= range.last)
    }

    /// The slots that are in neither set's place: those of the whole cluster that this set lacks.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len().saturating_add(1));
        let mut next = 0;
        for range in &self.ranges {
            if next < range.first.0 {
                ranges.push(SlotRange { first: Slot(next), last: Slot(range.first.0 - 1) });
            }
            next = range.last.0 + 1;
        }
        if next < Slot::COUNT {
            ranges.push(SlotRange { first: Slot(next), last: Slot(Slot::COUNT - 1) });
        }
        Self { ranges }
    }

    /// The slots that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut ranges = Vec::new();
        while let (Some(one), Some(two)) = (ours.peek(), theirs.peek()) {
            ranges.extend(SlotRange::new(one.first.max(two.first), one.last.min(two.last)));
            if one.last < two.last {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self { ranges }
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        slots.into_iter().map(|slot| SlotRange { first: slot, last: slot }).collect()
    }
}

impl FromIterator<SlotRange> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotRange>>(ranges: I) -> Self {
        let mut sorted: Vec<SlotRange> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<SlotRange> = Vec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(before) if range.first.0 <= before.last.0 + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self { ranges: merged }
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.ranges.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

/// Text that is not a slot, a range of slots or a list of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSyntaxError {
    /// The part of the text that could not be read.
    pub part: String,
}

impl fmt::Display for SlotSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a slot (0 to 16383) or a range of slots (0-5460)", self.part)
    }
}

impl core::error::Error for SlotSyntaxError {}

impl FromStr for SlotSet {
    type Err = SlotSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let slot = |digits: &str| digits.parse().ok().and_then(Slot::new);
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                slot(first)
                    .zip(slot(last))
                    .and_then(|(first, last)| SlotRange::new(first, last))
                    .ok_or_else(|| SlotSyntaxError { part: part.to_owned() })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_keys_agree_with_the_servers() {
        // CLUSTER KEYSLOT on Redis 7.0 and Valkey 9.1.
        for (key, slot) in [("a", 15495), ("b", 3300), ("f", 3168), ("123456789", 12739), ("", 0)] {
            assert_eq!(key_slot(key.as_bytes()).number(), slot, "{key}");
        }
    }

    #[test]
    fn hash_tags_follow_the_first_brace_pair() {
        for (key, part) in [
            ("{user}.name", "user"),
            ("{}x", "{}x"),
            ("{a}{b}", "a"),
            ("x{{a}y", "{a"),
            ("a}b{c", "a}b{c"),
            ("{}{a}", "{}{a}"),
        ] {
            assert_eq!(hashed_part(key.as_bytes()), part.as_bytes(), "{key}");
        }
    }

    #[test]
    fn sets_are_cut_and_turned_about_as_their_slots_are() {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u16::try_from((state >> 33) % u64::from(Slot::COUNT)).unwrap()
        };
        let mut sets =
            vec![SlotSet::default(), SlotSet::full(), "0".parse().unwrap(), "16383".parse().unwrap()];
        for ranges in [1, 2, 3, 20, 200] {
            let mut range = || {
                let (one, other) = (Slot(random()), Slot(random()));
                SlotRange::new(
                    one.min(other),
                    one.max(other).min(Slot(one.0.min(other.0).saturating_add(300))),
                )
            };
            sets.push((0..ranges).filter_map(|_| range()).collect());
        }
        for set in &sets {
            let lacking: SlotSet = Slot::all().filter(|slot| !set.contains(*slot)).collect();
            assert_eq!(set.complement(), lacking, "{set}");
            for other in &sets {
                let both: SlotSet = set.iter().filter(|slot| other.contains(*slot)).collect();
                assert_eq!(set.intersection(other), both, "{set} and {other}");
            }
        }
    }

    #[test]
    fn a_slot_set_reads_what_it_writes_and_merges_neighbours() {
        let set: SlotSet = "5-7,0-4,9,8,16383".parse().unwrap();
        assert_eq!(set.to_string(), "0-9,16383");
        assert_eq!(set.len(), 11);
        assert_eq!(set.to_string().parse::<SlotSet>().unwrap(), set);
        assert_eq!(set.complement().to_string(), "10-16382");
        assert!("16384".parse::<SlotSet>().is_err());
        assert!("7-5".parse::<SlotSet>().is_err());
    }
}
