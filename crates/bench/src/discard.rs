//! The limit: replicas that read the snapshots of all shards at once, or their streams, and keep nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use slotkeep_testkit::deadline::Stopwatch;

use slotkeep_wire::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::resp::write_command;
use slotkeep_wire::transfer::{Chunk, PayloadHeader, Transfer};

const ACK_EVERY: Duration = Duration::from_millis(200);

pub(crate) fn run(nodes: &[SocketAddr]) -> Result<(), Box<dyn std::error::Error>> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(move || read(*node).map_err(|error| error.to_string())))
            .collect();
        for reader in readers {
            reader.join().map_err(|_| "a reader panicked")??;
        }
        Ok(())
    })
}

fn read(node: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    read_snapshot(node).map(drop)
}

/// Reads a node's snapshot and then its stream, as the lightest of all replicas, until told to stop.
pub(crate) fn follow(node: SocketAddr, stop: &AtomicBool) -> Result<(), Box<dyn std::error::Error>> {
    let mut stream = read_snapshot(node)?;
    stream.set_read_timeout(Some(ACK_EVERY))?;
    let mut acknowledgement = Vec::new();
    write_command(&mut acknowledgement, &[b"REPLCONF", b"ACK", b"0"]);
    let mut buffer = vec![0; 1 << 20];
    let mut last = Stopwatch::start();
    stream.write_all(&acknowledgement)?;
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(format!("{node} closed the link").into()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        if last.elapsed() >= ACK_EVERY {
            // A diskless primary begins its stream at an acknowledgement.
            stream.write_all(&acknowledgement)?;
            last = Stopwatch::start();
        }
    }
    Ok(())
}

/// Reads a snapshot to its end, and gives the connection on which the stream follows.
fn read_snapshot(node: SocketAddr) -> Result<TcpStream, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(node)?;
    let mut handshake = Handshake::new(HandshakeOptions::new(Request::Full));
    let mut buffer = vec![0; 1 << 20];
    let header = loop {
        if let Some(bytes) = handshake.to_send() {
            stream.write_all(&bytes)?;
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            handshake.connection_closed()?;
        }
        handshake.feed(buffer.get(..read).unwrap_or_default())?;
        if let Some(header) = header_of(&mut handshake) {
            break header;
        }
    };
    let mut transfer = Transfer::new(header);
    let rest = handshake.take_rest();
    if ends(&mut transfer, &rest)? {
        return Ok(stream);
    }
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            transfer.connection_closed()?;
        }
        if ends(&mut transfer, buffer.get(..read).unwrap_or_default())? {
            return Ok(stream);
        }
    }
}

fn header_of(handshake: &mut Handshake) -> Option<PayloadHeader> {
    while let Some(event) = handshake.poll() {
        if let HandshakeEvent::Payload(header) = event {
            return Some(header);
        }
    }
    None
}

fn ends(transfer: &mut Transfer, mut bytes: &[u8]) -> Result<bool, Box<dyn std::error::Error>> {
    loop {
        match transfer.next(&mut bytes)? {
            Some(Chunk::Bytes(_)) => {}
            Some(Chunk::End) => return Ok(true),
            None => return Ok(false),
        }
    }
}
