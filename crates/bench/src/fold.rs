//! How fast an engine applies a log that comes over our link, beside the same server loading the same log as its append-only file.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use comfy_table::{Table, presets};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use slotkeep_jobs::Context;
use slotkeep_jobs::engine::{Engine, EngineOptions};
use slotkeep_jobs::link::{Feed, LinkListener, LinkOptions, LogEditor, Snapshot};
use slotkeep_jobs::net::{Connector, ConnectorOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng};
use slotkeep_jobs::source::{ByteSource, MemorySource};
use slotkeep_jobs::stock_server::StockServer;
use slotkeep_model::ReplOffset;
use slotkeep_testkit::deadline::Stopwatch;
use slotkeep_testkit::{ClusterBuilder, Server, servers};
use slotkeep_wire::Info;
use slotkeep_wire::replica::Credentials;
use slotkeep_wire::resp::{Command, write_command};
use slotkeep_wire::stream::Reader;

/// An RDB without keys that every server loads: a checksum of zero is none.
const EMPTY_RDB: &[u8] = b"REDIS0009\xff\0\0\0\0\0\0\0\0";
const PIECE_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Args)]
pub(crate) struct FoldArgs {
    /// The server, by its name in `scripts/servers.sh --list`
    #[arg(long, default_value = "redis-7.0")]
    server: String,
    /// How long the log is, in MB
    #[arg(long, default_value_t = 400)]
    log_mb: usize,
    /// How often each way is measured; the best of each counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

pub(crate) fn run(arguments: &FoldArgs) -> Result<(), Box<dyn std::error::Error>> {
    let server = servers::require(&arguments.server)?;
    let log = log(arguments.log_mb * 1_000_000);
    println!("{}: a log of {} bytes, {} commands", server.version(), log.bytes.len(), log.commands);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut by_link, mut by_file) = (Cost::MOST, Cost::MOST);
    for round in 1..=arguments.rounds {
        let own_before = own_cpu_s()?;
        let link = runtime.block_on(over_the_link(&server, &log))?;
        let own = own_cpu_s()? - own_before;
        let file = from_its_file(&server, &log)?;
        println!(
            "round {round}: link {:.2} s, CPU {:.2} s and {own:.2} s of this program; file {:.2} s, CPU {:.2} s",
            link.wall_s, link.cpu_s, file.wall_s, file.cpu_s
        );
        by_link = by_link.least(link);
        by_file = by_file.least(file);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "s", "MB/s", "commands/s", "server's CPU s"]);
    for (name, cost) in [("over the link, filtered", by_link), ("its own file", by_file)] {
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (mb, commands) = (log.bytes.len() as f64 / 1e6, log.commands as f64);
        let rate = |amount: f64| format!("{:.0}", amount / cost.wall_s);
        let (wall, cpu) = (format!("{:.2}", cost.wall_s), format!("{:.2}", cost.cpu_s));
        table.add_row([name.to_owned(), wall, rate(mb), rate(commands), cpu]);
    }
    println!(
        "{table}\nThe link reaches {:.2} of the file's rate; by the server's CPU time {:.2}.",
        by_file.wall_s / by_link.wall_s,
        by_file.cpu_s / by_link.cpu_s
    );
    Ok(())
}

/// What applying the log cost.
#[derive(Clone, Copy)]
struct Cost {
    wall_s: f64,
    /// The server's, from its start on: on a busy machine the fairer measure.
    cpu_s: f64,
}

impl Cost {
    const MOST: Self = Self { wall_s: f64::MAX, cpu_s: f64::MAX };

    const fn least(self, other: Self) -> Self {
        Self { wall_s: self.wall_s.min(other.wall_s), cpu_s: self.cpu_s.min(other.cpu_s) }
    }
}

/// The CPU time of this process.
fn own_cpu_s() -> Result<f64, Box<dyn std::error::Error>> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let cpu = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    Ok(cpu as f64 / 1e6)
}

/// The CPU time in an answer to `INFO cpu`.
fn cpu_s(info: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let info = Info::parse(info);
    let mut sum = 0.0;
    for field in ["used_cpu_user", "used_cpu_sys"] {
        sum += info.get(field).ok_or("the server does not tell its CPU time")?.parse::<f64>()?;
    }
    Ok(sum)
}

struct Log {
    bytes: Vec<u8>,
    commands: u64,
}

/// Commands as an application with strings, hashes, sorted sets and lists writes them, 330 bytes each on average.
fn log(bytes: usize) -> Log {
    let mut log = Log { bytes: Vec::with_capacity(bytes + 4096), commands: 0 };
    let text: Vec<u8> = (0..4096_u32).map(|i| b'a' + u8::try_from(i * i % 26).unwrap_or(0)).collect();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    write_command(&mut log.bytes, &[b"SELECT", b"0"]);
    while log.bytes.len() < bytes {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let key = format!("key:{}", random % 400_000);
        let (key, number) = (key.as_bytes(), (random >> 20) % 1000);
        let value = text.get(..100 + usize::try_from(random >> 32).unwrap_or(0) % 800).unwrap_or_default();
        let small = number.to_string();
        let small = small.as_bytes();
        let kind = |prefix: &str| [prefix.as_bytes(), key].concat();
        match random % 10 {
            0..=4 => write_command(&mut log.bytes, &[b"SET", key, value]),
            5..=6 => write_command(
                &mut log.bytes,
                &[b"HSET", &kind("h"), small, value.get(..60).unwrap_or_default()],
            ),
            7 => write_command(&mut log.bytes, &[b"ZADD", &kind("z"), small, b"member"]),
            8 => write_command(&mut log.bytes, &[b"RPUSH", &kind("l"), value.get(..80).unwrap_or_default()]),
            _ => write_command(&mut log.bytes, &[b"PEXPIREAT", key, b"4102444800000"]),
        }
        log.commands += 1;
    }
    log
}

/// From the first byte of the log to the last command applied.
async fn over_the_link(server: &Server, log: &Log) -> Result<Cost, Box<dyn std::error::Error>> {
    let context = Context {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        connector: Arc::new(Connector::new(ConnectorOptions::default())?),
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let credentials = Credentials { user: None, password: "not a secret".to_owned() };
    let options = LinkOptions {
        credentials: Some(credentials.clone()),
        listening_port: None,
        patience: PATIENCE,
        keep_alive: None,
    };
    let listener = LinkListener::bind(std::net::Ipv4Addr::LOCALHOST.into(), options).await?;
    let program = StockServer::at(server.program()).await?;
    let engine = Engine::start(&program, &EngineOptions::default(), listener.addr(), &credentials).await?;
    let mut follower = listener.accept(&context).await?;
    let sent_bytes = AtomicU64::new(0);
    let base = Snapshot {
        source: MemorySource::new([Bytes::from_static(EMPTY_RDB)]),
        len_bytes: EMPTY_RDB.len() as u64,
        history: "a".repeat(40).parse().map_err(|_| "no id")?,
        offset: ReplOffset(0),
    };
    let pieces: Vec<Bytes> = log.bytes.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
    let source = Timed { pieces: MemorySource::new(pieces), start: Arc::default() };
    let began = Arc::clone(&source.start);
    let cut = ReplOffset(log.bytes.len() as u64);
    let feed = Feed { base, log: source, cut };
    let mut editor = LogEditor::new(ReplOffset(0), Reader::Engine, None);
    let sent = feed.send(&mut follower, &mut editor, &sent_bytes).await?;
    let client = engine.client();
    follower.keep_until(client.wait_applied(&context, sent, PATIENCE)).await?;
    let wall_s = began.get().ok_or("the log was never asked for")?.elapsed().as_secs_f64();
    let mut connection = client.context(&context).connector.connect(client.node()).await?;
    let info = connection.call(&Command::new("INFO").arg("cpu")).await?;
    let cpu_s = cpu_s(info.as_text().unwrap_or_default())?;
    drop(follower);
    engine.stop().await;
    Ok(Cost { wall_s, cpu_s })
}

/// Knows when its first piece was asked for.
struct Timed {
    pieces: MemorySource,
    start: Arc<std::sync::OnceLock<Stopwatch>>,
}

impl ByteSource for Timed {
    async fn next(&mut self) -> slotkeep_jobs::Result<Option<Bytes>> {
        self.start.get_or_init(Stopwatch::start);
        self.pieces.next().await
    }
}

/// What the server says it took to load the log as its append-only file.
fn from_its_file(server: &Server, log: &Log) -> Result<Cost, Box<dyn std::error::Error>> {
    let cluster = ClusterBuilder::new(server.clone())
        .primaries(1)
        .cluster_mode(false)
        .config("appendonly", "yes")
        .config("save", "")
        .prepare()?;
    let node = cluster.node(0)?;
    if server.is_modern() {
        let folder = node.dir().join("appendonlydir");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("appendonly.aof.1.base.rdb"), EMPTY_RDB)?;
        fs::write(folder.join("appendonly.aof.1.incr.aof"), &log.bytes)?;
        fs::write(
            folder.join("appendonly.aof.manifest"),
            "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n",
        )?;
    } else {
        fs::write(node.dir().join("appendonly.aof"), &log.bytes)?;
    }
    cluster.start_nodes()?;
    let text = node.log();
    let line = text
        .lines()
        .find(|line| {
            line.contains("DB loaded from incr file") || line.contains("DB loaded from append only file")
        })
        .ok_or("the server does not say how long it took")?;
    let seconds = line.rsplit_once(": ").and_then(|(_, rest)| rest.split(' ').next());
    let wall_s = seconds.ok_or("the server does not say how long it took")?.parse()?;
    Ok(Cost { wall_s, cpu_s: cpu_s(&node.client()?.info("cpu")?)? })
}
