//! Which prefixes keys have, and how much is under each, in bounded memory.
//!
//! A key is cut after each separator, at most [`DEPTH`] times; every start that results is a prefix. A part between separators that looks
//! like an id (a number, a UUID, 8 or more hexadecimal digits) counts as `*`; a key with such a part counts whole, too. So
//! `user:7:name` is under `user:`, `user:*:` and `user:*:name`.
//!
//! The prefixes form a tree that holds at most twice [`KEPT`] of them: when it is full, all but those with the most bytes are folded into
//! what they begin with. A prefix that comes up again after it was folded begins anew at nothing, so what is counted for it may be too little:
//! it then carries by how much at most, the largest amount ever folded (as in lossy counting: Manku and Motwani, "Approximate frequency
//! counts over data streams", 2002). Amounts of prefixes that never were folded are exact, and as long as there are fewer prefixes
//! than fit, all are.
//!
//! Invariant: where a prefix is, all its own beginnings are, and each has at least as many bytes; so whatever cuts by bytes leaves
//! a tree.

use std::collections::HashMap;

use serde::Serialize;

use super::report::Amount;
use crate::keys::KeyFacts;

/// How many prefixes are kept when the tree was full.
const KEPT: usize = 16_384;
/// How often a key is cut at most.
const DEPTH: usize = 4;
/// How far into a key separators are looked for, in bytes.
const LOOKED_AT_BYTES: usize = 256;
/// What separates the parts of a key unless something else is given.
const USUAL: &[u8] = b":/.|-_#";
/// A prefix with less than a part in so many of all bytes is not named.
const LEAST_SHARE: u64 = 1000;

/// What separates the parts of a key.
#[derive(Clone, Debug, Default)]
pub enum Separators {
    /// Any of `:` `/` `.` `|` `-` `_` `#`.
    #[default]
    Usual,
    /// This text.
    Text(Vec<u8>),
}

impl Separators {
    /// Where the first separator begins and how long it is.
    fn find(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        match self {
            Self::Usual => Some((bytes.iter().position(|byte| USUAL.contains(byte))?, 1)),
            Self::Text(text) => {
                let found = bytes.windows(text.len().max(1)).position(|window| window == text)?;
                Some((found, text.len()))
            }
        }
    }

    /// The lengths of the beginnings that end with a separator, ascending.
    fn cuts<'a>(&'a self, pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let mut from = 0;
        std::iter::from_fn(move || {
            let (start, length) = self.find(pattern.get(from..)?)?;
            from += start + length;
            Some(from)
        })
        .take(DEPTH)
    }

    /// Puts `*` in place of the parts of a key that look like ids. Whether there were any, and the key was seen to its end.
    fn generalise(&self, key: &[u8], pattern: &mut Vec<u8>) -> bool {
        pattern.clear();
        let mut rest = key.get(..LOOKED_AT_BYTES).unwrap_or(key);
        let mut found = false;
        for _ in 0..=DEPTH {
            let (part, separator) = match (uuid(rest), self.find(rest)) {
                (Some([]), _) => (rest.len(), 0),
                (Some(after), _) if self.find(after).is_some_and(|(start, _)| start == 0) => {
                    (rest.len() - after.len(), self.find(after).map_or(0, |(_, length)| length))
                }
                (_, Some(part)) => part,
                (_, None) => (rest.len(), 0),
            };
            let id = looks_like_id(rest.get(..part).unwrap_or_default());
            found |= id;
            let kept = if id { part } else { 0 };
            if id {
                pattern.push(b'*');
            }
            pattern.extend_from_slice(rest.get(kept..part + separator).unwrap_or_default());
            rest = rest.get(part + separator..).unwrap_or_default();
            if separator == 0 {
                return found && key.len() <= LOOKED_AT_BYTES;
            }
        }
        false
    }
}

/// Whether a part of a key is a number, a UUID, or 8 or more hexadecimal digits.
fn looks_like_id(part: &[u8]) -> bool {
    let hexadecimal = || part.len() >= 8 && part.iter().all(u8::is_ascii_hexdigit);
    let has_digit = || part.iter().any(u8::is_ascii_digit);
    let number = !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    number || hexadecimal() && has_digit() || uuid(part).is_some_and(<[u8]>::is_empty)
}

/// What follows a UUID at the start.
fn uuid(bytes: &[u8]) -> Option<&[u8]> {
    let (start, rest) = bytes.split_at_checked(36)?;
    let fits = |(place, byte): (usize, &u8)| match place {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    start.iter().enumerate().all(fits).then_some(rest)
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    amount: Amount,
    /// By how much the amount may be too small.
    missing: Amount,
}

/// The prefixes of the keys that passed.
#[derive(Clone, Debug)]
pub(super) struct Prefixes {
    separators: Separators,
    nodes: HashMap<Box<[u8]>, Node>,
    /// The largest amounts ever folded.
    folded: Amount,
    kept: usize,
    pattern: Vec<u8>,
}

impl Prefixes {
    pub(super) fn new(separators: &Separators) -> Self {
        Self::keeping(separators, KEPT)
    }

    fn keeping(separators: &Separators, kept: usize) -> Self {
        Self {
            separators: separators.clone(),
            nodes: HashMap::new(),
            folded: Amount::default(),
            kept,
            pattern: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, facts: &KeyFacts) {
        self.count(&facts.key, Amount { keys: 1, bytes: facts.bytes, elements: facts.elements });
    }

    fn count(&mut self, key: &[u8], amount: Amount) {
        let Self { separators, nodes, folded, pattern, .. } = self;
        let whole = separators.generalise(key, pattern).then_some(pattern.len());
        for cut in separators.cuts(pattern).chain(whole) {
            let prefix = pattern.get(..cut).unwrap_or_default();
            match nodes.get_mut(prefix) {
                Some(node) => node.amount.add(amount),
                None => {
                    nodes.insert(prefix.into(), Node { amount, missing: *folded });
                }
            }
        }
        if self.nodes.len() >= self.kept.saturating_mul(2) {
            self.fold();
        }
    }

    /// Folds all but the prefixes with the most bytes into what they begin with.
    fn fold(&mut self) {
        let mut bytes: Vec<u64> = self.nodes.values().map(|node| node.amount.bytes).collect();
        let place = bytes.len().saturating_sub(self.kept.saturating_add(1));
        if bytes.len() <= self.kept {
            return;
        }
        let (_, &mut most, _) = bytes.select_nth_unstable(place);
        let folded = &mut self.folded;
        self.nodes.retain(|_, node| {
            let stays = node.amount.bytes > most;
            if !stays {
                let mut whole = node.amount;
                whole.add(node.missing);
                folded.raise(whole);
            }
            stays
        });
    }

    pub(super) fn merge(&mut self, mut other: Self) {
        let (mine, others) = (self.folded, other.folded);
        for (prefix, node) in &mut self.nodes {
            match other.nodes.remove(prefix) {
                Some(more) => {
                    node.amount.add(more.amount);
                    node.missing.add(more.missing);
                }
                None => node.missing.add(others),
            }
        }
        for (prefix, mut node) in other.nodes {
            node.missing.add(mine);
            self.nodes.insert(prefix, node);
        }
        self.folded.add(others);
        self.fold();
    }

    /// The `most` prefixes with the most bytes, as a tree. A prefix that holds nothing but one longer prefix is left out for that one.
    pub(super) fn report(&self, total: Amount, most: usize) -> PrefixReport {
        let mut children: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
        for prefix in self.nodes.keys() {
            children.entry(self.parent(prefix)).or_default().push(prefix);
        }
        let amount = |prefix: &[u8]| self.nodes.get(prefix).map(|node| node.amount).unwrap_or_default();
        let mut chosen: Vec<&[u8]> = self
            .nodes
            .keys()
            .map(|prefix| &**prefix)
            .filter(|prefix| {
                let only_child = children.get(prefix).is_some_and(|longer| {
                    longer.iter().any(|longer| amount(longer).keys == amount(prefix).keys)
                });
                !only_child && amount(prefix).bytes >= total.bytes / LEAST_SHARE && amount(prefix).keys > 1
            })
            .collect();
        chosen.sort_unstable_by(|one, other| {
            (amount(other).bytes, one.len(), one).cmp(&(amount(one).bytes, other.len(), other))
        });
        chosen.truncate(most);
        self.tree(&chosen, total)
    }

    fn parent<'a>(&self, prefix: &'a [u8]) -> &'a [u8] {
        let before = self.separators.cuts(prefix).take_while(|cut| *cut < prefix.len()).last();
        prefix.get(..before.unwrap_or(0)).unwrap_or_default()
    }

    /// Rows in the order of a tree: each prefix before those that begin with it, the bigger first.
    fn tree(&self, chosen: &[&[u8]], total: Amount) -> PrefixReport {
        let ancestor = |prefix: &[u8]| {
            let cuts: Vec<usize> = self.separators.cuts(prefix).filter(|cut| *cut < prefix.len()).collect();
            let above = cuts.into_iter().rev().filter_map(|cut| prefix.get(..cut));
            above.into_iter().find(|above| chosen.contains(above)).map(<[u8]>::to_vec)
        };
        let mut below: HashMap<Option<Vec<u8>>, Vec<&[u8]>> = HashMap::new();
        for prefix in chosen.iter().rev() {
            below.entry(ancestor(prefix)).or_default().push(prefix);
        }
        let mut rows = Vec::new();
        let mut others = total;
        let first = below.remove(&None).unwrap_or_default();
        let mut waiting: Vec<(&[u8], usize)> = first.into_iter().map(|prefix| (prefix, 0)).collect();
        while let Some((prefix, level)) = waiting.pop() {
            let node = self.nodes.get(prefix).copied().unwrap_or_default();
            if level == 0 {
                others.subtract(node.amount);
            }
            rows.push(PrefixRow {
                prefix: prefix.to_vec(),
                level,
                amount: node.amount,
                missing_keys: node.missing.keys,
                missing_bytes: node.missing.bytes,
            });
            let next = below.remove(&Some(prefix.to_vec())).unwrap_or_default();
            waiting.extend(next.into_iter().map(|one| (one, level + 1)));
        }
        PrefixReport { exact: self.folded.keys == 0, rows, others }
    }
}

/// How much is under which prefix.
#[derive(Clone, Debug, Serialize)]
pub struct PrefixReport {
    /// Whether no prefix was ever folded: then all amounts are exact.
    pub exact: bool,
    /// The prefixes, as a tree: each before those that begin with it.
    pub rows: Vec<PrefixRow>,
    /// What is under none of them.
    pub others: Amount,
}

/// How much is under one prefix, longer prefixes included.
#[derive(Clone, Debug, Serialize)]
pub struct PrefixRow {
    /// The prefix.
    #[serde(flatten, serialize_with = "prefix_text")]
    pub prefix: Vec<u8>,
    /// How many prefixes of this table it begins with.
    pub level: usize,
    /// What was counted.
    #[serde(flatten)]
    pub amount: Amount,
    /// How many keys more there may be at most.
    pub missing_keys: u64,
    /// How many bytes more there may be at most.
    pub missing_bytes: u64,
}

fn prefix_text<S: serde::Serializer>(prefix: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine;
    use serde::ser::SerializeMap;
    let mut map = serializer.serialize_map(Some(1))?;
    match std::str::from_utf8(prefix) {
        Ok(text) => map.serialize_entry("prefix", text)?,
        Err(_) => {
            let text = base64::engine::general_purpose::STANDARD.encode(prefix);
            map.serialize_entry("prefix_base64", &text)?;
        }
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: u64) -> Amount {
        Amount { keys: 1, bytes, elements: 1 }
    }

    fn shown(report: &PrefixReport) -> Vec<(String, usize, u64, u64)> {
        let row = |row: &PrefixRow| {
            (String::from_utf8_lossy(&row.prefix).into_owned(), row.level, row.amount.keys, row.amount.bytes)
        };
        report.rows.iter().map(row).collect()
    }

    #[test]
    fn prefixes_are_a_tree_and_those_with_one_child_are_left_out_for_it() {
        let mut prefixes = Prefixes::new(&Separators::Usual);
        let mut total = Amount::default();
        for number in 0..10 {
            for key in [
                format!("user:{number}:name"),
                format!("user:{number}:mail"),
                format!("app:cache:page/{number}"),
                format!("n{number}"),
            ] {
                let amount = one(if key.starts_with('u') { 30 } else { 20 });
                prefixes.count(key.as_bytes(), amount);
                total.add(amount);
            }
        }
        for key in ["app:cache:style/a", "app:cache:style/b"] {
            prefixes.count(key.as_bytes(), one(7));
            total.add(one(7));
        }
        let report = prefixes.report(total, 20);
        let row = |prefix: &str, level, keys, bytes| (prefix.to_owned(), level, keys, bytes);
        assert_eq!(
            shown(&report),
            [
                row("user:*:", 0, 20, 600),
                row("user:*:mail", 1, 10, 300),
                row("user:*:name", 1, 10, 300),
                row("app:cache:", 0, 12, 214),
                row("app:cache:page/*", 1, 10, 200),
                row("app:cache:style/", 1, 2, 14),
            ]
        );
        assert!(report.exact);
        assert_eq!((report.others.keys, report.others.bytes), (10, 200));
    }

    #[test]
    fn parts_that_look_like_ids_are_one() {
        let pattern = |key: &str| {
            let mut pattern = Vec::new();
            let whole = Separators::Usual.generalise(key.as_bytes(), &mut pattern);
            (String::from_utf8(pattern).unwrap(), whole)
        };
        for (key, expected, whole) in [
            ("user:7:name", "user:*:name", true),
            ("user:x7:name", "user:x7:name", false),
            ("session:00ff12ab34", "session:*", true),
            ("session:deadbeef", "session:deadbeef", false),
            ("job/550e8400-e29b-41d4-a716-446655440000/state", "job/*/state", true),
            ("job:550e8400-e29b-41d4-a716-446655440000", "job:*", true),
            ("550e8400-e29b-41d4-a716-446655440000x", "*-e29b-41d4-a716-446655440000x", true),
            ("a:1:2:3:4", "a:*:*:*:*", true),
            ("a:1:2:3:4:5:6", "a:*:*:*:*:", false),
            ("7", "*", true),
            ("", "", false),
            ("::", "::", false),
        ] {
            assert_eq!(pattern(key), (expected.to_owned(), whole), "{key}");
        }
    }

    #[test]
    fn a_separator_of_ones_own_is_the_only_one() {
        let mut prefixes = Prefixes::new(&Separators::Text(b"::".to_vec()));
        for key in ["a:b::1", "a:b::2", "a:c"] {
            prefixes.count(key.as_bytes(), one(10));
        }
        assert_eq!(
            shown(&prefixes.report(Amount { keys: 3, bytes: 30, elements: 3 }, 9)),
            [("a:b::*".to_owned(), 0, 2, 20)]
        );
    }

    /// A number that does not look like one.
    fn letters(number: u64) -> String {
        number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'p')).collect()
    }

    /// The truth lies between what is counted and that with what may be missing.
    #[test]
    fn a_full_tree_keeps_the_heaviest_and_says_what_may_be_missing() {
        let mut truth: HashMap<Vec<u8>, Amount> = HashMap::new();
        let mut halves = [100, 100].map(|kept| Prefixes::keeping(&Separators::Usual, kept));
        let mut total = Amount::default();
        for number in 0_u64..20_000 {
            let key = match number % 4 {
                // Little at first, so that it is folded, and much later on.
                _ if number == 0 || number > 17_000 => "late:x".to_owned(),
                0 => format!("session:{}", letters(number % 7)),
                1 => format!("user:{}:x", letters(number / 8)),
                2 => format!("{}:{}", letters(number * 7 % 3001), letters(number)),
                _ => format!("cart:{}:{number}", letters(number % 3)),
            };
            let amount = one(20 + number % 5);
            total.add(amount);
            let prefixes = &mut halves[usize::from(number % 8 > 3)];
            prefixes.count(key.as_bytes(), amount);
            assert!(prefixes.nodes.len() < 200);
            let mut pattern = Vec::new();
            let whole = Separators::Usual.generalise(key.as_bytes(), &mut pattern).then_some(pattern.len());
            for cut in Separators::Usual.cuts(&pattern).chain(whole) {
                truth.entry(pattern[..cut].to_vec()).or_default().add(amount);
            }
        }
        let [mut whole, other] = halves;
        whole.merge(other);
        assert!(whole.nodes.len() <= 100 && whole.folded.keys > 0);
        for (prefix, node) in &whole.nodes {
            let truth = truth[&prefix.to_vec()];
            assert!(node.amount.keys <= truth.keys && truth.keys <= node.amount.keys + node.missing.keys);
            assert!(
                node.amount.bytes <= truth.bytes && truth.bytes <= node.amount.bytes + node.missing.bytes
            );
            assert!(whole.parent(prefix).is_empty() || whole.nodes.contains_key(whole.parent(prefix)));
        }
        let late = whole.nodes[&b"late:"[..]];
        assert!(late.amount.keys < truth[&b"late:".to_vec()].keys && late.missing.keys > 0);
        let report = whole.report(total, 6);
        let names: Vec<String> = shown(&report).into_iter().map(|row| row.0).collect();
        assert_eq!(names[0], "cart:");
        assert!(!report.exact);
        let exact = shown(&report).into_iter().find(|row| row.0 == "session:").map(|row| row.2);
        assert_eq!(exact, Some(truth[&b"session:".to_vec()].keys));
    }
}
