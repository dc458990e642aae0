//! Payloads and RDBs that real servers wrote.

use slotkeep_model::{Product, RdbVersion};

use super::support::{elements, read};
use super::writer;
use crate::{Crc, DumpPayload, Envelope, Level, dump_payload};

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

const STREAM: &[&str] = &[
    "StreamEntry { id: StreamId { ms: 1, seq: 1 }, fields: 1 }",
    "StreamField a",
    "StreamValue 1",
    "StreamEntry { id: StreamId { ms: 1, seq: 2 }, fields: 1 }",
    "StreamField a",
    "StreamValue 2",
];
const TTL_HASH: &[&str] = &["Field f", "Value v", "FieldExpiry(4000000000000)", "Field g", "Value w"];

/// Value, footer version, elements, DUMP payload.
const VECTORS: &[(&str, u16, &[&str], &str)] = &[
    ("SET s q", 9, &["String q"], "0001710900ad7770a4364524e5"),
    ("SET s q", 10, &["String q"], "0001710a007d85216862c34754"),
    ("SET s q", 12, &["String q"], "0001710c00b6f315a898e9d91d"),
    ("SET s q", 14, &["String q"], "0001710e000fdef91731f05325"),
    ("SET s q", 80, &["String q"], "0001715000b2afe8f9fc9120a0"),
    ("-5", 12, &["String -5"], "00c0fb0c0082b2f2342d0ca121"),
    ("1000", 12, &["String 1000"], "00c1e8030c0042a7734e40ee292d"),
    ("100000", 12, &["String 100000"], "00c2a08601000c003a5237909505383d"),
    ("99999999999", 12, &["String 99999999999"], "000b39393939393939393939390c00e8c67c3bf4f17136"),
    (
        "40 a",
        12,
        &["String aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
        "00c30928016161e01b000161610c00047f1b6a540f1d54",
    ),
    ("list", 9, &["Item a", "Item 1"], "0e0110100000000d000000020000016103f2ff09000a5bac5eb8d7c929"),
    ("list", 12, &["Item a", "Item 1"], "1201020c0c00000002008161020101ff0c005fe01fe3563d34cc"),
    (
        "intset",
        12,
        &["Member 1", "Member 2", "Member 300"],
        "0b0e0200000003000000010002002c010c002e66864e81bfb7e3",
    ),
    ("set", 12, &["Member a", "Member b"], "140d0d0000000200816102816202ff0c00a84583074e16a194"),
    (
        "zset",
        9,
        &["Member m", "Score(1.5)"],
        "0c13130000000d000000020000016d0303312e35ff09005d38c0b49b18605f",
    ),
    ("zset", 12, &["Member m", "Score(1.5)"], "110f0f0000000200816d0283312e3504ff0c0082afb3a0820fd0c3"),
    ("zset", 12, &["Member m", "Score(1.5)"], "0501016d000000000000f83f0c004d98befd605a7736"),
    ("hash", 9, &["Field f", "Value v"], "0d11110000000d0000000200000166030176ff0900d0e7c38cbb022b78"),
    ("hash", 12, &["Field f", "Value v"], "100d0d0000000200816602817602ff0c00eb870984d97e96d4"),
    (
        "hash with expiry",
        12,
        TTL_HASH,
        "1900409452a30300001f1f0000000600816602817602f400409452a3030000098167028177020001ff0c00920dea8ea4f54062",
    ),
    ("hash with expiry", 12, TTL_HASH, "1800409452a303000002010166017600016701770c00fd84bc4b02b9b780"),
    (
        "hash with expiry",
        80,
        TTL_HASH,
        "16020166017600409452a303000001670177ffffffffffffffff50006e9deb180d34c944",
    ),
    (
        "stream",
        9,
        STREAM,
        "0f01100000000000000001000000000000000126260000000f0002010001010181610200010201000100010101040102010001010102010401ff020102010167000000000900e79335a9d9885b4a",
    ),
    (
        "stream",
        10,
        STREAM,
        "1301100000000000000001000000000000000126260000000f0002010001010181610200010201000100010101040102010001010102010401ff0201020101000002010167000081ffffffffffffffff00000a0056dbca2124be1efa",
    ),
    (
        "stream",
        12,
        STREAM,
        "1501100000000000000001000000000000000126260000000f0002010001010181610200010201000100010101040102010001010102010401ff0201020101000002010167000081ffffffffffffffff00000c00181f83b0796b096b",
    ),
    (
        "stream",
        14,
        STREAM,
        "1b01100000000000000001000000000000000126260000000f0002010001010181610200010201000100010101040102010001010102010401ff0201020101000002010167000081ffffffffffffffff000000406440640000000e00664dd69183d9c866",
    ),
    (
        "array",
        14,
        &[
            "ArrayInfo { count: 3, insert_index: None }",
            "ArrayIndex(3)",
            "ArrayString hello",
            "ArrayIndex(4)",
            "ArrayString 42",
            "ArrayIndex(5)",
            "ArrayDouble(3.5)",
        ],
        "1c030003030568656c6c6f04012a0000000000000005020000000000000c400e00690f17390b481112",
    ),
];

#[test]
fn payloads_of_real_servers_decode() {
    for (name, number, expected, hex) in VECTORS {
        let payload = bytes(hex);
        let parsed = DumpPayload::parse(&payload).unwrap();
        assert_eq!(parsed.version.number, *number, "{name}");
        let found = elements(parsed.value_type, parsed.version, parsed.value).unwrap();
        // Of streams the entries are compared; what follows them differs by type.
        assert_eq!(&found[..expected.len().min(found.len())], *expected, "{name} {hex}");
        if *name != "stream" {
            assert_eq!(found.len(), expected.len(), "{name} {hex}");
        }
    }
}

#[test]
fn payloads_are_built_as_real_servers_build_them() {
    for (name, number, _, hex) in VECTORS {
        let payload = bytes(hex);
        let parsed = DumpPayload::parse(&payload).unwrap();
        assert_eq!(dump_payload(parsed.value_type, parsed.value, *number), payload, "{name}");
        let (mut builder, first) = crate::DumpBuilder::new(parsed.value_type, *number);
        let mut built = first.to_vec();
        for part in parsed.value.chunks(3) {
            builder.value_bytes(part);
            built.extend_from_slice(part);
        }
        built.extend(builder.footer());
        assert_eq!(built, payload, "{name}");
    }
}

#[test]
fn the_same_value_has_the_same_digest_in_every_encoding() {
    let mut values = std::collections::HashMap::new();
    for (name, _, _, hex) in VECTORS {
        let payload = bytes(hex);
        let parsed = DumpPayload::parse(&payload).unwrap();
        let mut body = Vec::new();
        writer::record(&mut body, None, parsed.value_type.byte(), b"k", parsed.value);
        let magic = if parsed.version.product == Product::Valkey { "VALKEY080" } else { "REDIS0014" };
        let rdb = writer::rdb(magic, &body);
        let digest = read(Level::Element, &[&rdb]).unwrap().digests[0].1;
        let before = *values.entry(*name).or_insert(digest.value);
        assert_eq!(digest.value, before, "{name} {hex}");
    }
    assert_eq!(values.values().collect::<std::collections::HashSet<_>>().len(), values.len());
}

#[test]
fn a_payload_with_a_flipped_bit_is_refused() {
    let payload = bytes("0001710900ad7770a4364524e5");
    for at in 0..payload.len() {
        let mut flipped = payload.clone();
        flipped[at] ^= 1;
        assert!(DumpPayload::parse(&flipped).is_err(), "byte {at}");
    }
}

const VALKEY_9_1: &str = "56414c4b4559303830fa0a76616c6b65792d76657205392e312e32fa0a72656469732d62697473c040fa056374696d65c26cc9026bfa08757365642d6d656dc2f8ac1100fa0e7265706c2d73747265616d2d6462c000fa077265706c2d69642830316233353035373662333739353530393930623966643032353464623962653736323863663634fa0b7265706c2d6f6666736574c000fa08616f662d62617365c000fe00fb020016016801016601760c13f202a2010000100268320d0d0000000200816102816202ffffc21b7259f0bdaa6c";

#[test]
fn a_whole_rdb_of_valkey_9_1_is_read() {
    let rdb = bytes(VALKEY_9_1);
    let found = read(Level::Element, &[&rdb]).unwrap();
    assert_eq!(found.digests.len(), 2);
    assert_eq!(found.digests[0].0, b"h");
    assert!(found.events.iter().any(|event| event.contains("FieldExpiry")));
    let mut envelope = Envelope::new();
    envelope.feed(&rdb);
    let report = envelope.finish().unwrap();
    assert_eq!(report.version, RdbVersion { product: Product::Valkey, number: 80 });
    assert!(matches!(report.crc, Crc::Matches(_)));
}

#[test]
fn records_of_cluster_mode_are_read() {
    let mut body = vec![0xfa];
    writer::string(&mut body, b"cluster-asm-task");
    body.extend(bytes("00fe00fb0100f47c87010000 0161c001".replace(' ', "").as_str()));
    let found = read(Level::Element, &[&writer::rdb("REDIS0012", &body)]).unwrap();
    assert!(found.events.contains(&"SlotInfo { slot: Slot(15495), keys: 1, expires: 0 }".to_owned()));
    assert_eq!(found.digests[0].1.slot.number(), 15495);
    let mut body = bytes("f3");
    writer::string(&mut body, &[b'j'; 40]);
    body.extend(bytes("02000541c841c9"));
    let found = read(Level::Element, &[&writer::rdb("VALKEY080", &body)]).unwrap();
    assert!(found.events[1].starts_with("SlotImport"), "{:?}", found.events);
}

#[test]
fn the_crc_is_that_of_the_servers() {
    use crc_fast::{CrcAlgorithm, checksum};
    assert_eq!(checksum(CrcAlgorithm::Crc64Redis, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
}
