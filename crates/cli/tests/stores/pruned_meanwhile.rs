//! A prune in the source deletes what a copy is copying: the copy says what is missing, and lists nothing that is not whole.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use serde_json::Value;
use slotkeep_format::{PrunedRecord, Unneeded};
use slotkeep_repo::{Location, Repository};
use slotkeep_testkit::deadline::{NotYet, wait_for};

use crate::bucket::{Bucket, text};
use crate::clock::{context, last, prune};
use crate::common::{Run, slotkeep};
use crate::harness::RUNTIME;
use crate::lived::{Lived, paths, restored, sound};

const LIMIT: Duration = Duration::from_secs(40);

/// Copies; while the copy waits for an object whose path contains `held`, something happens.
fn copy_while(source: &Bucket, target: &Path, held: &str, happens: impl FnOnce()) -> Run {
    source.store.hold(held);
    let mut copying = source.command();
    copying.args(["copy", "--json", "--repo", source.repo(), "--to", text(target)]);
    let copying = copying.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(LIMIT, "the copy to be held up", || match source.store.waiting() {
        0 => Err(NotYet::because("it is not there yet")),
        _ => Ok(()),
    })
    .unwrap();
    happens();
    source.store.release();
    Run::of(&copying.wait_with_output().unwrap())
}

/// What the target lists is what was copied, and each of it gives back what the first repository gives. Gives the ids.
#[track_caller]
fn lists_what_is_whole(target: &Path, report: &Value, lived: &Lived) -> Vec<String> {
    let list = slotkeep(&["list", "--json", "--repo", text(target)]).expect_code(0).json();
    let there = list["backups"].as_array().unwrap().iter();
    let there: Vec<String> = there.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect();
    for row in report["backups"].as_array().unwrap() {
        let listed = there.iter().any(|id| row["id"] == id.as_str());
        assert_eq!(listed, row["state"] == "copied", "{row}");
    }
    sound(target);
    for id in &there {
        assert_eq!(restored(target, id, 1), restored(&lived.repo(), id, 1), "{id}");
    }
    there
}

/// What is lost without a prune takes the backups with it that need it, though their manifests stay.
#[test]
fn a_segment_that_is_lost_meanwhile_takes_its_backups_with_it() {
    let lived = Lived::new();
    let source = Bucket::new(9);
    source.calm(&["copy", "--repo", text(&lived.repo()), "--to", source.repo()], 0);
    let lost = paths(&lived.repo()).into_iter().rfind(|path| path.contains("/log/")).unwrap();
    let target = source.path("target");
    let run = copy_while(&source, &target, "/log/", || {
        RUNTIME.block_on(source.objects(false).delete(&lost.as_str().into())).unwrap();
    });
    let report = run.expect_code(23).json();
    assert!(
        report["refused"].as_array().unwrap().iter().any(|one| one["path"] == lost.as_str()),
        "{report:#}"
    );
    let there = lists_what_is_whole(&target, &report, &lived);
    assert!(there.contains(&lived.ids[0]) && there.len() < lived.ids.len(), "{there:?}");
}

#[test]
fn a_copy_beside_a_prune_in_its_source_lists_only_what_is_whole() {
    let lived = Lived::new();
    let first = lived.ids.first().unwrap();
    // A prune that keeps the newest backup alone deletes the other base, its log, and four manifests.
    let base = format!("-{first}/rdb.zst");
    let manifest = format!("backups/{first}.json");
    for (number, held) in [base.as_str(), "/log/", &manifest, "history.json"].into_iter().enumerate() {
        let source = Bucket::new(number as u64);
        source.calm(&["copy", "--repo", text(&lived.repo()), "--to", source.repo()], 0);
        let target = source.path("target");
        let run = copy_while(&source, &target, held, || {
            let repository = source.open(false);
            prune(&repository, &last(1), 48);
            prune(&repository, &last(1), 73);
            assert_eq!(source.listed(), lived.ids[4..]);
        });
        // It may have begun to look only afterwards; else it says what is missing.
        assert!([0, 23].contains(&run.code), "{held}: {}{}", run.stdout, run.stderr);
        let report = run.json();
        let refused = report["refused"].as_array().unwrap();
        assert_eq!(run.code == 23, !refused.is_empty(), "{held}: {report:#}");
        if held.ends_with("rdb.zst") {
            assert!(
                refused.iter().any(|one| one["path"].as_str().unwrap().ends_with("rdb.zst")),
                "{report:#}"
            );
        }
        let there = lists_what_is_whole(&target, &report, &lived);
        assert!(there.contains(&lived.ids[4]), "{held}: {there:?}\n{report:#}");
        // The next one does without, and finds nothing wrong.
        source.calm(&["copy", "--repo", source.repo(), "--to", text(&target)], 0);
    }
}

#[test]
fn a_pin_that_comes_too_late_is_not_called_copied() {
    let lived = Lived::new();
    let source = Bucket::new(4);
    source.calm(&["copy", "--repo", text(&lived.repo()), "--to", source.repo()], 0);
    let target = source.fetched("target");
    let id = &lived.ids[0];
    source.calm(&["prune", "--pin", id, "--repo", source.repo()], 0);
    let manifest = format!("main/backups/{id}.json");
    let run = copy_while(&source, &target, "/pin/", || {
        RUNTIME.block_on(async {
            let there = Repository::open(&Location::Folder(target.clone())).await.unwrap();
            let (run, now) = ("20261126T000000.000Z-aaaa", context(0).clock.now());
            let mut record = PrunedRecord::new(run.to_owned(), "main".to_owned(), now);
            record.going.insert(manifest.clone(), Unneeded::NotKept);
            there.put_pruned(&record).await.unwrap();
            there.delete(&manifest).await.unwrap();
        });
    });
    let report = run.expect_code(20).json();
    assert_eq!(report["backups"][0]["state"], "refused", "{report:#}");
    assert_eq!(report["refused"][0]["path"], manifest.as_str(), "{report:#}");
    // The next one knows.
    let again = source.calm(&["copy", "--json", "--repo", source.repo(), "--to", text(&target)], 0).json();
    assert_eq!(again["backups"][0]["state"], "given_up", "{again:#}");
}
