//! `slotkeep archive` while clients write as fast as the servers take it, against replicas that discard what they read: at what rate
//! writes go on, whether the archive keeps up, and what it costs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;
use slotkeep_testkit::deadline::{NotYet, Stopwatch, wait_for};
use slotkeep_testkit::{Cluster, ClusterBuilder, servers};

use crate::discard;
use crate::load::{self, Load};

const PATIENCE: Duration = Duration::from_secs(120);
/// In which `/proc` counts CPU time: `USER_HZ`, the same on all machines that the servers run on.
const TICKS_PER_S: f64 = 100.0;
const LOOK: Duration = Duration::from_millis(50);

/// What to measure.
#[derive(Args)]
pub(crate) struct ArchiveArgs {
    /// The server, one of `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// How many primaries
    #[arg(long, default_value_t = 3)]
    shards: usize,
    /// For how long clients write, in seconds, each time
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Folder for what is written
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// The `slotkeep` to measure; the one beside this program if not given
    #[arg(long)]
    slotkeep: Option<PathBuf>,
}

pub(crate) fn run(arguments: &ArchiveArgs) -> Result<(), Box<dyn std::error::Error>> {
    let server = servers::require(&arguments.server)?;
    println!("{}, {} primaries; preparing writes …", server.version(), arguments.shards);
    let cluster = ClusterBuilder::new(server).primaries(arguments.shards).config("save", "").start()?;
    let loads = load::prepare(&cluster)?;
    let during = Duration::from_secs(arguments.seconds);
    let discarded = with_discarding_readers(&cluster, &loads, during)?;
    println!("with replicas that discard: {:.1} MB/s of stream", discarded.rate());
    let scratch = match &arguments.scratch {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let slotkeep = match &arguments.slotkeep {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("slotkeep"),
    };
    let archived = with_archive(&cluster, &loads, during, &slotkeep, scratch.path())?;
    print_table(&discarded, &archived);
    Ok(())
}

/// What the servers did while clients wrote.
pub(crate) struct Written {
    wall_s: f64,
    pub(crate) stream_mb: f64,
    commands: f64,
    server_cpu_s: f64,
}

impl Written {
    fn rate(&self) -> f64 {
        self.stream_mb / self.wall_s
    }
}

/// What the archive did meanwhile, and until it had stored everything; what it did before, the bases among it, is left out.
struct Archived {
    written: Written,
    cpu_s: f64,
    peak_mib: f64,
    /// Bytes that the primaries had written and the archive had not received, over all shards, at each look.
    lags: Vec<u64>,
    /// From the last write until everything was in the repository.
    drained_s: f64,
    stored_ratio: f64,
}

/// The sums of all primaries: stream offset, commands processed, CPU seconds.
fn sums(cluster: &Cluster) -> Result<(f64, f64, f64), Box<dyn std::error::Error>> {
    let (mut offset, mut commands, mut cpu_s) = (0.0, 0.0, 0.0);
    for shard in 0..cluster.shards() {
        let mut client = cluster.primary(shard)?.client()?;
        let mut figure = |section: &str, name: &str| -> Result<f64, Box<dyn std::error::Error>> {
            Ok(client.info_field(section, name)?.ok_or("a field is missing in INFO")?.parse()?)
        };
        offset += figure("replication", "master_repl_offset")?;
        commands += figure("stats", "total_commands_processed")?;
        cpu_s += figure("cpu", "used_cpu_user")? + figure("cpu", "used_cpu_sys")?;
    }
    Ok((offset, commands, cpu_s))
}

/// Lets clients write for a time, and `look` at something meanwhile.
pub(crate) fn write_for(
    cluster: &Cluster,
    loads: &[Load],
    during: Duration,
    mut look: impl FnMut(),
) -> Result<Written, Box<dyn std::error::Error>> {
    let before = sums(cluster)?;
    let stop = AtomicBool::new(false);
    let clock = Stopwatch::start();
    std::thread::scope(|scope| {
        let writers: Vec<_> = loads.iter().map(|load| scope.spawn(|| load::write(load, &stop))).collect();
        while clock.elapsed() < during {
            std::thread::park_timeout(LOOK);
            look();
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")?.map_err(|error| error.to_string())?;
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    let wall_s = clock.elapsed().as_secs_f64();
    let after = sums(cluster)?;
    Ok(Written {
        wall_s,
        stream_mb: (after.0 - before.0) / 1e6,
        commands: after.1 - before.1,
        server_cpu_s: after.2 - before.2,
    })
}

fn with_discarding_readers(
    cluster: &Cluster,
    loads: &[Load],
    during: Duration,
) -> Result<Written, Box<dyn std::error::Error>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for shard in 0..cluster.shards() {
            let addr = cluster.primary(shard)?.addr();
            let stop = &stop;
            readers.push(scope.spawn(move || discard::follow(addr, stop).map_err(|error| error.to_string())));
        }
        let written = wait_online(cluster).and_then(|()| write_for(cluster, loads, during, || ()));
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().map_err(|_| "a reader panicked")??;
        }
        written
    })
}

/// Waits until each primary has a replica that receives its stream.
fn wait_online(cluster: &Cluster) -> Result<(), Box<dyn std::error::Error>> {
    for shard in 0..cluster.shards() {
        let mut client = cluster.primary(shard)?.client()?;
        wait_for(PATIENCE, "a replica to be online", || {
            let told = client.info("replication").map_err(|error| NotYet::because(error.to_string()))?;
            if told.contains("state=online") { Ok(()) } else { Err(NotYet::because(told)) }
        })?;
    }
    Ok(())
}

/// An archive that runs, and the last thing it said of how it stands.
pub(crate) struct Archive {
    child: Child,
    status: Arc<Mutex<Value>>,
}

impl Archive {
    pub(crate) fn start(
        slotkeep: &Path,
        cluster: &Cluster,
        scratch: &Path,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let seed = cluster.node(0)?.addr().to_string();
        let shards = cluster.shards().to_string();
        let mut command = Command::new(slotkeep);
        command.args(["archive", "--json", "--status-every", "100ms", "--cluster", &seed]);
        command.args(["--jobs", &shards, "--jobs-per-host", &shards]);
        command.arg("--repo").arg(scratch.join("repo")).arg("--spool").arg(scratch.join("spool"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let status = Arc::new(Mutex::new(Value::Null));
        let last = Arc::clone(&status);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(mut said) = serde_json::from_str::<Value>(&line) else { continue };
                if let (Some(status), Ok(mut last)) = (said.get_mut("status"), last.lock()) {
                    *last = status.take();
                }
            }
        });
        Ok(Self { child, status })
    }

    /// That figure of every shard.
    pub(crate) fn figures(&self, name: &str) -> Vec<u64> {
        let Ok(status) = self.status.lock() else { return Vec::new() };
        let shards = status.get("shards").and_then(Value::as_array);
        shards.into_iter().flatten().filter_map(|shard| shard.get(name)?.as_u64()).collect()
    }

    pub(crate) fn wait(
        &self,
        what: &str,
        wanted: impl Fn(&Self) -> bool,
    ) -> Result<(), Box<dyn std::error::Error>> {
        wait_for(
            PATIENCE,
            what,
            || if wanted(self) { Ok(()) } else { Err(NotYet::because("not said yet")) },
        )?;
        Ok(())
    }

    pub(crate) fn has_backup(&self) -> bool {
        self.status.lock().is_ok_and(|status| status.get("backup").is_some_and(Value::is_string))
    }

    /// Its largest size in memory so far, in MiB.
    fn peak_mib(&self) -> Result<f64, Box<dyn std::error::Error>> {
        let told = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = told.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// The CPU time that it has used so far.
    fn cpu_s(&self) -> Result<f64, Box<dyn std::error::Error>> {
        let told = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Behind the name, which may hold anything, stand the state and ten other fields, then user and system time in ticks.
        let (_, behind) = told.rsplit_once(')').ok_or("no name in its stat")?;
        let ticks = behind.split_ascii_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let ticks = ticks.sum::<Result<f64, _>>()?;
        Ok(ticks / TICKS_PER_S)
    }

    pub(crate) fn stop(mut self) -> Result<(), Box<dyn std::error::Error>> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the archive ended with {status}").into()) }
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_archive(
    cluster: &Cluster,
    loads: &[Load],
    during: Duration,
    slotkeep: &Path,
    scratch: &Path,
) -> Result<Archived, Box<dyn std::error::Error>> {
    let archive = Archive::start(slotkeep, cluster, scratch)?;
    archive.wait("the first backup", Archive::has_backup)?;
    wait_online(cluster)?;
    let (base, mut lags) = (archive.figures("received"), Vec::new());
    // What the bases took is the benchmark of backups' concern.
    let before_s = archive.cpu_s()?;
    let written = write_for(cluster, loads, during, || lags.push(archive.figures("lag_bytes").iter().sum()))?;
    let clock = Stopwatch::start();
    let end = wait_stored(&archive, cluster)?;
    let drained_s = clock.elapsed().as_secs_f64();
    let peak_mib = archive.peak_mib()?;
    let cpu_s = archive.cpu_s()? - before_s;
    archive.stop()?;
    let stream_bytes = end.saturating_sub(base.iter().sum());
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let stored_ratio = segment_bytes(&scratch.join("repo"))? as f64 / stream_bytes as f64;
    Ok(Archived { written, cpu_s, peak_mib, lags, drained_s, stored_ratio })
}

/// Waits until everything that the primaries have produced by now is in the repository; gives the sum of their offsets.
pub(crate) fn wait_stored(archive: &Archive, cluster: &Cluster) -> Result<u64, Box<dyn std::error::Error>> {
    let mut end = 0_u64;
    for shard in 0..cluster.shards() {
        let told = cluster.primary(shard)?.client()?.info_field("replication", "master_repl_offset")?;
        end += told.ok_or("no offset")?.parse::<u64>()?;
    }
    archive
        .wait("everything to be stored", |archive| archive.figures("sealed").iter().sum::<u64>() >= end)?;
    Ok(end)
}

/// The bytes of all segments in a repository.
fn segment_bytes(folder: &Path) -> Result<u64, Box<dyn std::error::Error>> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sum += segment_bytes(&entry.path())?;
        } else if folder.ends_with("log") {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

/// The mean over a part of the looks.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn mean_mb(lags: &[u64]) -> f64 {
    lags.iter().sum::<u64>() as f64 / lags.len().max(1) as f64 / 1e6
}

fn print_table(discarded: &Written, archived: &Archived) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "",
        "commands/s",
        "stream MB/s",
        "servers' CPU ms/MB",
        "its own CPU ms/MB",
        "peak MiB",
    ]);
    let written = &archived.written;
    let row = |name: &str, written: &Written, cpu: Option<f64>, peak: Option<f64>| {
        let or_none = |figure: Option<f64>, digits: usize| {
            figure.map_or_else(String::new, |figure| format!("{figure:.digits$}"))
        };
        [
            name.to_owned(),
            format!("{:.0}", written.commands / written.wall_s),
            format!("{:.1}", written.rate()),
            format!("{:.2}", written.server_cpu_s * 1000.0 / written.stream_mb),
            or_none(cpu, 2),
            or_none(peak, 0),
        ]
    };
    table.add_row(row("replicas that discard", discarded, None, None));
    let own = archived.cpu_s * 1000.0 / written.stream_mb;
    table.add_row(row("slotkeep archive", written, Some(own), Some(archived.peak_mib)));
    println!("{table}");
    let third = archived.lags.len() / 3;
    let (first, last) = (
        archived.lags.get(..third).unwrap_or_default(),
        archived.lags.get(archived.lags.len() - third..).unwrap_or_default(),
    );
    println!(
        "writes go on at {:.2} of the rate with replicas that discard\n\
         CPU of the archive to that of the servers: {:.2} (to reach: 0.25)\n\
         not yet received, all shards: {:.1} MB in the first third, {:.1} MB in the last (to reach: doesn't grow)\n\
         stored {:.1} s after the last write; {:.3} bytes for each byte of stream; peak below 128 MiB to reach",
        written.rate() / discarded.rate(),
        archived.cpu_s / written.server_cpu_s,
        mean_mb(first),
        mean_mb(last),
        archived.drained_s,
        archived.stored_ratio,
    );
}
