//! Backups with cuts in histories of which there is no byte: all that is left of those is where they come from.

use slotkeep_format::lineage::HISTORY_VERSION;
use slotkeep_format::manifest::ShardCut;
use slotkeep_format::{HistoryRecord, Manifest, Parent, RetentionPolicy};
use slotkeep_model::ReplId;

use crate::clock::{last, prune};
use crate::common::slotkeep;
use crate::harness::{Bench, RUNTIME};
use crate::lived::{paths, restored};

/// Two failovers just behind the bases of a backup, or so far before them, and the backup's cuts behind both, before another byte. Gives the backup's
/// id, and the histories.
fn cut_behind_failovers(bench: &Bench, backup: usize, bytes_before: u64) -> (String, Vec<ReplId>) {
    let id = bench.backup_ids().remove(backup);
    let file = bench.object(&format!("main/backups/{id}.json"));
    let mut manifest = Manifest::parse(&std::fs::read(&file).unwrap()).unwrap();
    let repository = bench.open();
    let mut passed = Vec::new();
    for (number, shard) in manifest.shards.iter_mut().enumerate() {
        let fork = shard.offset - bytes_before;
        let mut before = shard.history.clone();
        for letter in ["b", "c"] {
            let history: ReplId = format!("{number}{letter}").repeat(20).parse().unwrap();
            let record = HistoryRecord {
                format_version: HISTORY_VERSION,
                history: history.clone(),
                parent: Some(Parent { history: before, fork }),
                slots: shard.slots.clone(),
                source: shard.source.clone(),
                first_seen_at: jiff::Timestamp::UNIX_EPOCH,
            };
            RUNTIME.block_on(repository.put_history("main", &record)).unwrap();
            passed.push(history.clone());
            before = history;
        }
        shard.cut = Some(ShardCut { history: before, offset: shard.offset });
    }
    std::fs::write(file, manifest.render().unwrap()).unwrap();
    (id, passed)
}

fn has_file(bench: &Bench, history: &ReplId) -> bool {
    bench.object(&format!("main/history/{history}/history.json")).exists()
}

#[test]
fn a_pinned_backup_keeps_the_histories_that_lead_to_its_cuts() {
    let bench = Bench::new();
    let (id, passed) = cut_behind_failovers(&bench, 0, 0);
    let before = restored(&bench.repo(), &id, 3);
    let repository = bench.open();
    let pinned = RetentionPolicy { pinned: [id.clone()].into(), ..last(1) };
    prune(&repository, &pinned, 48);
    prune(&repository, &pinned, 80);
    assert_eq!(bench.backup_ids().len(), 2);
    assert!(passed.iter().all(|history| has_file(&bench, history)));
    assert_eq!(restored(&bench.repo(), &id, 3), before);
    // They go with it.
    prune(&repository, &last(1), 90);
    prune(&repository, &last(1), 120);
    assert_eq!(bench.backup_ids().len(), 1);
    assert!(!passed.iter().any(|history| has_file(&bench, history)));
}

#[test]
fn a_copy_of_one_backup_has_the_histories_that_lead_to_its_cuts() {
    let bench = Bench::new();
    let (id, passed) = cut_behind_failovers(&bench, 0, 0);
    let target = bench.path("copy");
    let to = target.to_str().unwrap();
    slotkeep(&["copy", "--quiet", "--repo", &bench.text(), "--to", to, "--backup", &id]).expect_code(0);
    let copied = paths(&target);
    let has = |history: &ReplId| copied.contains(&format!("main/history/{history}/history.json"));
    assert!(passed.iter().all(has), "{copied:?}");
    assert_eq!(restored(&target, &id, 3), restored(&bench.repo(), &id, 3));
}

/// The line had left the history of the base before the base was made.
#[test]
fn a_backup_whose_cut_does_not_follow_its_base_is_not_copied_as_a_good_one() {
    let bench = Bench::new();
    let (id, _) = cut_behind_failovers(&bench, 1, 1);
    let nodes = "127.0.0.1:17001,127.0.0.1:17002,127.0.0.1:17003";
    let place = ["--to-dir", "nowhere", "--no-replicas", "--nodes", nodes];
    let refused = slotkeep(&[&["restore", "--repo", &bench.text(), "--backup", &id][..], &place].concat());
    assert!(refused.stderr.contains("does not follow their base"), "{}", refused.stderr);
    let verified = slotkeep(&["verify", "--repo", &bench.text(), "--depth", "structure"]);
    assert!(verified.stdout.contains("before its base at offset"), "{}{}", verified.stdout, verified.stderr);
    let target = bench.path("copy");
    let to = target.to_str().unwrap();
    let run = slotkeep(&["copy", "--json", "--repo", &bench.text(), "--to", to]).expect_code(23);
    let report = run.json();
    let states: Vec<&str> =
        report["backups"].as_array().unwrap().iter().filter_map(|backup| backup["state"].as_str()).collect();
    assert_eq!(states, ["copied", "refused", "copied"], "{report:#}");
}
