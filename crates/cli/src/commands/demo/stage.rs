//! What happens to the clusters: the parts that block, and the numbers that the story tells.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_model::Product;
use slotkeep_testkit::data::{Loaded, Mix, Writer};
use slotkeep_testkit::{Cluster, ClusterBuilder, Error as TestkitError, Result as TestkitResult, Server};

/// Shards, and so primaries, of the cluster that will be lost; each has one replica.
pub(super) const OLD_SHARDS: usize = 3;
/// Shards of the cluster that takes its place.
pub(super) const NEW_SHARDS: usize = 5;

/// The key of which one field is changed in the end.
pub(super) const ACCOUNT: &str = "account:42";
/// What it holds when the backup is taken.
pub(super) const ACCOUNT_MADE: [&str; 6] = ["HSET", ACCOUNT, "owner", "Ada", "balance", "100.00"];
/// The change.
pub(super) const ACCOUNT_CHANGED: [&str; 4] = ["HSET", ACCOUNT, "balance", "100.01"];

/// Data beside one of each type, so that there is something to count.
const BULK_BYTES: u64 = 16 << 20;
const WRITER_KEYS: u64 = 1_000;
/// Writes before the backup, and again after it.
const WRITES: u64 = 2_000;

/// Does what blocks on a thread for it. What was done is undone if the user wants to stop.
pub(super) async fn blocking<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce() -> TestkitResult<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    if context.stop.is_cancelled() {
        return Err(Error::interrupted());
    }
    let done = done.map_err(|error| Error::new(ErrorKind::Failed, format!("the demo broke off: {error}")))?;
    done.map_err(|error| failed(&error))
}

fn failed(error: &TestkitError) -> Error {
    Error::new(ErrorKind::Failed, error.to_string())
}

/// Starts a cluster and waits until it is whole.
pub(super) fn start(server: Server, primaries: usize, replicas: usize) -> TestkitResult<Cluster> {
    ClusterBuilder::new(server).primaries(primaries).replicas_per_primary(replicas).start()
}

/// The address of the cluster's first node.
pub(super) fn addr(cluster: &Cluster) -> Result<SocketAddr> {
    Ok(cluster.node(0).map_err(|error| failed(&error))?.addr())
}

/// The ports of some of its nodes.
pub(super) fn ports(cluster: &Cluster, nodes: Range<usize>) -> String {
    let nodes = cluster.nodes().get(nodes).unwrap_or_default();
    nodes.iter().map(|node| node.port().to_string()).collect::<Vec<_>>().join(", ")
}

/// How many of its servers run.
pub(super) fn running(cluster: &Cluster) -> usize {
    cluster.nodes().iter().filter(|node| node.pid().is_some()).count()
}

/// The name of its servers' command-line client.
pub(super) fn cli(cluster: &Cluster) -> &'static str {
    match cluster.server().version().product {
        Product::Redis => "redis-cli",
        Product::Valkey => "valkey-cli",
    }
}

/// A command as one would type it for this cluster.
pub(super) fn cli_command(cluster: &Cluster, words: &[&str]) -> Result<String> {
    Ok(format!("{} -c -p {} {}", cli(cluster), addr(cluster)?.port(), words.join(" ")))
}

/// Makes the demo's folder inside the cluster's, so that it goes when that goes.
pub(super) fn make_folder(cluster: &Cluster) -> Result<PathBuf> {
    let node = cluster.node(0).map_err(|error| failed(&error))?;
    let folder = node.dir().with_file_name("demo");
    std::fs::create_dir(&folder).map_err(|error| {
        Error::new(ErrorKind::Failed, format!("can't make {}: {error}", folder.display()))
    })?;
    Ok(folder)
}

/// What was written before the backup, the writer's own keys left out.
pub(super) struct Data([Loaded; 2]);

impl Data {
    pub(super) fn keys(&self) -> u64 {
        self.keys_by_type().values().sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|part| part.bytes).sum()
    }

    pub(super) fn has_functions(&self) -> bool {
        self.0.iter().any(|part| part.functions)
    }

    pub(super) fn keys_by_type(&self) -> BTreeMap<&'static str, u64> {
        // The account is the one that no part counts.
        let mut all = BTreeMap::from([("hash", 1)]);
        for (kind, keys) in self.0.iter().flat_map(|part| &part.keys_by_type) {
            *all.entry(*kind).or_default() += keys;
        }
        all
    }

    /// Reads keys of every type from a cluster that should hold the same, and calls the functions; returns how many keys.
    pub(super) fn verify(&self, cluster: &Cluster) -> TestkitResult<u64> {
        let mut client = cluster.client()?;
        for part in &self.0 {
            part.verify(&mut client)?;
        }
        let keys: usize = self.0.iter().map(|part| part.samples.len()).sum();
        Ok(u64::try_from(keys).unwrap_or(u64::MAX))
    }
}

/// Writes the data.
pub(super) fn fill(cluster: &Cluster) -> TestkitResult<Data> {
    let data = Data([Mix::every_type().load(cluster)?, Mix::bulk(BULK_BYTES).load(cluster)?]);
    cluster.client()?.command(&ACCOUNT_MADE)?;
    Ok(data)
}

/// Changes one field of the account.
pub(super) fn change_account(cluster: &Cluster) -> TestkitResult<()> {
    cluster.client()?.command(&ACCOUNT_CHANGED)?;
    Ok(())
}

/// Starts the writer, and lets it write for a while.
pub(super) fn start_writer(cluster: &Cluster) -> TestkitResult<Writer> {
    let writer = Writer::start(cluster, WRITER_KEYS)?;
    writer.wait_for_more(WRITES)?;
    Ok(writer)
}

/// Lets the writer write for another while and stops it. Returns how many writes were acknowledged in all.
pub(super) fn write_more(writer: Writer) -> TestkitResult<u64> {
    writer.wait_for_more(WRITES)?;
    let written = writer.stop();
    // The numbers that are written count the writes, from 1.
    let sent = written.attempted.values().copied().max().unwrap_or(0);
    Ok(sent.saturating_sub(written.failed))
}

/// What a disaster did and left.
pub(super) struct Loss {
    /// The commands that did it, as one would type them.
    pub(super) commands: Vec<String>,
    /// The nodes that run: port and number of keys.
    pub(super) survivors: Vec<(u16, u64)>,
}

/// Empties every shard, then kills its primaries and the first replica.
pub(super) fn destroy(cluster: &Cluster) -> TestkitResult<Loss> {
    let mut commands = Vec::new();
    for shard in 0..OLD_SHARDS {
        let primary = cluster.primary(shard)?;
        let mut client = primary.client()?;
        client.command(&["FLUSHALL"])?;
        // Until its replica has followed: a kill in between would spare it.
        client.command(&["WAIT", "1", "10000"])?;
        commands.push(format!("{} -p {} FLUSHALL", cli(cluster), primary.port()));
    }
    let (lost, left) = cluster.nodes().split_at_checked(OLD_SHARDS + 1).unwrap_or_default();
    let killed: Vec<String> = lost.iter().filter_map(|node| Some(node.pid()?.to_string())).collect();
    for node in lost {
        node.kill()?;
    }
    commands.push(format!("kill -9 {}", killed.join(" ")));
    let mut survivors = Vec::new();
    for node in left {
        let keys = node.client()?.command(&["DBSIZE"])?.int()?;
        survivors.push((node.port(), keys.unsigned_abs()));
    }
    Ok(Loss { commands, survivors })
}
