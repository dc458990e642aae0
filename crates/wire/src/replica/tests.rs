use proptest::prelude::*;

use super::*;

const ID: &str = "8de1787ba490483314a4d30f1c628bc5025eb761";
const MARK: &str = "0123456789abcdef0123456789abcdef01234567";

fn replid() -> ReplId {
    ID.parse().unwrap()
}

fn with_password() -> HandshakeOptions {
    let credentials = Credentials { user: Some("backup".to_owned()), password: "s3cret".to_owned() };
    HandshakeOptions {
        credentials: Some(credentials),
        listening_port: Some(7099),
        ..HandshakeOptions::new(Request::Full)
    }
}

fn events(handshake: &mut Handshake) -> Vec<HandshakeEvent> {
    core::iter::from_fn(|| handshake.poll()).collect()
}

fn sent(handshake: &mut Handshake) -> String {
    handshake.to_send().map_or_else(String::new, |bytes| bytes.escape_ascii().to_string())
}

/// The error that these replies, all in one piece, lead to.
fn failure(options: HandshakeOptions, replies: &str) -> HandshakeError {
    Handshake::new(options).feed(replies.as_bytes()).unwrap_err()
}

#[test]
fn each_stage_waits_for_the_replies_of_the_one_before() {
    let mut handshake = Handshake::new(with_password());
    assert_eq!(sent(&mut handshake), r"*1\r\n$4\r\nPING\r\n");
    assert_eq!(handshake.to_send(), None);
    handshake.feed(b"-NOAUTH Authentication required.\r\n").unwrap();
    assert_eq!(sent(&mut handshake), r"*3\r\n$4\r\nAUTH\r\n$6\r\nbackup\r\n$6\r\ns3cret\r\n");
    handshake.feed(b"+OK\r\n").unwrap();
    assert_eq!(
        sent(&mut handshake),
        concat!(
            r"*3\r\n$8\r\nREPLCONF\r\n$14\r\nlistening-port\r\n$4\r\n7099\r\n",
            r"*5\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$3\r\neof\r\n$4\r\ncapa\r\n$6\r\npsync2\r\n",
            r"*3\r\n$8\r\nREPLCONF\r\n$7\r\nversion\r\n$11\r\n255.255.255\r\n"
        )
    );
    handshake.feed(b"+OK\r\n+OK\r\n").unwrap();
    assert_eq!(handshake.to_send(), None);
    handshake.feed(b"-ERR Unrecognized REPLCONF option: version\r\n").unwrap();
    assert_eq!(sent(&mut handshake), r"*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n");
    handshake.feed(format!("\n\n+FULLRESYNC {ID} 4711\r\n\n$5\r\nREDIS*1\r\n").as_bytes()).unwrap();
    assert_eq!(
        events(&mut handshake),
        [
            HandshakeEvent::Alive,
            HandshakeEvent::Alive,
            HandshakeEvent::FullResync { replid: replid(), offset: ReplOffset(4711) },
            HandshakeEvent::Alive,
            HandshakeEvent::Payload(PayloadHeader::Length(5)),
        ]
    );
    assert!(handshake.is_done() && handshake.connection_closed().is_ok());
    handshake.feed(b"more").unwrap();
    assert_eq!(handshake.take_rest(), b"REDIS*1\r\nmore");
}

#[test]
fn a_continued_stream_is_handed_over_untouched() {
    let request = Request::after(replid(), ReplOffset(4710)).unwrap();
    for (reply, expected) in
        [("+CONTINUE\r\n".to_owned(), None), (format!("+CONTINUE {ID}\r\n"), Some(replid()))]
    {
        let mut handshake = Handshake::new(HandshakeOptions::new(request.clone()));
        handshake.feed(b"+PONG\r\n+OK\r\n+OK\r\n").unwrap();
        assert!(
            sent(&mut handshake)
                .ends_with(r"PSYNC\r\n$40\r\n8de1787ba490483314a4d30f1c628bc5025eb761\r\n$4\r\n4711\r\n")
        );
        handshake.feed(&[reply.as_bytes(), b"\n*1\r\n"].concat()).unwrap();
        assert_eq!(events(&mut handshake), [HandshakeEvent::Continue { replid: expected }]);
        assert_eq!(handshake.take_rest(), b"\n*1\r\n");
    }
}

#[test]
fn a_request_to_continue_may_be_answered_with_a_snapshot() {
    let request = Request::after(replid(), ReplOffset(0)).unwrap();
    let mut handshake = Handshake::new(HandshakeOptions::new(request));
    let replies = format!("+PONG\r\n+OK\r\n+OK\r\n+FULLRESYNC {ID} 9\r\n$EOF:{MARK}\r\nREDIS");
    handshake.feed(replies.as_bytes()).unwrap();
    let mark = MARK.as_bytes().try_into().unwrap();
    assert_eq!(events(&mut handshake).last(), Some(&HandshakeEvent::Payload(PayloadHeader::Mark(mark))));
    assert_eq!(handshake.take_rest(), b"REDIS");
}

#[test]
fn no_password_goes_to_a_peer_that_does_not_speak_the_protocol() {
    for (bytes, first_byte, looks_like) in [
        (b"HTTP/1.1 400 Bad Request\r\n".as_slice(), b'H', PeerGuess::Http),
        (b"\x15\x03\x03\x00\x02\x02\x16", 0x15, PeerGuess::Tls),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b'S', PeerGuess::Unknown),
    ] {
        let mut handshake = Handshake::new(with_password());
        handshake.to_send();
        let error = handshake.feed(bytes).unwrap_err();
        assert_eq!(error, HandshakeError::NotRedis { offset: 0, first_byte, looks_like });
        assert_eq!(handshake.to_send(), None);
    }
}

#[test]
fn the_password_is_not_in_debug_output() {
    let mut handshake = Handshake::new(with_password());
    handshake.feed(b"+PONG\r\n").unwrap();
    let shown = format!(
        "{handshake:?} {:?} {:?}",
        with_password(),
        with_password().credentials.unwrap().auth_command()
    );
    assert!(!shown.contains("s3cret") && shown.contains("backup"), "{shown}");
}

#[test]
fn errors_are_told_apart() {
    let full = || HandshakeOptions::new(Request::Full);
    let configured = "+PONG\r\n+OK\r\n+OK\r\n";
    let is = |error: &HandshakeError, kind: &str| format!("{error:?}").starts_with(kind);
    for (options, replies, kind) in [
        (full(), "-NOAUTH Authentication required.\r\n".to_owned(), "WrongPassword"),
        (
            with_password(),
            "-NOAUTH x\r\n-WRONGPASS invalid username-password pair\r\n".to_owned(),
            "WrongPassword",
        ),
        (with_password(), "+PONG\r\n-ERR invalid password\r\n".to_owned(), "WrongPassword"),
        (full(), "-LOADING Redis is loading the dataset in memory\r\n".to_owned(), "Transient"),
        (full(), "-ERR max number of clients reached\r\n".to_owned(), "Transient"),
        (full(), "-DENIED Redis is running in protected mode\r\n".to_owned(), "Refused"),
        (
            full(),
            "+PONG\r\n-NOPERM User b has no permissions to run the 'replconf' command\r\n".to_owned(),
            "NoPermission",
        ),
        (
            full(),
            format!("{configured}-NOPERM User b has no permissions to run the 'psync' command\r\n"),
            "NoPermission",
        ),
        (
            full(),
            format!("{configured}-ERR unknown command 'PSYNC', with args beginning with: \r\n"),
            "UnknownCommand",
        ),
        (
            full(),
            format!("{configured}-NOMASTERLINK Can't SYNC while not connected with my master\r\n"),
            "Transient",
        ),
        (full(), format!("{configured}-MASTERDOWN Link with MASTER is down\r\n"), "Transient"),
        (full(), format!("{configured}-ERR BGSAVE failed, replication can't continue\r\n"), "Transient"),
        (full(), format!("{configured}-ERR SYNC and PSYNC are invalid with pending output\r\n"), "Refused"),
        (full(), format!("{configured}+CONTINUE {ID}\r\n"), "Unexpected"),
        (full(), format!("{configured}+RDBCHANNELSYNC 5\r\n"), "Unexpected"),
        (full(), format!("{configured}+FULLRESYNC {ID} -1\r\n"), "Unexpected"),
        (full(), format!("{configured}+FULLRESYNC short 1\r\n"), "Unexpected"),
        (
            full(),
            format!("{configured}+FULLRESYNC {ID} 1\r\n-ERR BGSAVE failed, replication can't continue\r\n"),
            "Transient",
        ),
        (full(), format!("{configured}+FULLRESYNC {ID} 1\r\n$EOF:short\r\n"), "Unexpected"),
        (full(), "*1\r\n".to_owned(), "Unexpected"),
        (full(), format!("+{}", "x".repeat(LINE_LIMIT)), "TooLong"),
    ] {
        let error = failure(options, &replies);
        assert!(is(&error, kind), "{replies}: {error:?}");
        assert_eq!(error.is_transient(), kind == "Transient");
    }
}

#[test]
fn a_server_with_a_full_disk_can_still_be_backed_up() {
    let mut handshake = Handshake::new(HandshakeOptions::new(Request::Full));
    handshake.feed(b"-MISCONF Redis is configured to save RDB snapshots, but\r\n").unwrap();
    assert!(sent(&mut handshake).contains("REPLCONF"));
}

#[test]
fn a_closed_connection_says_what_was_awaited() {
    let mut handshake = Handshake::new(HandshakeOptions::new(Request::Full));
    handshake.feed(b"+PONG\r\n").unwrap();
    assert_eq!(handshake.connection_closed(), Err(HandshakeError::Closed { awaited: "a reply to REPLCONF" }));
}

/// Everything that can be seen of a handshake: what it sends, its events, its error and the rest.
type Seen = (Vec<u8>, Vec<HandshakeEvent>, Option<HandshakeError>, Vec<u8>);

fn observe<'i>(pieces: impl Iterator<Item = &'i [u8]>, poll_early: bool) -> Seen {
    let mut handshake = Handshake::new(with_password());
    let (mut output, mut seen, mut failed) = (handshake.to_send().unwrap_or_default(), Vec::new(), None);
    for piece in pieces {
        let result = handshake.feed(piece);
        output.extend(handshake.to_send().unwrap_or_default());
        if poll_early {
            seen.extend(core::iter::from_fn(|| handshake.poll()));
        }
        if let Err(error) = result {
            failed = Some(error);
            break;
        }
    }
    seen.extend(core::iter::from_fn(|| handshake.poll()));
    (output, seen, failed, handshake.take_rest())
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same(
        lines in prop::collection::vec(prop::sample::select(vec![
            "\n", "+PONG\r\n", "+OK\r\n", "-NOAUTH x\r\n", "-ERR Unrecognized REPLCONF option\r\n", "-ERR BGSAVE failed\r\n",
            "+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 12\r\n", "$5\r\n", "hello", "+CONTINUE\r\n", "*1\r\n",
        ]), 0..6),
        well_begun in any::<bool>(),
        sizes in prop::collection::vec(1usize..40, 1..10),
        poll_early in any::<bool>(),
    ) {
        let start = if well_begun { "+PONG\r\n+OK\r\n\n+OK\r\n+OK\r\n+OK\r\n" } else { "" };
        let stream = format!("{start}{}", lines.concat()).into_bytes();
        let whole = observe(core::iter::once(&stream[..]), false);
        let mut size = sizes.iter().cycle();
        let mut left = &stream[..];
        let pieces = core::iter::from_fn(|| {
            let (piece, after) = left.split_at((*size.next()?).min(left.len()));
            left = after;
            (!piece.is_empty()).then_some(piece)
        });
        prop_assert_eq!(observe(pieces, poll_early), whole);
    }

    #[test]
    fn hostile_bytes_are_an_error_at_worst(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = observe(bytes.chunks(7), true);
    }
}
