//! A moment of a cluster brought back, from the command to `cluster_state:ok` on every node, split into its steps, beside what the servers take
//! to start with RDB files of their own of the same data.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::Stopwatch;
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Endpoint, Server, servers};

use crate::archive::{Archive, wait_stored, write_for};
use crate::load;

const PRIMARIES: usize = 3;
const LOOK: Duration = Duration::from_millis(10);

/// What to measure.
#[derive(Args)]
pub(crate) struct MomentArgs {
    /// The server, one of `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// About how much data, in MB (10^6 bytes)
    #[arg(long, default_value_t = 3000)]
    megabytes: u64,
    /// For how long clients write behind the backup, in seconds
    #[arg(long, default_value_t = 20)]
    log_seconds: u64,
    /// Folder for what is written
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// The `slotkeep` to measure; the one beside this program if not given
    #[arg(long)]
    slotkeep: Option<PathBuf>,
}

pub(crate) fn run(arguments: &MomentArgs) -> Result<(), Box<dyn std::error::Error>> {
    let server = servers::require(&arguments.server)?;
    let scratch = match &arguments.scratch {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let slotkeep = match &arguments.slotkeep {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("slotkeep"),
    };
    println!("{}: loading about {} MB into three primaries …", server.version(), arguments.megabytes);
    let cluster = ClusterBuilder::new(server.clone()).primaries(PRIMARIES).config("save", "").start()?;
    println!("{} keys", Mix::bulk(arguments.megabytes * 1_000_000).load(&cluster)?.keys());
    let loads = load::prepare(&cluster)?;
    let archive = Archive::start(&slotkeep, &cluster, scratch.path())?;
    archive.wait("the first backup", Archive::has_backup)?;
    let written = write_for(&cluster, &loads, Duration::from_secs(arguments.log_seconds), || ())?;
    wait_stored(&archive, &cluster)?;
    archive.stop()?;
    println!("{:.0} MB of log behind the backup", written.stream_mb);
    let own = own_start(&cluster)?;
    // Both sets of servers at once would need the memory twice.
    drop(cluster);
    let restored = restore(&slotkeep, &server, scratch.path())?;
    print_table(&own, &restored);
    Ok(())
}

/// How long the servers took to start with their own files.
struct OwnStart {
    rdb_bytes: u64,
    wall_s: f64,
    /// The slowest node's own word.
    loaded_s: f64,
}

/// Has the servers save, ends them, and starts them again.
fn own_start(cluster: &Cluster) -> Result<OwnStart, Box<dyn std::error::Error>> {
    let mut rdb_bytes = 0;
    for node in cluster.nodes() {
        node.shutdown_saving()?;
        rdb_bytes += fs::metadata(node.dir().join("dump.rdb"))?.len();
    }
    let clock = Stopwatch::start();
    cluster.start_nodes()?;
    let wall_s = clock.elapsed().as_secs_f64();
    let told = cluster.nodes().iter().map(|node| told_seconds(&node.log(), &["DB loaded from disk"]));
    Ok(OwnStart { rdb_bytes, wall_s, loaded_s: told.fold(0.0, f64::max) })
}

/// What the steps of a restore took, one after the other.
struct Restored {
    /// Until the files were in place.
    files_s: f64,
    /// Until the last of them was in place and every node answered that it has loaded it.
    loaded_s: f64,
    /// Until every node said that the cluster is whole.
    ok_s: f64,
    /// Until the command had ended.
    ended_s: f64,
    /// What the slowest node says that loading bases and logs took.
    told_base_s: f64,
    told_log_s: f64,
    rdb_bytes: u64,
    log_bytes: u64,
}

fn restore(slotkeep: &Path, server: &Server, scratch: &Path) -> Result<Restored, Box<dyn std::error::Error>> {
    let nodes = free_addrs()?;
    let target = scratch.join("restored");
    let _nodes = Nodes(target.clone());
    let named: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let mut command = Command::new(slotkeep);
    command.args([
        "restore",
        "--json",
        "--quiet",
        "--at",
        "latest",
        "--start",
        "--beside-old",
        "--no-replicas",
    ]);
    command.arg("--server").arg(server.program()).arg("--repo").arg(scratch.join("repo"));
    command.arg("--to-dir").arg(&target).args(["--nodes", &named.join(",")]);
    let clock = Stopwatch::start();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let (mut files_s, mut loaded_s, mut ok_s) = (None, None, None);
    while child.try_wait()?.is_none() {
        let now = clock.elapsed().as_secs_f64();
        if files_s.is_none() && target.exists() {
            files_s = Some(now);
        }
        if files_s.is_some() && loaded_s.is_none() && all(&nodes, has_loaded) {
            loaded_s = Some(now);
        }
        if loaded_s.is_some() && ok_s.is_none() && all(&nodes, is_whole) {
            ok_s = Some(now);
        }
        std::thread::park_timeout(LOOK);
    }
    let ended_s = clock.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the restore ended with {}", output.status).into());
    }
    if !all(&nodes, is_whole) {
        return Err("the restored cluster is not whole".into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let shards =
        report.pointer("/recovery/shards").and_then(Value::as_array).ok_or("no shards in the report")?;
    let log_bytes = shards.iter().filter_map(|shard| shard.get("log_bytes")?.as_u64()).sum();
    let (mut rdb_bytes, mut told_base_s, mut told_log_s) = (0, 0.0_f64, 0.0_f64);
    for file in files(&target)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if file.extension().is_some_and(|end| end == "rdb") {
            rdb_bytes += fs::metadata(&file)?.len();
        } else if name == "server.log" {
            let log = fs::read_to_string(&file)?;
            told_base_s = told_base_s.max(told_seconds(&log, &["DB loaded from base file"]));
            told_log_s = told_log_s.max(told_seconds(&log, &["DB loaded from incr file"]));
        }
    }
    let ok_s = ok_s.unwrap_or(ended_s);
    let loaded_s = loaded_s.unwrap_or(ok_s);
    let files_s = files_s.unwrap_or(loaded_s);
    Ok(Restored { files_s, loaded_s, ok_s, ended_s, told_base_s, told_log_s, rdb_bytes, log_bytes })
}

/// Three addresses whose ports and bus ports are free.
fn free_addrs() -> Result<Vec<SocketAddr>, Box<dyn std::error::Error>> {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let ports = (21_000..21_900).filter(|port| free(*port) && free(port + 10_000));
    let addrs: Vec<SocketAddr> =
        ports.take(PRIMARIES).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
    if addrs.len() == PRIMARIES { Ok(addrs) } else { Err("no free ports".into()) }
}

fn all(nodes: &[SocketAddr], look: fn(&mut Client) -> Option<bool>) -> bool {
    nodes.iter().all(|node| {
        let client = Client::connect(&Endpoint::plain(*node));
        client.ok().as_mut().and_then(look).unwrap_or(false)
    })
}

/// A node that loads refuses all but a few commands.
fn has_loaded(client: &mut Client) -> Option<bool> {
    Some(client.info_field("persistence", "loading").ok()??.trim() == "0")
}

fn is_whole(client: &mut Client) -> Option<bool> {
    let told = client.command(&["CLUSTER", "INFO"]).ok()?.text().ok()?;
    Some(told.lines().any(|line| line.trim() == "cluster_state:ok"))
}

/// The sum of the seconds in the lines of a server's log that say so.
fn told_seconds(log: &str, what: &[&str]) -> f64 {
    let lines = log.lines().filter(|line| what.iter().any(|words| line.contains(words)));
    let seconds = lines.filter_map(|line| line.rsplit_once(": ")?.1.split(' ').next()?.parse::<f64>().ok());
    seconds.sum()
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, std::io::Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Ends the nodes that a restore has started there.
struct Nodes(PathBuf);

impl Drop for Nodes {
    fn drop(&mut self) {
        for file in files(&self.0).unwrap_or_default().iter().filter(|file| file.ends_with("server.pid")) {
            let Ok(pid) = fs::read_to_string(file) else { continue };
            let _ = Command::new("kill").args(["-9", pid.trim()]).status();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print_table(own: &OwnStart, restored: &Restored) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let data_mb = mb(restored.rdb_bytes + restored.log_bytes);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["step", "s", "MB/s"]);
    let mut row = |name: &str, seconds: f64, megabytes: Option<f64>| {
        let rate = megabytes.map_or_else(String::new, |megabytes| format!("{:.0}", megabytes / seconds));
        table.add_row([name.to_owned(), format!("{seconds:.2}"), rate]);
    };
    row("find the way, read, verify, write files", restored.files_s, Some(data_mb));
    row("start, load base and log", restored.loaded_s - restored.files_s, Some(data_mb));
    row("  base, by the slowest node's word", restored.told_base_s, None);
    row("  log, by the slowest node's word", restored.told_log_s, None);
    row("until cluster_state:ok on every node", restored.ok_s - restored.loaded_s, None);
    row("until the command had checked it and ended", restored.ended_s - restored.ok_s, None);
    row("the moment restored, in all", restored.ended_s, Some(data_mb));
    row("the servers' own start with their RDBs", own.wall_s, Some(mb(own.rdb_bytes)));
    row("  load, by the slowest node's word", own.loaded_s, None);
    println!("{table}");
    println!(
        "bases {:.0} MB and {:.0} MB of log, against {:.0} MB of RDB; the restore takes {:.2} times as long as the servers' own start, {:.2} times as long a byte",
        mb(restored.rdb_bytes),
        mb(restored.log_bytes),
        mb(own.rdb_bytes),
        restored.ended_s / own.wall_s,
        (restored.ended_s / data_mb) / (own.wall_s / mb(own.rdb_bytes)),
    );
}
