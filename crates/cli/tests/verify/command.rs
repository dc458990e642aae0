//! The command: exit codes, what is kept, what is not done twice, reports, interruptions.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slotkeep_format::Depth;
use slotkeep_jobs::ErrorKind;
use slotkeep_jobs::verify::{VerifyOptions, VerifyProgress, verify as verify_repository};
use slotkeep_repo::{Location, OpenOptions, RateLimit, Repository};

use crate::common::{Run, slotkeep};
use crate::harness::{Bench, RUNTIME, context, objects, options};

fn verify(bench: &Bench, more: &[&str]) -> Run {
    let repo = bench.text();
    let arguments: Vec<&str> = ["verify", "--repo", &repo].into_iter().chain(more.iter().copied()).collect();
    slotkeep(&arguments)
}

#[test]
fn what_was_proved_is_not_proved_again_unless_asked_for() {
    let bench = Bench::new();
    let record = verify(&bench, &["--json"]).expect_code(0).json();
    let totals = &record["totals"];
    assert_eq!(totals["proved"], 0, "{record}");
    assert_eq!(totals["proved_before"], totals["objects"], "{record}");
    assert_eq!(totals["stored_bytes"], 0, "nothing is read: {record}");
    assert!(record["oldest_proof_at"].is_string());
    let again = verify(&bench, &["--json", "--again"]).expect_code(0).json();
    assert_eq!(again["totals"]["proved"], again["totals"]["objects"], "{again}");
    // A proof of the structure holds for the objects; one of the objects does not hold for the structure.
    fs::remove_dir_all(bench.object("main/verify")).unwrap();
    verify(&bench, &["--depth", "objects"]).expect_code(0);
    let deeper = verify(&bench, &["--json"]).expect_code(0).json();
    assert_eq!(deeper["totals"]["proved"], deeper["totals"]["objects"], "{deeper}");
    let shallow = verify(&bench, &["--json", "--depth", "objects"]).expect_code(0).json();
    assert_eq!(shallow["totals"]["proved"], 0, "{shallow}");
}

#[test]
fn the_exit_code_tells_how_bad_it_is_and_the_record_is_kept() {
    let bench = Bench::new();
    let rdb = bench.latest().shards[0].base.rdb.path.clone();
    let whole = fs::read(bench.object(&rdb)).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(bench.object(&rdb), &damaged).unwrap();
    for depth in ["objects", "structure"] {
        let text = verify(&bench, &["--depth", depth]).expect_code(42).stdout;
        assert!(text.contains("PROBLEM   objects  bytes"), "{text}");
        assert!(text.contains(&rdb) && text.contains("its BLAKE3 is"), "{text}");
        assert!(
            text.contains(&format!("NOT SOUND at depth {depth}: 1 problem, 0 warnings, 0 notes.")),
            "{text}"
        );
    }
    let kept = verify(&bench, &["--show", "latest", "--json"]).expect_code(42).json();
    assert_eq!(kept["findings"][0]["object"], *rdb);
    let list = slotkeep(&["list", "--json", "--repo", &bench.text()]).expect_code(0).json();
    let proved: Vec<_> =
        list["backups"].as_array().unwrap().iter().map(|row| &row["proved"]["worst"]).collect();
    assert_eq!(proved, ["ok", "problem", "problem"], "{list}");
    fs::write(bench.object(&rdb), whole).unwrap();
    verify(&bench, &[]).expect_code(0);

    let record = fs::read_dir(bench.object("main/verify")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.is_dir().then(|| path.join("000001.json")).filter(|path| path.exists())
    });
    let record = record.unwrap();
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replacen("structure", "objectsss", 1)).unwrap();
    let text = verify(&bench, &[]).expect_code(43).stdout;
    assert!(text.contains("WARNING") && text.contains("is proved again"), "{text}");
}

/// Flips a bit as a disk does: no time tells of it.
fn rot(bench: &Bench, path: &str) {
    let file = bench.object(path);
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
}

#[test]
fn what_a_second_look_found_is_not_forgotten() {
    let whole = Bench::new();
    let rdb = whole.latest().shards[0].base.rdb.path.clone();
    let segment = objects(&whole.repo()).into_keys().find(|path| path.contains("/log/")).unwrap();
    for path in [rdb, segment] {
        let bench = Bench::new();
        rot(&bench, &path);
        // Nobody has looked again yet.
        verify(&bench, &[]).expect_code(0);
        verify(&bench, &["--again"]).expect_code(42);
        for _ in 0..2 {
            let record = verify(&bench, &["--json"]).expect_code(42).json();
            let findings = record["findings"].as_array().unwrap();
            assert!(findings.iter().any(|found| found["object"] == *path), "{record}");
        }
        // It was the cable: what is read and found right is proved again.
        rot(&bench, &path);
        verify(&bench, &[]).expect_code(0);
        let record = verify(&bench, &["--json"]).expect_code(0).json();
        assert_eq!(record["totals"]["stored_bytes"], 0, "nothing is read: {record}");
    }
}

#[test]
fn the_list_says_when_a_backup_was_proved() {
    let bench = Bench::new();
    let text = slotkeep(&["list", "--repo", &bench.text()]).expect_code(0).stdout;
    assert_eq!(text.matches("structure, ").count(), 3, "{text}");
}

#[test]
fn reports_are_written_for_auditors() {
    let bench = Bench::new();
    fs::remove_file(bench.object(&bench.latest().shards[0].base.rdb.path)).unwrap();
    for (name, words) in [
        ("r.md", "| PROBLEM | objects | present |"),
        ("r.html", "<td>PROBLEM</td>"),
        ("r.json", "\"problem\""),
    ] {
        let path = bench.path(name);
        verify(&bench, &["--report", path.to_str().unwrap()]).expect_code(42);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(words) && text.contains("it is missing"), "{text}");
    }
    let run = verify(&bench, &["--report", "r.pdf"]).expect_code(2);
    assert!(run.stderr.contains(".md, .html or .json"), "{}", run.stderr);
}

#[test]
fn a_sample_leaves_the_rest_for_the_next_time() {
    let bench = Bench::new();
    fs::remove_dir_all(bench.object("main/verify")).unwrap();
    let mut open = u64::MAX;
    for _ in 0..200 {
        let record = verify(&bench, &["--json", "--sample", "40"]).expect_code(0).json();
        let left = record["totals"]["left_out"].as_u64().unwrap();
        assert!(left <= open, "{record}");
        open = left;
        if open == 0 {
            break;
        }
    }
    assert_eq!(open, 0, "in the end everything was chosen once");
}

/// How many objects are proved before the run is interrupted.
const PROVED_FIRST: u64 = 3;

#[test]
fn an_interrupted_run_keeps_what_it_has_proved() {
    let bench = Bench::new();
    fs::remove_dir_all(bench.object("main/verify")).unwrap();
    let interrupted = RUNTIME.block_on(async {
        // So slow that the end is far away.
        let limit = OpenOptions { limit: RateLimit::new(8000), ..OpenOptions::default() };
        let location = Location::Folder(bench.repo());
        let repository = Repository::open_with(&location, &limit).await.unwrap();
        let (context, progress) = (context(), Arc::new(VerifyProgress::default()));
        let slow = VerifyOptions { jobs: 1, ..options(Depth::Structure) };
        let stop = async {
            while progress.objects.load(Ordering::Relaxed) < PROVED_FIRST {
                tokio::task::yield_now().await;
            }
            context.stop.cancel();
        };
        tokio::join!(verify_repository(&context, &repository, &slow, &progress), stop).0
    });
    assert_eq!(interrupted.unwrap_err().kind(), ErrorKind::Interrupted);
    let kept = verify(&bench, &["--show", "latest", "--json"]).expect_code(0).json();
    assert_eq!(kept["complete"], false);
    let first = kept["totals"]["proved"].as_u64().unwrap();
    assert!(first >= PROVED_FIRST, "{kept}");
    let rest = verify(&bench, &["--json"]).expect_code(0).json();
    assert_eq!(rest["totals"]["proved_before"].as_u64().unwrap(), first, "{rest}");
    assert_eq!(rest["complete"], true);
}

#[test]
fn a_cluster_that_is_not_there() {
    let bench = Bench::new();
    let run = verify(&bench, &["--name", "other"]).expect_code(22);
    assert!(run.stderr.contains("nothing of a cluster named `other`"), "{}", run.stderr);
    verify(&bench, &["--show", "20000101T000000.000Z-0000"]).expect_code(22);
}
