//! A prune in the source deletes what a copy is copying: the copy says what is missing, and lists nothing that is not whole.

use std::process::Stdio;
use std::time::Duration;

use slotkeep_testkit::deadline::{NotYet, wait_for};

use crate::bucket::{Bucket, text};
use crate::clock::{last, prune};
use crate::common::{Run, slotkeep};
use crate::lived::{Lived, restored, sound};

const LIMIT: Duration = Duration::from_secs(40);

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
        source.store.hold(held);
        let mut copying = source.command();
        copying.args(["copy", "--json", "--repo", source.repo(), "--to", text(&target)]);
        let copying = copying.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(LIMIT, "the copy to be held up", || match source.store.waiting() {
            0 => Err(NotYet::because("it is not there yet")),
            _ => Ok(()),
        })
        .unwrap();
        let repository = source.open(false);
        prune(&repository, &last(1), 48);
        prune(&repository, &last(1), 73);
        assert_eq!(source.listed(), lived.ids[4..]);
        source.store.release();
        let run = Run::of(&copying.wait_with_output().unwrap());

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
        let there = slotkeep(&["list", "--json", "--repo", text(&target)]).expect_code(0).json();
        let there = there["backups"].as_array().unwrap().iter();
        let there: Vec<&str> = there.map(|backup| backup["id"].as_str().unwrap()).collect();
        assert!(there.contains(&lived.ids[4].as_str()), "{held}: {there:?}\n{report:#}");
        for row in report["backups"].as_array().unwrap() {
            let listed = there.contains(&row["id"].as_str().unwrap());
            assert_eq!(listed, row["state"] == "copied", "{held}: {row}");
        }
        sound(&target);
        for id in there {
            assert_eq!(restored(&target, id, 1), restored(&lived.repo(), id, 1), "{held}: {id}");
        }
        // The next one does without, and finds nothing wrong.
        source.calm(&["copy", "--repo", source.repo(), "--to", text(&target)], 0);
    }
}
