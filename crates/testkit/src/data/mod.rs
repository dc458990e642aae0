//! Data for tests: of every type and encoding, or much of it, and a writer that never rests. What is written is decided by
//! a seed.

mod bulk;
mod every_type;
mod sample;
pub mod text;
mod writer;

use std::collections::BTreeMap;

pub use sample::Sample;
pub use writer::{Writer, Written};

use crate::cluster::Cluster;
use crate::cluster_client::ClusterClient;
use crate::error::{Error, Result};

/// The functions library that is loaded where there are functions.
const LIBRARY: &str = "#!lua name=slotkeep\nredis.register_function('slotkeep_echo', \
                       function(keys, args) return args[1] end)\n";

/// Which data to write.
#[derive(Clone, Debug)]
pub struct Mix {
    seed: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    EveryType { big_string: bool, big_hash: bool },
    Bulk { bytes: u64 },
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// How many keys of each type, by the server's names of types.
    pub keys_by_type: BTreeMap<&'static str, u64>,
    /// How many bytes of keys, elements and values.
    pub bytes: u64,
    /// Keys as they were read back: all of them, or some hundreds if there are many.
    pub samples: Vec<Sample>,
    /// Whether a functions library was loaded into every primary.
    pub functions: bool,
}

impl Mix {
    /// About 1,100 keys: every type in every encoding that the server has, with the edge cases of each.
    pub fn every_type() -> Self {
        Self { seed: 1, kind: Kind::EveryType { big_string: false, big_hash: false } }
    }

    /// About that many bytes of keys and values in the mix of a session store and cache, 1,150 bytes a key: 70 % strings of 100 to 4096
    /// bytes, short ones the commoner, small hashes, sorted sets, lists, sets and streams, and a few collections of 1,000 to
    /// 2,000 elements. 60 % of the longer values resemble JSON, the others are random text; 15 % expire, far in the future.
    pub fn bulk(bytes: u64) -> Self {
        Self { seed: 1, kind: Kind::Bulk { bytes } }
    }

    /// Other data of the same sort.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With a string of 64 MiB, in [`Self::every_type`].
    #[must_use]
    pub fn with_big_string(mut self) -> Self {
        if let Kind::EveryType { big_string, .. } = &mut self.kind {
            *big_string = true;
        }
        self
    }

    /// With a hash of a million fields, in [`Self::every_type`].
    #[must_use]
    pub fn with_big_hash(mut self) -> Self {
        if let Kind::EveryType { big_hash, .. } = &mut self.kind {
            *big_hash = true;
        }
        self
    }

    /// Writes the data into a running cluster and returns what is there now.
    pub fn load(&self, cluster: &Cluster) -> Result<Loaded> {
        match self.kind {
            Kind::EveryType { big_string, big_hash } => {
                every_type::load(cluster, self.seed, big_string, big_hash)
            }
            Kind::Bulk { bytes } => bulk::load(cluster, self.seed, bytes),
        }
    }
}

impl Loaded {
    /// How many keys were written.
    pub fn keys(&self) -> u64 {
        self.keys_by_type.values().sum()
    }

    /// Reads every sample again, here or from a cluster that should hold the same, and the functions. The first that differs is
    /// an [`Error::Mismatch`].
    pub fn verify(&self, client: &mut ClusterClient) -> Result<()> {
        for sample in &self.samples {
            sample.verify(client)?;
        }
        if self.functions {
            for addr in client.primaries()? {
                let reply = client.connection(addr)?.command(&["FCALL", "slotkeep_echo", "0", "here"])?;
                if reply.bytes() != Some(b"here") {
                    return Err(Error::Mismatch {
                        key: format!("function slotkeep_echo at {addr}"),
                        expected: "\"here\"".to_owned(),
                        found: format!("{reply:?}"),
                    });
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, kind: &'static str) {
        *self.keys_by_type.entry(kind).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        for (kind, count) in &other.keys_by_type {
            *self.keys_by_type.entry(kind).or_default() += count;
        }
        self.bytes += other.bytes;
    }
}

/// Loads the functions library into every primary; false if the server has no functions.
fn load_functions(cluster: &Cluster, client: &mut ClusterClient) -> Result<bool> {
    if !cluster.server().is_modern() {
        return Ok(false);
    }
    for addr in client.primaries()? {
        client.connection(addr)?.command(&["FUNCTION", "LOAD", "REPLACE", LIBRARY])?;
    }
    Ok(true)
}
