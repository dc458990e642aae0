//! How fast an RDB is read: its envelope, its raw values, its elements, its elements with digests.
//!
//! `cargo run --release -p slotkeep-rdb --example rdb_speed FILE [PASS]`, the pass being one of `envelope`, `raw`, `element`,
//! `element+digest`; all of them without it.

#![expect(clippy::print_stdout, reason = "a program for the command line")]
#![expect(clippy::disallowed_macros, reason = "a program for the command line")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::io::Read;
use std::time::Instant;

use slotkeep_model::DatasetDigest;
use slotkeep_rdb::{Digester, Envelope, Event, Level, Parser};

const CHUNK_BYTES: usize = 256 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: rdb_speed FILE")?;
    measure("envelope", &path, |file| {
        let mut envelope = Envelope::new();
        each_chunk(file, |chunk| {
            envelope.feed(chunk);
            Ok(())
        })?;
        Ok(format!("{:?}", envelope.finish()?))
    })?;
    measure("raw", &path, |file| events(file, Level::Raw, |_| {}))?;
    measure("element", &path, |file| events(file, Level::Element, |_| {}))?;
    measure("element+digest", &path, |file| {
        let (mut digester, mut dataset) = (Digester::new(), DatasetDigest::default());
        let counts = events(file, Level::Element, |event| {
            if let Some(key) = digester.event(event) {
                key.add_to(&mut dataset);
            }
        })?;
        let total = dataset.total();
        Ok(format!("{counts}, {} keys, sum {:032x}", total.keys, total.sum))
    })
}

fn measure(
    name: &str,
    path: &str,
    read: impl FnOnce(&mut std::fs::File) -> Result<String, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(2).is_some_and(|pass| pass != name) {
        return Ok(());
    }
    let mut file = std::fs::File::open(path)?;
    let bytes = u32::try_from(file.metadata()?.len() / 1000)?;
    let start = Instant::now();
    let found = read(&mut file)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{name:>15} {:7.0} MB/s  {seconds:.2} s  {found}", f64::from(bytes) / 1000.0 / seconds);
    Ok(())
}

fn each_chunk(
    file: &mut std::fs::File,
    mut take: impl FnMut(&[u8]) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        take(buffer.get(..len).unwrap_or_default())?;
    }
}

fn events(
    file: &mut std::fs::File,
    level: Level,
    mut see: impl FnMut(&Event<'_>),
) -> Result<String, Box<dyn Error>> {
    let (mut parser, mut count) = (Parser::new(level), 0_u64);
    each_chunk(file, |mut chunk| {
        while let Some(event) = parser.next(&mut chunk)? {
            count += 1;
            see(&event);
        }
        Ok(())
    })?;
    parser.finish()?;
    Ok(format!("{count} events"))
}
