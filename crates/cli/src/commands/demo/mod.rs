//! `slotkeep demo`: a cluster is lost and brought back, on clusters of its own.
//!
//! The steps run the very commands they show, in this process: each is parsed as if it had been typed, except that the user's settings
//! file and environment are left out. A proof that does not come out as it should fails the demo.
//!
//! All files lie in the first cluster's folder, which goes with that cluster, and by its watchdog if this process is killed. So the
//! first cluster is kept to the end, and commands that would put files elsewhere are told to put them there.

mod narrator;
mod server;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_testkit::{Cluster, Server};

use crate::args::AccessArgs;
use crate::exit;
use crate::output::{Output, bytes, count, seconds};
use crate::session::Session;
use narrator::{Narrator, Ran, Step};
use stage::{Data, NEW_SHARDS, OLD_SHARDS, blocking};

/// Lose a throw-away cluster and bring it back, with proof
///
/// Starts a cluster of 3 primaries and 3 replicas on this machine, fills it with data of every type, backs it up while a client writes,
/// destroys it, restores the backup into a new cluster of another shape, and compares the two, all in less than a minute and
/// with the same commands as you would type. Needs no root, and leaves nothing running and no file behind, except that a server it
/// had to fetch is kept in ~/.cache/slotkeep for the next time.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Server to run: the path of a redis-server or valkey-server, or the name of one to fetch, such as valkey-9.1 or redis-7.0.
    /// If not given: valkey-9.1 if it was fetched before, else this machine's own server, else valkey-9.1 is fetched
    #[arg(long, value_name = "NAME|PATH")]
    server: Option<String>,
    /// At the end, keep the clusters and the repository until Ctrl-C, to look at
    #[arg(long)]
    keep: bool,
}

/// What happened, for programs.
#[derive(Serialize)]
struct Report {
    server: String,
    old_shards: usize,
    new_shards: usize,
    backup: Value,
    keys: Value,
    writes: Writes,
    proof: Proof,
    steps: Vec<Step>,
    seconds: f64,
}

/// How many of the writer's writes had been acknowledged.
#[derive(Clone, Copy, Serialize)]
struct Writes {
    before_backup: u64,
    after_backup: u64,
    in_all: u64,
}

/// What the two comparisons found.
#[derive(Serialize)]
struct Proof {
    /// Of the backup with the restored cluster; none if all is well.
    differing_slots: u64,
    /// After one field of this key was changed on the restored cluster: the one key that the comparison named.
    changed_key_named: Value,
}

/// Both clusters, and what lies between them.
struct Scene {
    old: Arc<Cluster>,
    new: Arc<Cluster>,
    folder: PathBuf,
    backup: Value,
    keys: Value,
    writes: Writes,
    proof: Proof,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &DemoArgs) -> Result<u8> {
    let session = session.without_settings();
    let context = session.context(&AccessArgs::default())?;
    let mut tell = Narrator::new(&session, output, &context);
    tell.line("Slotkeep demo: a cluster is lost and brought back, with proof. Nothing of it stays behind.")?;
    let outcome = play(&mut tell, &context, arguments.server.as_deref()).await;
    let (server, scene) = match outcome {
        Ok(played) => played,
        Err(error) => {
            if error.kind() == ErrorKind::Interrupted {
                output.note("Stopped. What the demo had started is gone again.");
            }
            return Err(error);
        }
    };
    let Scene { old, new, folder, backup, keys, writes, proof } = scene;
    let report = Report {
        server: server.version().to_string(),
        old_shards: OLD_SHARDS,
        new_shards: NEW_SHARDS,
        backup,
        keys,
        writes,
        proof,
        seconds: tell.seconds(),
        steps: tell.finish(),
    };
    output.data(&report, render)?;
    if arguments.keep {
        keep(&context, output, &new, &folder).await?;
    }
    let servers = stage::running(&old) + stage::running(&new);
    drop((old, new));
    if folder.exists() {
        output.warn(&format!("{} could not be removed", folder.display()));
    } else {
        output.note(&format!(
            "Stopped the {servers} servers that still ran, and removed all files. Your own cluster next: `slotkeep check --cluster HOST:PORT`."
        ));
    }
    Ok(exit::OK)
}

/// Shows how to look at what is there, and waits for Ctrl-C.
async fn keep(context: &Context, output: &Output, new: &Cluster, folder: &std::path::Path) -> Result<()> {
    let addr = stage::addr(new)?;
    output.note(&format!(
        "\nKept until Ctrl-C: the restored cluster at {addr} and the repository in D={}. For example:\n  \
         $ {} -c -p {} HGETALL {}\n  $ slotkeep show --repo $D/repo",
        folder.display(),
        stage::cli(new),
        addr.port(),
        stage::ACCOUNT,
    ));
    context.stop.cancelled().await;
    Ok(())
}

async fn play(tell: &mut Narrator<'_>, context: &Context, wanted: Option<&str>) -> Result<(Server, Scene)> {
    let server = server::get(tell, context, wanted).await?;
    let old = start_old(tell, context, &server).await?;
    let folder = stage::make_folder(&old)?;
    tell.call_folder(&folder)?;
    let data = fill(tell, context, &old).await?;
    let (manifest, writes) = back_up(tell, context, &old).await?;
    destroy(tell, context, &old, writes).await?;
    let new = start_new(tell, context, &server).await?;
    restore(tell, &new).await?;
    let differing_slots = prove(tell, context, &new, data).await?;
    let changed_key_named = prove_that_it_can_fail(tell, context, &new).await?;
    let field = |pointer: &str| manifest.pointer(pointer).cloned().unwrap_or_default();
    let proof = Proof { differing_slots, changed_key_named };
    let scene = Scene { old, new, folder, backup: field("/id"), keys: field("/digest/keys"), writes, proof };
    Ok((server, scene))
}

async fn start_old(tell: &mut Narrator<'_>, context: &Context, server: &Server) -> Result<Arc<Cluster>> {
    tell.step(&format!("Start a cluster: {OLD_SHARDS} primaries, {OLD_SHARDS} replicas"))?;
    let server = server.clone();
    let cluster = Arc::new(blocking(context, move || stage::start(server, OLD_SHARDS, 1)).await?);
    let ports = |nodes: std::ops::Range<usize>| stage::ports(&cluster, nodes);
    tell.say(&format!(
        "It is up on 127.0.0.1: primaries on ports {}, their replicas on {}.",
        ports(0..OLD_SHARDS),
        ports(OLD_SHARDS..2 * OLD_SHARDS)
    ))?;
    Ok(cluster)
}

async fn fill(tell: &mut Narrator<'_>, context: &Context, cluster: &Arc<Cluster>) -> Result<Data> {
    tell.step("Fill it with data of every type, in every encoding that this server has")?;
    let target = Arc::clone(cluster);
    let data = blocking(context, move || stage::fill(&target)).await?;
    let types: Vec<String> =
        data.keys_by_type().iter().map(|(kind, keys)| format!("{} {}", count(*keys), plural(kind))).collect();
    let functions = if data.has_functions() { ", and a function library" } else { "" };
    tell.say(&format!(
        "{} keys, {} of data:\n{}{functions}.\nOne of them will be met again:",
        count(data.keys()),
        bytes(data.bytes()),
        types.join(", ")
    ))?;
    tell.typed(&stage::cli_command(cluster, &stage::ACCOUNT_MADE)?)?;
    Ok(data)
}

async fn back_up(
    tell: &mut Narrator<'_>,
    context: &Context,
    cluster: &Arc<Cluster>,
) -> Result<(Value, Writes)> {
    tell.step("Back it up, while a client writes without rest")?;
    let target = Arc::clone(cluster);
    let writer = blocking(context, move || stage::start_writer(&target)).await?;
    let before_backup = writer.acknowledged();
    let addr = stage::addr(cluster)?.to_string();
    let manifest = tell.slotkeep(&["backup", "--cluster", &addr, "--repo", "$D/repo"], exit::OK).await?.value;
    let after_backup = writer.acknowledged();
    let in_all = blocking(context, move || stage::write_more(writer)).await?;
    tell.say(&format!(
        "The client had {} writes acknowledged when the backup began, {} when it had ended, and {} now.",
        count(before_backup),
        count(after_backup),
        count(in_all)
    ))?;
    Ok((manifest, Writes { before_backup, after_backup, in_all }))
}

async fn destroy(
    tell: &mut Narrator<'_>,
    context: &Context,
    cluster: &Arc<Cluster>,
    writes: Writes,
) -> Result<()> {
    tell.step("Disaster: FLUSHALL everywhere, then kill -9 every primary and one replica")?;
    let target = Arc::clone(cluster);
    let loss = blocking(context, move || stage::destroy(&target)).await?;
    for command in &loss.commands {
        tell.typed(command)?;
    }
    let left: Vec<String> =
        loss.survivors.iter().map(|(port, keys)| format!("port {port}, {} keys", count(*keys))).collect();
    tell.say(&format!(
        "Left are two replicas ({}): nothing to promote. The backup is all there is.",
        left.join("; ")
    ))?;
    tell.say(&format!(
        "All {} writes after the backup had ended are lost: this version takes full backups. To keep every write needs\n\
         the continuous archive, which it does not have yet.",
        count(writes.in_all.saturating_sub(writes.after_backup))
    ))
}

async fn start_new(tell: &mut Narrator<'_>, context: &Context, server: &Server) -> Result<Arc<Cluster>> {
    tell.step(&format!("Start a new cluster of another shape: {NEW_SHARDS} shards instead of {OLD_SHARDS}"))?;
    let server = server.clone();
    let cluster = Arc::new(blocking(context, move || stage::start(server, NEW_SHARDS, 0)).await?);
    tell.say(&format!("It is up, and empty: ports {}.", stage::ports(&cluster, 0..NEW_SHARDS)))?;
    Ok(cluster)
}

async fn restore(tell: &mut Narrator<'_>, new: &Cluster) -> Result<()> {
    tell.step("Restore the backup into it")?;
    let addr = stage::addr(new)?.to_string();
    let engine = new.server().program().to_string_lossy();
    let command =
        ["restore", "--repo", "$D/repo", "--to", &addr, "--state", "$D/restore.json", "--engine", &engine];
    tell.slotkeep(&command, exit::OK).await?;
    Ok(())
}

/// Compares the backup with the restored cluster, by digest and by reading keys as a client would. Returns how many slots differ: none.
async fn prove(tell: &mut Narrator<'_>, context: &Context, new: &Arc<Cluster>, data: Data) -> Result<u64> {
    tell.step("Prove it: compare all 16384 slots of the backup with the new cluster")?;
    let differing = differing_slots(&diff(tell, new, exit::OK).await?)?;
    let target = Arc::clone(new);
    let read = blocking(context, move || data.verify(&target)).await?;
    tell.say(&format!(
        "And without Slotkeep: {} keys of every type, read with ordinary commands (GET, HGETALL, XRANGE, …), hold what\n\
         was written before the backup.",
        count(read)
    ))?;
    if differing == 0 {
        Ok(differing)
    } else {
        Err(disproved("the restored cluster differs from the backup"))
    }
}

/// Changes one field of one key on the restored cluster and compares again. Returns how the difference names that key.
async fn prove_that_it_can_fail(
    tell: &mut Narrator<'_>,
    context: &Context,
    new: &Arc<Cluster>,
) -> Result<Value> {
    tell.step("Prove that the proof can fail: change one field of one key, and compare again")?;
    let target = Arc::clone(new);
    blocking(context, move || stage::change_account(&target)).await?;
    tell.typed(&stage::cli_command(new, &stage::ACCOUNT_CHANGED)?)?;
    let found = diff(tell, new, exit::DIFFERENT).await?;
    tell.say(&format!("Exactly that key is named, and the exit code is {}.", exit::DIFFERENT))?;
    match only_key(&found) {
        Some(key) if key.as_str() == Some(&format!("\"{}\"", stage::ACCOUNT)) => Ok(key),
        _ => Err(disproved("the comparison does not name the one key that was changed")),
    }
}

async fn diff(tell: &mut Narrator<'_>, new: &Cluster, expected: u8) -> Result<Value> {
    let addr = stage::addr(new)?.to_string();
    let engine = new.server().program().to_string_lossy();
    let command = ["diff", "--repo", "$D/repo", "--spool", "$D", "--engine", &engine, "latest", &addr];
    let Ran { value, .. } = tell.slotkeep(&command, expected).await?;
    Ok(value)
}

fn differing_slots(diff: &Value) -> Result<u64> {
    let differing = diff.get("differing_slot_count").and_then(Value::as_u64);
    differing.ok_or_else(|| disproved("the comparison gives no number of differing slots"))
}

/// The key that a comparison names, if it is the only one.
fn only_key(diff: &Value) -> Option<Value> {
    match diff.get("keys")?.as_array()?.as_slice() {
        [key] if diff.get("differing_slot_count")? == 1 => key.get("key").cloned(),
        _ => None,
    }
}

/// What people call keys of a type.
fn plural(kind: &str) -> String {
    match kind {
        "hash" => "hashes".to_owned(),
        "zset" => "sorted sets".to_owned(),
        _ => format!("{kind}s"),
    }
}

fn disproved(what: &str) -> Error {
    Error::new(ErrorKind::Failed, format!("the demo disproves itself: {what}"))
        .hint("this is a bug of Slotkeep: please report it with the whole output of this run")
}

fn render(report: &Report) -> String {
    let keys = report.keys.as_u64().map_or_else(|| "?".to_owned(), count);
    format!(
        "\nProven in {}: {keys} keys went from {} shards to {}, none of 16384 slots differs, and one changed field is found.",
        seconds(std::time::Duration::from_secs_f64(report.seconds.max(0.0))),
        report.old_shards,
        report.new_shards,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_one_key_in_one_slot_is_the_only_key() {
        let key = json!({"key": "\"k\"", "difference": "value"});
        assert_eq!(only_key(&json!({"differing_slot_count": 1, "keys": [key]})), Some(json!("\"k\"")));
        assert_eq!(only_key(&json!({"differing_slot_count": 2, "keys": [key]})), None);
        assert_eq!(only_key(&json!({"differing_slot_count": 1, "keys": [key, key]})), None);
        assert_eq!(only_key(&json!({"differing_slot_count": 0, "keys": []})), None);
        assert_eq!(only_key(&json!({})), None);
    }
}
