//! `slotkeep list` of a repository with very many backups.

use std::path::PathBuf;

use clap::Args;
use slotkeep_format::Manifest;
use slotkeep_testkit::{ClusterBuilder, servers};

use crate::measure::measure;

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
    let mut best = f64::MAX;
    for round in 1..=arguments.rounds {
        let usage = measure(&list)?;
        println!(
            "round {round}: {} backups listed in {:.2} s, CPU {:.2} s, peak {:.0} MiB",
            arguments.backups, usage.wall_s, usage.cpu_s, usage.peak_mib
        );
        best = best.min(usage.wall_s);
    }
    println!("the best: {best:.2} s (to reach for 10,000: 1 s)");
    Ok(())
}
