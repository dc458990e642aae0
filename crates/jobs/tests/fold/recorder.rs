//! A replica that keeps what it gets: the snapshot and the stream after it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use slotkeep_jobs::ports::{Clock, SystemClock};
use slotkeep_model::{ReplId, ReplOffset};
use slotkeep_wire::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::resp::Command;
use slotkeep_wire::transfer::{Chunk, Transfer};

/// A recording that goes on until an offset is named and reached.
pub(crate) struct Recorder {
    until: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    thread: JoinHandle<Recording>,
}

/// What a server sent.
pub(crate) struct Recording {
    pub(crate) history: ReplId,
    pub(crate) offset: ReplOffset,
    pub(crate) rdb: Vec<u8>,
    pub(crate) stream: Vec<u8>,
    /// Offsets, and the time when the byte there had been received, in milliseconds since 1970.
    pub(crate) times: Vec<(u64, u64)>,
}

impl Recorder {
    /// Begins; the snapshot is there when this returns.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let until = Arc::new(AtomicU64::new(u64::MAX));
        let received = Arc::new(AtomicU64::new(0));
        let (their_until, their_received) = (Arc::clone(&until), Arc::clone(&received));
        let thread = std::thread::spawn(move || record(server, &their_until, &their_received));
        while received.load(Ordering::Acquire) == 0 && !thread.is_finished() {
            std::thread::yield_now();
        }
        Self { until, received, thread }
    }

    /// Ends the recording at `offset`.
    pub(crate) fn stop_at(self, offset: ReplOffset) -> Recording {
        self.until.store(offset.0, Ordering::Release);
        let mut recording = self.thread.join().unwrap();
        assert!(self.received.load(Ordering::Acquire) >= offset.0);
        recording.stream.truncate(usize::try_from(offset.0 - recording.offset.0).unwrap());
        recording
    }
}

fn record(server: SocketAddr, until: &AtomicU64, received: &AtomicU64) -> Recording {
    let clock = SystemClock::new();
    let mut socket = TcpStream::connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut handshake = Handshake::new(HandshakeOptions::new(Request::Full));
    let mut place = None;
    let mut header = None;
    while header.is_none() {
        if let Some(bytes) = handshake.to_send() {
            socket.write_all(&bytes).unwrap();
        }
        let read = read(&mut socket, &mut buffer);
        handshake.feed(&buffer[..read]).unwrap();
        while let Some(event) = handshake.poll() {
            match event {
                HandshakeEvent::FullResync { replid, offset } => place = Some((replid, offset)),
                HandshakeEvent::Payload(found) => header = Some(found),
                _ => {}
            }
        }
    }
    let (history, offset) = place.unwrap();
    let mut transfer = Transfer::new(header.unwrap());
    let (mut rdb, mut stream, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let mut pending = handshake.take_rest();
    while !transfer.is_ended() {
        let mut rest = pending.as_slice();
        while let Some(chunk) = transfer.next(&mut rest).unwrap() {
            match chunk {
                Chunk::Bytes(bytes) => rdb.extend_from_slice(bytes),
                Chunk::End => break,
            }
        }
        if transfer.is_ended() {
            stream.extend_from_slice(rest);
        } else {
            let read = read(&mut socket, &mut buffer);
            pending = buffer[..read].to_vec();
        }
    }
    loop {
        let at = offset.0 + stream.len() as u64;
        times.push((at, u64::try_from(clock.now().as_millisecond()).unwrap()));
        received.store(at.max(1), Ordering::Release);
        if at >= until.load(Ordering::Acquire) {
            return Recording { history, offset, rdb, stream, times };
        }
        // The first acknowledgement may come too early: it is repeated until something comes.
        socket.write_all(&Command::new("REPLCONF").arg("ACK").arg_number(at).to_bytes()).unwrap();
        let read = read(&mut socket, &mut buffer);
        stream.extend_from_slice(&buffer[..read]);
    }
}

/// What there is, or nothing for a while.
fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> usize {
    match socket.read(buffer) {
        Ok(0) => panic!("the server closed the connection"),
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::TimedOut => 0,
        Err(error) => panic!("{error}"),
    }
}
