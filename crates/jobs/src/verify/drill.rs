//! A drill: the cluster restored on this machine, in its recorded shape, and tried out, to prove that it restores and serves.
//!
//! Invariants: the nodes listen on 127.0.0.1 alone, in a folder for temporary files; whatever happens, a kill of this process included, they
//! are ended and the folder is removed; a drill that fails is a finding that names the step.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::manifest::Manifest;
use slotkeep_format::verify::DrillRecord;
use slotkeep_format::{Depth, VerifyFinding};
use slotkeep_model::{NodeAddr, Shard, SlotSet, key_slot};
use slotkeep_repo::{Location, Repository};
use slotkeep_wire::resp::Command;

use super::checks::Checks;
use super::findings::{problem, shortened};
use super::steps::Steps;
use super::{Run, VerifyProgress};
use crate::backup::Prefer;
use crate::diff::{CaptureOptions, Diff, DiffOptions, Snapshot, diff};
use crate::discover::{discover, node_report};
use crate::fold::FoldProgress;
use crate::guard::Guard;
use crate::log::Past;
use crate::log::point::{Aim, Point, resolve};
use crate::log::windows::restorable;
use crate::merge::{MergeTarget, merge};
use crate::net::{Connector, ConnectorOptions};
use crate::ports::random_hex;
use crate::progress::ShardProgress;
use crate::restore::files::{FilesOptions, Source, StockServer, UsersPolicy, apply, plan, start_guarded};
use crate::{Context, Error, ErrorKind, Result};

/// So many keys that differ are named.
const NAMED_KEYS: usize = 20;
/// The highest port whose bus port, 10000 above, is one too.
const HIGHEST_PORT: u16 = 55_535;
const PORT_TRIES: usize = 1000;
/// How long a failover may take.
const FAILOVER_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a command may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What to restore in a drill, and with what.
#[derive(Clone)]
pub struct DrillOptions {
    /// What to restore; a random moment that can be restored, or the latest backup where there is no log, if not given.
    pub point: Option<(Arc<Point>, Option<Arc<Past>>)>,
    /// The server that the nodes run; the best one on the `PATH` if not given.
    pub server: Option<PathBuf>,
    /// The user's own checks: a file of commands with their replies, or a folder of programs.
    pub checks: Option<PathBuf>,
}

impl Run<'_> {
    /// Restores the cluster here and tries it out. What fails is a finding; the record says how far it came.
    pub(super) async fn drill(
        &mut self,
        repository: &Repository,
        options: &DrillOptions,
        progress: &VerifyProgress,
    ) -> Result<DrillRecord> {
        let context = self.context;
        let (point, past) = match &options.point {
            Some((point, past)) => (Arc::clone(point), past.clone()),
            None => aim(context, repository, &self.options.cluster).await?,
        };
        let rpo_ms = newest_age_ms(context, repository, past.as_deref(), &self.options.cluster).await?;
        let server = match &options.server {
            Some(program) => StockServer::at(program).await?,
            None => StockServer::on_path(&point).await?,
        };
        let spool =
            tempfile::Builder::new().prefix("slotkeep-drill-").tempdir_in(&self.options.spool).map_err(
                |error| Error::new(ErrorKind::Failed, format!("can't make a temporary folder: {error}")),
            )?;
        // Declared after the folder: it ends the nodes before the folder is removed.
        let guard = Guard::start(spool.path()).map_err(|error| {
            Error::new(ErrorKind::Failed, format!("can't see to it that the drill's servers end: {error}"))
        })?;
        let mut drill = Drill {
            run: self,
            repository,
            past,
            point: &point,
            server: &server,
            folder: spool.path().to_owned(),
            guard: &guard,
            steps: Steps::new(context, progress),
            checks: options.checks.as_deref().map(Checks::load).transpose()?,
            record: DrillRecord {
                backup: point.manifest.id.clone(),
                at: point.at,
                server: server.version.to_string(),
                nodes: 0,
                keys: 0,
                rto_ms: None,
                rpo_ms,
                steps: Vec::new(),
            },
        };
        let outcome = Box::pin(drill.all()).await;
        let mut record = drill.record;
        record.steps = drill.steps.finish();
        let failed_in = record.steps.last().map(|step| step.name.clone()).unwrap_or_default();
        // They hold nothing that anybody needs.
        drop(guard);
        match outcome {
            Ok(found) => self.findings.extend(found),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Repository) => {
                return Err(error);
            }
            Err(error) => {
                let what = format!("the step `{failed_in}` failed: {error}");
                let advice = error.advice().unwrap_or("look at what failed; other backups may restore");
                self.findings.push(problem((Depth::Drill, "restore"), &record.backup, what, advice));
            }
        }
        Ok(record)
    }
}

/// What to restore when nothing was said: a random moment of those that can be, or the latest backup.
async fn aim(
    context: &Context,
    repository: &Repository,
    cluster: &str,
) -> Result<(Arc<Point>, Option<Arc<Past>>)> {
    let past = Arc::new(Past::load(repository, cluster).await?);
    let moments = if past.has_log() { restorable(&past).await?.moments } else { Vec::new() };
    let dice = u64::from_str_radix(&random_hex(&*context.rng, 15)?, 16).unwrap_or(0);
    if let Some(last) = moments.last() {
        let (from, to) = (last.from.as_millisecond(), last.to.as_millisecond());
        let width = to.abs_diff(from).saturating_add(1);
        let ms = i64::try_from(dice % width).unwrap_or(0).saturating_add(from);
        if let Ok(moment) = Timestamp::from_millisecond(ms) {
            let point = resolve(&past, &Aim::Moment(moment)).await?;
            return Ok((Arc::new(point), Some(past)));
        }
    }
    let newest = past.backups.last().cloned();
    let newest =
        newest.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no backup to restore in a drill"))?;
    match Point::of_bases(&newest) {
        Some(point) => Ok((Arc::new(point), None)),
        None => Ok((Arc::new(resolve(&past, &Aim::Backup(Box::new(newest))).await?), Some(past))),
    }
}

/// How long ago the newest moment is that can be restored.
async fn newest_age_ms(
    context: &Context,
    repository: &Repository,
    past: Option<&Past>,
    cluster: &str,
) -> Result<Option<u64>> {
    let loaded;
    let past = match past {
        Some(past) => past,
        None => {
            loaded = Past::load(repository, cluster).await?;
            &loaded
        }
    };
    let moments = if past.has_log() { restorable(past).await?.moments } else { Vec::new() };
    // A base holds no write acknowledged after its server's time.
    let of_backup = |manifest: &Manifest| {
        manifest.shards.iter().map(|shard| shard.server_time).min().flatten().unwrap_or(manifest.started_at)
    };
    let newest = moments.last().map(|span| span.to).or_else(|| past.backups.last().map(of_backup));
    Ok(newest.map(|newest| {
        let age = context.clock.now().duration_since(newest);
        u64::try_from(age.as_millis()).unwrap_or(0)
    }))
}

struct Drill<'a, 'r> {
    run: &'a Run<'r>,
    repository: &'a Repository,
    past: Option<Arc<Past>>,
    point: &'a Point,
    server: &'a StockServer,
    folder: PathBuf,
    steps: Steps<'a>,
    guard: &'a Guard,
    checks: Option<Checks>,
    record: DrillRecord,
}

impl Drill<'_, '_> {
    async fn all(&mut self) -> Result<Vec<VerifyFinding>> {
        let seeds = self.restore().await?;
        let context = here(self.run.context)?;
        self.record.rto_ms = Some(self.steps.since_start_ms());
        let mut found = Vec::new();
        self.steps.begin("compare");
        found.extend(Box::pin(self.compare(&context, &seeds)).await?);
        self.steps.begin("functions");
        found.extend(context.unless_stopped(self.functions(&context, &seeds)).await?);
        if let Some(checks) = &self.checks {
            self.steps.begin("checks");
            let run = checks.run(&context, (&seeds, self.guard), &self.record.backup);
            found.extend(context.unless_stopped(run).await?);
        }
        self.steps.begin("write");
        let (shard, key) = context.unless_stopped(self.write(&context, &seeds)).await?;
        self.steps.begin("failover");
        context.unless_stopped(self.fail_over(&context, shard.as_ref(), &key)).await?;
        Ok(found)
    }

    /// Restores the files and starts the nodes: until every slot is served.
    async fn restore(&mut self) -> Result<Vec<NodeAddr>> {
        let context = self.run.context;
        self.steps.begin("plan");
        let nodes =
            self.point.manifest.shards.iter().map(|shard| shard.replicas.len().saturating_add(1)).sum();
        let seeds = free_addrs(nodes)?;
        let options = FilesOptions {
            folder: self.folder.join("cluster"),
            nodes: seeds.clone(),
            target: Some(self.server.version),
            allow_partial: true,
            users: UsersPolicy::None,
            ..FilesOptions::default()
        };
        let plan = plan(context, self.point, &options).await?;
        self.record.nodes = plan.nodes.len() as u64;
        self.steps.begin("write the files");
        let primaries = plan.nodes.iter().filter(|node| node.dataset.is_some());
        let progress: Vec<_> = primaries.map(|node| ShardProgress::new(node.addr.to_string())).collect();
        let source = Source { repository: self.repository.clone(), past: self.past.clone() };
        apply(context, &source, &plan, &progress).await?;
        self.steps.begin("start and load");
        start_guarded(context, &plan, self.server, self.guard).await?;
        let discovery = discover(&here(context)?, &seeds).await?;
        let (served, wanted) = (discovery.topology().covered(), self.point.manifest.topology().covered());
        if served != wanted {
            return Err(Error::new(ErrorKind::Failed, format!("it serves the slots {served}, not {wanted}")));
        }
        Ok(seeds)
    }

    /// Compares every key with what bases and log give.
    async fn compare(&mut self, context: &Context, seeds: &[NodeAddr]) -> Result<Option<VerifyFinding>> {
        let spool = &self.folder;
        let capture = Snapshot::plan(context, seeds, Prefer::Replica).await?;
        let how = CaptureOptions::new(spool, self.run.options.captures);
        let restored = Snapshot::of_cluster(context, &capture, &how).await?;
        let kept;
        let wanted = if self.point.has_log() {
            // What the log makes of the bases, by another way than the servers' own loading.
            let location = Location::Folder(spool.join("folded"));
            let id = random_hex(&*context.rng, 32)?;
            kept = Repository::init(&location, id, context.clock.now()).await?;
            let target = MergeTarget { repository: &kept, cluster: "drill", shares_bases: false };
            let names = self.point.shards.iter().map(|shard| format!("slots {}", shard.slots));
            let progress: Vec<_> = names.map(|name| Arc::new(FoldProgress::new(name))).collect();
            let source = (self.repository, self.past.as_ref());
            let engine = &self.run.options.engine;
            let merged = Box::pin(merge(context, source, self.point, &target, engine, &progress)).await?;
            Snapshot::of_backup(kept.clone(), merged)
        } else {
            Snapshot::of_backup(self.repository.clone(), self.point.manifest.clone())
        };
        let found: Diff = Box::pin(diff(context, &wanted, &restored, DiffOptions::exact(NAMED_KEYS))).await?;
        self.record.keys = found.b.keys;
        if found.is_empty() {
            return Ok(None);
        }
        let keys: Vec<_> = found.keys.iter().map(|key| shortened(&key.key)).collect();
        let what = format!(
            "what came back is not what was kept: {} slots differ ({}), keys: {}{}",
            found.differing_slot_count,
            found.differing_slots,
            keys.join(", "),
            if found.functions_differ { "; the function libraries differ" } else { "" }
        );
        Ok(Some(problem(
            (Depth::Drill, "digest"),
            &self.record.backup,
            what,
            "keep the repository as it is, and report it",
        )))
    }

    /// Whether every function of every primary can be called: it may fail in its own way, but must be found.
    async fn functions(&self, context: &Context, seeds: &[NodeAddr]) -> Result<Vec<VerifyFinding>> {
        let mut found = Vec::new();
        let expected = self.point.manifest.shards.iter().filter_map(|shard| shard.base.functions).max();
        if expected.unwrap_or(0) == 0 {
            return Ok(found);
        }
        for shard in &discover(context, seeds).await?.topology().shards {
            let mut connection = context.connector.connect(&shard.primary.addr).await?;
            let reply = connection.call(&Command::new("FUNCTION").arg("LIST")).await?;
            let libraries = reply.as_array().unwrap_or_default();
            let functions =
                libraries.iter().filter_map(|library| library.get("functions")?.as_array()).flatten();
            let names: Vec<String> =
                functions.filter_map(|function| Some(function.get("name")?.as_text()?.to_owned())).collect();
            if names.is_empty() {
                let what = format!("the primary of slots {} has no functions", shard.slots);
                found.push(problem((Depth::Drill, "functions"), &self.record.backup, what, ""));
            }
            for name in names {
                let reply = connection.exchange(&Command::new("FCALL").args([name.as_str(), "0"])).await?;
                if reply.as_error().is_some_and(|words| words.contains("unction not found")) {
                    let what = format!(
                        "the function {name} can't be called: {}",
                        reply.as_error().unwrap_or_default()
                    );
                    found.push(problem((Depth::Drill, "functions"), &self.record.backup, what, ""));
                }
            }
        }
        Ok(found)
    }

    /// Writes a key on every primary; gives one shard with a replica, if there is one, and the key written there.
    async fn write(&self, context: &Context, seeds: &[NodeAddr]) -> Result<(Option<Shard>, String)> {
        let (mut with_replica, mut last) = (None, String::new());
        for shard in &discover(context, seeds).await?.topology().shards {
            let key = key_in(context, &shard.slots)?;
            let mut connection = context.connector.connect(&shard.primary.addr).await?;
            connection.call(&Command::new("SET").args([key.as_str(), "drill"])).await?;
            if with_replica.is_none() && !shard.replicas.is_empty() {
                // It has to be on the replica before that takes over.
                connection.call(&Command::new("WAIT").args(["1", "10000"])).await?;
                (with_replica, last) = (Some(shard.clone()), key);
            }
        }
        Ok((with_replica, last))
    }

    /// Lets a replica take over, and reads there what was written before.
    async fn fail_over(&self, context: &Context, shard: Option<&Shard>, key: &str) -> Result<()> {
        let replica = shard.and_then(|shard| shard.replicas.first());
        let Some(replica) = replica.filter(|_| self.point.manifest.cluster_mode) else { return Ok(()) };
        let began = context.clock.elapsed();
        let mut connection = context.connector.connect(&replica.addr).await?;
        connection.call(&Command::new("CLUSTER").arg("FAILOVER")).await?;
        while node_report(context, &replica.addr).await?.role != slotkeep_model::Role::Primary {
            if context.clock.elapsed().saturating_sub(began) > FAILOVER_LIMIT {
                return Err(Error::new(ErrorKind::Failed, format!("{} does not take over", replica.addr)));
            }
            context.clock.sleep(LOOK_EVERY).await;
        }
        let reply = connection.call(&Command::new("GET").arg(key)).await?;
        if reply.as_text() == Some("drill") {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Failed, "a key written before the failover is not there after it"))
    }
}

/// Connections to the nodes of the drill, which want neither TLS nor a password.
fn here(context: &Context) -> Result<Context> {
    let options = ConnectorOptions { timeout: Some(ANSWER_LIMIT), ..ConnectorOptions::default() };
    Ok(Context { connector: Arc::new(Connector::new(options)?), ..context.clone() })
}

/// Addresses of this machine that are free, bus ports too.
fn free_addrs(count: usize) -> Result<Vec<NodeAddr>> {
    let mut held = Vec::new();
    let mut addrs = Vec::new();
    for _ in 0..PORT_TRIES {
        if addrs.len() == count {
            return Ok(addrs);
        }
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) else { continue };
        let Ok(port) = listener.local_addr().map(|addr| addr.port()) else { continue };
        if port > HIGHEST_PORT {
            // Kept until the end: or it would be given again.
            held.push(listener);
            continue;
        }
        let Ok(bus) = TcpListener::bind((Ipv4Addr::LOCALHOST, port.saturating_add(10_000))) else { continue };
        held.extend([listener, bus]);
        addrs.push(NodeAddr::new("127.0.0.1", port));
    }
    Err(Error::new(ErrorKind::Failed, "this machine has not enough free ports for the cluster"))
}

fn key_in(context: &Context, slots: &SlotSet) -> Result<String> {
    let stem = random_hex(&*context.rng, 16)?;
    let keys = (0..300_000_u32).map(|number| format!("slotkeep:drill:{stem}:{number}"));
    let fitting = keys.into_iter().find(|key| slots.contains(key_slot(key.as_bytes())));
    fitting.ok_or_else(|| Error::new(ErrorKind::Failed, format!("no key was found for the slots {slots}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_others_use_are_left_alone() {
        let ports = |addrs: &[NodeAddr]| {
            addrs.iter().flat_map(|addr| [addr.port(), addr.port() + 10_000]).collect::<Vec<u16>>()
        };
        let first = ports(&free_addrs(30).unwrap());
        // Free: each can be taken, the bus's too.
        let held: Vec<TcpListener> =
            first.iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap()).collect();
        let second = ports(&free_addrs(30).unwrap());
        assert_eq!((first.len(), second.len(), held.len()), (60, 60, 60));
        assert!(second.iter().all(|port| !first.contains(port)), "{first:?} {second:?}");
    }
}
