//! The link, with this crate's own side of a replica at its other end.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "what does not hold fails the test")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use slotkeep_jobs::link::{Feed, LinkListener, LinkOptions, LogEditor, Snapshot};
use slotkeep_jobs::net::{Connector, ConnectorOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng};
use slotkeep_jobs::source::{ByteSource, MemorySource};
use slotkeep_jobs::{Context, ErrorKind, Result};
use slotkeep_model::ReplOffset;
use slotkeep_wire::replica::{Credentials, Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::resp::{Command, write_command};
use slotkeep_wire::stream::Reader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

fn context() -> Context {
    Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default()).unwrap()),
        stop: tokio_util::sync::CancellationToken::new(),
    }
}

fn options(patience: Duration, keep_alive: Option<Duration>) -> LinkOptions {
    let credentials = Some(Credentials { user: None, password: "right".to_owned() });
    LinkOptions { credentials, listening_port: Some(7000), patience, keep_alive }
}

fn set(key: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_command(&mut bytes, &[b"SET", key.as_bytes(), b"v"]);
    bytes
}

fn feed<L>(rdb: &'static [u8], log: L, cut: u64) -> Feed<MemorySource, L> {
    let base = Snapshot {
        source: MemorySource::new(rdb.chunks(3).map(Bytes::from_static)),
        len_bytes: rdb.len() as u64,
        history: "f".repeat(40).parse().unwrap(),
        offset: ReplOffset(10),
    };
    Feed { base, log, cut: ReplOffset(cut) }
}

/// Shakes hands; gives the connection, and what came after the snapshot's header.
async fn follow(addr: std::net::SocketAddr, password: &str, port: u16) -> Option<(TcpStream, Vec<u8>)> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut options = HandshakeOptions::new(Request::Full);
    options.credentials = Some(Credentials { user: None, password: password.to_owned() });
    options.listening_port = Some(port);
    let mut handshake = Handshake::new(options);
    let mut buffer = [0; 4096];
    while !handshake.is_done() {
        if let Some(bytes) = handshake.to_send() {
            stream.write_all(&bytes).await.ok()?;
        }
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        handshake.feed(&buffer[..read]).ok()?;
        while let Some(event) = handshake.poll() {
            if let HandshakeEvent::FullResync { offset, .. } = event {
                assert_eq!(offset, ReplOffset(10));
            }
        }
    }
    Some((stream, handshake.take_rest()))
}

async fn receive(stream: &mut TcpStream, into: &mut Vec<u8>, len: usize) {
    let mut buffer = [0; 4096];
    while into.len() < len {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "closed after {} of {len} bytes", into.len());
        into.extend_from_slice(&buffer[..read]);
    }
}

#[tokio::test]
async fn only_the_expected_follower_is_fed() {
    let context = context();
    let listener =
        LinkListener::bind(Ipv4Addr::LOCALHOST.into(), options(Duration::from_secs(20), None)).await.unwrap();
    let addr = listener.addr();
    let replica = tokio::spawn(async move {
        assert!(follow(addr, "wrong", 7000).await.is_none());
        assert!(follow(addr, "right", 7001).await.is_none());
        let mut http = TcpStream::connect(addr).await.unwrap();
        http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (mut stream, mut got) = follow(addr, "right", 7000).await.unwrap();
        let expected = [b"snapshot".as_slice(), &set("a"), &set("b")].concat();
        receive(&mut stream, &mut got, expected.len()).await;
        assert_eq!(got, expected);
        let ack = |offset: usize| Command::new("REPLCONF").arg("ACK").arg_number(offset).to_bytes();
        stream.write_all(&ack(10)).await.unwrap();
        stream.write_all(b"\n").await.unwrap();
        stream.write_all(&ack(10 + expected.len() - 8)).await.unwrap();
        // The end of the link.
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
    });
    let mut follower = listener.accept(&context).await.unwrap();
    let log = [set("a"), set("b")].concat();
    let cut = 10 + log.len() as u64;
    let log = MemorySource::new(log.chunks(7).map(Bytes::copy_from_slice));
    let mut editor = LogEditor::new(ReplOffset(10), Reader::Engine, None);
    let sent_bytes = AtomicU64::new(0);
    let sent = feed(b"snapshot", log, cut).send(&mut follower, &mut editor, &sent_bytes).await.unwrap();
    assert_eq!((sent, sent_bytes.into_inner()), (ReplOffset(cut), cut - 10 + 8));
    follower.wait_acknowledged(sent).await.unwrap();
    drop(follower);
    replica.await.unwrap();
}

/// A log that comes to a stop until a follower has got two keep-alives.
struct Stalled {
    pieces: Vec<Bytes>,
    go_on: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl ByteSource for Stalled {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.pieces.len() == 1
            && let Some(go_on) = self.go_on.take()
        {
            go_on.await.unwrap();
        }
        Ok(self.pieces.pop())
    }
}

#[tokio::test]
async fn a_log_that_makes_wait_keeps_the_link_and_the_count() {
    let context = context();
    let alive = Some(Duration::from_millis(5));
    let listener = LinkListener::bind(Ipv4Addr::LOCALHOST.into(), options(Duration::from_secs(20), alive))
        .await
        .unwrap();
    let addr = listener.addr();
    let (tell, go_on) = tokio::sync::oneshot::channel();
    let replica = tokio::spawn(async move {
        let (mut stream, mut got) = follow(addr, "right", 7000).await.unwrap();
        receive(&mut stream, &mut got, 8 + set("a").len() + 2 * PING.len()).await;
        tell.send(()).unwrap();
        while !got.ends_with(&set("b")) {
            let len = got.len() + 1;
            receive(&mut stream, &mut got, len).await;
        }
        let offset = 10 + got.len() - 8;
        stream.write_all(&Command::new("REPLCONF").arg("ACK").arg_number(offset).to_bytes()).await.unwrap();
        let pings = (got.len() - 8 - set("a").len() - set("b").len()) / PING.len();
        assert!(got[8 + set("a").len()..].starts_with(&PING.repeat(pings)) && pings >= 2);
        stream
    });
    let mut follower = listener.accept(&context).await.unwrap();
    let cut = 10 + 2 * set("a").len() as u64;
    let log = Stalled { pieces: vec![set("b").into(), set("a").into()], go_on: Some(go_on) };
    let mut editor = LogEditor::new(ReplOffset(10), Reader::Node, None);
    let sent =
        feed(b"snapshot", log, cut).send(&mut follower, &mut editor, &AtomicU64::new(0)).await.unwrap();
    assert!(sent.0 >= cut + 2 * PING.len() as u64);
    assert_eq!(editor.account().original, ReplOffset(cut));
    follower.wait_acknowledged(sent).await.unwrap();
    replica.await.unwrap();
}

#[tokio::test]
async fn patience_ends() {
    let context = context();
    let listener =
        LinkListener::bind(Ipv4Addr::LOCALHOST.into(), options(Duration::from_secs(2), None)).await.unwrap();
    let addr = listener.addr();
    let error = listener.accept(&context).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unreachable);

    // It reads nothing: what the kernel holds is full some time.
    let replica = tokio::spawn(async move { follow(addr, "right", 7000).await.unwrap() });
    let mut follower = listener.accept(&context).await.unwrap();
    let big = Bytes::from(vec![0; 1 << 20]);
    let mut base = feed(b"", MemorySource::default(), 10);
    base.base.source = MemorySource::new(std::iter::repeat_n(big, 64));
    base.base.len_bytes = 64 << 20;
    let mut editor = LogEditor::new(ReplOffset(10), Reader::Engine, None);
    let error = base.send(&mut follower, &mut editor, &AtomicU64::new(0)).await.unwrap_err();
    assert!(error.to_string().contains("takes no more bytes"), "{error}");
    drop(replica);
}

#[tokio::test]
async fn a_base_of_another_length_is_refused() {
    let context = context();
    for (claimed, rdb) in [(9, b"snapshot".as_slice()), (7, b"snapshot")] {
        let listener = LinkListener::bind(Ipv4Addr::LOCALHOST.into(), options(Duration::from_secs(20), None))
            .await
            .unwrap();
        let addr = listener.addr();
        let replica = tokio::spawn(async move { follow(addr, "right", 7000).await.unwrap() });
        let mut follower = listener.accept(&context).await.unwrap();
        let mut feed = feed(b"", MemorySource::default(), 10);
        feed.base.source = MemorySource::new([Bytes::from_static(rdb)]);
        feed.base.len_bytes = claimed;
        let mut editor = LogEditor::new(ReplOffset(10), Reader::Engine, None);
        let error = feed.send(&mut follower, &mut editor, &AtomicU64::new(0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        drop(replica.await.unwrap());
    }
}
