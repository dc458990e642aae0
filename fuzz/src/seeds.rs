//! What fuzzers begin with: the fixtures of the tests, and what is made of them. Nothing of it is random.

use std::path::{Path, PathBuf};

use slotkeep_format::{FrameWriter, IndexEntry, IndexWriter};
use slotkeep_model::{Product, RdbVersion, TimestampMs, key_slot};
use slotkeep_rdb::{OwnedEvent, Reader, Record, ValueType, dump_payload};

/// The seeds of a fuzzer, from the repository's folder.
pub fn seeds(target: &str, repository: &Path) -> Vec<Vec<u8>> {
    let wire = |names: &[&str]| {
        let mut found = Vec::new();
        for server in ["redis-7.0.15", "valkey-9.1.2"] {
            let folder = repository.join("crates/wire/fixtures").join(server);
            found.extend(names.iter().map(|name| read(&folder.join(name))));
        }
        found
    };
    let old = repository.join("crates/cli/tests/fixtures/repository-v1");
    match target {
        "rdb_raw" | "rdb_element" | "rdb_owned" | "rdb_envelope" | "rdb_rewrite" => rdbs(repository),
        "rdb_value" | "rdb_translate" => values(repository),
        "rdb_dump" => values(repository)
            .iter()
            .filter_map(|seed| {
                let (&[number, product], bytes) = seed.split_first_chunk::<2>()?;
                let product = if product == 0 { Product::Redis } else { Product::Valkey };
                let value_type = ValueType::from_byte(number, product).ok()?;
                Some(dump_payload(value_type, bytes, if product == Product::Redis { 14 } else { 80 }))
            })
            .collect(),
        "wire_resp" => {
            let mut found = wire(&["cluster-shards.resp2", "cluster-shards.resp3", "cluster-slots.resp3", "acl-list.resp2"]);
            found.push(b"-MOVED 5 127.0.0.1:7000\r\n:5\r\n$-1\r\n,1.5\r\n#t\r\n".to_vec());
            found
        }
        "wire_transfer" => vec![
            b"$5\r\nhello".to_vec(),
            [&b"$EOF:"[..], &[b'm'; 40], b"\r\nREDIS0011\xff........", &[b'm'; 40]].concat(),
        ],
        "wire_stream" => vec![
            b"*1\r\n$4\r\nPING\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*1\r\n$4\r\nEXEC\r\n"
                .to_vec(),
            b"\n*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n".to_vec(),
        ],
        "wire_handshake" => {
            let resync = [&b"+PONG\r\n+OK\r\n+OK\r\n+OK\r\n\n+FULLRESYNC "[..], &[b'a'; 40], b" 17\r\n\n$9\r\nREDIS0011"].concat();
            let no_port = [&b"+PONG\r\n+OK\r\n+OK\r\n+FULLRESYNC "[..], &[b'a'; 40], b" 17\r\n$EOF:", &[b'm'; 40], b"\r\n"].concat();
            vec![resync, no_port, b"-NOAUTH Authentication required.\r\n".to_vec(), b"HTTP/1.1 400\r\n".to_vec()]
        }
        "wire_primary" => replicas(),
        "wire_filter" => vec![
            stream(&[&["SELECT", "0"], &["MULTI"], &["SET", "k", "v"], &["PUBLISH", "c", "m"], &["EXEC"]]),
stream(&[&["PING"], &["REPLCONF", "GETACK", "*"], &["SPUBLISH", "channel", "message"], &["SET", "k", "v"]]),
            stream(&[&["CLUSTER", "SYNCSLOTS", "FINISH"], &["SET", "k", "v"]]),
            stream(&[&["CLUSTER", "FLUSHSLOT", "5"], &["TRIMSLOTS", "RANGES", "1", "0", "5"], &["SFLUSH", "0", "5"]]),
        ],
        "wire_expiry" => vec![
            stream(&[&["SELECT", "0"], &["SET", "k", "v", "PX", "5000", "NX"], &["SET", "k", "v", "KEEPTTL"], &["SETEX", "k", "5", "v"]]),
            stream(&[&["PSETEX", "k", "5", "v"], &["EXPIRE", "k", "7"], &["PEXPIRE", "k", "7"], &["PEXPIREAT", "k", "4000000000000"]]),
            stream(&[&["RESTORE", "k", "5", "payload"], &["RESTORE-ASKING", "k", "0", "payload"]]),
            stream(&[&["RESTORE", "k", "5", "payload", "REPLACE"], &["RESTORE", "k", "4000000000000", "payload", "ABSTTL", "FREQ", "3"]]),
        ],
        "wire_info" => wire(&["info.txt", "info-replica.txt", "cluster-info.txt"]),
        "wire_cluster_nodes" => wire(&["cluster-nodes.txt", "cluster-nodes-importing.txt", "nodes.conf"]),
        "format_frames" => vec![frames()],
        "format_index" => vec![index()],
        "format_manifest" => [files(&old.join("main/backups"), "json"), vec![read(&old.join("slotkeep.json"))]].concat(),
        "format_digest" => folder_files(&old).into_iter().filter(|path| path.ends_with("digest")).map(|path| read(&path)).collect(),
        _ => Vec::new(),
    }
}

/// A stream of these commands.
fn stream(commands: &[&[&str]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for words in commands {
        bytes.extend(format!("*{}\r\n", words.len()).bytes());
        for word in *words {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
        }
    }
    bytes
}

/// What replicas say: the byte of options, up to the snapshot, and after it.
fn replicas() -> Vec<Vec<u8>> {
    let id = "a".repeat(40);
    let introduction: &[&[&str]] = &[
        &["PING"],
        &["AUTH", "default", "pass"],
        &["REPLCONF", "listening-port", "7000", "ip-address", "10.0.0.1"],
        &["REPLCONF", "capa", "eof", "capa", "psync2", "version", "8.0.0"],
    ];
    let before = [stream(introduction), stream(&[&["PSYNC", &id, "18"]]), b"\n\n".to_vec()].concat();
    let fresh = [stream(&[&["PING"], &["AUTH", "pass"]]), stream(&[&["PSYNC", "?", "-1"]])].concat();
    let after =
        [b"\n".to_vec(), stream(&[&["REPLCONF", "ACK", "17"], &["REPLCONF", "ACK", "20", "FACK", "17"]])]
            .concat();
    vec![
        [&[0][..], &before, &[0xfe], &after].concat(),
        [&[3][..], &before, &[0xfe], &after].concat(),
        [&[1][..], &fresh, &[0xfe]].concat(),
        [&[1][..], &stream(&[&["PING"], &["AUTH", "wrong"], &["PSYNC", "?", "-1"]])].concat(),
    ]
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder, in order.
pub fn folder_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let below = |path: PathBuf| if path.is_dir() { folder_files(&path) } else { vec![path] };
    paths.into_iter().flat_map(below).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<Vec<u8>> {
    let wanted = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    folder_files(folder).iter().filter(|path| wanted(path)).map(|path| read(path)).collect()
}

fn rdbs(repository: &Path) -> Vec<Vec<u8>> {
    files(&repository.join("crates/rdb/tests/fixtures"), "rdb")
}

fn records(rdb: &[u8]) -> Vec<Record> {
    let (mut reader, mut input, mut found) = (Reader::new(1 << 20), rdb, Vec::new());
    while let Ok(Some(event)) = reader.next(&mut input) {
        if let OwnedEvent::Key(record) = event {
            found.push(*record);
        }
    }
    found
}

/// Values with their type and product before them, in every encoding that this crate writes and that fixtures have.
fn values(repository: &Path) -> Vec<Vec<u8>> {
    let mut found = std::collections::BTreeSet::new();
    for rdb in rdbs(repository) {
        let mut parser = slotkeep_rdb::Parser::new(slotkeep_rdb::Level::Raw);
        let mut input = &rdb[..];
        let mut seed = Vec::new();
        while let Ok(Some(event)) = parser.next(&mut input) {
            match event {
                slotkeep_rdb::Event::Key(header) => {
                    let valkey = header.value_type == ValueType::ValkeyHash2;
                    seed = vec![header.value_type.byte(), u8::from(valkey)];
                }
                slotkeep_rdb::Event::ValueBytes(bytes) => seed.extend_from_slice(bytes),
                slotkeep_rdb::Event::KeyEnd { .. } => {
                    found.insert(std::mem::take(&mut seed));
                }
                _ => {}
            }
        }
        for record in records(&rdb) {
            for number in 6..=14 {
                let mut bytes = Vec::new();
                let version = RdbVersion { product: Product::Redis, number };
                if let Ok(value_type) = record.value.encode(version, &mut bytes) {
                    found.insert([&[value_type.byte(), 0], &bytes[..]].concat());
                }
            }
        }
    }
    // What no server of the fixtures writes: a zipmap, a module's value, an array.
    found.insert(b"\x09\x00\x0c\x01\x01f\x01\x02vfr\x01g\x01\x00\xff".to_vec());
    found.insert(b"\x09\x00\x0d\x02\x01f\x01\x02vfr\x01g\x01\x00w\xff".to_vec());
    found.insert(
        b"\x07\x00\x81\x01\x02\x03\x04\x05\x06\x07\x08\x01\x05\x02\x06\x03\x01\x02\x03\x04\x05\x02hi\x00"
            .to_vec(),
    );
    found.insert(b"\x1c\x00\x03\x00\x03\x03\x05hello\x04\x01*\x00\x00\x00\x00\x00\x00\x00\x05\x02\x00\x00\x00\x00\x00\x00\x0c@".to_vec());
    found.into_iter().filter(|seed| seed.len() < 4096).collect()
}

fn frames() -> Vec<u8> {
    let mut writer = FrameWriter::new().expect("parameters that zstd knows");
    for piece in [&b"one"[..], b"two", b"three"] {
        writer.frame(piece).expect("three frames are not too many");
    }
    writer.finish().expect("three frames are not too many")
}

fn index() -> Vec<u8> {
    let mut writer = IndexWriter::default();
    for (number, database) in [(0, 0), (1, 0), (2, 3), (3, 3)] {
        let expiry = (number % 2 == 1).then_some((TimestampMs(4_000_000_000_000), 7));
        let entry =
            IndexEntry { offset: number * 100, slot: key_slot(b"a"), database, fingerprint: 5, expiry };
        writer.push(&entry).expect("offsets ascend");
    }
    writer.take(usize::MAX)
}
