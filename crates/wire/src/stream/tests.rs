use proptest::prelude::*;

use super::*;
use crate::resp::write_command;

fn start(offset: u64) -> StreamStart {
    StreamStart { offset: ReplOffset(offset), db: None, in_transaction: false }
}

/// What can be seen of a stream: each command's place, size and first arguments, the state after it, and the error.
type Seen = (Vec<(u64, u64, u64, Vec<Vec<u8>>, u64, Option<u32>, bool)>, Option<StreamError>);

fn observe<'i>(from: StreamStart, pieces: impl IntoIterator<Item = &'i [u8]>) -> Seen {
    let mut splitter = Splitter::new(from);
    let mut seen = Vec::new();
    for piece in pieces {
        let mut input = piece;
        loop {
            let (place, args) = match splitter.next(&mut input) {
                Ok(Some(command)) => {
                    let args = (0..9).filter_map(|number| command.arg(number).map(<[u8]>::to_vec)).collect();
                    ((command.start.0, command.end.0, command.arg_count), args)
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(splitter.next(&mut input), Err(error.clone()));
                    return (seen, Some(error));
                }
            };
            assert!(splitter.is_between_commands());
            let (db, open) = (splitter.db(), splitter.in_transaction());
            seen.push((place.0, place.1, place.2, args, splitter.safe_cut().0, db, open));
        }
        assert!(input.is_empty());
    }
    (seen, None)
}

fn stream(commands: &[&[&str]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for command in commands {
        let parts: Vec<&[u8]> = command.iter().map(|part| part.as_bytes()).collect();
        write_command(&mut bytes, &parts);
    }
    bytes
}

#[test]
fn offsets_are_those_of_the_bytes() {
    // The sizes that servers' streams show: SELECT 0 takes 23 bytes, PING 14, REPLCONF GETACK * 37.
    let bytes = stream(&[&["SELECT", "0"], &["ping"], &["REPLCONF", "GETACK", "*"]]);
    let (seen, error) = observe(start(100), [bytes.as_slice()]);
    assert_eq!(error, None);
    let places: Vec<(u64, u64)> = seen.iter().map(|command| (command.0, command.1)).collect();
    assert_eq!(places, [(101, 123), (124, 137), (138, 174)]);
    assert_eq!(seen.last().unwrap().5, Some(0));

    let mut splitter = Splitter::new(start(0));
    let ask = stream(&[&["replconf", "getack", "*"]]);
    let mut input = ask.as_slice();
    assert!(splitter.next(&mut input).unwrap().unwrap().asks_for_ack());
}

#[test]
fn no_cut_is_safe_inside_a_transaction() {
    let bytes =
        stream(&[&["SET", "a", ""], &["MULTI"], &["SELECT", "12"], &["INCR", "a"], &["EXEC"], &["PING"]]);
    let (seen, _) = observe(start(0), [bytes.as_slice()]);
    let first = seen[0].1;
    let cuts: Vec<u64> = seen.iter().map(|command| command.4).collect();
    assert_eq!(cuts, [first, first, first, first, seen[4].1, seen[5].1]);
    assert_eq!(
        seen.iter().map(|command| command.6).collect::<Vec<_>>(),
        [false, true, true, true, false, false]
    );
    assert_eq!(seen[2].5, Some(12));

    let resumed = StreamStart { offset: ReplOffset(7), db: Some(3), in_transaction: true };
    let (seen, _) = observe(resumed, [stream(&[&["INCR", "a"], &["EXEC"]]).as_slice()]);
    assert_eq!((seen[0].4, seen[0].5, seen[1].4), (7, Some(3), seen[1].1));
}

#[test]
fn long_arguments_are_passed_over() {
    let long = "x".repeat(100_000);
    let bytes = stream(&[&["SET", &long, &long, "PXAT", "1", "KEEPTTL"]]);
    let mut splitter = Splitter::new(start(0));
    let mut input = bytes.as_slice();
    let command = splitter.next(&mut input).unwrap().unwrap();
    assert_eq!((command.end.0, command.arg_count), (bytes.len() as u64, 6));
    assert_eq!(command.arg(1), Some(&long.as_bytes()[..KEPT_BYTES]));
    assert_eq!((command.arg(3), command.arg(4)), (Some(b"PXAT".as_slice()), None));
    assert!(splitter.head.args.iter().all(|arg| arg.capacity() < 1000));
}

#[test]
fn what_is_no_stream_is_refused_at_its_offset() {
    let header = |offset, found: &str, expected| StreamError::BadHeader {
        offset: ReplOffset(offset),
        found: found.to_owned(),
        expected,
    };
    let (count, length) = ("`*`, a number of arguments and CRLF", "`$`, a length and CRLF");
    for (bytes, error) in [
        ("\n", header(11, r"\n", count)),
        ("PING\r\n", header(11, "P", count)),
        ("*0\r\n", header(11, r"*0\r\n", count)),
        ("*-1\r\n", header(11, r"*-1\r\n", count)),
        ("*1\n", header(11, r"*1\n", count)),
        ("*111111111111111111111111111", header(11, "*1111111111111111111111", count)),
        ("*1\r\n:4\r\n", header(15, ":", length)),
        ("*1\r\n$-1\r\n", header(15, r"$-1\r\n", length)),
        ("*1\r\n$4\r\nPINGxx", StreamError::Unterminated { offset: ReplOffset(23) }),
        ("*1\r\n$4\r\nPING\rx", StreamError::Unterminated { offset: ReplOffset(24) }),
        ("*1\r\n$18446744073709551615\r\n", StreamError::OffsetOverflow),
    ] {
        assert_eq!(observe(start(10), [bytes.as_bytes()]).1, Some(error.clone()), "{bytes}");
        assert_eq!(observe(start(10), bytes.as_bytes().chunks(1)).1, Some(error), "{bytes}");
    }
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same(
        commands in prop::collection::vec(prop_oneof![
            Just(vec![b"MULTI".to_vec()]), Just(vec![b"exec".to_vec()]), Just(vec![b"SELECT".to_vec(), b"5".to_vec()]),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..7),
        ], 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..4),
        sizes in prop::collection::vec(1usize..40, 1..8),
    ) {
        let mut bytes = Vec::new();
        for command in &commands {
            let parts: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            write_command(&mut bytes, &parts);
        }
        bytes.extend_from_slice(&noise);
        let whole = observe(start(0), [bytes.as_slice()]);
        prop_assert!(whole.0.len() >= commands.len());
        let (mut left, mut size, mut pieces) = (bytes.as_slice(), sizes.iter().cycle(), Vec::new());
        while !left.is_empty() {
            let (piece, after) = left.split_at((*size.next().unwrap()).min(left.len()));
            pieces.push(piece);
            left = after;
        }
        prop_assert_eq!(observe(start(0), pieces), whole);
    }
}
