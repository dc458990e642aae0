//! A backup of three shards into an S3 server, against one into a folder and against the rate at which the server takes the same bytes from the
//! same client library; and what encryption costs, in time and in bytes. All in one run, in turns, as ratios.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use comfy_table::{Table, presets};
use futures::future::try_join_all;
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::stores::S3Server;
use slotkeep_testkit::{ClusterBuilder, servers};
use tokio::io::AsyncReadExt;

use crate::backup::stored_size;
use crate::measure::{Usage, measure, median};

/// What a backup takes of an object for one part, and how many parts of it are on their way at a time.
const PART_BYTES: usize = 8 << 20;
const PARTS_IN_FLIGHT: usize = 2;
const BUCKET: &str = "bench";

/// What to measure.
#[derive(Args)]
pub(crate) struct StoreArgs {
    /// The server, one of `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// About how much data, in MB (10^6 bytes)
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// How often each is measured; medians are shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder for what is written
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// The `slotkeep` to measure; the one beside this program if not given
    #[arg(long)]
    slotkeep: Option<PathBuf>,
}

/// What is measured, in this order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Folder,
    EncryptedFolder,
    Raw,
    S3,
    EncryptedS3,
}

impl Way {
    const ALL: [Self; 5] = [Self::Folder, Self::EncryptedFolder, Self::Raw, Self::S3, Self::EncryptedS3];

    const fn name(self) -> &'static str {
        match self {
            Self::Folder => "backup to a folder",
            Self::EncryptedFolder => "backup to a folder, encrypted",
            Self::Raw => "the same bytes put by the client alone",
            Self::S3 => "backup to S3",
            Self::EncryptedS3 => "backup to S3, encrypted",
        }
    }

    const fn is_encrypted(self) -> bool {
        matches!(self, Self::EncryptedFolder | Self::EncryptedS3)
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

pub(crate) fn run(arguments: &StoreArgs) -> Outcome<()> {
    let scratch = match &arguments.scratch {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let server = servers::require(&arguments.server)?;
    println!("server: {}; loading about {} MB into three primaries …", server.version(), arguments.megabytes);
    let cluster = ClusterBuilder::new(server).primaries(3).config("save", "").start()?;
    let loaded = Mix::bulk(arguments.megabytes * 1_000_000).load(&cluster)?;
    println!("{} keys", loaded.keys());
    let files = scratch.path().join("buckets");
    std::fs::create_dir(&files)?;
    let s3 = S3Server::start_s3s_fs(&files)?;
    s3.make_bucket(BUCKET)?;
    let bench = Bench {
        scratch: scratch.path(),
        slotkeep: arguments.slotkeep.clone().map_or_else(beside, Ok)?,
        cluster: cluster.node(0)?.addr().to_string(),
        environment: s3.environment(),
    };
    let mut figures: Vec<Vec<Usage>> = Way::ALL.iter().map(|_| Vec::new()).collect();
    for round in 1..=arguments.rounds {
        bench.clear()?;
        for (way, figures) in Way::ALL.into_iter().zip(&mut figures) {
            let usage = bench.measure(way, round)?;
            println!("round {round}: {:<40} {:6.2} s, CPU {:6.2} s", way.name(), usage.wall_s, usage.cpu_s);
            figures.push(usage);
        }
    }
    let (raw, plain) = stored_size(&bench.folder(Way::Folder))?;
    let (_, encrypted) = stored_size(&bench.folder(Way::EncryptedFolder))?;
    print_table(raw, plain, &figures);
    print_overhead(plain, encrypted, &figures);
    Ok(())
}

fn beside() -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("slotkeep"))
}

struct Bench<'a> {
    scratch: &'a Path,
    slotkeep: PathBuf,
    cluster: String,
    environment: [(&'static str, String); 5],
}

impl Bench<'_> {
    fn folder(&self, way: Way) -> PathBuf {
        self.scratch.join(if way.is_encrypted() { "encrypted" } else { "plain" })
    }

    /// Takes away the folders of the round before.
    fn clear(&self) -> std::io::Result<()> {
        for folder in [Way::Folder, Way::EncryptedFolder].map(|way| self.folder(way)) {
            if folder.exists() {
                std::fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    fn measure(&self, way: Way, round: usize) -> Outcome<Usage> {
        let command = match way {
            Way::Folder | Way::EncryptedFolder => {
                self.backup(way, &self.folder(way).to_string_lossy(), round)?
            }
            Way::S3 | Way::EncryptedS3 => {
                let name = if way.is_encrypted() { "encrypted" } else { "plain" };
                self.backup(way, &format!("s3://{BUCKET}/{name}-{round}"), round)?
            }
            Way::Raw => {
                let me = std::env::current_exe()?.to_string_lossy().into_owned();
                let mut command = self.with_environment([&me, "put", BUCKET, &format!("raw-{round}")]);
                command.extend(objects(&self.folder(Way::Folder))?);
                command
            }
        };
        measure(&command)
    }

    /// The command that takes a backup into a repository that was just made.
    fn backup(&self, way: Way, repository: &str, round: usize) -> Outcome<Vec<String>> {
        let slotkeep = self.slotkeep.to_string_lossy().into_owned();
        let mut init = self.with_environment([&slotkeep, "init", "--quiet", "--repo", repository]);
        if way.is_encrypted() {
            // The key that signs stays on this machine; what reads is not needed again.
            init.push("--passphrase".to_owned());
            init.insert(1, format!("SLOTKEEP_PASSPHRASE=round {round}"));
        }
        measure(&init)?;
        let backup = ["backup", "--json", "--jobs", "3", "--jobs-per-host", "3"];
        let where_to = ["--repo", repository, "--cluster", &self.cluster];
        Ok(self.with_environment([&[slotkeep.as_str()][..], &backup, &where_to].concat()))
    }

    fn with_environment<'a>(&self, command: impl AsRef<[&'a str]>) -> Vec<String> {
        let mut whole = vec!["env".to_owned()];
        whole.extend(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        whole.push(format!("SLOTKEEP_STATE={}", self.scratch.join("state").display()));
        whole.extend(command.as_ref().iter().map(|word| (*word).to_owned()));
        whole
    }
}

/// The objects of a repository that hold data.
fn objects(repository: &Path) -> Outcome<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![repository.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "zst") {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

/// Puts files into a bucket, all at once, each in parts as a backup does.
pub(crate) fn put(bucket: &str, prefix: &str, files: &[PathBuf]) -> Outcome<()> {
    let store: Arc<dyn ObjectStore> = Arc::new(AmazonS3Builder::from_env().with_bucket_name(bucket).build()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime
        .block_on(async {
            let puts = files.iter().enumerate().map(|(number, file)| {
                let (store, file, name) = (Arc::clone(&store), file.clone(), format!("{prefix}/{number}"));
                async move { tokio::spawn(put_one(store, file, name)).await? }
            });
            try_join_all(puts).await.map(drop)
        })
        .map_err(|error: Box<dyn std::error::Error + Send + Sync>| error.to_string().into())
}

async fn put_one(
    store: Arc<dyn ObjectStore>,
    file: PathBuf,
    name: String,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut source = tokio::fs::File::open(file).await?;
    let upload = store.put_multipart(&name.as_str().into()).await?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    loop {
        let mut piece = Vec::with_capacity(1 << 20);
        if (&mut source).take(1 << 20).read_to_end(&mut piece).await? == 0 {
            break;
        }
        upload.wait_for_capacity(PARTS_IN_FLIGHT).await?;
        upload.put(Bytes::from(piece));
    }
    upload.finish().await?;
    Ok(())
}

fn figures_of(figures: &[Vec<Usage>], way: Way) -> &[Usage] {
    let found = Way::ALL.iter().zip(figures).find(|(other, _)| **other == way);
    found.map(|(_, figures)| figures.as_slice()).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print_table(raw: u64, stored: u64, figures: &[Vec<Usage>]) {
    let wall = |way| median(figures_of(figures, way), |usage| usage.wall_s);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "",
        "wall s",
        "CPU s",
        "peak MiB",
        "MB/s of RDB",
        "MB/s stored",
        "this / to a folder",
        "this / put alone",
    ]);
    for way in Way::ALL {
        let of = |of: fn(&Usage) -> f64| median(figures_of(figures, way), of);
        let of_rdb = format!("{:.0}", raw as f64 / 1e6 / wall(way));
        table.add_row([
            way.name().to_owned(),
            format!("{:.2}", wall(way)),
            format!("{:.2}", of(|usage| usage.cpu_s)),
            format!("{:.0}", of(|usage| usage.peak_mib)),
            if way == Way::Raw { String::new() } else { of_rdb },
            format!("{:.0}", stored as f64 / 1e6 / wall(way)),
            format!("{:.2}", wall(way) / wall(Way::Folder)),
            format!("{:.2}", wall(way) / wall(Way::Raw)),
        ]);
    }
    println!("{table}");
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print_overhead(plain: u64, encrypted: u64, figures: &[Vec<Usage>]) {
    let ratio = |encrypted, plain, of: fn(&Usage) -> f64| {
        median(figures_of(figures, encrypted), of) / median(figures_of(figures, plain), of)
    };
    let both = [("a folder", Way::EncryptedFolder, Way::Folder), ("S3", Way::EncryptedS3, Way::S3)];
    for (place, encrypted, plain) in both {
        println!(
            "encryption to {place}: {:.3} times the time (to reach: 1.10), {:.3} times the CPU",
            ratio(encrypted, plain, |usage| usage.wall_s),
            ratio(encrypted, plain, |usage| usage.cpu_s),
        );
    }
    println!(
        "encryption: {encrypted} bytes stored instead of {plain}: {:.4} times (to reach: 1.01)",
        encrypted as f64 / plain as f64
    );
}
