//! Much data, fast: a thread and a connection for each primary, with many commands under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use slotkeep_model::key_slot;

use super::text::{len_between, value, word};
use super::{Loaded, Sample};
use crate::client::{Client, Endpoint, command_name};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::resp::Value;

/// How many commands may be under way on a connection.
const WINDOW: u64 = 2_000;

/// How many keys of all are read back.
const SAMPLES: u64 = 300;

/// 2100-01-01: keys that expire do so long after any test.
const FAR_FUTURE_MS: u64 = 4_102_444_800_000;

/// Writes about that many bytes, as much into each primary.
pub(super) fn load(cluster: &Cluster, seed: u64, bytes: u64) -> Result<Loaded> {
    let mut client = cluster.client()?;
    let primaries = client.primaries()?;
    let owners: Vec<Option<SocketAddr>> =
        slotkeep_model::Slot::all().map(|slot| client.owner(slot).ok()).collect();
    let owners = Arc::new(owners);
    let share = bytes / u64::try_from(primaries.len()).unwrap_or(1).max(1);
    let threads: Vec<_> = primaries
        .iter()
        .map(|&addr| {
            let (endpoint, owners) = (client.endpoint(addr)?, Arc::clone(&owners));
            Ok(thread::spawn(move || Loader::connect(&endpoint, owners, seed)?.run(share)))
        })
        .collect::<Result<_>>()?;
    let mut loaded = Loaded { functions: super::load_functions(cluster, &mut client)?, ..Loaded::default() };
    let mut keys = Vec::new();
    for thread in threads {
        let (part, written) =
            thread.join().map_err(|_| Error::Setup { reason: "a loading thread panicked".to_owned() })??;
        loaded.add(&part);
        keys.extend(written);
    }
    loaded.samples = keys.iter().map(|key| Sample::read(&mut client, key)).collect::<Result<_>>()?;
    Ok(loaded)
}

/// Writes the keys that one primary serves. Key number `n` is the same whoever serves it.
struct Loader {
    client: Client,
    addr: SocketAddr,
    owners: Arc<Vec<Option<SocketAddr>>>,
    seed: u64,
    under_way: u64,
    loaded: Loaded,
}

impl Loader {
    fn connect(endpoint: &Endpoint, owners: Arc<Vec<Option<SocketAddr>>>, seed: u64) -> Result<Self> {
        let client = Client::connect(endpoint)?;
        Ok(Self { client, addr: endpoint.addr, owners, seed, under_way: 0, loaded: Loaded::default() })
    }

    /// Writes until the share is reached; returns the counts and the keys to sample.
    fn run(mut self, share: u64) -> Result<(Loaded, Vec<Vec<u8>>)> {
        let mut samples = Vec::new();
        // A key and its value are some 1,150 bytes, so this many lie between two samples.
        let every = (share / 1_150 / (SAMPLES / 3)).max(1);
        let mut number = 0;
        let mut mine = 0;
        while self.loaded.bytes < share {
            let key = format!("bulk:{number}").into_bytes();
            if self.owners.get(key_slot(&key).index()).copied().flatten() == Some(self.addr) {
                let mut random = Random::for_item(self.seed, number);
                self.write_key(&key, &mut random)?;
                if mine % every == 0 {
                    samples.push(key);
                }
                mine += 1;
            }
            number += 1;
        }
        while self.under_way > 0 {
            self.take_reply()?;
        }
        Ok((self.loaded, samples))
    }

    fn write_key(&mut self, key: &[u8], random: &mut Random) -> Result<()> {
        let kind = match random.below(1000) {
            0..700 => return self.write_string(key, random),
            700..875 => self.write_hash(key, random, 3, 12)?,
            875..933 => self.write_zset(key, random, 4, 40)?,
            933..956 => self.write_list(key, random, 4, 30)?,
            956..977 => self.write_set(key, random, 4, 30, false)?,
            977..997 => self.write_set(key, random, 5, 60, true)?,
            997 => self.write_large(key, random)?,
            _ => self.write_stream(key, random)?,
        };
        self.loaded.count(kind);
        if random.chance(15) {
            let at = expiry(random);
            self.send(&[b"PEXPIREAT", key, at.as_bytes()])?;
        }
        Ok(())
    }

    fn write_string(&mut self, key: &[u8], random: &mut Random) -> Result<()> {
        // The shorter of two draws, for short values are the commoner ones: 1.4 KB on average.
        let len = len_between(random, 100, 4096).min(len_between(random, 100, 4096));
        let text = value(random, len);
        self.loaded.count("string");
        if random.chance(15) {
            let at = expiry(random);
            // `SET … PXAT` is not older than 6.2, and neither is any server here.
            self.send(&[b"SET", key, &text, b"PXAT", at.as_bytes()])
        } else {
            self.send(&[b"SET", key, &text])
        }
    }

    /// A collection of 1,000 to 2,000 elements.
    fn write_large(&mut self, key: &[u8], random: &mut Random) -> Result<&'static str> {
        match random.below(4) {
            0 => self.write_hash(key, random, 1000, 2000),
            1 => self.write_zset(key, random, 1000, 2000),
            2 => self.write_list(key, random, 1000, 2000),
            _ => self.write_set(key, random, 1000, 2000, false),
        }
    }

    fn write_hash(&mut self, key: &[u8], random: &mut Random, low: u64, high: u64) -> Result<&'static str> {
        let mut args = vec![b"HSET".to_vec(), key.to_vec()];
        for field in 0..random.between(low, high) {
            args.push(format!("{}-{field}", word(random)).into_bytes());
            let len = len_between(random, 8, 60);
            args.push(value(random, len));
        }
        self.send(&args)?;
        Ok("hash")
    }

    fn write_zset(&mut self, key: &[u8], random: &mut Random, low: u64, high: u64) -> Result<&'static str> {
        let mut args = vec![b"ZADD".to_vec(), key.to_vec()];
        for member in 0..random.between(low, high) {
            let score = random.below(1_000_000);
            let fraction = if random.chance(30) { ".25" } else { "" };
            args.push(format!("{score}{fraction}").into_bytes());
            args.push(format!("{}:{member}", word(random)).into_bytes());
        }
        self.send(&args)?;
        Ok("zset")
    }

    fn write_list(&mut self, key: &[u8], random: &mut Random, low: u64, high: u64) -> Result<&'static str> {
        let mut args = vec![b"RPUSH".to_vec(), key.to_vec()];
        for _ in 0..random.between(low, high) {
            let len = len_between(random, 4, 60);
            args.push(value(random, len));
        }
        self.send(&args)?;
        Ok("list")
    }

    fn write_set(
        &mut self,
        key: &[u8],
        random: &mut Random,
        low: u64,
        high: u64,
        numbers: bool,
    ) -> Result<&'static str> {
        let mut args = vec![b"SADD".to_vec(), key.to_vec()];
        for member in 0..random.between(low, high) {
            args.push(if numbers {
                random.below(10_000_000).to_string().into_bytes()
            } else {
                format!("{}/{member}", word(random)).into_bytes()
            });
        }
        self.send(&args)?;
        Ok("set")
    }

    /// A stream with a group, whose consumer has taken some entries and acknowledged none.
    fn write_stream(&mut self, key: &[u8], random: &mut Random) -> Result<&'static str> {
        for entry in 1..=random.between(5, 40) {
            let len = len_between(random, 20, 120);
            let text = value(random, len);
            let id = format!("{}-{entry}", 1_700_000_000_000 + entry);
            self.send(&[b"XADD", key, id.as_bytes(), b"event", word(random).as_bytes(), b"data", &text])?;
        }
        self.send(&[b"XGROUP", b"CREATE", key, b"workers", b"0"])?;
        self.send(&[
            &b"XREADGROUP"[..],
            b"GROUP",
            b"workers",
            b"one",
            b"COUNT",
            b"3",
            b"STREAMS",
            key,
            b">",
        ])?;
        Ok("stream")
    }

    fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<()> {
        let payload: usize = args.iter().skip(1).map(|arg| arg.as_ref().len()).sum();
        self.loaded.bytes += u64::try_from(payload).unwrap_or(0);
        self.client.send(args)?;
        self.under_way += 1;
        if self.under_way > WINDOW {
            while self.under_way > WINDOW / 2 {
                self.take_reply()?;
            }
        }
        Ok(())
    }

    fn take_reply(&mut self) -> Result<()> {
        self.under_way -= 1;
        match self.client.receive()? {
            Value::Error(message) => Err(Error::Reply { command: command_name(&["bulk load"]), message }),
            _ => Ok(()),
        }
    }
}

fn expiry(random: &mut Random) -> String {
    (FAR_FUTURE_MS + random.below(1_000_000_000)).to_string()
}
