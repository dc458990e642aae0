//! Clients that write as fast as their servers take it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use slotkeep_model::key_slot;
use slotkeep_testkit::data::text::{push_json, push_random};
use slotkeep_testkit::{Cluster, Random};
use slotkeep_wire::resp::write_command;

/// How many bytes of commands are made for each shard, which are then sent over and over.
const PREPARED_BYTES: usize = 48 << 20;
const PIECE_BYTES: usize = 64 << 10;

/// What is written to one primary.
pub(crate) struct Load {
    primary: SocketAddr,
    commands: Vec<u8>,
}

/// Prepares writes for every shard: strings, hashes, sorted sets, lists and expiries, half of the longer values JSON, the others random text,
/// 350 bytes a command on average.
pub(crate) fn prepare(cluster: &Cluster) -> Result<Vec<Load>, Box<dyn std::error::Error>> {
    let mut client = cluster.client()?;
    let mut loads = Vec::new();
    for shard in 0..cluster.shards() {
        let primary = cluster.primary(shard)?.addr();
        loads.push(Load { primary, commands: Vec::with_capacity(PREPARED_BYTES + PIECE_BYTES) });
    }
    let mut random = Random::from_seed(1);
    while loads.iter().any(|load| load.commands.len() < PREPARED_BYTES) {
        let key = format!("key:{}", random.below(300_000));
        let owner = client.owner(key_slot(key.as_bytes()))?;
        let load = loads.iter_mut().find(|load| load.primary == owner).ok_or("a slot without an owner")?;
        if load.commands.len() < PREPARED_BYTES {
            push_write(&mut load.commands, &mut random, &key);
        }
    }
    Ok(loads)
}

fn push_write(out: &mut Vec<u8>, random: &mut Random, key: &str) {
    let mut value = |from: u64, to: u64| {
        let len = usize::try_from(from + random.below(to - from)).unwrap_or(0);
        let mut value = Vec::with_capacity(len + 16);
        if random.below(2) == 0 {
            push_json(&mut value, random, len);
        } else {
            push_random(&mut value, random, len);
        }
        value
    };
    let long = value(100, 900);
    let short = value(20, 100);
    let number = random.below(1000).to_string();
    // In the same slot, whatever the type.
    let kind = |prefix: &str| format!("{prefix}{{{key}}}").into_bytes();
    match random.below(10) {
        0..=5 => write_command(out, &[b"SET", key.as_bytes(), &long]),
        6 | 7 => write_command(out, &[b"HSET", &kind("h"), number.as_bytes(), &short]),
        8 => write_command(out, &[b"ZADD", &kind("z"), number.as_bytes(), b"member"]),
        _ => write_command(out, &[b"PEXPIREAT", key.as_bytes(), b"4102444800000"]),
    }
}

/// Writes to one primary until told to stop, and waits for the last reply.
pub(crate) fn write(load: &Load, stop: &AtomicBool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = TcpStream::connect(load.primary)?;
    let mut replies = stream.try_clone()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                match replies.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        });
        'all: loop {
            for piece in load.commands.chunks(PIECE_BYTES) {
                if stop.load(Ordering::Relaxed) {
                    break 'all;
                }
                stream.write_all(piece)?;
            }
        }
        // The server closes its side when it has answered everything: a command that was cut off is dropped.
        stream.shutdown(Shutdown::Write)?;
        reader.join().map_err(|_| "a reader panicked")??;
        Ok(())
    })
}
