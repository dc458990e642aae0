//! RDBs in memory: read, digested, rewritten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use slotkeep_rdb::{Digester, Error, Event, KeyDigest, Level, Modules, Parser, Policy, Rewriter, ValueType};

/// Where the fixtures are.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// What is expected of a key's value, in any fixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub elements: u64,
    pub value: u128,
}

/// The expectations: a line a key, with the number of elements and the digest of the value.
pub fn expected() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(fixtures().join("expected.txt")).unwrap();
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let key = fields.next()?.to_owned();
        let elements = fields.next()?.parse().ok()?;
        let value = u128::from_str_radix(fields.next()?, 16).ok()?;
        Some((key, Expected { elements, value }))
    };
    text.lines().map(|text| line(text).unwrap()).collect()
}

/// The digest and type of each key.
pub fn digests(rdb: &[u8]) -> Result<BTreeMap<String, (ValueType, KeyDigest)>, Error> {
    let (mut parser, mut digester) = (Parser::new(Level::Element), Digester::new());
    let (mut input, mut found, mut value_type) = (rdb, BTreeMap::new(), ValueType::String);
    while let Some(event) = parser.next(&mut input)? {
        if let Event::Key(header) = &event {
            value_type = header.value_type;
        }
        if let Some(digest) = digester.event(&event) {
            let key = String::from_utf8_lossy(digester.key()).into_owned();
            found.insert(key, (value_type, digest));
        }
    }
    parser.finish()?;
    Ok(found)
}

/// The RDB rewritten.
pub fn rewrite(rdb: &[u8], policy: Policy<'_>) -> Result<Vec<u8>, Error> {
    let (mut rewriter, mut input, mut out) = (Rewriter::new(policy), rdb, Vec::new());
    while !input.is_empty() {
        rewriter.feed(&mut input, &mut out)?;
    }
    rewriter.finish(&mut out)?;
    Ok(out)
}

/// A policy that keeps all it can.
pub fn keep_all(target: slotkeep_model::RdbVersion) -> Policy<'static> {
    Policy { modules: Modules::All, ..Policy::new(target) }
}

/// Every fixture: its name and bytes.
pub fn all_fixtures() -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = std::fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rdb"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}
