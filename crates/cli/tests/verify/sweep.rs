//! A thousand seeded damages of every kind in every kind of object: none is missed, each is found by its name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use slotkeep_format::{Depth, Severity, VerifyRecord};
use slotkeep_jobs::verify::VerifyOptions;

use crate::harness::{Bench, objects, options};

const DAMAGES: u64 = 1000;
const SEED: u64 = 20_261_125;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// What an object is, so that each kind gets its share.
fn kind(path: &str) -> &'static str {
    match path {
        "slotkeep.json" => "repository",
        _ if path.contains("/backups/") => "manifest",
        _ if path.contains("/topology/") => "topology",
        _ if path.contains("/log/") => "segment",
        _ if path.ends_with("history.json") => "history",
        _ if path.ends_with("rdb.zst") => "rdb",
        _ if path.ends_with("index.zst") => "index",
        _ => "digest",
    }
}

/// Puts files back as they were, with their times.
struct Restored<'a> {
    repo: &'a Path,
    changed: Vec<(String, Vec<u8>, SystemTime)>,
    records: Vec<String>,
}

impl<'a> Restored<'a> {
    fn new(repo: &'a Path) -> Self {
        Self { repo, changed: Vec::new(), records: records(repo) }
    }

    fn write(&mut self, path: &str, bytes: Option<&[u8]>) {
        let file = self.repo.join(path);
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        self.changed.push((path.to_owned(), fs::read(&file).unwrap(), modified));
        match bytes {
            Some(bytes) => fs::write(&file, bytes).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        for (path, bytes, modified) in &self.changed {
            let file = self.repo.join(path);
            fs::write(&file, bytes).unwrap();
            fs::File::options().write(true).open(&file).unwrap().set_modified(*modified).unwrap();
        }
        for new in records(self.repo).iter().filter(|record| !self.records.contains(record)) {
            fs::remove_file(self.repo.join(new)).unwrap();
        }
    }
}

fn records(repo: &Path) -> Vec<String> {
    crate::common::files(repo)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.contains("/verify/"))
        .collect()
}

/// Whether the record names the object as it should.
fn names(record: &VerifyRecord, path: &str, damage: &str) -> bool {
    let lost_manifest = kind(path) == "manifest" && damage == "missing";
    let id = path.rsplit('/').next().unwrap().trim_end_matches(".json");
    record.findings.iter().any(|finding| {
        let named = finding.object == path || (lost_manifest && finding.object.ends_with(id));
        // What may have been deleted on purpose is a note.
        let mild = damage == "missing" && ["manifest", "topology"].contains(&kind(path));
        // A bit of the seal's own line says nothing of the rest.
        let mild = mild || kind(path) == "repository";
        named && (mild || finding.severity == Severity::Problem)
    })
}

#[test]
fn a_thousand_damages_are_found_by_their_names() {
    let bench = Bench::new();
    let repo = bench.repo();
    let whole = objects(&repo);
    let mut kinds: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for path in whole.keys() {
        kinds.entry(kind(path)).or_default().push(path);
    }
    assert_eq!(kinds.len(), 8, "{kinds:?}");
    let sorts: Vec<&str> = kinds.keys().copied().collect();
    let mut dice = Dice(SEED);
    let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for number in 0..DAMAGES {
        let sort = sorts[dice.below(sorts.len())];
        let path = kinds[sort][dice.below(kinds[sort].len())];
        let bytes = &whole[path];
        let mut restored = Restored::new(&repo);
        let mut damaged = vec![path.as_str()];
        let damage = ["bit flip", "truncated", "missing", "swapped"][dice.below(4)];
        match damage {
            "bit flip" => {
                let mut flipped = bytes.clone();
                let bit = dice.below(bytes.len() * 8);
                flipped[bit / 8] ^= 1 << (bit % 8);
                restored.write(path, Some(&flipped));
            }
            "truncated" => restored.write(path, Some(&bytes[..dice.below(bytes.len())])),
            "missing" => restored.write(path, None),
            _ => {
                // With one of its kind, which is the hardest to tell; a manifest becomes a stale one.
                let others: Vec<&String> =
                    kinds[sort].iter().copied().filter(|other| whole[*other] != *bytes).collect();
                let Some(other) = others.get(dice.below(others.len().max(1))) else { continue };
                restored.write(path, Some(&whole[*other]));
                restored.write(other, Some(bytes));
                damaged.push(other);
            }
        }
        *seen.entry((sort, damage)).or_default() += 1;
        let asked = VerifyOptions { again: dice.below(2) == 0, ..options(Depth::Structure) };
        match bench.verify(&asked) {
            Ok(record) => {
                for path in damaged {
                    let found = names(&record, path, damage);
                    assert!(found, "damage {number}: {damage} of {path}: {:#?}", record.findings);
                }
            }
            Err(words) => assert!(sort == "repository", "damage {number}: {damage} of {path}: {words}"),
        }
    }
    // One repository file can't be swapped.
    assert_eq!(seen.len(), 8 * 4 - 1, "{seen:?}");
    let record = bench.again(Depth::Structure);
    assert_eq!(record.findings, [], "the repository is as it was");
}
