//! Values and RDBs of any size pass in constant memory: measured, as the kernel counts it, on data that is made as it is read.
//!
//! One test, for the peak is that of the process.
#![cfg(target_os = "linux")]
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]

use slotkeep_model::{Product, RdbVersion};
use slotkeep_rdb::{
    Digester, Event, Level, Parser, Plan, Policy, Rewriter, Translation, Translator, ValueType,
};

const MIB: u64 = 1 << 20;
/// How much the peak may grow over all that follows; the buffers of a parser and a rewriter are some hundred KiB each.
const GROWTH_LIMIT: u64 = 6 * MIB;

/// The most memory that the process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn length(number: u64) -> Vec<u8> {
    let mut bytes = vec![0x81];
    bytes.extend(number.to_be_bytes());
    bytes
}

/// An RDB that is made as it is read: chunks, each repeated so many times.
type Made<'a> = Vec<(&'a [u8], u64)>;

fn chunks<'a>(made: &'a Made<'a>) -> impl Iterator<Item = &'a [u8]> {
    made.iter().flat_map(|(chunk, times)| (0..*times).map(|_| *chunk))
}

/// Reads all of it, and gives how many bytes and elements there were.
fn read(level: Level, made: &Made<'_>) -> (u64, u64) {
    let (mut parser, mut digester, mut elements) = (Parser::new(level), Digester::new(), 0);
    for mut input in chunks(made) {
        while let Some(event) = parser.next(&mut input).unwrap() {
            if let Some(digest) = digester.event(&event) {
                elements += digest.elements;
            }
            if let Event::ValueBytes(bytes) | Event::Element(slotkeep_rdb::Element::Bytes { bytes, .. }) =
                event
            {
                assert!(bytes.len() as u64 <= MIB);
            }
        }
    }
    parser.finish().unwrap();
    (parser.offset(), elements)
}

fn rewrite(target: RdbVersion, made: &Made<'_>, out: &mut Vec<u8>) -> u64 {
    let (mut rewriter, mut bytes) = (Rewriter::new(Policy::new(target)), 0);
    for mut input in chunks(made) {
        while !input.is_empty() {
            out.clear();
            rewriter.feed(&mut input, out).unwrap();
            bytes += out.len() as u64;
        }
    }
    out.clear();
    rewriter.finish(out).unwrap();
    bytes + out.len() as u64
}

fn redis(number: u16) -> RdbVersion {
    RdbVersion { product: Product::Redis, number }
}

/// The end mark, and a CRC64 that says it was not computed.
const END: &[u8] = &[0xff, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn anything_of_any_size_passes_in_constant_memory() {
    let zeros = vec![0_u8; 1 << 20];
    let mut out = Vec::with_capacity(3 << 20);
    out.resize(3 << 20, 1);
    let member: Vec<u8> = (0..50_000_u32)
        .flat_map(|number| {
            let mut bytes = b"\x0bmember-".to_vec();
            bytes.extend(number.to_be_bytes());
            bytes.extend(f64::from(number).to_le_bytes());
            bytes
        })
        .collect();
    let field: Vec<u8> =
        b"\x05field\x05value".iter().copied().chain(4_000_000_000_000_i64.to_le_bytes()).collect();
    let fields = field.repeat(50_000);
    let mut listpack = vec![0, 0, 0, 0, 0xff, 0xff];
    listpack.extend([0x84, b'i', b't', b'e', b'm', 5].repeat(1000));
    listpack.push(0xff);
    let total = u32::try_from(listpack.len()).unwrap().to_le_bytes();
    listpack.iter_mut().zip(total).for_each(|(place, byte)| *place = byte);
    let mut node = vec![2];
    node.extend(length(listpack.len() as u64));
    node.extend(listpack);
    let before = peak();

    // A string of 512 MiB.
    let mut head = b"REDIS0011\xfe\x00\x00\x01k".to_vec();
    head.extend(length(512 * MIB));
    let string: Made<'_> = vec![(&head, 1), (&zeros, 512), (END, 1)];
    assert_eq!(read(Level::Raw, &string).0, 512 * MIB + head.len() as u64 + 9);
    assert_eq!(read(Level::Element, &string).1, 1);
    assert!(rewrite(redis(9), &string, &mut out) > 512 * MIB);

    // A sorted set of 20 million members.
    let mut head = b"REDIS0011\xfe\x00\x05\x01k".to_vec();
    head.extend(length(20_000_000));
    let zset: Made<'_> = vec![(&head, 1), (&member, 400), (END, 1)];
    assert_eq!(read(Level::Element, &zset).1, 20_000_000);
    assert!(rewrite(redis(9), &zset, &mut out) > 300 * MIB);

    // One of two million, for a server that has scores as text.
    let mut head = b"REDIS0011\xfe\x00\x05\x01k".to_vec();
    head.extend(length(2_000_000));
    let zset: Made<'_> = vec![(&head, 1), (&member, 40), (END, 1)];
    assert!(rewrite(redis(7), &zset, &mut out) > 25 * MIB);

    // A hash of two million fields that expire, for the other product.
    let mut head = b"VALKEY080\xfe\x00\x16\x01k".to_vec();
    head.extend(length(2_000_000));
    let hash: Made<'_> = vec![(&head, 1), (&fields, 40), (END, 1)];
    assert!(rewrite(redis(12), &hash, &mut out) > 32 * MIB);

    // A list of five million items, for a server without listpacks.
    let mut head = b"REDIS0012\xfe\x00\x12\x01k".to_vec();
    head.extend(length(5_000));
    let list: Made<'_> = vec![(&head, 1), (&node, 5000), (END, 1)];
    assert!(rewrite(redis(9), &list, &mut out) > 25 * MIB);

    // An RDB of more than 4 GiB, of one value a MiB.
    let head = b"REDIS0011\xfe\x00";
    let mut record = b"\x00\x01k".to_vec();
    record.extend(length(zeros.len() as u64));
    let records: Vec<(&[u8], u64)> = (0..4200).flat_map(|_| [(&record[..], 1), (&zeros[..], 1)]).collect();
    let mut large: Made<'_> = vec![(head, 1)];
    large.extend(records);
    large.push((END, 1));
    assert!(read(Level::Raw, &large).0 > u64::from(u32::MAX));

    // A stream of three million pending entries, for a server that has fewer parts of streams.
    let mut tail = vec![0, 0, 1, 0, 0, 0, 0, 0, 1, 1, b'g', 1, 0, 0];
    tail.extend(length(3_000_000));
    let mut pending = [7; 24].to_vec();
    pending.push(1);
    let pending = pending.repeat(10_000);
    let mut consumer = vec![1, 1, b'c'];
    consumer.extend([9; 16]);
    consumer.extend(length(3_000_000));
    let owned = vec![7; 160_000];
    let translation = Translation::new(redis(9));
    let from = ValueType::StreamListpacks3;
    let Plan::Translate(to) = translation.plan(from).unwrap() else {
        unreachable!("type 21 is not in RDB 9")
    };
    let mut translator = Translator::new(&translation, from, redis(11), to);
    let stream: Made<'_> = vec![(&tail, 1), (&pending, 300), (&consumer, 1), (&owned, 300)];
    let mut ended = false;
    for mut input in chunks(&stream) {
        out.clear();
        ended = translator.feed(&mut input, &mut out).unwrap();
    }
    assert!(ended);

    let growth = peak() - before;
    assert!(growth < GROWTH_LIMIT, "the peak grew by {growth} bytes");
}
