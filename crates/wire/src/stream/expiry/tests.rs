use proptest::prelude::*;

use super::*;
use crate::resp::write_command;

const START: ReplOffset = ReplOffset(50);
const NOW_MS: u64 = 1_700_000_000_000;

fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_command(&mut bytes, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    bytes
}

fn rewritten<'i>(pieces: impl IntoIterator<Item = &'i [u8]>) -> (Vec<u8>, Result<Account, ExpiryError>) {
    let mut rewriter = AbsoluteExpiry::new(START);
    let mut out = Vec::new();
    for piece in pieces {
        // The clock goes on by a millisecond each byte.
        if let Err(error) = rewriter.feed(piece, &mut out, |offset| NOW_MS + offset.0) {
            assert_eq!(rewriter.feed(b"x", &mut out, |_| 0), Err(error.clone()));
            return (out, Err(error));
        }
        assert_eq!(rewriter.account().sent.0, START.0 + out.len() as u64);
    }
    (out, Ok(rewriter.account()))
}

fn becomes(from: &[&str], to: &[&[&str]]) {
    let (out, account) = rewritten([command(from).as_slice()]);
    let expected: Vec<u8> = to.iter().flat_map(|words| command(words)).collect();
    assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
    assert_eq!(account.unwrap().original.0, START.0 + command(from).len() as u64);
}

#[test]
fn every_relative_form_becomes_absolute() {
    // The first byte's offset is 51.
    becomes(&["SET", "k", "v", "PX", "1000"], &[&["SET", "k", "v", "PXAT", "1700000001051"]]);
    becomes(&["set", "k", "v", "NX", "ex", "10"], &[&["set", "k", "v", "NX", "PXAT", "1700000010051"]]);
    becomes(&["SETEX", "k", "10", "v"], &[&["SET", "k", "v", "PXAT", "1700000010051"]]);
    becomes(&["PSETEX", "k", "10", "v"], &[&["SET", "k", "v", "PXAT", "1700000000061"]]);
    becomes(&["EXPIRE", "k", "10"], &[&["PEXPIREAT", "k", "1700000010051"]]);
    becomes(&["pexpire", "k", "10"], &[&["PEXPIREAT", "k", "1700000000061"]]);
    becomes(&["RESTORE", "k", "10", "p"], &[&["RESTORE", "k", "1700000000061", "p", "ABSTTL"]]);
    becomes(&["RESTORE", "k", "0", "p"], &[&["RESTORE", "k", "0", "p", "ABSTTL"]]);
    becomes(
        &["RESTORE-ASKING", "k", "10", "p", "REPLACE"],
        &[&["RESTORE-ASKING", "k", "0", "p", "REPLACE"], &["PEXPIREAT", "k", "1700000000061"]],
    );
    becomes(
        &["RESTORE", "k", "1700000099999", "p", "absttl", "REPLACE"],
        &[&["RESTORE", "k", "0", "p", "absttl", "REPLACE"], &["PEXPIREAT", "k", "1700000099999"]],
    );
}

#[test]
fn absolute_and_other_commands_go_on_as_they_are() {
    for words in [
        &["SET", "k", "v"][..],
        &["SET", "k", "PX"],
        &["SET", "k", "v", "PXAT", "5", "GET"],
        &["SET", "k", "v", "KEEPTTL"],
        &["PEXPIREAT", "k", "5"],
        &["EXPIREAT", "k", "5"],
        &["RESTORE", "k", "0", "p", "REPLACE"],
        &["HSET", "EXPIRE", "10"],
        &["PING"],
        &["SETEX"],
    ] {
        becomes(words, &[words]);
    }
}

#[test]
fn what_is_no_time_is_an_error() {
    for words in
        [&["EXPIRE", "k", "-1"][..], &["SETEX", "k", "", "v"], &["PEXPIRE", "k", "9223372036854775807"]]
    {
        let (_, account) = rewritten([command(words).as_slice()]);
        assert!(matches!(account, Err(ExpiryError::NotATime { offset: ReplOffset(51), .. })), "{account:?}");
    }
}

#[test]
fn values_are_not_held() {
    let mut rewriter = AbsoluteExpiry::new(START);
    let mut out = Vec::new();
    rewriter.feed(b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$104857600\r\n", &mut out, |_| NOW_MS).unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        out.clear();
        rewriter.feed(&piece, &mut out, |_| NOW_MS).unwrap();
        assert_eq!(out.len(), piece.len());
    }
    rewriter.feed(b"\r\n$2\r\nPX\r\n$1\r\n5\r\n", &mut out, |_| NOW_MS).unwrap();
    assert!(out.ends_with(b"\r\n$4\r\nPXAT\r\n$13\r\n1700000000005\r\n"));
    assert!(rewriter.is_between_commands());
    let too_long = b"*5\r\n$7\r\nRESTORE\r\n$9999999\r\n";
    assert!(matches!(rewriter.feed(too_long, &mut out, |_| 0), Err(ExpiryError::KeyTooLong { .. })));
}

fn any_command() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("SET"),
        Just("SETEX"),
        Just("PSETEX"),
        Just("EXPIRE"),
        Just("pexpire"),
        Just("RESTORE"),
        Just("GET"),
    ];
    let word = prop_oneof![
        Just("PX".to_owned()),
        Just("EX".to_owned()),
        Just("ABSTTL".to_owned()),
        Just("REPLACE".to_owned()),
        "[0-9]{1,10}",
        "[ -~]{0,50}",
    ];
    (name, "[ -~]{0,8}", "[0-9]{1,8}", prop::collection::vec(word, 0..4)).prop_map(
        |(name, key, time, rest)| {
            let words = [name, &key, &time].into_iter().chain(rest.iter().map(String::as_str));
            command(&words.collect::<Vec<_>>())
        },
    )
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same(
        commands in prop::collection::vec(any_command(), 0..12),
        cuts in prop::collection::vec(1_usize..40, 0..60),
    ) {
        let stream = commands.concat();
        let mut pieces = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let whole = rewritten([stream.as_slice()]);
        prop_assert_eq!(&whole.1, &rewritten(pieces.iter().copied()).1);
        if whole.1.is_ok() {
            prop_assert_eq!(&whole.0, &rewritten(pieces).0);
        }
    }
}
