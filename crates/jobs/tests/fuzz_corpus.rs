//! What fuzzers begin with and what they found, through the fuzzers' own functions, with a few damages to each input. `scripts/fuzz.sh` fuzzes.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::pedantic,
    clippy::expect_used,
    clippy::panic,
    reason = "shared with the fuzzers, which are not of this workspace"
)]

#[path = "../../../fuzz/src/seeds.rs"]
mod seeds;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

/// The input, cut and with a byte changed, at a few places.
fn damaged(input: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for part in 1..=5 {
        let at = input.len() * part / 6;
        found.push(input.get(..at).unwrap_or_default().to_vec());
        for change in [0xff, 0x01, 0x80] {
            let mut changed = input.to_vec();
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= change;
            }
            found.push(changed);
        }
    }
    found
}

#[test]
fn every_seed_and_every_finding_keeps_the_promises() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, target) in targets::TARGETS {
        let seeds = seeds::seeds(name, &repository);
        assert!(!seeds.is_empty(), "{name} begins with nothing");
        for seed in &seeds {
            target(seed);
            damaged(seed).iter().for_each(|input| target(input));
        }
        for path in seeds::folder_files(&repository.join("fuzz/corpus").join(name)) {
            target(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
        target(&[]);
    }
}
