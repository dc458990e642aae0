//! `slotkeep verify` beside what only reads the same files, and a drill split into its steps.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{ClusterBuilder, Server, servers};

use crate::measure::{Usage, measure, median};

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;
/// What only reads: the faster of the two is the disk's rate.
const CACHED: &str = "cat, read and discarded";
const DIRECT: &str = "dd, direct, discarded";

/// What to measure.
#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// The server, one of `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// About how much data, in MB (10^6 bytes)
    #[arg(long, default_value_t = 3200)]
    megabytes: u64,
    /// How often each is measured; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Leave the drill out: it needs the memory of the whole dataset once more
    #[arg(long)]
    no_drill: bool,
    /// Folder for what is written
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// The `slotkeep` to measure; the one beside this program if not given
    #[arg(long)]
    slotkeep: Option<PathBuf>,
}

/// One way to go through a repository.
struct Way {
    name: &'static str,
    command: Vec<String>,
    /// Where the record of the verification is put.
    report: Option<PathBuf>,
    usages: Vec<Usage>,
}

pub(crate) fn run(arguments: &VerifyArgs) -> Result<(), Box<dyn std::error::Error>> {
    let server = servers::require(&arguments.server)?;
    let scratch = match &arguments.scratch {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let me = std::env::current_exe()?;
    let slotkeep = arguments.slotkeep.clone().unwrap_or_else(|| me.with_file_name("slotkeep"));
    let repo = scratch.path().join("repo");
    back_up(arguments, &server, &slotkeep, &repo)?;

    let files = files(&repo)?;
    let stored = files.iter().map(|(_, bytes)| bytes).sum::<u64>();
    println!("{} files with {:.1} MiB", files.len(), float(stored) / MIB);
    let mut ways = ways(&slotkeep, &repo, scratch.path());
    for round in 1..=arguments.rounds {
        for way in &mut ways {
            forget(&files)?;
            let usage = measure(&way.command)?;
            println!("round {round}: {:<28} {:6.2} s", way.name, usage.wall_s);
            way.usages.push(usage);
        }
    }
    print_table(&ways, stored)?;
    if !arguments.no_drill {
        drill(&server, &slotkeep, &repo, scratch.path())?;
    }
    Ok(())
}

fn back_up(
    arguments: &VerifyArgs,
    server: &Server,
    slotkeep: &Path,
    repo: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    println!("server: {}; loading about {} MB into three primaries …", server.version(), arguments.megabytes);
    let cluster = ClusterBuilder::new(server.clone()).primaries(3).config("save", "").start()?;
    println!("{} keys", Mix::bulk(arguments.megabytes * 1_000_000).load(&cluster)?.keys());
    let seed = cluster.node(0)?.addr().to_string();
    let backup = ["backup", "--quiet", "--json", "--jobs", "3", "--jobs-per-host", "3", "--cluster", &seed];
    run_quietly(Command::new(slotkeep).args(backup).arg("--repo").arg(repo))
}

fn run_quietly(command: &mut Command) -> Result<(), Box<dyn std::error::Error>> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

fn ways(slotkeep: &Path, repo: &Path, scratch: &Path) -> Vec<Way> {
    let (slotkeep, repo) = (slotkeep.to_string_lossy().into_owned(), repo.to_string_lossy().into_owned());
    let read = |pipe: &str| format!("find '{repo}' -type f -print0 | xargs -0 cat | {pipe}");
    // Past the system's memory of files, which some file systems do not offer.
    let direct = |file: &str| {
        format!("find '{file}' -type f -exec dd if={{}} of=/dev/null bs=4M iflag=direct status=none ';'")
    };
    let shell = |name, pipe: &str| {
        let command = vec!["sh".to_owned(), "-c".to_owned(), read(pipe)];
        Way { name, command, report: None, usages: Vec::new() }
    };
    let verify = |name, depth: &str| {
        let report = scratch.join(format!("{depth}.json"));
        let words = ["verify", "--quiet", "--again", "--depth", depth, "--repo", &repo, "--report"]
            .map(str::to_owned);
        let mut command = vec![slotkeep.clone()];
        command.extend(words);
        command.push(report.to_string_lossy().into_owned());
        Way { name, command, report: Some(report), usages: Vec::new() }
    };
    let has_b3sum = Command::new("b3sum").arg("--version").output().is_ok();
    let mut ways = vec![shell(CACHED, "cat >/dev/null")];
    let probe = direct(&format!("{repo}/slotkeep.json"));
    if Command::new("sh").args(["-c", &probe]).output().is_ok_and(|output| output.stderr.is_empty()) {
        let command = vec!["sh".to_owned(), "-c".to_owned(), direct(&repo)];
        ways.push(Way { name: DIRECT, command, report: None, usages: Vec::new() });
    }
    if has_b3sum {
        ways.push(shell("b3sum", "b3sum >/dev/null"));
    }
    ways.push(shell("sha256sum", "sha256sum >/dev/null"));
    ways.push(verify("verify --depth objects", "objects"));
    ways.push(verify("verify --depth structure", "structure"));
    ways
}

/// Every file below a folder, with its length.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>, Box<dyn std::error::Error>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path(), entry.metadata()?.len()));
            }
        }
    }
    Ok(found)
}

/// Makes the system forget what it has of the files in memory, so that the disk is read.
fn forget(files: &[(PathBuf, u64)]) -> Result<(), Box<dyn std::error::Error>> {
    for (path, _) in files {
        let input = format!("if={}", path.display());
        run_quietly(Command::new("dd").args([&input, "of=/dev/null", "iflag=nocache", "count=0"]))?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
const fn float(number: u64) -> f64 {
    number as f64
}

fn print_table(ways: &[Way], stored: u64) -> Result<(), Box<dyn std::error::Error>> {
    let reading = ways.iter().filter(|way| [CACHED, DIRECT].contains(&way.name));
    let read = reading.map(|way| median(&way.usages, |usage| usage.wall_s)).fold(f64::NAN, f64::min);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "",
        "wall s",
        "MiB/s stored",
        "CPU s",
        "peak MiB",
        "of the disk's rate",
        "GiB of RDB and log a CPU second",
    ]);
    for way in ways {
        let (wall, cpu) =
            (median(&way.usages, |usage| usage.wall_s), median(&way.usages, |usage| usage.cpu_s));
        let taken_apart = match &way.report {
            Some(report) => record(report)?.pointer("/totals/raw_bytes").and_then(Value::as_u64),
            None => None,
        };
        let rate = taken_apart.filter(|bytes| *bytes > 0).map(|bytes| float(bytes) / GIB / cpu);
        table.add_row([
            way.name.to_owned(),
            format!("{wall:.2}"),
            format!("{:.0}", float(stored) / MIB / wall),
            format!("{cpu:.2}"),
            format!("{:.0}", median(&way.usages, |usage| usage.peak_mib)),
            format!("{:.2}", read / wall),
            rate.map_or_else(String::new, |rate| format!("{rate:.3}")),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn record(report: &Path) -> Result<Value, Box<dyn std::error::Error>> {
    Ok(serde_json::from_slice(&std::fs::read(report)?)?)
}

/// Restores the backup once, and shows where the time goes.
fn drill(
    server: &Server,
    slotkeep: &Path,
    repo: &Path,
    scratch: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let report = scratch.join("drill.json");
    let mut command = Command::new(slotkeep);
    command.args(["verify", "--quiet", "--depth", "drill", "--only", "--backup", "latest"]);
    command.arg("--server").arg(server.program()).arg("--engine").arg(server.program());
    command.arg("--repo").arg(repo).arg("--spool").arg(scratch).arg("--report").arg(&report);
    run_quietly(&mut command)?;
    let record = record(&report)?;
    let drill = record.get("drill").ok_or("the record holds no drill")?;
    let number = |name: &str| drill.get(name).and_then(Value::as_u64).unwrap_or_default();
    println!(
        "\ndrill: {} keys on {} nodes, RTO {:.1} s",
        number("keys"),
        number("nodes"),
        float(number("rto_ms")) / 1e3
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["step", "s"]);
    for step in drill.get("steps").and_then(Value::as_array).into_iter().flatten() {
        let name = step.get("name").and_then(Value::as_str).unwrap_or_default();
        let ms = step.get("ms").and_then(Value::as_u64).unwrap_or_default();
        table.add_row([name.to_owned(), format!("{:.1}", float(ms) / 1e3)]);
    }
    println!("{table}");
    Ok(())
}
