//! What `inspect`, `get` and `export` say of a backup is what the servers themselves say of their keys, and what is exported builds the same
//! dataset again, proved by digests.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Run, command, server, slotkeep};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use serde_json::Value as Json;
use slotkeep_jobs::keys::matches;
use slotkeep_testkit::data::{Loaded, Mix};
use slotkeep_testkit::{Cluster, ClusterBuilder, ClusterClient, Value};
use tempfile::TempDir;

/// A cluster of three shards with every type, and a backup of it.
struct Kept {
    cluster: Cluster,
    loaded: Loaded,
    folder: TempDir,
}

impl Kept {
    fn take(server_name: &str) -> Self {
        let cluster = ClusterBuilder::new(server(server_name)).primaries(3).start().unwrap();
        let loaded = Mix::every_type().load(&cluster).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kept = Self { cluster, loaded, folder };
        kept.run(&["backup", "--cluster", &kept.addr()]).expect_code(0);
        kept
    }

    fn addr(&self) -> String {
        self.cluster.nodes()[0].addr().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command with this repository.
    fn run(&self, arguments: &[&str]) -> Run {
        let repo = self.path("repo");
        slotkeep(&[arguments, &["--repo", repo.to_str().unwrap()]].concat())
    }

    /// Exports into a file and gives its path.
    fn export(&self, format: &str, name: &str, more: &[&str]) -> PathBuf {
        let path = self.path(name);
        let arguments = ["export", "--quiet", "--format", format, "--output", path.to_str().unwrap()];
        self.run(&[&arguments, more].concat()).expect_code(0);
        path
    }

    /// Compares the backup with a server.
    fn diff(&self, cluster: &Cluster) -> Json {
        let addr = cluster.nodes()[0].addr().to_string();
        let run = self.run(&["diff", "--json", "--limit", "2000", "latest", &addr]);
        assert!(matches!(run.code, 0 | 40), "{}", run.stderr);
        run.json()
    }
}

fn lines(text: &str) -> Vec<Json> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The bytes of a text in JSON: `name` or `name_base64` of an object.
fn bytes_of(object: &Json, name: &str) -> Vec<u8> {
    match object[name].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(object[format!("{name}_base64")].as_str().unwrap()).unwrap(),
    }
}

/// The same of an element of an array.
fn element(json: &Json) -> Vec<u8> {
    match json.as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(json["base64"].as_str().unwrap()).unwrap(),
    }
}

fn bulks(value: &Value) -> Vec<Vec<u8>> {
    value.array().unwrap().iter().map(|element| element.bytes().unwrap().to_vec()).collect()
}

/// What the server says of a key's value, and the same out of the JSON, each in a form that can be compared.
fn both_sides(client: &mut ClusterClient, key: &[u8], json: &Json) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut ask = |parts: &[&[u8]]| client.command(parts).unwrap();
    let value = &json["value"];
    let each = |json: &Json| json.as_array().unwrap().clone();
    let (mut theirs, mut ours) = match json["type"].as_str().unwrap() {
        "string" => (vec![ask(&[b"GET", key]).bytes().unwrap().to_vec()], vec![bytes_of(json, "value")]),
        "list" => {
            return (bulks(&ask(&[b"LRANGE", key, b"0", b"-1"])), each(value).iter().map(element).collect());
        }
        "set" => (bulks(&ask(&[b"SMEMBERS", key])), each(value).iter().map(element).collect()),
        "zset" => {
            let pairs = bulks(&ask(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"]));
            let number = |text: &[u8]| std::str::from_utf8(text).unwrap().parse::<f64>().unwrap();
            let joined = |member: &[u8], score: f64| [member, b" ", score.to_string().as_bytes()].concat();
            let theirs = pairs.chunks(2).map(|pair| joined(&pair[0], number(&pair[1]))).collect();
            let ours = each(value)
                .iter()
                .map(|item| {
                    let text = item["score"].as_str().map(|text| text.parse::<f64>().unwrap());
                    joined(&bytes_of(item, "member"), text.or(item["score"].as_f64()).unwrap())
                })
                .collect();
            (theirs, ours)
        }
        "hash" => {
            let pairs = bulks(&ask(&[b"HGETALL", key]));
            let joined = |field: &[u8], value: &[u8]| [field, b"=", value].concat();
            let theirs = pairs.chunks(2).map(|pair| joined(&pair[0], &pair[1])).collect();
            let field = |item: &Json| joined(&bytes_of(item, "field"), &bytes_of(item, "value"));
            (theirs, each(value).iter().map(field).collect())
        }
        "stream" => return streams(client, key, value),
        other => panic!("{other}"),
    };
    theirs.sort();
    ours.sort();
    (theirs, ours)
}

/// Entries with their fields, and groups with their pending entries and owners.
fn streams(client: &mut ClusterClient, key: &[u8], value: &Json) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for entry in client.command(&[&b"XRANGE"[..], key, b"-", b"+"]).unwrap().array().unwrap() {
        let [id, fields] = entry.array().unwrap() else { panic!("{entry:?}") };
        theirs.push(id.bytes().unwrap().to_vec());
        theirs.extend(bulks(fields));
    }
    for entry in value["entries"].as_array().unwrap() {
        ours.push(entry["id"].as_str().unwrap().as_bytes().to_vec());
        let fields = entry["fields"].as_array().unwrap().iter();
        ours.extend(fields.flat_map(|pair| pair.as_array().unwrap().iter().map(element)));
    }
    let length = client.command(&[&b"XLEN"[..], key]).unwrap().int().unwrap();
    assert_eq!(value["length"].as_i64().unwrap(), length);
    for group in value["groups"].as_array().unwrap() {
        let name = bytes_of(group, "name");
        let pending = client.command(&[&b"XPENDING"[..], key, &name, b"-", b"+", b"100000"]).unwrap();
        for entry in pending.array().unwrap() {
            let [id, consumer, _, deliveries] = entry.array().unwrap() else { panic!("{entry:?}") };
            let deliveries = deliveries.int().unwrap().to_string();
            theirs.push([id.bytes().unwrap(), consumer.bytes().unwrap(), deliveries.as_bytes()].concat());
        }
        let mut owners = BTreeMap::new();
        for consumer in group["consumers"].as_array().into_iter().flatten() {
            for id in consumer["pending"].as_array().unwrap() {
                owners.insert(id.as_str().unwrap().to_owned(), bytes_of(consumer, "name"));
            }
        }
        for entry in group["pending"].as_array().unwrap() {
            let id = entry["id"].as_str().unwrap();
            let deliveries = entry["deliveries"].to_string();
            ours.push([id.as_bytes(), &owners[id], deliveries.as_bytes()].concat());
        }
    }
    (theirs, ours)
}

fn inspect_says_what_the_servers_say(kept: &Kept) {
    let report = kept.run(&["inspect", "--json"]).expect_code(0).json();
    assert_eq!(report["total"]["keys"], kept.loaded.keys());
    let types: BTreeMap<&str, u64> = report["types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["type"].as_str().unwrap(), row["keys"].as_u64().unwrap()))
        .collect();
    assert_eq!(types, kept.loaded.keys_by_type);
    assert_eq!(report["functions"], u64::from(kept.loaded.functions));
    let shards = report["shards"].as_array().unwrap();
    for (number, shard) in shards.iter().enumerate() {
        let size = kept.cluster.primary(number).unwrap().client().unwrap().command(&["DBSIZE"]).unwrap();
        assert_eq!(shard["keys"].as_i64().unwrap(), size.int().unwrap());
    }
    for part in ["shards", "types", "encodings", "databases", "expiry"] {
        let sum = |name: &str| -> u64 {
            report[part].as_array().unwrap().iter().map(|row| row[name].as_u64().unwrap()).sum()
        };
        assert_eq!(
            (sum("keys"), sum("bytes")),
            (kept.loaded.keys(), report["total"]["bytes"].as_u64().unwrap())
        );
    }
    let again = kept.run(&["inspect", "--json"]).expect_code(0).json();
    assert_eq!(report, again, "the same backup gives the same report");
    let text = kept.run(&["inspect"]).expect_code(0).stdout;
    assert!(text.contains("By prefix") && text.lines().all(|line| line.chars().count() <= 120), "{text}");
}

/// Every key with its value, by `export` and a few by `get`, against the servers' own answers.
fn every_value_is_the_servers_own(kept: &Kept) {
    let exported = lines(&std::fs::read_to_string(kept.export("json", "keys.jsonl", &[])).unwrap());
    let listed = lines(&kept.run(&["inspect", "--keys"]).expect_code(0).stdout);
    assert_eq!(exported.len() as u64, kept.loaded.keys());
    let mut client = kept.cluster.client().unwrap();
    let mut seen = BTreeSet::new();
    let mut got = 0;
    for (json, listing) in exported.iter().zip(&listed) {
        let key = bytes_of(json, "key");
        let (theirs, ours) = both_sides(&mut client, &key, json);
        assert!(theirs == ours, "{}\n{theirs:?}\n{ours:?}", key.escape_ascii());
        let expiry = client.command(&[&b"PEXPIRETIME"[..], &key]).unwrap().int().unwrap();
        assert_eq!(json["expires_at_ms"].as_i64().unwrap_or(-1), expiry);
        let mut without_value = json.clone();
        without_value.as_object_mut().unwrap().retain(|name, _| !name.starts_with("value"));
        assert_eq!(&without_value, listing);
        // One of each encoding, and the keys with odd names.
        let kind = (json["type"].to_string(), json["encoding"].to_string());
        if (seen.insert(kind) || json["key"].is_null() || key.len() < 3) && got < 25 {
            got += 1;
            let escaped = slotkeep_jobs::quoted(&key);
            let arguments = ["get", "--json", "--escaped", "latest", &escaped[1..escaped.len() - 1]];
            let mut one = kept.run(&arguments).expect_code(0).json();
            let members = one.as_object_mut().unwrap();
            assert!(
                members.remove("read_bytes").unwrap().as_u64()
                    <= members.remove("stored_bytes").unwrap().as_u64()
            );
            assert_eq!(&one, json);
        }
    }
    assert!(got > 12, "{got}");
    let names: BTreeSet<Vec<u8>> = exported.iter().map(|json| bytes_of(json, "key")).collect();
    assert_eq!(names, kept.loaded.samples.iter().map(|sample| sample.key().to_vec()).collect());
    strings_and_payloads_come_out_as_they_are(kept, &mut client);
}

fn strings_and_payloads_come_out_as_they_are(kept: &Kept, client: &mut ClusterClient) {
    let repo = kept.path("repo");
    let get = |arguments: &[&str]| {
        let mut all = vec!["get", "latest", "--repo", repo.to_str().unwrap()];
        all.extend(arguments);
        let output = command().args(all).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    assert_eq!(get(&["string:every byte", "--raw"]), every_byte);
    let payload = get(&["set:table", "--dump"]);
    let before = bulks(&client.command(&["SMEMBERS", "set:table"]).unwrap());
    client.command(&["DEL", "{set:table}"]).unwrap();
    client.command(&[&b"RESTORE"[..], b"{set:table}", b"0", &payload]).unwrap();
    let after = bulks(&client.command(&["SMEMBERS", "{set:table}"]).unwrap());
    client.command(&["DEL", "{set:table}"]).unwrap();
    assert_eq!(before.into_iter().collect::<BTreeSet<_>>(), after.into_iter().collect());
    let refused = kept.run(&["get", "latest", "set:table", "--raw"]).expect_code(2);
    assert!(refused.stderr.contains("is a set"), "{}", refused.stderr);
    let missing = kept.run(&["get", "latest", "no such key"]).expect_code(22);
    assert!(missing.stderr.contains("has no key \"no such key\""), "{}", missing.stderr);
}

/// A server without cluster mode and without data.
fn fresh(server_name: &str) -> Cluster {
    ClusterBuilder::new(server(server_name)).cluster_mode(false).start().unwrap()
}

/// Sends a file of commands with the stock client.
fn pipe(file: &Path, cluster: &Cluster) {
    let stock = server("redis-7.0");
    let mut client = std::process::Command::new(stock.cli().unwrap())
        .args(["-p", &cluster.nodes()[0].port().to_string(), "--pipe"])
        .env("LD_LIBRARY_PATH", stock.program().parent().unwrap().join("../lib/x86_64-linux-gnu"))
        .stdin(std::fs::File::open(file).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(client.wait().unwrap().success() && said.contains("errors: 0"), "{said}");
}

/// The keys that differ.
fn differing(found: &Json) -> Vec<String> {
    found["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap().to_owned()).collect()
}

fn commands_build_the_dataset_again(kept: &Kept, targets: &[(&str, &[&str])]) {
    for (name, options) in targets {
        let target = fresh(name);
        pipe(&kept.export("resp", "commands", &[*options, &["--force"]].concat()), &target);
        let found = kept.diff(&target);
        assert_eq!(found["functions_differ"], false);
        let by_elements = options.iter().any(|option| ["--commands", "--max-restore-bytes"].contains(option));
        // It has pending entries that were deleted from the stream, which no command can claim.
        let expected = if by_elements { vec!["\"stream:long\""] } else { vec![] };
        assert_eq!(differing(&found), expected, "{name} {options:?} {found}");
        assert_eq!(found["b"]["keys"], kept.loaded.keys());
        // What exists is replaced only if that is wanted.
        if *options == ["--replace"] {
            pipe(&kept.path("commands"), &target);
            assert_eq!(kept.diff(&target)["differing_slot_count"], 0);
        }
    }
}

fn one_rdb_of_all_shards_is_loaded_by_a_stock_server(kept: &Kept, server_name: &str) {
    let rdb = kept.export("rdb", "all.rdb", &[]);
    let target = ClusterBuilder::new(server(server_name)).cluster_mode(false).prepare().unwrap();
    std::fs::copy(&rdb, target.nodes()[0].dir().join("dump.rdb")).unwrap();
    target.start_nodes().unwrap();
    assert_eq!(kept.diff(&target)["differing_slot_count"], 0);
    let of_file = slotkeep(&["inspect", "--json", rdb.to_str().unwrap()]).expect_code(0).json();
    let of_backup = kept.run(&["inspect", "--json"]).expect_code(0).json();
    // Bytes differ a little: keys are written as they are, and servers compress long ones.
    let counts = |report: &Json| {
        let encodings = report["encodings"].as_array().unwrap().iter().chain([&report["total"]]);
        let row = |row: &Json| ["type", "encoding", "keys", "elements"].map(|name| row[name].to_string());
        encodings.map(row).collect::<BTreeSet<_>>()
    };
    assert_eq!(counts(&of_file), counts(&of_backup));
    assert_eq!(of_file["functions"], of_backup["functions"]);
    // One shard as it was stored, and some keys chosen by size.
    let one = kept.export("rdb", "one.rdb", &["--shard", "2"]);
    let keys = slotkeep(&["inspect", "--json", one.to_str().unwrap()]).expect_code(0).json();
    assert_eq!(keys["total"], {
        let shard = &of_backup["shards"][1];
        serde_json::json!({"keys": shard["keys"], "bytes": shard["bytes"], "elements": shard["elements"]})
    });
    let filter = ["--min-bytes", "1K", "--min-elements", "2", "--pattern", "*:*"];
    let big = kept.export("rdb", "big.rdb", &filter);
    let listed = |arguments: &[&str]| {
        let keys = lines(&kept.run(&[&["inspect", "--keys"], arguments].concat()).expect_code(0).stdout);
        keys.iter().map(|json| (bytes_of(json, "key"), json["elements"].to_string())).collect::<BTreeSet<_>>()
    };
    let chosen = listed(&filter);
    assert!(chosen.len() > 5);
    assert_eq!(listed(&[big.to_str().unwrap()]), chosen);
    let json = std::fs::read_to_string(kept.export("json", "big.jsonl", &filter)).unwrap();
    let of_json: BTreeSet<Vec<u8>> = lines(&json).iter().map(|json| bytes_of(json, "key")).collect();
    assert_eq!(of_json, chosen.iter().map(|(key, _)| key.clone()).collect());
}

fn tables_list_every_key(kept: &Kept) {
    let listed = lines(&kept.run(&["inspect", "--keys"]).expect_code(0).stdout);
    let text = |json: &Json| json.as_str().map_or_else(|| json.to_string(), str::to_owned);
    let mut rows = csv::Reader::from_path(kept.export("csv", "keys.csv", &[])).unwrap();
    let headings = rows.headers().unwrap().clone();
    let of_csv: Vec<BTreeMap<String, String>> = rows
        .records()
        .map(|row| headings.iter().map(str::to_owned).zip(row.unwrap().iter().map(str::to_owned)).collect())
        .collect();
    assert_eq!(of_csv.len(), listed.len());
    for (row, json) in of_csv.iter().zip(&listed) {
        for (name, value) in json.as_object().unwrap() {
            assert_eq!(row[name], text(value), "{name}");
        }
    }
    let path = kept.export("parquet", "keys.parquet", &[]);
    let table = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut count = 0;
    for (row, json) in table.get_row_iter(None).unwrap().zip(&listed) {
        let row = row.unwrap();
        count += 1;
        let key = match row.get_string(2) {
            Ok(key) => key.as_bytes().to_vec(),
            Err(_) => row.get_bytes(3).unwrap().data().to_vec(),
        };
        assert_eq!(key, bytes_of(json, "key"));
        assert_eq!(u64::from(row.get_uint(0).unwrap()), json["db"].as_u64().unwrap());
        assert_eq!(u64::from(row.get_ushort(1).unwrap()), json["slot"].as_u64().unwrap());
        assert_eq!(row.get_string(4).unwrap(), json["type"].as_str().unwrap());
        assert_eq!(row.get_string(5).unwrap(), json["encoding"].as_str().unwrap());
        assert_eq!(row.get_long(6).unwrap(), json["bytes"].as_i64().unwrap());
        assert_eq!(row.get_long(7).unwrap(), json["elements"].as_i64().unwrap());
        assert_eq!(row.get_timestamp_millis(8).ok(), json["expires_at_ms"].as_i64());
    }
    assert_eq!(count, listed.len());
}

#[test]
fn a_backup_of_valkey_9_1_is_read_as_the_servers_read_it() {
    let kept = Kept::take("valkey-9.1");
    inspect_says_what_the_servers_say(&kept);
    every_value_is_the_servers_own(&kept);
    tables_list_every_key(&kept);
    commands_build_the_dataset_again(
        &kept,
        &[("valkey-9.1", &["--replace"]), ("valkey-9.1", &["--commands"])],
    );
    one_rdb_of_all_shards_is_loaded_by_a_stock_server(&kept, "valkey-9.1");
    // Redis 7.0 has no fields that expire.
    let path = kept.path("old");
    let arguments =
        ["export", "--format", "resp", "--output", path.to_str().unwrap(), "--target-version", "redis-7.0"];
    let refused = kept.run(&arguments).expect_code(32);
    assert!(refused.stderr.contains("error: key \""), "{}", refused.stderr);
    assert!(
        !path.exists()
            && std::fs::read_dir(kept.folder.path())
                .unwrap()
                .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".partial") })
    );
}

#[test]
fn a_backup_of_redis_7_0_is_read_as_the_servers_read_it() {
    let kept = Kept::take("redis-7.0");
    inspect_says_what_the_servers_say(&kept);
    every_value_is_the_servers_own(&kept);
    tables_list_every_key(&kept);
    let targets: [(&str, &[&str]); 3] = [
        ("redis-7.0", &[]),
        ("valkey-9.1", &["--target-version", "valkey-9.1", "--max-restore-bytes", "2K"]),
        ("redis-7.0", &["--commands"]),
    ];
    commands_build_the_dataset_again(&kept, &targets);
    one_rdb_of_all_shards_is_loaded_by_a_stock_server(&kept, "redis-7.0");
}

/// A key is found by ranged reads: most of the backup is not read.
#[test]
fn a_key_is_found_without_reading_the_backup() {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(3).start().unwrap();
    Mix::bulk(60_000_000).load(&cluster).unwrap();
    cluster.client().unwrap().command(&["SET", "wanted", "found"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let repo = repo.to_str().unwrap();
    slotkeep(&["backup", "--repo", repo, "--cluster", &cluster.nodes()[0].addr().to_string()]).expect_code(0);
    let got = slotkeep(&["get", "--json", "--repo", repo, "latest", "wanted"]).expect_code(0).json();
    assert_eq!(got["value"], "found");
    let (read, stored) = (got["read_bytes"].as_u64().unwrap(), got["stored_bytes"].as_u64().unwrap());
    assert!(stored > 30_000_000 && read * 10 < stored, "{read} of {stored}");
    let text = slotkeep(&["get", "--repo", repo, "latest", "wanted"]).expect_code(0);
    assert!(text.stdout.ends_with("\n\"found\"\n") && text.stderr.contains(" were read"), "{}", text.stderr);
}

/// Patterns of every sort against `KEYS` of a real server.
#[test]
fn patterns_match_what_servers_match() {
    let alphabet: [&[u8]; 10] = [b"a", b"b", b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"\xff"];
    for name in ["redis-7.0", "valkey-9.1"] {
        let server = fresh(name);
        let mut client = server.nodes()[0].client().unwrap();
        let mut keys: Vec<Vec<u8>> = vec![b"".to_vec()];
        for one in alphabet {
            keys.push(one.to_vec());
            keys.extend(alphabet.iter().map(|other| [one, other].concat()));
        }
        keys.extend([&b"abc"[..], b"aab", b"user:1:name", b"a\x00b", b"[a-b]"].map(<[u8]>::to_vec));
        for key in &keys {
            client.command(&[&b"SET"[..], key, b"x"]).unwrap();
        }
        // Every pattern of three and, by a walk through all, some of five of these.
        let mut patterns: Vec<Vec<u8>> =
            [&b""[..], b"*", b"user:*:name", b"*[^a]"].map(<[u8]>::to_vec).to_vec();
        for number in 0..1000_usize {
            let digit = |place: u32| alphabet[number / 10_usize.pow(place) % 10];
            patterns.push([digit(2), digit(1), digit(0)].concat());
            patterns.push([b"[", digit(2), digit(1), digit(0), b"]"].concat());
            patterns.push([digit(0), b"*", digit(1), digit(2), b"*"].concat());
        }
        let asked: Vec<Vec<&[u8]>> = patterns.iter().map(|pattern| vec![&b"KEYS"[..], pattern]).collect();
        for (pattern, answer) in patterns.iter().zip(client.pipeline(&asked).unwrap()) {
            let theirs: BTreeSet<Vec<u8>> = bulks(&answer).into_iter().collect();
            let ours: BTreeSet<Vec<u8>> = keys.iter().filter(|key| matches(pattern, key)).cloned().collect();
            assert_eq!(ours, theirs, "{name}: {}", pattern.escape_ascii());
        }
    }
}
