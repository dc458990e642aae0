use proptest::prelude::*;

use super::*;

const MARK: &[u8; MARK_LEN] = b"0123456789abcdef0123456789abcdef01234567";

/// Feeds `pieces` and gives the payload, and what was left after its end if it ended.
fn run<'i>(header: PayloadHeader, pieces: impl IntoIterator<Item = &'i [u8]>) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut transfer = Transfer::new(header);
    let (mut payload, mut rest) = (Vec::new(), None);
    for piece in pieces {
        let mut input = piece;
        while let Some(chunk) = transfer.next(&mut input).unwrap() {
            match chunk {
                Chunk::Bytes(bytes) => {
                    assert!(!bytes.is_empty());
                    payload.extend_from_slice(bytes);
                }
                Chunk::End => rest = Some(Vec::new()),
            }
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(input),
            None => assert!(input.is_empty(), "input left before the end"),
        }
    }
    assert_eq!(transfer.is_ended(), rest.is_some());
    assert_eq!(transfer.connection_closed().is_ok(), rest.is_some());
    assert_eq!(transfer.received_bytes(), payload.len() as u64);
    (payload, rest)
}

#[test]
fn headers_of_both_kinds_are_read() {
    assert_eq!(PayloadHeader::parse(b"$175"), Some(PayloadHeader::Length(175)));
    let line = [b"$EOF:".as_slice(), MARK].concat();
    assert_eq!(PayloadHeader::parse(&line), Some(PayloadHeader::Mark(*MARK)));
    for line in [b"$".as_slice(), b"$-1", b"$+5", b"$1x", b"$99999999999999999999", b"$EOF:abc", b"175", b""]
    {
        assert_eq!(PayloadHeader::parse(line), None, "{}", line.escape_ascii());
    }
}

#[test]
fn an_announced_length_is_kept_to() {
    let header = PayloadHeader::Length(5);
    assert_eq!(run(header, [b"abcdefgh".as_slice()]), (b"abcde".to_vec(), Some(b"fgh".to_vec())));
    assert_eq!(run(header, [b"ab".as_slice(), b"c"]), (b"abc".to_vec(), None));
    assert_eq!(run(PayloadHeader::Length(u64::MAX), [b"abc".as_slice()]), (b"abc".to_vec(), None));
    assert_eq!(run(PayloadHeader::Length(0), [b"abc".as_slice()]), (Vec::new(), Some(b"abc".to_vec())));
}

#[test]
fn a_connection_that_ends_early_is_a_truncated_snapshot() {
    let mut transfer = Transfer::new(PayloadHeader::Length(5));
    let mut input = b"abc".as_slice();
    assert_eq!(transfer.next(&mut input), Ok(Some(Chunk::Bytes(b"abc"))));
    let error = transfer.connection_closed().unwrap_err();
    assert_eq!(error, TransferError::Truncated { received: 3, expected: Some(5) });
    assert_eq!(error.to_string(), "the snapshot ended after 3 bytes, expected 5");
}

#[test]
fn the_mark_is_found_at_every_place_it_can_be_cut() {
    let stream = [b"REDIS0010payload".as_slice(), MARK, b"*1\r\n"].concat();
    for first in 0..stream.len() {
        for second in first..stream.len() {
            let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
            let (payload, rest) = run(PayloadHeader::Mark(*MARK), pieces);
            assert_eq!(payload, b"REDIS0010payload");
            assert_eq!(rest.as_deref(), Some(b"*1\r\n".as_slice()));
        }
    }
}

#[test]
fn at_most_thirty_nine_bytes_are_held_back() {
    let mut transfer = Transfer::new(PayloadHeader::Mark(*MARK));
    let mut input = &[b"x".as_slice(), &MARK[..39]].concat()[..];
    assert_eq!(transfer.next(&mut input), Ok(Some(Chunk::Bytes(b"x"))));
    assert_eq!(transfer.next(&mut input), Ok(None));
    let mut input = b"!".as_slice();
    let mut given = Vec::new();
    while let Some(Chunk::Bytes(bytes)) = transfer.next(&mut input).unwrap() {
        given.extend_from_slice(bytes);
    }
    assert_eq!(given, [&MARK[..39], b"!"].concat());
}

proptest! {
    /// The smaller the alphabet, the more prefixes of the mark stand in the payload, and in the mark itself.
    #[test]
    fn any_chunking_gives_the_payload_and_the_rest(
        mark in prop::collection::vec(prop::sample::select(b"ab".to_vec()), MARK_LEN),
        parts in prop::collection::vec((0..=MARK_LEN, prop::collection::vec(prop::sample::select(b"abc".to_vec()), 0..6)), 0..20),
        rest in prop::collection::vec(any::<u8>(), 0..50),
        sizes in prop::collection::vec(1usize..70, 1..20),
    ) {
        let mark: [u8; MARK_LEN] = mark.try_into().unwrap();
        let mut stream = Vec::new();
        for (prefix, noise) in &parts {
            stream.extend_from_slice(&mark[..*prefix]);
            stream.extend_from_slice(noise);
        }
        stream.extend_from_slice(&mark);
        stream.extend_from_slice(&rest);
        let at = stream.windows(MARK_LEN).position(|window| window == mark).unwrap();

        let mut pieces = Vec::new();
        let (mut left, mut size) = (&stream[..], sizes.iter().cycle());
        while !left.is_empty() {
            let (piece, after) = left.split_at((*size.next().unwrap()).min(left.len()));
            pieces.push(piece);
            left = after;
        }
        let (payload, after) = run(PayloadHeader::Mark(mark), pieces);
        prop_assert_eq!(&payload[..], &stream[..at]);
        prop_assert_eq!(&after.unwrap()[..], &stream[at + MARK_LEN..]);
    }

    #[test]
    fn what_holds_no_mark_passes_unharmed(payload in prop::collection::vec(any::<u8>(), 0..2000), size in 1usize..200) {
        let (given, rest) = run(PayloadHeader::Mark(*MARK), payload.chunks(size));
        // Only a prefix of the mark may be held back.
        prop_assert!(payload.starts_with(&given) && MARK.starts_with(&payload[given.len()..]));
        prop_assert!(rest.is_none());
    }
}
