//! The limit: replicas that read the snapshots of all shards at once and keep nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use slotkeep_wire::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::transfer::{Chunk, PayloadHeader, Transfer};

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
        return Ok(());
    }
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            transfer.connection_closed()?;
        }
        if ends(&mut transfer, buffer.get(..read).unwrap_or_default())? {
            return Ok(());
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
