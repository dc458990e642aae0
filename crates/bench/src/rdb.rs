//! Reading an RDB: Slotkeep's own reader beside librdb and the crate `rdb`, one after the other on one core.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use slotkeep_model::DatasetDigest;
use slotkeep_rdb::{Digester, Envelope, Event, Level, Parser};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{ClusterBuilder, servers};

use crate::measure::{Usage, measure};

/// How many bytes are read at a time, as a backup does.
const CHUNK_BYTES: usize = 256 << 10;

type Failure = Box<dyn std::error::Error>;

/// What to measure.
#[derive(Args)]
pub(crate) struct RdbArgs {
    /// The server that makes the file; the others' readers know none newer than Redis
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// About how much data, in MB (10^6 bytes)
    #[arg(long, default_value_t = 1400)]
    megabytes: u64,
    /// Read this file; if there is none, make it and keep it
    #[arg(long)]
    file: Option<PathBuf>,
    /// How often each is measured; the fastest run is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Slotkeep's own reader alone
    #[arg(long)]
    alone: bool,
    /// The program of `crates/bench/rivals`; built if not given
    #[arg(long)]
    rivals: Option<PathBuf>,
}

/// One way of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pass {
    /// Magic and CRC64
    Envelope,
    /// Raw values, and the CRC64
    Raw,
    /// Elements
    Elements,
    /// Elements, and the digest of every slot
    Digest,
}

/// What a row is compared by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Envelope,
    Raw,
    Elements,
    /// Reads less than any other: shown, not compared with.
    Less,
}

struct Contender {
    name: &'static str,
    class: Class,
    ours: bool,
    command: Vec<String>,
}

pub(crate) fn run(arguments: &RdbArgs) -> Result<(), Failure> {
    let scratch = tempfile::tempdir()?;
    let path = arguments.file.clone().unwrap_or_else(|| scratch.path().join("mix.rdb"));
    if !path.exists() {
        make(arguments, &path)?;
    }
    let rivals = match (&arguments.rivals, arguments.alone) {
        (_, true) => None,
        (Some(program), _) => Some(program.clone()),
        (None, _) => Some(build_rivals()?),
    };
    let contenders = contenders(&path, rivals.as_deref())?;
    let bytes = read_whole(&path)?;
    let mut best: Vec<Option<Usage>> = contenders.iter().map(|_| None).collect();
    for _ in 0..arguments.rounds {
        for (contender, best) in contenders.iter().zip(&mut best) {
            let usage = measure(&contender.command)?;
            if best.is_none_or(|best| usage.cpu_s < best.cpu_s) {
                *best = Some(usage);
            }
        }
    }
    print_table(&contenders, &best, bytes);
    Ok(())
}

/// Makes the file: a server of its own takes the benchmark's mix and saves it.
fn make(arguments: &RdbArgs, path: &Path) -> Result<(), Failure> {
    let server = servers::require(&arguments.server)?;
    println!("server: {}; loading about {} MB …", server.version(), arguments.megabytes);
    let cluster = ClusterBuilder::new(server).primaries(1).config("save", "").start()?;
    let loaded = Mix::bulk(arguments.megabytes * 1_000_000).load(&cluster)?;
    println!("{} keys", loaded.keys());
    let node = cluster.node(0)?;
    let mut client = slotkeep_testkit::Client::connect(
        &node.endpoint().with_timeout(std::time::Duration::from_secs(600)),
    )?;
    client.command(&["SAVE"])?;
    std::fs::copy(node.dir().join("dump.rdb"), path)?;
    Ok(())
}

/// Builds the other readers, which stand in a workspace of their own.
fn build_rivals() -> Result<PathBuf, Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rivals");
    let target = std::env::current_exe()?.with_file_name("rivals");
    println!("building the other readers …");
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .stdin(Stdio::null())
        .status()?;
    if !status.success() {
        return Err("the other readers can't be built; --alone leaves them out".into());
    }
    Ok(target.join("release").join("slotkeep-bench-rivals"))
}

fn contenders(path: &Path, rivals: Option<&Path>) -> Result<Vec<Contender>, Failure> {
    let me = std::env::current_exe()?.to_string_lossy().into_owned();
    let file = path.to_string_lossy().into_owned();
    let ours = |name, class, pass: &str| Contender {
        name,
        class,
        ours: true,
        command: vec![me.clone(), "read".to_owned(), pass.to_owned(), file.clone()],
    };
    let mut all = vec![
        ours("slotkeep: envelope with CRC64", Class::Envelope, "envelope"),
        ours("slotkeep: raw values with CRC64", Class::Raw, "raw"),
    ];
    let rival = |name, class, pass: &str| {
        rivals.map(|program| Contender {
            name,
            class,
            ours: false,
            command: vec![program.to_string_lossy().into_owned(), pass.to_owned(), file.clone()],
        })
    };
    all.extend(rival("librdb: raw values with CRC64", Class::Raw, "librdb-raw"));
    all.extend(rival("crate rdb: keys alone, no CRC64", Class::Less, "rdb-skip"));
    all.push(ours("slotkeep: elements", Class::Elements, "elements"));
    all.push(ours("slotkeep: elements with digest", Class::Elements, "digest"));
    all.extend(rival("librdb: elements with CRC64", Class::Elements, "librdb-elements"));
    all.extend(rival("crate rdb: values, streams passed over", Class::Elements, "rdb-elements"));
    Ok(all)
}

/// Brings the file into the page cache and gives its length.
fn read_whole(path: &Path) -> Result<u64, Failure> {
    let mut bytes = 0_u64;
    each_chunk(path, |chunk| {
        bytes += u64::try_from(chunk.len())?;
        Ok(())
    })?;
    Ok(bytes)
}

fn print_table(contenders: &[Contender], best: &[Option<Usage>], bytes: u64) {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let bytes = bytes as f64;
    let fastest_rival = |class| {
        let rivals = contenders.iter().zip(best).filter(|(one, _)| !one.ours && one.class == class);
        rivals.filter_map(|(_, usage)| Some((*usage)?.cpu_s)).reduce(f64::min)
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "",
        "CPU s",
        "wall s",
        "MB/s of CPU",
        "peak MiB",
        "fastest rival",
        "to reach",
    ]);
    for (contender, usage) in contenders.iter().zip(best) {
        let Some(usage) = usage else { continue };
        let ratio = match fastest_rival(contender.class) {
            Some(rival) if contender.ours => format!("{:.2} ×", rival / usage.cpu_s),
            _ => String::new(),
        };
        let goal = match contender.name {
            "slotkeep: raw values with CRC64" => "2 ×, 2147 MB/s",
            "slotkeep: elements with digest" => "1.5 ×",
            _ => "",
        };
        table.add_row([
            contender.name.to_owned(),
            format!("{:.2}", usage.cpu_s),
            format!("{:.2}", usage.wall_s),
            format!("{:.0}", bytes / usage.cpu_s / 1e6),
            format!("{:.1}", usage.peak_mib),
            ratio,
            goal.to_owned(),
        ]);
    }
    println!("{:.3} GB of RDB in the page cache, one thread each\n{table}", bytes / 1e9);
}

/// Reads a file once, in the process that is measured.
pub(crate) fn read(pass: Pass, path: &Path) -> Result<(), Failure> {
    let found = match pass {
        Pass::Envelope => {
            let mut envelope = Envelope::new();
            each_chunk(path, |chunk| {
                envelope.feed(chunk);
                Ok(())
            })?;
            format!("{:?}", envelope.finish()?)
        }
        Pass::Raw => {
            let mut envelope = Envelope::new();
            let found = events(path, Level::Raw, |chunk| envelope.feed(chunk), |_| {})?;
            format!("{found}, {:?}", envelope.finish()?)
        }
        Pass::Elements => events(path, Level::Element, |_| {}, |_| {})?,
        Pass::Digest => {
            let (mut digester, mut dataset) = (Digester::new(), DatasetDigest::default());
            let found = events(
                path,
                Level::Element,
                |_| {},
                |event| {
                    if let Some(key) = digester.event(event) {
                        key.add_to(&mut dataset);
                    }
                },
            )?;
            let total = dataset.total();
            format!("{found}, {} keys, sum {:032x}", total.keys, total.sum)
        }
    };
    println!("{found}");
    Ok(())
}

fn each_chunk(path: &Path, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        take(buffer.get(..len).unwrap_or_default())?;
    }
}

fn events(
    path: &Path,
    level: Level,
    mut before: impl FnMut(&[u8]),
    mut see: impl FnMut(&Event<'_>),
) -> Result<String, Failure> {
    let (mut parser, mut count) = (Parser::new(level), 0_u64);
    each_chunk(path, |mut chunk| {
        before(chunk);
        while let Some(event) = parser.next(&mut chunk)? {
            count += 1;
            see(&event);
        }
        Ok(())
    })?;
    parser.finish()?;
    Ok(format!("{count} events"))
}
