use proptest::prelude::*;

use super::*;
use crate::resp::write_command;
use crate::stream::{Splitter, StreamStart};

const START: ReplOffset = ReplOffset(1000);

fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_command(&mut bytes, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    bytes
}

fn filtered<'i>(
    reader: Reader,
    gap: Gap,
    pieces: impl IntoIterator<Item = &'i [u8]>,
) -> (Vec<u8>, Result<Account, FilterError>) {
    let mut filter = Filter::new(START, reader, gap);
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = filter.feed(piece, &mut out) {
            assert_eq!(filter.feed(b"x", &mut out), Err(error.clone()));
            return (out, Err(error));
        }
        assert_eq!(filter.account().sent.0, START.0 + out.len() as u64);
        assert!(filter.held.len() < 128);
    }
    (out, Ok(filter.account()))
}

#[test]
fn commands_that_are_not_for_the_reader_are_left_out() {
    let kept = [command(&["SELECT", "0"]), command(&["SET", "PUBLISH", "CLUSTER"]), command(&["cluster"])];
    let left_out = [
        command(&["REPLCONF", "GETACK", "*"]),
        command(&["publish", "channel", "words"]),
        command(&["SPUBLISH", "channel", "words"]),
        command(&["CLUSTER", "SETSLOT", "1", "NODE", "a"]),
        command(&["CLUSTER", "a-subcommand-that-nobody-knows", "1"]),
    ];
    let stream: Vec<u8> = kept.iter().chain(&left_out).chain(&kept).flatten().copied().collect();
    let (out, account) = filtered(Reader::Engine, Gap::Close, [stream.as_slice()]);
    let expected: Vec<u8> = kept.iter().chain(&kept).flatten().copied().collect();
    assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
    let account = account.unwrap();
    assert_eq!(account.original.0, START.0 + stream.len() as u64);
    assert_eq!(account.sent.0, START.0 + expected.len() as u64);
}

#[test]
fn a_filled_gap_ends_in_a_ping_and_leaves_offsets_as_they_were() {
    let ask = command(&["REPLCONF", "GETACK", "*"]);
    let (out, account) = filtered(Reader::Engine, Gap::Fill, [ask.as_slice()]);
    assert_eq!(out, [&[b'\n'; 37 - 14], PING].concat());
    let account = account.unwrap();
    assert_eq!(account.original, account.sent);
}

#[test]
fn moves_of_slots_stop_an_engine_and_reach_nodes() {
    for (words, name) in [
        (vec!["TRIMSLOTS", "RANGES", "1", "0", "5"], "TRIMSLOTS"),
        (vec!["sflush", "0", "5"], "SFLUSH"),
        (vec!["CLUSTER", "flushslot", "5"], "CLUSTER FLUSHSLOT"),
        (vec!["CLUSTER", "SYNCSLOTS", "FINISH"], "CLUSTER SYNCSLOTS"),
    ] {
        let before = command(&["SET", "k", "v"]);
        let stream = [before.clone(), command(&words)].concat();
        let (out, account) = filtered(Reader::Engine, Gap::Fill, [stream.as_slice()]);
        let offset = ReplOffset(START.0 + before.len() as u64 + 1);
        assert_eq!(account, Err(FilterError::MovesSlots { offset, command: name }));
        assert_eq!(out, before);
        let (out, _) = filtered(Reader::Node, Gap::Close, [stream.as_slice()]);
        let passes = name != "CLUSTER SYNCSLOTS";
        assert_eq!(out == stream, passes, "{name}");
    }
}

#[test]
fn open_transactions_are_known() {
    let mut filter = Filter::new(START, Reader::Engine, Gap::Fill);
    let mut out = Vec::new();
    for (words, open) in [
        (&["multi"][..], true),
        (&["SET", "EXEC", "v"], true),
        (&["CLUSTER", "MULTI"], true),
        (&["EXEC"], false),
        (&["SET", "MULTI", "v"], false),
    ] {
        filter.feed(&command(words), &mut out).unwrap();
        assert_eq!(filter.in_transaction(), open, "{words:?}");
    }
}

#[test]
fn a_file_gets_no_pings_and_nodes_do() {
    let stream = [command(&["PING"]), command(&["SET", "k", "v"])].concat();
    assert_eq!(filtered(Reader::AofFile, Gap::Close, [stream.as_slice()]).0, command(&["SET", "k", "v"]));
    assert_eq!(filtered(Reader::Node, Gap::Fill, [stream.as_slice()]).0, stream);
}

#[test]
fn what_is_left_out_is_not_held() {
    let mut filter = Filter::new(START, Reader::Engine, Gap::Fill);
    let mut out = Vec::new();
    let len = 100 << 20;
    filter.feed(format!("*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n${len}\r\n").as_bytes(), &mut out).unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        out.clear();
        filter.feed(&piece, &mut out).unwrap();
        assert_eq!(out.len(), piece.len());
    }
    filter.feed(b"\r\n", &mut out).unwrap();
    assert!(out.ends_with(PING));
    assert!(filter.is_between_commands());
    assert_eq!(filter.account().original, filter.account().sent);
}

fn any_command() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("PUBLISH".to_owned()),
        Just("cluster".to_owned()),
        Just("REPLCONF".to_owned()),
        Just("PING".to_owned()),
        Just("SETSLOT".to_owned()),
        Just("FLUSHSLOT".to_owned()),
        Just("TRIMSLOTS".to_owned()),
        "[ -~]{0,40}",
    ];
    prop::collection::vec(word, 1..6)
        .prop_map(|words| command(&words.iter().map(String::as_str).collect::<Vec<_>>()))
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same(
        commands in prop::collection::vec(any_command(), 0..12),
        cuts in prop::collection::vec(1_usize..40, 0..60),
        reader in prop_oneof![Just(Reader::Engine), Just(Reader::Node), Just(Reader::AofFile)],
        gap in prop_oneof![Just(Gap::Close), Just(Gap::Fill)],
    ) {
        let stream = commands.concat();
        let whole = filtered(reader, gap, [stream.as_slice()]);
        let mut pieces = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        let in_pieces = filtered(reader, gap, pieces);
        prop_assert_eq!(&whole, &in_pieces);
        if let (out, Ok(account)) = whole {
            let filled = gap == Gap::Fill;
            prop_assert_eq!(filled, filled && account.original == account.sent);
            // What goes on is a stream, but for the line feeds in filled gaps.
            let commands: Vec<u8> = if filled { vec![] } else { out };
            let start = StreamStart { offset: START, db: None, in_transaction: false };
            let mut splitter = Splitter::new(start);
            let mut input = commands.as_slice();
            while splitter.next(&mut input).unwrap().is_some() {}
            prop_assert!(splitter.is_between_commands());
        }
    }
}
