//! `slotkeep list` of a repository with very many backups.

use std::path::PathBuf;

use clap::Args;
use slotkeep_format::Manifest;
use slotkeep_testkit::{ClusterBuilder, servers};

use crate::measure::{Usage, measure, median};

/// What to measure.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// The server, one of `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// How many backups
    #[arg(long, default_value_t = 10_000)]
    backups: u32,
    /// How often it is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The `slotkeep` to measure; the one beside this program if not given
    #[arg(long)]
    slotkeep: Option<PathBuf>,
}

pub(crate) fn run(arguments: &ListArgs) -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let repository = scratch.path().join("repo");
    let slotkeep = match &arguments.slotkeep {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("slotkeep"),
    };
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let cluster = ClusterBuilder::new(servers::require(&arguments.server)?).primaries(3).start()?;
    let seed = cluster.node(0)?.addr().to_string();
    let backup = ["backup", "--json", "--cluster", &seed, "--repo", &text(&repository)];
    let backup = [&[text(&slotkeep)][..], &backup.map(str::to_owned)].concat();
    measure(&backup)?;
    drop(cluster);

    // The same backup under other ids: what is listed is manifests.
    let folder = repository.join("main/backups");
    let first = std::fs::read_dir(&folder)?.next().ok_or("no backup was made")??.path();
    let mut manifest = Manifest::parse(&std::fs::read(first)?)?;
    for number in 1..arguments.backups {
        manifest.id = format!("20300101T{number:06}.000Z-0000");
        std::fs::write(folder.join(format!("{}.json", manifest.id)), manifest.render()?)?;
    }
    let list = [text(&slotkeep), "list".to_owned(), "--repo".to_owned(), text(&repository)];
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        if forget_files() {
            let usage = measure(&list)?;
            println!("round {round}, nothing in memory: {}", in_words(&usage));
            cold.push(usage);
        }
        let usage = measure(&list)?;
        println!("round {round}, files in memory:   {}", in_words(&usage));
        warm.push(usage);
    }
    println!("{} backups, medians (to reach for 10,000: 1 s):", arguments.backups);
    for (how, usages) in [("nothing in memory", cold), ("files in memory", warm)] {
        if usages.is_empty() {
            println!("  {how}: not measured, as only root may drop the system's cache");
        } else {
            println!("  {how}: {:.2} s", median(&usages, |usage| usage.wall_s));
        }
    }
    Ok(())
}

/// Makes the system forget all it has read from disks, programs included; false if it may not be told to.
fn forget_files() -> bool {
    // What is not on the disk yet would stay.
    let synced = std::process::Command::new("sync").status();
    synced.is_ok_and(|status| status.success()) && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn in_words(usage: &Usage) -> String {
    format!("{:.2} s, CPU {:.2} s, peak {:.0} MiB", usage.wall_s, usage.cpu_s, usage.peak_mib)
}
