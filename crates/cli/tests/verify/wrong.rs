//! What is whole and wrong all the same: written so, with checksums to match. Only looking inside finds it.

use std::fs;

use slotkeep_format::frames::FRAME_RAW_BYTES;
use slotkeep_format::lease::Holder;
use slotkeep_format::manifest::{BaseRecord, Manifest, ObjectRecord, ShardCut};
use slotkeep_format::{Depth, FrameWriter, Severity, VerifyRecord, decode_digest, encode_digest};
use slotkeep_model::{ReplId, SlotSet};

use crate::harness::{Bench, RUNTIME, command, commands_of, meta, options, piece, write_segment};

/// The only finding of a look at everything, by its depth, check and object.
#[track_caller]
fn only(bench: &Bench, (depth, check): (Depth, &str), object: &str) -> VerifyRecord {
    let record = bench.again(Depth::Structure);
    let found: Vec<_> =
        record.findings.iter().map(|one| (one.depth, one.check.as_str(), one.object.as_str())).collect();
    assert_eq!(found, [(depth, check, object)], "{:#?}", record.findings);
    assert_eq!(record.findings[0].severity, Severity::Problem);
    record
}

fn raw(bench: &Bench, object: &ObjectRecord) -> Vec<u8> {
    zstd(&fs::read(bench.object(&object.path)).unwrap())
}

fn zstd(stored: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = std::process::Command::new("zstd")
        .args(["-dqc"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stored).unwrap();
    child.wait_with_output().unwrap().stdout
}

fn framed(raw: &[u8]) -> Vec<u8> {
    let mut frames = FrameWriter::new().unwrap();
    let mut stored = Vec::new();
    for piece in raw.chunks(FRAME_RAW_BYTES) {
        stored.extend(frames.frame(piece).unwrap());
    }
    stored.extend(frames.finish().unwrap());
    stored
}

/// Puts other bytes in the place of an object of the first shard's base, and lets all manifests that name it say so.
fn replace(bench: &Bench, object: &ObjectRecord, stored: &[u8], raw_bytes: u64) {
    fs::write(bench.object(&object.path), stored).unwrap();
    let record = ObjectRecord {
        path: object.path.clone(),
        stored_bytes: stored.len() as u64,
        raw_bytes,
        blake3: blake3::hash(stored).to_hex().to_string(),
        header: None,
    };
    change(bench, |base| {
        for place in std::iter::once(&mut base.rdb).chain(&mut base.index).chain(&mut base.digest) {
            if place.path == record.path {
                *place = record.clone();
            }
        }
    });
}

/// Changes the bases of every manifest.
fn change(bench: &Bench, with: impl Fn(&mut BaseRecord)) {
    for (path, bytes) in crate::harness::objects(&bench.repo()) {
        if path.contains("/backups/") {
            let mut manifest = Manifest::parse(&bytes).unwrap();
            manifest.shards.iter_mut().for_each(|shard| with(&mut shard.base));
            fs::write(bench.object(&path), manifest.render().unwrap()).unwrap();
        }
    }
}

#[test]
fn an_rdb_that_is_not_what_the_server_sent() {
    let bench = Bench::new();
    let object = bench.latest().shards[0].base.rdb.clone();
    let mut bytes = raw(&bench, &object);
    let at = bytes.windows(6).position(|window| window == b"value ").unwrap();
    bytes[at] = b'V';
    replace(&bench, &object, &framed(&bytes), bytes.len() as u64);
    let record = bench.again(Depth::Structure);
    let named =
        |check: &str| record.findings.iter().any(|one| one.check == check && one.object == object.path);
    assert!(named("crc64"), "{:#?}", record.findings);
    // At the depth of objects all is well.
    assert_eq!(bench.again(Depth::Objects).findings, []);
}

#[test]
fn an_rdb_that_does_not_parse_is_named_with_the_byte() {
    let bench = Bench::new();
    let object = bench.latest().shards[0].base.rdb.clone();
    let mut bytes = raw(&bench, &object);
    let half = bytes.len() / 2;
    bytes.truncate(half);
    replace(&bench, &object, &framed(&bytes), half as u64);
    let record = bench.again(Depth::Structure);
    let parsed = record.findings.iter().find(|one| one.check == "rdb" && one.object == object.path).unwrap();
    assert!(parsed.offset.unwrap() <= half as u64, "{parsed:?}");
    assert!(
        record.backups.iter().filter(|backup| backup.worst == Severity::Problem).count() == 2,
        "{record:?}"
    );
}

#[test]
fn an_index_of_another_rdb() {
    let bench = Bench::new();
    let shards = bench.latest().shards;
    let (index, other) = (shards[0].base.index.clone().unwrap(), shards[1].base.index.clone().unwrap());
    let stored = fs::read(bench.object(&other.path)).unwrap();
    replace(&bench, &index, &stored, other.raw_bytes);
    only(&bench, (Depth::Structure, "index"), &index.path);
}

#[test]
fn a_digest_of_another_dataset() {
    let bench = Bench::new();
    let object = bench.latest().shards[0].base.digest.clone().unwrap();
    let (mut digest, version) = decode_digest(&fs::read(bench.object(&object.path)).unwrap()).unwrap();
    let (slot, row) = digest.occupied().next().unwrap();
    digest.slot_mut(slot).sum = row.sum.wrapping_add(1);
    let bytes = encode_digest(&digest, version);
    replace(&bench, &object, &bytes, bytes.len() as u64);
    let record = only(&bench, (Depth::Structure, "digest"), &object.path);
    assert!(record.findings[0].what.contains(&format!("slots {slot}")), "{record:?}");
}

#[test]
fn a_manifest_with_other_numbers() {
    let bench = Bench::new();
    let manifest = bench.latest();
    let path = format!("main/backups/{}.json", manifest.id);
    let mut wrong = manifest.clone();
    wrong.digest.as_mut().unwrap().sum ^= 1;
    fs::write(bench.object(&path), wrong.render().unwrap()).unwrap();
    only(&bench, (Depth::Structure, "total"), &path);

    fs::write(bench.object(&path), manifest.render().unwrap()).unwrap();
    let rdb = manifest.shards[0].base.rdb.path.clone();
    change(&bench, |base| {
        if base.rdb.path == rdb {
            base.keys = base.keys.map(|keys| keys + 1);
        }
    });
    only(&bench, (Depth::Structure, "rdb"), &rdb);
}

#[test]
fn a_cut_inside_a_transaction() {
    let bench = Bench::new();
    let mut manifest = bench.latest();
    let path = format!("main/backups/{}.json", manifest.id);
    let cut = manifest.shards[1].cut.as_mut().unwrap();
    let (segment, _) = last_segment(&bench, &cut.history);
    // Behind the first INCR of the transaction that ends the segment.
    cut.offset = segment.1 - 1 - (command(&["EXEC"]).len() + command(&["INCR", "b"]).len()) as u64;
    let offset = cut.offset;
    fs::write(bench.object(&path), manifest.render().unwrap()).unwrap();
    let record = only(&bench, (Depth::Structure, "cut"), &path);
    assert_eq!(record.findings[0].offset, Some(offset));
}

/// Start, end and path of the last segment of a history.
fn last_segment(bench: &Bench, history: &ReplId) -> ((u64, u64), String) {
    let repository = bench.open();
    let segments = RUNTIME.block_on(repository.segments("main", history)).unwrap();
    let last = segments.last().unwrap();
    ((last.start, last.end), last.path().to_owned())
}

#[test]
fn a_segment_that_is_missing_is_a_hole_even_if_nobody_saw_it_before() {
    let bench = Bench::new();
    fs::remove_dir_all(bench.object("main/verify")).unwrap();
    let manifest = bench.latest();
    let history = &manifest.shards[0].history;
    let repository = bench.open();
    let segments = RUNTIME.block_on(repository.segments("main", history)).unwrap();
    fs::remove_file(bench.object(segments[1].path())).unwrap();
    let record = bench.again(Depth::Structure);
    let log: Vec<_> =
        record.findings.iter().map(|one| (one.check.as_str(), one.object.as_str(), one.offset)).collect();
    let backup = format!("main/backups/{}.json", manifest.id);
    let cut = manifest.shards[0].cut.as_ref().unwrap().offset;
    assert_eq!(log, [("log", segments[2].path(), Some(segments[1].start)), ("log", &backup, Some(cut))]);
    let verdict = record.backups.iter().find(|verdict| verdict.id == manifest.id).unwrap();
    assert_eq!(verdict.worst, Severity::Problem);
    assert_eq!(record.backups[0].worst, Severity::Ok, "other backups need no log");
}

#[test]
fn a_log_that_nothing_leads_to() {
    let bench = Bench::new();
    fs::remove_dir_all(bench.object("main/verify")).unwrap();
    let child: ReplId = "d".repeat(40).parse().unwrap();
    let segments = RUNTIME.block_on(bench.open().segments("main", &child)).unwrap();
    fs::remove_file(bench.object(segments[0].path())).unwrap();
    let record = bench.again(Depth::Structure);
    let first = record.findings.iter().find(|one| one.object == segments[1].path()).unwrap();
    assert!(first.what.contains("the log begins at offset"), "{first:?}");
}

/// Adds a segment of those bytes behind the last one of a history, and verifies what is new.
fn added(bench: &Bench, bytes: &[u8], spoil: impl FnOnce(&mut slotkeep_repo::SegmentMeta)) -> VerifyRecord {
    let history: ReplId = "e".repeat(40).parse().unwrap();
    let ((_, start), _) = last_segment(bench, &history);
    let length = bytes.len() as u64;
    let mut meta = meta(6, start, length);
    spoil(&mut meta);
    let write = async {
        let repository = bench.open_async().await;
        let mut writer = repository.create_segment("main", &history, start..start + length).await.unwrap();
        writer.write(bytes).await.unwrap();
        writer.finish(meta).await.unwrap();
    };
    RUNTIME.block_on(write);
    let record = bench.verify(&options(Depth::Structure)).unwrap();
    let (_, path) = last_segment(bench, &history);
    assert!(record.findings.iter().all(|one| one.object == path), "{:#?}", record.findings);
    record
}

/// What is wrong with a segment's bytes, or with its record.
type Spoil = fn(&mut Vec<u8>, &mut slotkeep_repo::SegmentMeta);

#[test]
fn segments_whose_bytes_or_records_are_wrong() {
    let cases: [(&str, Spoil); 6] = [
        ("the stream holds", |bytes, _| bytes[0] = b'+'),
        ("inside a command or a transaction", |bytes, _| {
            let length = bytes.len() - command(&["EXEC"]).len();
            bytes[length..].copy_from_slice(&command(&["PING"]));
        }),
        ("its record says 25", |_, meta| meta.commands += 1),
        ("it says that database 3 is selected", |_, meta| meta.database = Some(3)),
        ("its times begin before", |_, meta| {
            let samples = meta.times.samples().to_vec();
            meta.times = slotkeep_format::Timeline::default();
            for sample in samples {
                let early = slotkeep_format::TimeSample {
                    from_ms: sample.from_ms - 3000,
                    until_ms: sample.until_ms - 3000,
                    ..sample
                };
                assert!(meta.times.push(early));
            }
        }),
        ("", |_, _| ()),
    ];
    for (words, spoil) in cases {
        let bench = Bench::new();
        let mut bytes = piece(6);
        let mut probe = meta(6, 1, bytes.len() as u64);
        spoil(&mut bytes, &mut probe);
        let record = added(&bench, &bytes, |meta| spoil(&mut piece(6), meta));
        if words.is_empty() {
            assert_eq!(record.findings, []);
            assert_eq!(record.totals.proved, 1, "the new one alone");
        } else {
            let found =
                record.findings.iter().any(|one| one.depth == Depth::Structure && one.what.contains(words));
            assert!(found, "{words}: {:#?}", record.findings);
        }
    }
    assert_eq!(commands_of(6), 24);
}

/// A listed backup whose third shard has its base at that offset of a history, and its cut behind so many bytes more.
fn backup_at(bench: &Bench, id: &str, history: &ReplId, (offset, cut_bytes): (u64, u64)) {
    let mut manifest = bench.latest();
    let shard = &mut manifest.shards[2];
    (shard.history, shard.offset) = (history.clone(), offset);
    shard.cut = (cut_bytes > 0).then(|| ShardCut { history: history.clone(), offset: offset + cut_bytes });
    let base = &mut shard.base;
    for object in [&mut base.rdb, base.index.as_mut().unwrap(), base.digest.as_mut().unwrap()] {
        let name = object.path.rsplit('/').next().unwrap().to_owned();
        let path = format!("main/history/{history}/base/{offset:020}-{id}/{name}");
        fs::create_dir_all(bench.object(&path).parent().unwrap()).unwrap();
        fs::copy(bench.object(&object.path), bench.object(&path)).unwrap();
        object.path = path;
    }
    id.clone_into(&mut manifest.id);
    let path = bench.object(&format!("main/backups/{id}.json"));
    fs::write(path, manifest.render().unwrap()).unwrap();
}

#[test]
fn a_gap_before_a_base_is_a_warning_where_an_archive_should_have_kept_it() {
    let starts = [(1, 100), (2, 5000), (3, 9000)];
    let log_bytes = piece(1).len() as u64;
    // Whether an archive was there, and whether the log before the gap is what a backup followed up to its cut.
    for (archived, cut_bytes, severity) in [
        (true, 0, Severity::Warning),
        (true, command(&["SET", "key:0", "1"]).len() as u64, Severity::Note),
        (true, log_bytes, Severity::Note),
        (false, 0, Severity::Note),
    ] {
        let bench = Bench::new();
        let history: ReplId = "9".repeat(40).parse().unwrap();
        let write = async {
            let repository = bench.open_async().await;
            let record = slotkeep_format::HistoryRecord {
                format_version: slotkeep_format::lineage::HISTORY_VERSION,
                history: history.clone(),
                parent: None,
                slots: SlotSet::full(),
                source: "127.0.0.1:7000".parse().unwrap(),
                first_seen_at: jiff::Timestamp::UNIX_EPOCH,
            };
            repository.put_history("main", &record).await.unwrap();
            for (number, start) in starts {
                write_segment(&repository, &history, start, number).await;
            }
            if archived {
                let holder = Holder { process: "1".to_owned(), agent: None, duration_ms: 10_000 };
                repository.presence("main", "a", holder).step(&|| 0).await.unwrap();
            }
        };
        RUNTIME.block_on(write);
        for (number, start) in starts {
            backup_at(&bench, &format!("20991125T000000.000Z-000{number}"), &history, (start - 1, cut_bytes));
        }
        let record = bench.again(Depth::Structure);
        let found: Vec<_> =
            record.findings.iter().map(|one| (one.severity, one.check.as_str(), one.offset)).collect();
        let gaps = [100, 5000].map(|start: u64| start + log_bytes);
        // Warnings tell every gap, a note all of them.
        let gaps = if severity == Severity::Warning { &gaps[..] } else { &gaps[1..] };
        let wanted: Vec<_> = gaps.iter().map(|start| (severity, "log", Some(*start))).collect();
        assert_eq!(found, wanted, "{archived} {cut_bytes}: {:#?}", record.findings);
        assert!(record.backups.iter().all(|backup| backup.worst <= severity));
    }
}
