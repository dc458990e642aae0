use proptest::prelude::*;

use super::*;
use crate::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use crate::resp::Command;

fn credentials(password: &str) -> Credentials {
    Credentials { user: None, password: password.to_owned() }
}

fn replid() -> ReplId {
    "b".repeat(40).parse().unwrap()
}

/// What Valkey 9.1.2 sends as a replica in cluster mode, as seen on the wire.
fn introduction(password: &str) -> Vec<Vec<u8>> {
    vec![
        Command::new("PING").to_bytes(),
        Command::new("AUTH").arg(password).to_bytes(),
        [
            Command::new("REPLCONF").args(["listening-port", "7001"]).to_bytes(),
            Command::new("REPLCONF")
                .args(["capa", "eof", "capa", "psync2", "capa", "dual-channel"])
                .to_bytes(),
            Command::new("REPLCONF").args(["version", "9.1.2"]).to_bytes(),
            Command::new("REPLCONF").args(["SET-CLUSTER-NODE-ID", &"c".repeat(40)]).to_bytes(),
        ]
        .concat(),
        Command::new("PSYNC").args([&"d".repeat(40), "1"]).to_bytes(),
    ]
}

fn wanted(primary: &mut Primary) {
    for bytes in introduction("secret") {
        primary.feed(&bytes).unwrap();
    }
    assert!(matches!(primary.poll(), Some(PrimaryEvent::SyncWanted { .. })));
}

#[test]
fn a_replica_is_answered_step_by_step() {
    let mut primary = Primary::new(Some(credentials("secret")));
    let mut answers = Vec::new();
    for bytes in introduction("secret") {
        primary.feed(&bytes).unwrap();
        answers.push(primary.to_send().map(|bytes| String::from_utf8(bytes).unwrap()));
    }
    assert_eq!(
        answers,
        [
            Some("-NOAUTH Authentication required.\r\n".to_owned()),
            Some("+OK\r\n".to_owned()),
            Some("+OK\r\n".repeat(4)),
            None
        ]
    );
    let asked = PrimaryEvent::SyncWanted {
        replid: Some("d".repeat(40).parse().unwrap()),
        next_offset: Some(ReplOffset(1)),
    };
    assert_eq!(primary.poll(), Some(asked));
    let facts = primary.facts();
    assert_eq!((facts.listening_port, facts.version.as_deref()), (Some(7001), Some("9.1.2")));
    assert_eq!(facts.node_id, Some("c".repeat(40)));
    assert!(facts.is_capable_of("eof") && facts.is_capable_of("dual-channel"));
    primary.full_resync(&replid(), ReplOffset(77), &PayloadHeader::Length(5));
    let line = format!("+FULLRESYNC {} 77\r\n$5\r\n", "b".repeat(40));
    assert_eq!(primary.to_send(), Some(line.into_bytes()));
    assert!(primary.may_stream());
    primary.feed(b"\n\n\n").unwrap();
    primary.feed(&Command::new("REPLCONF").args(["ACK", "77", "FACK", "70"]).to_bytes()).unwrap();
    primary.feed(&Command::new("replconf").args(["ack", "99"]).to_bytes()).unwrap();
    assert_eq!(primary.poll(), Some(PrimaryEvent::Alive));
    assert_eq!(primary.poll(), Some(PrimaryEvent::Acknowledged { applied: ReplOffset(99), durable: None }));
    assert_eq!(primary.poll(), None);
    assert_eq!((primary.acknowledged(), primary.to_send()), (Some(ReplOffset(99)), None));
}

#[test]
fn the_stream_waits_until_the_mark_was_found() {
    let mut primary = Primary::new(Some(credentials("secret")));
    wanted(&mut primary);
    primary.full_resync(&replid(), ReplOffset(1), &PayloadHeader::Mark([b'm'; 40]));
    assert!(primary.to_send().unwrap().ends_with(format!("$EOF:{}\r\n", "m".repeat(40)).as_bytes()));
    assert!(!primary.may_stream());
    primary.feed(&Command::new("REPLCONF").args(["ACK", "1"]).to_bytes()).unwrap();
    assert!(primary.may_stream());
}

#[test]
fn without_the_password_there_is_no_snapshot() {
    let mut primary = Primary::new(Some(credentials("secret")));
    let wrong = Command::new("AUTH").arg("secreT").to_bytes();
    let refused = Err(PrimaryError::NotAuthenticated("it gave another one"));
    assert_eq!(primary.feed(&wrong), refused);
    assert!(primary.to_send().unwrap().starts_with(b"-WRONGPASS"));
    assert_eq!(primary.feed(&Command::new("AUTH").arg("secret").to_bytes()), refused);

    for words in [&["AUTH", "someone", "secret"][..], &["AUTH"], &["PSYNC", "?", "-1"]] {
        let mut primary = Primary::new(Some(credentials("secret")));
        let command = Command::new(words[0]).args(&words[1..]);
        assert!(matches!(primary.feed(&command.to_bytes()), Err(PrimaryError::NotAuthenticated(_))));
        primary.full_resync(&replid(), ReplOffset(1), &PayloadHeader::Length(1));
        assert!(primary.to_send().unwrap().starts_with(b"-"));
    }
    let mut primary = Primary::new(Some(credentials("secret")));
    primary.feed(&Command::new("REPLCONF").args(["capa", "eof"]).to_bytes()).unwrap();
    assert!(primary.to_send().unwrap().starts_with(b"-NOAUTH"));
    assert!(primary.facts().capabilities.is_empty());
}

#[test]
fn what_is_no_replica_is_refused() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"RCmb\0\0",
        b"*99\r\n",
        b"*1\r\n$99999999\r\n",
        b"*1\r\n$4\r\nSYNC\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n",
        b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n5\r\n",
    ] {
        let mut primary = Primary::new(None);
        let error = primary.feed(bytes).unwrap_err();
        assert_eq!(primary.feed(b"\n"), Err(error), "{}", bytes.escape_ascii());
    }
    let debug = format!("{:?}", Primary::new(Some(credentials("hush"))));
    assert!(!debug.contains("hush"), "{debug}");
}

#[test]
fn the_replicas_side_of_this_crate_is_satisfied() {
    let mut options = HandshakeOptions::new(Request::Full);
    options.credentials = Some(credentials("secret"));
    let mut replica = Handshake::new(options);
    let mut primary = Primary::new(Some(credentials("secret")));
    let mut events = Vec::new();
    while !replica.is_done() {
        if let Some(bytes) = replica.to_send() {
            primary.feed(&bytes).unwrap();
        }
        if let Some(PrimaryEvent::SyncWanted { .. }) = primary.poll() {
            replica.feed(KEEP_WAITING).unwrap();
            primary.full_resync(&replid(), ReplOffset(9), &PayloadHeader::Length(3));
        }
        replica.feed(&primary.to_send().unwrap()).unwrap();
        events.extend(std::iter::from_fn(|| replica.poll()));
    }
    assert_eq!(
        events,
        [
            HandshakeEvent::Alive,
            HandshakeEvent::FullResync { replid: replid(), offset: ReplOffset(9) },
            HandshakeEvent::Payload(PayloadHeader::Length(3))
        ]
    );
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same(
        acks in prop::collection::vec(0_u64..1_000_000, 0..5),
        noise in prop::collection::vec(any::<u8>(), 0..30),
        cuts in prop::collection::vec(1_usize..50, 0..40),
    ) {
        let mut after = Vec::new();
        for ack in acks {
            after.extend_from_slice(b"\n");
            Command::new("REPLCONF").arg("ACK").arg_number(ack).encode_into(&mut after);
        }
        after.extend(noise);
        let observe = |pieces: &[&[u8]]| {
            let mut primary = Primary::new(Some(credentials("secret")));
            wanted(&mut primary);
            primary.full_resync(&replid(), ReplOffset(0), &PayloadHeader::Length(0));
            let mut seen = Vec::new();
            let mut outcome = Ok(());
            for piece in pieces {
                outcome = primary.feed(piece);
                // Events in a row are one: how many there are depends on when one looks.
                for event in std::iter::from_fn(|| primary.poll()) {
                    if event != PrimaryEvent::Alive {
                        seen.push(event);
                    }
                }
                if outcome.is_err() {
                    break;
                }
            }
            (seen, outcome, primary.acknowledged(), primary.to_send())
        };
        let mut pieces = Vec::new();
        let mut rest = after.as_slice();
        for cut in cuts {
            let (piece, more) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        prop_assert_eq!(observe(&[after.as_slice()]), observe(&pieces));
    }
}
