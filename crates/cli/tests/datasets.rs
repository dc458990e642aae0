//! Files, filters, golden tables, and everything that can be wrong with what is read or written. No server is needed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use common::{Run, command, files, slotkeep};

/// An RDB of Redis 7.0: 147 keys of a shop.
const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/shop.rdb");
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/repository-v1");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/inspect.md");

/// Runs a command where `shop.rdb` is in the current folder, as in the documentation.
fn in_shop(arguments: &[&str]) -> Run {
    let folder = Path::new(SHOP).parent().unwrap();
    Run::of(&command().current_dir(folder).args(arguments).output().unwrap())
}

/// Every block of the documentation that starts with `$ slotkeep …` shows what that command prints.
#[test]
fn the_documentation_shows_what_is_printed() {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let mut checked = 0;
    for block in document.split("```").skip(1).step_by(2) {
        let text = block.split_once('\n').map_or("", |(_, text)| text);
        let Some((line, expected)) = text.split_once('\n') else { continue };
        let Some(line) = line.strip_prefix("$ slotkeep ") else { continue };
        let arguments: Vec<&str> = line.split(' ').collect();
        let run = in_shop(&arguments).expect_code(0);
        assert_eq!(run.stdout.trim_end(), expected.trim_end(), "\n$ slotkeep {line}\n{}", run.stdout);
        checked += 1;
    }
    assert!(checked >= 4, "{checked}");
}

#[test]
fn json_and_table_come_from_the_same_value() {
    let report = in_shop(&["inspect", "--json", "shop.rdb"]).expect_code(0).json();
    let golden = std::fs::read_to_string(Path::new(SHOP).with_file_name("shop.json")).unwrap();
    assert_eq!(report, serde_json::from_str::<serde_json::Value>(&golden).unwrap(), "{report:#}");
    let text = in_shop(&["inspect", "shop.rdb"]).expect_code(0).stdout;
    for row in report["types"].as_array().unwrap() {
        let (kind, keys) = (row["type"].as_str().unwrap(), row["keys"].to_string());
        assert!(text.lines().any(|line| line.starts_with(kind) && line.contains(&keys)), "{kind}\n{text}");
    }
}

fn keys(arguments: &[&str]) -> Vec<String> {
    let run = in_shop(&[&["inspect", "shop.rdb", "--keys"], arguments].concat()).expect_code(0);
    let key = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        json["key"].as_str().or(json["key_base64"].as_str()).unwrap().to_owned()
    };
    let mut keys: Vec<String> = run.stdout.lines().map(key).collect();
    keys.sort();
    keys
}

#[test]
fn filters_choose_keys() {
    assert_eq!(keys(&["--pattern", "user:1?:cart"]).len(), 5);
    assert_eq!(keys(&["--type", "set,stream"]), ["events:orders", "ids:online", "tags:all"]);
    assert_eq!(keys(&["--key", "counter"]), ["counter"]);
    assert_eq!(keys(&["--escaped", "--key", "bin\\xff\\x00key"]), ["Ymlu/wBrZXk="]);
    assert_eq!(
        keys(&["--slots", &slot("counter").to_string(), "--type", "string", "--max-bytes", "20"]),
        ["counter"]
    );
    assert_eq!(
        keys(&["--min-elements", "30"]),
        ["ids:online", "ranking:2026-07", "ranking:2026-08", "ranking:2026-09"]
    );
    assert_eq!(keys(&["--min-bytes", "300"]), ["events:orders"]);
    assert_eq!(keys(&["--db", "1"]), [] as [&str; 0]);
    let expiring = keys(&["--expires", "yes"]).len();
    assert_eq!(keys(&["--expires", "no"]).len() + expiring, keys(&[]).len());
    let soon = keys(&["--expires", "1h"]).len();
    assert!(soon > 0 && soon < expiring && soon < keys(&["--expires", "7d"]).len());
}

fn slot(key: &str) -> u16 {
    slotkeep_model::key_slot(key.as_bytes()).number()
}

#[test]
fn an_rdb_comes_in_on_standard_input() {
    let piped = |arguments: &[&str]| {
        let mut child =
            command().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&std::fs::read(SHOP).unwrap()).unwrap();
        Run::of(&child.wait_with_output().unwrap()).expect_code(0)
    };
    let mut report = piped(&["inspect", "-", "--json"]).json();
    let mut of_file = slotkeep(&["inspect", SHOP, "--json"]).expect_code(0).json();
    for value in [&mut report, &mut of_file] {
        value["source"] = serde_json::Value::Null;
        value["shards"][0]["shard"] = serde_json::Value::Null;
    }
    assert_eq!(report, of_file);
    assert!(piped(&["get", "-", "counter", "--raw"]).stdout == "4711");
}

#[test]
fn a_file_passes_through_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.rdb");
    let arguments = ["export", SHOP, "--format", "rdb", "--output", path.to_str().unwrap()];
    let said = slotkeep(&arguments).expect_code(0).stdout;
    assert!(said.contains("as the server made it"), "{said}");
    assert!(std::fs::read(&path).unwrap() == std::fs::read(SHOP).unwrap());
    let refused = slotkeep(&arguments).expect_code(31);
    assert!(refused.stderr.contains("exists") && refused.stderr.contains("--force"), "{}", refused.stderr);
    slotkeep(&[&arguments[..], &["--force", "--type", "hash"]].concat()).expect_code(0);
    let report = slotkeep(&["inspect", path.to_str().unwrap(), "--json"]).expect_code(0).json();
    assert_eq!(report["total"]["keys"], 60);
    assert_eq!(files(folder.path()).len(), 1, "nothing is left beside the file");
}

/// Damage anywhere is found, and named with its offset; nothing that looks whole is written.
#[test]
fn a_damaged_file_is_an_error_with_its_offset() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.rdb");
    let output = folder.path().join("out");
    let whole = std::fs::read(SHOP).unwrap();
    let place = whole.windows(12).position(|window| window == b"ranking:2026").unwrap();
    let mut broken_crc = whole.clone();
    *broken_crc.last_mut().unwrap() ^= 1;
    let cut = format!("(at byte {}, in a value of type 17", place + 40);
    let cases: [(&[u8], &str); 4] = [
        (&whole[..place + 40], &cut),
        (&whole[..whole.len() - 20], "truncated"),
        (&broken_crc, "CRC64"),
        (b"this is no RDB at all", "not an RDB"),
    ];
    for (bytes, words) in cases {
        std::fs::write(&damaged, bytes).unwrap();
        let file = damaged.to_str().unwrap();
        let mut runs = vec![slotkeep(&["inspect", file]), slotkeep(&["inspect", "--keys", file])];
        for format in ["rdb", "resp", "json", "csv", "parquet"] {
            runs.push(slotkeep(&[
                "export",
                file,
                "--format",
                format,
                "-o",
                output.to_str().unwrap(),
                "--db",
                "0",
            ]));
        }
        for run in runs {
            let run = run.expect_code(23);
            assert!(run.stderr.contains(words) && run.stderr.contains("hint: "), "{words}: {}", run.stderr);
        }
        assert_eq!(files(folder.path()).len(), 1, "{words}");
    }
    // Behind the key stand the mark of a compressed string, its length, and the length it has when decoded.
    let value = place + "ranking:2026-06".len();
    assert_eq!(whole[value], 0xc3);
    let mut broken_value = whole;
    broken_value[value + 4] ^= 1;
    std::fs::write(&damaged, broken_value).unwrap();
    let run = slotkeep(&["inspect", damaged.to_str().unwrap()]).expect_code(23);
    assert!(run.stderr.contains("LZF") && run.stderr.contains("key `ranking:2026-"), "{}", run.stderr);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    for (code, words, arguments) in [
        (22, "no-such.rdb", vec!["inspect", "no-such.rdb"]),
        (2, "is a folder", vec!["inspect", here]),
        (2, "must be a backup", vec!["inspect", "20261123"]),
        (2, "is no type", vec!["inspect", SHOP, "--type", "text"]),
        (2, "not a slot", vec!["inspect", SHOP, "--slots", "16384"]),
        (2, "needs a separator", vec!["inspect", SHOP, "--by", ""]),
        (2, "not escaped", vec!["get", SHOP, "--escaped", "a\\q"]),
        (
            2,
            "redis-7.0 or valkey-9.1",
            vec!["export", SHOP, "--format", "resp", "-o", "-", "--target-version", "9.1"],
        ),
        (2, "means nothing for json", vec!["export", SHOP, "--format", "json", "-o", "-", "--replace"]),
        (2, "no shard 2", vec!["export", SHOP, "--format", "rdb", "-o", "-", "--shard", "2"]),
        (
            32,
            "Redis 6.2.0 has no functions",
            vec!["export", SHOP, "--format", "resp", "-o", "-", "--target-version", "redis-6.2"],
        ),
        (22, "has no key", vec!["get", "--repo", REPOSITORY, "latest", "nothing"]),
        (1, "can't write beside", vec!["export", SHOP, "--format", "csv", "-o", "/no/such/folder/x"]),
    ] {
        let run = slotkeep(&arguments).expect_code(code);
        assert!(run.stderr.contains(words), "{arguments:?}: {}", run.stderr);
    }
}

/// Whoever reads the output may have seen enough: that is quiet, and no failure.
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    // More than a pipe holds.
    let mut commands: Vec<Vec<&str>> = vec![vec!["inspect", "-", "--keys"]];
    for format in ["json", "resp", "csv", "rdb", "parquet"] {
        commands.push(vec!["export", "-", "--format", format, "--output", "-", "--min-bytes", "1"]);
    }
    let rdb = folder.path().join("long.rdb");
    std::fs::write(&rdb, long_rdb()).unwrap();
    for arguments in commands {
        let mut child = command()
            .args(&arguments)
            .stdin(std::fs::File::open(&rdb).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.fill_buf().unwrap();
        drop(out);
        let run = Run::of(&child.wait_with_output().unwrap()).expect_code(0);
        assert_eq!(run.stderr, "", "{arguments:?}");
    }
}

/// An RDB without checksum, of 60,000 strings.
fn long_rdb() -> Vec<u8> {
    let mut rdb = b"REDIS0010\xfe\x00".to_vec();
    for number in 0..60_000 {
        let key = format!("key:{number:05}");
        rdb.extend([0, u8::try_from(key.len()).unwrap()]);
        rdb.extend(key.as_bytes());
        rdb.push(20);
        rdb.extend(format!("value {:014}", number * 7).bytes());
    }
    rdb.push(0xff);
    rdb.extend([0; 8]);
    rdb
}

/// Ctrl-C while more is awaited: an end in order, and no file.
#[test]
fn an_interrupted_export_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.jsonl");
    let mut child = command()
        .args(["export", "-", "--format", "json", "--output", path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let rdb = long_rdb();
    // It has begun to read once a pipe's worth and more is taken.
    stdin.write_all(&rdb[..rdb.len() / 2]).unwrap();
    assert_eq!(files(folder.path()).len(), 1, "a file is being written");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let run = Run::of(&child.wait_with_output().unwrap()).expect_code(130);
    drop(stdin);
    assert!(run.stderr.contains("interrupted"), "{}", run.stderr);
    assert_eq!(files(folder.path()).len(), 0);
}

/// An RDB of one string in database 0 and two in database 3, one of which had expired.
fn two_databases() -> Vec<u8> {
    let mut rdb = b"REDIS0010\xfa\x05ctime\x0a1700000000".to_vec();
    rdb.extend(b"\xfe\x00\x00\x03one\x01a\xfe\x03\x00\x03two\x01b");
    rdb.push(0xfc);
    rdb.extend(1_699_999_999_000_i64.to_le_bytes());
    rdb.extend(b"\x00\x03old\x01c\xff\0\0\0\0\0\0\0\0");
    rdb
}

#[test]
fn databases_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two.rdb");
    std::fs::write(&path, two_databases()).unwrap();
    let file = path.to_str().unwrap();
    let report = slotkeep(&["inspect", file, "--json"]).expect_code(0).json();
    assert_eq!(report["at"], "2023-11-14T22:13:20Z");
    let databases: Vec<(u64, u64)> = report["databases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["db"].as_u64().unwrap(), row["keys"].as_u64().unwrap()))
        .collect();
    assert_eq!(databases, [(0, 1), (3, 2)]);
    let missing = slotkeep(&["get", file, "two"]).expect_code(22);
    assert!(missing.stderr.contains("hint: database 3 has one of that name: --db 3"), "{}", missing.stderr);
    assert_eq!(slotkeep(&["get", file, "two", "--db", "3", "--raw"]).expect_code(0).stdout, "b");
    let old = slotkeep(&["get", file, "old", "--db", "3"]).expect_code(0).stdout;
    assert!(old.contains("2023-11-14T22:13:19Z: it had expired"), "{old}");
    let commands =
        slotkeep(&["export", file, "--format", "resp", "--commands", "-o", "-"]).expect_code(0).stdout;
    let words: Vec<&str> = commands.split("\r\n").filter(|word| !word.starts_with(['*', '$'])).collect();
    let expected = "SET one a SELECT 3 SET two b SET old c PEXPIREAT old 1699999999000 "
        .trim_end()
        .split(' ')
        .collect::<Vec<_>>();
    assert_eq!(words[..words.len() - 1], expected);
}

/// The fixture's repository, to be spoilt.
fn repository(folder: &Path) -> String {
    for (name, bytes) in files(Path::new(REPOSITORY)) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

fn object(folder: &Path, name: &str) -> std::path::PathBuf {
    folder.join(files(folder).into_iter().map(|(path, _)| path).find(|path| path.ends_with(name)).unwrap())
}

#[test]
fn a_damaged_object_is_found_by_whatever_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let repo = repository(folder.path());
    let rdb = object(folder.path(), "rdb.zst");
    let mut bytes = std::fs::read(&rdb).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&rdb, bytes).unwrap();
    for arguments in [
        vec!["inspect"],
        vec!["inspect", "--keys"],
        vec!["get", "latest", "hash"],
        vec!["export", "--format", "rdb", "-o", "-"],
        vec!["export", "--format", "json", "-o", "-"],
    ] {
        let run = slotkeep(&[arguments.as_slice(), &["--repo", &repo]].concat()).expect_code(23);
        assert!(run.stderr.contains("rdb.zst"), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn what_a_partial_backup_lacks_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let repo = repository(folder.path());
    let manifest = object(folder.path(), "35d4.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    json["partial"] = true.into();
    json["missing_slots"] = "16000-16383".into();
    json["shards"][0]["slots"] = "0-15999".into();
    std::fs::write(&manifest, json.to_string()).unwrap();
    let with = |arguments: &[&str]| slotkeep(&[arguments, &["--repo", &repo]].concat());
    let export = with(&["export", "--format", "csv", "-o", "-"]).expect_code(0);
    assert!(export.stderr.contains("warning: the backup lacks slots 16000-16383"), "{}", export.stderr);
    assert!(with(&["inspect"]).expect_code(0).stdout.contains("which lacks slots 16000-16383"));
    // `foo11` is in a slot that is missing.
    assert!(slot("foo11") > 16_000);
    let get = with(&["get", "latest", "foo11"]).expect_code(22);
    assert!(get.stderr.contains("which lacks slots 16000-16383"), "{}", get.stderr);
}

/// Without an index there are no ranged reads, and the user is told what works.
#[test]
fn a_base_that_was_not_understood_has_no_index() {
    let folder = tempfile::tempdir().unwrap();
    let repo = repository(folder.path());
    let manifest = object(folder.path(), "35d4.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let base = json["shards"][0]["base"].as_object_mut().unwrap();
    base.remove("index");
    base.remove("digest");
    base.insert("not_interpreted".to_owned(), "type 99 is not known".into());
    std::fs::write(&manifest, json.to_string()).unwrap();
    let run = slotkeep(&["get", "latest", "hash", "--repo", &repo]).expect_code(32);
    assert!(run.stderr.contains("without an index") && run.stderr.contains("type 99"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: read it whole: `slotkeep inspect --keys`"), "{}", run.stderr);
    slotkeep(&["inspect", "--repo", &repo]).expect_code(0);
}
