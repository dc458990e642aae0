//! A full backup of three shards, against `redis-cli --cluster backup` and against readers that discard what they read.

use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::{Table, presets};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Cluster, ClusterBuilder, servers};

use crate::measure::{Usage, measure, median};

/// What to measure.
#[derive(Args)]
pub(crate) struct BackupArgs {
    /// The server, one of `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// A `redis-cli` to compare with; that of the server if it has one
    #[arg(long)]
    cli: Option<PathBuf>,
    /// About how much data, in MB (10^6 bytes)
    #[arg(long, default_value_t = 3200)]
    megabytes: u64,
    /// How often each is measured; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Folder for what is written
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// The `slotkeep` to measure; the one beside this program if not given
    #[arg(long)]
    slotkeep: Option<PathBuf>,
}

pub(crate) fn run(arguments: &BackupArgs) -> Result<(), Box<dyn std::error::Error>> {
    let server = servers::require(&arguments.server)?;
    let cli = arguments.cli.clone().or_else(|| server.cli().map(Path::to_owned));
    println!("server: {}; loading about {} MB into three primaries …", server.version(), arguments.megabytes);
    let cluster = ClusterBuilder::new(server).primaries(3).config("save", "").start()?;
    let loaded = Mix::bulk(arguments.megabytes * 1_000_000).load(&cluster)?;
    println!("{} keys", loaded.keys());

    let scratch = match &arguments.scratch {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let contenders = contenders(arguments, &cluster, cli.as_deref(), scratch.path())?;
    let mut figures: Vec<Vec<Usage>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut stored = None;
    for round in 1..=arguments.rounds {
        for (contender, figures) in contenders.iter().zip(&mut figures) {
            let target = scratch.path().join("target");
            if target.exists() {
                std::fs::remove_dir_all(&target)?;
            }
            if contender.makes_folder {
                std::fs::create_dir(&target)?;
            }
            let usage = measure(&contender.command)?;
            println!("round {round}: {:<28} {:6.1} s", contender.name, usage.wall_s);
            figures.push(usage);
            if contender.is_slotkeep {
                stored = Some(stored_size(&target)?);
            }
        }
    }
    print_table(&contenders, &figures);
    if let Some((raw, all)) = stored {
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let ratio = all as f64 / raw as f64;
        println!(
            "stored: {all} bytes of {raw} bytes of RDB, everything included: {ratio:.3} (to reach: 0.8)"
        );
    }
    Ok(())
}

struct Contender {
    name: &'static str,
    command: Vec<String>,
    makes_folder: bool,
    is_slotkeep: bool,
}

fn contenders(
    arguments: &BackupArgs,
    cluster: &Cluster,
    cli: Option<&Path>,
    scratch: &Path,
) -> Result<Vec<Contender>, Box<dyn std::error::Error>> {
    let me = std::env::current_exe()?;
    let slotkeep = arguments.slotkeep.clone().unwrap_or_else(|| me.with_file_name("slotkeep"));
    let seed = cluster.node(0)?.addr().to_string();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let target = text(&scratch.join("target"));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let mut all = Vec::new();
    if let Some(cli) = cli {
        let command = words(&[&text(cli), "--cluster", "backup", &seed, &target]);
        all.push(Contender {
            name: "redis-cli --cluster backup",
            command,
            makes_folder: true,
            is_slotkeep: false,
        });
    }
    let mut discard = words(&[&text(&me), "discard"]);
    for shard in 0..cluster.shards() {
        discard.push(cluster.primary(shard)?.addr().to_string());
    }
    all.push(Contender {
        name: "discarding readers (limit)",
        command: discard,
        makes_folder: false,
        is_slotkeep: false,
    });
    let command = words(&[
        &text(&slotkeep),
        "backup",
        "--json",
        "--repo",
        &target,
        "--cluster",
        &seed,
        "--jobs",
        "3",
        "--jobs-per-host",
        "3",
    ]);
    all.push(Contender { name: "slotkeep backup", command, makes_folder: false, is_slotkeep: true });
    Ok(all)
}

/// The bytes of RDB that a repository's only backup holds, and all bytes of the repository.
pub(crate) fn stored_size(repository: &Path) -> Result<(u64, u64), Box<dyn std::error::Error>> {
    let (mut raw, mut all) = (0, 0);
    let mut folders = vec![repository.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            all += entry.metadata()?.len();
            if entry.path().parent().is_some_and(|parent| parent.ends_with("backups")) {
                let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path())?)?;
                let shards = manifest
                    .get("shards")
                    .and_then(serde_json::Value::as_array)
                    .ok_or("a manifest without shards")?;
                raw += shards
                    .iter()
                    .filter_map(|shard| shard.pointer("/base/rdb/raw_bytes")?.as_u64())
                    .sum::<u64>();
            }
        }
    }
    Ok((raw, all))
}

fn print_table(contenders: &[Contender], figures: &[Vec<Usage>]) {
    let slotkeep = contenders.iter().zip(figures).find(|(contender, _)| contender.is_slotkeep);
    let ours = slotkeep.map_or(f64::NAN, |(_, figures)| median(figures, |usage| usage.wall_s));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "",
        "wall s",
        "CPU s",
        "peak MiB",
        "slotkeep / this",
        "to reach",
    ]);
    for (contender, figures) in contenders.iter().zip(figures) {
        let wall = median(figures, |usage| usage.wall_s);
        let goal = match contender.name {
            "redis-cli --cluster backup" => "0.65",
            "discarding readers (limit)" => "1.35",
            _ => "peak below 128 MiB",
        };
        table.add_row([
            contender.name.to_owned(),
            format!("{wall:.1}"),
            format!("{:.1}", median(figures, |usage| usage.cpu_s)),
            format!("{:.0}", median(figures, |usage| usage.peak_mib)),
            format!("{:.2}", ours / wall),
            goal.to_owned(),
        ]);
    }
    println!("{table}");
}
