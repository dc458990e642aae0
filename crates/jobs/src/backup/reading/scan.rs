//! A base read key by key, for servers that refuse replication: `SCAN` lists the names, then each key is read with `DUMP`.
//!
//! Two connections: one lists and asks for sizes, over the other the values come. No more values are under way than the server can be asked
//! to hold for us: what is asked for at a time is bounded by what `MEMORY USAGE` says the values take.
//!
//! Invariants: every key that is there from the beginning to the end is in the base, once; its value and its expiry are of one moment. A
//! key that can't be read fails the base.

use std::sync::Arc;

use jiff::Timestamp;
use slotkeep_format::manifest::{ReadRecord, ReadSource};
use slotkeep_model::{Product, ReplOffset, Role, SlotSet, key_slot};
use slotkeep_repo::layout::BaseLayout;
use slotkeep_wire::acl::minimal_scan_user;
use slotkeep_wire::info::Database;
use slotkeep_wire::resp::{Command, Value};

use super::key_link::{ExpiryBy, KeyLink, Outcome};
use super::key_list::{KeyList, Limits, Part};
use super::pace::Pace;
use super::rdb_out::RdbOut;
use super::{Job, server_time};
use crate::archive::link::Interruption;
use crate::backup::base::{Announced, TakenBase, Taking};
use crate::backup::plan::{Candidate, ShardPlan};
use crate::discover::read_info;
use crate::net::{Connection, LinkError, LinkProblem};
use crate::progress::ShardProgress;
use crate::{Error, ErrorKind, Result, quoted};

/// Most names that `SCAN` is asked for at a time.
const PAGE_KEYS: u64 = 1000;
/// Listing a key costs the server about so much less than reading it.
const LISTED_PER_READ: u64 = 10;
/// Most keys that are asked for at a time.
const BATCH_KEYS: u64 = 256;
/// The same where the server does not tell how long values are.
const BATCH_KEYS_UNKNOWN: usize = 8;
/// So many bytes of values are asked for at a time, about, if there is more than one.
const BATCH_BYTES: u64 = 4 << 20;
/// A key is asked for again at most so often before its expiry is taken as it is not certain to a millisecond.
const TRIES: usize = 1000;

/// How to read key by key.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// Most keys that are read a second, of each shard; 0 is no limit. Listing goes ten times as fast.
    pub keys_per_s: u64,
    /// Most bytes of values a second, of each shard; 0 is no limit.
    pub bytes_per_s: u64,
    /// A value that takes more memory on the server than this is refused: the server makes the reply to `DUMP` as a whole.
    pub max_value_bytes: u64,
    /// Whether function libraries are left out.
    pub without_functions: bool,
}

/// Takes the base of a shard from that node.
pub(super) async fn take(
    job: &Job,
    options: &ScanOptions,
    shard: &ShardPlan,
    candidate: &Candidate,
    progress: &Arc<ShardProgress>,
) -> Result<TakenBase> {
    let history = job.made_up_history()?;
    let offset = ReplOffset(0);
    let announced = Announced {
        source: candidate.addr.clone(),
        source_role: candidate.role.into(),
        server: candidate.server.into(),
        history: history.clone(),
        offset: offset.0,
        server_time: None,
        layout: BaseLayout::new(&job.options.cluster, &history, offset, &job.id),
    };
    let scan = Scan { job, options, candidate, slots: job.cluster_mode.then_some(&shard.shard.slots) };
    let begun = job.context.unless_stopped(scan.begin()).await?;
    let from = begun.from;
    let mut taking = Taking::begin(&job.context, &job.repository, announced, progress).await?;
    let written = tokio::select! {
        written = scan.write(begun, &mut taking) => written,
        () = job.context.stop.cancelled() => Err(Interruption::Other(Error::interrupted())),
    };
    let (written, until) = match written {
        Ok(until) => (Ok(()), until),
        Err(interruption) => (Err(interruption), from),
    };
    let received = taking.end(&job.context, &job.repository, written, progress).await?;
    let mut base = received.store(&job.context, &job.repository).await?;
    base.read = Some(ReadRecord {
        source: ReadSource::Scan,
        from,
        // Clocks of servers may be set back.
        until: until.max(from),
        anchored: false,
        database: None,
        without_functions: options.without_functions,
        aof: None,
    });
    Ok(base)
}

/// The reading of one node.
struct Scan<'a> {
    job: &'a Job,
    options: &'a ScanOptions,
    candidate: &'a Candidate,
    /// The slots of the shard; in a cluster, other keys that the node may still have are not its own.
    slots: Option<&'a SlotSet>,
}

/// What is known before the first key is read.
struct Begun {
    from: Timestamp,
    databases: Vec<(u32, Database)>,
    functions: Vec<Vec<u8>>,
    expiry_by: ExpiryBy,
}

impl Scan<'_> {
    async fn begin(&self) -> Result<Begun> {
        let mut connection = self.connect(0).await?;
        let from = server_time(&self.job.context, &mut connection).await?;
        let info = read_info(&mut connection).await?;
        let keyspace = info.keyspace().map_err(|error| {
            let problem = LinkProblem::Protocol(error.to_string());
            LinkError { node: self.candidate.addr.clone(), problem }
        })?;
        let functions = self.functions(&mut connection).await?;
        // Which key is asked about does not matter: the answer tells whether the command may be used.
        let asked = connection.exchange(&Command::new("PEXPIRETIME").arg("slotkeep")).await?;
        let knows = match asked.as_error() {
            None => true,
            Some(text) => text.starts_with("MOVED ") || text.starts_with("ASK "),
        };
        let expiry_by = if knows { ExpiryBy::Moment } else { ExpiryBy::Span };
        Ok(Begun { from, databases: keyspace.into_iter().collect(), functions, expiry_by })
    }

    /// A connection that reads from that database.
    async fn connect(&self, database: u32) -> Result<Connection> {
        let addr = &self.candidate.addr;
        let mut connection = self.job.context.connector.connect(addr).await?;
        if self.job.cluster_mode && self.candidate.role == Role::Replica {
            self.call(&mut connection, &Command::new("READONLY")).await?;
        }
        // What is read is not to count as used. Servers before 7.2 don't know it.
        connection.exchange(&Command::new("CLIENT").args(["NO-TOUCH", "ON"])).await?;
        if database != 0 {
            self.call(&mut connection, &Command::new("SELECT").arg_number(database)).await?;
        }
        Ok(connection)
    }

    /// A command without which nothing goes.
    async fn call(&self, connection: &mut Connection, command: &Command) -> Result<Value> {
        connection.call(command).await.map_err(|error| match &error.problem {
            LinkProblem::NoPermission { .. } => {
                let login = self.job.context.connector.credentials().and_then(|who| who.user.as_deref());
                let line = minimal_scan_user(login.unwrap_or("backup"), self.candidate.server);
                Error::new(ErrorKind::Permission, error.to_string())
                    .hint(format!("as an administrator, on every node: {line}"))
            }
            _ => error.into(),
        })
    }

    async fn functions(&self, connection: &mut Connection) -> Result<Vec<Vec<u8>>> {
        let server = self.candidate.server;
        let has_functions = server.product == Product::Valkey || server.major >= 7;
        if self.options.without_functions || !has_functions {
            return Ok(Vec::new());
        }
        let dumped = self.call(connection, &Command::new("FUNCTION").arg("DUMP")).await;
        let reply = dumped.map_err(|error| match error.kind() {
            ErrorKind::Permission => {
                let words = format!("function libraries can't be read: {error}");
                let advice = error.advice().unwrap_or_default();
                Error::new(ErrorKind::Permission, words)
                    .hint(format!("leave them out with --scan-without-functions, or allow it; {advice}"))
            }
            _ => error,
        })?;
        slotkeep_rdb::function_sources(reply.as_bytes().unwrap_or_default()).map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{}: what FUNCTION DUMP gave can't be used: {error}", self.candidate.addr),
            )
            .hint("run it again, or leave functions out with --scan-without-functions")
        })
    }

    /// Writes the whole base; gives the server's time at its end.
    async fn write(&self, begun: Begun, taking: &mut Taking) -> Result<Timestamp, Interruption> {
        let mut out = RdbOut::begin(self.candidate.server, begun.from, &mut taking.pipeline)?;
        for source in &begun.functions {
            out.function(source).await?;
        }
        let clock = Arc::clone(&self.job.context.clock);
        let mut pace = Pace::new(clock, self.options.keys_per_s, self.options.bytes_per_s);
        let mut lister = None;
        for (number, sizes) in begun.databases {
            out.database(number, sizes.keys, sizes.expires);
            let mut reading = KeyReader {
                scan: self,
                lister: self.connect(number).await?,
                link: self.key_link(number, begun.expiry_by).await?,
                tells_sizes: true,
                pace: &mut pace,
            };
            let mut keys = reading.list().await?;
            while let Some(part) = keys.next_part().await? {
                reading.read(&part, &mut out).await?;
            }
            lister = Some(reading.lister);
        }
        let mut connection = match lister {
            Some(lister) => lister,
            None => self.connect(0).await?,
        };
        let until = server_time(&self.job.context, &mut connection).await?;
        out.finish().await?;
        Ok(until)
    }

    async fn key_link(&self, database: u32, expiry_by: ExpiryBy) -> Result<KeyLink> {
        let connection = self.connect(database).await?;
        Ok(KeyLink::new(connection, expiry_by, self.job.context.connector.timeout()))
    }

    fn is_own(&self, key: &[u8]) -> bool {
        self.slots.is_none_or(|slots| slots.contains(key_slot(key)))
    }
}

/// The reading of one database.
struct KeyReader<'a> {
    scan: &'a Scan<'a>,
    lister: Connection,
    link: KeyLink,
    /// Whether the server says how long values are.
    tells_sizes: bool,
    pace: &'a mut Pace,
}

impl KeyReader<'_> {
    async fn list(&mut self) -> Result<KeyList> {
        let mut keys = KeyList::new(&self.scan.job.options.spool, Limits::default());
        // A page is to take no more than a twentieth of a second, as slowly as it may go.
        let page = match self.scan.options.keys_per_s {
            0 => PAGE_KEYS,
            rate => (rate.saturating_mul(LISTED_PER_READ) / 20).clamp(10, PAGE_KEYS),
        };
        let mut cursor = b"0".to_vec();
        loop {
            let command = Command::new("SCAN").arg(&cursor).arg("COUNT").arg_number(page);
            let reply = self.scan.call(&mut self.lister, &command).await?;
            let Some([next, names]) = reply.as_array() else { return Err(self.senseless("SCAN")) };
            let names = names.as_array().ok_or_else(|| self.senseless("SCAN"))?;
            for name in names {
                let key = name.as_bytes().ok_or_else(|| self.senseless("SCAN"))?;
                if self.scan.is_own(key) {
                    keys.add(key).await?;
                }
            }
            cursor = next.as_bytes().ok_or_else(|| self.senseless("SCAN"))?.to_vec();
            self.pace.keep((names.len() as u64).div_ceil(LISTED_PER_READ), 0).await;
            if cursor == b"0" {
                return Ok(keys);
            }
        }
    }

    /// Reads the keys of a part of the list.
    async fn read(&mut self, part: &Part, out: &mut RdbOut<'_>) -> Result<(), Interruption> {
        let batch = match self.scan.options.keys_per_s {
            0 => BATCH_KEYS,
            rate => (rate / 20).clamp(1, BATCH_KEYS),
        };
        let batch = usize::try_from(batch).unwrap_or(1);
        let mut names = part.names();
        loop {
            let keys: Vec<&[u8]> = names.by_ref().take(batch).collect();
            if keys.is_empty() {
                return Ok(());
            }
            let sized = self.sizes(&keys).await?;
            let mut rest = sized.as_slice();
            while let Some(count) = self.fits(rest) {
                let (now, later) = rest.split_at(count.min(rest.len()));
                rest = later;
                self.read_together(now, out).await?;
            }
        }
    }

    /// What each key takes on the server, about; keys that are gone are left out.
    async fn sizes<'k>(&mut self, keys: &[&'k [u8]]) -> Result<Vec<(&'k [u8], u64)>> {
        if !self.tells_sizes {
            return Ok(keys.iter().map(|key| (*key, 0)).collect());
        }
        let mut bytes = Vec::new();
        for key in keys {
            Command::new("MEMORY").arg("USAGE").arg(key).encode_into(&mut bytes);
        }
        self.lister.send(&bytes).await?;
        let mut sized = Vec::new();
        for key in keys {
            match self.lister.reply().await? {
                Value::Null => {}
                Value::Error(_) => {
                    self.tells_sizes = false;
                    sized.push((*key, 0));
                }
                reply => sized.push((*key, reply.as_u64().ok_or_else(|| self.senseless("MEMORY USAGE"))?)),
            }
        }
        let limit_bytes = self.scan.options.max_value_bytes;
        match sized.iter().find(|(_, bytes)| *bytes > limit_bytes) {
            None => Ok(sized),
            Some((key, bytes)) => Err(self.too_large(key, *bytes)),
        }
    }

    /// How many of these keys to ask for at a time.
    fn fits(&self, keys: &[(&[u8], u64)]) -> Option<usize> {
        if keys.is_empty() {
            return None;
        }
        if !self.tells_sizes {
            return Some(BATCH_KEYS_UNKNOWN);
        }
        let mut sum = 0_u64;
        let fitting = keys.iter().take_while(|(key, bytes)| {
            sum = sum.saturating_add(*bytes).saturating_add(key.len() as u64);
            sum <= BATCH_BYTES
        });
        Some(fitting.count().max(1))
    }

    async fn read_together(
        &mut self,
        keys: &[(&[u8], u64)],
        out: &mut RdbOut<'_>,
    ) -> Result<(), Interruption> {
        let mut asked: Vec<&[u8]> = keys.iter().map(|(key, _)| *key).collect();
        for _ in 0..TRIES {
            self.link.ask(&asked).await?;
            let (mut again, mut bytes) = (Vec::new(), 0_u64);
            for key in &asked {
                match self.link.take(key, out).await? {
                    Outcome::Written(payload_bytes) => bytes = bytes.saturating_add(payload_bytes),
                    Outcome::Gone => {}
                    Outcome::Again => again.push(*key),
                }
            }
            self.pace.keep(asked.len() as u64, bytes).await;
            if again.is_empty() {
                return Ok(());
            }
            asked = again;
        }
        Err(Error::new(
            ErrorKind::Failed,
            format!(
                "{}: the server's clock does not stand still for the length of three commands",
                self.scan.candidate.addr
            ),
        )
        .hint("run it again when the server is less busy")
        .into())
    }

    fn too_large(&self, key: &[u8], bytes: u64) -> Error {
        let what = format!(
            "{}, key {}: its value takes {bytes} bytes of the server's memory, more than the {} that may be asked for at once",
            self.scan.candidate.addr,
            quoted(key),
            self.scan.options.max_value_bytes
        );
        Error::new(ErrorKind::Unsupported, what).hint(
            "the server makes the whole reply in memory before it sends it, and does nothing else meanwhile; if it may, raise --scan-max-value",
        )
    }

    fn senseless(&self, command: &str) -> Error {
        let problem = LinkProblem::Protocol(format!("to {command}, something else than its reply"));
        LinkError { node: self.scan.candidate.addr.clone(), problem }.into()
    }
}
