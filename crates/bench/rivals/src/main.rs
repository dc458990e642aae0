//! Reads an RDB with another library and counts what it gives: `slotkeep-bench-rivals PASS FILE`.
//!
//! Passes: `librdb-raw` (raw values, CRC64 checked), `librdb-elements` (every element, CRC64 checked), `rdb-skip` (keys read, values
//! passed over, no CRC64) and `rdb-elements` (every value decoded, streams passed over, no CRC64).

use std::error::Error;
use std::fs::File;
use std::io::BufReader;

mod librdb;

/// Room for as many bytes as Slotkeep reads at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// Passes over the value of every key.
struct NoValues;

impl rdb::Filter for NoValues {
    fn matches_type(&self, _: u8) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pass, path] = arguments.as_slice() else {
        return Err("usage: slotkeep-bench-rivals PASS FILE".into());
    };
    let count = match pass.as_str() {
        "librdb-raw" => librdb::raw(path)?,
        "librdb-elements" => librdb::elements(path)?,
        "rdb-skip" => decode(path, NoValues)?,
        "rdb-elements" => decode(path, rdb::Simple::new())?,
        other => return Err(format!("no pass is called {other}").into()),
    };
    println!("{count}");
    Ok(())
}

fn decode(path: &str, filter: impl rdb::Filter) -> Result<u64, Box<dyn Error>> {
    let file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    let mut count = 0;
    for item in rdb::RdbDecoder::new(file, filter)? {
        std::hint::black_box(item?);
        count += 1;
    }
    Ok(count)
}
