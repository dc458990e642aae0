//! Input that lies: cut, flipped, absurd lengths.

use super::support::{cut, read, redis};
use super::writer;
use crate::{Decoder, Element, Envelope, EnvelopeError, ErrorKind, Level, Parser, ValueType};

/// A small RDB with a value of nearly every encoding.
fn sample() -> Vec<u8> {
    let entries: Vec<Vec<u8>> = [&b"a"[..], b"1", b"bb", b"-7000"].iter().map(|e| e.to_vec()).collect();
    let mut body = vec![0xfe, 0];
    let mut add = |value_type: u8, key: &[u8], value: Vec<u8>| {
        writer::record(&mut body, Some(4_000_000_000_000), value_type, key, &value);
    };
    let packed = |blob: Vec<u8>| {
        let mut out = Vec::new();
        writer::string(&mut out, &blob);
        out
    };
    add(16, b"listpack", packed(writer::listpack(&entries)));
    add(13, b"ziplist", packed(writer::ziplist(&entries)));
    add(9, b"zipmap", packed(writer::zipmap(&entries)));
    add(11, b"intset", packed(writer::intset(&[-1, 5, 1 << 40])));
    let mut lzf = Vec::new();
    writer::lzf_string(&mut lzf, &b"abcdefgh".repeat(20));
    add(0, b"lzf", lzf);
    let mut stream = vec![1, 16];
    stream.extend([0; 16]);
    let node: Vec<Vec<u8>> =
        ["1", "0", "1", "f", "0", "2", "5", "0", "v", "4"].iter().map(|e| e.as_bytes().to_vec()).collect();
    writer::string(&mut stream, &writer::listpack(&node));
    stream.extend([1, 5, 0, 5, 0, 0, 0, 1]);
    stream.extend([1, 1, b'g', 5, 0, 1, 1]);
    stream.extend([0; 7]);
    stream.extend([5, 0, 0, 0, 0, 0, 0, 0, 0]);
    stream.extend([9; 8]);
    stream.extend([1, 1, 1, b'c']);
    stream.extend([7; 16]);
    stream.push(1);
    stream.extend([0; 7]);
    stream.extend([5, 0, 0, 0, 0, 0, 0, 0, 0]);
    add(21, b"stream", stream);
    add(7, b"module", vec![0x81, 1, 2, 3, 4, 5, 6, 7, 8, 1, 5, 2, 6, 3, 1, 2, 3, 4, 5, 2, b'h', b'i', 0]);
    writer::rdb("REDIS0012", &body)
}

#[test]
fn the_sample_is_read() {
    let found = read(Level::Element, &[&sample()]).unwrap();
    assert_eq!(found.digests.len(), 7);
    assert!(found.events.contains(&"ConsumerName c".to_owned()), "{:#?}", found.events);
}

#[test]
fn every_truncation_is_an_error() {
    let rdb = sample();
    for level in [Level::Raw, Level::Element] {
        for len in 0..rdb.len() {
            let error = read(level, &[&rdb[..len]]).unwrap_err();
            assert!(matches!(error.kind, ErrorKind::Truncated { .. }), "{len}: {error}");
            assert_eq!(error.offset, len as u64);
        }
    }
    let mut longer = rdb.clone();
    longer.push(0);
    assert!(matches!(read(Level::Raw, &[&longer]).unwrap_err().kind, ErrorKind::TrailingBytes { bytes: 1 }));
}

#[test]
fn every_flipped_bit_is_seen_and_none_makes_a_panic() {
    let rdb = sample();
    let whole = read(Level::Raw, &[&rdb]).unwrap();
    for at in 0..rdb.len() {
        for bit in 0..8 {
            let mut flipped = rdb.clone();
            flipped[at] ^= 1 << bit;
            let _ = read(Level::Element, &[&flipped]);
            assert_ne!(read(Level::Raw, &[&flipped]).ok().as_ref(), Some(&whole), "byte {at} bit {bit}");
            let mut envelope = Envelope::new();
            envelope.feed(&flipped);
            // A version below 5 promises no CRC; the parser sees the bytes that are left.
            let unchecked = envelope.version().is_some_and(|version| version.number < 5);
            assert!(unchecked || envelope.finish().is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn errors_do_not_depend_on_the_chunks() {
    let rdb = sample();
    for at in 9..rdb.len() {
        let mut flipped = rdb.clone();
        flipped[at] ^= 0x41;
        let whole = read(Level::Element, &[&flipped]).map(|read| read.events).map_err(|error| error.kind);
        let bytes = cut(&flipped, &[1]);
        let cut_up = read(Level::Element, &bytes).map(|read| read.events).map_err(|error| error.kind);
        assert_eq!(whole.is_ok(), cut_up.is_ok(), "byte {at}: {whole:?} {cut_up:?}");
        if whole.is_ok() {
            assert_eq!(whole, cut_up, "byte {at}");
        }
    }
}

#[test]
fn lengths_that_lie_end_in_truncation() {
    for (value_type, value) in [
        (1_u8, &[0x81, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, b'a'][..]),
        (2, &[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        (0, &[0x81, 0, 0, 1, 0, 0, 0, 0, 0, b'x']),
        (0, &[0xc3, 0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'x']),
        (16, &[0x81, 0, 0, 1, 0, 0, 0, 0, 0]),
        (15, &[0x81, 0, 0, 1, 0, 0, 0, 0, 0]),
        (28, &[0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    ] {
        let mut body = b"REDIS0014".to_vec();
        writer::record(&mut body, None, value_type, b"k", value);
        for level in [Level::Raw, Level::Element] {
            let error = read(level, &[&body]).unwrap_err();
            assert!(matches!(error.kind, ErrorKind::Truncated { inside: "a value" }), "{error}");
            assert_eq!(error.key.as_deref(), Some(&b"k"[..]));
        }
    }
    let mut body = b"REDIS0014\x00".to_vec();
    body.extend([0x81, 0, 0, 1, 0, 0, 0, 0, 0, b'x']);
    let error = read(Level::Raw, &[&body]).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::TooLong { .. } | ErrorKind::Truncated { .. }), "{error}");
}

#[test]
fn unknown_things_are_named() {
    let kind = |bytes: &[u8]| read(Level::Element, &[bytes]).unwrap_err().kind;
    assert!(matches!(kind(b"RADIS0011"), ErrorKind::BadMagic { .. }));
    assert!(matches!(kind(b"REDIS0015"), ErrorKind::UnknownVersion(version) if version == redis(15)));
    assert!(matches!(kind(b"VALKEY081"), ErrorKind::UnknownVersion(_)));
    assert!(matches!(kind(b"REDIS0014\x16\x01k"), ErrorKind::PreRelease { number: 22 }));
    assert!(matches!(kind(b"REDIS0014\x06\x01k"), ErrorKind::PreRelease { number: 6 }));
    assert!(matches!(kind(b"REDIS0014\xf6\x01k"), ErrorKind::PreRelease { number: 246 }));
    assert!(matches!(kind(b"REDIS0014\x63\x01k"), ErrorKind::UnknownType { number: 99, .. }));
    assert!(matches!(kind(b"REDIS0014\xfc\0\0\0\0\0\0\0\0\xff"), ErrorKind::Malformed { .. }));
}

#[test]
fn an_envelope_of_an_unknown_version_is_checked_all_the_same() {
    let rdb = writer::rdb("REDIS0099", b"whatever stands here");
    for chunk in [1, 3, 8, 9, 100] {
        let mut envelope = Envelope::new();
        for part in rdb.chunks(chunk) {
            envelope.feed(part);
        }
        assert_eq!(envelope.finish().unwrap().bytes, rdb.len() as u64);
    }
    let mut unchecked = rdb.clone();
    let end = unchecked.len() - 8;
    unchecked[end..].fill(0);
    let mut envelope = Envelope::new();
    envelope.feed(&unchecked);
    assert_eq!(envelope.finish().unwrap().crc, crate::Crc::NotComputed);
    let mut envelope = Envelope::new();
    envelope.feed(b"HTTP/1.1 200 OK and more");
    assert!(matches!(envelope.finish(), Err(EnvelopeError::BadMagic { .. })));
}

/// A string of 300 MiB of compressed zeros passes in chunks, and no piece is large.
#[test]
fn a_huge_compressed_string_passes_in_small_pieces() {
    let matches = 1_200_000_u64;
    let total = 1 + matches * 264;
    let mut head = vec![0xc3];
    writer::length(&mut head, 2 + matches * 3);
    writer::length(&mut head, total);
    head.extend([0, b'z']);
    let body = [0xe0, 255, 0].repeat(10_000);
    let mut decoder = Decoder::new(ValueType::String, redis(11));
    let (mut seen, mut ended) = (0, false);
    for chunk in std::iter::once(&head).chain(std::iter::repeat_n(&body, 120)) {
        let mut input = chunk.as_slice();
        while let Some(element) = decoder.next(&mut input).unwrap() {
            let Element::Bytes { bytes, last, .. } = element else {
                ended = true;
                break;
            };
            seen += bytes.len() as u64;
            assert!(bytes.len() <= 65536 + 264);
            assert_eq!(last, seen == total);
        }
    }
    assert!(ended);
    assert_eq!(seen, total);
}

/// The announced end of the compressed bytes lies inside a token, and a record follows: an error, and no byte is passed over.
#[test]
fn a_long_compressed_string_that_ends_inside_a_token_is_an_error() {
    for cut in 1..3 {
        let mut value = vec![0xc3];
        let matches = [0xe0, 255, 0].repeat(300);
        writer::length(&mut value, 2 + 900 - cut);
        writer::length(&mut value, 1 + 300 * 264);
        value.extend([0, b'z']);
        value.extend(matches);
        let mut body = Vec::new();
        writer::record(&mut body, None, 0, b"k", &value);
        writer::record(&mut body, None, 0, b"next", b"\x05value");
        let rdb = writer::rdb("REDIS0011", &body);
        for step in [1, 100, rdb.len()] {
            let error = read(Level::Element, &cut_up(&rdb, step)).unwrap_err();
            assert!(matches!(error.kind, ErrorKind::Lzf { .. }), "{error}");
        }
    }
}

fn cut_up(rdb: &[u8], step: usize) -> Vec<&[u8]> {
    cut(rdb, &[step])
}

#[test]
fn a_failed_parser_goes_on_failing() {
    let mut parser = Parser::new(Level::Raw);
    assert!(parser.next(&mut &b"NOT AN RDB"[..]).is_err());
    assert!(parser.next(&mut &b"x"[..]).is_err());
    assert!(parser.finish().is_err());
}
